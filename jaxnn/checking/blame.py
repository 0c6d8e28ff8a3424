"""From the entry to the line: where a gradient goes bad, asked of the tape in three ways.

Where is NaN or infinity born? In the equation whose inputs are finite and whose output is not, or
whose output has a finite cotangent and whose inputs have none. Which rule is wrong? The one whose
derivative, by the inputs and cotangents that its equation really has, is not that of its values.
Where do the digits go? Up to one equation the walk in the user's own dtypes may be replaced by the
exact one and nothing is gained; from the next on, the gradient is right.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from jaxnn._arguments import as_complex, real_form
from jaxnn.checking.evidence import Verdict, digits_shared, reach
from jaxnn.checking.findings import Birth, DigitsLost, RuleReport, SourceLine
from jaxnn.checking.line import Direction, Line, Question, along_program, drawer
from jaxnn.checking.locate import Claimed, examine, verdict_of
from jaxnn.checking.slope import HALF, estimate_slope, ladder
from jaxnn.checking.tape import (
    Cut,
    Place,
    Record,
    Site,
    Tape,
    arithmetic,
    avals_of,
    evaluated,
    is_inexact,
    seeds_of,
)
from jaxnn.numerical.float64 import wide_arithmetic, widen, widen_leaf
from jaxnn.numerical.interpret import (
    CUSTOM_RULES,
    Program,
    backward_source,
    bind,
    called,
    equations,
    line_of,
    rule_consts,
    source,
)

# So many lines are named for each question.
LINES = 3
# Roundings of the function's dtype that a rule may be off by: constants in it are rounded, and
# what is computed twice is rounded twice.
OF_RULES = 100
# In float64 the rules of special functions are series, cut off: to so many digits.
OF_SERIES = 1e-9
# The part of what is lost that one line has to answer for to be named.
SHARE = 0.25
# Points where digits are counted, and how many roundings they are away.
POINTS, AWAY = 4, 64
# Primitives that see one half of a symmetric matrix: it is moved symmetrically.
SYMMETRIC = frozenset([primitives.cholesky_p, primitives.eigh_p])
# Iterations of one loop whose rules are checked.
SAMPLE = 32
# How far, relative, a solver's or an iteration's rule may be off, and it is its tolerance.
LOOSE = 5e-3


def births(tape: Tape, inputs: Sequence[Any], seeds: Sequence[Any]) -> list[Birth]:
    """Where values or cotangents that are not finite come from, nearest to the result first.

    Args:
      tape: of a program.
      inputs: its values.
      seeds: the cotangents of its outputs, None for those without.
    """
    record = tape.record(inputs, seeds)
    levels, of_cts, of_pulled = jax.device_get(
        (record.levels, record.cotangent_levels, record.pulled_levels)
    )
    origin, undefined = _origins(tape, levels)
    ends = [s for s, seed in zip(tape.outputs, seeds, strict=True) if seed is not None]
    bad = [s for s in ends or tape.outputs if levels.get(s, 0)]
    if bad:
        sites = [origin.get(s, undefined.get(s)) for s in bad]
        found = [_born_in_values(tape, record, n) for n in dict.fromkeys(sites) if n is not None]
        return [birth for some in found for birth in some]
    found = []
    for number, site in reversed(list(enumerate(tape.sites))):
        given = [of_cts.get(site.outputs[j], 0) for j in site.asked]
        if not site.asked or any(given) or not any(of_pulled[number]):
            continue
        first = next((origin[s] for s in site.inputs if s in origin), number)
        if first != number:
            found += _born_in_values(tape, record, first)
        else:
            found += _born_in_cotangents(tape, record, number)
        if len(found) >= LINES:
            break
    return found


def _origins(tape: Tape, levels: dict[int, Any]) -> tuple[dict[int, int], dict[int, int]]:
    """For each slot that is not finite the site where that began, and for NaN where NaN did."""
    origin: dict[int, int] = {}
    undefined: dict[int, int] = {}
    for number, site in enumerate(tape.sites):
        worst = max(site.inputs, key=lambda s: levels.get(s, 0), default=-1)
        before = levels.get(worst, 0)
        for slot in (s for s in site.outputs if levels[s]):
            first = origin.get(worst) if before else number
            if first is not None:
                origin[slot] = first
            first = undefined.get(worst) if before == 2 else number
            if first is not None and levels[slot] == 2:
                undefined[slot] = first
    return origin, undefined


def _born_in_values(tape: Tape, record: Record, number: int) -> list[Birth]:
    for inside in tape.inside(number, record):
        nothing = [None] * len(inside.seeds)
        if inner := births(tape.tape_of(inside), inside.inputs, nothing):
            return [birth.within(inside.name) for birth in inner]
    site = tape.sites[number]
    outputs = [np.asarray(record.values[s]) for s in site.outputs]
    outputs = [y for y in outputs if is_inexact(y)]
    bad = [~np.isfinite(y) for y in outputs]
    what = "NaN" if any(np.any(np.isnan(y)) for y in outputs) else "infinity"
    count, total = (sum(int(f(b)) for b in bad) for f in (np.sum, np.size))
    reason, cure = usual_cause(site, record, "value")
    return [
        Birth(
            line=SourceLine.of(site.line),
            operation=name_of(site),
            what=f"`{name_of(site)}`, {reason or 'its value'}: {what}",
            count=count,
            total=total,
            cure=cure,
        )
    ]


def _born_in_cotangents(tape: Tape, record: Record, number: int) -> list[Birth]:
    site = tape.sites[number]
    if site.eqn.primitive not in CUSTOM_RULES:
        for inside in reversed(tape.inside(number, record)):
            finite = all(s is None or np.all(np.isfinite(s)) for s in inside.seeds)
            if finite and (inner := births(tape.tape_of(inside), inside.inputs, inside.seeds)):
                return [birth.within(inside.name) for birth in inner]
    back = [np.asarray(x) for x in record.pulled[number]]
    bad = [~np.isfinite(x) for x in back]
    count, total = (sum(int(f(b)) for b in bad) for f in (np.sum, np.size))
    reason, cure = usual_cause(site, record, "slope")
    what = f"`{name_of(site)}`, {reason or 'its derivative is not finite'}"
    (ct,) = [np.asarray(record.cotangents[site.outputs[j]]) for j in site.asked][:1]
    masks = [b for b in bad if b.shape == ct.shape and b.any()]
    masked = bool(masks) and all(np.all(ct[b] == 0) for b in masks)
    return [Birth(SourceLine.of(site.line), name_of(site), what, count, total, cure, masked)]


def name_of(site: Site) -> str:
    """What an equation is called: its primitive, or the function that carries a rule."""
    if site.eqn.primitive in CUSTOM_RULES:
        return source(site.eqn)[0]
    return site.eqn.primitive.name


# What usually makes a primitive's value, or its slope, infinite or NaN; and what helps.
_SAFE = "choose a safe argument before it, as in `{}`, besides the result after it"
_EIGENVALUES = "lift what is equal: add a small diagonal of different numbers to the matrix"
CAUSES: dict[str, tuple[str, str, str]] = {
    # primitive: its value, its slope, the cure
    "sqrt": (
        "the root of a negative number",
        "its slope at 0 is infinite",
        _SAFE.format("jnp.sqrt(jnp.where(x > 0, x, 1))"),
    ),
    "rsqrt": (
        "one over the root of 0, or of a negative number",
        "its slope at 0 is infinite",
        _SAFE.format("lax.rsqrt(jnp.where(x > 0, x, 1))"),
    ),
    "cbrt": ("", "its slope at 0 is infinite", _SAFE.format("jnp.cbrt(jnp.where(x != 0, x, 1))")),
    "log": (
        "the logarithm of 0, or of a negative number",
        "its slope at 0 is infinite",
        _SAFE.format("jnp.log(jnp.where(x > 0, x, 1))"),
    ),
    "log1p": (
        "the logarithm of 0, or of a negative number",
        "its slope at -1 is infinite",
        _SAFE.format("jnp.log1p(jnp.where(x > -1, x, 0))"),
    ),
    "div": (
        "a division by 0",
        "its slope is infinite where it divides by 0",
        _SAFE.format("a / jnp.where(b != 0, b, 1)"),
    ),
    "pow": (
        "a power that is too large, of 0, or of a negative number",
        "its slope at 0 is infinite, for an exponent below 1",
        _SAFE.format("jnp.where(x > 0, x, 1) ** k"),
    ),
    "integer_pow": (
        "a negative power of 0, or one too large",
        "its slope is infinite where a negative power of 0 is taken",
        _SAFE.format("jnp.where(x != 0, x, 1) ** k"),
    ),
    "exp": (
        "it overflows",
        "it overflows",
        "subtract the largest first, or use `jnp.logaddexp`, `jax.nn.logsumexp`, `jax.nn.softmax`",
    ),
    "eigh": (
        "",
        "eigenvectors have no derivative where eigenvalues are equal",
        _EIGENVALUES,
    ),
    "eig": ("", "eigenvectors have no derivative where eigenvalues are equal", _EIGENVALUES),
    "svd": (
        "",
        "singular vectors have no derivative where singular values are equal, or 0",
        _EIGENVALUES,
    ),
    "acos": (
        "outside of -1 to 1",
        "its slope at -1 and 1 is infinite",
        "keep the argument off them, or take the angle by `jnp.arctan2`",
    ),
    "asin": (
        "outside of -1 to 1",
        "its slope at -1 and 1 is infinite",
        "keep the argument off them, or take the angle by `jnp.arctan2`",
    ),
    "acosh": ("below 1", "its slope at 1 is infinite", "keep the argument above 1"),
    "atanh": (
        "at -1 or 1, or beyond",
        "its slope at -1 and 1 is infinite",
        "keep the argument between them",
    ),
    "atan2": ("", "it has no slope where both arguments are 0", "keep the two from both being 0"),
    "erf_inv": ("at -1 or 1, or beyond", "its slope at -1 and 1 is infinite", ""),
    "sub": (
        "infinity less infinity, or too large",
        "",
        "mask with a large finite number instead of `-jnp.inf`",
    ),
    "add": ("infinity less infinity, or too large", "", ""),
    "mul": ("0 times infinity, or too large", "", ""),
    "cholesky": (
        "the matrix is not positive definite",
        "the matrix is singular",
        "add a small multiple of the identity",
    ),
    "lu": ("the matrix is singular", "the matrix is singular", ""),
    "triangular_solve": (
        "the matrix is singular",
        "the matrix is singular",
        "add a small multiple of the identity",
    ),
    "lgamma": ("at 0, or a negative integer", "it has no slope at 0 and negative integers", ""),
    "digamma": ("at 0, or a negative integer", "it has no slope at 0 and negative integers", ""),
    "reduce_prod": ("it overflows", "", ""),
    "dot_general": ("it overflows, or infinity less infinity", "", ""),
    "reduce_sum": ("it overflows, or infinity less infinity", "", ""),
}
for _name in ("exp2", "expm1", "cosh", "sinh"):
    CAUSES[_name] = CAUSES["exp"]


def usual_cause(site: Site, record: Record, which: str) -> tuple[str, str]:
    """Why the value, or the slope, of a site is not finite, and what helps; empty if not known."""
    value, slope, cure = CAUSES.get(site.eqn.primitive.name, ("", "", ""))
    return (value if which == "value" else slope), cure


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
            report = _examined(site, record, number, tape.dtype)
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
    """The sites whose claims and values differ along one line: all are asked in one program."""
    asked, points, moves, claims = [], [], [], []
    for number, site in enumerate(tape.sites):
        if not site.asked or site.eqn.primitive is primitives.random_gamma_p:
            continue
        with arithmetic(tape.dtype):
            question = _Asked.of(site, record, number, tape.dtype)
        if question is None:
            continue
        with arithmetic(tape.dtype):
            v, along = drawer(question.points, tape.dtype)(
                question.claims, _whole([x.size for x in question.points])
            )
        asked.append(number)
        points.append(question)
        moves.append([jnp.asarray(x) for x in v])
        claims.append(along)
    if not asked:
        return []
    sites = [tape.sites[number] for number in asked]

    @jax.jit
    def program(data, steps):
        def at(t):
            return jnp.stack(
                [
                    _projected(site, given, [x + t * v for x, v in zip(x0, v0, strict=True)], dtype)
                    for site, (given, x0, v0) in zip(sites, data, strict=True)
                ]
            )

        return jax.lax.map(at, steps)

    dtype, half = tape.dtype, ladder()[:HALF]
    data = [((q.rest, q.cts), q.points, v) for q, v in zip(points, moves, strict=True)]
    with wide_arithmetic(dtype):
        phi = np.asarray(program(data, np.concatenate([half, -half, [0.0]])))
    suspects = []
    for k, (number, along) in enumerate(zip(asked, claims, strict=True)):
        epsilon = float(jnp.finfo(dtype).eps)
        slope = estimate_slope(half, phi[:HALF, k], phi[HALF:-1, k], float(phi[-1, k]), epsilon)
        claim, size = float(np.sum(along.terms)), float(np.sqrt(np.sum(along.squares)))
        off = abs(claim - slope.value)
        if np.isfinite(slope.bound) and off > slope.bound and off > 1e-3 * OF_SERIES * size:
            suspects.append(number)
    return suspects


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
        rest = [_widened(record.values[s], dtype) for s in site.inputs]
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
        arrays = [x for x in (*rest, *cts, *claims) if is_inexact(x)]
        fine = all(bool(jnp.all(jnp.isfinite(x))) for x in arrays)
        some = any(bool(jnp.any(ct != 0)) for ct in cts)
        return cls(points, claims, paired, rest, cts) if fine and some else None


def _projected(site: Site, given: Any, points: Sequence[Any], dtype: Any) -> Any:
    """The sum of the products of a site's cotangents and its outputs, real part."""
    (rest, cts), full = given, None
    full = list(rest)
    for i, x in zip(site.active, points, strict=True):
        full[i] = as_complex(x) if jnp.iscomplexobj(rest[i]) else x
        if site.eqn.primitive in SYMMETRIC:
            full[i] = _symmetric(full[i])
    outputs = evaluated(site.eqn, full, dtype)
    terms = [jnp.sum(jnp.real(ct * outputs[j])) for j, ct in zip(site.asked, cts, strict=True)]
    return functools.reduce(jnp.add, terms).astype(dtype)


