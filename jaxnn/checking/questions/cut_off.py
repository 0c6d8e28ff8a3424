"""Is a gradient zero because `stop_gradient` cuts it off?

Where operands of `stop_gradient` are treated as constant, as in `watch`, a zero gradient agrees. It
may be intended, or a layer that does not learn.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import primitives

from jaxnn.checking.held import stops
from jaxnn.checking.measure import Checked
from jaxnn.checking.patterns import NO_EFFECT
from jaxnn.numerical.interpret import called, evaluate

CUT_OFF = "zero: cut off by `stop_gradient`"


def applies(checked: Checked) -> bool:
    """Whether a leaf has no effect while the operands of `stop_gradient` are held."""
    held = checked.is_automatic and checked.check.settings.held
    idle = any(leaf.hint == NO_EFFECT for leaf in checked.leaves)
    return held and idle and bool(stops(checked.programs.program))


def ask(checked: Checked) -> frozenset[str]:
    """The leaves that reach the function's outputs only through `stop_gradient`."""
    program = checked.programs.program

    def reaches(number, through):
        def step(eqn, inputs):
            if eqn.primitive is primitives.stop_gradient_p and not through:
                return [False]
            if (inner := called(eqn)) is not None:
                return evaluate(inner, inputs, step, lambda _: False)
            return [any(inputs)] * len(eqn.outvars)

        starts: Sequence[Any] = [k == number for k in range(len(program.in_avals))]
        return any(evaluate(program, starts, step, lambda _: False))

    return frozenset(
        leaf.path
        for number, leaf in enumerate(checked.leaves)
        if leaf.hint == NO_EFFECT and reaches(number, True) and not reaches(number, False)
    )


def say(checked: Checked, cut: frozenset[str]) -> Checked:
    """The results, with these leaves reported as cut off."""
    hint = f"{CUT_OFF} ({', '.join(stops(checked.programs.program))})"
    leaves = [x._replace(hint=hint) if x.path in cut else x for x in checked.leaves]
    return checked.with_leaves(leaves)
