# %% [markdown]
"""A network that solves a differential equation: u''(x) = -pi^2 sin(pi x), with u(0) = u(1) = 0.

The loss is how far the network is from solving it, on all points at once, so every step is
a full-batch step of L-BFGS. Chunks of steps span epochs: 2,000 epochs of one step take
as long as 2,000 steps of a hand-written loop. The solution is sin(pi x), so the error is known.

Run it:  python examples/physics_informed.py
"""

# %%
import argparse

import jax
import jax.numpy as jnp
import optax

import jaxnn

POINTS = jnp.linspace(0, 1, 101)


# %%
def u(params, x):
    """The network, made to be 0 at both ends."""
    inner = jaxnn.predict(params, jnp.atleast_1d(x), jnp.tanh)[0]
    return x * (1 - x) * inner


def loss(params, x):
    """Mean square of u'' + pi^2 sin(pi x) over the points."""
    second = jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(params, x)
    return jnp.mean((second + jnp.pi**2 * jnp.sin(jnp.pi * x)) ** 2)


def error(params):
    """The largest distance of the network from the solution."""
    solution = jnp.sin(jnp.pi * POINTS)
    return float(jnp.max(jnp.abs(jax.vmap(u, (None, 0))(params, POINTS) - solution)))


# %%
def main(epochs):
    params = jaxnn.init_network(jax.random.key(0), (1, 20, 20, 1), weight_scale=0.5)
    print(jaxnn.check_gradient(loss, params, POINTS))
    for name, optimizer in (("Adam", optax.adam(1e-2)), ("L-BFGS", optax.lbfgs())):
        print(f"{name}:", end=" ", flush=True)
        result = jaxnn.fit(
            loss,
            params,
            (POINTS,),
            optimizer,
            key=jax.random.key(1),
            epochs=epochs,
            batch_size=len(POINTS),
        )
        losses, seconds = result.history.step_loss, result.history.seconds.sum()
        print(
            f"{len(losses)} steps in {seconds:.1f} s, the loss from {losses[0]:.1f} to "
            f"{losses[-1]:.1e}, the largest error {error(result.params):.1e}"
        )


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="200 steps instead of 2,000")
    main(200 if parser.parse_args().short else 2000)
