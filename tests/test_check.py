"""The gradient check on right and wrong functions: verdicts, places, evidence, forms of calling,
and what is refused.
"""

import functools
import inspect
import json
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import random_programs
from gradient_cases import CASES, draw, rule
from jax import lax
from slow import slow_but
from versions import since

import jaxnn
from jaxnn import GradientError, assert_gradient, check_gradient, explain
from jaxnn.checking import leaf as leaf_module, patterns
from jaxnn.checking.check import Options
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.further import RUN_FURTHER
from jaxnn.checking.page import fragment
from jaxnn.checking.programs import Programs
from jaxnn.checking.questions import kinks, solvers
from jaxnn.checking.report import painted
from jaxnn.checking.tape.layout import Site
from jaxnn.numerical.float64 import widen

BAD_VERDICTS = ("differs", "not finite", "detached")
# As many entries as make a program one that is compiled, not run by NumPy.
LARGE = 5000


CASE = {case.name: case for case in CASES}
# More than a second each, and like others.
LONG = {
    "a_tenth_of_a_percent_everywhere",
    "bias_of_the_first_row_only",
    "dropout_with_a_fixed_key",
    "fixed_point_without_its_inverse",
    "loosely_iterated_fixed_point",
    "loosely_solved_linear_system",
    "repeated_rows_of_an_embedding",
    "transposed_weight_gradient",
}


@pytest.mark.parametrize("point", [0.3, [-2.0], [[5.0]]])
@pytest.mark.parametrize("other", [1.0, [1.0, 2.0]])
def test_a_leaf_with_one_entry_shows_its_derivative(point, other):
    f = lambda x, y: jnp.sum(x**2) * jnp.sum(jnp.asarray(y))  # noqa: E731
    leaf, *_ = check_gradient(f, jnp.array(point), jnp.array(other), argnums=(0, 1)).leaves
    expected = 2 * np.ravel(point)[0] * np.sum(other)
    assert leaf.autodiff == pytest.approx(expected, rel=1e-6)
    assert abs(leaf.numerical - leaf.autodiff) <= leaf.bound + 1e-6 * abs(expected)
    assert leaf.differences[-1] == pytest.approx(expected, rel=1e-2)
    assert 0 < leaf.bound < 1e-6 and min(leaf.steps) > 0


def test_a_straight_through_rule_is_told_how_to_be_trusted():
    step = jax.custom_vjp(lambda x: jnp.round(x))
    step.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    f, x = lambda x: jnp.sum(step(x)), jnp.array([0.3, 0.8])  # noqa: E731
    report = check_gradient(f, x)
    advice = "name its function in `trust` (`jaxnn watch --trust`)"
    assert report.verdict == "differs" and advice in report.leaves[0].hint
    trusted = check_gradient(f, x, trust=("<lambda>",))
    note = "the derivative rule of `<lambda>` was not checked, as `trust` asks"
    assert trusted.ok and trusted.notes == (note,)


def test_a_jump_is_named_as_one():
    (leaf,) = check_gradient(
        lambda x: jnp.sign(x) + jnp.where(x > 0, 2.0, 0.0), jnp.float32(0.0)
    ).leaves
    assert leaf.verdict == "unresolved" and leaf.hint.startswith("the values jump at this point, ")


def halved(x):
    """The square, with a rule that has half its slope."""
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), lambda x, g: (g * x,))
    return square(x)


@pytest.mark.parametrize("square, verdict", [(jnp.square, "unresolved"), (halved, "differs")])
@pytest.mark.parametrize(
    "gate, x",
    [
        (lambda x: jnp.floor(x[0]), [2.0, 0.7]),
        (lambda x: jnp.where(x[0] >= x[1], 1.0, 0.0), [1.0, 1.0, 3.0]),
        (lambda x: jnp.where(x[0] >= 2.0, 1.0, 0.0), [2.0, 3.0]),
    ],
)
def test_a_jump_hides_no_wrong_rule(gate, x, square, verdict):
    report = check_gradient(lambda x: gate(x) * jnp.sum(square(x)), jnp.array(x))
    assert report.verdict == verdict and bool(report.rules) == (verdict == "differs")


@pytest.mark.promotes
@pytest.mark.parametrize(
    "f, x",
    [
        (lambda x: jnp.sum(jnp.where(x != 0, 3 * x, 0)) / jnp.sum(x != 0), [0.0, 1.0, 2.0]),
        (lambda x: jnp.where(x[0] == x[1], jnp.sum(x**2), 0.0), [1.0, 1.0]),
        (lambda x: jnp.where(jnp.all(x >= 0), jnp.sum((x + 1) ** 2), 0.0), [0.0, 0.0, 0.0]),
    ],
)
def test_a_value_that_stands_alone_shows_no_slope(f, x):
    (leaf,) = check_gradient(f, jnp.array(x)).leaves
    assert leaf.verdict == "unresolved"
    assert leaf.hint == "the values jump at this point, so they show no slope"


@pytest.mark.promotes
@pytest.mark.parametrize(
    "f, x",
    [
        (jnp.median, jnp.array([1.0, 1.0, 1.0, 2.0, 0.0])),
        (lambda x: jnp.sort(x)[-2], jnp.ones(3)),
        (lambda x: jnp.linalg.eigvalsh(x)[1], jnp.eye(3)),
        (lambda x: jnp.median(x * jnp.array([10.0, 5.0, 1.0])), jnp.array([0.3, 0.6, 3.0])),
    ],
)
def test_between_equal_numbers_a_gradient_is_that_of_a_point_nearby(f, x):
    assert check_gradient(f, x).verdict == "kink"
    report = check_gradient(lambda x: f(2 * halved(x)), x)
    assert report.verdict == "differs" and report.rules[0].kind == "custom_vjp"


@pytest.mark.parametrize("verdict", ["differs", "unresolved"])
def test_a_function_of_one_triangle_is_said_to_assume_a_symmetric_matrix(verdict):
    cubes = jax.custom_vjp(lambda a: jnp.sum(jnp.tril(a) ** 3))
    slope = lambda a: 3 * jnp.tril(a) ** 2  # noqa: E731
    cubes.defvjp(lambda a: (cubes(a), a), lambda a, g: (g * (slope(a) + slope(a).T) / 2,))
    solved = lambda a: jnp.sum(jax.scipy.linalg.solve(a, jnp.ones(3), assume_a="pos"))  # noqa: E731
    matrix = jnp.array([[4.0, 1.0, 0.5], [1.0, 3.0, 1.0], [0.5, 1.0, 5.0]])
    f = cubes if verdict == "differs" else solved
    report = check_gradient(f, matrix)
    assert report.verdict == verdict and report.leaves[0].hint == patterns.SYMMETRIC
    assert ("[1, 0] off: autodiff" in str(report)) == (verdict == "unresolved")
    assert check_gradient(lambda a: f((a + a.T) / 2), matrix).verdict == "agrees"


def test_a_rule_does_not_accuse_a_leaf_that_it_does_not_reach():
    def route(p, x):
        chosen = jnp.argmax(x @ p["router"])
        return jnp.sum(halved(x @ jnp.take(p["experts"], chosen, axis=0)))

    p = {"router": jnp.zeros((3, 4)), "experts": jnp.asarray(draw(0, 4, 3, 3))}
    report = check_gradient(route, p, jnp.array([1.0, 2.0, -1.0]))
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts == {"[0]['experts']": "differs", "[0]['router']": "unresolved"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_right_rule_around_half_precision_is_not_accused(dtype):
    def host(x):
        with np.errstate(invalid="ignore"):  # at infinity
            return np.sin(np.asarray(x, np.float32)).astype(x.dtype)

    def call(x):
        form = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(host, form, x, vmap_method="sequential")

    sine = jax.custom_vjp(call)
    for factor, verdicts in ((1.0, ("agrees", "unresolved")), (-1.0, ("differs",))):
        sine.defvjp(
            lambda x: (call(x), x),
            lambda x, g, factor=factor: (jnp.asarray(factor, x.dtype) * g * jnp.cos(x),),
        )
        x = jnp.linspace(-0.5, 0.4, 7).astype(dtype)
        report = check_gradient(lambda x: jnp.sum(sine(x).astype("float32")), x)
        assert report.verdict in verdicts, str(report)


def test_an_entry_has_the_slopes_below_and_above_it():
    text = str(check_gradient(lambda x: jnp.sum(3 * abs(x) + x), jnp.array([0.0, 1.0])))
    assert "[0] kink: autodiff" in text and ", -2 below and 4 above" in text
    text = str(check_gradient(lambda x: 3 * abs(x) + x, jnp.float32(0.0)))
    assert "\n    kink: autodiff" in text


@pytest.mark.promotes
@pytest.mark.parametrize("name", slow_but(CASE.keys() - LONG, CASE))
def test_verdict_and_place(name):
    case = CASE[name]
    f, args = case.make()
    if case.order == 2 and case.wrong:
        assert check_gradient(f, *args).verdict == "agrees"
    report = check_gradient(f, *args, order=case.order)
    if not case.wrong:
        assert report.verdict == ("kink" if case.kink else "agrees"), str(report)
        assert report.ok
        return
    assert report.verdict in BAD_VERDICTS and not report.ok
    assert {leaf.path for leaf in report.leaves if leaf.verdict in BAD_VERDICTS} == set(
        case.wrong
    ), str(report)
    worst = report.leaves[0]
    places = {
        int(np.ravel_multi_index(e.index, worst.shape))
        for e in worst.entries
        if e.verdict in BAD_VERDICTS
    }
    assert places, str(report)
    if case.wrong[worst.path] is not None:
        assert places <= set(case.wrong[worst.path]), str(report)
    entry = worst.entries[0]
    assert not abs(entry.autodiff - entry.numerical) <= entry.bound


# What `jax.grad` under `jit` does not take.
NOT_FOR_JIT = {
    "integers_and_keys_among_the_leaves",
    "loop_in_forward_mode_only",
    "not_traceable",
    "not_traceable_right",
}
BY_JIT = sorted(CASE.keys() - NOT_FOR_JIT)


@pytest.mark.parametrize("name", slow_but(BY_JIT[::9], BY_JIT))
def test_what_is_checked_is_the_gradient_of_jax(monkeypatch, name):
    given, claims = [], Programs.claims
    monkeypatch.setattr(Programs, "claims", lambda *args: given.append(claims(*args)) or given[-1])
    f, args = CASE[name].make()
    check_gradient(f, *args)
    value, gradient = jax.jit(jax.value_and_grad(f))(*args)
    # XLA folds constants, which are inputs of the checked program: the last bit may differ.
    leaves = jax.tree.leaves((value, gradient))
    for here, there in zip([given[0].value, *given[0].own], leaves, strict=True):
        eps = float(jnp.finfo(there.dtype).eps)
        np.testing.assert_allclose(
            here, there, rtol=4 * eps, atol=4 * eps * np.max(np.nan_to_num(abs(there)))
        )


def by_name(name):
    return CASE[name].make()


@pytest.mark.parametrize(
    "name, pattern, hint",
    [
        ("square_without_its_factor", "autodiff / numerical = 0.5", "a factor of 2 is missing"),
        ("sign_of_a_log", "autodiff / numerical = -1", "the sign is wrong"),
        (
            "sum_for_mean",
            "autodiff / numerical = 32",
            "too large by a factor of 32, the number of examples",
        ),
        ("transposed_weight_gradient", "", "transposed"),
        ("one_row_dropped", "all have index 2 on axis 0", "autodiff is 0: the path is cut"),
    ],
)
def test_patterns_and_their_likely_cause(name, pattern, hint):
    f, args = by_name(name)
    leaf = check_gradient(f, *args).leaves[0]
    assert pattern in leaf.pattern and hint in leaf.hint


@pytest.mark.parametrize(
    "ratio, cause",
    [
        (0.0, "autodiff is 0: the path is cut"),
        (-1.0, "the sign is wrong"),
        (2.0, "an extra factor of 2"),
        (0.5, "a factor of 2 is missing"),
        (
            32.0,
            "too large by a factor of 32, the number of examples: a sum where the function takes "
            "a mean",
        ),
        (
            1 / 32,
            "too small by a factor of 32, the number of examples: a mean where the function takes "
            "a sum",
        ),
        (33.0, ""),
    ],
)
def test_a_ratio_has_its_likely_cause(ratio, cause):
    right = np.array([1.0, -3.0, 0.5])
    index, claims, none = np.arange(3)[:, None], ratio * right, np.zeros(3)
    wrong = patterns.Wrong(index, claims, right, none, claims, frozenset({32}), True)
    assert patterns._cause(wrong).startswith(cause) and bool(patterns._cause(wrong)) == bool(cause)


def scattered(count):
    """A gradient of sum(x**2) that is 1% too large in every third entry."""
    return lambda x: 2 * x * jnp.where(jnp.arange(count) % 3 == 0, 1.01, 1)


def in_numpy(gradient):
    """The same, opaque to JAX."""
    return lambda x: np.asarray(gradient(np.asarray(x)))


@pytest.mark.parametrize(
    "gradient, count, pattern",
    [
        (lambda x: 3 + x**2, 3, "all 3 entries"),
        (lambda x: 3 + x**2, 3000, "all 3,000 entries"),
        (scattered(3000), 3000, "1,000 of 3,000 entries; autodiff / numerical = 1.01 at each"),
        (in_numpy(scattered(40)), 40, "14 of 40 entries; autodiff / numerical = 1.01 at each"),
    ],
)
def test_wrong_entries_are_counted_exactly(gradient, count, pattern):
    x = jnp.linspace(1, 2, count)
    report = check_gradient(lambda x: jnp.sum(x**2), x, gradient=gradient)
    (leaf,) = report.leaves
    assert leaf.pattern.startswith(pattern) and len(leaf.entries) == min(6, count)
    assert report.evaluations <= 400


def test_wrong_entries_have_no_common_ratio_if_one_of_them_should_be_0():
    slope, wrong = jnp.array([700.0, 0.0, 900.0]), jnp.array([700.7, -0.7, 900.0])
    (leaf,) = check_gradient(
        lambda x: slope @ x, jnp.ones(3), gradient=lambda x: wrong + 0 * x
    ).leaves
    assert leaf.pattern == "2 of 3 entries"


def test_without_a_reference_no_more_is_counted_than_was_found():
    f = lambda x: float(np.sum(np.asarray(x, np.float64) ** 2))  # noqa: E731
    x = np.linspace(1, 2, 40)
    (leaf,) = check_gradient(f, x, gradient=in_numpy(scattered(40))).leaves
    assert leaf.pattern.startswith("at least 6 of 40 entries; autodiff / numerical = 1.01")


def test_beside_a_wrong_entry_others_that_are_off_by_less_are_not_called_right():
    errors = jnp.array([1e-3, 1e-4, 1e-4, 1e-4])
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g * (1 + errors),))
    (leaf,) = check_gradient(lambda x: jnp.sum(square(x)), jnp.ones(4)).leaves
    assert leaf.pattern == "at least 1 of 4 entries"


