"""Slopes from values: the bound holds, also where values drown in cancellation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxnn import check_gradient
from jaxnn.checking.slope import estimate_slope, ladder


@settings(max_examples=200)
@given(
    st.sampled_from(["sin", "exp", "tanh", "cube", "wave", "offset"]),
    st.floats(-3, 3),
    st.sampled_from([np.float64, np.float32]),
)
def test_the_bound_holds_the_true_error(name, x, dtype):
    f, derivative = {
        "sin": (np.sin, np.cos),
        "exp": (np.exp, np.exp),
        "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
        "cube": (lambda x: x**3 - x, lambda x: 3 * x**2 - 1),
        "wave": (lambda x: np.sin(200 * x), lambda x: 200 * np.cos(200 * x)),
        "offset": (lambda x: 1e4 + x**2, lambda x: 2 * x),
    }[name]
    t = ladder()
    value = lambda t: np.float64(dtype(f(x + t)))  # noqa: E731  values rounded to dtype
    epsilon = float(np.finfo(dtype).eps)
    slope = estimate_slope(
        t, np.array([value(s) for s in t]), np.array([value(-s) for s in t]), value(0.0), epsilon
    )
    assert abs(slope.value - derivative(x)) <= slope.bound


# Differences of nearly equal terms near 0, where the function is filled in by hand, as people do:
# `where(x == 0, value, f(where(x == 0, 1, x)))`. JAX's gradient at 0 is 0; here is the true one.
CANCELLING = {
    "spherical Bessel j1": (lambda s: jnp.sin(s) / s**2 - jnp.cos(s) / s, 0, 1 / 3),
    "1/tanh - 1/x": (lambda s: 1 / jnp.tanh(s) - 1 / s, 0, 1 / 3),
    "derivative of sinc": (lambda s: jnp.cos(s) / s - jnp.sin(s) / s**2, 0, -1 / 3),
    "(1 - cos)/x": (lambda s: (1 - jnp.cos(s)) / s, 0, 1 / 2),
    "(1 - cos)/x^2": (lambda s: (1 - jnp.cos(s)) / s**2, 1 / 2, 0),
    "(exp - 1)/x": (lambda s: (jnp.exp(s) - 1) / s, 1, 1 / 2),
    "(exp - 1 - x)/x^2": (lambda s: (jnp.exp(s) - 1 - s) / s**2, 1 / 2, 1 / 6),
    "log(1 + x)/x": (lambda s: jnp.log(1 + s) / s, 1, -1 / 2),
    "(x - log(1 + x))/x": (lambda s: (s - jnp.log(1 + s)) / s, 0, 1 / 2),
    "(x - sin)/x^2": (lambda s: (s - jnp.sin(s)) / s**2, 0, 1 / 6),
    "(tan - x)/x^2": (lambda s: (jnp.tan(s) - s) / s**2, 0, 1 / 3),
    "(tanh - x)/x^2": (lambda s: (jnp.tanh(s) - s) / s**2, 0, -1 / 3),
    "(atan - x)/x^2": (lambda s: (jnp.arctan(s) - s) / s**2, 0, -1 / 3),
    "(asinh - x)/x^2": (lambda s: (jnp.arcsinh(s) - s) / s**2, 0, -1 / 6),
    "(sinh - x)/x^2": (lambda s: (jnp.sinh(s) - s) / s**2, 0, 1 / 6),
    "(cosh - 1)/x": (lambda s: (jnp.cosh(s) - 1) / s, 0, 1 / 2),
    "1/x - 1/sin": (lambda s: 1 / s - 1 / jnp.sin(s), 0, -1 / 6),
    "1/sin^2 - 1/x^2": (lambda s: 1 / jnp.sin(s) ** 2 - 1 / s**2, 1 / 3, 0),
    "1/log(1 + x) - 1/x": (lambda s: 1 / jnp.log(1 + s) - 1 / s, 1 / 2, -1 / 12),
    "1/(exp - 1) - 1/x": (lambda s: 1 / (jnp.exp(s) - 1) - 1 / s, -1 / 2, 1 / 12),
    "(sqrt(1 + x) - 1)/x": (lambda s: (jnp.sqrt(1 + s) - 1) / s, 1 / 2, -1 / 8),
    "(1/sqrt(1 + x) - 1)/x": (lambda s: (1 / jnp.sqrt(1 + s) - 1) / s, -1 / 2, 3 / 8),
    "(exp - exp(-x) - 2x)/x^2": (lambda s: (jnp.exp(s) - jnp.exp(-s) - 2 * s) / s**2, 0, 1 / 3),
}

# Their values do not carry a verdict: two terms of the size of 1/x are left of three.
TOO_COARSE = (
    "(exp - 1 - x)/x^2",
    "1/log(1 + x) - 1/x",
    "1/(exp - 1) - 1/x",
    "(exp - exp(-x) - 2x)/x^2",
)


def filled_in(name):
    """A function of an array, and its true gradient."""
    f, value, slope = CANCELLING[name]

    def filled(x):
        return jnp.sum(jnp.where(x == 0, value, f(jnp.where(x == 0, 1, x))))

    def gradient(x):
        with jax.enable_x64(True):
            wide = jnp.where(x == 0, 1, x.astype(jnp.float64))
            true = jnp.where(x == 0, slope, jax.vmap(jax.grad(f))(wide))
            return np.asarray(true, x.dtype)

    return filled, gradient


POINTS = [[0.0], [0.0, 0.25, -0.375, 0.75]]


one_quickly = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True
)


@one_quickly
@pytest.mark.parametrize("x", POINTS, ids=str)
@pytest.mark.parametrize("name", CANCELLING)
def test_where_terms_cancel_the_bound_holds_or_nothing_is_said(name, x, dtype):
    f, gradient = filled_in(name)
    leaf = check_gradient(f, jnp.array(x, dtype), gradient=gradient).leaves[0]
    assert leaf.verdict in ("agrees", "unresolved"), str(leaf)
    rounding = 1e-5 if dtype == jnp.float32 else 0  # of the gradient by hand
    assert abs(leaf.autodiff - leaf.numerical) <= leaf.bound + rounding * abs(leaf.autodiff)


@one_quickly
@pytest.mark.parametrize("name", CANCELLING)
def test_where_terms_cancel_a_wrong_gradient_does_not_pass(name, dtype):
    f, _ = filled_in(name)
    leaf = check_gradient(f, jnp.array([0.0, 0.5, 1.2], dtype)).leaves[0]
    if CANCELLING[name][2] == 0:
        assert leaf.verdict in ("agrees", "unresolved")
    elif name in TOO_COARSE and leaf.verdict == "unresolved":
        assert not leaf.entries or {entry.index for entry in leaf.entries} == {(0,)}
    else:
        assert leaf.verdict == "differs"
        assert {entry.index for entry in leaf.entries} == {(0,)}


def test_the_wrong_gradient_of_a_bessel_function_is_named(dtype):
    f, _ = filled_in("spherical Bessel j1")
    leaf = check_gradient(f, jnp.array([0.0, 0.5, 1.2], dtype)).leaves[0]
    (entry,) = leaf.entries
    assert (leaf.verdict, entry.index, entry.autodiff) == ("differs", (0,), 0.0)
    assert entry.numerical == pytest.approx(1 / 3, abs=entry.bound) and entry.bound < 1e-3


def test_the_hessian_of_sinc_at_0_is_right_or_unresolved(dtype):
    for x in (jnp.array(0.0, dtype), jnp.array([0.0, 0.5], dtype)):
        report = check_gradient(lambda x: jnp.sum(jnp.sinc(x)), x, order=2)
        assert report.verdict in ("agrees", "unresolved"), str(report)