def _examined(site: Site, record: Record, number: int, dtype: Any) -> RuleReport | None:
    """What is wrong with the rule of a site, if anything is: as a gradient is checked."""
    with arithmetic(dtype):
        asked = _Asked.of(site, record, number, dtype)
    assert asked is not None
    value = lambda _, moved, data: _projected(site, data, moved, dtype)  # noqa: E731
    along = along_program(value, dtype)
    draw = drawer(asked.points, dtype)

    def program(claims, question, steps):
        with wide_arithmetic(dtype):
            moves, sums = draw(claims, question)
            moves = [jnp.asarray(v) for v in moves]
            return np.asarray(along(asked.points, moves, steps, (asked.rest, asked.cts))), sums

    sizes = [x.size for x in asked.points]
    line = Line(program, sizes, float(jnp.finfo(dtype).eps), [0.0] * len(sizes))
    tolerance = LOOSE if _is_iterative(site) else _explained(site)
    tolerances = [tolerance] * len(sizes)
    claims = [np.asarray(c, np.float64) for c in asked.claims]
    worst = None
    for k, found in examine(line, Claimed(claims, tolerances, asked.paired), together=False):
        if not found.asked:
            continue
        verdict, entries = verdict_of(found, line.centre, tolerance)
        if not verdict.wrong:
            continue
        errors = [
            abs(e.autodiff - e.numerical) / max(abs(e.autodiff), abs(e.numerical))
            for e in entries
            if e.verdict.wrong
        ]
        best = found.best
        off = max(errors, default=abs(best.difference) / max(best.size, abs(best.slope.value)))
        if worst is None or off > worst[0]:
            worst = off, site.active[k], verdict
    if worst is None:
        return None
    off, argument, verdict = worst
    return _named(site, asked, line, argument, off, verdict, dtype)


