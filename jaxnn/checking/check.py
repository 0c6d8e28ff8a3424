"""`check_gradient`: is this gradient right? No step, no tolerance: what the evidence carries.

A check is a straight line, each stage a function of what the stages before it made:

    call      what is differentiated, and where            `_arguments.Partition`, `programs.Point`
    programs  the function and its gradient, compiled       `programs.Programs`
    claims    values, and the gradient that is checked      `Claims`
    findings  each leaf's claims against slopes of lines    `locate.Findings`
    losses    what each leaf's own dtype loses              `own_dtype.Loss`
    report    a verdict for each leaf                       `report.GradientReport`

Values are computed in float64 whatever the dtype, and so is the gradient that is checked: the
program that differentiates `f`, custom rules included, run in float64. What the gradient loses in
the user's own dtype is reported apart. Verdicts are made in `evidence` alone.
"""

import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Role, Where
from jaxnn._programs import outermost
from jaxnn._validate import (
    describe,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_mapping,
    require_number,
)
from jaxnn.checking import causes
from jaxnn.checking.births import births
from jaxnn.checking.by_hand import gradient_by_hand
from jaxnn.checking.detached import as_detached, stops
from jaxnn.checking.digits import digits_lost
from jaxnn.checking.evidence import (
    ALL_DIGITS,
    BLIND,
    ROUNDINGS_BETWEEN_CALLS,
    Evidence,
    Verdict,
    digits_shared,
    judge,
    reach,
    same_value,
)
from jaxnn.checking.findings import LINES, Entry, LeafReport, RuleReport
from jaxnn.checking.line import Direction, Line
from jaxnn.checking.locate import Claimed, Findings, examine, verdict_of
from jaxnn.checking.moves import entry_sizes, usual_size
from jaxnn.checking.own_dtype import Loss, own_dtype_loss
from jaxnn.checking.packed import count_not_finite, on_one_cpu
from jaxnn.checking.programs import Point, Programs, Settings, Traced, prepare
from jaxnn.checking.report import GradientReport
from jaxnn.checking.rules import OF_RULES, explained, wrong_rules
from jaxnn.checking.solvers import within_approximation, within_tolerance, without_diffuse
from jaxnn.checking.tape import seeds_of
from jaxnn.checking.watch import Watch
from jaxnn.numerical.float64 import wide_dtype

Mode = Literal["fwd", "rev"]


