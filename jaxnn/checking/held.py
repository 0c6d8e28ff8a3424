"""Evaluation rules that hold the operands of `stop_gradient`, and trusted rules, at the point.

With `stop_gradient`, autodiff gives the derivative of another function, in which the stopped
operands keep their values at the point. That function is evaluated at the point and at a moved
point together, so that the moved evaluation can use operands from the point. A function with a
trusted custom rule (such as a straight-through estimator) is continued from the point linearly,
along the derivative that the rule claims.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend import core
from jax.extend.core import primitives

from jaxnn._validate import reason_of
from jaxnn.checking.findings import SourceLine
from jaxnn.checking.tape.layout import is_inexact
from jaxnn.checking.tape.walk import of_active
from jaxnn.numerical.float64 import Evaluation
from jaxnn.numerical.interpret import (
    Equation,
    Program,
    avals_of,
    bind,
    called,
    equations,
    make_jaxpr,
    rule_primitives,
)
from jaxnn.numerical.sources import is_stopped_by_jax, line_of, source

# The axis that joins the point and the moved point.
_AXIS = "jaxnn_held"


def stops(program: Program) -> tuple[str, ...]:
    """The distinct lines at which a program calls `stop_gradient`, as file, line and function; not
    those where JAX's own functions do.
    """
    stopping = (e for e in equations(program) if e.primitive is primitives.stop_gradient_p)
    found = (eqn for eqn in stopping if not is_stopped_by_jax(eqn))
    lines = filter(None, map(line_of, found))
    return tuple(dict.fromkeys(str(SourceLine.of(line)) for line in lines))


def holding(
    stopped: bool, trust: Sequence[str]
) -> dict[core.Primitive, Callable[[Equation, list[Any], Evaluation], Any]]:
    """Evaluation rules, for use within `beside`, that hold stopped operands and trusted rules."""

    def trusted(eqn, inputs, evaluation):
        if source(eqn)[0] not in trust:
            return evaluation(called(eqn), inputs)
        plain = {p: rule for p, rule in evaluation.rules.items() if p not in rule_primitives()}
        along_rule = evaluation._replace(rules=plain)
        unmoved = custom_vmap(lambda *x: evaluation._replace(narrow=set())(called(eqn), x))

        @unmoved.def_vmap
        def moved(_, batched, *both):
            pairs = list(zip(both, batched, strict=True))
            start, end = ([x[k] if many else x for x, many in pairs] for k in (0, 1))
            outputs = along_rule(_continued(eqn, batched), [*start, *end])
            return outputs, [True] * len(outputs)

        return unmoved(*inputs)

    rules: dict[core.Primitive, Callable] = (
        dict.fromkeys(rule_primitives(), trusted) if trust else {}
    )
    if stopped:
        rules[primitives.stop_gradient_p] = lambda eqn, inputs, _: (
            inputs if is_stopped_by_jax(eqn) else [_at_point(inputs[0])]
        )
    return rules


def beside(value: Callable) -> Callable:
    """A function of a point, a moved point and data that evaluates `value` at both points together
    and returns its value at the moved point.
    """

    def held(point, moved, data):
        both = [jnp.stack(pair) for pair in zip(point, moved, strict=True)]
        return jax.vmap(lambda x: value(x, data), axis_name=_AXIS)(both)[1]

    return held


def _at_point(x: Any) -> Any:
    """The value of `x` at the point, for both points."""
    return lax.all_gather(x, _AXIS)[0]


def _continued(eqn: Equation, moved: Sequence[bool]) -> Program:
    """A program that takes the start and end inputs of a function with a custom rule. It returns
    the outputs at the start, stacked with those at the end if the function continues linearly along
    the derivative that the rule claims at the start. Only `moved` inputs are differentiated, since
    the rule may refuse the others.
    """
    avals = avals_of(eqn.invars)
    moving = [i for i, aval in enumerate(avals) if moved[i] and is_inexact(aval)]
    smooth = [j for j, aval in enumerate(avals_of(eqn.outvars)) if is_inexact(aval)]

    def continued(*both):
        start, end = both[: len(avals)], both[len(avals) :]
        of = of_active(functools.partial(bind, eqn), moving, range(len(eqn.outvars)), start)

        def smooth_of(points):
            outputs = of(points)
            return [outputs[j] for j in smooth], outputs

        some, steps = [start[i] for i in moving], [end[i] - start[i] for i in moving]
        outputs, back, starts = jax.vjp(smooth_of, some, has_aux=True)
        (changes,) = _transposed(eqn, back, outputs, (steps,))
        ends = list(starts)
        for j, change in zip(smooth, changes, strict=True):
            ends[j] += change
        return [jnp.stack(pair) for pair in zip(starts, ends, strict=True)]

    return make_jaxpr(continued)(*avals, *avals)


def _transposed(eqn: Equation, back: Callable, outputs: Any, steps: Any) -> Any:
    """The change of the outputs for a change `steps` of the inputs, according to a VJP rule."""
    try:
        return jax.linear_transpose(back, outputs)(steps)
    except Exception as error:  # a derivative rule may raise anything
        name = source(eqn)[0]
        raise TypeError(
            "`trust` must name rules that are linear in the cotangent, as derivatives are. Got "
            f"{name!r}: {reason_of(error)}"
        ) from None
