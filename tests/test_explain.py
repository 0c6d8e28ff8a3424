"""The line: where NaN is born, which rule is wrong, where digits go."""

import functools
import importlib
import json
import os
import sys
import time

import blame_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.blame import outcome
from jax import lax
from jax.custom_derivatives import linear_call
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from rule_mutants import FUNCTIONS, mutants, mutated
from slow import slow_but
from versions import since

from jaxnn import (
    GradientError,
    assert_gradient,
    check_gradient,
    explain,
    softmax_cross_entropy,
    watching,
)
from jaxnn.checking import precision
from jaxnn.checking.findings import annotations
from jaxnn.checking.further import ENDING, ending_if_moved
from jaxnn.checking.nan_causes import usual_cause
from jaxnn.checking.questions import digits as question, rules
from jaxnn.checking.tape.walk import Tape, seeds_of
from jaxnn.numerical.float64 import Evaluation

CASES = [pytest.param(case, id=case.name) for case in blame_cases.CASES]


def test_there_are_twenty_cases_for_each_question():
    questions = [case.question for case in blame_cases.CASES]
    assert all(questions.count(question) >= 20 for question in ("nan", "rule", "digits"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_line_is_named_first(case):
    _, word, lines, _ = outcome(case)
    assert word == "found", lines


def by_name(name):
    return next(case for case in blame_cases.CASES if case.name == name).make()


@pytest.mark.promotes
def test_where_nan_is_born_is_said_with_its_cure():
    f, args = by_name("root_of_a_variance_that_is_0")
    report = check_gradient(f, *args)
    (birth,) = report.births
    assert (birth.operation, birth.count, birth.total) == ("sqrt", 3, 3)
    assert birth.line.text.startswith("spread = ") and birth.line.function.endswith("f")
    assert "slope at 0 is infinite" in birth.what and "jnp.where" in birth.cure
    assert f"blame_cases.py:{birth.line.line}" in str(report)


def of_values(x, y):
    return jnp.sum(x * y) + jnp.sum(jnp.cos(x))


NAN = jnp.array([1.0, jnp.nan, jnp.nan])
CAME_IN = {
    "an argument that is held": (of_values, (jnp.ones(3), NAN), 0, "argument [1]"),
    "one that is differentiated": (of_values, (NAN, jnp.ones(3)), 0, "argument [0]"),
    "a leaf": (lambda p: jnp.sum(p["w"] ** 2), ({"w": NAN},), 0, "argument [0]['w']"),
    "a constant": (lambda x: jnp.sum(x * NAN), (jnp.ones(3),), 0, "a constant"),
    "beside a mask": (
        lambda x: jnp.sum(jnp.exp(x * NAN + jnp.array([0.0, -jnp.inf, 0.0]))),
        (jnp.ones(3),),
        0,
        "a constant",
    ),
    "infinity": (lambda x: jnp.sum(x * jnp.inf), (jnp.ones(3),), 0, "a constant"),
}


@pytest.mark.parametrize("f, args, argnums, told", CAME_IN.values(), ids=CAME_IN)
def test_what_is_not_finite_from_the_start_is_said_to_have_come_in(f, args, argnums, told):
    found = explain(f, *args, argnums=argnums)
    (birth,) = found.births
    kind, count = ("NaN", (2, 3)) if birth.total > 1 else ("infinity", (1, 1))
    expected = f"{told}, an input of `{birth.operation}`, contains {kind}"
    assert not found.ok and (birth.what, (birth.count, birth.total)) == (expected, count)
    assert str(found).splitlines()[1].startswith("passed in at tests/test_explain.py")
    assert expected in str(check_gradient(f, *args, argnums=argnums))


@pytest.mark.parametrize("power", [lambda x: x**3, lambda x: x**2, jnp.square])
def test_a_power_that_overflows_is_no_power_of_0(power):
    (birth, *_) = explain(lambda x: jnp.sum(power(x)), jnp.full(2, 3e30)).births
    assert "it overflows" in birth.what and "scale" in birth.cure


def test_a_negative_power_of_0_is_told():
    (birth, *_) = explain(lambda x: jnp.sum(x**-2), jnp.zeros(2)).births
    assert "a negative power of 0" in birth.what and "jnp.where" in birth.cure


@jax.custom_vjp
def off_by_a_tenth(x):
    return jnp.sin(x)


def backward(x, ct):
    return (1.1 * jnp.cos(x) * ct,)


off_by_a_tenth.defvjp(lambda x: (off_by_a_tenth(x), x), backward)


@jax.custom_jvp
def twice_as_steep(x):
    return jnp.sin(x)


@twice_as_steep.defjvp
def steep(primals, tangents):
    return twice_as_steep(*primals), 2 * jnp.cos(*primals) * tangents[0]


NESTED = {
    "plainly": lambda f: f,
    "vmap": jax.vmap,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": lambda f: lambda x: lax.scan(lambda c, _: (f(c), None), x, None, length=3)[0],
    "scan over it": lambda f: lambda x: lax.scan(lambda c, y: (c + f(y), None), 0.0, x)[0],
    "fori_loop": lambda f: lambda x: lax.fori_loop(0, 3, lambda _, c: f(c), x),
    "map": lambda f: lambda x: lax.map(lambda y: f(y), x),
    "cond": lambda f: lambda x: lax.cond(x[0] < 0, lambda y: f(y), jnp.sin, x),
    "checkpoint in scan": lambda f: NESTED["scan"](jax.checkpoint(f)),
    "scan in vmap": lambda f: jax.vmap(NESTED["scan"](f)),
}


@pytest.mark.parametrize("nested", slow_but(["plainly", "vmap", "scan"], NESTED))
@pytest.mark.parametrize("f, rule", [(off_by_a_tenth, backward), (twice_as_steep, steep)])
def test_a_rule_is_named_wherever_it_is_called(f, rule, nested):
    g = NESTED[nested](f)
    (found,) = check_gradient(lambda x: jnp.sum(g(x)), jnp.linspace(-1.0, 1.0, 4)).rules
    assert found.name == f.__name__ and found.line.file.endswith("test_explain.py")
    assert found.where.endswith(f" ({rule.__name__})")
    assert found.rule.text.startswith(f"def {rule.__name__}(")  # not its decorator


X = jnp.ones((2, 3))


@pytest.mark.parametrize(
    "f, w, said",
    [
        (lambda w: softmax_cross_entropy(jnp.log(X @ w), jnp.array([0, 1])), -1.0, "`log`"),
        (lambda w: jnp.sum(jnp.where(X[:, :1] > 0, jnp.log(X @ w), jnp.nan)), -1.0, "`log`"),
        (lambda w: jnp.sum(jnp.where(X[:, :1] > 9, jnp.log(X @ w), jnp.nan)), -1.0, "a constant"),
        (lambda w: softmax_cross_entropy(X @ w, jnp.array([0, 1])), jnp.nan, "argument [0]"),
    ],
)
def test_a_constant_is_blamed_where_it_was_chosen_alone(f, w, said):
    (birth,) = explain(f, jnp.full((3, 4), w)).births
    assert said in birth.what


@pytest.mark.parametrize(
    "f, value, slope",
    [
        (jnp.sqrt, "the square root of a negative number", "its slope at 0 is infinite"),
        (lax.rsqrt, "one over the square root of 0", "its slope at 0 is infinite"),
        (jnp.cbrt, "", "its slope at 0 is infinite"),
        (jnp.log, "the logarithm of 0", "its slope at 0 is infinite"),
        (jnp.log1p, "the logarithm of 0", "its slope at -1 is infinite"),
        (lambda x: 1 / x, "a division by 0", "where it divides by 0"),
        (lambda x: x**0.3, "an overflow, or a power of 0", "for an exponent below 1"),
        (lambda x: x**-2, "a negative power of 0", "a negative power of 0"),
        (lambda x: x**3, "it overflows", "it overflows"),
        (jnp.exp, "it overflows", "it overflows"),
        (lax.acos, "an argument outside -1 to 1", "its slope at -1 and 1 is infinite"),
        (lax.acosh, "an argument below 1", "its slope at 1 is infinite"),
        (lax.atanh, "an argument of -1 or 1, or beyond", "its slope at -1 and 1 is infinite"),
        (
            lax.lgamma,
            "an argument of 0 or a negative integer",
            "no slope at 0 and negative integers",
        ),
        (lambda x: x - 1, "infinity minus infinity", ""),
        (lambda x: 2 * x, "0 times infinity", ""),
    ],
)
def test_each_operation_has_its_own_reason(f, value, slope):
    *_, eqn = jax.make_jaxpr(f)(jnp.eye(2)).eqns
    found = usual_cause(eqn)[:2]
    assert value in found[0] and slope in found[1]
    assert [bool(words) for words in found] == [bool(value), bool(slope)]


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["root_of_a_variance_that_is_0", "in_a_loop_within_a_loop"])
def test_a_second_explanation_compiles_nothing(name, compilations):
    f, args = by_name(name)
    for _ in range(2):
        before, found = compilations(), explain(f, *args).births
    assert found and compilations() == before


def test_masking_afterwards_is_said_not_to_help():
    f, args = by_name("division_in_the_branch_not_taken")
    assert "0 times infinity" in str(explain(f, *args))


def test_infinity_is_named_where_it_began_not_where_it_becomes_nan():
    (birth,) = explain(lambda x: jnp.sum(1 / x - 1 / x**2), jnp.zeros(2)).births
    assert birth.operation == "div"


def test_the_iteration_is_named():
    f, args = by_name("in_a_loop_within_a_loop")
    (birth,) = explain(f, *args).births
    assert birth.iteration == "iteration 1, iteration 2"


def test_a_slope_in_a_reversed_loop_is_named_with_its_iteration():
    """The carry begins as a constant, and is 0.5, 0, and 1 after the last row, the second, ..."""

    def roots(x):
        return lax.scan(lambda c, y: (jnp.sqrt(c - y), None), 1.0, x, reverse=True)[0]

    (birth,) = explain(roots, jnp.array([-1.0, 0.5, 0.75])).births
    assert birth.iteration == "iteration 1" and "slope at 0 is infinite" in birth.what


def test_a_value_that_goes_bad_in_a_loop_is_born_after_a_slope_that_was_infinite():
    def roots(x):  # of 2: 1, 0, and then of -1
        return jnp.sum(lax.scan(lambda c, _: (jnp.sqrt(c - 1), None), x, None, length=4)[0])

    (birth,) = explain(roots, jnp.array([2.0, 2.0])).births
    assert birth.iteration == "iteration 2" and "the square root of a negative number" in birth.what


def test_a_wrong_rule_is_told_with_its_argument_and_its_size():
    f, args = by_name("the_second_of_two_arguments")
    (rule,) = check_gradient(f, *args, argnums=(0, 1)).rules
    assert (rule.kind, rule.argument) == ("custom_vjp", 1)
    assert rule.difference == pytest.approx(0.02, rel=0.02)


def test_of_a_wrong_rule_the_entry_is_named_that_is_off_by_most():
    twice = jax.custom_vjp(lambda x: 2 * x)
    twice.defvjp(
        lambda x: (2 * x, None),
        lambda _, g: ((2 * g).at[1, 0].multiply(1.3).at[0, 1].multiply(7.4),),
    )
    f = lambda x: jnp.sum(twice(x) * jnp.array([[1.0, 1e-3], [5.0, 2.0]]))  # noqa: E731
    (rule,) = explain(f, jnp.ones((2, 2))).rules  # not [0, 1], off by 640% of nearly nothing
    assert rule.entry == (1, 0) and rule.difference == pytest.approx(0.3)
    assert "argument `x`: off by 30%, at [1, 0]" in str(rule)


def test_right_rules_are_not_accused():
    f = lambda x: jnp.sum(jax.nn.softmax(jnp.sin(x)) ** 2) + jnp.linalg.norm(x)  # noqa: E731
    found = explain(f, jnp.arange(1.0, 5.0))
    assert found.ok and found.exit_code == 0 and "no wrong rule found" in str(found)


def test_right_rules_of_complex_numbers_are_not_accused():
    f = lambda z: jnp.sum(jnp.abs(jnp.exp(z) * z**2 + 1j) ** 2)  # noqa: E731
    found = explain(f, jnp.array([0.5 + 0.3j, -0.2 + 0.7j]))
    assert found.ok, str(found)


def test_a_right_complex_rule_is_not_accused_beside_a_wrong_one():
    body = lambda z: z * jnp.exp(lax.complex(jnp.real(z), jnp.imag(z)) ** 2)  # noqa: E731
    spin = jax.custom_vjp(body)
    spin.defvjp(lambda z: (body(z), z), lambda z, g: jax.vjp(body, z)[1](g))
    double = jax.custom_vjp(lambda x: 2 * x)
    double.defvjp(lambda x: (2 * x, None), lambda _, g: (3 * g,))
    z = lax.complex(jnp.array([0.3, -0.7]), jnp.array([0.2, 0.5]))
    f = lambda z: jnp.sum(jnp.abs(spin(z)) * double(jnp.real(z)))  # noqa: E731
    report = check_gradient(f, z)
    assert report.verdict == "differs" and len(report.rules) == 1
    assert "double.defvjp" in report.rules[0].rule.text


@pytest.mark.parametrize("off, verdict", [(0.009, "agrees"), (0.011, "differs")])
def test_ten_shakes_explain_an_error_and_more_do_not(off, verdict):
    own, wide = np.array([1 + off]), np.array([1.0])
    leaf = precision._Leaf(own, wide, np.ones(1), (1,), np.dtype("float32"))
    shaken = lambda: (np.array([1e-3]), 0.0)  # noqa: E731
    assert leaf.lost(leaf.epsilon, 1.0, 1.0, shaken).verdict == verdict


@pytest.mark.parametrize("own, digits", [(0.8, 0.699), (3.0, 0.176), (1.01, 2.004)])
def test_what_is_left_is_counted_beside_the_larger_number(own, digits):
    leaf = precision._Leaf(np.array([own]), np.array([1.0]), np.ones(1), (1,), np.dtype("float32"))
    lost = precision._Lost("differs", np.array([0]), np.zeros(1))
    assert leaf.what_is_left(lost)[1] == pytest.approx(digits, abs=1e-3)


def test_a_place_is_named_for_a_quarter_of_the_loss():
    left = [1.0, 0.9, 0.2, 0.0].__getitem__
    assert question._drops(left, 0, 3, question.SHARE * left(0)) == [(1, pytest.approx(0.7))]


def test_what_rounding_the_arguments_costs_is_no_loss():
    f, args = blame_cases.distance_of_far_points()
    assert check_gradient(f, *args, argnums=(0, 1)).verdict == "agrees"
    assert not explain(f, *args).digits_lost


def test_digits_are_counted_before_and_after():
    f, args = by_name("one_minus_cosine")
    report = check_gradient(f, *args)
    (leaf,), (line, *_) = report.leaves, report.digits_lost
    assert leaf.verdict == "imprecise" and leaf.own_dtype_digits < 2 and not report.ok
    assert line.operation == "sub" and "share" in line.what
    assert line.what == "its operands share 6 digits"  # 1 and 1 - x**2 / 2, x 1e-3 and 2e-3
    assert line.after < 3 < 6 < line.before and 0 < line.share <= 1


@pytest.mark.parametrize("digits, ok", [(None, True), (2, True), (4, False)])
def test_an_imprecise_gradient_passes_with_the_digits_that_are_asked_for(digits, ok):
    f, args = by_name("a_backward_pass_in_bfloat16")
    report = check_gradient(f, *args, digits=digits)
    assert report.verdict == "imprecise" and report.ok == ok
    assert report.exit_code == (0 if ok else 1)


def test_digits_that_were_asked_for_and_are_missing_are_said():
    variance = lambda x: jnp.mean(x**2) - jnp.mean(x) ** 2  # noqa: E731
    point = 1e6 + jnp.linspace(0, 1, 5)
    assert check_gradient(variance, point).verdict == "agrees"
    with pytest.raises(
        GradientError, match="not ok: fewer than 5 correct digits in the leaf's own dtype: .0."
    ):
        assert_gradient(variance, point, digits=5)


def test_a_line_that_loses_nothing_itself_is_not_said_to():
    (line, *_) = explain(lambda v: jnp.sum(jnp.log1p(v) - v), jnp.array([1e-6])).digits_lost
    assert round(line.before) == round(line.after) and "later operations amplify" in str(line)


def test_what_is_ill_conditioned_is_not_imprecise():
    """A few roundings of the point explain the loss: the function is to blame, not its program."""
    report = check_gradient(lambda x: jnp.sum(jnp.sin(1e5 * x)), jnp.array([0.7, 1.9]))
    assert report.verdict == "agrees" and report.leaves[0].own_dtype_digits < 4


def test_an_entry_beyond_the_dtypes_reach_is_wrong_however_small_beside_its_neighbours():
    hold = jax.custom_vjp(lambda x: x)
    hold.defvjp(lambda x: (x, None), lambda _, g: (g + 1.5e-4 * jnp.roll(g, 1),))
    weights = jnp.array([1.0, 1.0, 1.0, 0.01])
    report = check_gradient(lambda x: jnp.sum(hold(x) * weights), jnp.ones(4))
    assert report.verdict == "differs" and report.rules[0].kind == "custom_vjp"


@pytest.mark.parametrize("factor, told", [(3.0, "[1] autodiff has 6 and"), (1 + 1e-5, None)])
def test_an_error_below_the_rounding_of_a_far_larger_entry_is_said(factor, told):
    """float32 cannot show the second entry beside the first, but float64 can."""
    scales, off = jnp.array([1e7, 1.0, 3.0]), jnp.array([1.0, factor, 1.0])
    f = jax.custom_vjp(lambda x: jnp.sum(scales * x**2))
    f.defvjp(lambda x: (f(x), x), lambda x, g: (2 * g * scales * off * x,))
    report = check_gradient(f, jnp.array([1.0, 1.0, 2.0]))
    assert report.verdict == "agrees"
    assert (told in report.leaves[0].hint) if told else not report.leaves[0].hint


@pytest.mark.parametrize("entries", [[1e6, 1e-6], [1e6, 1e-2]])
def test_a_wrong_entry_that_is_the_largest_is_no_rounding_error_of_a_large_argument(entries):
    square = jax.custom_jvp(lambda x: x**2)
    square.defjvp(lambda x, t: (x[0] ** 2, x[0] * t[0]))
    f = lambda x: jnp.sin(x[0] - entries[0]) + square(jnp.sin(x[1] / entries[1]))  # noqa: E731
    report = check_gradient(f, jnp.array(entries))
    assert report.verdict == "differs" and report.leaves[0].entries[0].index == (1,)


@pytest.mark.parametrize("factor", [1.0001, 1.005])
@pytest.mark.parametrize("solve", [jnp.linalg.solve, lambda a, b: jnp.linalg.inv(a) @ b])
def test_a_factorisation_is_no_iteration_so_a_rule_around_it_is_held_to_its_digits(solve, factor):
    rule = jax.custom_vjp(solve)

    def backward(given, ct):
        of_a, of_b = jax.vjp(solve, *given)[1](ct)
        return of_a, factor * of_b

    rule.defvjp(lambda a, b: (solve(a, b), (a, b)), backward)
    a, b = 5 * jnp.eye(3) + jnp.arange(9.0).reshape(3, 3) / 9, jnp.arange(1.0, 4.0)
    f = lambda a, b: jnp.sum(jnp.sin(rule(a, b)))  # noqa: E731
    report = check_gradient(f, a, b, argnums=(0, 1))
    assert report.verdict == "differs" and len(report.rules) == 1
    assert check_gradient(lambda a, b: jnp.sum(jnp.sin(solve(a, b))), a, b).verdict == "agrees"


def test_of_two_wrong_lambdas_in_a_line_both_are_named():
    once, twice = jax.custom_vjp(lambda x: x**2), jax.custom_vjp(lambda x: x**3)
    once.defvjp(lambda x: (x**2, x), lambda x, g: (3 * g * x,))
    twice.defvjp(lambda x: (x**3, x), lambda x, g: (g * x**2,))
    rules = explain(lambda x: jnp.sum(once(x) + twice(x)), jnp.array([1.0, 2.0])).rules
    assert sorted(round(rule.difference, 2) for rule in rules) == [0.5, 0.67]


def test_a_safe_argument_is_not_all_that_helps_where_no_value_is_chosen():
    length = lambda x: jnp.sqrt(jnp.sum(x**2))  # noqa: E731
    told = str(explain(length, jnp.zeros(2)))
    assert told.endswith("where(x > 0, x, 1))`,\n    and select the value with another `jnp.where`")
    told = str(explain(lambda x: jnp.where(x[0] > 0, length(x), 0.0), jnp.zeros(2)))
    assert "masking it afterwards" in told and "another" not in told


@pytest.mark.parametrize("chosen, masked", [((False, False), True), ((True, False), False)])
def test_what_is_not_finite_is_masked_if_none_of_it_is_chosen(chosen, masked):
    f = lambda x: jnp.sum(jnp.where(jnp.array(chosen), jnp.sqrt(x), 0.0))  # noqa: E731
    assert [birth.masked for birth in explain(f, jnp.zeros(2)).births] == [masked]


def test_a_rule_decides_what_the_slope_lets_pass():
    """Off by less than half the digits, but by more than float32 explains."""
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda xs, ts: (jnp.sin(xs[0]), (1 + 1e-4) * jnp.cos(xs[0]) * ts[0]))
    report = check_gradient(lambda x: jnp.sum(sine(x)), jnp.arange(1.0, 4.0))
    assert report.verdict == "differs" and report.rules[0].difference == pytest.approx(1e-4, 0.05)
    assert {entry.verdict for entry in report.leaves[0].entries} <= {"differs"}