def test_of_leaves_that_are_wrong_those_whose_entries_are_known_come_first():
    params = {name: draw(k, 9) for k, name in enumerate("abcdef")}
    noisy = lambda p: jax.tree.map(lambda x: 2 * x * jnp.linspace(1, 2, 9), p)  # noqa: E731
    f = lambda p: sum(jnp.sum(x**2) for x in p.values())  # noqa: E731
    leaves = check_gradient(f, params, gradient=noisy).leaves
    known = [bool(leaf.entries) for leaf in leaves]
    assert {leaf.verdict for leaf in leaves} == {"differs"}
    assert known == sorted(known, reverse=True) and known[0] and not known[-1]
    assert {leaf.pattern for leaf in leaves} == {"8 of 9 entries"}  # the first factor is 1
    each = check_gradient(f, params, gradient=noisy, evidence="leaf").leaves
    assert all(leaf.entries for leaf in each)


@pytest.mark.parametrize(
    "frequency, verdicts, hint",
    [
        (1e8, {"agrees"}, ""),
        (1e11, {"agrees"}, ""),
        (1e12, {"agrees", "unresolved"}, ""),  # a tenth of the slope is in doubt
        (9e12, {"unresolved"}, ""),
        (1e13, {"unresolved"}, ""),
        (1e15, {"unresolved"}, "varies even within the shortest step"),
        (1e20, {"unresolved"}, "varies even within the shortest step"),
    ],
)
def test_what_turns_faster_than_any_step_is_not_accused(frequency, verdicts, hint):
    f = lambda x: jnp.sum(jnp.sin(frequency * x))  # noqa: E731
    report = check_gradient(f, jnp.array([1.0, 2.0]))
    assert report.verdict in verdicts and hint in report.leaves[0].hint and not report.rules


@pytest.mark.parametrize(
    "error, hint, five", [(0, "", True), (1e-5, "", True), (2e-4, "relative error", False)]
)
def test_an_error_that_is_not_called_wrong_is_told_and_counts_where_digits_are_asked_for(
    error, hint, five
):
    """Of a gradient that JAX cannot trace no more than half the digits are asked for."""
    f, x = lambda x: jnp.sum(x**3 - jnp.log(x)), jnp.linspace(1, 3, 8)
    gradient = in_numpy(lambda x: (3 * x**2 - 1 / x) * (1 + error * (np.arange(8) == 3)))
    report = check_gradient(f, x, gradient=gradient)
    assert report.ok and report.leaves[0].hint[: len("relative error")] == hint
    asked = check_gradient(f, x, gradient=gradient, digits=5)
    assert asked.ok == five and ("fewer than 5 correct digits" in str(asked)) == (not five)


@pytest.mark.parametrize("error, verdict", [(2e-4, "agrees"), (1e-3, "differs")])
def test_half_of_float32s_digits_are_asked_of_a_gradient_that_jax_cannot_trace(error, verdict):
    x = np.linspace(1, 3, 8, dtype=np.float32)
    gradient = in_numpy(lambda x: 3 * x**2 * (1 + error))
    (leaf,) = check_gradient(lambda x: jnp.sum(x**3), x, gradient=gradient).leaves
    assert leaf.verdict == verdict
    assert {entry.verdict for entry in leaf.entries} <= {verdict}


LOOSE_SOLUTIONS = {
    "a linear solve": (
        lambda b: jax.lax.custom_linear_solve(
            lambda x: x / 2, b, lambda _, b: 1.996 * b, symmetric=True
        )
    ),
    "a loop of so many steps": lambda b: jax.lax.fori_loop(0, 10, lambda _, c: c / 2 + b, 0 * b),
    "a loop": lambda b: jax.lax.while_loop(
        lambda carry: carry[0] < 10, lambda carry: (carry[0] + 1, carry[1] / 2 + b), (0, 0 * b)
    )[1],
    "a loop that counts in floats": lambda b: jax.lax.while_loop(
        lambda carry: carry[0] < 600,
        lambda carry: (carry[0] + 100, 0.9 * carry[1] + 0.2 * b),
        (0.0, 1.99 * b),
    )[1],
}


@pytest.mark.parametrize("name", LOOSE_SOLUTIONS)
def test_a_loose_solution_is_made_a_close_one(x64, name):
    f, b = LOOSE_SOLUTIONS[name], jnp.array([1.0, 3.0])  # the solution is 2 b
    np.testing.assert_allclose(f(b), 2 * b, rtol=4e-3)
    assert not np.allclose(f(b), 2 * b, rtol=5e-4)
    further = widen(f, (b,), jnp.float64, RUN_FURTHER)(b)
    np.testing.assert_allclose(further, 2 * b, rtol=1e-10)


@pytest.mark.parametrize("off, verdict", [(0, "unresolved"), (0.3, "differs")])
def test_a_rule_is_not_wrong_if_its_solver_gets_closer_but_not_close(off, verdict):
    """The solution is 2 b; the rule is that of the solution, or off."""

    @jax.custom_jvp
    def solve(b):  # stops with an error of 0.6%, and further steps end at 0.05%
        step = lambda x: jnp.where(x < 1.9985 * b, x + 1e-3 * b, x)  # noqa: E731
        return jax.lax.while_loop(lambda x: x[0] < 1.9879 * b[0], step, 1.98 * b)

    solve.defjvp(lambda b, db: (solve(*b), 2 * (1 + off) * db[0]))
    report = check_gradient(lambda b: jnp.sum(solve(b)), jnp.ones(3))
    assert report.leaves[0].verdict == verdict and bool(report.rules) == (verdict == "differs")


@pytest.mark.parametrize("off", [0, 0.05])
def test_a_loose_linear_solver_is_not_to_blame_but_a_wrong_one_is(off):
    matrix = jnp.diag(jnp.linspace(1.0, 9.0, 20)) + 0.1

    def iterated(_, b):
        return jax.scipy.sparse.linalg.cg(lambda x: matrix @ x, b, tol=3e-2)[0]

    def f(b):
        matvec = lambda x: matrix @ x  # noqa: E731
        other = lambda _, b: (1 + off) * iterated(_, b)  # noqa: E731
        x = jax.lax.custom_linear_solve(matvec, b, iterated, transpose_solve=other)
        return jnp.sum(x**3)

    report = check_gradient(f, jnp.linspace(-1, 2, 20))
    assert bool(report.rules) == bool(off) == (report.verdict == "differs"), str(report)
    assert off or "inner solver" in report.leaves[0].hint


def test_a_slope_that_is_not_finite_at_a_kink_is_no_effect_without_a_slope():
    leaf = check_gradient(jnp.linalg.norm, jnp.zeros(2)).leaves[0]
    assert leaf.verdict == "not finite" and leaf.hint == ""


def test_a_partial_function_bears_the_name_of_what_it_calls():
    def scaled(factor, x):
        return factor * jnp.sum(x)

    f = functools.partial(scaled, 2.0)
    assert check_gradient(f, jnp.ones(2)).function == "scaled"


@pytest.mark.parametrize("off, verdict", [(1e-8, "unresolved"), (1e-3, "differs")])
def test_a_gradient_that_cancels_is_not_wrong_by_less_than_its_rounding_error(off, verdict):
    """The values are constant; each rule is right to its rounding, or not."""
    rounded = jnp.array([1.0, -2, 3, -1, 2, -3]) * off
    near = jax.custom_jvp(lambda x: x * 1)
    near.defjvp(lambda x, dx: (near(*x), dx[0] * (1 + rounded)))
    x = jnp.array([1.7, 0.4, 1.0, 2.2, 1.9, -1.0])
    report = check_gradient(lambda x: jnp.sum(near(x / jnp.linalg.norm(x)) ** 2), x)
    assert report.leaves[0].verdict == verdict and bool(report.rules) == (verdict == "differs")


@pytest.mark.promotes
@pytest.mark.parametrize("off, verdict", [(0, "unresolved"), (0.3, "differs")])
def test_a_sweep_over_coordinates_is_no_solver_but_the_loop_around_it_is(off, verdict):
    """Coordinate descent in 40 sweeps, after one that its first values come from: run past its last
    coordinate, a sweep would move that one alone.
    """
    matrix = jnp.array([[2.0, 0.9, 0.7], [0.9, 1.5, 0.8], [0.7, 0.8, 1.2]])

    def sweep(x, b):
        def along(i, x):
            moved = x + 0.1 * (b - matrix @ x)
            return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(moved, (i,), (1,)), (i,))

        return jax.lax.fori_loop(0, 3, along, x)

    @jax.custom_vjp
    def solve(b):
        state = 0, sweep(sweep(0 * b, b), b)
        step = lambda s: (s[0] + 1, sweep(s[1], b))  # noqa: E731
        return jax.lax.while_loop(lambda s: s[0] < 40, step, state)[1]

    backward = lambda _, g: ((1 + off) * jnp.linalg.solve(matrix, g),)  # noqa: E731
    solve.defvjp(lambda b: (solve(b), None), backward)
    report = check_gradient(lambda b: jnp.sum(solve(b) ** 2), b := jnp.array([1.0, 2.0, -1.0]))
    assert (report.verdict, bool(report.rules)) == (verdict, verdict == "differs")
    once = lambda b: sweep(0.9 * jnp.linalg.solve(matrix, b), b)  # noqa: E731
    further = widen(once, (b,), jnp.float32, RUN_FURTHER)(b)
    np.testing.assert_allclose(further, once(b), rtol=1e-5)


@pytest.mark.promotes
def test_a_slow_solver_is_run_as_long_again_before_its_rule_is_accused():
    """After 3,000 steps it is 5% off; 256 more leave 4%, and 3,000 more 0.2%."""

    @jax.custom_vjp
    def solve(b):
        step = lambda s: (s[0] + 1, s[1] + 1e-3 * (b - s[1]))  # noqa: E731
        return jax.lax.while_loop(lambda s: s[0] < 3000, step, (0, 0 * b))[1]

    solve.defvjp(lambda b: (solve(b), None), lambda _, g: (g,))
    report = check_gradient(lambda b: jnp.sum(solve(b)), jnp.ones(3))
    assert report.verdict == "unresolved" and not report.rules


@pytest.mark.promotes
def test_a_gradient_that_loses_all_digits_on_the_way_is_imprecise():
    """In float64 too few are left for the values to agree, in float32 none."""
    loss = lambda w, x: jnp.mean((1 - jnp.cos(w * x)) / (w * x) ** 2)  # noqa: E731
    report = check_gradient(loss, jnp.float32(1e-3), jnp.linspace(0.5, 1, 5))
    assert report.verdict == "imprecise" and report.exit_code == 1 and not report.ok
    assert report.digits_lost and "no digits match" in report.leaves[0].hint
    assert re.search(r"\n    differs: autodiff 36\S+, float64 -4\S+ \+-", str(report))


@pytest.mark.promotes
@pytest.mark.parametrize("factor, verdict", [(1.0, "unresolved"), (1.1, "differs")])
def test_a_solver_that_converges_slowly_explains_an_error_that_it_halves_and_no_wrong_rule(
    factor, verdict
):
    @jax.custom_jvp
    def root(a):
        step = lambda x: x + 0.031 * (a - x) ** 3  # noqa: E731
        return jax.lax.while_loop(lambda x: a - x > 0.31, step, jnp.zeros_like(a))

    root.defjvp(lambda a, da: (root(*a), factor * da[0]))
    report = check_gradient(lambda a: jnp.sin(a) + root(a), jnp.float32(1))
    assert report.verdict == verdict
    assert ("if the inner solver iterates longer" in report.leaves[0].hint) == (factor == 1)
    assert [rule.name for rule in report.rules] == ["root"] * (factor != 1)


