"""At which kinks do right derivative rules give a wrong gradient?

At a kink, a rule chooses one of many slopes. Choices that are right one by one need not be right
together: `jax.grad` gives 0 for `relu(x) - relu(-x)` at 0, which is `x`.
"""

from collections.abc import Sequence

from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import LINES, SourceLine
from jaxnn.checking.measure import Checked
from jaxnn.checking.questions.rules import slopes_of_sites
from jaxnn.checking.tape.layout import Site
from jaxnn.checking.tape.walk import seeds_of
from jaxnn.numerical.float64 import wide_dtype


def applies(checked: Checked) -> bool:
    """Whether a leaf differs, and no rule is wrong."""
    return checked.is_automatic and bool(checked.wrong) and not checked.rules


def ask(checked: Checked) -> list[str]:
    """The equations that have a kink here, each with its line."""
    tape = checked.programs.tape(checked.check.point, wide_dtype())
    record = tape.record(checked.values, seeds_of(checked.programs.program))
    asked = [number for number, site in enumerate(tape.sites) if site.asked]
    slopes = slopes_of_sites(tape, record, asked)
    return list(
        dict.fromkeys(
            _named(tape.sites[number])
            for number, _, _, slope in slopes
            if slope.kink or slope.jumps
        )
    )


def say(checked: Checked, found: Sequence[str]) -> Checked:
    """The results, with the kinks as the hint at wrong leaves, unless a solver may be the cause."""
    if not found:
        return checked
    more = f" and {len(found) - LINES} more" if len(found) > LINES else ""
    hint = (
        "each derivative rule is right, but autodiff's choices at kinks need not add up to the "
        f"slope: {', '.join(found[:LINES])}{more}"
    )
    leaves = [
        leaf._replace(hint=hint)
        if leaf.verdict is Verdict.DIFFERS and leaf.path not in checked.before
        else leaf
        for leaf in checked.leaves
    ]
    return checked.with_leaves(leaves)


def _named(site: Site) -> str:
    """What is called at a site, and its line if it is known."""
    line = SourceLine.of(site.line)
    return f"`{site.name}`" + (f" at {line}" if line.file else "")