def test_a_rule_that_decides_leaves_the_entries_that_it_gets_wrong():
    double = jax.custom_vjp(lambda x: 2 * x)
    double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g.at[2].multiply(1 - 1e-4),))
    (leaf,) = check_gradient(lambda x: jnp.sum(jnp.tanh(double(x))), jnp.linspace(0, 1, 5)).leaves
    assert (
        leaf.verdict == "differs"
        and "a derivative rule that this leaf's gradient uses" in leaf.hint
    )
    assert [(e.index, e.verdict) for e in leaf.entries] == [((2,), "differs")]


def test_the_report_is_plain_data_with_its_lines():
    f, args = by_name("a_sign")
    told = json.loads(json.dumps(check_gradient(f, *args).to_dict()))
    assert told["rules"][0]["line"]["text"].endswith("# HERE")
    f, args = by_name("norm_at_the_origin")
    told = json.loads(json.dumps(explain(f, *args).to_dict()))
    assert not told["ok"] and told["births"][0]["operation"] == "sqrt"


def test_an_error_shows_the_line_first():
    f, args = by_name("a_sign")
    place = r"^wrong rule: custom_jvp of `sin`, .*blame_cases.py\", line \d+, in <lambda>"
    with pytest.raises(GradientError, match=place) as error:
        assert_gradient(f, *args)
    assert str(error.value).count("# HERE") == 1  # the table has the rest of it