def check_gradient(
    f: Callable,
    *args: Any,
    argnums: int | tuple[int, ...] = 0,
    kwargs: Mapping[str, Any] | None = None,
    where: Where = None,
    gradient: Callable | None = None,
    order: int = 1,
    modes: Mode | Sequence[Mode] | None = None,
    has_aux: bool = False,
    cotangent: Any = None,
    stop_gradient: Literal["report", "held"] = "report",
    trust: Sequence[str] = (),
    evidence: Literal["together", "leaf"] = "together",
    progress: bool | None = None,
    seed: int = 0,
    digits: float | int | None = None,
) -> GradientReport:
    """Hold the gradient of `f` at `args` against the function's values.

    Args:
      f: a function of pytrees, jitted or not; real and scalar, or projected on `cotangent`.
      *args: the point. Of the arguments that are chosen, floating and complex leaves are
        differentiated; everything else is held fixed.
      argnums: the argument or arguments whose gradient is checked, as in `jax.grad`.
      kwargs: keyword arguments of `f`, held fixed.
      where: which leaves are differentiated, if not all: a function of a leaf, or booleans in a
        pytree like the argument (a tuple of them, as `argnums` is one), or a prefix of it.
      gradient: a hand-written gradient, called as `jax.grad(f, argnums)` would be; `jax.grad`'s own
        by default. Leaves that are held fixed may be missing in it, as from `eqx.filter_grad`.
      order: 2 checks the gradient of a random projection of the gradient as well: the Hessian; 3
        and 4 go on like that.
      modes: "rev", "fwd" or both: how JAX differentiates; reverse mode, or forward mode where there
        is no reverse, by default.
      has_aux: whether `f` returns `(value, aux)`.
      cotangent: for an output that is not a scalar: a pytree like it, or "random", which it is by
        default. What is checked is the gradient of the sum of its products with the output (of
        complex ones the real part). Infinite entries of an output are left out.
      stop_gradient: "held" takes values with what `jax.lax.stop_gradient` stops held at the point;
        "report" does so where the gradient is wrong otherwise, and calls it "detached" then.
      trust: names of functions whose custom rules are meant to differ from them (straight-through,
        say): their values are taken along the derivative that the rule claims.
      evidence: "together" asks leaves together where that tells enough of each; "leaf" asks each by
        itself.
      progress: whether a line on stderr tells how far a check is that takes longer than two
        seconds; by default if that is a terminal.
      seed: of the random projections.
      digits: that each leaf's gradient must have right for the report to be `ok`: kept in its own
        dtype, and not contradicted by the values; by default two, of one that is "imprecise".

    Returns:
      A `GradientReport`: `report.ok`, `print(report)`, `report.raise_if_wrong()`. Ctrl-C ends the
      check early; the report says so.

    Raises:
      TypeError: no floating leaf in the arguments chosen; no floating output; called with traced
        arguments, under `jit`; `f` cannot be differentiated by JAX and no `gradient` is given.
      ValueError: `argnums` or `order` out of range; `where`, `gradient` or `cotangent` of another
        form.

    Source:
      Ridders, Adv. Eng. Software 4 (1982) 75, on extrapolated differences; Moré and Wild,
      SIAM J. Sci. Comput. 33 (2011) 1292, on their noise.

    Example:
      >>> report = check_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
      >>> report.verdict
      'agrees'
    """
    require_callable("f", f)
    require_count("seed", seed)
    if digits is not None:
        require_number("digits", digits)
    if gradient is not None:
        require_callable("gradient", gradient)
    require_choice("order", order, (1, 2, 3, 4))
    require_choice("stop_gradient", stop_gradient, ("report", "held"))
    names = isinstance(trust, Sequence) and not isinstance(trust, str)
    if not names or not all(isinstance(name, str) for name in trust):
        raise TypeError(f"`trust` must be names of functions. Got {describe(trust)}.")
    require_choice("evidence", evidence, ("together", "leaf"))
    if order > 1 and gradient is not None:
        raise ValueError(
            f"`order` must be 1 where a hand-written `gradient` is given. Got {order}."
        )
    kwargs = {} if kwargs is None else kwargs
    require_mapping("kwargs", kwargs)
    call = Partition.of(f, argnums, args, kwargs, has_aux, "args[0]", where)
    if not outermost((args, kwargs)):
        raise TypeError(
            "`check_gradient` must be called outside `jax.jit`, `jax.grad` and `jax.vmap`, as it "
            "looks at values. Got traced arguments."
        )
    point = Point(call.points, (call.dynamic, _require_cotangent(cotangent)))
    by_hand = gradient and functools.partial(gradient_by_hand, gradient, args, kwargs, call)
    random, forward = isinstance(cotangent, str), _require_modes(modes)
    settings = Settings(gradient is None, cotangent is not None, random, seed)
    settings = settings._replace(held=stop_gradient == "held", trust=tuple(trust))
    how = How(evidence == "together", Watch.of(progress))
    fixed = _fixed(call)
    report = None
    # What is not finite is reported; and beyond the domain of `f`, where coarse steps may lead, it
    # is no fault.
    with jax.debug_nans(False), jax.debug_infs(False), how.watch:
        for level in range(1, order + 1):
            for mode in forward:
                asked = settings._replace(order=level, forward=mode)
                report = _check(call, point, asked, by_hand, how)
                report = dataclasses.replace(report, digits=digits, fixed=fixed)
                if mode and len(forward) > 1:
                    report = report.with_note("this is the gradient by forward mode")
                if not report.ok or report.interrupted:
                    return _heard(report)
    assert report is not None
    return _heard(report)


def _fixed(call: Partition) -> tuple[str, ...]:
    """The arguments that are not differentiated; of many the first."""
    return _first([f"{path.removeprefix('args')} {describe(x)}" for path, x in call.beside])


def _first(named: Sequence[str]) -> tuple[str, ...]:
    """The first of many, and how many more there are."""
    more = (f"{len(named) - NAMED} more",) if len(named) > NAMED else ()
    return (*named[:NAMED], *more)


# Who wants to hear of each report that is made in a test: the command line.
MADE: contextvars.ContextVar[list[GradientReport] | None] = contextvars.ContextVar(
    "made", default=None
)


