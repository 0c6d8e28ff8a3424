"""The losses against the chapter's printed values, NumPy, optax, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from jaxnn import accuracy, cross_entropy_error, mean_squared_error, softmax_cross_entropy
from jaxnn.cli.tour import SAYS_SEVEN, SAYS_TWO
from jaxnn.data import one_hot

LOSSES = [mean_squared_error, cross_entropy_error, softmax_cross_entropy]


@pytest.mark.parametrize(
    "y, mse, cee",
    [(SAYS_TWO, 0.0975, 0.51082545709933802), (SAYS_SEVEN, 0.5975, 2.3025840929945458)],
)
@pytest.mark.parametrize("form", ["one-hot", "index", "batch"])
def test_the_chapters_values(dtype, y, mse, cee, form):
    y, t = jnp.array(y, dtype), jnp.array(2)
    if form == "one-hot":
        t = one_hot(t, 10, dtype)
    if form == "batch":
        y, t = jnp.stack([y, y]), jnp.stack([t, t])
    rel = 1e-14 if dtype == jnp.float64 else 2e-6
    assert float(mean_squared_error(y, t)) == pytest.approx(mse, rel=rel)
    assert float(cross_entropy_error(y, t)) == pytest.approx(cee, rel=rel)


def test_the_loss_of_a_batch_is_the_mean():
    both = jnp.array([SAYS_TWO, SAYS_SEVEN])
    assert cross_entropy_error(both, jnp.array([2, 2])) == pytest.approx(1.406704775)


def numpy_losses(z, t):
    """All three in NumPy float64, one-hot targets."""
    p = np.exp(z - z.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return {
        mean_squared_error: np.mean(0.5 * np.sum((z - t) ** 2, -1)),
        cross_entropy_error: np.mean(-np.sum(t * np.log(p + 1e-7), -1)),
        softmax_cross_entropy: np.mean(-np.sum(t * np.log(p), -1)),
    }


@settings(max_examples=300)
@given(
    st.sampled_from([1, 3]),
    st.sampled_from([2, 5]),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 0.01, 30.0]),
)
def test_losses_agree_with_numpy_and_optax_in_both_target_forms(batch, classes, seed, scale):
    rng = np.random.default_rng(seed)
    z, indices = scale * rng.normal(size=(batch, classes)), rng.integers(0, classes, batch)
    rows = np.eye(classes)[indices]
    with jax.enable_x64(True):
        for loss, expected in numpy_losses(z, rows).items():
            y = jax.nn.softmax(jnp.array(z)) if loss is cross_entropy_error else jnp.array(z)
            for t in (jnp.array(indices), jnp.array(rows)):
                assert float(loss(y, t)) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        optaxs = optax.losses.softmax_cross_entropy(jnp.array(z), jnp.array(rows)).mean()
        assert float(softmax_cross_entropy(jnp.array(z), jnp.array(rows))) == pytest.approx(
            float(optaxs), rel=1e-12, abs=1e-15
        )


def test_softmax_cross_entropy_agrees_with_optax(dtype):
    rng = np.random.default_rng(0)
    z, t = jnp.array(rng.normal(size=(7, 5)) * 10, dtype), jnp.array(rng.integers(0, 5, 7))
    soft = jax.nn.softmax(jnp.array(rng.normal(size=(7, 5)), dtype))
    rel = 1e-13 if dtype == jnp.float64 else 1e-6
    ours, theirs = (
        softmax_cross_entropy(z, t),
        optax.losses.softmax_cross_entropy_with_integer_labels(z, t).mean(),
    )
    assert float(ours) == pytest.approx(float(theirs), rel=rel)
    ours, theirs = (
        softmax_cross_entropy(z, soft),
        optax.losses.softmax_cross_entropy(z, soft).mean(),
    )
    assert float(ours) == pytest.approx(float(theirs), rel=rel)


def test_gradient_of_softmax_cross_entropy_is_softmax_minus_target(dtype):
    z = jnp.array([[1.0, 2.0, -0.5], [0.1, 0.2, 0.3]], dtype)
    t = jnp.array([2, 0])
    closed_form = (jax.nn.softmax(z) - one_hot(t, 3, dtype)) / 2
    np.testing.assert_allclose(
        jax.grad(softmax_cross_entropy)(z, t), closed_form, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("form", ["index", "one-hot"])
def test_softmax_cross_entropy_is_finite_for_extreme_logits(size, kind, form):
    with jax.enable_x64(kind == "float64"):
        z = jnp.array([size, 0.0, -size], kind)
        for label in range(3):
            t = jnp.array(label) if form == "index" else one_hot(jnp.array(label), 3, kind)
            value, gradient = jax.value_and_grad(softmax_cross_entropy)(z, t)
            assert bool(jnp.isfinite(value)) and bool(jnp.all(jnp.isfinite(gradient)))


def test_a_class_that_is_ruled_out_adds_nothing():
    z, t = jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([1.0, 0.0, 0.0])
    value, gradient = jax.value_and_grad(softmax_cross_entropy)(z, t)
    assert float(value) == pytest.approx(np.log(2)) and gradient.tolist() == [-0.5, 0.5, 0.0]
    by_target = jax.grad(softmax_cross_entropy, 1)(z, t)  # not 0 times infinity
    assert float(by_target[0]) == pytest.approx(np.log(2)) and np.all(np.isfinite(by_target))


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("form", ["index", "one-hot"])
def test_gradient_of_cross_entropy_error_is_finite_at_zero(kind, form):
    with jax.enable_x64(kind == "float64"):
        y = jnp.array([0.0, 1.0], kind)
        t = jnp.array(0) if form == "index" else jnp.array([1, 0], kind)
        gradient = jax.grad(cross_entropy_error)(y, t)
        assert float(gradient[0]) == pytest.approx(-1e7, rel=0.01) and float(gradient[1]) == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
def test_losses_keep_the_dtype_and_work_under_jit_grad_and_vmap(loss, kind):
    with jax.enable_x64(kind == "float64"):
        y, t = jnp.full((4, 3), 1 / 3, kind), jnp.array([0, 1, 2, 0])
        assert loss(y, t).dtype == jnp.dtype(kind) == jax.jit(jax.grad(loss))(y, t).dtype
        each = jax.vmap(loss)(y, t)
        assert each.shape == (4,) and float(each.mean()) == pytest.approx(
            float(loss(y, t)), rel=1e-2
        )


@pytest.mark.parametrize("loss", [*LOSSES, accuracy])
def test_a_class_index_out_of_range_is_refused_or_under_jit_gives_nan(loss):
    y = jnp.full((2, 3), 1 / 3)
    for bad in (3, -1):
        with pytest.raises(ValueError, match=rf"`t` must be class indices from 0 to 2. Got {bad}."):
            loss(y, jnp.array([0, bad]))
        if loss is not accuracy:
            assert bool(jnp.isnan(jax.jit(loss)(y, jnp.array([0, bad]))))


def test_probabilities_may_be_off_by_a_hundredth():
    for y in ([-0.009, 1.009], [0.0, 1.0]):
        assert np.isfinite(cross_entropy_error(jnp.array(y), 1))
    for y, worst in (([0.0, 1.02], "1.02"), ([-0.03, 1.0], "-0.03")):
        with pytest.raises(ValueError, match=rf"takes scores. Got {worst}\."):
            cross_entropy_error(jnp.array(y), 1)


def test_accuracy_counts(dtype):
    y = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], dtype)
    assert float(accuracy(y, jnp.array([0, 1, 1]))) == pytest.approx(2 / 3)
    assert float(accuracy(y, one_hot(jnp.array([0, 1, 1]), 2, dtype))) == pytest.approx(2 / 3)
    assert float(accuracy(y[0], jnp.array(0))) == 1
