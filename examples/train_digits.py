"""Train on the digits from Python, with an optimiser from optax, and look at what the history holds.

Run it:  python examples/train_digits.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxnn

DIGITS = jaxnn.load_digits()


def loss(params, x, t):
    return jaxnn.loss(params, x, t, jax.nn.relu)


def metrics(params):
    scores = jaxnn.predict(params, DIGITS.x_test, jax.nn.relu)
    return {"test_loss": jaxnn.softmax_cross_entropy(scores, DIGITS.t_test), "test_accuracy": jnp.mean(
        jnp.argmax(scores, -1) == DIGITS.t_test)}  # fmt: skip


def report(epoch, record):
    if epoch % 5 == 0:
        print(f"epoch {epoch:2}: loss {record['loss']:.4f}, test accuracy {record['test_accuracy']:.4f}")


def main():
    params = jaxnn.init_network(jax.random.key(0), (64, 64, 32, 10), weight_scale=0.1)
    result = jaxnn.fit(
        loss,
        params,
        (DIGITS.x_train, DIGITS.t_train),
        optax.adam(3e-3),
        key=jax.random.key(1),
        epochs=30,
        batch_size=64,
        metrics=metrics,
        on_progress=report,
    )
    best = int(result.history.metrics["test_loss"].argmin()) + 1
    print(f"{len(result.history.step_loss)} steps; the test loss was lowest after epoch {best}")


if __name__ == "__main__":
    main()