def test_nan_in_a_while_loop_is_named_with_its_iteration():
    def f(x):
        def step(carry):
            i, h = carry
            return i + 1, jnp.sqrt(h - 2)  # the line

        return lax.while_loop(lambda carry: carry[0] < 4, step, (0, x))[1]

    (birth,) = explain(f, jnp.float32(3.0)).births
    assert birth.line.text.endswith("# the line") and birth.iteration == "iteration 1"


def test_a_long_walk_goes_past_what_has_no_way_back():
    """The same equation once on the way of the derivative, where it ends, and once beside it."""
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    seen = functools.partial(jax.pure_callback, lambda v: np.asarray(v), shape)

    def chain(x):
        for _ in range(60):
            x = jnp.sin(1.1 * x)
        return jnp.sum(x)

    f = lambda x: chain(x + seen(lax.stop_gradient(x)) + seen(x))  # noqa: E731
    point = jnp.arange(1.0, 4.0)
    tape = Tape(program := jax.make_jaxpr(f)(point), [True])
    assert not tape.together
    record = tape.record([point], seeds_of(program))
    right = jax.grad(lambda x: chain(x + 2 * point))(point)
    np.testing.assert_allclose(record.cotangents[tape.inputs[0]], right, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_loop_that_is_laid_out_is_the_loop(reverse):
    def f(x):
        rows = lax.scan(lambda c, y: (c * y, c + y**2), 1.0, x, reverse=reverse)[1]
        return jnp.sum(rows * jnp.arange(1.0, 4.0))

    point = jnp.array([0.5, 2.0, 3.0])
    tape = Tape(program := jax.make_jaxpr(f)(point), [True], unrolled=True)
    record = tape.record([point], seeds_of(program))
    np.testing.assert_allclose(record.values[tape.outputs[0]], f(point), rtol=1e-6)
    np.testing.assert_allclose(record.cotangents[tape.inputs[0]], jax.grad(f)(point), rtol=1e-6)


def test_the_only_custom_rule_of_a_loop_that_is_too_long_to_search_is_named():
    square = jax.custom_vjp(lambda x, i: x**2)
    scale = lambda i: jnp.where(i == 1701, 2.1, 2.0)  # noqa: E731
    square.defvjp(lambda x, i: (x**2, (x, i)), lambda r, g: (scale(r[1]) * r[0] * g, None))

    def f(w):
        step = lambda c, i: (0.1 * square(c, i) + 0.5 * c + w, None)  # noqa: E731
        return jnp.sum(lax.scan(step, w, jnp.arange(1704))[0])

    (rule,) = check_gradient(f, jnp.array([0.3, 0.2])).rules
    assert (rule.kind, rule.path) == ("custom_vjp", "scan[0]")
    assert "test_explain.py" in rule.where


def on_one_device(f, x):
    mesh = jax.make_mesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec
    return jax.shard_map(f, mesh=mesh, in_specs=spec(), out_specs=spec())(x)


def in_a_long_loop(f, x):
    return lax.scan(lambda c, i: (0.9 * c + 0.01 * f(c), None), x, jnp.arange(1704))[0]


@pytest.mark.parametrize("around", [on_one_device, in_a_long_loop])
def test_of_several_rules_where_no_program_can_be_searched_the_wrong_one_is_named(around):
    right = jax.custom_jvp(jnp.sin)
    right.defjvp(lambda x, t: (jnp.sin(*x), jnp.cos(*x) * t[0]))

    def f(x):
        return jax.nn.relu(off_by_a_tenth(x)) + right(x)

    loss, x = lambda x: jnp.sum(around(f, x)), jnp.arange(1.0, 4.0)  # noqa: E731
    (rule,) = check_gradient(loss, x).rules
    assert rule.name == "off_by_a_tenth" and "test_explain.py" in rule.where
    assert [rule.name for rule in explain(loss, x).rules] == ["off_by_a_tenth"]


@pytest.mark.parametrize("call", [check_gradient, explain])
def test_a_forward_function_with_another_value_has_its_own_line(call):
    sine = jax.custom_vjp(jnp.sin)

    def forward(x):
        return jnp.sin(1.01 * x), x

    def backward(x, g):
        return (jnp.cos(x) * g,)

    sine.defvjp(forward, backward)
    (rule,) = call(lambda x: jnp.sum(sine(x)), jnp.array([0.3, -0.8])).rules
    assert rule.rule.line == forward.__code__.co_firstlineno and rule.where.endswith("(forward)")


@pytest.mark.parametrize("others", [1, 60])  # a walk is one program, or one for each kind
def test_a_wrong_rule_is_named_however_often_other_operations_repeat(others):
    def f(x):
        y = off_by_a_tenth(x)
        for _ in range(others):
            y = y + jnp.sin(y) / 100
        return jnp.sum(y)

    report = check_gradient(f, jnp.arange(1.0, 4.0))
    assert [rule.name for rule in report.rules] == ["off_by_a_tenth"] and not report.notes
    assert "`trust`" not in str(report)  # such an error is hardly deliberate


@pytest.mark.parametrize("length", [104, pytest.param(900, marks=pytest.mark.slow)])
def test_one_rule_of_several_in_a_loop_is_named_if_it_is_wrong_in_one_iteration(length):
    square, sine = jax.custom_vjp(lambda x, i: x**2), jax.custom_vjp(jnp.sin)
    scale = lambda i: jnp.where(i == length - 3, 2.1, 2.0)  # noqa: E731
    square.defvjp(lambda x, i: (x**2, (x, i)), lambda r, g: (scale(r[1]) * r[0] * g, None))
    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.cos(x) * g,))

    def f(w):
        step = lambda c, i: (0.1 * square(sine(c), i) + 0.9 * c + w, None)  # noqa: E731
        return jnp.sum(lax.scan(step, w, jnp.arange(length))[0])

    (rule,) = check_gradient(f, jnp.array([0.01, 0.02])).rules
    assert rule.rule.text.startswith("square.defvjp(")
    assert rule.difference == pytest.approx(0.05, rel=1e-3)  # of that iteration, not of the loop


