"""One equation of a tape: its question, whether its transposed solver is right, and which rule is
to blame if it is wrong, by name and location.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from jaxnn._arguments import as_complex, real_form
from jaxnn.checking.evidence import OF_SERIES, Verdict, relative_error
from jaxnn.checking.findings import RuleReport, SourceLine
from jaxnn.checking.further import ENDING, LOOSE, RUN_FURTHER
from jaxnn.checking.line import Line
from jaxnn.checking.moves import Direction
from jaxnn.checking.tape.layout import Site, is_inexact
from jaxnn.checking.tape.walk import Record, Tape, arithmetic, evaluated, of_active, vjp_of
from jaxnn.numerical.float64 import RULES, Evaluation, wide_arithmetic, widen, widen_leaf
from jaxnn.numerical.interpret import (
    LINEAR_CALL,
    Equation,
    avals_of,
    bind,
    called,
    equations_inside,
    has_custom_rule,
    linear_solve_parts,
    make_jaxpr,
    rule_primitives,
)
from jaxnn.numerical.sources import (
    PACKAGES,
    argument_paths,
    line_of,
    rule_consts,
    rule_source,
    source,
)

# The position of the right-hand side among the arguments of `custom_linear_solve`.
RHS = 1
# Primitives that read half of a symmetric matrix, which must therefore move symmetrically.
SYMMETRIC = frozenset([primitives.cholesky_p, primitives.eigh_p])


class SiteQuestion(NamedTuple):
    """A site as a function of its active inputs, in their real form; those that move together are
    one.

    Attributes:
      points: the active inputs.
      claims: the cotangent of each of them, from the site's pullback.
      paired: whether each of them is complex.
      rest: all inputs.
      cts: the cotangents of the outputs that have one.
    """

    points: list[Any]
    claims: list[Any]
    paired: list[bool]
    rest: list[Any]
    cts: list[Any]

    @classmethod
    def of(cls, site: Site, record: Record, number: int, dtype: Any) -> "SiteQuestion | None":
        """The question on a site; None if a cotangent or a claim is not finite, or if all
        cotangents are 0. Entries of inputs that are not finite, such as masks, do not move.
        """
        rest = [widen_leaf(record.values[s], dtype) for s in site.inputs]
        cts = [record.cotangents[site.outputs[j]] for j in site.asked]
        back = dict(zip(site.active, record.pulled[number], strict=True))
        points, claims, paired = [], [], []
        for together in site.moved:
            x = rest[together[0]]
            claim = functools.reduce(jnp.add, (back[i] for i in together))
            if site.eqn.primitive in SYMMETRIC:
                x, claim = symmetric(x), symmetric(claim)
            paired.append(jnp.iscomplexobj(x))
            points.append(real_form(x) if paired[-1] else x)
            claims.append(real_form(jnp.conj(claim)) if paired[-1] else claim)
        # NumPy avoids a compilation for each shape.
        fine = all(np.isfinite(np.asarray(x)).all() for x in (*cts, *claims) if is_inexact(x))
        some = any(np.asarray(ct).any() for ct in cts)
        return cls(points, claims, paired, rest, cts) if fine and some else None


def projected(
    site: Site,
    given: Any,
    points: Sequence[Any],
    dtype: Any,
    rules: Mapping[core.Primitive, Callable] = ENDING,
) -> Any:
    """The real part of the sum of the products of a site's cotangents and outputs, evaluated by
    `rules`. What has the cotangent 0 counts as 0, even if it is infinite.
    """
    rest, cts = given
    full = list(rest)
    for together, x in zip(site.moved, points, strict=True):
        for i in together:
            full[i] = as_complex(x) if jnp.iscomplexobj(rest[i]) else x
            if site.eqn.primitive in SYMMETRIC:
                full[i] = symmetric(full[i])
    outputs = evaluated(site.eqn, full, dtype, rules)
    pairs = [(ct, outputs[j]) for j, ct in zip(site.asked, cts, strict=True)]
    terms = [jnp.sum(jnp.real(ct * jnp.where(ct == 0, 0, y))) for ct, y in pairs]
    return functools.reduce(jnp.add, terms).astype(dtype)


def of_site(site: Site, full: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """A site's outputs that have cotangents, as a function of its active inputs."""
    return of_active(functools.partial(bind, site.eqn), site.active, site.asked, full)


