"""Points at which a function has corners: a correct gradient is a kink there, and a wrong one does
not hide behind it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import check_gradient

RNG = np.random.default_rng(1)
W = RNG.normal(size=60).astype("float32")
TIES = (np.round(np.random.default_rng(0).normal(size=40) * 2) / 2).astype("float32")
ROWS = np.abs(RNG.normal(size=(16, 8))).astype("float32")
ROWS[12:] = 0  # padding
ZEROS, X0 = jnp.zeros(60), jnp.asarray(RNG.normal(size=100), "float32").at[:60].set(0)
BIG = jnp.asarray(RNG.normal(size=10_000), "float32").at[:1000].set(0)


def with_rule(change):
    """The identity, with a rule that changes the cotangent."""
    f = jax.custom_vjp(lambda x: x * 1)
    f.defvjp(lambda x: (x * 1, None), lambda _, g: (change(g),))
    return f


def network(x):
    """A ReLU network whose biases are 0, with blank inputs."""
    hidden = jax.nn.relu(ROWS @ W[:48].reshape(8, 6) + x[:6])
    return jnp.sum(jax.nn.relu(hidden @ W[:12].reshape(6, 2) + x[6:8]) @ W[:2])


RIGHT = {
    "relu": (lambda x: jnp.sum(W * jax.nn.relu(x)), ZEROS),
    "leaky_relu": (lambda x: jnp.sum(W * jax.nn.leaky_relu(x)), ZEROS),
    "abs": (lambda x: jnp.sum(W * jnp.abs(x)), ZEROS),
    "sort with ties": (lambda x: jnp.sum(W[:40] * jnp.sort(x)), jnp.asarray(TIES)),
    "max pooling": (
        lambda x: jnp.sum(jnp.max(jax.nn.relu(x).reshape(15, 4), -1) * W[:15]),
        ZEROS,
    ),
    "a network": (network, jnp.zeros(8)),
}
too_much, wrong_sign, thrice = (
    with_rule(lambda g: g * 1.2),
    with_rule(lambda g: g.at[80].multiply(-1)),
    with_rule(lambda g: g.at[7000].multiply(3)),
)
WRONG = {
    "padding": (lambda b: jnp.mean(too_much(jax.nn.relu(ROWS + b))), jnp.zeros(8), None),
    "another entry": (
        lambda x: 2 * jnp.sum(jnp.abs(x)) + jnp.sum(wrong_sign(jnp.sin(x))),
        X0,
        (80,),
    ),
    "one in many": (
        lambda x: 2 * jnp.sum(jnp.abs(x)) + jnp.sum(thrice(jnp.sin(x))),
        BIG,
        (7000,),
    ),
    "mean absolute error": (lambda w: jnp.mean(jnp.abs(too_much(ROWS @ w))), jnp.zeros(8), None),
}


@pytest.mark.promotes
@pytest.mark.parametrize("f, x", RIGHT.values(), ids=RIGHT)
def test_a_correct_gradient_at_corners_is_a_kink(f, x):
    report = check_gradient(f, x)
    assert report.verdict == "kink" and not report.rules, str(report)


@pytest.mark.promotes
@pytest.mark.parametrize("f, x, index", WRONG.values(), ids=WRONG)
def test_a_wrong_rule_does_not_hide_behind_corners(f, x, index):
    report = check_gradient(f, x)
    assert report.verdict == "differs" and len(report.rules) == 1, str(report)
    assert "test_corners.py" in report.rules[0].where
    assert index is None or report.leaves[0].entries[0].index == index
    assert (index is None) == any("kinks" in note for note in report.notes)


@pytest.mark.promotes
def test_a_rule_that_is_wrong_at_the_corner_alone_differs():
    """No nearby gradient is like it, unlike that of equal entries that are sorted."""
    ramp = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    ramp.defjvp(lambda x, dx: (ramp(*x), jnp.where(x[0] == 0, 2.0, x[0] > 0) * dx[0]))
    report = check_gradient(lambda x: jnp.sum(W[:3] * ramp(x)), jnp.array([0.0, 1.0, -1.0]))
    assert report.verdict == "differs" and report.leaves[0].entries[0].index == (0,)


@pytest.mark.promotes
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("place", range(3))
def test_a_rule_that_is_wrong_on_one_side_of_a_corner_does_not_hide_on_the_other(side, place):
    ramp = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    wrong, right = (1.5, 0.0) if side > 0 else (-0.5, 1.0)
    slope = lambda x: jnp.where(side * x >= 0, wrong, right)  # noqa: E731
    ramp.defjvp(lambda x, dx: (ramp(*x), slope(x[0]) * dx[0]))
    x = jnp.array([-side * 1.0] * 3).at[place].set(0.0)
    report = check_gradient(lambda x: jnp.sum(ramp(x)), x)
    assert report.verdict == "differs" and [rule.name for rule in report.rules] == ["<lambda>"]


@pytest.mark.parametrize("values", [jnp.linalg.eigvalsh, lambda a: jnp.linalg.svd(a)[1]])
def test_where_eigenvalues_are_equal_there_is_a_kink_and_a_claim_beyond_it_is_wrong(values):
    weights = jnp.array([0.0, 5.0, 1.0, 2.0])
    f = lambda a: weights @ values(a)  # noqa: E731
    assert check_gradient(f, jnp.eye(4)).verdict == "kink"
    twice = lambda a: 2 * jax.grad(f)(a)  # noqa: E731
    assert check_gradient(f, jnp.eye(4), gradient=twice).verdict == "differs"


def at_logit(x):
    """The cross entropy of a logit and the target 1, as libraries write it for large logits."""
    return jnp.clip(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))) - x


@pytest.mark.parametrize(
    "f, x, named",
    [
        (lambda x: jax.nn.relu(x) - jax.nn.relu(-x), 0.0, ["relu"]),
        (at_logit, 0.0, ["max", "abs"]),
        (lambda x: jnp.maximum(x, 1) + jnp.minimum(x, 1), 1.0, []),  # the two halves add up
    ],
)
def test_kinks_where_right_rules_do_not_add_up_are_named(f, x, named):
    leaf = check_gradient(f, jnp.float32(x)).leaves[0]
    assert leaf.verdict == ("differs" if named else "agrees")
    assert ("choices at kinks need not add up" in leaf.hint) == bool(named)
    assert all(re.search(f"`{name}` at .*test_corners.py:", leaf.hint) for name in named)


def test_points_beside_a_corner_need_no_trace_of_the_function():
    traces = []

    def f(x):
        traces.append(x)
        return jnp.sum(jnp.abs(x))

    assert check_gradient(f, jnp.ones(3)).ok
    smooth, traces = len(traces), []
    assert check_gradient(f, jnp.zeros(3)).verdict == "kink" and len(traces) == smooth