def _with_another_value(site: Site, record: Record, dtype: Any) -> RuleReport | None:
    """What is wrong with a rule under which the function has another value, if it has."""
    avals = avals_of(site.eqn.invars)
    forward = lambda full: _differentiated(site, full)[0]  # noqa: E731
    inputs = [record.values[s] for s in site.inputs]
    with wide_arithmetic(dtype):
        widened = [_widened(x, dtype) for x in inputs]
    call = widen(forward, (avals,), dtype).call
    with wide_arithmetic(dtype):
        values = call(widened)
    worst = 0.0
    for j, value in zip(site.asked, values, strict=True):
        there, here = (np.asarray(x) for x in (record.values[site.outputs[j]], value))
        worst = max(worst, _error(here, there))
    if not worst > _explained(site):
        return None
    name, where = source(site.eqn)
    kind, line = site.eqn.primitive.name.removesuffix("_call"), SourceLine.of(site.line)
    where = _line_of_rule(site) or where
    return RuleReport(name, line, kind, Verdict.DIFFERS, None, worst, where)


def _explained(site: Site) -> float:
    """How far, relative, the dtype of a site explains that it is off."""
    kinds = [v.aval.dtype for v in site.eqn.invars if is_inexact(v.aval)]
    own = max(kinds, key=lambda kind: float(jnp.finfo(kind).eps))
    return min(reach(own), max(OF_RULES * float(jnp.finfo(own).eps), OF_SERIES))


