"""Which derivative rule is wrong?

It is the one that does not give the derivative of the values, at the inputs and the cotangents that
its equation really has. Every equation is checked along one line; a suspect is then examined as a
gradient is, and so is what is inside it: the innermost is to blame. For a primitive, a wrong JVP
is told apart from a wrong transpose.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from jaxnn._arguments import as_complex, real_form
from jaxnn.checking.evidence import (
    OF_SERIES,
    ROUNDINGS,
    ROUNDINGS_BETWEEN_CALLS,
    Evidence,
    Verdict,
    explained,
    judge,
    reach,
    relative_error,
)
from jaxnn.checking.findings import LINES, LeafReport, RuleReport, SourceLine
from jaxnn.checking.further import LOOSE
from jaxnn.checking.line import Direction, Line, along_program
from jaxnn.checking.locate import Claimed, examine, verdict_of
from jaxnn.checking.measure import Checked
from jaxnn.checking.moves import Question, drawer
from jaxnn.checking.questions.solvers import within_approximation
from jaxnn.checking.slope import HALF, estimate_slope, ladder
from jaxnn.checking.tape import (
    Record,
    Site,
    Tape,
    arithmetic,
    avals_of,
    evaluated,
    is_inexact,
    of_active,
    seeds_of,
)
from jaxnn.numerical.float64 import wide_arithmetic, wide_dtype, widen, widen_leaf
from jaxnn.numerical.interpret import (
    CUSTOM_RULES,
    bind,
    called,
    equations,
    rule_consts,
    rule_source,
    source,
)

# Primitives that see one half of a symmetric matrix: it is moved symmetrically.
SYMMETRIC = frozenset([primitives.cholesky_p, primitives.eigh_p])
# Iterations of one loop whose rules are checked.
SAMPLE = 32


def applies(checked: Checked) -> bool:
    """Whether a rule may decide what the slope of a leaf could not."""
    suspicious = any(map(_is_suspicious, checked.leaves))
    return checked.is_automatic and (suspicious or _has_another_value(checked))


def ask(checked: Checked) -> list[RuleReport]:
    """The rules that are wrong."""
    programs = checked.programs
    tape = programs.tape(checked.check.point, wide_dtype())
    return wrong_rules(tape, checked.values, seeds_of(programs.program))


def say(checked: Checked, found: list[RuleReport]) -> Checked:
    """The first few; and what a wrong rule, or none, says about the leaves."""
    leaves = checked.leaves
    if found:
        leaves = [_wrong_by_rule(leaf) if _is_suspicious(leaf) else leaf for leaf in leaves]
    else:
        leaves = [within_approximation(leaf, checked.programs.program) for leaf in leaves]
    checked = checked.with_leaves(leaves)._replace(rules=tuple(found[:LINES]))
    if not _has_another_value(checked):
        return checked
    note = (
        f"where it is differentiated the function has another value, {checked.claims.forward:.6g} "
        f"instead of {checked.centre:.6g}: the forward pass of a custom rule"
    )
    return checked.with_note(note)._replace(least=Verdict.DIFFERS)


def _is_suspicious(leaf: LeafReport) -> bool:
    """Whether a leaf differs, is unresolved, or is off by more than its dtype explains, though by
    less than is called wrong.
    """
    return leaf.verdict in (Verdict.DIFFERS, Verdict.UNRESOLVED) or leaf.is_slightly_off


def _wrong_by_rule(leaf: LeafReport) -> LeafReport:
    """A leaf that a wrong rule leads to, with the entries that are off by more than is explained,
    though by less than is called wrong otherwise.
    """
    if leaf.verdict is Verdict.DIFFERS:
        return leaf
    entries = tuple(
        entry._replace(verdict=Verdict.DIFFERS)
        for entry in leaf.entries
        if abs(entry.autodiff - entry.numerical)
        > max(entry.bound, explained(leaf.dtype) * abs(entry.numerical))
    )
    hint = "a rule that it comes from is wrong by more than its dtype explains"
    return leaf._replace(verdict=Verdict.DIFFERS, hint=hint, entries=entries)


def _has_another_value(checked: Checked) -> bool:
    """Whether the function has another value where it is differentiated."""
    forward, centre = checked.claims.forward, checked.centre
    if not (np.isfinite(forward) and np.isfinite(centre)):
        return False
    bound = ROUNDINGS_BETWEEN_CALLS * float(np.finfo(np.float64).eps) * abs(centre)
    tolerance = min(reach(x.dtype) for x in checked.check.point.leaves)
    return judge(Evidence(forward, centre, centre, bound), tolerance).wrong


def wrong_rules(tape: Tape, inputs: Sequence[Any], seeds: Sequence[Any]) -> list[RuleReport]:
    """The rules whose derivative is not that of the values, by the inputs that they really have.

    Args:
      tape: of a program, in a wide dtype.
      inputs: its values.
      seeds: the cotangents of its outputs, None for those without.
    """
    record = tape.record(inputs, seeds)
    found, suspects = [], set(_suspects(tape, record))
    for number, site in enumerate(tape.sites):
        report = None
        if number in suspects:
            report = _examined(tape, record, number)
        if report is None and site.asked and site.eqn.primitive in CUSTOM_RULES:
            report = _with_another_value(site, record, tape.dtype)
        if report is None:
            continue
        inner = []
        for inside in _sampled(tape.inside(number, record)):
            if any(seed is not None for seed in inside.seeds):
                inner = wrong_rules(tape.tape_of(inside), inside.inputs, inside.seeds)
            if inner:
                break
        found += inner or [report]
    worst: dict[Any, RuleReport] = {}
    for report in found:  # the first line of each rule; of one line, once
        worst.setdefault((report.name, report.kind, report.line.file, report.line.line), report)
    return list(worst.values())


def _sampled(insides: Sequence[Any]) -> Sequence[Any]:
    places = np.unique(np.linspace(0, len(insides) - 1, min(len(insides), SAMPLE)).astype(int))
    return [insides[i] for i in places]


def _suspects(tape: Tape, record: Record) -> list[int]:
    """The sites whose claims and values differ along one line."""
    asked, given, sums = [], [], []
    for number, site in enumerate(tape.sites):
        if not site.asked or site.eqn.primitive is primitives.random_gamma_p:
            continue
        with arithmetic(tape.dtype):
            question = _Asked.of(site, record, number, tape.dtype)
            if question is None:
                continue
            sizes = [x.size for x in question.points]
            moves, along = drawer(question.points, tape.dtype)(question.claims, _whole(sizes))
            moves = [jnp.asarray(v) for v in moves]
        asked.append(number)
        given.append((question.points, moves, (question.rest, question.cts)))
        sums.append(along)
    half = ladder()[:HALF]
    steps = np.concatenate([half, -half, [0.0]])

    def along_lines(given):
        pairs = zip(asked, given, strict=True)
        return [_along(tape, n)(points, moves, steps, data) for n, (points, moves, data) in pairs]

    with wide_arithmetic(tape.dtype):
        values = (jax.jit(along_lines) if tape.together else along_lines)(given)
    epsilon, suspects = float(jnp.finfo(tape.dtype).eps), []
    for number, along, phi in zip(asked, sums, map(np.asarray, values), strict=True):
        slope = estimate_slope(half, phi[:HALF], phi[HALF:-1], float(phi[-1]), epsilon)
        claim, size = float(np.sum(along.terms)), float(np.sqrt(np.sum(along.squares)))
        off = abs(claim - slope.value)
        # What is summed is rounded, besides what the slope can be off by.
        rounding = ROUNDINGS * epsilon * max(size, abs(slope.value), abs(float(phi[-1])))
        if np.isfinite(slope.bound) and off > slope.bound + rounding:
            suspects.append(number)
    return suspects


def _along(tape: Tape, number: int) -> Callable:
    """The values of a site along lines; one program for all of a kind."""
    kind, site = tape.kinds[number], tape.sites[number]
    if kind not in tape.lines:
        value = lambda _, moved, data: _projected(site, data, moved, tape.dtype)  # noqa: E731
        tape.lines[kind] = along_program(value, tape.dtype)
    return tape.lines[kind]


class _Asked(NamedTuple):
    """A site as a function of its active inputs, in their real form.

    Attributes:
      points: where they are.
      claims: what the site makes of its cotangents, for each of them.
      paired: whether each is complex.
      rest: all inputs, and
      cts: the cotangents of the outputs asked for.
    """

    points: list[Any]
    claims: list[Any]
    paired: list[bool]
    rest: list[Any]
    cts: list[Any]

    @classmethod
    def of(cls, site: Site, record: Record, number: int, dtype: Any) -> "_Asked | None":
        """Nothing where an input, a cotangent or a claim is not finite, or all of them are 0."""
        rest = [widen_leaf(record.values[s], dtype) for s in site.inputs]
        cts = [record.cotangents[site.outputs[j]] for j in site.asked]
        back = record.pulled[number]
        points, claims, paired = [], [], []
        for i, claim in zip(site.active, back, strict=True):
            x = rest[i]
            if site.eqn.primitive in SYMMETRIC:
                x, claim = _symmetric(x), _symmetric(claim)
            paired.append(jnp.iscomplexobj(x))
            points.append(real_form(x) if paired[-1] else x)
            claims.append(real_form(jnp.conj(claim)) if paired[-1] else claim)
        # By NumPy: each shape would be a compilation of its own.
        fine = all(
            np.isfinite(np.asarray(x)).all() for x in (*rest, *cts, *claims) if is_inexact(x)
        )
        some = any(np.asarray(ct).any() for ct in cts)
        return cls(points, claims, paired, rest, cts) if fine and some else None


class _Worst(NamedTuple):
    """The argument that a rule is off by most in, as `RuleReport` has it."""

    argument: int
    entry: tuple[int, ...] | None
    difference: float
    verdict: Verdict


def _projected(site: Site, given: Any, points: Sequence[Any], dtype: Any) -> Any:
    """The sum of the products of a site's cotangents and its outputs, real part."""
    rest, cts = given
    full = list(rest)
    for i, x in zip(site.active, points, strict=True):
        full[i] = as_complex(x) if jnp.iscomplexobj(rest[i]) else x
        if site.eqn.primitive in SYMMETRIC:
            full[i] = _symmetric(full[i])
    outputs = evaluated(site.eqn, full, dtype)
    terms = [jnp.sum(jnp.real(ct * outputs[j])) for j, ct in zip(site.asked, cts, strict=True)]
    return functools.reduce(jnp.add, terms).astype(dtype)


