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

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Role
from jaxnn._validate import (
    describe,
    require_arguments,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_same_form,
)
from jaxnn.checking import causes
from jaxnn.checking.evidence import (
    ALL_DIGITS,
    NOTHING,
    Evidence,
    Verdict,
    digits_shared,
    is_diffuse,
    judge,
    reach,
    same_value,
)
from jaxnn.checking.findings import Entry, LeafReport
from jaxnn.checking.line import Line
from jaxnn.checking.locate import Findings, examine_leaf
from jaxnn.checking.own_dtype import Loss, own_dtype_loss
from jaxnn.checking.programs import Point, Programs, Settings, prepare
from jaxnn.checking.report import GradientReport
from jaxnn.checking.solvers import within_tolerance
from jaxnn.numerical.float64 import wide_dtype


def check_gradient(
    f: Callable,
    *args: Any,
    argnums: int | tuple[int, ...] = 0,
    gradient: Callable | None = None,
    order: int = 1,
    has_aux: bool = False,
    cotangent: Any = None,
    seed: int = 0,
) -> GradientReport:
    """Hold the gradient of `f` at `args` against the function's values.

    Args:
      f: a scalar function of pytrees (with `cotangent`, of any real output), jitted or not.
      *args: the point. Integer, boolean and key leaves are held fixed.
      argnums: the argument or arguments whose gradient is checked, as in `jax.grad`.
      gradient: a hand-written gradient, called as `jax.grad(f, argnums)` would be; `jax.grad`'s own
        by default.
      order: 2 checks the gradient of a random projection of the gradient as well: the Hessian.
      has_aux: whether `f` returns `(value, aux)`.
      cotangent: for an output that is not a scalar: a pytree like it, or "random". What is checked
        is the gradient of the sum of its products with the output.
      seed: of the random projections.

    Returns:
      A `GradientReport`: `report.ok`, `print(report)`, `report.raise_if_wrong()`.

    Raises:
      TypeError: no floating leaf in the arguments chosen, an output that is not real, or (without
        `cotangent`) no scalar; `f` cannot be differentiated by JAX and no `gradient` is given.
      ValueError: `argnums` or `order` out of range, NaN or inf in an argument, `gradient` or
        `cotangent` of another form.

    Example:
      >>> report = check_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
      >>> report.verdict
      'agrees'
    """
    require_callable("f", f)
    require_count("seed", seed)
    if gradient is not None:
        require_callable("gradient", gradient)
    require_choice("order", order, (1, 2))
    if order == 2 and gradient is not None:
        raise ValueError("`order` must be 1 where a hand-written `gradient` is given. Got 2.")
    call = Partition.of(f, argnums, args, {}, has_aux, name="args[0]", real=True)
    _require_finite(call)
    point = Point(call.points, (call.dynamic, _require_cotangent(cotangent)))
    by_hand = gradient and functools.partial(_given_gradient, gradient, args, call)
    random = isinstance(cotangent, str)
    settings = Settings(gradient is None, cotangent is not None, random, seed)
    # What is not finite is reported; and beyond the domain of `f`, where coarse steps may lead, it
    # is no fault.
    with jax.debug_nans(False), jax.debug_infs(False):
        report = _check(call, point, settings, by_hand)
        if order == 1 or not report.ok:
            return report
        report = _check(call, point, settings._replace(order=2), None)
    note = "the gradient itself agrees; these are the slopes of a random projection of it"
    return dataclasses.replace(report, notes=(*report.notes, note), order=2)


def assert_gradient(f: Callable, *args: Any, **options: Any) -> None:
    """Raise `GradientError` unless the gradient of `f` at `args` is right; for tests.

    Takes what `check_gradient` takes.

    Example:
      >>> assert_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
    """
    check_gradient(f, *args, **options).raise_if_wrong()


class Claims(NamedTuple):
    """What is to be checked.

    Attributes:
      value: of the function, in the user's dtypes.
      centre: the same in float64.
      own: the gradient by each leaf, in the user's dtypes.
      wide: the same in float64: this is held against values.
      repeatable: whether the function has the same value twice.
    """

    value: float
    centre: float
    own: list[np.ndarray]
    wide: list[np.ndarray]
    repeatable: bool


def _check(
    call: Partition, point: Point, settings: Settings, by_hand: Callable | None
) -> GradientReport:
    """One check from end to end; and another where a solver's tolerance may be to blame."""
    programs = prepare(call, point, settings)
    report, claims = _held_against_values(call, point, programs, by_hand)
    wrong = any(leaf.verdict is Verdict.DIFFERS for leaf in report.leaves)
    if not wrong or by_hand or not programs.has_solver:
        return report
    programs = prepare(call, point, settings._replace(further=True))
    further, claims_further = _held_against_values(call, point, programs, None)
    pairs = zip(claims.wide, claims_further.wide, strict=True)
    gradients = dict(zip(_paths(call), pairs, strict=True))
    solved = {leaf.path: leaf for leaf in further.leaves}
    leaves = [
        within_tolerance(leaf, solved[leaf.path], *gradients[leaf.path]) for leaf in report.leaves
    ]
    return report.with_leaves(leaves)