def _heard(report: GradientReport) -> GradientReport:
    if (made := MADE.get()) is not None:
        made.append(report)
    return report


class Options(TypedDict, total=False):
    """What `check_gradient` may be told by name, for type checkers."""

    argnums: int | tuple[int, ...]
    kwargs: Mapping[str, Any] | None
    where: Where
    gradient: Callable | None
    order: int
    modes: Mode | Sequence[Mode] | None
    has_aux: bool
    cotangent: Any
    stop_gradient: Literal["report", "held"]
    trust: Sequence[str]
    evidence: Literal["together", "leaf"]
    progress: bool | None
    seed: int
    digits: float | int | None


def assert_gradient(f: Callable, *args: Any, **options: Unpack[Options]) -> None:
    """Raise `GradientError` unless the gradient of `f` at `args` is right; for tests.

    Takes what `check_gradient` takes.

    Example:
      >>> assert_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
    """
    __tracebackhide__ = True  # under pytest, the line that asks is the one to see
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        name = unknown[0]
        raise TypeError(
            f"`{name}` must be in `kwargs`, as in kwargs={{{name!r}: ...}}, if `f` takes it. Got "
            "no option of that name."
        )
    check_gradient(f, *args, **options).raise_if_wrong()


class How(NamedTuple):
    """How the user wants to be served: leaves asked together, and who is told what is asked."""

    together: bool
    watch: Watch


class Claims(NamedTuple):
    """What is to be checked.

    Attributes:
      value: of the function, in the user's dtypes.
      own: the gradient by each leaf, in the user's dtypes.
      wide: the same in float64: this is held against values.
      forward: the value that the differentiated function has, in float64; NaN if there is none.
      centre: the value that the function has, in float64; NaN before it was asked for.
      lost: for each leaf, which entries lost digits in its own dtype; None for none.
    """

    value: float
    own: list[Any]
    wide: list[Any]
    forward: float = math.nan
    centre: float = math.nan
    lost: Sequence[np.ndarray | None] = ()


def _check(
    call: Partition, point: Point, settings: Settings, by_hand: Callable | None, how: How
) -> GradientReport:
    """One check from end to end; and others where what is inside may be to blame."""
    programs = prepare(call, point, settings)
    report, claims = _held_against_values(call, point, settings, programs, by_hand, how)
    if report.interrupted:
        return report
    if by_hand or programs.program is None:
        roundings = [OF_RULES * float(jnp.finfo(leaf.dtype).eps) for leaf in report.leaves]
        pairs = zip(report.leaves, roundings, strict=True)
        return report.with_leaves([without_diffuse(*pair) for pair in pairs])
    tolerance = min(reach(x.dtype) for x in point.leaves)
    if programs.has_solver and _accused(report):
        settings = settings._replace(further=True)
        solved = prepare(call, point, settings)
        further, claims_further = _held_against_values(call, point, settings, solved, None, how)
        pairs = zip(claims.wide, claims_further.wide, strict=True)
        gradients = dict(zip(_paths(call), pairs, strict=True))
        leaf_of = {leaf.path: leaf for leaf in further.leaves}
        report = report.with_leaves(
            [
                within_tolerance(leaf, leaf_of[leaf.path], *gradients[leaf.path])
                for leaf in report.leaves
            ]
        )
    places = stops(programs.program) if settings.order == 1 else ()
    if _accused(report) and places and not settings.held:
        held = prepare(call, point, settings._replace(held=True, further=False))
        fixed, _ = _held_against_values(call, point, settings, held, None, how)
        leaf_of = {leaf.path: leaf for leaf in fixed.leaves}
        leaves = [as_detached(leaf, leaf_of[leaf.path], places) for leaf in report.leaves]
        report = report.with_leaves(leaves)
    another_value = _has_another_value(claims, tolerance)
    how.watch.say("looking for the line")
    report = _with_lines(report, call, point, programs, claims, another_value)
    return _with_another_value(report, claims) if another_value else report


