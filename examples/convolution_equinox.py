# %% [markdown]
"""A convolutional Equinox network on the digits, with batch normalisation and dropout.

The module itself is trained; the running statistics of its batch normalisation are the model's
state; and the loss takes a key, so each step has its own key for dropout. Without a key, as in
measurements, the network is in inference mode.

Run it:  pip install equinox && python examples/convolution_equinox.py
"""

# %%
import argparse

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import optax

import jaxnn

DIGITS = jaxnn.load_digits()


# %%
class Net(eqx.Module):
    convolutions: list
    norms: list
    dropout: eqx.nn.Dropout
    scores: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.convolutions = [
            eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(16, 32, 3, stride=2, padding=1, key=keys[1]),
        ]
        self.norms = [eqx.nn.BatchNorm(n, axis_name="batch", mode="batch") for n in (16, 32)]
        self.dropout = eqx.nn.Dropout(0.3)
        self.scores = eqx.nn.Linear(32 * 4 * 4, 10, key=keys[2])

    def __call__(self, x, state, key):
        x = x.reshape(1, 8, 8)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x, state = norm(convolution(x), state)
            x = jax.nn.relu(x)
        return self.scores(self.dropout(x.ravel(), key=key)), state


def scores(net, state, x, key=None):
    """The scores of a batch, and the state after it."""
    if key is None:
        net = eqx.nn.inference_mode(net)
    keys = None if key is None else jax.random.split(key, len(x))
    axes = (0, None, None if key is None else 0)
    return jax.vmap(net, axes, (0, None), axis_name="batch")(x, state, keys)


def loss(net, state, x, t, *, key=None):
    y, state = scores(net, state, x, key)
    return jaxnn.softmax_cross_entropy(y, t), state


def metrics(net, state, x, t):
    return {"accuracy": jaxnn.accuracy(scores(net, state, x)[0], t)}


# %%
def main(epochs):
    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    leaves = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))
    print(f"{sum(leaf.size for leaf in leaves):,} parameters")
    result = jaxnn.fit(
        loss,
        net,
        (DIGITS.x_train, DIGITS.t_train),
        optax.adam(3e-3),
        key=jax.random.key(1),
        epochs=epochs,
        batch_size=100,
        start=jaxnn.Start(model_state=state),
        measuring=jaxnn.Measuring(test=(DIGITS.x_test, DIGITS.t_test), metrics=metrics),
        reporting=jaxnn.Reporting(jaxnn.show_progress()),
    )
    y, _ = scores(result.params, result.model_state, DIGITS.x_test)
    wrong = jnp.sum(jnp.argmax(y, 1) != DIGITS.t_test)
    print(f"{result.status.step} steps: {wrong} of {len(y)} digits that it never saw are wrong")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="2 epochs instead of 20")
    main(2 if parser.parse_args().short else 20)
