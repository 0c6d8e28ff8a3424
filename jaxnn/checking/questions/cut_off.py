"""Is a gradient zero because `stop_gradient` cuts it off?

Where operands of `stop_gradient` are treated as constant, as in `watch`, a zero gradient agrees. It
may be intended, or a layer that does not learn.
"""

from jax.extend.core import primitives

from jaxnn.checking.held import stops
from jaxnn.checking.measure import Checked, first_of
from jaxnn.checking.patterns import NO_EFFECT
from jaxnn.numerical.interpret import dependencies

CUT_OFF = "cut off by `stop_gradient`"


def applies(checked: Checked) -> bool:
    """Whether a leaf has no effect while the operands of `stop_gradient` are held."""
    held = checked.is_automatic and checked.check.settings.held
    idle = any(leaf.hint == NO_EFFECT for leaf in checked.leaves)
    return held and idle and bool(stops(checked.programs.program))


def ask(checked: Checked) -> frozenset[str]:
    """The leaves that reach the function's outputs only through `stop_gradient`."""
    nothing, program = frozenset(), checked.programs.program
    any_way = nothing.union(*dependencies(program, lambda *_: True))
    held = dependencies(program, lambda eqn, _: eqn.primitive is not primitives.stop_gradient_p)
    cut = any_way.difference(*held)
    leaves = enumerate(checked.leaves)
    return frozenset(leaf.path for k, leaf in leaves if leaf.hint == NO_EFFECT and k in cut)


def say(checked: Checked, cut: frozenset[str]) -> Checked:
    """The results, with these leaves reported as cut off."""
    hint = f"{CUT_OFF} ({', '.join(first_of(stops(checked.programs.program)))})"
    leaves = [x._replace(hint=hint) if x.path in cut else x for x in checked.leaves]
    return checked.with_leaves(leaves)