def test_a_rule_in_bfloat16_is_named_if_a_leaf_in_float32_differs():
    twice = jax.custom_vjp(lambda x: 2 * x)
    twice.defvjp(lambda x: (2 * x, None), lambda _, g: (g * jnp.asarray(2.02, g.dtype),))
    f = lambda x: jnp.sum(twice(x.astype(jnp.bfloat16)).astype(jnp.float32))  # noqa: E731
    (rule,) = check_gradient(f, jnp.arange(1.0, 5)).rules
    assert rule.rule.text.startswith("twice.defvjp(") and 0.005 < rule.difference < 0.01


@pytest.mark.parametrize("part, noted", [(1e-8, False), (0.1, True)])
def test_a_rule_as_linear_as_an_adaptive_solver_is_not_called_nonlinear(part, noted):
    sine = jax.custom_vjp(jnp.sin)
    backward = lambda x, g: (1.1 * g * jnp.cos(x) * (1 + part * jnp.tanh(g)),)  # noqa: E731
    sine.defvjp(lambda x: (jnp.sin(x), x), backward)
    report = check_gradient(lambda x: jnp.sum(sine(x)), jnp.arange(3.0))
    assert report.rules and noted == any("not linear" in note for note in report.notes)


@pytest.mark.promotes
@pytest.mark.parametrize("wrong", ["the solver", "its field"])
def test_a_solver_with_its_own_rule_is_told_from_a_rule_that_it_calls(wrong):
    field = jax.custom_vjp(jnp.tanh)
    slope = 1.1 if wrong == "its field" else 1.0
    field.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (slope * g * (1 - jnp.tanh(x) ** 2),))
    move = lambda y, w: y + 0.2 * field(w * y)  # noqa: E731

    @jax.custom_vjp
    def solve(w):  # JAX cannot differentiate this loop
        step = lambda carry: (carry[0] + 1, move(carry[1], w))  # noqa: E731
        return lax.while_loop(lambda carry: carry[0] < 5, step, (0, w))[1]

    def backward(w, g):
        unrolled = lambda w: functools.reduce(lambda y, _: move(y, w), range(5), w)  # noqa: E731
        off = 1.1 if wrong == "the solver" else 1.0
        return (off * jax.vjp(unrolled, w)[1](g)[0],)

    solve.defvjp(lambda w: (solve(w), w), backward)
    (rule,) = check_gradient(lambda w: jnp.sum(solve(w) ** 2), jnp.array([0.3, -0.4])).rules
    line = {"the solver": "def backward(w, g):", "its field": "field.defvjp(lambda x:"}[wrong]
    assert rule.rule.text.startswith(line)


@pytest.mark.parametrize("passes_on", [False, True])
@pytest.mark.parametrize(
    "inner_factor, outer_factor", [(0.5, 0.99), (0.95, 0.9), (0.95, 1), (1, 0.9)]
)
def test_of_two_rules_the_one_that_the_gradient_uses_is_named(
    inner_factor, outer_factor, passes_on
):
    inner = jax.custom_vjp(lambda x: x**2)
    inner.defvjp(lambda x: (x**2, x), lambda x, g: (inner_factor * 2 * x * g,))
    outer = jax.custom_vjp(lambda x: jnp.sin(inner(x)))
    if passes_on:  # the rule calls the inner one
        outer.defvjp(
            lambda x: jax.vjp(lambda x: jnp.sin(inner(x)), x),
            lambda back, g: tuple(outer_factor * x for x in back(g)),
        )
    else:
        outer.defvjp(
            lambda x: (jnp.sin(x**2), x),
            lambda x, g: (outer_factor * 2 * x * jnp.cos(x**2) * g,),
        )
    report = check_gradient(lambda x: jnp.sum(outer(x)), jnp.array([0.5, 1.0, 2.0]))
    own, used = outer_factor != 1, passes_on and inner_factor != 1
    assert report.ok == (not own and not used)
    blamed = [outer if own else inner] if own or used else []
    assert [rule.rule.line for rule in report.rules] == [
        f.bwd.__code__.co_firstlineno for f in blamed
    ]


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_rule_that_passes_more_on_to_what_it_overwrites_is_not_blamed(factor):
    cube, step = (
        jax.custom_vjp(lambda x: x**3),
        jax.custom_vjp(lambda *state: moved(*state)),
    )
    cube.defvjp(lambda x: (x**3, x), lambda x, g: (factor * 3 * x**2 * g,))

    def moved(y, saved, i):
        y = cube(jnp.cos(y))
        return y, saved.at[i].set(y)

    def backward(state, g):  # the start of what is saved does not matter
        y, saved, i = state
        return jax.vjp(lambda y: moved(y, saved, i), y)[1](g)[0], g[1], None

    step.defvjp(lambda *state: (moved(*state), state), backward)

    def f(x):
        over = lambda carry, i: (step(*carry, i), None)  # noqa: E731
        return jnp.sum(lax.scan(over, (x, jnp.zeros((3, 2))), jnp.arange(3))[0][1] ** 2)

    blamed = [rule.rule.text for rule in check_gradient(f, jnp.array([0.3, -0.4])).rules]
    assert len(blamed) == (factor != 1) and all(x.startswith("cube.defvjp(") for x in blamed)