def _with_lines(
    report: GradientReport,
    call: Partition,
    point: Point,
    programs: Traced,
    claims: Claims,
    another_value: bool,
) -> GradientReport:
    """The report, with the lines that are to blame for what is not right; the question that fits is
    asked, and may decide what the slope could not.
    """
    if report.verdict is Verdict.NOT_DETERMINISTIC:
        return report
    values, dtype = jax.tree.leaves(point), wide_dtype()
    seeds = seeds_of(programs.program)
    verdicts = {leaf.verdict for leaf in report.leaves}
    try:
        if Verdict.NOT_FINITE in verdicts or not np.isfinite(claims.value):
            found = births(programs.tape(point), values, seeds, call.traced_paths)
            report = dataclasses.replace(report, births=tuple(found[:LINES]))
        if another_value or any(map(_is_suspicious, report.leaves)):
            found = wrong_rules(programs.tape(point, dtype), values, seeds)
            report = _judged_by_rules(report, programs.program, found)
        if any(lost is not None for lost in claims.lost) and verdicts & {
            Verdict.IMPRECISE,
            Verdict.DIFFERS,
        }:
            own, wide = (programs.tape(point, kind, unrolled=True) for kind in (None, dtype))
            found = digits_lost(own, wide, values, seeds, claims.lost)
            report = dataclasses.replace(report, digits_lost=tuple(found))
    except Exception as error:  # of a rule that stands alone: JAX and its users raise anything
        reason = str(error).partition("\n")[0]
        return report.with_note(f"no line can be named: {type(error).__name__} {reason}")
    return report


def _is_suspicious(leaf: LeafReport) -> bool:
    """Whether a rule of the function's may decide what the slope of the leaf could not.

    That is where it differs, or is unresolved, or is off by less than the tolerance lets pass, but
    by more than its bound and what the dtype explains.
    """
    return leaf.verdict in (Verdict.DIFFERS, Verdict.UNRESOLVED) or _is_slightly_off(leaf)


def _is_slightly_off(leaf: LeafReport) -> bool:
    """Whether a leaf agrees, but is off by more than its dtype explains."""
    agrees, off_by = leaf.verdict is Verdict.AGREES, 10**-leaf.digits
    return agrees and leaf.is_off and off_by > explained(leaf.dtype)


def _told_if_off(leaf: LeafReport) -> LeafReport:
    """The leaf, with a hint where it is slightly off and nothing else is said of it."""
    if leaf.hint or not _is_slightly_off(leaf):
        return leaf
    return leaf._replace(
        hint=f"off by {10**-leaf.digits:.0e} of its size: less than is called wrong in "
        f"{leaf.dtype}; `digits=` asks for more"
    )


def _judged_by_rules(
    report: GradientReport, program: Any, found: Sequence[RuleReport]
) -> GradientReport:
    """The report, once it is known which rules are wrong: one of them, or none."""
    if not found:
        leaves = [within_approximation(leaf, program) for leaf in report.leaves]
        return report.with_leaves([without_diffuse(leaf, reach(leaf.dtype)) for leaf in leaves])
    leaves = [
        _wrong_by_rule(leaf)
        if _is_suspicious(leaf) and leaf.verdict is not Verdict.DIFFERS
        else leaf
        for leaf in report.leaves
    ]
    return dataclasses.replace(report.with_leaves(leaves), rules=tuple(found[:LINES]))


def _wrong_by_rule(leaf: LeafReport) -> LeafReport:
    """A leaf that a wrong rule leads to, with the entries that are off by more than is explained,
    though by less than is called wrong without that.
    """
    entries = tuple(
        entry._replace(verdict=Verdict.DIFFERS)
        for entry in leaf.entries
        if abs(entry.autodiff - entry.numerical)
        > max(entry.bound, explained(leaf.dtype) * abs(entry.numerical))
    )
    hint = "a rule that it comes from is wrong by more than its dtype explains"
    return leaf._replace(verdict=Verdict.DIFFERS, hint=hint, entries=entries)


def _accused(report: GradientReport) -> bool:
    return any(leaf.verdict is Verdict.DIFFERS for leaf in report.leaves)