def _named(
    site: Site, asked: _Asked, line: Line, argument: int, off: float, verdict: Verdict, dtype: Any
) -> RuleReport:
    """What a wrong rule is called, and where it stands."""
    where, place = "", SourceLine.of(site.line)
    if site.eqn.primitive in CUSTOM_RULES:
        name, where = source(site.eqn)
        kind = site.eqn.primitive.name.removesuffix("_call")
        where = _line_of_rule(site) or where
        argument -= rule_consts(site.eqn)
    else:
        name, kind = site.eqn.primitive.name, "jvp"
        if _forward_fits(site, asked, line, dtype):
            name, kind = _wrong_transpose(site, asked, dtype) or name, "transpose"
    return RuleReport(name, place, kind, verdict, argument, off, where)


def _line_of_rule(site: Site) -> str:
    """Where a rule stands: its backward function, or the last line of the user's in it that is not
    one of the function that it is for, or of its call.
    """
    if there := backward_source(site.eqn):
        return str(SourceLine.of(there))
    avals = avals_of(site.eqn.invars)
    back = jax.make_jaxpr(functools.partial(_differentiated, site))(avals)
    known = {line_of(eqn) for eqn in equations(called(site.eqn))} | {site.line, ""}
    lines = [line_of(eqn) for eqn in equations(back)]
    lines = [line for line in lines if line not in known]
    return str(SourceLine.of(lines[-1])) if lines else ""


