"""The report on a program that was watched: what was checked, where, and what was not."""

import _thread
import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn._arguments import readable
from jaxnn._files import as_path
from jaxnn._validate import (
    reason_of,
    require_choice,
    require_count,
    require_names,
    require_number,
)
from jaxnn.checking.check import check_gradient
from jaxnn.checking.compiling import work
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.explain import Explanation, explain
from jaxnn.checking.findings import SourceLine, with_lines
from jaxnn.checking.measure import first_of
from jaxnn.checking.noting import noting
from jaxnn.checking.page import watch_fragment, watch_page, write_page
from jaxnn.checking.questions.cut_off import CUT_OFF
from jaxnn.checking.report import GradientError, GradientReport, plain, subject_of
from jaxnn.checking.scalar import rules_of
from jaxnn.checking.watch import Point, Taken, Watcher
from jaxnn.numerical.interpret import equations
from jaxnn.numerical.sources import JAX_FOLDER

# Seconds spent checking, by default.
BUDGET = 60.0
# Seconds between interruptions of a check that the first one has not ended, and between looks at
# whether XLA has ended compiling.
AGAIN, LOOK = 10.0, 0.1
OVER = "the time budget ran out"
UNCHECKED = f"not checked: {OVER}"
# The module of JAX that calls XLA.
_COMPILER = os.path.join(JAX_FOLDER, "_src", "compiler.py")