@pytest.mark.parametrize("off", [0, 0.3])
def test_the_rule_around_a_solver_that_stopped_early_is_not_to_blame(off):
    """The solution is 2 b; the solver, which counts its steps, stops at 1.75 b."""

    @jax.custom_jvp
    def solve(b):
        step = lambda carry: (carry[0] + 1, 0.8 * carry[1] + 0.4 * b)  # noqa: E731
        steps, x = jax.lax.while_loop(lambda c: c[1][0] < 1.7 * b[0], step, (0, 0 * b))
        return jnp.where(steps > 10, jnp.nan, x)

    solve.defjvp(lambda b, db: (solve(*b), 2 * (1 + off) * db[0]))
    report = check_gradient(lambda b: jnp.sum(solve(b) ** 3), jnp.ones(3))
    (leaf,) = report.leaves
    assert leaf.verdict == "differs" and bool(report.rules) == bool(off)
    assert ("iterates longer, values and gradient agree to" in leaf.hint) == (not off)


def test_a_solver_whose_steps_change_nothing_once_it_is_done_is_run_further():
    @jax.custom_jvp
    def fixed_point(a):
        def step(state):
            y, done = state
            new = jnp.where(done, y, jnp.tanh(0.3 * y + a))
            return new, jnp.abs(new - y) < 1e-2

        return jax.lax.while_loop(lambda state: ~state[1], step, (jnp.zeros_like(a), False))[0]

    @fixed_point.defjvp
    def _(primals, tangents):
        y = fixed_point(*primals)
        return y, (1 - y**2) / (1 - 0.3 * (1 - y**2)) * tangents[0]

    report = check_gradient(fixed_point, jnp.float32(0.7))
    assert report.ok and "correct to the inner solver's tolerance" in report.leaves[0].hint


@pytest.mark.parametrize("factor, verdict", [(1, "unresolved"), (1.01, "differs")])
def test_the_rule_of_a_solver_that_is_noisy_once_it_is_done_may_ignore_the_first_guess(
    factor, verdict
):
    def of_root(y, a):
        return y**3 + y - a

    @jax.custom_jvp
    def root(guess, a):
        def step(y):
            noise = 1e-8 * jnp.sin(1e9 * (guess + a))
            is_done = jnp.abs(of_root(y, a)) < 1e-6
            return y - of_root(y, a) / (3 * y**2 + 1.3) + jnp.where(is_done, noise, 0)

        return jax.lax.while_loop(lambda y: jnp.abs(of_root(y, a)) > 1e-6, step, guess)

    @root.defjvp
    def _(primals, tangents):
        y = root(*primals)
        return y, factor * tangents[1] / (3 * y**2 + 1)

    with jax.enable_x64(True):
        report = check_gradient(root, jnp.array(1.0), jnp.array(3.0), argnums=(0, 1))
    assert report.verdict == verdict and len(report.rules) == (verdict == "differs")
    assert ("may be due to an inner solver's tolerance" in str(report)) == (factor == 1)


@pytest.mark.parametrize("digits, text", [(0.0, "to within 1.5e-09"), (3.2, "to 3.2 digits")])
def test_what_a_longer_run_shows_is_said_in_digits_or_as_a_bound(digits, text):
    (leaf,) = check_gradient(jnp.sum, jnp.ones(1)).leaves
    wrong = leaf._replace(verdict=Verdict.DIFFERS, digits=0.0)
    longer = leaf._replace(digits=digits, bound=1.5e-9)
    hint = solvers._within_tolerance(wrong, longer, np.ones(1), np.ones(1)).hint
    assert f"values and gradient agree {text}: its tolerance may" in hint


@pytest.mark.parametrize("moved, verdict", [(0.05, "agrees"), (0.2, "differs")])
def test_a_wrong_leaf_is_right_to_a_solvers_tolerance_only_if_its_gradient_stays(moved, verdict):
    (leaf,) = check_gradient(jnp.sum, jnp.ones(1)).leaves
    wrong, right = (leaf._replace(verdict=Verdict(word)) for word in ("differs", "agrees"))
    further = solvers._within_tolerance(wrong, right, np.array([1.0]), np.array([1.0 + moved]))
    assert further.verdict == verdict


@pytest.mark.parametrize(
    "dtype, error, verdict",
    [
        ("float32", 8e-6, "agrees"),
        ("float32", 2e-5, "differs"),
        ("float64", 5e-10, "agrees"),
        ("float64", 2e-8, "differs"),
    ],
    indirect=["dtype"],
)
def test_a_formula_is_held_to_a_hundred_roundings(dtype, error, verdict):
    x = jnp.linspace(1, 3, 1000, dtype=dtype)
    off = np.where(np.arange(1000) == 321, 1 + error, 1)
    gradient = lambda x: 3 * x**2 * off  # noqa: E731
    (leaf,) = check_gradient(lambda x: jnp.sum(x**3), x, gradient=gradient).leaves
    assert leaf.verdict == verdict
    assert [entry.index for entry in leaf.entries] == [(321,)] * (verdict == "differs")


def test_what_a_correct_formula_loses_in_float32_is_lost_digits():
    """It is correct in float64, and the cancellation in it is not called wrong."""
    f = lambda x: jnp.sum(jnp.log1p(x))  # noqa: E731
    gradient = lambda x: ((1 + x) - 1) / (x * (1 + x))  # noqa: E731
    (leaf,) = check_gradient(f, jnp.array([3e-5, 1e-4]), gradient=gradient).leaves
    assert leaf.verdict == "imprecise" and 2 < leaf.own_dtype_digits < 4 and leaf.digits > 9
    assert "in float32, 2.9 digits match" in leaf.hint and "the latter is correct" in leaf.hint


def test_a_kink_and_a_slope_of_nothing_lack_no_digits():
    ramp = lambda x: jnp.sum(jnp.where(x > 0, x, 0 * x))  # noqa: E731
    corner = check_gradient(ramp, jnp.zeros(2), digits=5)
    nothing = check_gradient(lambda x: jnp.sum(0 * x + 1), jnp.ones(2), digits=5)
    assert corner.verdict == "kink" and corner.ok and nothing.ok


def test_a_ratio_is_told_in_digits_that_tell_it_from_1():
    with jax.enable_x64(True):
        slightly = lambda x: 2 * (1 + 1e-7) * x  # noqa: E731
        report = check_gradient(lambda x: jnp.sum(x**2), jnp.array([1.0, 2.0]), gradient=slightly)
    assert "autodiff / numerical = 1 +1.0e-07 throughout" in str(report)


def test_a_leaf_that_changes_the_value_by_less_than_its_rounding_is_checked_with_wider_moves(dtype):
    f = lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2)  # noqa: E731
    point = {"a": jnp.full(3, 1e-8, dtype), "b": jnp.ones(3, dtype)}
    gradient = lambda p: {"a": 4 * p["a"], "b": 2 * p["b"]}  # noqa: E731
    leaf, _ = check_gradient(f, point, gradient=gradient).leaves
    assert (leaf.path, leaf.verdict, leaf.hint) == ("[0]['a']", "differs", "an extra factor of 2")


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "agrees"), (1.1, "differs")])
def test_an_array_of_a_function_that_cannot_be_traced_is_projected(factor, verdict):
    square = jax.custom_jvp(lambda x: x**2)
    square.defjvp(lambda p, t: (p[0] ** 2, 2 * factor * p[0] * t[0]))
    x = jnp.array([1.0, 2.0])
    report = check_gradient(lambda x: square(x) if x[0] > 0 else x, x)
    assert report.verdict == verdict and len(report.notes) == 2
    assert "a random projection" in report.notes[1]


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-14])
@pytest.mark.parametrize(
    "f",
    [lambda p: p * jnp.log(p), lambda p: p**p, jax.scipy.special.entr, jnp.log],
    ids=["p log p", "p to the p", "entropy", "logarithm"],
)
def test_a_tiny_entry_beside_others_is_not_judged_by_steps_longer_than_itself(f, size):
    report = check_gradient(lambda p: jnp.sum(f(p)), jnp.array([size, 2.0], "float32"))
    assert report.verdict == "agrees" and not report.rules, str(report)
    assert not report.leaves[0].entries  # values say nothing on the first one


@pytest.mark.parametrize(("line", "said"), [("", "`abs`"), ("a.py:3 (f)", "`abs` at a.py:3 (f)")])
def test_a_kink_is_named_with_its_line_if_that_is_known(line, said):
    (eqn,) = jax.make_jaxpr(jnp.abs)(1.0).eqns
    assert kinks._named(Site(eqn, line, (), ())) == said


def test_a_rule_that_is_wrong_at_a_tiny_entry_is_named():
    f = jax.custom_vjp(lambda p: p * jnp.log(p))
    f.defvjp(
        lambda p: (f(p), p),
        lambda p, ct: (ct * (jnp.log(p) + 1) * jnp.where(p < 1e-6, 2, 1),),
    )
    report = check_gradient(lambda p: jnp.sum(f(p)), jnp.array([1e-8, 0.5], "float32"))
    assert report.verdict == "differs" and report.leaves[0].entries[0].index == (0,)
    (rule,) = report.rules
    assert "1e-6" in rule.rule.text and rule.entry == (0,)


FAINT = {
    "inside tanh": lambda rule, p: jnp.sum(jnp.tanh(rule(p["a"]) + jnp.arange(3.0))),
    "beside a square": lambda rule, p: jnp.sum(rule(p["a"]) * jnp.arange(3.0)) + 14 * p["b"] ** 2,
    "beside 1e13": lambda rule, p: jnp.sum(rule(p["a"] * 1e9)) + 1e13 * p["b"],
}


@pytest.mark.parametrize("size", [1e-13, 1e-17, 1e-25])
@pytest.mark.parametrize("name", FAINT)
@pytest.mark.parametrize("factor, verdict", [(1.0, "agrees"), (1.05, "differs"), (2.0, "differs")])
def test_a_tiny_leaf_is_judged_as_any_other(name, size, factor, verdict):
    rule = jax.custom_vjp(lambda x: x * 1)
    rule.defvjp(lambda x: (x * 1, None), lambda _, g: (factor * g,))
    point = {"a": jnp.full(3, size), "b": jnp.ones(())}
    assert check_gradient(lambda p: FAINT[name](rule, p), point).verdict == verdict


@pytest.mark.parametrize("factor, verdict", [(1.0, "unresolved"), (1.04, "differs")])
def test_a_leaf_that_float64_does_not_show_is_not_said_to_agree(factor, verdict):
    rule = jax.custom_vjp(jnp.sin)
    rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * g * jnp.cos(x),))
    report = check_gradient(lambda x: jnp.sum(rule(x)) + 1e13, draw(0, 3))
    assert report.verdict == verdict


B = draw(1, 3, 3)
JUMPS = {
    "floor": lambda x: jnp.sum(jnp.floor(x)) + jnp.sum(x**2),
    "a threshold": lambda x: jnp.sum(jnp.where(x >= 1, x**2 + 1, x)),
    "beside a solve": lambda x: (
        jnp.sum(jnp.floor(x)) + jnp.sum(jnp.linalg.solve(B + jnp.diag(x), x))
    ),
}


@pytest.mark.parametrize("name", JUMPS)
@pytest.mark.parametrize("point", [[1.0, 2.0, 3.0], [1.0, 2.5, 3.5]])
def test_a_jump_is_unresolved(name, point):
    report = check_gradient(JUMPS[name], jnp.array(point))
    assert report.verdict == "unresolved" and not report.rules, str(report)


def test_structure_that_no_step_resolves_is_unresolved_unless_a_rule_is_wrong():
    wrong = jax.custom_vjp(jnp.sinh)
    wrong.defvjp(lambda x: (jnp.sinh(x), x), lambda x, g: (1.1 * g * jnp.cosh(x),))
    fast = lambda x: 1e-9 * jnp.sin(1e12 * x)  # noqa: E731
    x = jnp.array([0.3, 1.0, 1.7])
    report = check_gradient(lambda x: jnp.sum(x + fast(x)), x)
    assert report.verdict == "unresolved" and "structure" in report.leaves[0].hint
    report = check_gradient(lambda x: jnp.sum(wrong(x) + fast(x)), x)
    assert report.verdict == "differs" and [rule.name for rule in report.rules] == ["sinh"]


@pytest.mark.parametrize("slope", [1e-3, 0.1])
def test_rounding_that_cancels_at_0_is_no_structure(slope):
    f = lambda x: jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + slope * x  # noqa: E731
    report = check_gradient(f, jnp.float32(0))  # autodiff takes the slopes of both kinks to be 0
    assert report.verdict == "differs"
    assert report.leaves[0].numerical == pytest.approx(0.5 + slope, rel=1e-6)


def test_an_entry_that_is_off_by_more_than_its_dtype_explains_is_wrong_if_a_rule_is():
    rule = jax.custom_vjp(lambda x: -0.5 * x**2)
    back = lambda x, g: ((-x * g).at[1].multiply(1 + 1e-4),)  # noqa: E731
    rule.defvjp(lambda x: (rule(x), x), back)
    x = jnp.array([-1.3, 0.2, 2.7, 0.4])  # the entry is so small that the slope hides the error
    report = check_gradient(lambda x: jnp.sum(jnp.sin(rule(x))), x)
    assert report.verdict == "differs" and len(report.rules) == 1
    assert [entry.index for entry in report.leaves[0].entries] == [(1,)]


@pytest.mark.parametrize("value", [lambda x: 0.0, lambda x: x])
def test_where_all_values_around_are_infinite_nothing_is_known(value):
    at = jnp.array([1.0, 2.0])
    report = check_gradient(lambda x: jnp.sum(jnp.where(x == at, value(x), -jnp.inf)), at)
    assert report.verdict == "unresolved" and "not finite near" in report.leaves[0].hint
    assert not report.notes