@pytest.mark.parametrize("filler", [jnp.inf, -jnp.inf])
def test_infinities_beside_it_do_not_hide_a_wrong_rule(filler):
    cube = jax.custom_vjp(lambda x: x**3)
    cube.defvjp(lambda x: (x**3, x), lambda x, g: (2.9 * x**2 * g,))

    def filled(x):  # as solvers save their steps
        def step(carry, i):
            y, saved = carry
            y = cube(jnp.cos(y))
            return (y, saved.at[i].set(y)), None

        start = x, jnp.full((4, *x.shape), filler)  # one row is never filled
        return jnp.sum(jnp.sin(lax.scan(step, start, jnp.arange(3))[0][1][:3]))

    def masked(x):
        scores = jnp.where(jnp.arange(3) < 2, cube(x), -jnp.inf)
        return jnp.sum(jax.nn.softmax(scores) ** 2)

    for f in (filled, masked):
        rules = check_gradient(f, jnp.array([0.3, -0.4, 0.9])).rules
        assert rules and all("2.9 *" in rule.rule.text for rule in rules), f.__name__


def test_of_many_iterations_some_are_looked_at_first_from_the_first_to_the_last():
    assert rules._spread_first(range(3)) == [0, 1, 2]
    order = rules._spread_first(range(100))
    some, rest = order[:32], order[32:]
    assert some == sorted(some) and (some[0], some[-1]) == (0, 99)
    assert sorted(some + rest) == list(range(100))


def test_a_clean_check_asks_no_line(monkeypatch):
    monkeypatch.setattr("jaxnn.checking.programs.Tape", None)
    assert check_gradient(lambda x: jnp.sum(jnp.sin(x)), jnp.ones(3)).verdict == "agrees"


def test_only_custom_rules_are_asked_where_values_support_the_gradient_without_them(monkeypatch):
    asked = []
    suspects = rules._suspects
    monkeypatch.setattr(rules, "_suspects", lambda *a: asked.append(a[2]) or suspects(*a))

    @jax.custom_vjp
    def scaled(x):
        return x * 1

    scaled.defvjp(lambda x: (x * 1, None), lambda _, g: (1.1 * g,))
    report = check_gradient(lambda x: jnp.sum(jnp.sin(scaled(jnp.cos(x)))), RHS)
    assert [rule.name for rule in report.rules] == ["scaled"] and len(asked[0]) == 1
    asked.clear()
    explain(lambda x: jnp.sum(jnp.sin(scaled(jnp.cos(x)))), RHS)  # nothing is known before
    assert len(asked[0]) > 1


def test_the_worst_rule_comes_first():
    def off(factor):
        rule = jax.custom_vjp(lambda x: x * 1)
        rule.defvjp(lambda x: (x * 1, None), lambda _, g: (factor * g,))
        return rule

    slightly, much = off(1.001), off(2.0)

    def f(x):
        x = slightly(x)
        return jnp.sum(much(x))

    for found in (check_gradient(f, RHS), explain(f, RHS)):
        assert [round(rule.difference, 3) for rule in found.rules] == [1.0, 0.001]


def test_a_custom_gradient_has_the_users_name_and_place():
    @jax.custom_gradient
    def square(x):
        return x**2, lambda g: (2.1 * g * x,)

    (rule,) = check_gradient(lambda x: jnp.sum(square(x)), RHS).rules
    assert rule.name == "square" and rule.rule.text == "def square(x):"


def test_a_custom_gradient_without_operations_has_the_users_name_and_place():
    @jax.custom_gradient
    def reverse(x):
        return x, lambda g: (-g,)

    f = lambda x: jnp.sum(reverse(x) ** 2)  # noqa: E731
    (rule,) = check_gradient(f, RHS).rules
    assert rule.name == "reverse" and rule.rule.text == "def reverse(x):"
    assert "if it deliberately differs, name `reverse` in `trust` (`jaxnn watch --t" in str(rule)
    assert check_gradient(f, RHS, trust=("reverse",)).ok


def test_a_rule_with_a_loop_is_run_as_one_program(compilations):
    shape = lambda x: jnp.tanh(jnp.sin(x)) * jnp.cosh(x) / jnp.exp(x) + jnp.arctan(x)  # noqa: E731

    def value(a):
        root = lax.while_loop(lambda x: abs(x**2 - a) > 1e-6, lambda x: (x + a / x) / 2, a)
        return shape(root)

    f = jax.custom_jvp(value)
    slope = lambda a, da: jax.jvp(lambda a: shape(jnp.sqrt(a)), a, da)[1]  # noqa: E731
    f.defjvp(lambda a, da: (1.01 * value(*a), slope(a, da)))  # another value
    before = compilations()
    (rule,) = check_gradient(f, jnp.array(2.0)).rules
    assert rule.name == "value" and compilations() - before < 24  # else some 30


def scaled_cumsum(x, factor):
    """A linear function with a transpose of its own."""

    def backward(_, g):
        return factor * jnp.cumsum(g[::-1])[::-1]

    return linear_call(lambda _, x: jnp.cumsum(x), backward, (), x)


@pytest.mark.parametrize("factor, name", [(1.0, None), (1.1, "backward")])
def test_a_wrong_transpose_of_a_linear_function_is_named(factor, name):
    f = lambda x: jnp.sum(scaled_cumsum(jnp.sin(x), factor) ** 2)  # noqa: E731
    for found in (check_gradient(f, RHS), check_gradient(f, RHS, stop_gradient="held")):
        assert [(r.rule.function, r.kind, r.path) for r in found.rules] == (
            [(name, "transpose", "x")] if name else []
        )
        assert found.ok is (name is None)


@pytest.mark.parametrize("factor, kinds", [(3.0, []), (3.3, ["custom_jvp"])])
def test_a_wrong_rule_that_uses_an_argument_of_the_function_around_it_is_named(factor, kinds):
    def f(x, c):
        cube = jax.custom_jvp(lambda x: c * x**3)
        cube.defjvp(lambda p, t: (cube(*p), factor * c * p[0] ** 2 * t[0]))
        return jnp.sum(cube(x) * x)

    for found in (check_gradient(f, RHS, 2.0), explain(f, RHS, 2.0, argnums=0)):
        assert [rule.kind for rule in found.rules] == kinds and found.ok is (not kinds)


def test_nan_in_a_rule_that_uses_an_argument_of_the_function_around_it_is_born_at_its_call():
    def f(x, c):
        root = jax.custom_vjp(lambda x: c * jnp.sqrt(x))
        root.defvjp(lambda x: (root(x), x), lambda x, g: (0.5 * g * c / jnp.sqrt(x),))
        return jnp.sum(root(x))

    for found in (check_gradient(f, jnp.zeros(2), 2.0), explain(f, jnp.zeros(2), 2.0, argnums=0)):
        assert [birth.line.text for birth in found.births] == ["return jnp.sum(root(x))"]


def test_a_rule_around_a_host_callback_is_off_by_what_its_float32_values_show():
    def on_host(x):
        shape = jax.ShapeDtypeStruct(x.shape, np.float32)
        run = lambda x: np.sin(x, dtype=np.float32)  # noqa: E731
        return jax.pure_callback(run, shape, x, vmap_method="expand_dims")

    sine = jax.custom_vjp(on_host)
    sine.defvjp(lambda x: (on_host(x), x), lambda x, g: (0.9 * g * jnp.cos(x),))
    x = jnp.array([1.62, 2.0, -0.4, -0.16])  # the slope of the sine is nearly 0 at the first
    (found,) = check_gradient(lambda x: jnp.sum(sine(x) ** 2), x).rules
    assert found.difference == pytest.approx(0.1, abs=0.001)


def test_a_wrong_root_is_named_by_the_line_that_asks_for_it():
    report = check_gradient(functools.partial(implicit_root, factor=1.02), jnp.float32(3))
    (wrong,) = (line for line in str(report).splitlines() if "wrong" in line)
    assert "test_explain.py" in wrong and "(implicit_root): " in wrong and "`custom_root`" in wrong


MATRIX = np.random.default_rng(0).normal(size=(4, 4)).astype("float32") + 4 * np.eye(4, dtype="f4")
RHS = np.arange(1, 5, dtype="float32")


