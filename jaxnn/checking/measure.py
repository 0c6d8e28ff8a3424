"""The stages of a check up to a verdict on each leaf: programs, claims, lines, entries, precision.

Each stage is a function of the earlier results. `Checked` holds all results so far; the follow-up
questions take and return it.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Role
from jaxnn._programs import outermost
from jaxnn.checking.evidence import FLOAT32, Verdict, explained, reach, relative_error, same_value
from jaxnn.checking.findings import INTERRUPTED, Birth, DigitsLost, LeafReport, RuleReport
from jaxnn.checking.further import has_solver
from jaxnn.checking.held import stops
from jaxnn.checking.leaf import Place, bare_report, leaf_report
from jaxnn.checking.locate import LEAST_ROUNDING, Allowed, Located, examine, verdict_of
from jaxnn.checking.precision import Loss, losses
from jaxnn.checking.programs import Programs, prepare
from jaxnn.checking.settings import Claims, Point, Settings
from jaxnn.checking.slope import Slope
from jaxnn.checking.status import Status
from jaxnn.checking.untraced import Untraced
from jaxnn.numerical.float64 import host

# Errors of up to this many roundings of the gradient's largest entry count as rounding error:
# OF_CLAIMS for a gradient in its own dtype, OF_CONSTANTS (rounded constants) for one in float64.
OF_CLAIMS, OF_CONSTANTS = 16, 4
# Two float64 gradients are the same up to this relative error.
SAME = 1e-9
# How many of the arguments that are treated as constant a report names.
NAMED = 8


class Check(NamedTuple):
    """The input of a check.

    Attributes:
      call: the function and its arguments.
      point: where the function is differentiated.
      settings: how the gradient is computed.
      together: whether leaves may be checked together.
      status: shows the progress of the check.
    """

    call: Partition
    point: Point
    settings: Settings
    together: bool
    status: Status

    def with_settings(self, **changed: Any) -> "Check":
        """The same check with other settings."""
        return self._replace(settings=self.settings._replace(**changed))


class Checked(NamedTuple):
    """The results of a check so far.

    Attributes:
      check: the input of the check.
      programs: `Programs` of the function, or `Untraced`.
      claims: the gradient that is checked.
      centre: the function's value at the point, in float64.
      losses: the digits that each leaf's gradient loses in its own dtype.
      leaves: a report on each leaf, in the order of `claims`.
      by_reference: the paths of the leaves for which the values support the gradient that JAX gives
        without custom rules and without stopping it.
      notes: remarks on anything unusual.
      deterministic: whether two calls of the function gave the same result.
      evaluations: how many values were computed.
      interrupted: whether the user ended the check early.
      reference: computes the gradient without custom rules, once.
      least: the best verdict that is still possible.
      births: where NaN or infinity first appears.
      rules: the derivative rules that are wrong.
      digits_lost: the lines that lose digits.
      before: the reports on leaves before the solvers inside were run further, by their paths.
    """

    check: Check
    programs: Any
    claims: Claims
    centre: float
    losses: dict[int, Loss] = {}
    leaves: tuple[LeafReport, ...] = ()
    by_reference: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    deterministic: bool = True
    evaluations: int = 0
    interrupted: bool = False
    reference: Callable[[], Sequence[Any] | None] = lambda: None
    least: Verdict = Verdict.AGREES
    births: tuple[Birth, ...] = ()
    rules: tuple[RuleReport, ...] = ()
    digits_lost: tuple[DigitsLost, ...] = ()
    before: Mapping[str, LeafReport] = MappingProxyType({})

    def with_leaves(self, leaves: Sequence[LeafReport]) -> "Checked":
        """The same results with other reports on leaves."""
        return self._replace(leaves=tuple(leaves))

    def excusing(self, is_excused: Callable[[LeafReport], bool], hint: str) -> "Checked":
        """The same results, with leaves "unresolved" for the reason in the hint."""
        excused = {"verdict": Verdict.UNRESOLVED, "hint": hint, "entries": (), "pattern": ""}
        return self.with_leaves(
            [leaf._replace(**excused) if is_excused(leaf) else leaf for leaf in self.leaves]
        )

    def with_note(self, note: str) -> "Checked":
        """The same results with one more note."""
        return self._replace(notes=(*self.notes, note))

    @property
    def paths(self) -> list[str]:
        """The path of each leaf, in order, as `jax.tree_util.keystr` writes it: `[0]['W1']`."""
        return [path.removeprefix("args") for path in self.check.call.point_paths]

    @property
    def is_automatic(self) -> bool:
        """Whether the gradient is JAX's, of a function that JAX can trace."""
        return self.check.settings.by_hand is None and self.programs.program is not None

    @property
    def wrong(self) -> frozenset[str]:
        """The paths of the leaves whose verdict is "differs"."""
        return frozenset(leaf.path for leaf in self.leaves if leaf.verdict is Verdict.DIFFERS)

    def changes_without_rules(self) -> dict[str, float]:
        """By how much the gradient of each leaf changes without custom rules, relative to its norm;
        empty if there is no such gradient.
        """
        reference = self.reference() if self.is_automatic else None
        if reference is None:
            return {}
        changes = map(relative_error, self.claims.wide, reference)
        return dict(zip(self.paths, changes, strict=True))

    def without_rules(self) -> frozenset[str]:
        """The paths of the leaves whose gradient is the same without custom rules."""
        changes = self.changes_without_rules().items()
        return frozenset(path for path, change in changes if change <= SAME)

    @property
    def verdicts(self) -> set[Verdict]:
        """The verdicts on the leaves."""
        return {leaf.verdict for leaf in self.leaves}

    @property
    def values(self) -> list[Any]:
        """The inputs of the function's program."""
        return jax.tree.leaves(self.check.point)