def _examined(tape: Tape, record: Record, number: int) -> RuleReport | None:
    """What is wrong with the rule of a site, if anything is: as a gradient is checked."""
    site, dtype, along = tape.sites[number], tape.dtype, _along(tape, number)
    with arithmetic(dtype):
        asked = _Asked.of(site, record, number, dtype)
    assert asked is not None

    def values(moves, steps):
        with wide_arithmetic(dtype):
            moves = [jnp.asarray(v) for v in moves]
            return np.asarray(along(asked.points, moves, steps, (asked.rest, asked.cts)))

    draw, sizes = drawer(asked.points, dtype), [x.size for x in asked.points]
    line = Line(draw, values, asked.points, float(jnp.finfo(dtype).eps), [0.0] * len(sizes))
    tolerance = LOOSE if _is_iterative(site) else _explained(site)
    tolerances = [tolerance] * len(sizes)
    claims = [np.asarray(c, np.float64) for c in asked.claims]
    worst = None
    alike = (tolerances, tolerances, [0.0] * len(sizes))
    claimed = Claimed(claims, tolerances, asked.paired, *alike)
    for k, found in examine(line, claimed, reference=lambda: None, together=False):
        verdict = verdict_of(found, line.centre, tolerance)
        if not verdict.wrong:
            continue
        best, wrong = found.best, [e for e in found.entries if e.verdict.wrong]
        at, off = None, abs(best.difference) / max(best.size, abs(best.slope.value))
        if wrong:
            most = max(wrong, key=lambda e: abs(e.autodiff - e.numerical))
            # Of a derivative that is 0 by values, all of what the rule says.
            size = abs(most.numerical) or abs(most.autodiff)
            at, off = most.index, abs(most.autodiff - most.numerical) / size
            at = at[:-1] if asked.paired[k] else at
        if worst is None or off > worst.difference:
            worst = _Worst(site.active[k], at, off, verdict)
    if worst is None:
        return None
    return _named(site, asked, line, worst, dtype)


