"""Labels below 0 are refused where the loss would take them for classes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnn

pytestmark = pytest.mark.promotes

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
T = np.arange(40) % 4
BY_ZEROS = jnp.zeros((3, 4))


def by_optax(w, x, t):
    return optax.softmax_cross_entropy_with_integer_labels(x @ w, t).mean()


def by_ours(w, x, t):
    return jaxnn.softmax_cross_entropy(x @ w, t)


def ignoring(w, x, t):
    """A mean over the labels that are classes; NaN if there are none."""
    losses = optax.softmax_cross_entropy_with_integer_labels(x @ w, jnp.maximum(t, 0))
    return jnp.sum(losses * (t >= 0)) / jnp.sum(t >= 0)


def of_squares(w, x, t):
    return jnp.mean((x @ w[:, 0] - t) ** 2)


def of_one(w, x, t):
    assert len(x) == 8
    return by_optax(w, x, t)


def run(loss, t, x=X, **options):
    step = {"key": jax.random.key(0), "batch_size": 8, "epochs": 1}
    return jaxnn.fit(loss, BY_ZEROS, (x, t), optax.sgd(0.1), **step, **options)


def changed(*values, at=17):
    t = T.copy()
    t[at : at + len(values)] = values
    return t


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    "loss, t, got",
    [
        (by_optax, changed(-1), "Got -1 in example 17, which is read as class 3"),
        (by_optax, changed(-3), "Got -3 in example 17, which is read as class 1"),
        (by_ours, changed(-1), "Got -1 in example 17, which gives a loss that is not finite"),
    ],
)
def test_a_label_that_is_taken_for_a_class_is_named_before_the_first_step(loss, t, got, array):
    with pytest.raises(
        ValueError, match=rf"`data\[1\]` must be class indices of at least 0. {got}\."
    ):
        run(loss, array(t))


def test_labels_of_sequences_are_looked_at_too():
    t = np.stack([T, changed(-1)], 1)
    with pytest.raises(ValueError, match=r"Got -1 in example 17, which is read as class 3\."):
        run(lambda w, x, t: by_optax(w, x[:, None], t), t)


@pytest.mark.parametrize(
    "loss, t",
    [
        (ignoring, changed(-1, -1)),
        (ignoring, changed(-100)),
        (of_squares, changed(-1)),
        (of_one, changed(-1)),  # takes no batch of two examples: nothing can be shown
        (ignoring, np.full(40, -1)),
        (lambda w, x, t: jnp.sum((x @ w) ** 2), changed(-1)),
    ],
)
def test_integers_below_0_that_are_no_classes_pass(loss, t):
    assert run(loss, t).status.reason in ("finished", "not finite")


def test_without_a_number_below_0_the_loss_is_not_tried():
    traces = []

    def loss(w, x, t):
        traces.append(len(x))
        return by_optax(w, x, t)

    run(loss, T)
    assert 2 not in traces
