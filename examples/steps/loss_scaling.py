"""Gradients in float16 with a dynamic loss scale: if they overflow, the scale is halved and the
step skipped; after 100 good steps, the scale is doubled.

Run it:  python examples/steps/loss_scaling.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxnn

DIGITS = jaxnn.load_digits()
DATA = (DIGITS.x_train, DIGITS.t_train)
PARAMS = jaxnn.init_network(jax.random.key(0), (64, 32, 10), 0.2)
OPTIMIZER = optax.adam(1e-2)


def scaled_loss(params, scale, x, t):
    half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
    loss = jaxnn.loss(half, x.astype(jnp.float16), t)
    return loss * scale.astype(jnp.float16), loss


def step(state, batch, key):
    params, opt_state, scale, good = state
    gradient, loss = jax.grad(scaled_loss, has_aux=True)(params, scale, *batch)
    gradient = jax.tree.map(lambda g: g / scale, gradient)
    fine = jnp.isfinite(optax.tree.norm(gradient))
    updates, after = OPTIMIZER.update(gradient, opt_state)
    keep = lambda new, old: jnp.where(fine, new, old)  # noqa: E731
    params = jax.tree.map(keep, optax.apply_updates(params, updates), params)
    opt_state = jax.tree.map(keep, after, opt_state)
    good = jnp.where(fine, good + 1, 0)
    grows = jnp.where(good % 100 == 0, 2.0, 1.0)
    scale = jnp.where(fine, scale * grows, scale / 2)
    return (params, opt_state, scale, good), {"loss": loss.astype(jnp.float32), "scale": scale}


STATE = (PARAMS, OPTIMIZER.init(PARAMS), jnp.float32(2**15), jnp.int32(0))
RUN = {"key": jax.random.key(1), "batch_size": 100}

if __name__ == "__main__":
    result = jaxnn.train(step, STATE, DATA, epochs=30, **RUN)
    scale, losses = result.history.aux["scale"], result.history.step_loss
    print(f"{result.status.step} steps; loss {losses[-15:].mean():.3f}; scale {scale[-1]:.0f}")