def test_a_question_that_fails_is_noted_and_ends_no_check(monkeypatch):
    def fail(checked):
        raise RuntimeError("no answer")

    for name in ("applies", "ask"):
        with monkeypatch.context() as patched:
            patched.setattr(kinks, "applies", lambda checked: True)
            patched.setattr(kinks, name, fail)
            report = check_gradient(jnp.sum, jnp.ones(2))
        assert report.ok and "RuntimeError: no answer" in report.notes[0]


def test_without_float64_on_the_accelerator_the_cpu_is_used(monkeypatch):
    wrong = jax.custom_vjp(jnp.tanh)

    def back(x, g):
        return (g * (1 - jnp.tanh(x) ** 2) * jnp.where(jnp.arange(4096) == 17, 1.05, 1),)

    wrong.defvjp(lambda x: (jnp.tanh(x), x), back)
    x = jnp.asarray(np.random.default_rng(0).normal(size=4096), jnp.float32)
    for f, found in ((jnp.tanh, []), (wrong, [(17,)])):
        with monkeypatch.context() as patched:
            patched.setattr(jax, "default_backend", lambda: "tpu")
            report = check_gradient(lambda x, f=f: jnp.sum(f(x)), x)
        assert [entry.index for leaf in report.leaves for entry in leaf.entries] == found
        assert report.leaves[0].bound < 1e-8
        assert "computed on the CPU, as tpu has no float64" in report.notes


@pytest.mark.parametrize("shape", [(5,), (3, 7)])
def test_a_gradient_that_is_only_rounding_error_is_zero(shape, dtype):
    y = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    to_itself = lambda y: jnp.sum(optax.cosine_distance(y, y))  # noqa: E731
    assert check_gradient(to_itself, y).verdict == "agrees"
    assert not explain(to_itself, y).digits_lost


@pytest.mark.parametrize("n", [1, 3, 60])
def test_a_squared_hinge_has_the_slope_0_at_0(n, dtype):
    hinge = lambda x: jnp.sum(jnp.maximum(x, 0) ** 2)  # noqa: E731
    assert check_gradient(hinge, jnp.zeros(n, dtype)).verdict == "agrees"
    assert check_gradient(lambda x: jnp.sum(jnp.sin(x) ** 2), jnp.zeros(n, dtype)).ok
    wrong = lambda x: 2 * jnp.maximum(x, 0) + 1e-6  # noqa: E731
    assert check_gradient(hinge, jnp.zeros(n, dtype), gradient=wrong).verdict == "differs"


CLOSE_TO_0 = {
    "cosine": lambda x: 1 - jnp.cos(x),
    "pseudo-Huber": lambda x: jnp.sqrt(1 + x**2) - 1,
    "log cosh": lambda x: jnp.log(jnp.cosh(x)),
    "Cauchy": lambda x: jnp.log(1 + x**2),
    "Welsch": lambda x: 1 - jnp.exp(-(x**2) / 2),
}


@pytest.mark.parametrize("name", CLOSE_TO_0)
@pytest.mark.parametrize("x", [1e-5, 3e-6, 1e-6, 1e-7])
def test_rounded_values_close_to_a_minimum_are_not_flat(name, x):
    """Such values are multiples of 1e-16, so that the finest steps change nothing."""
    f = CLOSE_TO_0[name]
    right, x = check_gradient(f, jnp.float32(x)), jnp.float32(x)
    assert right.verdict == "agrees"
    if x > 5e-7:
        for factor in (0.0, 1.1, -1.0):
            wrong = lambda x: factor * jax.grad(f)(x)  # noqa: B023, E731
            assert check_gradient(f, x, gradient=wrong).verdict == "differs"


def test_rounded_values_of_many_residuals_are_not_flat():
    residuals = 3e-7 * jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)
    assert check_gradient(lambda r: jnp.sum(jnp.log(1 + r**2)), residuals).verdict == "agrees"


def onto(u):
    return u @ u.conj().T


@since(0, 9)
@pytest.mark.parametrize(
    "name, f, verdict",
    [
        ("factors", lambda a: jnp.linalg.svd(a), "unresolved"),
        ("eigenvectors", lambda a: jnp.linalg.eigh(a + a.conj().T), "unresolved"),
        ("values", lambda a: jnp.linalg.svd(a, compute_uv=False), "agrees"),
        ("real", lambda a: jnp.linalg.svd(jnp.real(a)), "agrees"),
        ("projector", lambda a: onto(jnp.linalg.svd(a).U[:, :1]), "agrees"),
        ("left alone", lambda a: jnp.linalg.svd(a).U[:, :1], "unresolved"),
    ],
)
def test_the_phases_of_complex_vectors_are_free(name, f, verdict):
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)), "complex64")
    report = check_gradient(f, a)
    assert (report.verdict, report.rules) == (verdict, ())
    assert ("phases" in report.leaves[0].hint) == (verdict == "unresolved")


@since(0, 9)
def test_a_wrong_rule_before_a_complex_decomposition_is_named():
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)), "complex64")

    @jax.custom_jvp
    def twice(x):
        return 2 * x

    twice.defjvp(lambda x, dx: (2 * x[0], 2.2 * dx[0]))
    report = check_gradient(lambda a: jnp.linalg.svd(twice(a)), a)
    assert (report.verdict, [rule.name for rule in report.rules]) == ("differs", ["twice"])


def test_the_wrong_rule_is_named_with_its_file_line_and_argument():
    good = rule(lambda x: jnp.sin(x), lambda args, g: (g * jnp.cos(args[0]),))

    def product(x, y):
        return x * y

    bad = rule(product, lambda args, g: (g * args[1], 2 * g * args[0]))
    report = check_gradient(lambda x: jnp.sum(bad(good(x), x)), draw(0, 4))  # the call
    (wrong,) = report.rules
    assert (wrong.name, wrong.kind, wrong.verdict, wrong.argument) == (
        "product",
        "custom_vjp",
        "differs",
        1,
    )
    assert wrong.line.file == __file__ and wrong.line.text.endswith("# the call")
    assert f"test_check.py:{wrong.line.line - 1} (<lambda>)" in wrong.where


def network_with_one_wrong_entry(shape, index, factor):
    hold = rule(lambda w: w, lambda args, g: (g.at[index].multiply(factor),))
    return lambda p, x, t: jaxnn.loss({**p, "W1": hold(p["W1"])}, x, t)


@pytest.mark.slow
def test_one_percent_of_one_entry_of_a_network_is_named():
    key = jax.random.key(0)
    params = jaxnn.init_network(key, (784, 50, 10))
    x, t = jax.random.uniform(key, (100, 784)), jax.random.randint(key, (100,), 0, 10)
    report = check_gradient(network_with_one_wrong_entry((784, 50), (123, 45), 1.01), params, x, t)
    worst, *others = report.leaves
    assert (worst.path, worst.verdict, [e.index for e in worst.entries]) == (
        "[0]['W1']",
        "differs",
        [(123, 45)],
    )
    assert {leaf.verdict for leaf in others} == {"agrees"}
    assert worst.entries[0].autodiff / worst.entries[0].numerical == pytest.approx(1.01, rel=1e-5)


@pytest.mark.slow
def test_one_percent_of_one_entry_in_a_million_is_named():
    f = rule(
        lambda x: jnp.sum(jnp.sin(x) + x * x),
        lambda args, g: ((g * (jnp.cos(args[0]) + 2 * args[0])).at[654321].multiply(1.01),),
    )
    report = check_gradient(f, draw(0, 1_000_000))
    assert [e.index for e in report.leaves[0].entries] == [(654321,)]


@pytest.mark.parametrize("dtype, error", [("bfloat16", 1.06), ("float16", 1.01), ("float32", 1.01)])
def test_a_rule_is_judged_as_its_leaf_is(dtype, error):
    """One definition of how far a dtype reaches: 6% is beyond bfloat16's, too."""
    sine = rule(
        lambda x: jnp.sin(x), lambda args, g: ((error * g * jnp.cos(args[0])).astype(dtype),)
    )
    report = check_gradient(lambda x: jnp.sum(sine(x)), draw(0, 4, dtype=np.float32).astype(dtype))
    assert report.leaves[0].verdict == "differs"
    assert report.rules[0].verdict == "differs"
    assert report.rules[0].difference == pytest.approx(error - 1, rel=0.1)


def test_a_second_check_compiles_nothing(compilations):
    f = lambda x: jnp.sum(jnp.sin(x))  # noqa: E731
    points = draw(0, 5), draw(1, 5)
    check_gradient(f, points[0])
    before = compilations()
    check_gradient(f, points[1])
    assert compilations() == before > 0


def test_a_gradient_in_float64_is_compiled_once(compilations):
    count = {}
    for kind in (jnp.float32, jnp.float64):
        with jax.enable_x64(True):
            x = jnp.asarray(draw(0, 5000), kind)
            check_gradient(lambda x: jnp.sum(jnp.sin(x) ** 3), x)  # operations on arrays
            before = compilations()
            check_gradient(lambda x: jnp.sum(jnp.cos(x) ** 3), x)
            count[kind] = compilations() - before
    assert count == {jnp.float32: 3, jnp.float64: 2}


def test_digits_that_a_gradient_in_float64_rounds_away_are_lost():
    with jax.enable_x64(True):
        rounded = lambda x: jax.lax.reduce_precision(x, 8, 7) * x  # noqa: E731
        (leaf,) = check_gradient(lambda x: jnp.sum(rounded(x)), jnp.linspace(1.1, 5, LARGE)).leaves
    assert leaf.own_dtype_digits < 4 < leaf.digits


def test_a_python_number_takes_the_dtype_of_what_it_is_added_to():
    def f(x, rate):
        return jnp.sum(jax.lax.fori_loop(0, 3, lambda _, c: c - rate * c, x))

    x = jnp.ones(2, jnp.bfloat16)
    assert jax.grad(f)(x, 0.5).dtype == jnp.bfloat16
    assert check_gradient(f, x, 0.5).verdict == "agrees"


def test_a_python_number_is_checked_where_the_function_sees_it():
    for x in (np.pi / 2, np.float64(np.pi / 2)):
        assert check_gradient(jnp.sin, x).verdict == "agrees"


def test_a_rule_is_the_users_unless_it_stands_in_jax_itself():
    source = """
import jax
square = jax.custom_vjp(lambda x: x**2)
square.defvjp(lambda x: (x**2, x), lambda x, g: (3 * g * x,))
"""
    names = {}
    exec(compile(source, os.path.dirname(jax.__file__) + "opt/losses.py", "exec"), names)
    report = check_gradient(lambda x: jnp.sum(names["square"](x)), draw(0, 3))
    assert [rule.verdict for rule in report.rules] == ["differs"]


def test_what_is_not_finite_beside_it_does_not_make_a_loose_solution_wrong():
    f, (a,) = by_name("loosely_iterated_fixed_point")
    beside = check_gradient(lambda p: f(p["a"]) + jnp.sqrt(p["b"]), {"a": a, "b": jnp.float32(0)})
    verdicts = {leaf.path: leaf.verdict for leaf in beside.leaves}
    assert verdicts["[0]['a']"] == "agrees" and verdicts["[0]['b']"] != "agrees"


def test_a_gradient_that_is_not_finite_claims_no_slope():
    hand = lambda x: (2 * x).at[0].set(jnp.nan)  # noqa: E731
    report = check_gradient(lambda x: jnp.sum(x**2), draw(0, 3), gradient=hand)
    (leaf,) = report.leaves
    assert leaf.verdict == "not finite" and np.isnan(leaf.autodiff) and leaf.digits == 0
    assert [entry.index for entry in leaf.entries] == [(0,)]


def test_the_line_is_one_program_whose_memory_does_not_grow_with_its_steps():
    from jaxnn.checking.line import along_program

    x = draw(0, 64, 100)
    value = lambda leaves: jnp.mean(jnp.tanh(x @ leaves[0]) ** 2)  # noqa: E731
    leaves = [draw(1, 100, 200)]

    def memory(steps):
        line = jax.jit(along_program(lambda point, leaves, data: value(leaves), jnp.float32))
        program = line.lower(leaves, [jnp.zeros((100, 200))], jnp.ones(steps), ())
        return program.compile().memory_analysis().temp_size_in_bytes

    once = jax.jit(value).lower(leaves).compile().memory_analysis().temp_size_in_bytes
    assert memory(200) < 1.1 * memory(2)  # but for the steps and values themselves
    assert memory(200) < 4 * (once + leaves[0].nbytes)  # the leaf, the direction, their sum


def test_same_input_same_report():
    f, args = by_name("relu_at_zero")
    assert check_gradient(f, *args) == check_gradient(f, *args)


def test_a_leaf_without_influence_is_said_to_be_so():
    report = check_gradient(lambda p: jnp.sum(p["a"] ** 2), {"a": draw(0, 3), "b": draw(1, 2)})
    unused = next(leaf for leaf in report.leaves if leaf.path == "[0]['b']")
    assert unused.verdict == "agrees" and "does not depend" in unused.hint


tripled = jax.custom_jvp(jnp.sin)
tripled.defjvp(lambda x, dx: (jnp.sin(x[0]), 3 * jnp.cos(x[0]) * dx[0]))