def _held_against_values(
    call: Partition,
    point: Point,
    settings: Settings,
    programs: Programs,
    by_hand: Callable | None,
    how: How,
) -> tuple[GradientReport, Claims]:
    """The stages of a check, in their order."""
    dtype, function = wide_dtype(), call.static.f
    name = getattr(function, "__name__", type(function).__name__)
    line = programs.line(point, dtype, how.watch.tell)
    claims = claim(point, programs, dtype, by_hand)
    tolerances = [reach(x.dtype) for x in point.leaves]
    paired = [role is Role.COMPLEX for role in call.static.skeleton.roles if role.moves]
    found: dict[int, Findings] = {}
    interrupted = False
    how.watch.done(0, len(point.leaves))
    try:
        for k, findings in examine(line, Claimed(claims.wide, tolerances, paired), how.together):
            found[k] = findings
            how.watch.done(len(found), len(point.leaves))
    except KeyboardInterrupt:
        interrupted = True
    notes = _notes(call, settings, programs, line)
    if line.centres and not _is_repeatable(programs, line):
        report = GradientReport(name, Verdict.NOT_DETERMINISTIC, (), notes=notes)
        return dataclasses.replace(report, evaluations=line.evaluations), claims
    # What runs further is not what the user's dtypes were asked for.
    losses = {k: Loss(0.0) for k in found}
    if not settings.further:
        losses = _losses(point, programs, line, claims, found, dtype)
    data = jax.tree.leaves(point.data)
    counts = programs.counts | {n for leaf in data for n in np.shape(leaf)[:1]}
    leaves = []
    for k, (path, x) in enumerate(zip(call.point_paths, point.leaves, strict=True)):
        place = Place(path.removeprefix("args"), x, paired[k])
        if not x.size:
            leaves.append(_bare_report(place, Verdict.AGREES, "the leaf has no entries"))
        elif k not in found or not found[k].asked:
            why = (
                "interrupted" if k not in found else "not asked, as too many other leaves are wrong"
            )
            leaves.append(_bare_report(place, Verdict.UNRESOLVED, why))
        else:
            wide = claims.wide[k]
            of_leaf = _leaf_report(place, wide, line.centre, found[k], losses[k], counts)
            leaves.append(_told_if_off(of_leaf))
    report = GradientReport.of(name, leaves, notes)
    return dataclasses.replace(
        report, order=settings.order, evaluations=line.evaluations, interrupted=interrupted
    ), claims._replace(
        centre=line.centre,
        lost=[losses[k].lost if k in losses else None for k in range(len(point.leaves))],
    )


def _is_repeatable(programs: Programs, line: Line) -> bool:
    """Whether the function gives the same each time, as it is traced and as it is evaluated."""
    values = (same_value(line.centre, again, line.epsilon) for again in line.centres)
    return programs.deterministic and all(values)