class Place(NamedTuple):
    """A gradient that the program took.

    Attributes:
      line: the line that took it.
      function: name of the differentiated function.
      calls: how often the gradient was taken; 0 if that was not counted.
      reports: the checks, one for each point.
      not_finite: where NaN or infinity first appears, and why; None if it never did.
      call: number of the first call whose gradient is not finite; 0 if none, or not counted.
      inputs: the inputs of that call by their paths.
      trouble: why it was not checked, or "".
      went_on: why the program seems to expect such a call, if later gradients are finite: the value
        was not finite either, as when a sampler rejects a step that went too far, or the range of
        float16 was exceeded, as when a loss is scaled; else empty.
      subject: what was taken, in words: "gradient of loss with respect to argument 1".
    """

    line: SourceLine
    function: str
    calls: int
    reports: tuple[GradientReport, ...] = ()
    not_finite: Explanation | None = None
    call: int = 0
    inputs: dict[str, Any] = {}
    trouble: str = ""
    went_on: str = ""
    subject: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether a gradient is wrong or was not finite, unless `went_on`."""
        broke = self.not_finite is not None and not self.went_on
        return broke or any(report.exit_code == 1 for _, report in self._shown)

    @property
    def is_judged(self) -> bool:
        """Whether a check had enough evidence."""
        return self.is_wrong or any(report.exit_code != 2 for _, report in self._shown)

    @property
    def found(self) -> tuple[Any, ...]:
        """The findings on lines of code."""
        asked = (self.not_finite, *self.reports)
        return tuple(line for one in asked if one is not None for line in one.found)

    def __str__(self) -> str:
        lines = [f"{self.line}: {self.subject}: {self._summary()}"]
        if self.not_finite is not None and not self.went_on:
            lines += _indented(str(self.not_finite).splitlines()[1:])
        for number, report in self._shown:
            if report.verdict is not Verdict.AGREES or not report.ok:
                place = f"    at point {number} of {len(self.reports)}:"
                lines += [place] if len(self.reports) > 1 else []
                lines += _indented(str(report).splitlines()[1:])
        return "\n".join(lines)

    @property
    def _shown(self) -> list[tuple[int, GradientReport]]:
        """The reports that say more than `not_finite`, each with the number of its point."""
        told, numbered = self.not_finite is not None, enumerate(self.reports, start=1)
        return [(k, r) for k, r in numbered if not (told and _is_not_finite_alone(r))]

    @property
    def _least(self) -> str:
        """To how many digits leaves agree at all points."""
        agreeing = [report for _, report in self._shown if report.verdict is Verdict.AGREES]
        known = [leaf.digits for report in agreeing for leaf in report.leaves if not leaf.hint]
        return f", to at least {min(known):.1f} digits" if known else ""

    def _summary(self) -> str:
        found, places = [self.trouble] if self.trouble else [], ("", "")
        if self.not_finite is not None:
            once = f"not finite in call {self.call:,}" if self.call else "not finite"
            later = "" if self.is_judged else ", but no such point was checked"
            again = f", {self.went_on}; finite again later{later}" if self.went_on else ""
            found.append(once + again)
            places = "at the first point, ", "at a later point, "
        for number, report in self._shown:
            first = places[number > 1]
            if report.verdict is not Verdict.AGREES:
                found.append(f"{first}{report.verdict}")
                continue
            cut = sorted(leaf.path for leaf in report.leaves if leaf.hint.startswith(CUT_OFF))
            if right := len(report.leaves) - len(cut):
                several = "leaf agrees" if right == 1 else "leaves agree"
                found.append(f"{first}{right} {several}{self._least}")
            if cut:
                hint = next(leaf.hint for leaf in report.leaves if leaf.path == cut[0])
                found.append(f"{hint}: {', '.join(first_of(cut))}")
        found = list(dict.fromkeys(found)) or [UNCHECKED]
        calls = [f"{self.calls:,} call{'s' * (self.calls > 1)}"] if self.calls else []
        return "; ".join([*calls, *found])


@dataclasses.dataclass(frozen=True)
class WatchReport:
    """The findings of `watching`; `print` shows a line for each place, wrong ones first.

    Attributes:
      places: the gradients that the program took.
      seconds: how long the checks took.

    Example:
      >>> with jaxnn.watching() as watched:
      ...     gradient = jax.grad(lambda x: jnp.sum(x**2))(jnp.ones(3))
      >>> watched.report.ok, len(watched.report.places)
      (True, 1)
    """

    places: tuple[Place, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether a gradient was judged, and none is wrong or was not finite."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """1 if a gradient is wrong, is imprecise with fewer than two digits left, or was not
        finite (unless `went_on`); 2 if none could be judged; else 0.
        """
        if any(place.is_wrong for place in self.places):
            return 1
        return 0 if any(place.is_judged for place in self.places) else 2

    @property
    def reports(self) -> tuple[GradientReport, ...]:
        """The reports of all checks."""
        return tuple(report for place in self.places for report in place.reports)

    @property
    def found(self) -> tuple[Any, ...]:
        """All findings on lines of code, in the places that are wrong."""
        return tuple(line for place in self.places if place.is_wrong for line in place.found)

    def raise_if_wrong(self) -> None:
        """Raise `GradientError` if a gradient is wrong or was not finite."""
        if self.exit_code == 1:
            __tracebackhide__ = True
            wrong = _told(place for place in self.places if place.is_wrong)
            raise GradientError("\n".join(wrong), None, self.found)

    def to_dict(self) -> dict[str, Any]:
        """The findings as dictionaries, lists, strings and numbers, ready for `json.dumps`."""
        places = [plain(place._replace(inputs={})) for place in self.places]
        return {"ok": self.ok, "seconds": self.seconds, "places": places}

    def __bool__(self) -> bool:
        """`ok`, so that `assert watched.report` means what it says."""
        return self.ok

    def __repr__(self) -> str:
        """One line; `str` has the findings."""
        wrong = sum(place.is_wrong for place in self.places)
        return f"<WatchReport: gradients {len(self.places)}, wrong or not finite {wrong}>"

    def __str__(self) -> str:
        if not self.places:
            return "no gradients taken"
        count = f"{len(self.places)} gradient{'s' * (len(self.places) > 1)} taken"
        left = sum(not place.reports and place.not_finite is None for place in self.places)
        unchecked = f"; {left} not checked" if left else ""
        first = f"{count}, checked in {self.seconds:.1f} s{unchecked}"
        return "\n".join([first, *_told(self.places)])

    def save(self, path: str | os.PathLike) -> None:
        """Write the findings as a self-contained HTML page; `path` must end in .html or .htm."""
        write_page(path, watch_page(self))

    def save_inputs(self, directory: str | os.PathLike) -> list[pathlib.Path]:
        """Write the inputs of gradients that were not finite as .npz files, named after the line;
        returns their paths. `numpy.load` reads them without pickle.
        """
        folder, written = as_path("directory", directory), []
        for place in self.places:
            if place.inputs:
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{pathlib.Path(place.line.file).stem}-{place.line.line}"
                target = folder / f"{name}-{place.function.strip('<>')}.npz"
                np.savez(target, **place.inputs)
                written.append(target)
        return written

    def _repr_html_(self) -> str:
        return watch_fragment(self)


def _told(places: Iterable[Place]) -> Iterator[str]:
    """The text on each place; if a gradient has the same cause with other shapes, a single line."""
    known = set()
    for place in places:
        lines = frozenset(line for _, line in with_lines(place.found))
        cause = place.line, place.function, lines
        text = str(place)
        yield text.splitlines()[0] + "; see above" if cause in known else text
        if lines:
            known.add(cause)


class Watched:
    """What `watching` returns; `report` is set when the block ends."""

    report: WatchReport = WatchReport()


def watching(
    *, points: int = 1, budget: float = BUDGET, finite: bool = True, trust: Sequence[str] = ()
) -> contextlib.AbstractContextManager[Watched]:
    """Check every gradient that is taken inside a `with` block, without changing the code.

    `jax.grad`, `value_and_grad`, `vjp`, `jvp`, `linearize`, `jacrev`, `jacfwd` and `hessian` are
    watched, wherever they are called: in other functions, under `jit`, `vmap`, `scan` and
    `shard_map`, and by libraries. After the block, each gradient is checked at its first point.
    A gradient function built before the block is not watched. Operands of
    `jax.lax.stop_gradient` are treated as constant. Each function is traced once more, so anything
    it prints during tracing appears twice.

    Args:
      points: at how many points each gradient is checked: at the first call, then at about calls 4,
        16, 64 and so on.
      budget: the seconds after which no further gradient is checked.
      finite: whether to look for gradients that are not finite, in every call.
      trust: names of functions whose custom rules deliberately differ from their derivatives.

    Returns:
      A context manager. The object that it yields has the `WatchReport` as its `report` once the
      block has ended.

    Raises:
      ValueError: `points` is below 1, or `budget` is not finite.

    Example:
      >>> with jaxnn.watching() as watched:
      ...     gradient = jax.grad(lambda x: jnp.sum(jnp.sqrt(x)))(jnp.array([0.0, 1.0]))
      >>> watched.report.places[0].not_finite.births[0].operation
      'sqrt'
    """
    require_count("points", points, least=1)
    require_number("budget", budget)
    require_choice("finite", finite, (True, False))
    require_names("trust", trust)
    return _watching(Watcher(points, finite, trust), budget)


@contextlib.contextmanager
def _watching(watcher: Watcher, budget: float) -> Iterator[Watched]:
    watched = Watched()
    try:
        with noting(watcher):
            yield watched
    finally:
        watched.report = judged(watcher, budget)


def judged(watcher: Watcher, budget: float = BUDGET) -> WatchReport:
    """Check what a watcher noted, small functions first, so that one large function does not use up
    the budget of the others.
    """
    with contextlib.suppress(Exception):  # an error in the program, which it has seen itself
        jax.effects_barrier()
    began, found = time.monotonic(), {}
    waiting = [taken for taken in watcher.taken.values() if not taken.is_judged]
    with watcher.undisturbed():
        for number, taken in sorted(enumerate(waiting), key=lambda pair: _work(pair[1])):
            taken.is_judged = True
            taken.fetch()
            rest = budget - (time.monotonic() - began)
            unseen = (
                "not checked: its inputs were never received"
                if taken.calls
                else "traced but never run"
            )
            trouble = taken.trouble or ("" if taken.points or taken.bad else unseen)
            subject = subject_of(taken.form.order, taken.name, _told_apart(taken.argnums))
            place = Place(taken.line, taken.name, taken.calls, trouble=trouble, subject=subject)
            if rest > 0:
                job = functools.partial(_judged, taken, place, watcher)
                done, is_over = _at_most(rest, job)
                place = done or place
                if is_over:  # what is known to be wrong by then is wrong
                    known = tuple(report for report in place.reports if report.exit_code == 1)
                    place = place._replace(trouble=OVER if known else UNCHECKED, reports=known)
            found[number] = place
    seconds = time.monotonic() - began
    in_order = [found[number] for number in sorted(found)]
    places = sorted(in_order, key=lambda place: (not place.is_wrong, place.is_judged))
    return WatchReport(tuple(places), seconds)


def _told_apart(argnums: tuple[int, ...]) -> tuple[int, ...]:
    """The positions of arguments, unless they are the first one or several first ones."""
    return () if argnums == tuple(range(len(argnums))) else argnums


def _work(taken: Taken) -> float:
    """How many numbers a function computes."""
    point = next(filter(None, [*taken.points, taken.bad]), None)
    return work(point.program) if point else 0


def _judged(taken: Taken, place: Place, watcher: Watcher) -> Place:
    """The place with its checks."""
    form, reports = taken.form, []
    how = {"order": form.order, "modes": "fwd" if form.forward else None, "progress": False}
    how |= {"stop_gradient": "held"}  # a program means what it says
    bad = taken.bad
    try:
        if bad is not None:
            with bad.surroundings():
                args = taken.arguments(bad)
                found = explain(taken.function(bad), *args, argnums=taken.argnums, progress=False)
            if found.births:
                place = place._replace(
                    not_finite=found,
                    call=taken.bad_call,
                    inputs=_inputs(taken, bad),
                    went_on=_why_expected(taken, found, args) if taken.went_on else "",
                )
        for number, point in enumerate(taken.points):
            if number == watcher.points and not any(map(_says_little, reports)):
                break  # the spare point is not needed
            with point.surroundings():
                how |= {"trust": sorted(rules_of(point.program).intersection(watcher.trust))}
                given = taken.function(point), *taken.arguments(point)
                reports.append(check_gradient(*given, argnums=taken.argnums, **how))
            if reports[-1].interrupted:
                break
    except Exception as error:  # what a program does may be impossible outside of it
        place = place._replace(trouble=f"not checked: {reason_of(error)}")
    return place._replace(reports=tuple(reports))


def _why_expected(taken: Taken, found: Explanation, args: Sequence[Any]) -> str:
    """Why a program seems to expect that its gradient is not finite; empty if it does not."""
    assert taken.bad is not None
    outputs = taken.function(taken.bad)(*args)
    if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(outputs)):
        return "nor was the value"
    computed = (v.aval for eqn in equations(taken.bad.program) for v in eqn.outvars)
    is_half = any(getattr(x, "dtype", None) == np.float16 for x in computed)
    return "beyond the range of float16" if is_half and found.finite_in_float64 else ""


def _is_not_finite_alone(report: GradientReport) -> bool:
    """Whether a gradient is wrong in no other way than that it is not finite."""
    wrong = {leaf.verdict for leaf in report.leaves if leaf.verdict.wrong}
    return wrong == {Verdict.NOT_FINITE}


def _says_little(report: GradientReport) -> bool:
    """Whether what is wrong may show at a later point alone: where the gradient is not finite, as
    before a loss is scaled down, or a leaf agrees because its gradient is 0, as behind a layer that
    starts at 0.
    """
    return _is_not_finite_alone(report) or any(
        leaf.verdict is Verdict.AGREES and leaf.autodiff == 0 and not leaf.hint.startswith(CUT_OFF)
        for leaf in report.leaves
    )


def _inputs(taken: Taken, point: Point) -> dict[str, Any]:
    """The inputs of a call by their paths."""
    args = {i: arg for i, arg in enumerate(taken.arguments(point)) if arg is not None}
    paths, _ = jax.tree_util.tree_flatten_with_path(args)
    named = {readable(path): np.asarray(x) for path, x in paths}
    for number, (name, x) in enumerate(zip(point.names, point.consts, strict=True)):
        named[name or f"constant {number}"] = np.asarray(x)
    return named


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """`_thread.interrupt_main` works inside, also where a shell that started the process in the
    background makes it ignore Ctrl-C.
    """
    in_main = threading.current_thread() is threading.main_thread()
    ignored = in_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _at_most(seconds: float, job: Callable[[], Any]) -> tuple[Any, bool]:
    """Run a job; after some seconds, interrupt it, as by Ctrl-C, in the main thread only. Returns
    what the job returned, None if it was interrupted, and whether it took longer.

    XLA is not interrupted: it would go on in a thread of its own, and the process would crash if it
    ended before.
    """
    over, ended, lock = threading.Event(), threading.Event(), threading.Lock()

    def interrupt():
        wait = min(seconds, threading.TIMEOUT_MAX)
        while not ended.wait(wait):  # each interruption ends what a check is busy with
            with lock:
                if ended.is_set():
                    return
                over.set()
                compiles = _is_compiling()
                wait = LOOK if compiles else AGAIN
                if not compiles:
                    _thread.interrupt_main()

    def end():
        with lock:
            ended.set()
        time.sleep(0)  # an interruption that is on its way arrives here

    done = None
    try:
        try:
            if threading.current_thread() is threading.main_thread():
                threading.Thread(target=interrupt, daemon=True).start()
            with interruptible():
                done = job()
        finally:
            end()
    except KeyboardInterrupt:
        end()
        if not over.is_set():
            raise
    return done, over.is_set()


def _is_compiling() -> bool:
    """Whether the main thread waits for XLA."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    return frame is not None and frame.f_code.co_filename == _COMPILER


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]
