# %% [markdown]
"""Train on the digits from Python, with an optimiser from optax, and look at what the history
holds.

Run it:  python examples/train_digits.py
"""

# %%
import jax
import optax

import jaxnn

DIGITS = jaxnn.load_digits()


# %%
def loss(params, x, t):
    return jaxnn.loss(params, x, t, jax.nn.relu)


def metrics(params, x, t):
    return {"accuracy": jaxnn.accuracy(jaxnn.predict(params, x, jax.nn.relu), t)}


# %%
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
        measuring=jaxnn.Measuring(test=(DIGITS.x_test, DIGITS.t_test), metrics=metrics),
        reporting=jaxnn.Reporting(jaxnn.show_progress()),
    )
    best = int(result.history.metrics["test_loss"].argmin()) + 1
    print(f"{len(result.history.step_loss)} steps; the test loss was lowest after epoch {best}")


# %%
if __name__ == "__main__":
    main()
