"""`check_gradient`: is this gradient correct? No step and no tolerance to choose.

A check is one line of stages, each a pure function of the results before it:

    check     what is differentiated, where and how      `measure.Check`
    checked   a verdict on each leaf, by values          `measure.measure`
    checked   the same after each follow-up question     `questions.QUESTIONS`
    report    made once, from all of that                `report.GradientReport`

Values are computed in float64 whatever the dtype, and so is the gradient that is checked: the
program that differentiates `f`, custom rules included, evaluated in float64. What the gradient
loses in the user's own dtype is reported apart. Verdicts are made in `evidence` alone.
"""

import contextvars
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Where
from jaxnn._validate import (
    describe,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_mapping,
    require_number,
)
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import LeafReport
from jaxnn.checking.measure import Check, Checked, first_of, measure, require_outermost
from jaxnn.checking.questions import QUESTIONS
from jaxnn.checking.report import GradientReport
from jaxnn.checking.settings import Point, Settings
from jaxnn.checking.status import Status

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
    """Compare the gradient of `f` at `args` with the function's values.

    Args:
      f: a function of pytrees, jitted or not; real and scalar, or projected on `cotangent`.
      *args: the point. Floating and complex leaves of the chosen arguments are differentiated;
        everything else is treated as constant.
      argnums: the argument or arguments whose gradient is checked, as in `jax.grad`.
      kwargs: keyword arguments of `f`, treated as constant.
      where: which leaves to differentiate, if not all: a function of a leaf, or booleans in a
        pytree like the argument (a tuple of them, if `argnums` is one), or a prefix of it.
      gradient: a hand-written gradient, called as `jax.grad(f, argnums)` would be; JAX's own by
        default. Leaves that are treated as constant may be missing in it, as in
        `eqx.filter_grad`.
      order: 2 also checks the gradient of a random projection of the gradient: the Hessian; 3 and
        4 likewise.
      modes: "rev", "fwd" or both: how JAX differentiates; by default reverse mode, or forward mode
        if there is no reverse mode.
      has_aux: whether `f` returns `(value, aux)`.
      cotangent: for an output that is not a scalar: a pytree like it, or "random", the default. The
        gradient of the sum of its products with the output (of complex ones the real part) is
        checked. Infinite entries of an output are skipped.
      stop_gradient: "held" computes values with what `jax.lax.stop_gradient` stops held at the
        point; "report" does so if the gradient is wrong otherwise, and calls it "detached" then.
      trust: names of functions whose custom rules differ from them on purpose (straight-through,
        say): their values are computed along the derivative that the rule claims.
      evidence: "together" checks leaves together where that says enough about each; "leaf" checks
        each by itself.
      progress: whether a line on stderr shows the progress of a check that takes longer than two
        seconds; by default if stderr is a terminal.
      seed: of the random projections.
      digits: how many digits of each leaf's gradient must be correct for the report to be `ok`:
        kept in its own dtype, and not contradicted by the values. By default two, for a leaf that
        is "imprecise".

    Returns:
      A `GradientReport`: `report.ok`, `print(report)`, `report.raise_if_wrong()`. Ctrl-C ends the
      check early, and the report says so.

    Raises:
      TypeError: no floating leaf in the chosen arguments; no floating output; called with traced
        arguments, under `jit`; JAX cannot differentiate `f` and no `gradient` is given.
      ValueError: `argnums` or `order` out of range; `where`, `gradient` or `cotangent` does not
        fit.

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
    _require_order(order, gradient)
    require_choice("stop_gradient", stop_gradient, ("report", "held"))
    _require_names(trust)
    require_choice("evidence", evidence, ("together", "leaf"))
    kwargs = {} if kwargs is None else kwargs
    require_mapping("kwargs", kwargs)
    call = Partition.of(f, argnums, args, kwargs, has_aux, "args[0]", where)
    require_outermost("check_gradient", args, kwargs)
    point = Point(call.points, (call.dynamic, _require_cotangent(cotangent)))
    settings = Settings(
        by_hand=gradient,
        projected=cotangent is not None,
        random=isinstance(cotangent, str),
        seed=seed,
        held=stop_gradient == "held",
        trust=tuple(trust),
    )
    status, forward = Status.of(progress), _require_modes(modes)
    check = Check(call, point, settings, evidence == "together", status)
    report = None
    # Values that are not finite are reported; beyond the domain of `f`, where coarse steps may
    # lead, they are not a fault.
    with jax.debug_nans(False), jax.debug_infs(False), status:
        for level in range(1, order + 1):
            for mode in forward:
                checked = asked(measure(check.with_settings(order=level, forward=mode)))
                if mode and len(forward) > 1:
                    checked = checked.with_note("this is the gradient by forward mode")
                report = _report(checked, digits)
                if not report.ok or report.interrupted:
                    return _announced(report)
    assert report is not None
    return _announced(report)


def asked(checked: Checked) -> Checked:
    """What is known after all follow-up questions that apply."""
    if checked.interrupted or not checked.deterministic:
        return checked
    for question in QUESTIONS:
        if not question.applies(checked):
            continue
        about = str(question.__doc__).partition("\n")[0]
        checked.check.status.say(about)
        try:
            checked = question.say(checked, question.ask(checked))
        except Exception as error:  # of a rule that is run by itself: anything may be raised
            reason = str(error).partition("\n")[0]
            checked = checked.with_note(f"not answered: {about} {type(error).__name__}: {reason}")
    return checked


def _report(checked: Checked, digits: float | int | None) -> GradientReport:
    """The report, worst leaf first; of leaves that are alike, the better known first."""
    by = lambda leaf: (-leaf.verdict.rank, not leaf.entries, leaf.digits)  # noqa: E731
    leaves = tuple(sorted(map(_with_hint_if_off, checked.leaves), key=by))
    verdict = max([checked.least, *(leaf.verdict for leaf in leaves)])
    call = checked.check.call
    beside = [f"{path.removeprefix('args')} {describe(x)}" for path, x in call.beside]
    return GradientReport(
        function=getattr(call.static.f, "__name__", type(call.static.f).__name__),
        verdict=verdict if checked.deterministic else Verdict.NOT_DETERMINISTIC,
        leaves=leaves,
        rules=checked.rules,
        births=checked.births,
        digits_lost=checked.digits_lost,
        notes=checked.notes,
        order=checked.check.settings.order,
        evaluations=checked.evaluations,
        interrupted=checked.interrupted,
        digits=digits,
        fixed=first_of(beside),
    )


def _with_hint_if_off(leaf: LeafReport) -> LeafReport:
    """The leaf, with a hint if it is slightly off and nothing else is said about it."""
    if leaf.hint or not leaf.is_slightly_off:
        return leaf
    return leaf._replace(
        hint=f"off by {10**-leaf.digits:.0e} of its size: less than is called wrong in "
        f"{leaf.dtype}; `digits=` asks for more"
    )


# Receives each report that is made, if a caller wants them: the command line, for tests.
MADE: contextvars.ContextVar[list[GradientReport] | None] = contextvars.ContextVar(
    "made", default=None
)


def _announced(report: GradientReport) -> GradientReport:
    if (made := MADE.get()) is not None:
        made.append(report)
    return report


class Options(TypedDict, total=False):
    """The options of `check_gradient`, for type checkers."""

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
    """Raise `GradientError` unless the gradient of `f` at `args` is correct; for tests.

    Takes the options of `check_gradient`.

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


def _require_order(order: Any, gradient: Any) -> None:
    require_choice("order", order, (1, 2, 3, 4))
    if order > 1 and gradient is not None:
        raise ValueError(f"`order` must be 1 with a hand-written `gradient`. Got {order}.")


def _require_names(trust: Any) -> None:
    names = isinstance(trust, Sequence) and not isinstance(trust, str)
    if not names or not all(isinstance(name, str) for name in trust):
        raise TypeError(f"`trust` must be names of functions. Got {describe(trust)}.")


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