def _with_another_value(site: Site, record: Record, dtype: Any) -> RuleReport | None:
    """What is wrong with a rule under which the function has another value, if it has."""
    avals = avals_of(site.eqn.invars)
    forward = lambda full: _differentiated(site, full)[0]  # noqa: E731
    inputs = [record.values[s] for s in site.inputs]
    with wide_arithmetic(dtype):
        widened = [widen_leaf(x, dtype) for x in inputs]
    call = widen(forward, (avals,), dtype).call
    with wide_arithmetic(dtype):
        values = call(widened)
    worst = 0.0
    for j, value in zip(site.asked, values, strict=True):
        there, here = (np.asarray(x) for x in (record.values[site.outputs[j]], value))
        worst = max(worst, relative_error(here, there))
    if not worst > _explained(site):
        return None
    return RuleReport(
        site.name,
        SourceLine.of(site.line),
        _kind_of_rule(site),
        Verdict.DIFFERS,
        None,
        worst,
        _line_of_rule(site),
    )


def _explained(site: Site) -> float:
    """How far, relative, the dtype of a site explains that it is off."""
    kinds = [v.aval.dtype for v in site.eqn.invars if is_inexact(v.aval)]
    own = max(kinds, key=lambda kind: float(jnp.finfo(kind).eps))
    return min(reach(own), explained(own))