@pytest.mark.parametrize("mode", ["rev", "fwd"])
@pytest.mark.parametrize(
    "f, verdict",
    [
        (lambda x: jnp.sum(jnp.sin(x)), "agrees"),
        (lambda x: jnp.sum(tripled(x)), "differs"),
        (lambda x: jnp.sum(jnp.sqrt(x - draw(0, 3))), "not finite"),
        (lambda x: jnp.sum(jnp.abs(x - draw(0, 3))), "kink"),
        (lambda x: jnp.sum(jax.lax.stop_gradient(x) * x), "detached"),
    ],
)
def test_a_leaf_without_entries_changes_no_verdict_on_others(f, verdict, mode):
    leaves = {"x": draw(0, 3), "none": jnp.zeros((0, 2))}
    report = check_gradient(lambda p: f(p["x"]) + jnp.sum(p["none"]), leaves, modes=mode)
    by_path = {leaf.path: leaf for leaf in report.leaves}
    assert by_path["[0]['x']"].verdict == verdict and not report.notes
    assert by_path["[0]['none']"].verdict == "agrees"
    assert by_path["[0]['none']"].hint == "the leaf has no entries"


def test_numbers_that_a_processor_takes_for_0_are_no_other_value():
    x = jnp.full(LARGE, 1e-42, jnp.float32)
    report = check_gradient(lambda x: jnp.sum(3 * x), x)
    assert report.ok and not report.notes


def test_a_rule_with_another_value_is_named_in_float64_though_float32_would_take_it_for_0(x64):
    tiny = jax.custom_vjp(lambda x: jnp.sum(1e-50 * x))
    tiny.defvjp(lambda x: (jnp.sum(1.1e-50 * x), x), lambda x, g: (1e-50 * g * jnp.ones_like(x),))
    report = check_gradient(tiny, jnp.array([1.0, 2.0]))
    assert report.verdict == "differs" and "changes its value" in report.notes[-1]


@jax.tree_util.register_pytree_node_class
class Vector:
    """Refuses what is no vector, so it cannot hold a flag in place of one."""

    def __init__(self, w, b):
        if w.ndim != 1 or b.ndim != 1:
            raise ValueError("not a vector")
        self.w, self.b = w, b

    def tree_flatten(self):
        return (self.w, self.b), None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


def test_where_is_given_alike_to_check_assert_and_explain():
    params, where = {"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": True, "b": False}
    f = lambda p, n: jnp.sum(p["a"] ** n * p["b"] ** 2)  # noqa: E731
    assert [leaf.path for leaf in check_gradient(f, params, 2, where=where).leaves] == ["[0]['a']"]
    assert_gradient(f, params, 2, where=where)
    assert explain(f, params, 2, where=where) and explain(f, params, 2, where=(where,))


@pytest.mark.parametrize(
    "where, paths",
    [
        (None, ["[0]b", "[0]w"]),
        (lambda leaf: leaf.size == 3, ["[0]w"]),
        ((True, False), ["[0]b", "[0]w"]),
    ],
)
def test_leaves_of_a_class_that_refuses_all_but_arrays_are_checked(where, paths):
    argnums = (0, 1) if isinstance(where, tuple) else 0
    report = check_gradient(
        lambda v, x: jnp.sum(v.w**2) + jnp.sum(v.b) * x,
        Vector(draw(0, 3), draw(1, 2)),
        jnp.float32(2),
        argnums=argnums,
        where=where,
    )
    assert report.ok and len(report.leaves) == len(paths)


def test_a_function_that_is_not_deterministic_is_said_to_be_so():
    rng = np.random.default_rng(0)
    report = check_gradient(
        lambda x: jnp.sum(x * jnp.asarray(rng.uniform(size=3), jnp.float32)), draw(0, 3)
    )
    assert report.verdict == "not deterministic" and not report.ok
    assert (
        "not deterministic: two traces of the function differ, as with NumPy's random numbers"
        in report.notes
    )
    drawn = jax.custom_jvp(lambda x: jax.pure_callback(lambda x: np.float32(rng.uniform()), x, x))
    drawn.defjvp(lambda x, t: (drawn(*x), t[0]))
    report = check_gradient(drawn, jnp.float32(0.5))
    assert report.verdict == "not deterministic" and "evaluations here gave" in report.notes[-1]


def test_precision_is_reported_apart_from_correctness():
    x = jnp.array([2e-2, -3e-2], jnp.float32)
    leaf = check_gradient(lambda x: jnp.sum((1 - jnp.cos(x)) / x), x).leaves[0]
    assert leaf.verdict == "agrees" and leaf.digits > 6 and leaf.own_dtype_digits < 5


@pytest.mark.parametrize(
    "f, x, verdict, hint, in_float64",
    [
        (
            lambda x: jnp.sum((1 - jnp.cos(x)) / x**2),
            jnp.array([1e-2, 2e-2]),
            "differs",
            "in float32, no digits match the float64 gradient; the latter is correct",
            "agrees",
        ),
        (
            lambda x: jnp.sum((1 - jnp.cos(x)) / x**2),
            jnp.array([2e-4, 3e-4]),
            "differs",
            "in float32, no digits match the float64 gradient; the values cannot confirm it",
            "unresolved",
        ),
        (
            lambda x: jnp.sum(jnp.where(x > 20, x, jnp.log1p(jnp.exp(x)))),
            jnp.array([1.0, 99.0]),
            "not finite",
            "not finite in float32; the same gradient in float64 is finite",
            "agrees",
        ),
    ],
)
def test_wrong_in_float32_only_is_wrong_and_says_so(f, x, verdict, hint, in_float64):
    leaf = check_gradient(f, x).leaves[0]
    assert (leaf.verdict, leaf.hint) == (verdict, hint)
    with jax.enable_x64(True):
        assert check_gradient(f, x.astype(jnp.float64)).verdict == in_float64


def test_a_hand_written_gradient_is_checked_like_autodiffs():
    f = lambda p: jnp.sum(p["a"] ** 3) + p["b"]  # noqa: E731
    p = {"a": draw(0, 4), "b": jnp.float32(2)}
    good = lambda p: {"a": 3 * p["a"] ** 2, "b": jnp.ones(())}  # noqa: E731
    numpys = lambda p: {"a": 3 * np.asarray(p["a"]) ** 2, "b": np.ones(())}  # noqa: E731
    bad = lambda p: {"a": 3 * p["a"] ** 2, "b": jnp.zeros(())}  # noqa: E731
    assert check_gradient(f, p, gradient=good).ok and check_gradient(f, p, gradient=numpys).ok
    report = check_gradient(f, p, gradient=bad)
    assert report.leaves[0].path == "[0]['b']" and report.leaves[0].verdict == "differs"


def test_argnums_auxiliary_output_and_projection():
    f = lambda a, b: (jnp.sum(a * b), "aux")  # noqa: E731
    report = check_gradient(f, draw(0, 3), draw(1, 3), argnums=(0, 1), has_aux=True)
    assert {leaf.path for leaf in report.leaves} == {"[0]", "[1]"} and report.ok
    bad = rule(lambda x: jnp.outer(x, x), lambda args, g: (g @ args[0],))
    for cotangent in ("random", jnp.arange(9.0).reshape(3, 3)):
        assert check_gradient(lambda x: jnp.outer(x, x), draw(2, 3), cotangent=cotangent).ok
        assert check_gradient(bad, draw(2, 3), cotangent=cotangent).verdict == "differs"


def test_order_two_checks_the_hessian():
    f, args = by_name("hessian_lost_in_the_rule")
    assert check_gradient(f, *args).ok and check_gradient(f, *args, order=2).verdict == "differs"


def test_assert_gradient_raises_the_table():
    f, args = by_name("one_row_dropped")
    with pytest.raises(
        GradientError, match=r"\[0\].*6x4.*differs(.|\n)*\[2, \d\] differs: autodiff 0, numerical"
    ):
        assert_gradient(f, *args)
    assert_gradient(*by_name_pair("one_row_dropped_right"))


@pytest.mark.parametrize("leaves", [1, 2, 3, 20])
def test_the_text_of_an_error_is_short(leaves):
    half = jax.custom_vjp(lambda x: x / 2)
    half.defvjp(lambda x: (x / 2, None), lambda _, g: (g * jnp.arange(8.0),))
    with pytest.raises(GradientError) as error:
        assert_gradient(lambda *x: sum(map(jnp.sum, map(half, x))), *[draw(0, 8)] * leaves)
    lines, report = str(error.value).splitlines(), error.value.report
    assert len(lines) <= 15 and lines[0].startswith("wrong rule: custom_vjp")
    assert len(report.leaves) == leaves and len(str(report).splitlines()) > leaves
    more = {1: "", 2: "", 3: "and 1 more leaf", 20: "and 18 more leaves"}[leaves]
    assert lines[-1] == more or not more


def by_name_pair(name):
    f, args = by_name(name)
    return (f, *args)


def test_the_report_as_text_html_and_json():
    f, args = by_name("one_row_dropped")
    report = check_gradient(f, *args)
    assert str(report).startswith("gradient of ") and "<pre>" in report._repr_html_()
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is False and data["leaves"][0]["entries"][0]["index"][0] == 2


def test_a_row_of_the_table_has_the_numbers_of_its_leaf():
    report = check_gradient(lambda x: jnp.sum(x**2), jnp.ones((2, 3)))
    (leaf,), row = report.leaves, str(report).splitlines()[2].split()
    digits = [f"{leaf.digits:.1f}", f"{leaf.own_dtype_digits:.1f}"]
    slopes = [f"{leaf.autodiff:.6g}", f"{leaf.numerical:.6g}", f"{leaf.bound:.1e}"]
    assert row == ["[0]", "2x3", "float32", "agrees", *digits, *slopes]


def test_a_page_opens_what_does_not_agree():
    for factor, is_open in ((2, False), (3, True)):
        gradient = lambda x, k=factor: k * x  # noqa: E731
        report = check_gradient(lambda x: jnp.sum(x**2), jnp.ones(2), gradient=gradient)
        assert ("<details open>" in fragment(report, drawn=0)) == is_open


def test_the_evidence_that_is_drawn_is_the_reports():
    f, args = by_name("one_row_dropped")
    report = check_gradient(f, *args)
    leaf, axes = report.leaves[0], report.plot("[0]")
    drawn = {tuple(np.asarray(line.get_xdata(), float)) for line in axes.lines}
    assert leaf.steps in drawn and axes.get_title() == "[0]: differs"


def test_a_numpy_function_is_checked_against_a_hand_written_gradient():
    f = lambda x: float(np.sum(np.asarray(x, np.float64) ** 2))  # noqa: E731
    assert check_gradient(f, draw(0, 3), gradient=lambda x: 2 * x).ok
    assert check_gradient(f, draw(0, 3), gradient=lambda x: 3 * x).verdict == "differs"
    assert math.isfinite(check_gradient(f, draw(0, 3), gradient=lambda x: 2 * x).leaves[0].bound)


