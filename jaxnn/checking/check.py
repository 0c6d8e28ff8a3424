"""`check_gradient`: is this gradient correct? No step and no tolerance to choose.

A check is a sequence of stages, each a pure function of the earlier results:

    check     what is differentiated, where and how      `measure.Check`
    checked   a verdict on each leaf, from values        `measure.measure`
    checked   refined by each follow-up question         `questions.QUESTIONS`
    report    the result, built once                     `report.GradientReport`

Values are computed in float64 whatever the dtype. The gradient is, too: the program that
differentiates `f`, including custom rules, is evaluated in float64. Digits that the gradient loses
in the user's own dtype are reported separately. Only `evidence` makes verdicts.
"""

import contextvars
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Where, floating_argnums, positions
from jaxnn._validate import (
    describe,
    reason_of,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_mapping,
    require_names,
    require_number,
)
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import LeafReport
from jaxnn.checking.measure import (
    Check,
    Checked,
    first_of,
    measure,
    require_outermost,
    undisturbed,
)
from jaxnn.checking.questions import EXPLAINING, QUESTIONS, answer
from jaxnn.checking.report import GradientReport
from jaxnn.checking.settings import Point, Settings
from jaxnn.checking.status import Status
from jaxnn.numerical.sources import name_of

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

    Most checks need no option but `argnums`. In a test, `assert_gradient(f, *args)` does the same
    for all arguments and raises an error unless every gradient is correct.

    Example:
      >>> f, x = lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0])
      >>> check_gradient(f, x).ok
      True
      >>> wrong = check_gradient(f, x, gradient=lambda x: 2 * x.at[1].multiply(1.01))
      >>> wrong.verdict, wrong.leaves[0].entries[0].index
      ('differs', (1,))

    Args:
      f: a function of pytrees, jitted or not. Its output is a real scalar, or is projected onto
        `cotangent`.
      *args: the point. Floating and complex leaves of the chosen arguments are differentiated;
        everything else is treated as constant, including Python floats in modules.
      argnums: the argument or arguments whose gradient is checked, as in `jax.grad`.
      kwargs: keyword arguments of `f`, treated as constant.
      where: which leaves to differentiate, by default all: a function of a leaf, or a pytree of
        booleans with the argument's structure or a prefix of it (a tuple of such pytrees if
        `argnums` is a tuple).
      gradient: a hand-written gradient, called like `jax.grad(f, argnums)`; by default JAX's own.
        Leaves that are treated as constant may be missing from its result, as in
        `eqx.filter_grad`.
      order: 2 also checks second derivatives, as the gradient of a random projection of the
        gradient; 3 and 4 likewise.
      modes: "rev", "fwd" or both: how JAX differentiates; by default reverse mode, or forward mode
        if `f` does not support reverse mode.
      has_aux: whether `f` returns `(value, aux)`.
      cotangent: for an output that is not a scalar: a pytree like the output, or "random", the
        default. The gradient of sum(cotangent * output), or of its real part if it is complex, is
        checked. Infinite entries of an output are skipped. Large outputs can hide small ones: check
        the small ones alone.
      stop_gradient: "held" treats the operands of `jax.lax.stop_gradient` as constant when values
        are computed, unless the gradient agrees only without that, as it does where a solver's rule
        differentiates such an operand; "report" does so only if the gradient is wrong otherwise,
        and then reports "detached".
      trust: names of functions whose custom rules deliberately differ from their derivatives (such
        as straight-through estimators). Values are computed as if such a function were
        linear, with the slope that its rule gives.
      evidence: "together" checks leaves together where that gives enough evidence on each; "leaf"
        checks each leaf separately.
      progress: whether checks that take longer than two seconds show their progress on stderr; by
        default only if stderr is a terminal.
      seed: seed of the random projections.
      digits: how many digits of each leaf's gradient must be correct for the report to be `ok`:
        retained in the leaf's own dtype and not contradicted by the values. By default, a leaf
        that is "imprecise" needs two.

    Returns:
      A `GradientReport`: `report.ok`, `print(report)`, `report.raise_if_wrong()`. Ctrl-C ends the
      check early, and the report says so.

    Raises:
      TypeError: the chosen arguments have no floating-point leaf, `f` has no floating-point
        output, the arguments are traced, or JAX cannot differentiate `f` and no `gradient` is
        given.
      ValueError: `argnums` or `order` is out of range, the structure of `where`, `gradient` or
        `cotangent` does not match, or `cotangent` is 0.

    Source:
      Ridders, Adv. Eng. Software 4 (1982) 75, on extrapolated differences; Moré and Wild,
      SIAM J. Sci. Comput. 33 (2011) 1292, on noise in differences.
    """
    require_callable("f", f)
    require_count("seed", seed)
    if digits is not None:
        require_number("digits", digits)
    if gradient is not None:
        require_callable("gradient", gradient)
    _require_order(order, gradient)
    require_choice("stop_gradient", stop_gradient, ("report", "held"))
    require_names("trust", trust)
    require_choice("evidence", evidence, ("together", "leaf"))
    kwargs = {} if kwargs is None else kwargs
    require_mapping("kwargs", kwargs)
    call = Partition.of(f, argnums, args, kwargs, has_aux, "args[0]", where)
    require_outermost("check_gradient", args, kwargs)
    point = Point.of(call, _require_cotangent(cotangent))
    settings = Settings(
        by_hand=gradient,
        projected=cotangent is not None,
        seed=seed,
        held=stop_gradient == "held",
        trust=tuple(trust),
    )
    status, forward = Status.of(progress), _require_modes(modes)
    check = Check(call, point, settings, evidence == "together", status)
    report = None
    with undisturbed(), status:
        for level in range(1, order + 1):
            for mode in forward:
                checked = asked(measure(check.with_settings(order=level, forward=mode)))
                if mode and len(forward) > 1:
                    checked = checked.with_note("this is the gradient computed in forward mode")
                report = _report(checked, digits, _unless_all(argnums, args))
                if not report.ok or report.interrupted:
                    return _announced(report)
    assert report is not None
    return _announced(report)


def asked(checked: Checked) -> Checked:
    """The results after all follow-up questions that apply."""
    none_wrong = not any(verdict.wrong for verdict in checked.verdicts)
    if not checked.deterministic or (checked.interrupted and none_wrong):
        return checked
    ended = False
    for question in QUESTIONS:
        about = str(question.__doc__).partition("\n")[0]
        if ended and question in EXPLAINING:
            continue
        try:
            if question.applies(checked):
                checked.check.status.say(about)
                checked = question.say(checked, answer(question, checked))
        except KeyboardInterrupt:
            checked, ended = _interrupted(checked, question, about), True
        except Exception as error:  # a user's rule, called separately, may raise anything
            reason = reason_of(error)
            if not any(reason in note for note in checked.notes):  # once is enough
                checked = checked.with_note(f'could not answer "{about}" ({reason})')
    return checked


def _interrupted(checked: Checked, question: Any, about: str) -> Checked:
    """The results without the answer to a question. If it could have excused a leaf that differs,
    nothing is known of this leaf.
    """
    unanswered = f'interrupted before "{about}" was answered'
    if question in EXPLAINING:
        checked = question.say(checked, []).with_note(unanswered)
    else:
        checked = checked.excusing(lambda leaf: leaf.verdict is Verdict.DIFFERS, unanswered)
    return checked._replace(interrupted=True)


def _report(
    checked: Checked, digits: float | int | None, argnums: tuple[int, ...]
) -> GradientReport:
    """The report, with the worst leaf first; on ties, leaves with entries come first."""
    by = lambda leaf: (-leaf.verdict.rank, not leaf.entries, leaf.digits)  # noqa: E731
    leaves = tuple(sorted(map(_with_hint_if_off, checked.leaves), key=by))
    verdict = max([checked.least, *(leaf.verdict for leaf in leaves)])
    call = checked.check.call
    beside = [f"{path.removeprefix('args')} {describe(x)}" for path, x in call.beside]
    return GradientReport(
        function=name_of(call.static.f),
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
        argnums=argnums,
    )


def _unless_all(argnums: int | tuple[int, ...], args: Sequence[Any]) -> tuple[int, ...]:
    """The arguments that are differentiated; () if these are all that could be."""
    numbers = positions(argnums, args)
    return numbers if set(floating_argnums(args)) - set(numbers) else ()


def _with_hint_if_off(leaf: LeafReport) -> LeafReport:
    """The leaf, with a hint if it is slightly off and has no other hint."""
    if leaf.hint or not leaf.is_slightly_off:
        return leaf
    return leaf._replace(
        hint=f"relative error {10**-leaf.digits:.0e}, within the tolerance for {leaf.dtype}; set "
        "`digits=` to require more"
    )


# A caller that sets a list, as the command line does for tests, receives every report in it.
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

    By default, all arguments with floating-point leaves are differentiated; with a hand-written
    `gradient` or with `where`, only the first.

    Args:
      f: as for `check_gradient`.
      *args: as for `check_gradient`.
      **options: as for `check_gradient`: `argnums`, `kwargs`, `where`, `gradient`, `order`,
        `modes`, `has_aux`, `cotangent`, `stop_gradient`, `trust`, `evidence`, `progress`, `seed`
        and `digits`.

    Raises:
      GradientError: the gradient is wrong, or the evidence cannot confirm it.
      TypeError: an option is unknown; or as for `check_gradient`.
      ValueError: as for `check_gradient`.

    Example:
      >>> assert_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
    """
    __tracebackhide__ = True  # pytest then shows the line that calls this function
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        name = unknown[0]
        raise TypeError(
            f"`kwargs` must hold the keyword arguments of `f`, as in kwargs={{{name!r}: ...}}; a "
            f"check has no step or tolerance to set. Got an unknown option, `{name}`."
        )
    if not options.keys() & {"argnums", "gradient", "where"}:
        options["argnums"] = floating_argnums(args) or 0
    check_gradient(f, *args, **options).raise_if_wrong()


def _require_order(order: Any, gradient: Any) -> None:
    require_choice("order", order, (1, 2, 3, 4))
    if order > 1 and gradient is not None:
        raise ValueError(f"`order` must be 1 with a hand-written `gradient`. Got {order}.")


def _require_modes(modes: Any) -> tuple[bool | None, ...]:
    """For each requested mode, whether it is forward mode; None selects an available mode."""
    if modes is None:
        return (None,)
    given = (modes,) if isinstance(modes, str) else modes
    known = isinstance(given, Sequence) and given and all(m in ("fwd", "rev") for m in given)
    if not known:
        raise ValueError(f"`modes` must be 'fwd', 'rev' or both. Got {modes!r}.")
    return tuple(mode == "fwd" for mode in given)


def _require_cotangent(cotangent: Any) -> PyTree | None:
    """The cotangent as arrays; None if it is missing or random."""
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
            raise TypeError(f"`{name}` must hold numbers. Got {describe(leaf)}.")
        if not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError(f"`{name}` must be finite. Got {leaf}.")
    if not any(map(np.any, jax.tree.leaves(cotangent))):
        raise ValueError("`cotangent` must have an entry that is not 0. Got none.")
    return jax.tree.map(jnp.asarray, cotangent)
