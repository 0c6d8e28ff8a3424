"""Steps as in K-FAC: each weight's gradient is preconditioned by the inverses of two averages, the
second moments of the layer's inputs and of the gradients with respect to its outputs.

Run it:  python examples/steps/kronecker.py
"""

import jax
import jax.numpy as jnp

import jaxnn

DIGITS = jaxnn.load_digits()
DATA = (DIGITS.x_train, DIGITS.t_train)
SIZES = (64, 32, 10)
PARAMS = jaxnn.init_network(jax.random.key(0), SIZES, 0.2)
RATE, AVERAGE, DAMPING = 0.03, 0.95, 1e-2


def scores(params, x, shifts=(0.0, 0.0)):
    """The scores, and the inputs of both layers; `shifts` are added to their outputs."""
    hidden = jax.nn.relu(x @ params["W1"] + params["b1"] + shifts[0])
    return hidden @ params["W2"] + params["b2"] + shifts[1], (x, hidden)


def loss_of(params, shifts, x, t):
    found, inputs = scores(params, x, shifts)
    return jaxnn.softmax_cross_entropy(found, t), inputs


def step(state, batch, key):
    params, factors = state
    count = len(batch[0])
    shifts = [jnp.zeros((count, size)) for size in SIZES[1:]]
    both = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss, inputs), (gradient, by_outputs) = both(params, shifts, *batch)
    params, new = dict(params), []
    for i, (x, g, (a, b)) in enumerate(zip(inputs, by_outputs, factors, strict=True), 1):
        a = AVERAGE * a + (1 - AVERAGE) * x.T @ x / count
        b = AVERAGE * b + (1 - AVERAGE) * g.T @ g * count
        damped = [m + DAMPING * jnp.eye(len(m)) for m in (a, b)]
        change = jnp.linalg.solve(damped[0], jnp.linalg.solve(damped[1], gradient[f"W{i}"].T).T)
        params[f"W{i}"] -= RATE * change
        params[f"b{i}"] -= RATE * gradient[f"b{i}"]
        new.append((a, b))
    return (params, new), {"loss": loss}


STATE = (PARAMS, [(jnp.eye(m), jnp.eye(n)) for m, n in zip(SIZES, SIZES[1:], strict=False)])
RUN = {"key": jax.random.key(1), "batch_size": 100}

if __name__ == "__main__":
    result = jaxnn.train(step, STATE, DATA, epochs=20, **RUN)
    found, _ = scores(result.state[0], DIGITS.x_test)
    print(f"{result.status.step} steps; accuracy {jaxnn.accuracy(found, DIGITS.t_test):.2f}")
