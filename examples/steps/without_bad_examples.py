"""Examples whose gradient is not finite are left out of the mean; their number is recorded.

Run it:  python examples/steps/without_bad_examples.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxnn

DIGITS = jaxnn.load_digits()
DATA = (DIGITS.x_train.at[::100].set(jnp.nan), DIGITS.t_train)
PARAMS = jaxnn.init_network(jax.random.key(0), (64, 32, 10), 0.2)
OPTIMIZER = optax.adam(1e-2)


def step(state, batch, key):
    params, opt_state = state
    of_one = jax.value_and_grad(lambda params, x, t: jaxnn.loss(params, x[None], t[None]))
    losses, gradients = jax.vmap(of_one, (None, 0, 0))(params, *batch)
    fine = jax.vmap(lambda *x: jnp.isfinite(optax.tree.norm(x)))(losses, gradients)
    mean = lambda x: jnp.sum(x, 0, where=fine.reshape(-1, *[1] * (x.ndim - 1))) / fine.sum()  # noqa: E731
    updates, opt_state = OPTIMIZER.update(jax.tree.map(mean, gradients), opt_state)
    record = {"loss": mean(losses), "left out": jnp.sum(~fine)}
    return (optax.apply_updates(params, updates), opt_state), record


STATE = (PARAMS, OPTIMIZER.init(PARAMS))
RUN = {"key": jax.random.key(1), "batch_size": 100}

if __name__ == "__main__":
    result = jaxnn.train(step, STATE, DATA, epochs=20, **RUN)
    scores = jaxnn.predict(result.state[0], DIGITS.x_test)
    left_out = int(result.history.aux["left out"].sum()) // 20
    print(f"left out of each epoch: {left_out}; ", end="")
    print(f"accuracy {jaxnn.accuracy(scores, DIGITS.t_test):.2f}")
