"""Programs in which what `stop_gradient` stops, or a trusted rule, is held at the point.

A gradient that passes through `stop_gradient` is the derivative of another function: one in which
what is stopped keeps its value at the point. That function is evaluated here at the point and
next to it in step, so that what is stopped there can be taken from the point. A custom rule that is
trusted (straight-through, say) is held likewise: its function goes on from the point along the
derivative that the rule claims.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.checking.findings import SourceLine
from jaxnn.numerical.float64 import Evaluation
from jaxnn.numerical.interpret import (
    CUSTOM_RULES,
    Equation,
    Program,
    bind,
    called,
    equations,
    line_of,
    source,
)

# The axis along which the point and a point next to it are evaluated.
_AXIS = "jaxnn_held"


def stops(program: Program) -> tuple[str, ...]:
    """Where a program calls `stop_gradient`: file, line and function, each once."""
    found = (e for e in equations(program) if e.primitive is primitives.stop_gradient_p)
    lines = filter(None, map(line_of, found))
    return tuple(dict.fromkeys(str(SourceLine.of(line)) for line in lines))


def holding(
    stopped: bool, trust: Sequence[str]
) -> dict[core.Primitive, Callable[[Equation, list[Any], Evaluation], Any]]:
    """Evaluation rules for `beside` that hold what is stopped, and the rules that are trusted."""

    def trusted(eqn, inputs, evaluation):
        if source(eqn)[0] not in trust:
            return evaluation(called(eqn), inputs)
        plain = {p: rule for p, rule in evaluation.rules.items() if p not in CUSTOM_RULES}
        along_rule = evaluation._replace(rules=plain)
        return along_rule(_continued(eqn), [*map(_at_point, inputs), *inputs])

    rules: dict[core.Primitive, Callable] = dict.fromkeys(CUSTOM_RULES, trusted) if trust else {}
    if stopped:
        rules[primitives.stop_gradient_p] = lambda _, inputs, __: [_at_point(inputs[0])]
    return rules


def beside(value: Callable) -> Callable:
    """`value` as a function of a point, a point next to it, and data: both evaluated in step."""

    def held(point, moved, data):
        both = [jnp.stack(pair) for pair in zip(point, moved, strict=True)]
        return jax.vmap(lambda x: value(x, data), axis_name=_AXIS)(both)[1]

    return held


def _at_point(x: Any) -> Any:
    """The value here at the point, for both points."""
    return lax.all_gather(x, _AXIS)[0]


def _continued(eqn: Equation) -> Program:
    """The function of a call with a rule, continued from one set of inputs to another along the
    derivative that the rule claims at the first.
    """
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    moving = [i for i, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.inexact)]

    def of(start, some):
        full = list(start)
        for i, x in zip(moving, some, strict=True):
            full[i] = x
        return bind(eqn, full)

    def continued(*both):
        start, end = both[: len(avals)], both[len(avals) :]
        some = [start[i] for i in moving]
        steps = [end[i] - start[i] for i in moving]
        if eqn.primitive is primitives.custom_jvp_call_p:
            outputs, changes = jax.jvp(lambda *x: of(start, x), tuple(some), tuple(steps))
        else:
            outputs, back = jax.vjp(lambda *x: of(start, x), *some)
            changes = _transposed(eqn, back, outputs, tuple(steps))
            changes = changes[0] if isinstance(changes, tuple) and len(changes) == 1 else changes
        return [y + dy for y, dy in zip(outputs, changes, strict=True)]

    return jax.make_jaxpr(continued)(*avals, *avals)


def _transposed(eqn: Equation, back: Callable, outputs: Any, steps: Any) -> Any:
    """How outputs change with inputs, according to a rule for the backward pass."""
    try:
        return jax.linear_transpose(back, outputs)(steps)
    except Exception as error:  # of a rule: JAX and its users raise anything
        name = source(eqn)[0]
        raise TypeError(
            "`trust` must name rules that are linear in the cotangent, as derivatives are. Got "
            f"{name!r}: {error}"
        ) from error