def symmetric(x: Any) -> Any:
    """The symmetric part of a matrix."""
    return (x + jnp.conj(jnp.swapaxes(x, -1, -2))) / 2


def wrong_solve(site: Site, record: Record, dtype: Any) -> RuleReport | None:
    """A report on the transposed solver of a site; None if it is correct to its tolerance, or once
    it runs further.
    """
    run = Evaluation(dtype, RULES, set())
    further = run._replace(rules={**RULES, **RUN_FURTHER})
    with wide_arithmetic(dtype):
        inputs = [widen_leaf(record.values[slot], dtype) for slot in site.inputs]
        parts = linear_solve_parts(site.eqn.params, inputs)
        cts = [record.cotangents.get(s, jnp.zeros_like(record.values[s])) for s in site.outputs]
    flat = lambda arrays: np.concatenate([np.ravel(x) for x in arrays])  # noqa: E731
    product = lambda *x: run(parts.matvec, [*parts.matvec_consts, *x])  # noqa: E731
    for solver in (run, further):
        with wide_arithmetic(dtype):
            y = solver(parts.transposed, [*parts.transposed_consts, *cts])
            back = jax.vjp(product, *cts)[1](y)
        error = relative_error(flat(back), flat(cts))
        if not np.isfinite(error) or error <= LOOSE:
            return None
    line = SourceLine.of(site.line)
    return RuleReport(site.name, line, "transpose", Verdict.DIFFERS, RHS, error, where="")


def named(
    report: RuleReport, site: Site, asked: SiteQuestion, line: Line, wrong: Sequence[int]
) -> RuleReport:
    """The report on a site whose rule is wrong for some arguments, with the rule's name and
    location.
    """
    if has_custom_rule(site.eqn):
        assert report.argument is not None
        paths, consts = argument_paths(site.eqn), rule_consts(site.eqn)
        argument = report.argument - consts
        also = tuple(paths[i - consts] for i in wrong if i - consts in paths.keys() - {argument})
        report = of_rule(report, site.eqn, argument)
        return report._replace(argument=argument, path=paths.get(argument, ""), also=also)
    if _forward_fits(site, asked, line, dtype := asked.points[0].dtype):
        name = _wrong_transpose(site, asked, dtype) or report.name
        return report._replace(name=name, kind="transpose")
    return report


def of_rule(report: RuleReport, eqn: Equation, argument: int | None = None) -> RuleReport:
    """The report, with the name, the kind and the location of an equation's custom rule, or of the
    one for an argument, and the line that calls it.
    """
    return report._replace(
        name=source(eqn)[0],
        line=_call_of(eqn) or report.line,
        kind=kind_of_rule(eqn),
        where=line_of_rule(eqn, argument),
    )


def line_of_rule(eqn: Equation, argument: int | None = None) -> str:
    """The location of a rule, for an argument if it has one of its own; or, if it is unknown, of
    the rule's function; empty if that is unknown, too.
    """
    name, place = source(eqn)
    rule = rule_source(eqn, argument) or (place and f"{place} ({name})")
    return rule and str(SourceLine.of(rule))


def _call_of(eqn: Equation) -> SourceLine | None:
    """The line that calls a function with a custom rule; if that is in an installed package, the
    line that calls the packages. None if it is unknown.
    """
    folder, packages, _ = line_of(eqn).rpartition(PACKAGES)
    line = line_of(eqn, folder + packages)
    return SourceLine.of(line) if line else None


