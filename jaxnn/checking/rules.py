"""Custom derivative rules: which of them is wrong.

A function with `jax.custom_jvp` or `jax.custom_vjp` inside is evaluated once, and the inputs that each rule is called with are
kept. There, the derivative by the rule is compared with the derivative of the function that carries it, differentiated as if
it had no rule, both in float64. Where that function cannot be differentiated (a loop, a host callback), nothing is said: the
numerical verdict decides. JAX's own rules are not looked at.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.checking.report import VERDICTS, RuleReport
from jaxnn.numerical.widen import wide_arithmetic, widen, widen_leaf

_JAX = os.path.dirname(jax.__file__)
_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "eval_jaxpr": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}
_RULES = ("custom_jvp_call", "custom_vjp_call")


def rule_checker(closed: core.ClosedJaxpr, dtype: Any) -> Callable[[Any], tuple[RuleReport, ...]]:
    """A function of the arguments of `closed` that checks each custom rule on the inputs that it gets; reports worst first.

    What it compiles is kept for its next call.

    Args:
      closed: the function, traced.
      dtype: the wide dtype.
    """
    sites = list(_sites(closed.jaxpr))
    if not sites:
        return lambda args: ()
    compiled: dict[int, list[Callable]] = {}

    @jax.jit
    def inputs_of_rules(leaves):
        return _walk(closed.jaxpr, closed.consts, leaves)[1]

    def check(args):
        found = inputs_of_rules(jax.tree.leaves(args))
        reports = [
            _check_site(k, eqn, inputs, dtype, compiled) for k, (eqn, inputs) in enumerate(zip(sites, found, strict=True))
        ]
        worst: dict[tuple[str, str], RuleReport] = {}
        for report in reports:
            place = (report.name, report.where)
            worst[place] = max(worst.get(place, report), report, key=lambda r: VERDICTS.index(r.verdict))
        return tuple(sorted(worst.values(), key=lambda r: -VERDICTS.index(r.verdict)))

    return check


def _sites(jaxpr):
    """The equations with a custom rule, in the order in which `_walk` meets them."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _CALLS:
            yield from _sites(_body(eqn)[0])
        elif eqn.primitive.name in _RULES and not _is_jaxs(eqn):
            yield eqn


def _walk(jaxpr, consts, args):
    """Evaluate a jaxpr; the outputs, and the inputs of each custom rule."""
    values, found = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True)), []
    for eqn in jaxpr.eqns:
        inputs = [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in eqn.invars]
        if eqn.primitive.name in _CALLS:
            outputs, inner = _walk(*_body(eqn), inputs)
            found += inner
        else:
            if eqn.primitive.name in _RULES and not _is_jaxs(eqn):
                found.append(inputs)
            outputs = _bind(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in jaxpr.outvars], found


def _body(eqn):
    body = eqn.params[_CALLS[eqn.primitive.name]]
    return (body.jaxpr, body.consts) if isinstance(body, core.ClosedJaxpr) else (body, ())


def _bind(eqn, inputs):
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params(eqn.params)
        params = params if isinstance(params, dict) else params[1] | {"": params[0]}
        subfuns = params.pop("", [])
        out = eqn.primitive.bind(*subfuns, *inputs, **params)
    return out if eqn.primitive.multiple_results else [out]


def _check_site(number, eqn, inputs, dtype, compiled):
    name, where = _source(eqn)
    kind = eqn.primitive.name.removesuffix("_call")
    moving = [i for i, x in enumerate(inputs) if _is_float(x) and i >= _consts(eqn)]
    try:
        if number not in compiled:
            without = core.jaxpr_as_fun(eqn.params["call_jaxpr"])
            calls = (lambda full: _bind(eqn, full), lambda full: without(*full))
            compiled[number] = [_derivative(call, eqn, moving, inputs, dtype) for call in calls]
        with wide_arithmetic(dtype):
            wide = [widen_leaf(x, dtype) for x in inputs]
            by_rule, by_primal = ([np.asarray(g, np.float64) for g in both(wide)] for both in compiled[number])
    except Exception:  # noqa: BLE001  whatever a user's function or rule raises when it is differentiated alone
        return RuleReport(name, where, kind, "unresolved", None, float("nan"))
    worst = RuleReport(name, where, kind, "agrees", None, 0.0)
    for i, a, b in zip(moving, by_rule, by_primal, strict=True):
        half = float(jnp.finfo(inputs[i].dtype).eps) ** 0.5
        gap, size = np.abs(a - b), np.maximum(np.abs(a), np.abs(b))
        if not np.all(np.isfinite(b)):
            verdict, difference = "unresolved", float("nan")
        elif not np.all(np.isfinite(a)):
            verdict, difference = "not finite", float("nan")
        else:
            # As for a leaf, by the entry; entries that are rounding beside the others do not count.
            counts = size > 1e-9 * np.max(size, initial=0)
            difference = float(np.max(gap[counts] / size[counts], initial=0))
            verdict = "differs" if difference > half else "agrees"
        report = RuleReport(name, where, kind, verdict, i - _consts(eqn) if verdict != "agrees" else None, difference)
        worst = max(worst, report, key=lambda r: VERDICTS.index(r.verdict))
    return worst


def _derivative(call, eqn, moving, inputs, dtype):
    """The compiled derivative, in the wide dtype, of a random projection of what a rule's function returns."""
    rng = np.random.default_rng(0)
    weights = [
        jnp.asarray(rng.uniform(0.5, 1.5, v.aval.shape), v.aval.dtype) if _is_float(v.aval) else None for v in eqn.outvars
    ]

    def derivative(full):
        def projected(points):
            moved = list(full)
            for i, x in zip(moving, points, strict=True):
                moved[i] = x
            return sum(jnp.sum(w * y) for w, y in zip(weights, call(moved), strict=True) if w is not None)

        return jax.grad(projected)([full[i] for i in moving])

    return jax.jit(widen(derivative, (inputs,), dtype)[0])


def _consts(eqn):
    return eqn.params.get("num_consts", 0)


def _is_float(x):
    return jnp.issubdtype(jnp.result_type(x) if not hasattr(x, "dtype") else x.dtype, jnp.floating)


def _source(eqn):
    """Name of the function that carries a rule, and its file and line."""
    body = eqn.params["call_jaxpr"]
    name, _, where = getattr(body, "jaxpr", body).debug_info.func_src_info.partition(" at ")
    return name, where


def _is_jaxs(eqn):
    return _source(eqn)[1].startswith(_JAX)