@pytest.mark.parametrize("x", [[0.0], [0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
def test_an_infinite_gradient_is_not_finite(x):
    leaf = (report := check_gradient(lambda x: jnp.sum(jnp.sqrt(x)), jnp.array(x))).leaves[0]
    assert (report.verdict, leaf.hint) == (
        "not finite",
        "the function or its slope is not finite near this point",
    )
    assert report.notes == ()


def test_an_entry_without_a_slope_is_said_to_have_none():
    """Where eigenvalues are equal, their vectors jump."""
    f = lambda x: jnp.sum(jnp.linalg.eigh(x)[1][:, 0] * jnp.arange(3.0))  # noqa: E731
    told = str(check_gradient(f, jnp.eye(3)))
    assert "not finite: autodiff nan, no numerical slope" in told and "+- inf" not in told


def test_a_rule_that_makes_the_slope_infinite_is_not_finite_at_each_entry():
    f = jax.custom_jvp(lambda x: jnp.sum(x**2))
    f.defjvp(lambda x, t: (f(*x), jnp.sum(t[0] * jnp.array([jnp.inf, -jnp.inf], t[0].dtype))))
    report = check_gradient(f, jnp.array([1.0, 2.0]))
    assert report.verdict == "not finite"
    assert [e.verdict for e in report.leaves[0].entries[:2]] == ["not finite", "not finite"]


@pytest.mark.parametrize("x", [[0.0, 0.5], [0.0, 0.0, 0.0, 1.0]])
def test_on_the_border_of_its_domain_a_function_is_asked_on_the_side_where_it_is(x):
    assert check_gradient(lambda x: jnp.sum(x**1.5), jnp.array(x)).verdict == "agrees"
    bad = rule(lambda x: jnp.sum(x**1.5), lambda args, g: (g * jnp.sqrt(args[0]),))
    assert check_gradient(bad, jnp.array(x)).verdict == "differs"


# Right where steps are easily too long or too short.
HARD = {
    "far from 0": (lambda x: jnp.sum(jnp.sin(x)), np.float32([1e7, 3e6, 2e5])),
    "high frequency": (lambda x: jnp.sum(jnp.sin(1e8 * x)), np.float32([0.25, 0.5, 1.0])),
    "scales in one leaf": (
        lambda x: jnp.sum(jnp.sin(x / np.float32(10.0) ** np.arange(-8, 8))),
        np.float32(10.0) ** np.arange(-8, 8),
    ),
    "beside a kink": (
        lambda x: jnp.sum(jax.nn.relu(x - 1)) + jnp.sum(x**2),
        np.nextafter(np.float32([1, 1]), np.float32([2, 0])),
    ),
    "at a minimum of 0": (lambda x: jnp.mean((x - np.float32([1, 2])) ** 2), np.float32([1, 2])),
    "counts": (
        lambda x: jnp.sum(jnp.zeros(9).at[jnp.floor(3 * x).astype(int)].add(1.0) ** 2),
        np.float32([0.3, 0.5, 1.9]),
    ),
    "near stationary points": (  # rounding 1e4 x moves each entry of the gradient by all it is
        lambda x: jnp.sum(jnp.cos(1e4 * x)),
        np.float32(np.pi * np.arange(1001, 1041) / 1e4),
    ),
    "near a pole": (lambda x: -jnp.log(1 - jnp.sum(x**2)), np.float32([0.6, 0.8 - 1e-6])),
}


@pytest.mark.parametrize("name", HARD)
def test_right_where_steps_are_easily_too_long_or_too_short(name):
    f, x = HARD[name]
    report = check_gradient(f, jnp.asarray(x))
    assert report.verdict == "agrees", str(report)


def test_values_that_were_rounded_to_float32_inside_are_known_for_it(x64):
    def rounded(x):
        return np.asarray(np.sum(np.sin(np.float32(x)) * np.float32(x)), x.dtype)

    @jax.custom_vjp
    def f(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(rounded, shape, x, vmap_method="sequential")

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * (jnp.sin(x) + x * jnp.cos(x)),))
    for scale in (1e-3, 1.0, 100.0):
        leaf = check_gradient(f, scale * jnp.linspace(0.3, 2, 5)).leaves[0]
        assert leaf.verdict == "agrees", str(leaf)
        assert 1e-9 < leaf.bound / abs(leaf.numerical) < 1e-2  # float32's digits, no more


def test_a_row_of_small_entries_is_wrong_though_the_others_are_large_and_right():
    size = np.ones((30, 20), np.float32)
    size[2] = 3e-4
    twice = rule(lambda x: x, lambda args, g: (g.at[2].multiply(2.0),))
    leaf = check_gradient(lambda x: jnp.sum(size * jnp.sin(twice(x))), draw(0, 30, 20)).leaves[0]
    assert leaf.verdict == "differs" and "all have index 2 on axis 0" in leaf.pattern, str(leaf)


def test_a_value_that_is_not_finite_in_the_own_dtype_is_not_passed():
    leaf = check_gradient(
        lambda x: jnp.sum(jnp.exp(x) / jnp.sum(jnp.exp(x)) * x), jnp.array([100.0, 99.0])
    ).leaves[0]
    assert leaf.verdict == "not finite" and "the function's value is nan in float32" in leaf.hint


def test_a_callback_that_raises_beyond_its_domain_has_no_value_there():
    def host(a):
        if np.any(a <= 0):
            raise ValueError("outside")
        return np.log(a).sum().astype(a.dtype)

    log = rule(
        lambda x: jax.pure_callback(host, jax.ShapeDtypeStruct((), x.dtype), x),
        lambda args, g: (g / args[0],),
    )
    assert check_gradient(lambda x: log(x - 1), jnp.array([1.02, 3.0])).verdict == "agrees"


@pytest.mark.promotes
def test_a_complex_leaf_is_checked_and_reported_as_one():
    point = {"w": draw(0, 3), "z": draw(2, 3) + 1j * draw(1, 3)}
    f = lambda p: jnp.sum(jnp.abs(p["z"] * p["w"]) ** 2)  # noqa: E731
    report = check_gradient(f, point)
    assert report.ok and not report.notes
    leaf = next(leaf for leaf in report.leaves if leaf.path == "[0]['z']")
    assert (leaf.shape, leaf.dtype) == ((3,), "complex64") and leaf.digits > 8


@pytest.mark.promotes
def test_a_wrong_rule_beside_vectors_whose_phases_do_not_matter_differs():
    a = jax.lax.complex(draw(0, 3, 3), draw(1, 3, 3))
    f = lambda a, x: jnp.sum(jnp.abs(onto(jnp.linalg.eigh(a + a.conj().T)[1]))) + doubled(x)  # noqa: E731
    report = check_gradient(f, a, jnp.float32(0.3), argnums=(0, 1))
    assert report.verdict == "differs" and report.rules[0].kind == "custom_vjp"


@pytest.mark.promotes
def test_one_part_of_a_complex_gradient_alone_may_be_wrong():
    z = draw(2, 3) + 1j * draw(1, 3)
    f = lambda z: jnp.sum(jnp.abs(z) ** 2)  # noqa: E731
    half = lambda z: jax.grad(f)(z) + 0.1j  # noqa: E731
    assert "only the imaginary parts" in check_gradient(f, z, gradient=half).leaves[0].pattern


def test_the_imaginary_part_of_an_output_counts():
    @jax.custom_jvp
    def circle(x):
        return jax.lax.complex(jnp.cos(x), jnp.sin(x))

    slope = lambda x: jax.lax.complex(-jnp.sin(x), 1.1 * jnp.cos(x))  # noqa: E731
    circle.defjvp(lambda x, dx: (circle(*x), slope(x[0]) * jax.lax.complex(dx[0], 0 * dx[0])))
    assert check_gradient(circle, draw(0, 3)).verdict == "differs"


def test_the_parts_of_a_written_gradient_follow_argnums_in_a_list_too():
    f = lambda x, y: jnp.sum(x * y**2)  # noqa: E731
    both = lambda x, y: [2 * x * y, y**2]  # noqa: E731
    assert check_gradient(f, draw(0, 3), draw(1, 3), argnums=(1, 0), gradient=both).ok


@pytest.mark.promotes
def test_a_gradient_that_is_not_conjugated_is_named_entry_by_entry():
    z = draw(2, 3) + 1j * draw(1, 3)
    f = lambda z: jnp.sum(jnp.abs(z) ** 2)  # noqa: E731
    report = check_gradient(f, z, gradient=lambda z: jnp.conj(jax.grad(f)(z)))
    (leaf,) = report.leaves
    assert (
        leaf.verdict == "differs"
        and leaf.hint == "autodiff is the complex conjugate of the derivative"
    )
    right = {entry.index: entry.numerical for entry in leaf.entries}
    np.testing.assert_allclose([right[(i,)] for i in range(3)], 2 * np.conj(z), rtol=1e-6)
    assert json.loads(json.dumps(report.to_dict()))["leaves"][0]["entries"][0]["autodiff"]


def other_value(x):
    return jnp.sum(x**2)


with_another_value = jax.custom_vjp(other_value)
with_another_value.defvjp(lambda x: (other_value(x) + 0.5, x), lambda x, g: (2 * x * g,))


def test_a_forward_pass_that_returns_another_value_is_named():
    report = check_gradient(lambda x: with_another_value(jnp.sin(x)), draw(0, 4))
    assert report.verdict == "differs" and not report.ok
    assert any("changes its value" in note for note in report.notes)
    (rule_report,) = report.rules
    assert (rule_report.name, rule_report.verdict) == ("other_value", "differs")
    assert "test_check.py" in rule_report.line.file and rule_report.argument is None


@pytest.mark.parametrize("argnums", [(0, 1), (1, 0), (-1, 0)])
def test_a_gradient_by_hand_comes_in_the_order_that_was_asked_for(argnums):
    f = lambda x, y: jnp.sum(jnp.sin(x) * y**2)  # noqa: E731
    args, right = (draw(0, 2), draw(1, 2)), jax.grad(f, argnums)
    assert check_gradient(f, *args, argnums=argnums, gradient=right).verdict == "agrees"
    swapped = lambda x, y: right(x, y)[::-1]  # noqa: E731
    assert check_gradient(f, *args, argnums=argnums, gradient=swapped).verdict == "differs"


def test_of_many_entries_that_are_not_finite_all_are_counted():
    f = lambda W, x: jnp.sum(jnp.sqrt(x @ W))  # noqa: E731
    (leaf, *_) = check_gradient(f, jnp.ones((3, 8)), jnp.zeros((4, 3))).leaves
    assert leaf.pattern == "24 of 24 entries are not finite"
    column = jnp.ones((3, 8)).at[:, 2].set(0.0)
    (leaf, *_) = check_gradient(lambda W: jnp.sum(jnp.sqrt(W)), column).leaves
    assert leaf.pattern == "3 of 24 entries are not finite; all have index 2 on axis 1"
    rows = jnp.ones((4, 8)).at[1].set(0.0)
    (leaf, *_) = check_gradient(lambda W: jnp.sum(jnp.sqrt(W)), rows).leaves
    assert leaf.pattern == "8 of 32 entries are not finite; all have index 1 on axis 0"


def test_infinite_claims_of_both_signs_are_no_warning_of_numpys():
    report = check_gradient(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(10))
    assert report.verdict == "not finite"


BROKEN = {
    "no tuple": (lambda _, ct: 2 * ct, TypeError, "must produce"),
    "another shape": (lambda _, ct: (jnp.ones(7),), ValueError, "must produce"),
    "a mistake of its own": (lambda nothing, ct: (ct * nothing,), TypeError, "unsupported operand"),
}


@pytest.mark.parametrize("bwd, kind, told", BROKEN.values(), ids=BROKEN)
def test_a_rule_that_raises_says_what_jax_says(bwd, kind, told):
    twice = jax.custom_vjp(lambda x: 2 * x)
    twice.defvjp(lambda x: (2 * x, None), bwd)
    for ask in (check_gradient, explain):
        with pytest.raises(kind, match=told):
            ask(lambda x: jnp.sum(twice(x)), jnp.arange(3.0))


# ---------------------------------------------------------------- what a reference might hide

SMALL = np.r_[1.0, np.full(1000, 0.02)]
SCALES = np.array([1e6, 1.0, 1.0, 1.0])
HALVES = np.geomspace(1, 0.01, 20)


@pytest.mark.promotes
@pytest.mark.parametrize(
    "dtype, weights, gradient, x, pattern",
    [
        # Entries that are small in a gradient, and not in the function.
        ("float32", SCALES, SCALES * [1, 2, 2, 2], [1e-6, 1, 1, 1], "3 of 4 entries; autodiff"),
        ("bfloat16", SMALL, np.r_[1, 2 * SMALL[1:]], np.ones(1001), "1,000 of 1,001 entries; auto"),
        (
            "float16",
            HALVES,
            1.2 * HALVES,
            np.ones(20),
            "all 20 entries; autodiff / numerical = 1.2",
        ),
    ],
)
def test_wrong_entries_are_counted_whatever_their_size(dtype, weights, gradient, x, pattern):
    weights = jnp.asarray(weights, "float32")
    hand = lambda x: jnp.asarray(gradient, x.dtype)  # noqa: E731
    (leaf,) = check_gradient(
        lambda x: jnp.sum(weights * x), jnp.asarray(x, dtype), gradient=hand
    ).leaves
    assert leaf.verdict == "differs" and leaf.pattern.startswith(pattern)


def test_an_embedding_whose_rare_tokens_are_wrong_beside_a_frequent_one():
    twice = jax.custom_vjp(lambda x: x)
    rare = jnp.ones((50, 8)).at[0].set(0)
    twice.defvjp(lambda x: (x, None), lambda _, g: (g * (1 + rare).astype(g.dtype),))
    tokens = jnp.concatenate([jnp.zeros(100, int), jnp.arange(1, 50)])
    table = jnp.linspace(0.5, 1.5, 400).reshape(50, 8).astype(jnp.bfloat16)
    f = lambda table: jnp.sum(twice(table)[tokens].astype(jnp.float32))  # noqa: E731
    (leaf,) = check_gradient(f, table).leaves
    assert leaf.verdict == "differs" and leaf.pattern.startswith("392 of 400 entries")


def looped(x):
    """Without a reverse mode."""
    return jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]


def test_without_a_reverse_mode_the_reference_is_computed_forwards():
    x = jnp.linspace(0.1, 1, 90)
    hand = lambda x: jnp.cos(x).at[::3].multiply(1.1)  # noqa: E731
    (leaf,) = check_gradient(lambda x: jnp.sum(looped(x)), x, gradient=hand).leaves
    assert leaf.pattern == "30 of 90 entries; autodiff / numerical = 1.1 at each of them"


@pytest.mark.parametrize(
    ("factors", "pattern"),
    [
        ([1.0006, 1.0006, 1], "2 of 3 entries; autodiff / numerical = 1.0006 at each of them"),
        ([1.0006, 1.0004, 1], "2 of 3 entries"),
        ([0, np.nan, 1], "2 of 3 entries"),
    ],
)
def test_a_ratio_is_common_only_if_its_distance_from_1_is(factors, pattern):
    factors = jnp.array(factors, jnp.float32)
    x = jnp.array([1.0, 2.0, 3.0])
    leaf = check_gradient(lambda x: jnp.sum(x**2), x, gradient=lambda x: 2 * x * factors).leaves[0]
    assert leaf.pattern == pattern


def test_a_wrong_leaf_is_not_passed_over_once_enough_entries_are_named():
    points = [jnp.linspace(0.1, 1, 9), jnp.linspace(0.1, 1, 5000)]
    f = lambda p: sum(jnp.sum(looped(x)) for x in p)  # noqa: E731
    for factor in (1.005, 1.2):
        hand = lambda p, k=factor: [1.1 * jnp.cos(p[0]), jnp.cos(p[1]).at[5].multiply(k)]  # noqa: E731
        leaves = check_gradient(f, points, gradient=hand).leaves
        assert {leaf.verdict for leaf in leaves} == {"differs"}
        for leaf in leaves:
            assert leaf.entries or "entries were not checked" in leaf.pattern


def test_order_two_by_forward_mode():
    f = lambda x: jnp.sum(looped(x) * x)  # noqa: E731
    report = check_gradient(f, jnp.ones(4), order=2)
    assert report.verdict == "agrees" and report.order == 2


@pytest.mark.promotes
@pytest.mark.parametrize("epsilon", [1e-5, 1e-7])
def test_a_gradient_that_nearly_cancels_beside_others_has_lost_nothing(epsilon):
    """A scale before a normalisation, whose gradient is almost nothing: rounding explains it."""
    x, target = draw(0, 32, 16), draw(1, 32, 16)

    def f(p):
        h = p["scale"] * x
        h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + epsilon)
        return jnp.mean((h * p["gain"] - target) ** 2)

    assert check_gradient(f, {"scale": jnp.float32(1), "gain": draw(2, 16)}).verdict == "agrees"


