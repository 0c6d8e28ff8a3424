"""What holds for every function, not for chosen ones: thirty generated functions each,
others every day (`pytest -m slow`).

A function is a plan: a list of operations, each on two of the values before it, from two 4 x 4
leaves on; its value is a weighted sum of the last one, so that every entry counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings, strategies as st
from jax import lax

from jaxnn import check_gradient, numerical_grad

pytestmark = pytest.mark.slow
# A failing one is shown as it is, for making it smaller takes longer than the test.
thirty = settings(max_examples=30, phases=[Phase.generate])

SMOOTH = [
    lambda x, y: (x + y) / 2,
    lambda x, y: x * y,
    lambda x, y: jnp.tanh(x),
    lambda x, y: x.T,
    lambda x, y: x @ y / 2,
    lambda x, y: x @ x.T / 2,
    lambda x, y: x - x.mean(0),
    lambda x, y: jax.nn.softmax(x),
    lambda x, y: 1 - x,
    lambda x, y: x / jnp.sqrt(1 + jnp.sum(x**2, 1, keepdims=True)),
    lambda x, y: jnp.concatenate([x[1:], y[:1]]),
    lambda x, y: x[::-1],
    lambda x, y: x.reshape(2, 2, 4).transpose(1, 0, 2).reshape(4, 4),
    lambda x, y: jnp.cumsum(x, 1) / 4,
    lambda x, y: x[np.array([2, 0, 0, 3])],
    lambda x, y: jnp.pad(x[1:3], ((1, 1), (0, 0))),
    lambda x, y: jnp.broadcast_to(x.sum(0), (4, 4)) / 4,
    lambda x, y: x + y[0],
    lambda x, y: jnp.einsum("ij,ij,kj->ik", x, y, x) / 4,
    lambda x, y: jnp.sin(x),
    lambda x, y: lax.cond(True, jnp.cos, jnp.sin, x),
    lambda x, y: jnp.logaddexp(x, y),
    lambda x, y: jax.nn.gelu(x),
    lambda x, y: lax.scan(lambda c, r: (jnp.tanh(c @ y), c[0] * r), x, x)[1],
    lambda x, y: jax.checkpoint(jnp.exp)(-(x**2)),
]
SOLVE = lambda x, y: jnp.linalg.solve(x @ x.T / 4 + 2 * jnp.eye(4, dtype=x.dtype), y)  # noqa: E731  not in bfloat16


def plans(operations):
    return st.lists(
        st.tuples(st.sampled_from(operations), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=5,
    )


PLANS = plans([*SMOOTH, SOLVE])
SEEDS = st.integers(0, 10**6)
WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, (4, 4))


def planned(plan):
    def f(p):
        values = [p["a"], p["b"][0]]
        for operation, i, j in plan:
            values.append(operation(values[-1 - i % len(values)], values[-1 - j % len(values)]))
        return jnp.sum(values[-1] * WEIGHTS.astype(values[-1].dtype))

    return f


def point(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4, 4)).astype(dtype)
    return {"a": jnp.asarray(a), "b": (jnp.asarray(b),)}


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


@thirty
@given(PLANS, SEEDS, st.sampled_from(["propagation", "dense"]))
def test_numerical_grad_is_jax_grad(plan, seed, method):
    with jax.enable_x64(True):
        f, p = planned(plan), point(seed, np.float64)
        expected, found = jax.grad(f)(p), numerical_grad(f, method=method)(p)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert norm(jax.tree.map(jnp.subtract, found, expected)) <= 1e-7 * max(
            norm(expected), abs(float(f(p)))
        )


@thirty
@given(PLANS, SEEDS)
def test_propagation_is_dense_evaluation(plan, seed):
    f, p = planned(plan), point(seed)
    found, expected = (
        numerical_grad(f, method=method, h=1e-3)(p) for method in ("propagation", "dense")
    )
    # Evaluated in float64, rounded to float32: both are the same quotient up to 1e-13 / h.
    assert norm(jax.tree.map(jnp.subtract, found, expected)) <= 3e-7 * norm(expected) + 1e-9 * max(
        1, abs(float(f(p)))
    )


@thirty
@given(PLANS | st.tuples(st.just("bfloat16"), plans(SMOOTH)), SEEDS)
def test_a_right_gradient_agrees(plan, seed):
    dtype, plan = plan if isinstance(plan, tuple) else (np.float32, plan)
    f, p = planned(plan), point(seed, jnp.dtype(dtype))
    assume(
        norm(jax.grad(f)(p)) > 0
    )  # a sum that cancels to rounding is unresolved: there is nothing to hold it against
    report = check_gradient(f, p)
    # Of the three digits of bfloat16, a difference of weights as in a softmax may leave one.
    right = {"agrees"} if dtype is np.float32 else {"agrees", "imprecise"}
    assert report.verdict in right, str(report)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spoilt(x, index, factor):
    """x; but one entry of its cotangent is multiplied."""
    return x


spoilt.defvjp(
    lambda x, index, factor: (x, None), lambda index, factor, _, g: (g.at[index].multiply(factor),)
)


@thirty
@given(
    PLANS,
    SEEDS,
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([1.01, 0.9, 2.0, 0.0, -1.0, np.nan]),
)
def test_a_planted_error_is_found_and_named(plan, seed, index, factor):
    right, p = planned(plan), point(seed)
    gradient = np.asarray(jax.grad(right)(p)["a"])
    # An entry that is nothing beside the others is not seen by anyone.
    assume(abs(gradient[index]) > 1e-3 * np.max(np.abs(gradient)))
    report = check_gradient(lambda p: right({**p, "a": spoilt(p["a"], index, factor)}), p)
    worst, other = report.leaves
    assert worst.path == "[0]['a']" and worst.verdict == (
        "not finite" if np.isnan(factor) else "differs"
    ), str(report)
    assert [entry.index for entry in worst.entries] == [index] and other.verdict == "agrees", str(
        report
    )
