# %% [markdown]
"""Seven learning rates at once, and five seeds at once, each in one compiled program.

Run it:  python examples/sweep.py
"""

# %%
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnn

DIGITS = jaxnn.load_digits()
TRAIN, TEST = (DIGITS.x_train, DIGITS.t_train), (DIGITS.x_test, DIGITS.t_test)


def start(key):
    return jaxnn.init_network(key, (64, 30, 10), weight_scale=0.1)


def metrics(params, x, t):
    return {"accuracy": jaxnn.accuracy(jaxnn.predict(params, x), t)}


# %% Learning rates: one key for all runs, so they see the same batches
def rates():
    rates = jnp.array([1e-3, 1e-2, 0.1, 0.5, 2.0, 10.0, 100.0])
    print("seven learning rates at once:")
    began = time.perf_counter()
    runs = jaxnn.sweep(
        jaxnn.loss,
        start,
        TRAIN,
        optax.sgd,
        rates,
        key=jax.random.key(0),
        epochs=30,
        test=TEST,
        metrics=metrics,
    )
    print(
        f"{len(runs)} runs of {runs[0].status.step} steps in {time.perf_counter() - began:.1f} s, "
        f"compilation included"
    )
    print("learning rate  train loss  test accuracy")
    for rate, run in zip(rates, runs, strict=True):
        metric = run.history.metrics
        print(f"{rate:13g}  {metric['train_loss'][-1]:10.4f}  {metric['test_accuracy'][-1]:13.4f}")


# %% Seeds: a key for each run, for its start and its batches
def seeds():
    print("five seeds at once:")
    keys = jax.random.split(jax.random.key(0), 5)
    runs = jaxnn.sweep(
        jaxnn.loss,
        start,
        TRAIN,
        optax.sgd,
        jnp.full(5, 2.0),
        key=keys,
        epochs=30,
        test=TEST,
        metrics=metrics,
    )
    ends = np.array([run.history.metrics["test_accuracy"][-1] for run in runs])
    print(f"test accuracy from {len(runs)} seeds: {ends.mean():.3f} +- {ends.std(ddof=1):.3f}")


# %%
if __name__ == "__main__":
    rates()
    seeds()