def test_lost_digits_are_the_same_for_the_check_and_for_explain():
    """Another part of the function is larger, and has nothing to do with it."""
    f = lambda a, b, c: 1e6 * jnp.sum(a**2) + jnp.sum(((c + b) - c) ** 2)  # noqa: E731
    point = jnp.ones(3), jnp.array([0.012345, 0.02]), jnp.full(2, 1e4)
    report = check_gradient(f, *point, argnums=(0, 1))
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts == {"[0]": "agrees", "[1]": "imprecise"} and not report.ok
    found = explain(f, *point, argnums=(0, 1))
    assert [line.operation for line in found.digits_lost] == ["sub"]
    assert found.digits_lost == report.digits_lost


def test_few_digits_that_are_not_judged_are_told():
    f = lambda x: jnp.sum(jnp.sin(1e6 * x))  # noqa: E731
    leaf = check_gradient(f, jnp.array([0.7, 1.9])).leaves[0]
    assert leaf.verdict == "agrees" and leaf.own_dtype_digits < 2
    assert "digits are correct in float32" in leaf.hint


def test_a_report_is_true_if_it_is_ok():
    right, wrong = (lambda x: jnp.sum(jnp.sin(x))), by_name("square_without_its_factor")
    for judge in (check_gradient, explain):
        assert judge(right, jnp.ones(3)) and not judge(wrong[0], *wrong[1])
    assert repr(explain(right, jnp.ones(3))) == (
        "<Explanation of <lambda>: births 0, rules 0, digits_lost 0>"
    )
    assert repr(check_gradient(right, jnp.ones(3))) == (
        "<GradientReport of <lambda>: agrees, 1 leaf>"
    )
    twos = lambda *given: (2 * jnp.ones(3), jnp.ones(2))  # noqa: E731
    f = lambda x, y: jnp.sum(x) + jnp.sum(y)  # noqa: E731
    assert repr(check_gradient(f, jnp.ones(3), jnp.ones(2), argnums=(0, 1), gradient=twos)) == (
        "<GradientReport of <lambda>: differs, 2 leaves, worst [0]>"
    )


@pytest.mark.parametrize("digits, start", [(0.0, "no digit is"), (1.4, "only 1.4 digits are")])
def test_few_correct_digits_are_counted(digits, start):
    hint = leaf_module._hint_on_digits(digits, "float32")
    assert hint == f"{start} correct in float32; rounding explains the error"


def test_each_verdict_has_its_colour():
    colours = {verdict: painted(verdict, "")[:5] for verdict in Verdict}
    green, red, yellow = "\x1b[32m", "\x1b[31m", "\x1b[33m"
    assert [verdict for verdict in colours if colours[verdict] == green] == ["agrees"]
    assert [verdict for verdict in colours if colours[verdict] == yellow] == [
        "kink",
        "imprecise",
        "unresolved",
    ]
    assert set(colours.values()) == {green, red, yellow}


def test_a_gradient_of_0_whose_constants_are_rounded_is_0():
    f = lambda x: jnp.sum(jnp.stack([0.2, 0.8]) * x - jnp.stack([0.5, 0.5]) * x) + 20  # noqa: E731
    assert check_gradient(f, jnp.float32(1.5)).verdict == "agrees"


@pytest.mark.parametrize("seed", range(3))
def test_what_rounding_the_arguments_does_to_a_determinant_is_no_mistake(seed):
    u, v = np.random.default_rng(seed).normal(size=(2, 4))
    report = check_gradient(jnp.linalg.det, jnp.asarray(np.outer(u, v), "float32"))
    assert report.verdict == "agrees", str(report)


def test_a_forgotten_has_aux_is_named():
    f = lambda x: (jnp.sum(x**2), {"seen": x})  # noqa: E731
    assert any("`has_aux=True`" in note for note in check_gradient(f, jnp.ones(3)).notes)
    assert not check_gradient(f, jnp.ones(3), has_aux=True).notes
    assert not any("has_aux" in note for note in check_gradient(jnp.sin, jnp.ones(3)).notes)


def doubled(x):
    """The double of x, with a rule that is wrong by 1%."""
    f = jax.custom_vjp(lambda x: 2 * x)
    f.defvjp(lambda x: (2 * x, None), lambda _, g: (2.02 * g,))
    return f(x)


def test_references_are_read_and_not_changed(dtype):
    x, ref = jnp.arange(1.0, 4, dtype=dtype), jax.new_ref(jnp.ones(3, dtype))

    def f(x):
        ref[...] = ref[...] + 1
        return jnp.sum(x**2 * ref[...])

    assert check_gradient(f, x).verdict == "agrees"
    assert check_gradient(lambda x: f(doubled(x)), x).rules[0].name == "<lambda>"
    assert ref[...].tolist() == [1, 1, 1]


@pytest.mark.parametrize("use", [check_gradient, explain, jaxnn.numerical_grad])
def test_a_key_is_used_once_for_debug_key_reuse(use):
    f = lambda x, key: jnp.sum(x * jax.random.normal(key, x.shape))  # noqa: E731
    args = jnp.ones(3), jax.random.key(0)
    with jax.debug_key_reuse(True):
        assert np.all(use(f)(*args)) if use is jaxnn.numerical_grad else use(f, *args).ok


@pytest.mark.parametrize("x", [np.ones(3) * 1j, np.ones(300_000)], ids=["complex", "large"])
def test_strict_promotion_is_for_the_function_alone(x):
    x = jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        assert check_gradient(lambda x: jnp.sum(jnp.real(x * jnp.conj(x))), x).ok


def test_a_rule_of_the_new_form_is_named_with_its_line():
    if not hasattr(jax.config, "jax_custom_vjp3"):
        pytest.skip("this JAX has no custom_vjp3")
    try:
        jax.config.update("jax_custom_vjp3", True)
        (found,) = check_gradient(lambda x: jnp.sum(doubled(x)), jnp.ones(3)).rules
    finally:
        jax.config.update("jax_custom_vjp3", False)
    assert (found.kind, found.rule.function) == ("custom_vjp", "<lambda>")
    assert "lambda _, g: (2.02 * g,)" in found.rule.text


def test_the_rule_comes_first_then_the_call_and_the_argument_has_its_name():
    @jax.custom_vjp
    def layer(params, x, scale):
        return jnp.tanh(x @ params["W"] + params["b"]) * scale

    def backward(saved, g):
        params, x, scale = saved
        inner = lambda params, x: jnp.tanh(x @ params["W"] + params["b"]) * scale  # noqa: E731
        return (*jax.vjp(inner, params, x)[1](g), 1.3 * g)

    def forward(params, x, scale):
        return layer(params, x, scale), (params, x, scale)

    layer.defvjp(forward, backward)

    def loss(*args):
        return jnp.sum(layer(*args))

    args = {"W": jnp.eye(2), "b": jnp.ones(2)}, jnp.ones(2), jnp.ones(2)
    (found,) = check_gradient(loss, *args, argnums=(0, 1, 2)).rules
    assert found.path == "scale"
    first, quoted, off, call, line = str(found).splitlines()
    assert first.startswith("wrong rule: custom_vjp of `layer`, ") and "in backward" in first
    assert (quoted.strip(), off.split(": off")[0].strip()) == (
        "def backward(saved, g):",
        "argument `scale`",
    )
    assert call.strip().startswith("called at") and call.endswith("(loss)")
    assert line.strip() == "return jnp.sum(layer(*args))"


def test_many_leaves_that_agree_are_one_line():
    point = [jnp.full(3, float(k)) for k in range(1, 9)]
    f = lambda p: sum(jnp.sum(x**3) for x in p)  # noqa: E731
    report = check_gradient(f, point)
    first, rest = str(report).splitlines()
    assert first == "gradient of <lambda>: agrees"
    assert rest.startswith("8 leaves agree, to at least ") and rest.endswith(" digits")
    assert len(report.table().splitlines()) == 2 + len(point)
    wrong = lambda p: [3 * x**2 * (1 + 0.1 * (k == 2)) for k, x in enumerate(p)]  # noqa: E731
    text = str(check_gradient(f, point, gradient=wrong))
    assert "[0][2]" in text and "[0][3]" not in text and "7 more leaves agree" in text


def test_a_finding_is_shown_where_all_leaves_agree():
    @jax.custom_jvp
    def shifted(x):
        return x

    shifted.defjvp(lambda x, dx: (x[0] + 1, dx[0]))  # another value, and the right derivative
    point = [jnp.full(3, float(k)) for k in range(1, 9)]
    report = check_gradient(lambda p: sum(jnp.sum(shifted(x)) for x in p), point)
    assert {leaf.verdict for leaf in report.leaves} == {"agrees"} and report.rules
    assert "custom_jvp of `shifted`" in str(report)


def test_the_first_line_says_which_arguments_if_not_all():
    f = lambda x, y, n: jnp.sum(x * y) * n  # noqa: E731
    args = jnp.ones(2), jnp.ones(2), 3
    by = lambda argnums: str(check_gradient(f, *args, argnums=argnums)).splitlines()[0]  # noqa: E731
    assert by(0) == "gradient of <lambda> with respect to argument 0: agrees"
    assert by((0, 1)) == "gradient of <lambda>: agrees"


def test_the_options_of_assert_gradient_are_those_of_check_gradient_and_its_help_names_them():
    of_check = inspect.signature(check_gradient).parameters.values()
    options = [p.name for p in of_check if p.kind is p.KEYWORD_ONLY]
    assert options == list(Options.__annotations__)
    assert all(f"`{name}`" in assert_gradient.__doc__ for name in options)


def test_assert_gradient_checks_every_argument_unless_told():
    f = lambda x, y: jnp.sum(x) + jnp.sum(doubled(y))  # noqa: E731
    args = jnp.ones(2), jnp.ones(2)
    with pytest.raises(GradientError, match=r"\[1\] *2 *float32 *differs"):
        assert_gradient(f, *args)
    assert_gradient(f, *args, argnums=0)
    assert_gradient(f, *args, gradient=lambda x, y: jnp.ones(2))


def test_leaves_without_names_are_counted():
    @jax.tree_util.register_pytree_node_class
    class Pair:
        def __init__(self, a, b):
            self.a, self.b = a, b

        def tree_flatten(self):
            return (self.a, self.b), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    report = check_gradient(lambda p: jnp.sum(p.a * p.b), Pair(jnp.ones(2), jnp.ones(2)))
    assert [leaf.path for leaf in report.leaves] == ["[0][0]", "[0][1]"]


@pytest.mark.promotes
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_rounding_is_no_slope_of_a_function_that_never_changes(kind):
    weights = jnp.array([1.2, -0.7, 0.9])

    def constant(w):
        x = w * jnp.ones(3)
        return jnp.sum(weights * (x - x.mean()))

    x = jnp.array(1.0, kind)
    assert check_gradient(constant, x).verdict == "agrees"
    wrong = check_gradient(constant, x, gradient=lambda w: w * 1e-3)
    assert wrong.verdict == "differs" and wrong.leaves[0].bound < 1e-14


def test_a_small_wrong_slope_of_small_values_is_no_rounding():
    @jax.custom_vjp
    def small(x):
        return 1e-17 * jnp.sin(x)

    small.defvjp(lambda x: (small(x), x), lambda x, g: (2e-17 * g * jnp.cos(x),))
    for kind in (jnp.bfloat16, jnp.float32):
        x = jnp.array([0.3, 0.7], kind)
        assert check_gradient(lambda x: jnp.sum(small(x)), x).verdict == "differs"


def test_at_a_tie_the_users_rule_comes_before_jaxs():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (sine(x), x), lambda x, g: (1.13 * g * jnp.cos(x),))
    weights, which = jnp.array([0.126, -0.132, 0.64, 0.105]), np.array([0, 1, 2, 1])
    f = lambda w: jnp.sum(weights * sine(jnp.sort(w[which]) ** 2))  # noqa: E731
    names = [rule.name for rule in check_gradient(f, jnp.array([-1.0, -0.5, -0.5])).rules]
    assert names[0] == "sine" and "sort" in names[1:]


def test_the_page_shows_the_rule_and_not_its_caller():
    report = check_gradient(lambda x: jnp.sum(doubled(x)), jnp.ones(3))
    (here,) = re.findall("<span class='here'>(.*?)</span>", fragment(report))
    assert "2.02 * g" in here


@jax.custom_vjp
def leaky(v, i):
    return 0.9 * v + 0.1 * i


leaky.defvjp(lambda v, i: (leaky(v, i), None), lambda _, g: (0 * g, g))  # right: 0.9 g, 0.1 g


@pytest.mark.parametrize("steps", [1, 12, 50])
def test_a_loop_that_is_no_solver_does_not_hide_a_wrong_rule(steps):
    """Run further, the loop would converge to what the rule claims."""
    f = lambda i: jnp.sum(jax.lax.fori_loop(0, steps, lambda _, v: leaky(v, i), 0 * i))  # noqa: E731
    report = check_gradient(f, jnp.array([0.5, -1.0, 2.0]))
    assert report.verdict == "differs" and [rule.name for rule in report.rules] == ["leaky"]
    np.testing.assert_allclose(report.leaves[0].entries[0].numerical, 1 - 0.9**steps, rtol=1e-6)