def _of_active(site: Site, full: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """The outputs of a site that are asked for, as a function of its active inputs."""

    def of(points):
        moved = list(full)
        for i, x in zip(site.active, points, strict=True):
            moved[i] = x
        outputs = bind(site.eqn, moved)
        return [outputs[j] for j in site.asked]

    return of


def _differentiated(site: Site, full: Sequence[Any]) -> tuple[list[Any], Any]:
    """Values and derivatives of a site's outputs, by its rule."""
    outputs, back = jax.vjp(_of_active(site, full), [full[i] for i in site.active])
    return outputs, back([jnp.ones_like(y) for y in outputs])


def _changes(site: Site) -> Callable:
    """How a site's outputs change with its active inputs, by the JVP rule."""

    def changes(full, tangents):
        return jax.jvp(_of_active(site, full), ([full[i] for i in site.active],), (tangents,))[1]

    return changes


def _forward_fits(site: Site, asked: _Asked, line: Line, dtype: Any) -> bool:
    """Whether the JVP rule says what the values do: then it is the transpose that does not."""
    avals = avals_of(site.eqn.invars)
    tangents = [avals[i] for i in site.active]
    try:
        forward = widen(_changes(site), (avals, tangents), dtype).call
    except Exception:  # there is no JVP
        return False
    direction = Direction(tuple(line.whole(k) for k in range(len(asked.points))))
    comparison = line.compare(asked.claims, direction)
    with wide_arithmetic(dtype):
        moves, _ = drawer(asked.points, dtype)(asked.claims, _whole(line.sizes))
        given = [as_complex(v) if pair else v for v, pair in zip(moves, asked.paired, strict=True)]
        if site.eqn.primitive in SYMMETRIC:
            given = [_symmetric(v) for v in given]
        dys = forward(asked.rest, [jnp.asarray(v) for v in given])
        claim = sum(
            float(jnp.sum(jnp.real(ct * dy))) for ct, dy in zip(asked.cts, dys, strict=True)
        )
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
        rest = [_widened(x, dtype) for x in (*asked.rest, *given)]
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


def digits_lost(
    program: Program,
    moving: Sequence[bool],
    inputs: Sequence[Any],
    dtype: Any,
    lost: Sequence[np.ndarray | None],
) -> list[DigitsLost]:
    """The equations without whose roundings the gradient would keep its digits, the worst first.

    Args:
      program: the function.
      moving: which of its inputs it is differentiated by.
      inputs: their values.
      dtype: the wide dtype.
      lost: for each input the entries of its gradient that lost digits, flat; None for none.
    """
    own, wide = (Tape(program, moving, kind, unrolled=True) for kind in (None, dtype))
    seeds = seeds_of(program)
    # Beside the point too, as in one alone a rounding may happen to do no harm.
    points = [_beside(inputs, moving, seed) for seed in range(POINTS)]
    exact = [wide.record(point, seeds) for point in points]
    rounded = [own.record(point, seeds) for point in points]

    @functools.cache
    def left(place: int) -> float:
        """The error of the gradient, relative, where all up to a place is exact."""
        errors = []
        for point, true in zip(points, exact, strict=True):
            cut = Cut(np.int32(place), true)
            record = own.record(point, seeds, cut)
            worst = 0.0
            for slot, mask in zip(own.inputs, lost, strict=True):
                if mask is not None and slot in true.cotangents:
                    a, b = (np.asarray(r.cotangents[slot]).ravel()[mask] for r in (record, true))
                    worst = max(worst, _error(a, b))
            errors.append(min(worst, 1.0) if np.isfinite(worst) else 1.0)
        return float(np.mean(errors))

    drops = _drops(left, 0, len(own.places), SHARE * left(0))
    found = [_lost_at(own, rounded[0], exact[0], own.places[k], drop) for k, drop in drops]
    ordered = sorted(found, key=lambda one: -one[0])
    kept: dict[Any, DigitsLost] = {}
    for _, one in ordered:
        kept.setdefault((one.line.file, one.line.line), one)
    return list(kept.values())[:LINES]


def _beside(inputs: Sequence[Any], moving: Sequence[bool], seed: int) -> list[Any]:
    """Inputs of which those that move are some roundings off; the first time none."""
    rng, moved = np.random.default_rng(seed), []
    for x, moves in zip(inputs, moving, strict=True):
        if moves and seed:
            epsilon = float(jnp.finfo(x.dtype).eps)
            factors = 1 + AWAY * epsilon * rng.uniform(-1, 1, x.shape)
            x = jnp.asarray(np.asarray(x, np.float64) * factors, x.dtype)
        moved.append(x)
    return moved


def _drops(left: Callable[[int], float], low: int, high: int, least: float) -> list[Any]:
    """The places where the error that is left drops by at least so much, and by how much."""
    drop = left(low) - left(high)
    if drop <= least or not drop:
        return []
    if high - low == 1:
        return [(low, drop)]
    middle = (low + high) // 2
    return _drops(left, low, middle, least) + _drops(left, middle, high, least)


def _lost_at(
    own: Tape, rounded: Record, exact: Record, place: Place, drop: float
) -> tuple[float, DigitsLost]:
    """What happens at a place of the walk."""
    number = place.site
    if place.slots:
        number = own.meeting(place.slots[0])
    elif not place.back:
        number = _first_narrow(own, rounded, number)
    site = own.sites[number]
    errors = lambda name, slots: [  # noqa: E731
        _error(getattr(rounded, name)[s], getattr(exact, name)[s]) for s in slots
    ]
    before = errors("values", [s for s in site.inputs if s in exact.values])
    if place.slots:
        after = errors("cotangents", place.slots)
    elif place.back:
        before += errors("cotangents", [site.outputs[j] for j in site.asked])
        pairs = zip(rounded.pulled[number], exact.pulled[number], strict=True)
        after = [_error(a, b) for a, b in pairs]
    else:
        after = errors("values", site.outputs)
    kinds = [v.aval.dtype for v in (*site.eqn.invars, *site.eqn.outvars) if is_inexact(v.aval)]
    finest = min(float(jnp.finfo(kind).eps) for kind in kinds)
    digits = [digits_shared(max(*some, finest), 1.0) for some in ([*before, 0.0], [*after, 0.0])]
    what = _how_lost(site, rounded, place)
    line = SourceLine.of(site.line)
    return drop, DigitsLost(line, name_of(site), what, digits[0], min(digits), drop)


def _first_narrow(tape: Tape, record: Record, number: int) -> int:
    """Of a site whose inputs are narrower than what it gives, the one that made them so."""
    made_by = {slot: k for k, site in enumerate(tape.sites) for slot in site.outputs}
    bits = lambda slot: jnp.finfo(record.values[slot].dtype).bits  # noqa: E731
    floats = lambda slots: [s for s in slots if is_inexact(record.values[s])]  # noqa: E731
    site = tape.sites[number]
    widest = max((bits(s) for s in floats(site.outputs)), default=0)
    while True:
        narrow = [s for s in floats(tape.sites[number].inputs) if bits(s) < widest and s in made_by]
        if not narrow:
            return number
        number = min(made_by[s] for s in narrow)


def _how_lost(site: Site, record: Record, place: Place) -> str:
    """What an equation does to digits, in words."""
    name = site.eqn.primitive.name
    if place.slots:
        return "on the way back what it is given from two sides cancels"
    if place.back:
        return "in its derivative"
    if name == "convert_element_type":
        return f"a cast to {site.eqn.params['new_dtype'].name}"
    inputs = [np.asarray(record.values[s]) for s in site.inputs if is_inexact(record.values[s])]
    if name in ("sub", "add") and len(inputs) == 2:
        a, b = (x.astype(np.float64) for x in inputs)
        result = a - b if name == "sub" else a + b
        with np.errstate(all="ignore"):
            same = np.log10(np.maximum(np.abs(a), np.abs(b)) / np.abs(result))
        digits = float(np.median(same))
        if digits >= 1:
            return f"two values equal to {digits:.0f} digits" if digits < np.inf else "equal values"
    if name in ("reduce_sum", "dot_general", "cumsum", "reduce_window_sum"):
        return "a sum whose terms cancel"
    return ""


def _error(own: Any, exact: Any) -> float:
    """The error of an array beside its size."""
    if not is_inexact(own):
        return 0.0
    a, b = np.asarray(own), np.asarray(exact)
    size = float(np.linalg.norm(b))
    error = float(np.linalg.norm((a.astype(b.dtype) - b).ravel()))
    return error / size if size else float(bool(error))


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


def _widened(x: Any, dtype: Any) -> Any:
    return widen_leaf(x, dtype) if is_inexact(x) else x


def _whole(sizes: Sequence[int]) -> Question:
    """A direction through all entries."""
    many = len(sizes)
    bounds = np.zeros(many, np.int64), np.asarray(sizes, np.int64)
    return Question(*bounds, np.ones(many), np.uint32(1), np.bool_(False), np.bool_(False))