def require_outermost(name: str, *values: PyTree) -> None:
    """Refuse traced arguments: the function `name` needs concrete values."""
    if not outermost(values):
        raise TypeError(
            f"`{name}` must be called outside `jax.jit`, `jax.grad` and `jax.vmap`, as it needs "
            "concrete values. Got traced arguments."
        )


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Switch off the settings of JAX that disturb a check.

    JAX must not raise on non-finite values: the report covers them, and coarse steps may leave the
    domain of `f`. Keys are used again at each step. It must compile, as `f` is called only to be
    traced. If the accelerator has no float64, the CPU is used instead.
    """
    off = (jax.debug_nans, jax.debug_infs, jax.debug_key_reuse, jax.disable_jit)
    with contextlib.ExitStack() as stack:
        for setting in off:
            stack.enter_context(setting(False))
        if (cpu := host()) is not None:
            stack.enter_context(jax.default_device(cpu))
        yield


def measure(check: Check) -> Checked:
    """The results of all stages, run in order."""
    return measure_by(prepare(check.call, check.point, check.settings), check)


def measured_again(checked: Checked, **settings: bool) -> Checked:
    """The same check with solvers run further, or with what `stop_gradient` stops held or not."""
    check = checked.check.with_settings(**settings)
    return measure_by(checked.programs.changed(**settings), check)


def measure_by(programs: Programs | Untraced, check: Check) -> Checked:
    """The results of all stages, by the programs of the same function at this or another point. A
    gradient by hand must be one at this point.
    """
    call, point = check.call, check.point
    claims = programs.claims(point)
    located: dict[int, Located] = {}

    def tell(line):
        settled = f"{len(located)} of {len(point.leaves)} leaves checked"
        check.status.say(f"{settled}, {line.evaluations} evaluations")

    line = programs.line(point, tell, not claims.in_float64)
    allowed = _allowed(check, programs, claims)
    reference, interrupted = functools.cache(functools.partial(programs.reference, point)), False
    try:
        located.update(examine(line, claims.wide, allowed, reference, check.together))
    except KeyboardInterrupt:  # what is settled so far is reported
        interrupted = True
    checked = Checked(check, programs, claims, line.centre, evaluations=line.evaluations)
    checked = checked._replace(notes=_notes(checked), interrupted=interrupted, reference=reference)
    other = next((x for x in line.centres if not same_value(line.centre, x, line.epsilon)), None)
    if other is not None:
        both = f"{line.centre:.6g} and {other:.6g}"
        checked = checked.with_note(f"not deterministic: two evaluations here gave {both}")
        return checked._replace(deterministic=False)
    # A solver that runs further computes another result than the user's program in its own dtypes.
    lost = {k: Loss(0.0) for k in located}
    if not check.settings.further:
        unseen = _unseen(located, line.centre, point)
        lost = losses(point, programs, claims, line.centre, list(located), unseen)
    arrays = *programs.consts, *jax.tree.leaves(point.data)
    counts = frozenset(n for x in arrays for n in np.shape(x)[:1])
    leaves = []
    for k, (path, paired) in enumerate(zip(checked.paths, _paired(call), strict=True)):
        place = Place(path, point.leaves[k], paired)
        if not place.x.size:
            leaves.append(bare_report(place, Verdict.AGREES, "the leaf has no entries"))
        elif k not in located:
            leaves.append(bare_report(place, Verdict.UNRESOLVED, INTERRUPTED))
        else:
            gradient = claims.wide[k]
            leaves.append(leaf_report(place, gradient, line.centre, located[k], lost[k], counts))
    supported = frozenset(checked.paths[k] for k in located if located[k].reference is not None)
    checked = checked._replace(leaves=tuple(leaves), losses=lost, by_reference=supported)
    if _is_doubtful(checked, line.epsilon) and not programs.deterministic:
        checked = checked._replace(leaves=(), deterministic=False)
        return checked.with_note(
            "not deterministic: two traces of the function differ, as with NumPy's random numbers"
        )
    return checked


def _is_doubtful(checked: Checked, epsilon: float) -> bool:
    """Whether values and gradient may come from traces of the function that differ. If all leaves
    pass and the value is the same, such a difference changes nothing here.
    """
    has_value = checked.check.settings.by_hand is None
    same = has_value and same_value(checked.claims.forward, checked.centre, epsilon)
    return not (same and all(leaf.verdict.ok for leaf in checked.leaves))


def _unseen(located: dict[int, Located], centre: float, point: Point) -> dict[int, Slope | None]:
    """The leaves whose gradient the values do not show, as `losses` takes them."""
    found: dict[int, Slope | None] = {}
    for k, one in located.items():
        verdict, slope = verdict_of(one, centre, reach(point.leaves[k].dtype)), one.best.slope
        if slope.constant or verdict is Verdict.DIFFERS:
            found[k] = slope
        elif verdict is Verdict.UNRESOLVED and not slope.jumps and math.isfinite(slope.bound):
            found[k] = None
    return found


def _allowed(check: Check, programs: Programs | Untraced, claims: Claims) -> list[Allowed]:
    """For each leaf, which errors in its claims are not mistakes."""
    # A hand-written formula in float64 without a solver contains no approximation by JAX.
    is_exact = claims.in_float64 and check.settings.by_hand and not has_solver(programs.program)

    def of_leaf(dtype, paired):
        tolerance, epsilon = reach(dtype), float(jnp.finfo(dtype).eps)
        slight = min(explained(dtype), tolerance)
        rounding = min(OF_CLAIMS * epsilon, tolerance)
        if claims.in_float64:  # only the gradient's constants are rounded
            rounding = OF_CONSTANTS * min(epsilon, FLOAT32)
        exact = slight if is_exact else tolerance
        return Allowed(tolerance, paired, exact, slight, max(rounding, LEAST_ROUNDING))

    dtypes = [x.dtype for x in check.point.leaves]
    return list(map(of_leaf, dtypes, _paired(check.call)))


def _paired(call: Partition) -> list[bool]:
    """Whether the entries of each leaf are real and imaginary parts."""
    return [role is Role.COMPLEX for role in call.roles if role.moves]


def _notes(checked: Checked) -> tuple[str, ...]:
    check, programs, centre = checked.check, checked.programs, checked.centre
    notes = list(programs.notes)
    if check.settings.order > 1:
        notes.append(
            "the gradient agrees; the slopes shown are those of a random projection of the gradient"
        )
    held = check.settings.held and programs.program is not None
    if places := stops(programs.program) if held else ():
        notes.append(f"treated as constant because of `stop_gradient`: {', '.join(places)}")
    if trusted := check.settings.trust:
        named = ", ".join(f"`{name}`" for name in trusted)
        notes.append(f"the derivative rule of {named} was not checked, as `trust` asks")
    if constant := check.call.held_fixed:
        named = [f"{path.removeprefix('args')} ({_kind(leaf)})" for path, leaf in constant]
        notes.append(f"treated as constant: {', '.join(first_of(named))}")
    if programs.narrow:
        named = {f"`{name}` in {jnp.dtype(dtype).name}" for name, dtype in programs.narrow}
        notes.append(f"not evaluated in float64: {', '.join(first_of(sorted(named)))}")
    if host() is not None:
        notes.append(f"computed on the CPU, as {jax.default_backend()} has no float64")
    if checked.evaluations and not np.isfinite(centre):
        notes.append(f"the function's value is {centre} here")
    return tuple(notes)


def _kind(leaf: Any) -> str:
    """The dtype or type of a leaf that is treated as constant."""
    if hasattr(leaf, "dtype"):
        return str(leaf.dtype)
    return "function" if callable(leaf) else type(leaf).__name__


def first_of(named: Sequence[str]) -> tuple[str, ...]:
    """The first few of `named`, and how many more there are."""
    more = (f"{len(named) - NAMED} more",) if len(named) > NAMED else ()
    return (*named[:NAMED], *more)