def halved_by(steps, factor):
    """2 x = p, solved in so many steps; the rule is exact if the factor is 0.5."""

    @jax.custom_vjp
    def solve(p):
        return jax.lax.fori_loop(0, steps, lambda _, x: x - 0.1 * (2 * x - p), 0 * p)

    solve.defvjp(lambda p: (solve(p), None), lambda _, g: (g * factor,))
    return solve


@pytest.mark.promotes
@pytest.mark.parametrize("steps, verdict", [(10, "unresolved"), (30, "agrees"), (50, "agrees")])
def test_an_exact_rule_of_a_solver_with_so_many_steps_is_not_accused(steps, verdict):
    report = check_gradient(lambda p: jnp.sum(halved_by(steps, 0.5)(p)), jnp.array([0.5, 1.0]))
    assert report.leaves[0].verdict == verdict and not report.rules


def _accelerated(f, a, x):
    """Gradient descent from `x` with momentum, whose line search allows for rounding in float32:
    its steps grow without end once it has converged, so it cannot be run further.
    """

    def search(y, size):
        value, slope = jax.value_and_grad(f)(y, a)
        least = lambda s: value - 0.5 * s * slope @ slope + jnp.finfo(jnp.float32).eps  # noqa: E731
        too_far = lambda s: f(y - s * slope, a) > least(s)  # noqa: E731
        step = lambda i, s: jnp.where(too_far(s), 0.5 * s, s)  # noqa: E731
        size = jax.lax.fori_loop(0, 15, step, size)
        return y - size * slope, size

    def step(carry):
        count, x, y, size, t, _ = carry
        new, size = search(y, size)
        after = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        moved = new - x
        error = jnp.linalg.norm(moved) / size
        return count + 1, new, new + (t - 1) / after * moved, 2 * size, after, error

    goes_on = lambda carry: (carry[0] < 500) & (carry[-1] > 1e-6)  # noqa: E731
    one = jnp.ones((), a.dtype)
    start = 0, x, x, one, one, one
    return jax.lax.while_loop(goes_on, step, start)[1]


@pytest.mark.promotes
@pytest.mark.parametrize("off, verdict", [(1.0, "unresolved"), (1.3, "differs")])
def test_a_rule_that_only_fine_steps_contradict_is_right_to_its_solvers_tolerance(off, verdict):
    f = lambda x, a: jnp.sum((x - a) ** 2) + 0.3 * jnp.sum(jnp.exp(x) * a)  # noqa: E731

    @jax.custom_jvp
    def solve(a):
        return _accelerated(f, a, jnp.zeros_like(a))

    @solve.defjvp
    def rule(primals, tangents):
        (a,), (t,) = primals, tangents
        x = solve(a)
        e = 0.3 * jnp.exp(x)
        return x, off * t * (2 - e) / (2 + a * e)

    report = check_gradient(lambda a: solve(a)[2], jnp.array([0.2, 0.5, 0.9]))
    assert report.verdict == verdict and bool(report.rules) == (verdict == "differs")


def cubic_root(y, slope, newton):
    """The x with slope * x + x**3 / 10 = y, by Newton's method or by bisection."""
    residual = lambda x: slope * x + x**3 / 10 - y  # noqa: E731

    def step(carry):
        x, width, _, count = carry
        if newton:
            return x - residual(x) / (slope + 0.3 * x**2), width, residual(x), count + 1
        x -= jnp.sign(residual(x)) * width
        has_passed = jnp.sign(residual(x)) != jnp.sign(carry[2])
        return x, jnp.where(has_passed, width / 2, width), residual(x), count + 1

    goes_on = lambda carry: (abs(carry[2]) > (1e-2 if newton else 1e-5)) & (carry[3] < 100)  # noqa: E731
    start = jnp.float32(2), jnp.float32(1), residual(jnp.float32(2)), 0
    return lax.while_loop(goes_on, step, start)[0]


SOLVED_IN = {
    "carry": lambda root, y, a: lax.scan(lambda y, a: (root(y, a), None), y, a)[0],
    "map": lambda root, y, a: jnp.sum(lax.map(lambda a: root(y, a), a)),
    "cond": lambda root, y, a: lax.cond(y > 0, root, jnp.multiply, y, a[0]),
    "loop": lambda root, y, a: lax.fori_loop(0, 2, lambda _, y: root(y, a[0]), y) + a[1],
    "call": lambda root, y, a: root(root(y, a[0]), a[1]),
}


@pytest.mark.parametrize("newton", [True, False])
@pytest.mark.parametrize("solve", SOLVED_IN.values(), ids=SOLVED_IN)
@pytest.mark.parametrize("off", [1.0, 2.0])
def test_a_rule_around_a_solver_is_as_right_in_a_loop_as_outside(solve, newton, off):
    root = jax.custom_jvp(functools.partial(cubic_root, newton=newton))

    @root.defjvp
    def rule(primals, tangents):
        (y, a), (dy, da) = primals, tangents
        x = root(y, a)
        return x, off * (dy - x * da) / (a + 0.3 * x**2)

    report = check_gradient(lambda a: solve(root, jnp.float32(1.3), a), jnp.array([1.0, 0.8]))
    if off == 1:  # the slope of a bisection is 0
        assert not report.rules and report.verdict in ("agrees", "unresolved"), str(report)
    else:
        assert report.verdict == "differs"


@pytest.mark.promotes
@pytest.mark.parametrize("off, verdict", [(1.0, "unresolved"), (2.0, "differs")])
def test_a_rule_around_a_solver_whose_values_are_rough_is_not_accused(off, verdict):
    """They jump where the solver takes another path, and have another slope between the jumps."""
    x, y = (np.random.default_rng(0).normal(size=shape) for shape in ((20, 4), 20))
    f = lambda w, a: jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.exp(a) * jnp.sum(w**2)  # noqa: E731

    @jax.custom_jvp
    def solve(a):
        return _accelerated(f, a, jnp.zeros(4))

    @solve.defjvp
    def rule(primals, tangents):
        (a,), (t,) = primals, tangents
        w = solve(a)
        inner = x.T @ x / 10 + jnp.exp(a) * jnp.eye(4)
        return w, -off * t * jnp.exp(a) * jnp.linalg.solve(inner, w)

    report = check_gradient(lambda a: jnp.sum(jnp.sin(solve(a))), jnp.float32(0.3))
    assert report.verdict == verdict and not report.rules


def test_a_solver_that_never_ends_at_another_point_has_no_value_there():
    """The value hides the root's slope, so the check moves far away, where the solver's tolerance
    is below a rounding.
    """

    @jax.custom_jvp
    def root(a):
        goes_on = lambda s: (abs(s[0] ** 2 - a) > 1e-6) & (s[1] < 2**18)  # noqa: E731
        step = lambda s: ((s[0] + a / s[0]) / 2, s[1] + 1)  # noqa: E731
        x, steps = lax.while_loop(goes_on, step, (a, 0))
        return jnp.where(steps < 2**18, x, 3 * a)

    root.defjvp(lambda primals, tangents: (root(*primals), tangents[0] / (2 * root(*primals))))
    (leaf,) = check_gradient(lambda a: 1e-9 * root(a) + 1e9, jnp.float32(2)).leaves
    assert leaf.verdict == "agrees" and "the smallest slope detectable" in leaf.hint


@pytest.mark.parametrize("repeated", [False, True], ids=["in NumPy", "compiled"])
def test_a_number_below_the_smallest_normal_one_counts_everywhere(repeated):
    """XLA takes it for 0 where it widens it to float64, NumPy does not."""
    again = lambda x: lax.fori_loop(0, 3, lambda _, y: y / 2, x) if repeated else x  # noqa: E731
    f = lambda x: jnp.sum(again(x) * jnp.array([1e38, 1.0]))  # noqa: E731
    report = check_gradient(f, jnp.array([1e-40, 2.0]))
    assert report.verdict == "agrees" and not report.notes


@pytest.mark.promotes
def test_one_loose_solver_does_not_excuse_the_wrong_rule_of_another():
    loose, wrong = halved_by(22, 0.5), halved_by(80, 0.501)
    p = jnp.array([0.5, 1.0])
    report = check_gradient(lambda a, b: jnp.sum(loose(a) + wrong(b)), p, p, argnums=(0, 1))
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts == {"[0]": "agrees", "[1]": "differs"} and len(report.rules) == 1


@pytest.mark.parametrize("gap", [38.0, 45.0, 80.0])
def test_a_loss_that_has_rounded_to_0_hides_a_gradient_and_does_not_contradict_it(gap):
    def loss(w):
        return -jnp.mean(jnp.diag(jax.nn.log_softmax(w)))

    report = check_gradient(loss, gap * jnp.eye(3))
    assert report.verdict == "agrees" and "the smallest slope detectable" in report.leaves[0].hint
    doubled = lambda w: 2 * jax.grad(loss)(w) + 1e-3  # noqa: E731
    assert not check_gradient(loss, gap * jnp.eye(3), gradient=doubled).ok


@pytest.mark.parametrize("scale", [1e-200, 1e155, 1e200])
def test_claims_whose_squares_leave_the_range_of_float64_are_compared(scale):
    with jax.enable_x64(True):
        x = jnp.array([0.3, -0.4, 0.5])
        f = lambda x: scale * jnp.sum(jnp.sin(x))  # noqa: E731
        wrong = lambda x: -scale * jnp.cos(x)  # noqa: E731
        assert check_gradient(f, x).verdict == "agrees"
        assert check_gradient(f, x, gradient=wrong).verdict == "differs"


def test_where_cancelled_terms_are_constant_over_small_steps_nothing_is_accused():
    """The cosine of 1e-5 does not change over steps below 1e-11, but its cancellation does."""
    with jax.enable_x64(True):
        report = check_gradient(lambda x: (1 - jnp.cos(x)) / x**2, jnp.float64(1e-5))
    assert report.verdict == "unresolved"


@pytest.mark.parametrize(
    "f",
    [lambda x: x**3, lambda x: jax.nn.relu(x) ** 2, lambda x: x - jnp.sin(x)],
    ids=["cube", "relu squared", "sine"],
)
def test_a_slope_that_is_zero_with_the_value_is_seen(f):
    """The quotients there differ by truncation alone, which is no noise."""
    assert check_gradient(f, jnp.float32(0)).verdict == "agrees"
    for claim in (1e-5, 1.0):
        wrong = lambda x: 0 * x + claim  # noqa: B023, E731
        assert check_gradient(f, jnp.float32(0), gradient=wrong).verdict == "differs"


def _attention(p, x):
    keys = x @ p["k"] + p["bias"]  # of no effect: it adds the same to all that a softmax compares
    return jnp.mean((jax.nn.softmax(x @ p["q"] @ keys.T) @ x @ p["v"]) ** 2)


def _batch_norm(p, x):
    h = x @ p["q"] + p["bias"]
    normal = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
    return jnp.mean(jnp.tanh(normal * p["v"][0] + p["k"][0]) ** 2)


def _likelihood(p, x):
    logits = x @ p["q"] @ x.T + p["bias"][0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])


@pytest.mark.promotes
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("f", [_attention, _batch_norm, _likelihood])
def test_a_bias_that_cancels_has_the_gradient_0(f, dtype, scale):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(3)
        draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
        p = {name: draw(4, 3) for name in "kv"} | {"q": draw(4, 4 if f is _likelihood else 3)}
        report = check_gradient(f, p | {"bias": (scale * draw(3)).astype(dtype)}, draw(6, 4))
    (leaf,) = [leaf for leaf in report.leaves if "bias" in leaf.path]
    assert report.ok and leaf.verdict == "agrees"
    assert not leaf.pattern and not leaf.entries and leaf.hint


def test_a_function_that_is_only_rounding_error_has_the_gradient_0():
    given = random_programs.program(212)  # 1e-15 in float64, 0 in float16
    with jax.enable_x64(given.wide):
        report = check_gradient(given.f, *given.args, argnums=given.argnums)
    assert report.ok and not report.notes


def test_two_roundings_of_zero_are_no_other_value():
    with jax.enable_x64(True):
        one = lambda x: jnp.sum(jnp.cos(x) ** 2) + jnp.sum(jnp.sin(x) ** 2)  # noqa: E731
        for n in (2, 10, 50):
            report = check_gradient(jax.grad(one), jnp.ones(n), modes="fwd")
            assert report.ok and len(report.notes) == 1, report  # on the projection


def test_where_only_the_dtype_is_to_blame_entries_are_compared_with_float64():
    flat = lambda x: jnp.sum((1 - jnp.cos(x)) / x**2)  # noqa: E731
    report = check_gradient(flat, jnp.array([0.1, 0.2, 0.3], "float16"))
    assert report.verdict == "differs" and ", float64 " in str(report)
    assert all(entry.verdict != "agrees" for entry in report.leaves[0].entries)


def test_a_wrong_rule_beside_a_value_that_hides_it_is_found_by_its_own_values():
    sine = rule(jnp.sin, lambda args, g: (1.1 * g * jnp.cos(*args),))
    f = lambda a, b: 1e12 * jnp.sum(a**2) + jnp.sum(sine(b))  # noqa: E731
    x = jnp.array([0.3, -0.7, 1.9, -2.4])
    report = check_gradient(f, x, x + 0.1, argnums=(0, 1))
    assert report.verdict == "differs" and len(report.rules) == 1
    assert {leaf.path: str(leaf.verdict) for leaf in report.leaves}["[0]"] == "agrees"
