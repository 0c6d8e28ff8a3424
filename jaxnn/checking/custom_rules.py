"""Custom derivative rules: which of them is wrong.

A function with `jax.custom_jvp` or `jax.custom_vjp` inside is evaluated once, and the inputs that
each rule is called with are kept. There, the derivative by the rule is compared with the derivative
of the function that carries it, differentiated as if it had no rule, both in float64. Where that
function cannot be differentiated (a loop, a host callback), nothing is said: the numerical verdict
decides. JAX's own rules are not looked at.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.checking.evidence import Verdict, judge_all, reach
from jaxnn.checking.findings import RuleReport
from jaxnn.numerical.float64 import wide_arithmetic, widen, widen_leaf
from jaxnn.numerical.interpret import (
    CUSTOM_RULES,
    Equation,
    Program,
    bind,
    called,
    evaluate,
    opened,
    rule_consts,
    source,
)

_JAX = os.path.join(os.path.dirname(jax.__file__), "")  # not what begins like it: jaxopt
# Entries smaller than this part of the largest are rounding beside it, even in float64.
_SMALL = 1e-9

# The derivatives of one rule's function, by the rule and without it, in float64.
Pair = tuple[Callable, Callable]


def rule_checker(program: Program, dtype: Any) -> Callable[[Any], tuple[RuleReport, ...]]:
    """A function of a program's arguments that checks each custom rule on the inputs that it gets.

    What it compiles is kept for its next call. It returns reports, worst first.

    Args:
      program: the function, traced.
      dtype: the wide dtype.
    """
    sites = list(_sites(program))
    if not sites:
        return lambda args: ()
    compiled: dict[int, Pair] = {}

    @jax.jit
    def inputs_of_rules(leaves):
        return _inputs(program, leaves)

    def check(args):
        worst: dict[tuple[str, str], RuleReport] = {}
        inputs_of = inputs_of_rules(jax.tree.leaves(args))
        for number, (eqn, inputs) in enumerate(zip(sites, inputs_of, strict=True)):
            try:
                if number not in compiled:
                    compiled[number] = _derivatives(eqn, inputs, dtype)
                report = _check_rule(eqn, inputs, compiled[number], dtype)
            except Exception:  # whatever a user's rule raises when it stands alone
                report = _report(eqn, Verdict.UNRESOLVED, None, float("nan"))
            place = (report.name, report.where)
            worst[place] = max(worst.get(place, report), report, key=lambda r: r.verdict)
        return tuple(sorted(worst.values(), key=lambda r: r.verdict, reverse=True))

    return check


def _sites(program: Program) -> Iterator[Equation]:
    """The calls with a rule of the user's, in the order in which they are evaluated."""
    for eqn in opened(program)[0].eqns:
        if _has_users_rule(eqn):
            yield eqn
        elif eqn.primitive not in CUSTOM_RULES and (inner := called(eqn)) is not None:
            yield from _sites(inner)


def _has_users_rule(eqn: Equation) -> bool:
    return eqn.primitive in CUSTOM_RULES and not source(eqn)[1].startswith(_JAX)


def _inputs(program: Program, args: Sequence[Any]) -> list[list[Any]]:
    """The inputs of each rule of the user's, in the order of `_sites`."""
    inputs_of: list[list[Any]] = []

    def step(eqn, inputs):
        if _has_users_rule(eqn):
            inputs_of.append(inputs)
        elif eqn.primitive not in CUSTOM_RULES and (inner := called(eqn)) is not None:
            return evaluate(inner, inputs, step)
        return bind(eqn, inputs)

    evaluate(program, args, step)
    return inputs_of


def _derivatives(eqn: Equation, inputs: Sequence[Any], dtype: Any) -> Pair:
    without = core.jaxpr_as_fun(called(eqn))
    by_rule = _derivative(lambda full: bind(eqn, full), eqn, inputs, dtype)
    return by_rule, _derivative(lambda full: without(*full), eqn, inputs, dtype)


def _derivative(call: Callable, eqn: Equation, inputs: Sequence[Any], dtype: Any) -> Callable:
    """The compiled value and derivative, in the wide dtype, of a random projection of what `call`
    returns.
    """
    rng = np.random.default_rng(0)
    weights = [
        jnp.asarray(rng.uniform(0.5, 1.5, v.aval.shape), v.aval.dtype)
        if _is_float(v.aval)
        else None
        for v in eqn.outvars
    ]
    moving = _moving(eqn, inputs)

    def derivative(full):
        def projected(points):
            moved = list(full)
            for i, x in zip(moving, points, strict=True):
                moved[i] = x
            pairs = zip(weights, call(moved), strict=True)
            return sum(jnp.sum(w * y) for w, y in pairs if w is not None)

        return jax.value_and_grad(projected)([full[i] for i in moving])

    return jax.jit(widen(derivative, (inputs,), dtype).call)


def _check_rule(eqn: Equation, inputs: Sequence[Any], pair: Pair, dtype: Any) -> RuleReport:
    with wide_arithmetic(dtype):
        wide = [widen_leaf(x, dtype) for x in inputs]
        (forward, by_rule), (value, without) = (both(wide) for both in pair)
    moving = _moving(eqn, inputs)
    # The forward pass of a rule may return another value than the function.
    tolerance = max(reach(inputs[i].dtype) for i in moving)
    verdict, difference = _compare(np.ravel(forward), np.ravel(value), tolerance)
    worst = _report(eqn, verdict, None, difference)
    for i, claims, values in zip(moving, by_rule, without, strict=True):
        one, other = (np.asarray(x, np.float64).ravel() for x in (claims, values))
        verdict, difference = _compare(one, other, reach(inputs[i].dtype))
        argument = None if verdict is Verdict.AGREES else i - rule_consts(eqn)
        report = _report(eqn, verdict, argument, difference)
        worst = max(worst, report, key=lambda r: r.verdict)
    return worst


def _compare(claims: np.ndarray, values: np.ndarray, tolerance: float) -> tuple[Verdict, float]:
    """The verdict on a rule's derivative, and its relative error where that is largest."""
    size = np.maximum(np.abs(claims), np.abs(values))
    rounding = _SMALL * np.max(size, initial=0, where=np.isfinite(size))
    verdict, which = judge_all(claims, values, np.full(size.shape, rounding), tolerance)
    with np.errstate(all="ignore"):
        errors = np.abs(claims - values) / size
    errors = np.where(size <= rounding, 0.0, errors)
    return verdict, float(np.max(errors[which] if len(which) else errors, initial=0.0))


def _report(eqn: Equation, verdict: Verdict, argument: int | None, difference: float) -> RuleReport:
    name, where = source(eqn)
    kind = eqn.primitive.name.removesuffix("_call")
    return RuleReport(name, where, kind, verdict, argument, difference)


def _moving(eqn: Equation, inputs: Sequence[Any]) -> list[int]:
    """The inputs that a rule differentiates by: floating arguments, not what is closed over."""
    return [i for i, x in enumerate(inputs) if _is_float(x) and i >= rule_consts(eqn)]


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", None) or jnp.result_type(x), jnp.floating)
