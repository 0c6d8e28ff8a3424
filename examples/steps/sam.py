"""Sharpness-aware minimisation, with optax's optimiser, which evaluates the gradient once more.

Run it:  python examples/steps/sam.py
"""

import jax
import optax

import jaxnn

DIGITS = jaxnn.load_digits()
PARAMS = jaxnn.init_network(jax.random.key(0), (64, 32, 10), 0.2)
ASCENT = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
OPTIMIZER = optax.contrib.sam(optax.sgd(0.5), ASCENT, opaque_mode=True)

if __name__ == "__main__":
    data, key = (DIGITS.x_train, DIGITS.t_train), jax.random.key(1)
    result = jaxnn.fit(jaxnn.loss, PARAMS, data, OPTIMIZER, key=key, epochs=30)
    scores = jaxnn.predict(result.params, DIGITS.x_test)
    print(f"{result.status.step} steps; accuracy {jaxnn.accuracy(scores, DIGITS.t_test):.2f}")
