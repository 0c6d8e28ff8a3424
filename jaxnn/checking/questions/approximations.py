"""Is a wrong gradient that of an approximation which a check cannot tighten?

Examples are adaptive steps inside a custom rule, as in `odeint`, and draws by rejection, whose
gradient is that of the distribution. This is asked of leaves that the wrong rules, if any are
found, do not explain.
"""

from collections.abc import Callable

import numpy as np

from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import LeafReport
from jaxnn.checking.further import LOOSE
from jaxnn.checking.measure import Checked
from jaxnn.checking.questions.solvers import is_iterative, is_sampler, only_fine_steps_differ
from jaxnn.numerical.interpret import (
    Equation,
    called,
    dependencies,
    equations_inside,
)
from jaxnn.numerical.sources import operation_name

OF_SAMPLER = (
    "samples drawn by rejection, as from a gamma distribution, have an implicit gradient: it "
    "follows the distribution at a fixed quantile, not the sample itself"
)


def applies(checked: Checked) -> bool:
    """Whether a leaf differs, of a function that JAX can trace."""
    return checked.programs.program is not None and bool(checked.wrong)


def ask(checked: Checked) -> dict[str, str]:
    """By path, a hint on each leaf that differs, reaches a sampler or a custom rule around a loop,
    and does not reach a rule that was found to be wrong.
    """
    sampled, looped = (checked.wrong & _reaching(checked, of) for of in (is_sampler, is_iterative))
    if not (sampled or looped):
        return {}
    names = {rule.name for rule in checked.rules}
    explained = _reaching(checked, lambda eqn: operation_name(eqn) in names)
    close = {
        leaf.path: "the difference may be due to an inner solver's tolerance"
        for leaf in checked.leaves
        if leaf.path in looped - explained and _is_close(leaf)
    }
    return close | dict.fromkeys(sampled - explained, OF_SAMPLER)


def say(checked: Checked, hints: dict[str, str]) -> Checked:
    """The results, with the leaves "unresolved" that an approximation may explain."""
    return checked.with_leaves(
        [
            leaf._replace(verdict=Verdict.UNRESOLVED, hint=hints[leaf.path])
            if leaf.path in hints
            else leaf
            for leaf in checked.leaves
        ]
    )


def _reaching(checked: Checked, holds: Callable[[Equation], bool]) -> frozenset[str]:
    """The paths of the leaves that an equation depends on for which `holds` is true, or a loop that
    contains one.
    """
    reached: set[int] = set()

    def passes(eqn, inputs):
        inside = equations_inside(eqn) if called(eqn) is None else ()
        if any(map(holds, (eqn, *inside))):
            reached.update(*inputs)
        return True

    dependencies(checked.programs.program, passes)
    return frozenset(path for k, path in enumerate(checked.paths) if k in reached)


def _is_close(leaf: LeafReport) -> bool:
    """Whether a gradient is off by no more than a loose solver's tolerance explains."""
    off = [abs(e.autodiff - e.numerical) / abs(e.numerical) for e in leaf.entries if e.numerical]
    close = leaf.digits > -np.log10(LOOSE) and max(off, default=0.0) < LOOSE
    return close or only_fine_steps_differ(leaf.autodiff, leaf.numerical, leaf.differences)
