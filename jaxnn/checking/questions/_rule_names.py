"""The name and location of a wrong rule, and whether its JVP or its transpose is to blame."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from jaxnn._arguments import as_complex
from jaxnn.checking.evidence import OF_SERIES, Verdict
from jaxnn.checking.findings import RuleReport, SourceLine
from jaxnn.checking.line import Direction, Line
from jaxnn.checking.moves import drawer
from jaxnn.checking.site import SYMMETRIC, SiteQuestion, of_site, symmetric, whole
from jaxnn.checking.tape import Site, Tape, arithmetic, avals_of
from jaxnn.numerical.float64 import wide_arithmetic, widen, widen_leaf
from jaxnn.numerical.interpret import (
    PACKAGES,
    Equation,
    argument_paths,
    equations_inside,
    has_custom_rule,
    line_of,
    make_jaxpr,
    rule_consts,
    rule_source,
    source,
)


class Worst(NamedTuple):
    """The argument in which a rule has the largest error, in the form of `RuleReport`."""

    argument: int
    entry: tuple[int, ...] | None
    difference: float
    verdict: Verdict


def named(site: Site, asked: SiteQuestion, line: Line, worst: Worst, dtype: Any) -> RuleReport:
    """The report on a wrong rule, with its name and location."""
    name, where, place, path = site.name, "", SourceLine.of(site.line), ""
    argument = worst.argument
    if has_custom_rule(site.eqn):
        kind, where = kind_of_rule(site.eqn), line_of_rule(site.eqn)
        place = _call_of(site.eqn) or place
        argument -= rule_consts(site.eqn)
        path = argument_paths(site.eqn).get(argument, "")
    else:
        kind = "jvp"
        if _forward_fits(site, asked, line, dtype):
            name, kind = _wrong_transpose(site, asked, dtype) or name, "transpose"
    return RuleReport(
        name, place, kind, worst.verdict, argument, worst.difference, where, worst.entry, path
    )


def line_of_rule(eqn: Equation) -> str:
    """The location of a rule or, if it is unknown, of the rule's function."""
    name, place = source(eqn)
    return str(SourceLine.of(rule_source(eqn) or f"{place} ({name})"))


def _call_of(eqn: Equation) -> SourceLine | None:
    """The line that calls a function with a custom rule; if the function is in an installed
    package, the line that calls the package. None if it is unknown.
    """
    folder, packages, inside = source(eqn)[1].rpartition(PACKAGES)
    package = folder + packages + inside.split(os.sep)[0] + os.sep if packages else ""
    line = line_of(eqn, package)
    return SourceLine.of(line) if line else None


def kind_of_rule(eqn: Equation) -> str:
    """Whether a rule is a JVP or a VJP."""
    is_jvp = eqn.primitive is primitives.custom_jvp_call_p
    return "custom_jvp" if is_jvp else "custom_vjp"


def only_rule_inside(report: RuleReport, eqn: Equation) -> RuleReport:
    """The report on the only custom rule inside an equation, from the report on the equation; the
    latter if it contains several.
    """
    inside = [inner for inner in equations_inside(eqn) if has_custom_rule(inner)]
    if len({line_of_rule(inner) for inner in inside}) != 1:
        return report
    inner, path = inside[0], f"{report.name}[{report.argument}]"
    return report._replace(
        name=source(inner)[0],
        line=_call_of(inner) or report.line,
        kind=kind_of_rule(inner),
        where=line_of_rule(inner),
        path=path,
    )


def _changes(site: Site) -> Callable:
    """A function that maps inputs and tangents to the outputs' tangents, by the site's JVP rule."""

    def changes(full, tangents):
        return jax.jvp(of_site(site, full), ([full[i] for i in site.active],), (tangents,))[1]

    return changes


def _forward_fits(site: Site, asked: SiteQuestion, line: Line, dtype: Any) -> bool:
    """Whether the JVP rule agrees with the values, so that the transpose is to blame."""
    avals = avals_of(site.eqn.invars)
    tangents = [avals[i] for i in site.active]
    with wide_arithmetic(dtype):
        moves, _ = drawer(asked.points, dtype)(asked.claims, whole(line.sizes))
        given = [as_complex(v) if pair else v for v, pair in zip(moves, asked.paired, strict=True)]
        if site.eqn.primitive in SYMMETRIC:
            given = [symmetric(v) for v in given]
        given = [jnp.asarray(v) for v in given]
    try:
        forward = widen(_changes(site), (avals, tangents), dtype).call
        with wide_arithmetic(dtype):
            dys = forward(asked.rest, given)
    except Exception:  # no JVP exists, which JAX may notice only inside a loop
        return False
    pairs = zip(asked.cts, dys, strict=True)
    claim = sum(float(np.sum(np.real(np.asarray(ct) * np.asarray(dy)))) for ct, dy in pairs)
    direction = Direction(tuple(line.whole(k) for k in range(len(asked.points))))
    comparison = line.compare(asked.claims, direction)
    off, slope = abs(claim - comparison.slope.value), comparison.slope
    return off <= slope.bound + OF_SERIES * max(abs(claim), abs(slope.value))


def _wrong_transpose(site: Site, asked: SiteQuestion, dtype: Any) -> str | None:
    """The primitive in the linearised site whose transpose is wrong: <ct, L t> differs from
    <L^T ct, t>. None if there is none.
    """
    avals = avals_of(site.eqn.invars)
    tangents = [avals[i] for i in site.active]
    program = make_jaxpr(_changes(site))(avals, tangents)
    moving = [False] * len(avals) + [True] * len(tangents)
    linear = Tape(program, moving, dtype)
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in tangents]
    with arithmetic(dtype):
        rest = [widen_leaf(x, dtype) for x in (*asked.rest, *given)]
    record = linear.record(rest, asked.cts)
    for number, inner in reversed(list(enumerate(linear.sites))):
        if not inner.asked:
            continue
        there = [
            np.sum(np.real(np.asarray(record.cotangents[s]) * np.asarray(record.values[s])))
            for s in (inner.outputs[j] for j in inner.asked)
        ]
        back = [
            np.real(np.asarray(ct) * np.asarray(record.values[inner.inputs[i]]))
            for i, ct in zip(inner.active, record.pulled[number], strict=True)
        ]
        size = sum(float(np.linalg.norm(x)) for x in back) + sum(map(abs, there))
        if abs(sum(there) - sum(np.sum(x) for x in back)) > OF_SERIES * size:
            return inner.eqn.primitive.name
    return None