def claim(point: Point, programs: Programs, dtype: Any, by_hand: Callable | None) -> Claims:
    """What the function says of itself at the point: its value, and its gradient."""
    value, own = programs.value_and_gradient(point)
    value = np.asarray(value)
    if not (value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(
            "`f` must return a real scalar, or `cotangent` must say how to project. Got "
            f"{describe(value)}."
        )
    own = by_hand() if by_hand else own or []
    own = [np.asarray(g, np.float64) if on_one_cpu(g) else g for g in own]
    if programs.wide is None:
        return Claims(float(value), own, own)
    forward, wide = programs.in_float64(point, dtype)
    return Claims(float(value), own, wide, forward)


def _notes(call: Partition, settings: Settings, programs: Programs, line: Line) -> tuple[str, ...]:
    notes = list(programs.notes)
    if settings.order > 1:
        notes.append(
            "the gradient itself agrees; these are the slopes of a random projection of it"
        )
    if settings.held and programs.program is not None:
        places = ", ".join(stops(programs.program)) or "nowhere"
        notes.append(f"held at the point, as stopped: {places}")
    if not programs.deterministic:
        notes.append("not deterministic: tracing the function twice gives two functions")
    if fixed := call.held_fixed:
        named = [f"{path.removeprefix('args')} ({_kind(leaf)})" for path, leaf in fixed]
        notes.append(f"held fixed: {', '.join(_first(named))}")
    if programs.narrow:
        coarsest = max(programs.narrow, key=lambda kind: jnp.finfo(kind).eps)
        notes.append(
            f"parts of the function were evaluated in {jnp.dtype(coarsest).name}: a host callback, "
            "or the like"
        )
    if line.centres and not np.isfinite(line.centre):
        notes.append(f"the function itself is {line.centre} here")
    return tuple(notes)


def _has_another_value(claims: Claims, tolerance: float) -> bool:
    """Whether the function has another value where it is differentiated."""
    forward, centre = claims.forward, claims.centre
    if not (np.isfinite(forward) and np.isfinite(centre)):
        return False
    bound = ROUNDINGS_BETWEEN_CALLS * float(np.finfo(np.float64).eps) * abs(centre)
    return judge(Evidence(forward, centre, centre, bound), tolerance).wrong


def _with_another_value(report: GradientReport, claims: Claims) -> GradientReport:
    """The report, worse for that."""
    note = (
        f"where it is differentiated the function has another value, {claims.forward:.6g} for "
        f"{claims.centre:.6g}: the forward pass of a custom rule"
    )
    verdict = max(report.verdict, Verdict.DIFFERS)
    return dataclasses.replace(report, verdict=verdict).with_note(note)


# So many leaves that are held fixed are named.
NAMED = 8


def _kind(leaf: Any) -> str:
    """What a leaf that is held fixed is, in a word."""
    if hasattr(leaf, "dtype"):
        return str(leaf.dtype)
    return "function" if callable(leaf) else type(leaf).__name__


@functools.cache
def _name_of(dtype: Any, paired: bool) -> str:
    return (jnp.promote_types(dtype, jnp.complex64) if paired else jnp.dtype(dtype)).name


def _losses(
    point: Point,
    programs: Programs,
    line: Line,
    claims: Claims,
    findings: dict[int, Findings],
    dtype: Any,
) -> dict[int, Loss]:
    """What each leaf's gradient loses in its own dtype."""

    @functools.cache
    def shaken():
        """By how much roundings of the arguments change the gradient, up and down."""
        if programs.wide is None:
            return []
        moved = [programs.in_float64(point, dtype, shake)[1] for shake in (1.0, -1.0)]
        return [
            [np.abs(np.asarray(a) - np.asarray(b)) for a, b in zip(g, claims.wide, strict=True)]
            for g in moved
        ]

    def vouched(k):
        verdict, _ = verdict_of(findings[k], line.centre, reach(point.leaves[k].dtype))
        return verdict is Verdict.AGREES

    def own_values_agree(k):
        """Whether the gradient in the user's dtypes is that of the values in them."""
        if not isinstance(programs, Traced):
            return False
        own_line = programs.own_line(point)
        asked = own_line.compare(claims.own, Direction((own_line.whole(k),)))
        return asked.slope.known_to(BLIND) and not asked.excess

    @functools.cache
    def scales(k):
        x = np.asarray(point.leaves[k], np.float64)
        return entry_sizes(x, usual_size(x))

    @functools.cache
    def overall():
        parts = (np.asarray(g, np.float64) * scales(k) for k, g in enumerate(claims.wide))
        return float(np.sqrt(sum(np.sum(x[np.isfinite(x)] ** 2) for x in parts)))

    return {
        k: own_dtype_loss(
            claims.own[k],
            claims.wide[k],
            point.leaves[k].dtype,
            (claims.value, line.centre),
            lambda k=k: scales(k).ravel(),
            overall,
            found.best.slope,
            programs.rounding,
            lambda k=k: [moved[k] for moved in shaken()],
            functools.partial(vouched, k),
            functools.partial(own_values_agree, k),
        )
        for k, found in findings.items()
        if found.asked
    }


class Place(NamedTuple):
    """A leaf, as the report shows it.

    Attributes:
      path: of it.
      x: its values, in their real form.
      paired: whether it is complex.
    """

    path: str
    x: Any
    paired: bool

    @property
    def dtype(self) -> str:
        """The name of the dtype that it has in JAX."""
        return _name_of(self.x.dtype, self.paired)

    @property
    def shape(self) -> tuple[int, ...]:
        """As it was given."""
        return self.x.shape[:-1] if self.paired else self.x.shape


def _leaf_report(
    place: Place,
    gradient: Any,
    centre: float,
    findings: Findings,
    loss: Loss,
    counts: frozenset[int],
) -> LeafReport:
    """All that can be said of one leaf."""
    best, tolerance = findings.best, reach(place.x.dtype)
    slope, scale = best.slope, best.scale
    verdict, entries = verdict_of(findings, centre, tolerance)
    pattern, hint = causes.describe(
        entries, gradient, counts, not findings.explained, findings.ratio, place.paired
    )
    if verdict is Verdict.DIFFERS and not any(e.verdict.wrong for e in entries):
        pattern = pattern or _NAMELESS[findings.searched]
    elif beyond := causes.beyond_the_domain(entries, slope, centre):
        hint = beyond
    elif verdict is Verdict.UNRESOLVED:
        hint = (
            f"an error smaller than {slope.bound:.1e} along this direction could not have been seen"
        )
    if loss.outweighs(verdict):
        verdict, hint, entries = loss.verdict, loss.hint, list(loss.entries)
    immovable = count_not_finite(place.x)
    if immovable and (not verdict.wrong or not math.isfinite(centre)):
        verdict = Verdict.UNRESOLVED
        hint = f"{immovable} of {place.x.size} entries not finite: no step leads from there"
    if verdict is Verdict.AGREES:
        hint = causes.nothing_there(slope, scale, gradient) or loss.hint or hint
    else:
        entries = sorted(entries, key=_by_weight)
    if count_not_finite(gradient) and not immovable:
        best = best._replace(claim=math.nan)  # the line was asked with what it should be
    off = float(np.maximum(abs(best.difference), slope.bound))  # NaN where either is
    return LeafReport(
        path=place.path,
        shape=place.shape,
        dtype=place.dtype,
        verdict=verdict,
        autodiff=best.claim,
        numerical=slope.value,
        bound=slope.bound,
        step=slope.step,
        noise=slope.noise,
        digits=digits_shared(off, scale or slope.size),
        own_dtype_digits=loss.digits,
        entries=Entry.joined(entries) if place.paired else tuple(entries),
        pattern=pattern,
        hint=hint,
        steps=tuple(slope.steps.tolist()),
        differences=tuple(slope.differences.tolist()),
    )


# Why no entry of a wrong leaf is named: whether they were looked for.
_NAMELESS = {
    True: "the slope is wrong, but no single entry is by enough to be named",
    False: "the slope is wrong; its entries were not looked at, as other leaves are wrong too",
}


def _bare_report(place: Place, verdict: Verdict, hint: str) -> LeafReport:
    """Of a leaf without evidence."""
    digits = ALL_DIGITS if verdict.ok else 0.0
    nothing = (0.0, 0.0, 0.0 if verdict.ok else math.inf, 0.0, 0.0, digits, digits, (), "")
    return LeafReport(place.path, place.shape, place.dtype, verdict, *nothing, hint, (), ())


def _by_weight(entry: Entry) -> tuple[int, float]:
    """Worst first: wrong ones, then kinks; the largest error before smaller ones."""
    order = (Verdict.NOT_FINITE, Verdict.DIFFERS, Verdict.IMPRECISE, Verdict.KINK, Verdict.AGREES)
    return order.index(entry.verdict), -abs(entry.autodiff - entry.numerical)


def _require_modes(modes: Any) -> tuple[bool | None, ...]:
    """Whether forward mode is used, for each mode that is asked for; None for what there is."""
    if modes is None:
        return (None,)
    given = (modes,) if isinstance(modes, str) else modes
    known = isinstance(given, Sequence) and given and all(m in ("fwd", "rev") for m in given)
    if not known:
        raise ValueError(f"`modes` must be 'fwd', 'rev' or both. Got {modes!r}.")
    return tuple(mode == "fwd" for mode in given)


def _require_cotangent(cotangent: Any) -> PyTree | None:
    """The cotangent as arrays; None where there is none, or a random one."""
    if isinstance(cotangent, str) and cotangent != "random":
        raise ValueError(
            f"`cotangent` must be a pytree like the output of `f`, or 'random'. Got {cotangent!r}."
        )
    if cotangent is None or isinstance(cotangent, str):
        return None
    require_arrays("cotangent", cotangent)
    for path, leaf in jax.tree_util.tree_flatten_with_path(cotangent)[0]:
        name, dtype = f"cotangent{jax.tree_util.keystr(path)}", jnp.result_type(leaf)
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.inexact, jnp.integer)):
            raise TypeError(f"`{name}` must be numbers. Got {describe(leaf)}.")
        if not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError(f"`{name}` must be finite. Got {leaf}.")
    return jax.tree.map(jnp.asarray, cotangent)


def _paths(call: Partition) -> list[str]:
    """Paths in the argument tuple, as `jax.tree_util.keystr` writes them: `[0]['W1']`."""
    return [path.removeprefix("args") for path in call.point_paths]