def own_solve(scale):
    """A linear solve whose transposed solver is off by a factor."""

    def solve(a, b):
        back = lambda _, c: scale * jnp.linalg.solve(a.T, c)  # noqa: E731
        return lax.custom_linear_solve(
            lambda x: a @ x, b, lambda _, b: jnp.linalg.solve(a, b), back
        )

    return solve


SOLVES = {
    "solve": jnp.linalg.solve,
    "inv": lambda a, b: jnp.linalg.inv(a) @ b,
    "positive": lambda a, b: jax.scipy.linalg.solve(a @ a.T, b, assume_a="pos"),
    "cg": lambda a, b: jax.scipy.sparse.linalg.cg(lambda v: a @ (a.T @ v) + v, b)[0],
    "own": own_solve(1.0),
}


@pytest.mark.parametrize("solve", SOLVES.values(), ids=SOLVES)
def test_a_right_linear_solve_is_not_accused(solve):
    f = lambda a, b: jnp.sum(solve(a, b))  # noqa: E731
    assert explain(f, MATRIX, RHS).rules == ()

    @jax.custom_vjp
    def scaled(x):
        return x * 1

    scaled.defvjp(lambda x: (x * 1, None), lambda _, g: (1.1 * g,))
    report = check_gradient(lambda a, b: f(scaled(a), b), MATRIX, RHS, argnums=(0, 1))
    assert [rule.name for rule in report.rules] == ["scaled"]


@pytest.mark.parametrize("ratio", [1.0, 1.02])
def test_a_wrong_rule_in_the_product_that_a_linear_solve_inverts_is_named(ratio):
    @jax.custom_vjp
    def positive(x):
        return jnp.exp(x)

    positive.defvjp(lambda x: (jnp.exp(x), x), lambda x, g: (ratio * g * jnp.exp(x),))

    def f(x):
        return jnp.sum(
            lax.custom_linear_solve(
                lambda v: positive(x) * v, RHS, lambda _, b: b / jnp.exp(x), symmetric=True
            )
        )

    report, names = check_gradient(f, RHS / 8), [] if ratio == 1 else ["positive"]
    assert [rule.name for rule in report.rules] == names and report.ok == (ratio == 1)
    assert [rule.name for rule in explain(f, RHS / 8).rules] == names


def test_a_wrong_transposed_solver_is_named():
    report = check_gradient(lambda a: jnp.sum(own_solve(1.1)(a, RHS)), MATRIX)
    (rule,) = report.rules
    assert (report.verdict, rule.kind, rule.name) == ("differs", "transpose", "custom_linear_solve")
    assert rule.difference == pytest.approx(0.1, rel=1e-4) and rule.line.function.endswith("solve")


@pytest.mark.parametrize("error", [1.3e-5, 2e-5, 1e-4])
def test_a_rule_that_is_slightly_wrong_in_every_entry_is_named_at_every_point(error):
    """Though a sum of errors of both signs may be smaller than each of them."""

    @jax.custom_vjp
    def wave(x):
        return x * jnp.sin(x)

    derivative = lambda x: jnp.sin(x) + x * jnp.cos(x)  # noqa: E731
    wave.defvjp(lambda x: (wave(x), x), lambda x, g: ((1 + error) * derivative(x) * g,))
    for seed in range(10):
        x, w = np.random.default_rng(seed).normal(size=(2, 50)).astype("float32")
        report = check_gradient(lambda x, w=w: jnp.sum(w * wave(x)), x)
        assert report.verdict == "differs" and report.rules[0].name == "wave", str(report)


NOT_LINEAR = {
    "forgotten": jnp.ones_like,
    "squared": lambda g: g**2,
    "affine": lambda g: g + 0.3 * (g - 1),
    "clipped": lambda g: jnp.clip(g, -1, 1),
}


@pytest.mark.parametrize("change", NOT_LINEAR.values(), ids=NOT_LINEAR)
def test_a_last_rule_that_is_not_linear_in_its_cotangent_is_named(change):
    """With the cotangent 1, that of `jax.grad`, each of them is correct."""

    @jax.custom_vjp
    def total(x):
        return jnp.sum(x**2)

    total.defvjp(lambda x: (total(x), x), lambda x, g: (2 * change(g) * x,))
    report = check_gradient(total, jnp.array([1.0, 2.0, 3.0]))
    assert report.verdict == "differs" and [rule.name for rule in report.rules] == ["total"]
    assert (
        any("not linear in its cotangent" in note for note in report.notes)
        and not report.digits_lost
    )
    leaf = report.leaves[0]  # half the gradient of twice the function is shown
    assert not (leaf.hint or "autodiff /" in leaf.pattern) and leaf.own_dtype_digits > 6


@pytest.mark.parametrize(
    "change", [lambda t: t * jnp.abs(t), lambda t: jnp.clip(t, -1, 1)], ids=["squared", "clipped"]
)
@pytest.mark.parametrize("point", [jnp.float32(0.5), jnp.array([1.0, 2.0])], ids=["one", "two"])
def test_a_rule_that_is_not_linear_in_its_tangent_is_named(change, point):
    """With the tangent 1, that of `jax.jacfwd`, each of them is correct."""
    square = jax.custom_jvp(lambda x: x**2)
    square.defjvp(lambda x, t: (x[0] ** 2, 2 * x[0] * change(t[0])))
    report = check_gradient(lambda x: jnp.sum(3 * square(x)), point, modes="fwd")
    assert report.verdict == "differs" and [rule.kind for rule in report.rules] == ["custom_jvp"]
    assert any("not linear in its tangent" in note for note in report.notes)


def halved(x):
    held = jax.new_ref(jnp.zeros_like(x))
    held[...] = wrong_tanh(x)
    held[0] = 2 * held[0]
    return jnp.sum(held[...] ** 2)


def in_a_loop(x):
    held, factor = jax.new_ref(jnp.zeros_like(x)), jax.new_ref(jnp.ones(()))

    def body(i, _):
        factor[...] = 1.1 * factor[...]
        held[i] = wrong_tanh(x[i]) * factor[...]

    jax.lax.fori_loop(0, len(x), body, None)
    return jnp.sum(held[...])


def in_a_scan(x):
    total = jax.new_ref(jnp.zeros(()))

    def body(carry, y):
        total[...] += wrong_tanh(y) * carry
        return 1.01 * carry, y**2

    carry, squares = jax.lax.scan(body, 1.0, x)
    return total[...] ** 2 + jnp.sum(squares) + carry


wrong_tanh = jax.custom_vjp(jnp.tanh)
wrong_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (1.1 * g * (1 - jnp.tanh(x) ** 2),))


@since(0, 10)
@pytest.mark.parametrize("f", [halved, in_a_loop, in_a_scan])
def test_a_wrong_rule_is_named_where_its_result_goes_through_a_reference(f):
    x = jnp.array([0.3, -0.4, 0.5])
    page = explain(f, x)._repr_html_()
    assert "wrong_tanh(" in page and "light-dark(" in page
    report = check_gradient(f, x)
    assert report.verdict == "differs" and [rule.name for rule in report.rules] == ["tanh"]
    assert "wrong_tanh(" in report.rules[0].line.text


# ---------------------------------------------------------------- rules of JAX's own, made wrong

ALIVE = 1e-4  # relative change of an entry


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_rules_of_jaxs_own_are_caught_and_named(function):
    """Every one that is alive: that changes the gradient by more than float32's digits."""
    (f, args, _), alive = FUNCTIONS[function], 0
    argnums = tuple(range(len(args)))
    right = jax.jit(jax.grad(lambda *a: f(*a), argnums))(*args)
    for mutant in mutants(function):
        with mutated(mutant):
            fresh = lambda *a: f(*a)  # noqa: E731
            changed = jax.jit(jax.grad(fresh, argnums))(*args)
            pairs = zip(right, changed, strict=True)
            if all(np.allclose(a, b, rtol=ALIVE, atol=1e-6) for a, b in pairs):
                continue
            report = check_gradient(fresh, *args, argnums=argnums)
        alive += 1
        assert report.verdict in ("differs", "imprecise", "not finite"), mutant
        found = [rule.name for rule in report.rules]
        found += [line.operation for line in report.digits_lost]
        assert mutant.primitive == found[0], (mutant, str(report))
    assert alive


