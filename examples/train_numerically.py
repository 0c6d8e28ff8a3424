# %% [markdown]
"""Train the digits network with numerical gradients alone, and with automatic ones: the same
accuracy, and how long each takes.

Run it:  python examples/train_numerically.py
"""

# %%
import argparse
import time

import jax
import optax

import jaxnn

DIGITS = jaxnn.load_digits()


def metrics(params, x, t):
    return {"accuracy": jaxnn.accuracy(jaxnn.predict(params, x), t)}


# %%
def train(grad, epochs):
    params = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
    start = time.perf_counter()
    result = jaxnn.fit(
        jaxnn.loss,
        params,
        (DIGITS.x_train, DIGITS.t_train),
        optax.sgd(1.0),
        key=jax.random.key(1),
        epochs=epochs,
        grad=grad,
        measuring=jaxnn.Measuring(test=(DIGITS.x_test, DIGITS.t_test), metrics=metrics),
    )
    return (
        result.history.metrics["test_accuracy"][-1],
        len(result.history.step_loss),
        time.perf_counter() - start,
    )


# %%
def main(epochs=60):
    for name, grad in (("automatic", jax.grad), ("numerical", jaxnn.numerical_grad)):
        print(f"{name} gradients:", end=" ", flush=True)
        accuracy, steps, seconds = train(grad, epochs)
        print(f"test accuracy {accuracy:.4f} after {steps} steps in {seconds:.1f} s")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="3 epochs instead of 60")
    main(3 if parser.parse_args().short else 60)