def _held_against_values(
    call: Partition, point: Point, programs: Programs, by_hand: Callable | None
) -> tuple[GradientReport, Claims]:
    """The stages of a check, in their order."""
    dtype, function = wide_dtype(), call.static.f
    name = getattr(function, "__name__", type(function).__name__)
    line = programs.line(point, dtype)
    claims = claim(point, programs, line, dtype, by_hand)
    notes = _notes(call, programs, claims)
    if not claims.repeatable:
        return GradientReport(name, Verdict.NOT_DETERMINISTIC, (), (), notes), claims
    findings = {
        k: examine_leaf(line, k, claims.wide[k], reach(x.dtype))
        for k, x in enumerate(point.leaves)
        if x.size
    }
    losses = _losses(point, programs, line, claims, findings, dtype)
    data = jax.tree.leaves(point.data)
    counts = programs.counts | {n for leaf in data for n in np.shape(leaf)[:1]}
    leaves = [
        _leaf_report(path, x.dtype, claims.wide[k], claims.centre, findings[k], losses[k], counts)
        if x.size
        else _empty_report(path, x)
        for k, (path, x) in enumerate(zip(_paths(call), point.leaves, strict=True))
    ]
    return GradientReport.of(name, leaves, programs.rules(point), notes), claims


def claim(
    point: Point, programs: Programs, line: Line, dtype: Any, by_hand: Callable | None
) -> Claims:
    """What the function says of itself at the point: its values, and its gradient."""
    value, own = programs.own(point.leaves, point.data)
    value = np.asarray(value)
    if not (value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(
            "`f` must return a real scalar, or `cotangent` must say how to project. Got "
            f"{describe(value)}."
        )
    own = [np.asarray(g, np.float64) for g in (by_hand() if by_hand else own)]
    wide = own if programs.wide is None else programs.wide_gradient(point, dtype)
    first, again = line.centre(), line.centre()
    same = programs.deterministic and same_value(first, again, line.epsilon)
    return Claims(float(value), first, own, wide, same)


def _notes(call: Partition, programs: Programs, claims: Claims) -> tuple[str, ...]:
    notes = list(programs.notes)
    if not programs.deterministic:
        notes.append("not deterministic: tracing the function twice gives two functions")
    if fixed := call.complex_paths:
        paths = ", ".join(path.removeprefix("args") for path in fixed)
        notes.append(f"complex leaves are held fixed: {paths}")
    if programs.narrow:
        coarsest = max(programs.narrow, key=lambda kind: jnp.finfo(kind).eps)
        notes.append(
            f"parts of the function were evaluated in {jnp.dtype(coarsest).name}: a host callback, "
            "or the like"
        )
    if not np.isfinite(claims.centre):
        notes.append(f"the function itself is {claims.centre} here")
    return tuple(notes)


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
        moved = [programs.wide_gradient(point, dtype, shake) for shake in (1.0, -1.0)]
        return [[np.abs(a - b) for a, b in zip(g, claims.wide, strict=True)] for g in moved]

    return {
        k: own_dtype_loss(
            claims.own[k],
            claims.wide[k],
            point.leaves[k].dtype,
            (claims.value, claims.centre),
            line.scales[k][0],
            found.best.slope,
            programs.rounding,
            lambda k=k: [moved[k] for moved in shaken()],
        )
        for k, found in findings.items()
    }


def _leaf_report(
    path: str,
    dtype: Any,
    gradient: np.ndarray,
    centre: float,
    findings: Findings,
    loss: Loss,
    counts: frozenset[int],
) -> LeafReport:
    """All that can be said of one leaf."""
    best, tolerance = findings.best, reach(dtype)
    slope = best.slope
    scale = max(best.size, abs(slope.value) if np.isfinite(slope.value) else 0.0)
    verdict, entries = _verdict(findings, scale, centre, tolerance)
    pattern, hint = causes.describe(entries, gradient, counts, not findings.explained)
    nameless = verdict is Verdict.DIFFERS and not any(e.verdict.wrong for e in entries)
    if nameless:
        pattern = "the slope is wrong, but no single entry is by enough to be named"
    elif beyond := causes.beyond_the_domain(entries, slope, centre):
        hint = beyond
    elif verdict is Verdict.UNRESOLVED:
        hint = (
            f"an error smaller than {slope.bound:.1e} along this direction could not have been seen"
        )
    if loss.verdict.wrong and not verdict.wrong:
        verdict, hint, entries = loss.verdict, loss.hint, list(loss.entries)
    if verdict is Verdict.AGREES:
        hint = causes.nothing_there(slope, scale, gradient) or hint
    else:
        entries = sorted(entries, key=_by_weight)
    if not np.all(np.isfinite(gradient)):
        best = best._replace(claim=math.nan)  # the line was asked with what it should be
    off = float(np.maximum(abs(best.difference), slope.bound))  # NaN where either is
    return LeafReport(
        path=path,
        shape=gradient.shape,
        dtype=jnp.dtype(dtype).name,
        verdict=verdict,
        autodiff=best.claim,
        numerical=slope.value,
        bound=slope.bound,
        step=slope.step,
        noise=slope.noise,
        digits=digits_shared(off, scale or slope.size),
        own_dtype_digits=loss.digits,
        entries=tuple(entries),
        pattern=pattern,
        hint=hint,
        steps=tuple(slope.steps.tolist()),
        differences=tuple(slope.differences.tolist()),
    )


def _empty_report(path: str, x: jax.Array) -> LeafReport:
    nothing = (0.0, 0.0, 0.0, 0.0, 0.0, ALL_DIGITS, ALL_DIGITS, (), "")
    kind, hint = jnp.dtype(x.dtype).name, "the leaf has no entries"
    return LeafReport(path, x.shape, kind, Verdict.AGREES, *nothing, hint, (), ())


def _verdict(
    findings: Findings, scale: float, centre: float, tolerance: float
) -> tuple[Verdict, list[Entry]]:
    """The verdict on a leaf, the worst of its line's and its entries'; and those that count."""
    best, entries = findings.best, list(findings.entries)
    evidence = [Evidence(e.autodiff, e.left, e.right, e.bound) for e in entries]
    verdicts = [e.verdict for e in entries]
    if not findings.explained and is_diffuse(evidence, verdicts, tolerance):
        entries = [e for e in entries if e.verdict is Verdict.KINK]
    counts = max(scale, NOTHING * max(abs(centre), best.slope.size))
    line = best.slope.evidence(best.claim)
    if not np.isfinite(centre):
        line = line._replace(claim=centre)  # of no value there is no slope to claim
    elif findings.explained and np.isfinite(line.bound):
        # What the entries found explain is no evidence against the line as well.
        middle = best.slope.value
        line = line._replace(claim=middle, left=middle, right=middle)
    whole = judge(line, tolerance, scale, counts)
    return max([whole, *(e.verdict for e in entries)]), entries


def _by_weight(entry: Entry) -> tuple[int, float]:
    """Worst first: wrong ones, then kinks; the largest error before smaller ones."""
    order = (Verdict.NOT_FINITE, Verdict.DIFFERS, Verdict.KINK, Verdict.AGREES)
    return order.index(entry.verdict), -abs(entry.autodiff - entry.numerical)


def _given_gradient(gradient: Callable, args: tuple[Any, ...], call: Partition) -> list[Any]:
    """What a hand-written gradient returns, leaf by leaf, if it has the form of the arguments."""
    require_arguments("gradient", gradient, *args)
    result = gradient(*args)
    if isinstance(call.argnums, tuple):
        name, chosen = "args", tuple(args[i] for i in call.argnums)
    else:
        name, chosen = f"args[{call.argnums}]", args[call.argnums]
    require_same_form("gradient(...)", result, name, chosen)
    for path, leaf in jax.tree_util.tree_flatten_with_path(result)[0]:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            place = f"gradient(...){jax.tree_util.keystr(path)}"
            raise TypeError(f"`{place}` must be real. Got {describe(leaf)}.")
    differentiated = {
        id(leaf)
        for leaf, role in zip(call.leaves, call.static.roles, strict=True)
        if role is Role.DIFFERENTIATED
    }
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(chosen), strict=True)
    return [g for g, leaf in pairs if id(leaf) in differentiated]


def _require_finite(call: Partition) -> None:
    """Refuse NaN and infinity in what is differentiated."""
    for path, leaf in zip(call.point_paths, call.points, strict=True):
        x = np.asarray(leaf)
        bad = np.argwhere(~np.isfinite(x.astype(np.float64)))
        if len(bad):
            index = bad[0].tolist()
            raise ValueError(f"`{path}` must be finite. Got {x[tuple(index)]} at index {index}.")


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
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise TypeError(f"`{name}` must be real. Got {describe(leaf)}.")
        if not np.all(np.isfinite(np.asarray(leaf, np.float64))):
            raise ValueError(f"`{name}` must be finite. Got {leaf}.")
    return jax.tree.map(jnp.asarray, cotangent)


def _paths(call: Partition) -> list[str]:
    """Paths in the argument tuple, as `jax.tree_util.keystr` writes them: `[0]['W1']`."""
    return [path.removeprefix("args") for path in call.point_paths]