def _named(site: Site, asked: _Asked, line: Line, worst: _Worst, dtype: Any) -> RuleReport:
    """What a wrong rule is called, and where it stands."""
    name, where, place = site.name, "", SourceLine.of(site.line)
    argument = worst.argument
    if site.eqn.primitive in CUSTOM_RULES:
        kind, where = _kind_of_rule(site), _line_of_rule(site)
        argument -= rule_consts(site.eqn)
    else:
        kind = "jvp"
        if _forward_fits(site, asked, line, dtype):
            name, kind = _wrong_transpose(site, asked, dtype) or name, "transpose"
    return RuleReport(
        name, place, kind, worst.verdict, argument, worst.difference, where, worst.entry
    )


def _line_of_rule(site: Site) -> str:
    """Where a rule stands; else where the function does that it is for."""
    name, place = source(site.eqn)
    return str(SourceLine.of(rule_source(site.eqn) or f"{place} ({name})"))


def _kind_of_rule(site: Site) -> str:
    return site.eqn.primitive.name.removesuffix("_call")


def _of_site(site: Site, full: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    return of_active(functools.partial(bind, site.eqn), site.active, site.asked, full)


def _differentiated(site: Site, full: Sequence[Any]) -> tuple[list[Any], Any]:
    """Values and derivatives of a site's outputs, by its rule."""
    outputs, back = jax.vjp(_of_site(site, full), [full[i] for i in site.active])
    return outputs, back([jnp.ones_like(y) for y in outputs])


def _changes(site: Site) -> Callable:
    """How a site's outputs change with its active inputs, by the JVP rule."""

    def changes(full, tangents):
        return jax.jvp(_of_site(site, full), ([full[i] for i in site.active],), (tangents,))[1]

    return changes


def _forward_fits(site: Site, asked: _Asked, line: Line, dtype: Any) -> bool:
    """Whether the JVP rule says what the values do: then it is the transpose that does not."""
    avals = avals_of(site.eqn.invars)
    tangents = [avals[i] for i in site.active]
    with wide_arithmetic(dtype):
        moves, _ = drawer(asked.points, dtype)(asked.claims, _whole(line.sizes))
        given = [as_complex(v) if pair else v for v, pair in zip(moves, asked.paired, strict=True)]
        if site.eqn.primitive in SYMMETRIC:
            given = [_symmetric(v) for v in given]
        given = [jnp.asarray(v) for v in given]
    try:
        forward = widen(_changes(site), (avals, tangents), dtype).call
        with wide_arithmetic(dtype):
            dys = forward(asked.rest, given)
    except Exception:  # there is no JVP, which JAX may notice late: inside of a loop
        return False
    pairs = zip(asked.cts, dys, strict=True)
    claim = sum(float(np.sum(np.real(np.asarray(ct) * np.asarray(dy)))) for ct, dy in pairs)
    direction = Direction(tuple(line.whole(k) for k in range(len(asked.points))))
    comparison = line.compare(asked.claims, direction)
    off, slope = abs(claim - comparison.slope.value), comparison.slope
    return off <= slope.bound + OF_SERIES * max(abs(claim), abs(slope.value))


def _wrong_transpose(site: Site, asked: _Asked, dtype: Any) -> str | None:
    """The primitive whose transpose does not fit it, in how a site changes: <ct, L t> is not
    <L^T ct, t>.
    """
    avals = avals_of(site.eqn.invars)
    tangents = [avals[i] for i in site.active]
    program = jax.make_jaxpr(_changes(site))(avals, tangents)
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


def _is_iterative(site: Site) -> bool:
    """Whether what is inside may be right to a tolerance only."""
    if site.eqn.primitive is primitives.linear_solve_p:
        return True
    if site.eqn.primitive not in CUSTOM_RULES:
        return False
    inner = equations(called(site.eqn))
    return any(e.primitive in (primitives.while_p, primitives.linear_solve_p) for e in inner)


def _symmetric(x: Any) -> Any:
    return (x + jnp.conj(jnp.swapaxes(x, -1, -2))) / 2


def _whole(sizes: Sequence[int]) -> Question:
    """A direction through all entries."""
    many = len(sizes)
    bounds = np.zeros(many, np.int64), np.asarray(sizes, np.int64)
    return Question(*bounds, np.ones(many), np.uint32(1), np.bool_(False), np.bool_(False))