def kind_of_rule(eqn: Equation) -> str:
    """Whether a rule is a JVP, a VJP or the transpose of a linear function."""
    kinds = {primitives.custom_jvp_call_p: "custom_jvp", LINEAR_CALL: "transpose"}
    return kinds.get(eqn.primitive, "custom_vjp")


def rules_inside(
    tape: Tape, record: Record, number: int, report: RuleReport, same: float, only_custom: bool
) -> list[RuleReport]:
    """The report on each custom rule inside a site that the error may come from, from the report on
    the site: the only rule, if JAX's own are right, or those without which the derivative changes
    by more than the relative error `same`; the latter report if there is none.
    """
    within = equations_inside(tape.sites[number].eqn)
    inside = {line_of_rule(e): e for e in within if has_custom_rule(e)}
    if len(inside) > 1 or not only_custom:
        change = functools.partial(_change_without, tape, record, number)
        inside = {place: eqn for place, eqn in inside.items() if change(place) > same}
    return [_of_inner(report, eqn) for eqn in inside.values()] or [report]


def _change_without(tape: Tape, record: Record, number: int, place: str) -> float:
    """The relative change of the derivative of a site without the rule at a place; 0 if there is no
    such derivative.
    """
    site = tape.sites[number]

    def kept(eqn, inputs, evaluation):
        is_it = line_of_rule(eqn) == place
        return evaluation(called(eqn), inputs) if is_it else bind(eqn, inputs)

    # It widens nothing: the site keeps its dtypes.
    own = Evaluation(jnp.float16, {**RULES, **dict.fromkeys(rule_primitives(), kept)}, set())
    call = lambda full: own.step(site.eqn, list(full))  # noqa: E731
    pull = vjp_of(call, site.eqn, site.active, site.asked, tape.dtype)
    if pull is None:
        return 0.0
    with arithmetic(tape.dtype):
        inputs = [record.values[s] for s in site.inputs]
        without = pull(inputs, [record.cotangents[site.outputs[j]] for j in site.asked])
    pairs = zip(without, record.pulled[number], strict=True)
    return max(relative_error(x, y) for x, y in pairs)


def _of_inner(report: RuleReport, eqn: Equation) -> RuleReport:
    """The report on a custom rule inside an equation, from the report on the equation."""
    names = list(argument_paths(eqn).values())
    path = names[0] if len(names) == 1 else f"{report.name}[{report.argument}]"
    return of_rule(report, eqn)._replace(path=path)


def _changes(site: Site) -> Callable:
    """A function that maps inputs and tangents to the outputs' tangents, by the site's JVP rule."""

    def changes(full, tangents):
        return jax.jvp(of_site(site, full), ([full[i] for i in site.active],), (tangents,))[1]

    return changes


def _forward_fits(site: Site, asked: SiteQuestion, line: Line, dtype: Any) -> bool:
    """Whether the JVP rule agrees with the values, so that the transpose is to blame."""
    avals = avals_of(site.eqn.invars)
    tangents, direction = [avals[i] for i in site.active], Direction.through(line.sizes)
    moves, _ = line.draw(asked.claims, direction)
    with wide_arithmetic(dtype):
        given = [as_complex(v) if pair else v for v, pair in zip(moves, asked.paired, strict=True)]
        if site.eqn.primitive in SYMMETRIC:
            given = [symmetric(v) for v in given]
        pairs = zip(site.moved, map(jnp.asarray, given), strict=True)
        move = {i: v for together, v in pairs for i in together}
        given = [move[i] for i in site.active]
    try:
        forward = widen(_changes(site), (avals, tangents), dtype)
        with wide_arithmetic(dtype):
            dys = forward(asked.rest, given)
    except Exception:  # no JVP exists, which JAX may notice only inside a loop
        return False
    pairs = zip(asked.cts, dys, strict=True)
    claim = sum(float(np.sum(np.real(np.asarray(ct) * np.asarray(dy)))) for ct, dy in pairs)
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