@pytest.mark.slow
def test_nan_in_the_fifth_of_six_layers_is_named_soon(compilations):
    from benchmarks.leaves import LENGTH, language_loss, transformer

    params = transformer(jax.random.key(0), layers=6)
    tokens = jax.random.randint(jax.random.key(1), (4, LENGTH + 1), 0, 256)
    # One more parameter, 0, whose root is taken in a layer.
    params["layers"][4]["zero"] = jnp.zeros(())

    def loss(params, tokens):
        layers = [dict(layer) for layer in params["layers"]]
        root = jnp.sqrt(layers[4].pop("zero"))  # the line
        layers[4]["up"] = layers[4]["up"] + root
        return language_loss({**params, "layers": layers}, tokens)

    found = explain(loss, params, tokens)
    assert found.births[0].line.text.endswith("# the line")
    before, gradient = compilations(), jax.jit(jax.grad(loss))
    again = min(timed(functools.partial(explain, loss), params, tokens) for _ in range(3))
    # The function is traced at each call, as it may have changed, but not compiled.
    assert compilations() == before
    tracing = lambda *args: jax.make_jaxpr(jax.grad(lambda *args: loss(*args)))(*args)  # noqa: E731
    once = [min(timed(f, params, tokens) for _ in range(3)) for f in (tracing, gradient)]
    assert again < 10 * sum(once), (again, once)


def timed(f, *args):
    began = time.perf_counter()
    jax.block_until_ready(f(*args))
    return time.perf_counter() - began


PACKAGE = """
import jax
@jax.custom_jvp
def square(x):
    return x * x
square.defjvp(lambda x, dx: (x[0] ** 2, 3 * x[0] * dx[0]))
def energy(x):
    return square(x).sum()

class WithRule:
    def __init__(self, function, backward):
        self.function, self.backward = function, backward
    def __call__(self, x):
        def whole(x):
            return self.function(x)
        def back(kept, ct):
            return (self.backward(kept, ct),)
        rule = jax.custom_vjp(whole)
        rule.defvjp(lambda x: (whole(x), x), back)
        return rule(x)
    def grad(self):
        def gradient_of(x):
            return self.function(x) if True else unset
        unset = None
        del unset  # an empty cell in the closure
        return jax.grad(gradient_of)
"""


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """An installed package."""
    folder = tmp_path / "site-packages" / "squares"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(folder.parent)
    yield importlib.import_module("squares")
    del sys.modules["squares"]


def test_a_wrong_rule_of_a_package_is_marked_where_the_package_is_called(squares):
    def loss(x):
        return squares.energy(2 * x)

    (rule,) = check_gradient(loss, jnp.ones(3)).rules
    assert rule.rule.file == squares.__file__ and rule.line.function.endswith("loss")
    (mark,) = annotations([rule])
    assert "file=tests/test_explain.py" in mark.replace(os.sep, "/")


def test_a_package_whose_name_begins_like_jaxs_is_another(squares, monkeypatch):
    monkeypatch.setattr(jax, "__file__", squares.__file__.replace("squares", "squ"))
    (rule,) = check_gradient(squares.energy, jnp.ones(3)).rules
    assert rule.rule.function == "<lambda>"


def test_what_a_package_has_wrapped_is_named_as_the_users(squares):
    def backward(x, ct):
        return 3 * x * ct

    square = squares.WithRule(lambda x: x**2, backward)

    def loss(x):
        return jnp.sum(square(x))

    for f in (loss, lambda x: jnp.sum(jax.vmap(square)(x))):
        (rule,) = check_gradient(f, jnp.ones(3)).rules
        assert rule.rule.function.endswith("backward")
        assert os.path.abspath(rule.rule.file) == __file__
    (rule,) = check_gradient(loss, jnp.ones(3)).rules
    assert rule.line.function.endswith("loss")
    with watching() as watched:
        squares.WithRule(loss, None).grad()(jnp.ones(3))
    assert "gradient of loss:" in str(watched.report)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: lax.map(f, x),
        lambda f, x: lax.cond(x[0] > 0, f, jnp.sin, x),
        lambda f, x: lax.switch(1, [jnp.sin, f, jnp.cos], x),
        lambda f, x: lax.fori_loop(0, 3, lambda _, x: f(x), x),
        lambda f, x: jax.vmap(lambda x: lax.cond(x > 0, f, jnp.sin, x))(x),
    ],
)
def test_a_wrong_rule_that_jax_calls_has_the_line_that_asks_for_it(call):
    rule = jax.custom_jvp(jnp.sin)
    rule.defjvps(lambda t, _, x: 1.1 * t * jnp.cos(x))
    f = lambda x: jnp.sum(call(rule, x))  # noqa: E731
    (found,) = check_gradient(f, jnp.ones(2)).rules
    assert found.line.path == "tests/test_explain.py" and "lax." in found.line.text


def test_a_librarys_primitive_that_is_told_twice_of_a_number_is_not_accused():
    """As a linear solve is, of a matrix and of its factors, whose derivative is stopped."""
    ratio = Primitive("ratio")
    ratio.def_abstract_eval(lambda x, y, factor: y)
    mlir.register_lowering(
        ratio, mlir.lower_fun(lambda x, y, factor: y / factor, multiple_results=False)
    )

    def rule(primals, tangents):
        x, y, factor = primals
        dx, dy, none = tangents
        assert type(none) is ad.Zero
        out = ratio.bind(*primals)
        return out, (dy - out * dx) / factor

    ad.primitive_jvps[ratio] = rule
    stop = lax.stop_gradient
    f = lambda x: jnp.sum(ratio.bind(x, jnp.sin(x), stop(x)))  # noqa: E731
    x = jnp.array([0.5, 1.5])
    assert check_gradient(f, x).verdict == "agrees"
    report = check_gradient(lambda x: f(x) + jnp.sum(x * stop(x)), x)
    assert report.verdict == "differs" and not report.rules


OTHER_PACKAGE = """
import jax, squares
def cube_back(x, ct):
    return 2 * x**2 * ct
cube = squares.WithRule(lambda x: x**3, cube_back)
@jax.custom_gradient
def flipped(x):
    return x, lambda ct: -ct
"""


@pytest.mark.parametrize("function, name", [("cube", "cube_back"), ("flipped", "flipped")])
def test_what_a_package_has_wrapped_for_another_is_named_as_the_others(
    squares, tmp_path, function, name
):
    path = tmp_path / "site-packages" / "cubes.py"
    path.write_text(OTHER_PACKAGE)
    f = getattr(importlib.import_module("cubes"), function)
    del sys.modules["cubes"]
    (rule,) = check_gradient(lambda x: jnp.sum(f(x)), jnp.ones(3)).rules
    assert rule.name == name and rule.rule.file == str(path)
    assert check_gradient(lambda x: jnp.sum(f(x)), jnp.ones(3), trust=(name,)).ok


def newton(f, x):
    step = lambda x: x - jnp.linalg.solve(jax.jacfwd(f)(x), f(x))  # noqa: E731
    return jax.lax.fori_loop(0, 8, lambda _, x: step(x), x)


@pytest.mark.promotes
def test_a_right_root_is_not_accused_where_a_parameter_enters_twice():
    """The values depend on `p` through the solver, the rule on that of `f`."""

    def loss(p, factor=1.0):
        f = lambda x: x**3 + p * x - 2.0  # noqa: E731
        tangent = lambda g, y: factor * jnp.linalg.solve(jax.jacobian(g)(y), y)  # noqa: E731
        return jnp.sum(jnp.sin(jax.lax.custom_root(f, jnp.ones_like(p), newton, tangent)))

    point = jnp.array([1.0, 2.0, 3.0])
    assert explain(loss, point).ok and check_gradient(loss, point).ok
    wrong = functools.partial(loss, factor=-1.0)
    assert check_gradient(wrong, point).verdict == "differs"


def loose_root(a):
    return jax.lax.while_loop(
        lambda x: jnp.abs(x**2 - a) > 1e-2, lambda x: 0.5 * (x + a / x), jnp.float32(1.7)
    )


def derived_root(a):
    """The condition and the body read different variables."""
    twice = 2 * a
    return jax.lax.while_loop(
        lambda x: jnp.abs(x**2 - a) > 1e-5, lambda x: 0.5 * (x + twice / (2 * x)), jnp.float32(1.7)
    )


def implicit_root(a, factor=1.0, tolerance=1e-6):
    def solve(f, start):
        return jax.lax.while_loop(
            lambda x: jnp.abs(f(x)) > tolerance, lambda x: 0.5 * (x + a / x), start
        )

    tangent = lambda g, y: factor * y / g(1.0)  # noqa: E731
    return jax.lax.custom_root(lambda x: x**2 - a, jnp.float32(1.7), solve, tangent)


