"""Slopes from values: the bound holds, also where values drown in cancellation."""

import jax.numpy as jnp
import numpy as np
import pytest
from cancelling_cases import CANCELLING, filled_in
from hypothesis import given, settings, strategies as st
from slow import float32_quickly

from jaxnn import check_gradient
from jaxnn.checking.line import LOT, Line
from jaxnn.checking.moves import Direction
from jaxnn.checking.slope import confirmed, estimate_slope, ladder


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


def test_the_bound_is_three_times_the_noise_over_the_step():
    t, epsilon = ladder(), float(np.finfo(float).eps)
    ones = np.ones_like(t)
    slope = estimate_slope(t, ones, ones, 1.0, epsilon)
    assert slope.value == 0 and slope.bound * slope.step / epsilon == pytest.approx(3)


def test_without_a_kink_both_sides_have_the_slope():
    t = ladder()
    slope = estimate_slope(t, np.exp(t), np.exp(-t), 1.0, float(np.finfo(float).eps))
    assert not slope.kink and slope.left == slope.value == slope.right


def test_a_kink_met_from_the_other_side_has_its_slopes_there():
    t = ladder()
    slope = estimate_slope(t, 3 * t, t, 0.0, float(np.finfo(float).eps))  # 3 to the right, -1
    assert slope.kink and (slope.left, slope.right) == pytest.approx((-1, 3))
    assert slope.evidence(0.5)[:3] == pytest.approx((0.5, -1, 3))
    assert slope.evidence(0.5, -2.0)[:3] == pytest.approx((0.5, -1.5, 0.5))
    mirrored = slope.of_part(1.0, -2.0)  # of a term that moves by -2, beside a slope of 1
    assert (mirrored.left, mirrored.value, mirrored.right) == pytest.approx((-1, 0, 1))
    assert mirrored.bound == slope.bound / 2 and mirrored.step == 2 * slope.step


def few_steps(f, claim):
    """What a few coarse steps say of a claim on the slope of f at 0."""
    t = ladder()[:LOT]
    up, down, centre = f(t), f(-t), float(f(np.zeros(1))[0])
    return confirmed(t, up, down, centre, float(np.finfo(float).eps), claim)


def test_a_few_steps_confirm_a_claim_of_eight_digits_and_no_other():
    slope = few_steps(np.sin, 1.0)
    assert slope.value == pytest.approx(1, abs=slope.bound) and slope.bound < 1e-9
    for off in (1e-8, 1e-3, np.nan, np.inf):
        assert few_steps(np.sin, 1 + off) is None
    assert few_steps(np.cos, 0.0) is None  # nothing to compare with
    assert few_steps(lambda t: np.sin(64 * t), 64.0) is None  # too far from the point
    noise = lambda t: t + 1e-9 * np.sin(1e9 * t)  # noqa: E731
    assert few_steps(noise, 1.0) is None


def test_a_few_infinite_values_confirm_nothing_and_warn_of_nothing():
    t, signs = ladder()[:LOT], np.array([-1.0, -1, 1, -1, 1])
    up, down = np.inf * signs, np.inf * np.array([-1.0, 1, -1, 1, -1])
    assert confirmed(t, up, down, 0.0, float(np.finfo(float).eps), 1.0) is None


def test_a_few_steps_do_not_confirm_what_happens_at_the_point():
    assert few_steps(lambda t: t + np.abs(t), 1.0) is None  # a kink, and the mean of its slopes
    assert few_steps(lambda t: np.where(t == 0, 1.0, t), 1.0) is None
    assert few_steps(lambda t: t + np.abs(t) ** 1.5, 1.0) is None


@pytest.mark.parametrize("x", [0.0, 1e-7])
def test_a_right_gradient_that_coarse_steps_do_not_see_is_not_accused(x, dtype):
    f = lambda x: x[0] + jnp.exp(-((1e6 * x[0]) ** 2)) + jnp.sin(x[1])  # noqa: E731
    assert check_gradient(f, jnp.array([x, 1.0], dtype)).verdict == "agrees"


def test_a_slope_from_few_steps_is_measured_further_for_another_claim():
    def values(moves, steps):
        return np.array([float(np.sin(1 + t * moves[0][0])) for t in steps])

    line = Line(values, [np.ones(1)], np.float64)
    direction = Direction.through([1])
    right, wrong = (line.compare([np.array([x])], direction) for x in (np.cos(1), 2.0))
    again = line.compare([np.array([np.cos(1)])], direction)
    assert not right.is_off and wrong.is_off and not again.is_off
    assert len(right.slope.steps) == LOT < len(wrong.slope.steps) == len(again.slope.steps)


# Their values do not carry a verdict: two terms of the size of 1/x are left of three.
TOO_COARSE = (
    "(exp - 1 - x)/x^2",
    "1/log(1 + x) - 1/x",
    "1/(exp - 1) - 1/x",
    "(exp - exp(-x) - 2x)/x^2",
)

POINTS = [[0.0], [0.0, 0.25, -0.375, 0.75]]


@float32_quickly
@pytest.mark.parametrize("x", POINTS, ids=str)
@pytest.mark.parametrize("name", CANCELLING)
def test_where_terms_cancel_the_bound_holds_or_nothing_is_said(name, x, dtype):
    f, gradient = filled_in(name)
    leaf = check_gradient(f, jnp.array(x, dtype), gradient=gradient).leaves[0]
    assert leaf.verdict in ("agrees", "unresolved"), str(leaf)
    rounding = 1e-5 if dtype == jnp.float32 else 0  # of the gradient by hand
    assert abs(leaf.autodiff - leaf.numerical) <= leaf.bound + rounding * abs(leaf.autodiff)


@pytest.mark.slow
@float32_quickly
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
