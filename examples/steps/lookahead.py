"""Lookahead: fast parameters take five steps, then slow ones follow halfway.

Run it:  python examples/steps/lookahead.py
"""

import jax
import optax

import jaxnn

DIGITS = jaxnn.load_digits()
DATA = (DIGITS.x_train, DIGITS.t_train)
PARAMS = optax.LookaheadParams.init_synced(jaxnn.init_network(jax.random.key(0), (64, 32, 10), 0.2))
OPTIMIZER = optax.lookahead(optax.sgd(0.5), sync_period=5, slow_step_size=0.5)


def step(state, batch, key):
    params, opt_state = state
    loss, gradient = jax.value_and_grad(jaxnn.loss)(params.fast, *batch)
    updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": loss}


STATE = (PARAMS, OPTIMIZER.init(PARAMS))
RUN = {"key": jax.random.key(1), "batch_size": 100}

if __name__ == "__main__":
    result = jaxnn.train(step, STATE, DATA, epochs=30, **RUN)
    scores = jaxnn.predict(result.state[0].slow, DIGITS.x_test)
    print(f"{result.status.step} steps; accuracy {jaxnn.accuracy(scores, DIGITS.t_test):.2f}")