@pytest.mark.promotes
@pytest.mark.parametrize("f", [loose_root, derived_root, implicit_root])
def test_loops_that_wait_for_a_residual_end(f):
    """Operands of a loop that move apart may leave it no end; those that are one move together."""
    assert explain(f, jnp.float32(3)).ok


def test_the_only_rule_of_defjvps_is_named_by_its_line():
    @jax.custom_jvp
    def scale(y):
        return jnp.exp(y / 2)

    scale.defjvps(
        lambda t, ans, y: t * ans,
    )
    (rule,) = check_gradient(scale, jnp.float32(1)).rules
    assert "lambda t, ans, y: t * ans" in rule.rule.text


@pytest.mark.parametrize("factors", [(1, 2.1), (1.1, 2)], ids=["the second", "the first"])
def test_of_several_rules_of_defjvps_that_of_the_wrong_argument_is_named(factors):
    @jax.custom_jvp
    def product(x, y):
        return x * y**2

    product.defjvps(
        lambda t, ans, x, y: factors[0] * t * y**2,
        lambda t, ans, x, y: factors[1] * t * x * y,
    )
    (rule,) = check_gradient(lambda z: product(z, z + 1), jnp.float32(1)).rules
    wrong = "factors[0]" if factors[0] != 1 else "factors[1]"
    assert wrong in rule.rule.text


def test_a_loop_that_does_not_end_gives_nan():
    program = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x < 1, jnp.sin, x))(0.5)
    (end,) = Evaluation(jnp.float32, ENDING, set())(program, [jnp.float32(0.5)])
    assert jnp.isnan(end)


@pytest.mark.parametrize("moved, steps", [(0.0, 2**20), (1.0, 2**20 - 1), (1.5, 2**16 - 1)])
def test_a_loop_may_be_long_at_the_point_and_short_far_away(moved, steps):
    def counts(taken):
        program = jax.make_jaxpr(
            lambda x: jax.lax.while_loop(lambda x: x < taken, lambda x: x + 1, 0 * x)
        )(jnp.float32(1))
        rules = ending_if_moved([jnp.float32(1)], [jnp.float32(1 + moved)])
        (end,) = Evaluation(jnp.float32, rules, set())(program, [jnp.float32(1)])
        return end

    assert counts(steps) == steps and jnp.isnan(counts(steps + 1)) == (moved > 0)


@pytest.mark.promotes
def test_a_right_root_is_not_accused_where_its_solver_reads_another_variable():
    """The rule gives all to `a`, the values depend on twice `a` alone."""

    def root(a):
        twice = 2 * a
        step = lambda x: 0.5 * (x + twice / (2 * x))  # noqa: E731
        solve = lambda f, x: jax.lax.while_loop(lambda x: jnp.abs(f(x)) > 1e-5, step, x)  # noqa: E731
        tangent = lambda g, y: y / g(1.0)  # noqa: E731
        return jax.lax.custom_root(lambda x: x**2 - a, jnp.float32(1.7), solve, tangent)

    assert explain(root, jnp.float32(3)).ok


def test_a_right_rule_of_one_variable_twice_is_not_accused():
    @jax.custom_vjp
    def product(x, y):
        return x * y

    product.defvjp(lambda x, y: (x * y, (x, y)), lambda kept, g: (g * kept[1], g * kept[0]))
    assert explain(lambda w: jnp.sum(product(w, w)), jnp.arange(1.0, 4.0)).ok


@pytest.mark.promotes
def test_beside_a_wrong_rule_a_right_root_is_not_accused():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3.1 * g * x**2,))
    rules = check_gradient(lambda a: cube(implicit_root(a)) + a, jnp.float32(3)).rules
    assert [(rule.name, round(rule.difference, 3)) for rule in rules] == [("cube", 0.033)]


@pytest.mark.promotes
def test_a_root_is_off_by_what_its_tangent_is_off():
    wrong = functools.partial(implicit_root, factor=1.02)
    (rule,) = check_gradient(wrong, jnp.float32(3)).rules
    assert rule.difference == pytest.approx(0.02, rel=1e-3)


@pytest.mark.promotes
def test_a_loose_root_is_right_to_its_solvers_tolerance():
    report = check_gradient(functools.partial(implicit_root, tolerance=1e-2), jnp.float32(3))
    assert report.ok and "correct to the inner solver's tolerance" in report.leaves[0].hint


def test_what_is_born_in_a_branch_of_jaxs_is_in_the_line_that_calls_it():
    (birth,) = explain(lambda x: jax.scipy.special.spence(x), jnp.float32(1.5)).births
    assert birth.operation == "log" and "special.spence(x)" in birth.line.text


def test_what_was_nan_is_named_where_infinity_takes_its_place():
    def f(x):
        density = jnp.sum(jnp.log(x - 2))
        return jnp.where(jnp.isfinite(density), density, -jnp.inf)

    born, passed = explain(f, jnp.array([1.0, 3.0])).births
    assert (born.operation, born.count) == ("log", 1) and passed.given == "a constant"


def fixed_point(step, own=1.0):
    """z = step(z, a), found by iteration to 1e-7; its rule solves for the slope, times `own`."""

    @jax.custom_vjp
    def solve(start, a):
        go_on = lambda c: jnp.abs(c[0] - c[1]) > 1e-7  # noqa: E731
        first = step(start, a), start
        return jax.lax.while_loop(go_on, lambda c: (step(c[0], a), c[0]), first)[0]

    def forward(start, a):
        z = solve(start, a)
        return z, (a, z)

    def backward(saved, ct):
        of_a, of_z = jax.vjp(lambda a, z: step(z, a), *saved)[1](1.0)
        return jnp.zeros(()), own * ct * of_a / (1 - of_z)

    solve.defvjp(forward, backward)
    return lambda a: solve(0.5 * a, a) ** 2


@pytest.mark.promotes
@pytest.mark.parametrize(("inner", "own", "named"), [(1.01, 1.0, "cosine"), (1.0, 1.01, "solve")])
def test_inside_an_implicit_rule_the_wrong_one_is_named(inner, own, named):
    @jax.custom_jvp
    def cosine(z):
        return jnp.cos(z)

    @cosine.defjvp
    def cosine_jvp(primals, tangents):
        return cosine(*primals), -inner * jnp.sin(primals[0]) * tangents[0]

    f = fixed_point(lambda z, a: cosine(a * z), own)
    for found in (check_gradient(f, jnp.float32(0.7)), explain(f, jnp.float32(0.7))):
        (rule,) = found.rules
        assert rule.name.endswith(named) and rule.difference == pytest.approx(0.01, rel=1e-2)


def test_all_wrong_arguments_of_a_rule_are_named():
    @jax.custom_vjp
    def product(w, x, y):
        return w * x * y

    def backward(kept, g):
        w, x, y = kept
        return 1.02 * g * x * y, 1.5 * g * w * y, g * w * x

    product.defvjp(lambda w, x, y: (w * x * y, (w, x, y)), backward)
    point = 2.0, 3.0, 4.0
    (rule,) = check_gradient(product, *map(jnp.float32, point), argnums=(0, 1, 2)).rules
    assert (rule.path, rule.also) == ("x", ("w",)) and "; also wrong: `w`" in str(rule)


def test_a_masked_nan_is_nothing_to_report_if_the_gradient_is_finite():
    def mean(p, row):
        weights = jnp.where(row > 0, jnp.exp(row * p), 0.0)
        total = jnp.sum(weights)
        return jnp.where(total > 0, jnp.sum(weights / total * row), 0.0)

    row = jnp.array([-1.0, -2.0])
    assert jnp.isfinite(jax.grad(mean)(0.5, row))
    assert explain(mean, jnp.float32(0.5), row, argnums=0).ok


@pytest.mark.parametrize("number", [0.1, 0.9, 1.5])
def test_a_forward_pass_that_rounds_where_all_cancels_has_no_other_value(number):
    centred = jax.custom_vjp(lambda x: x - jnp.mean(x))
    backward = lambda _, g: (g - jnp.mean(g),)  # noqa: E731
    centred.defvjp(lambda x: (x - x[0] - jnp.mean(x - x[0]), None), backward)
    f = lambda x: jnp.sum(jnp.arange(10.0) * centred(jnp.sin(x))) + jnp.sum(x)  # noqa: E731
    assert explain(f, jnp.full(10, number)).rules == ()
    centred.defvjp(lambda x: (1.01 * (x - jnp.mean(x)), None), backward)
    (found,) = explain(f, jnp.linspace(0, number, 10)).rules
    assert found.argument is None and found.difference == pytest.approx(0.01, rel=0.1)
