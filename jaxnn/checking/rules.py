"""Custom derivative rules: which of them is wrong.

A function with `jax.custom_jvp` or `jax.custom_vjp` inside is evaluated once, and the inputs that each rule is called with are
kept. There, the derivative by the rule is compared with the derivative of the function that carries it, differentiated as if
it had no rule, both in float64. Where that function cannot be differentiated (a loop, a host callback), nothing is said: the
numerical verdict decides. JAX's own rules are not looked at.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn.checking.report import VERDICTS, RuleReport
from jaxnn.numerical.widen import wide_arithmetic, widen, widen_leaf

_JAX = os.path.dirname(jax.__file__)
_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}
_RULES = ("custom_jvp_call", "custom_vjp_call")


def check_rules(closed: core.ClosedJaxpr, args: Any, dtype: Any) -> tuple[RuleReport, ...]:
    """Check each custom rule that a traced function calls, on the inputs that it gets; worst first.

    Args:
      closed: the function, traced.
      args: what to call it with; a pytree of arrays.
      dtype: the wide dtype.
    """
    if not _has_rules(closed.jaxpr):
        return ()
    sites: list[Any] = []

    def inputs_of_rules(*leaves):
        sites.clear()
        return _walk(closed.jaxpr, closed.consts, leaves, sites)[1]

    found = jax.jit(inputs_of_rules)(*jax.tree.leaves(args))
    reports = [_check_site(eqn, inputs, dtype) for eqn, inputs in zip(sites, found, strict=True)]
    worst: dict[tuple[str, str], RuleReport] = {}
    for report in reports:
        before = worst.get((report.name, report.where))
        if before is None or VERDICTS.index(report.verdict) > VERDICTS.index(before.verdict):
            worst[report.name, report.where] = report
    return tuple(sorted(worst.values(), key=lambda r: -VERDICTS.index(r.verdict)))


def _has_rules(jaxpr):
    return any(
        (eqn.primitive.name in _RULES and not _is_jaxs(eqn)) or (eqn.primitive.name in _CALLS and _has_rules(_body(eqn)[0]))
        for eqn in jaxpr.eqns
    )


def _walk(jaxpr, consts, args, sites):
    """Evaluate a jaxpr; the outputs, and the inputs of each custom rule, whose equations are added to `sites`."""
    values, found = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True)), []
    for eqn in jaxpr.eqns:
        inputs = [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in eqn.invars]
        if eqn.primitive.name in _CALLS:
            outputs, inner = _walk(*_body(eqn), inputs, sites)
            found += inner
        else:
            if eqn.primitive.name in _RULES and not _is_jaxs(eqn):
                sites.append(eqn)
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


def _check_site(eqn, inputs, dtype):
    name, where = _source(eqn)
    kind = eqn.primitive.name.removesuffix("_call")
    half = max((float(jnp.finfo(x.dtype).eps) ** 0.5 for x in map(jnp.asarray, inputs) if _is_float(x)), default=0.0)
    moving = [i for i, x in enumerate(inputs) if _is_float(x) and i >= _consts(eqn)]
    rng = np.random.default_rng(0)
    weights = [
        jnp.asarray(rng.uniform(0.5, 1.5, v.aval.shape), v.aval.dtype) if _is_float(v.aval) else None for v in eqn.outvars
    ]

    def pulled(call):
        def derivative(points):
            def projected(points):
                full = list(inputs)
                for i, x in zip(moving, points, strict=True):
                    full[i] = x
                return sum(jnp.sum(w * y) for w, y in zip(weights, call(full), strict=True) if w is not None)

            return jax.grad(projected)(points)

        return derivative

    points = [jnp.asarray(inputs[i]) for i in moving]
    try:
        by_rule, by_primal = (
            _widened(pulled(call), points, dtype)
            for call in (lambda full: _bind(eqn, full), lambda full: core.jaxpr_as_fun(eqn.params["call_jaxpr"])(*full))
        )
    except Exception:  # noqa: BLE001  whatever a user's function or rule raises when it is differentiated alone
        return RuleReport(name, where, kind, "unresolved", None, float("nan"))
    worst = RuleReport(name, where, kind, "agrees", None, 0.0)
    for i, a, b in zip(moving, by_rule, by_primal, strict=True):
        if not np.all(np.isfinite(b)):
            worst = max(worst, worst._replace(verdict="unresolved"), key=lambda r: VERDICTS.index(r.verdict))
            continue
        gap = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.linalg.norm(a), np.finfo(float).tiny))
        verdict = "not finite" if not np.all(np.isfinite(a)) else "differs" if gap > half else "agrees"
        report = RuleReport(name, where, kind, verdict, i - _consts(eqn) if verdict != "agrees" else None, gap)
        worst = max(worst, report, key=lambda r: (VERDICTS.index(r.verdict), r.difference))
    return worst


def _widened(function, points, dtype):
    wide, _, _ = widen(function, (points,), dtype)
    with wide_arithmetic(dtype):
        return [np.asarray(g, np.float64) for g in jax.jit(wide)([widen_leaf(x, dtype) for x in points])]


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
