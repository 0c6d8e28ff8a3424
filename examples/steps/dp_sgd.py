"""Differentially private descent: the gradient of each example is clipped, and noise is added.

Run it:  python examples/steps/dp_sgd.py
"""

import jax
import optax

import jaxnn

DIGITS = jaxnn.load_digits()
DATA = (DIGITS.x_train, DIGITS.t_train)
PARAMS = jaxnn.init_network(jax.random.key(0), (64, 32, 10), 0.2)
CLIP, NOISE = 1.0, 0.3
PRIVATE = optax.contrib.differentially_private_aggregate(CLIP, NOISE, key=jax.random.key(7))
OPTIMIZER = optax.chain(PRIVATE, optax.sgd(0.5))


def step(state, batch, key):
    params, opt_state = state
    of_one = jax.value_and_grad(lambda params, x, t: jaxnn.loss(params, x[None], t[None]))
    losses, gradients = jax.vmap(of_one, (None, 0, 0))(params, *batch)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": losses.mean()}


STATE = (PARAMS, OPTIMIZER.init(PARAMS))
RUN = {"key": jax.random.key(1), "batch_size": 150}

if __name__ == "__main__":
    result = jaxnn.train(step, STATE, DATA, epochs=20, **RUN)
    scores = jaxnn.predict(result.state[0], DIGITS.x_test)
    print(f"{result.status.step} steps; accuracy {jaxnn.accuracy(scores, DIGITS.t_test):.2f}")
