"""Progress of a run: reports from `fit` after each chunk of steps, shown on a terminal or logged
to a file.

`fit(..., on_progress=f)` calls `f` with a `Progress`, in process 0 only. `show_progress` and
`progress_log` make such callbacks; any other function works too.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from io import TextIOBase
from typing import Any, NamedTuple

from jaxnn._files import as_path, without_nan
from jaxnn._notebook import paragraph
from jaxnn._terminal import erase_line, is_open, takes_codes, write
from jaxnn._validate import describe


class Progress(NamedTuple):
    """The progress of a run.

    Attributes:
      epoch: the current epoch or the one that has just ended, from 1.
      epochs: total number of epochs, if known.
      step: number of steps taken, including those before a resumption.
      steps: total number of steps, if known.
      loss: mean over the examples of this epoch so far, each measured before the update of its own
        step.
      record: the measurements, or None if nothing was measured.
      params: the parameters, if recorded; valid only during the call.
      opt_state: the optimiser's state, likewise.
      learning_rate: if recorded.
      gradient_norm: of the last step, if recorded.
      resumed: the step from which the run resumed; 0 if it did not.
      reason: why the run ends early, if known.
      measures: whether the run measures anything.
      step_loss: the losses of the steps since the last report; the last is that of `step`.
      state: the state of `train`, if recorded; valid only during the call.

    Example:
      >>> Progress(epoch=1, epochs=2, step=15, steps=30, loss=2.3, record=None).step
      15
    """

    epoch: int
    epochs: int | None
    step: int
    steps: int | None
    loss: float
    record: dict[str, Any] | None
    params: Any = None
    opt_state: Any = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    resumed: int = 0
    reason: str | None = None
    measures: bool = True
    step_loss: Sequence[float] = ()
    state: Any = None

    def __repr__(self) -> str:
        of = lambda whole: "" if whole is None else f" of {whole}"  # noqa: E731
        where = f"epoch {self.epoch}{of(self.epochs)}, step {self.step}{of(self.steps)}"
        measured = {"loss": self.loss, **_scalars(self.record or {})}
        told = (f"{name} {x:.4g}" for name, x in measured.items())
        return f"<Progress: {'; '.join([where, *told])}>"

    _repr_html_ = paragraph


# The longest time between two lines of `show_progress`.
SECONDS = 10.0


def show_progress(
    lines: TextIOBase | None = None, bar: TextIOBase | None = None
) -> Callable[[Progress], None]:
    """A callback that prints a line for each tenth of the run, and at least every ten seconds, with
    a progress bar in between.

    A line has the measurements, or the loss of the steps if the run measures nothing; such a run
    may end before control has returned to the host ten times, and then prints fewer lines. The bar
    needs tqdm (`pip install tqdm`) and a terminal.

    Args:
      lines: where the lines go; standard output by default.
      bar: where the bar goes; standard error by default. There is no bar if this is not a terminal,
        or if TERM=dumb or NO_COLOR asks for plain text.

    Returns:
      A callback for `on_progress`.

    Raises:
      TypeError: `lines` or `bar` is not a text stream.

    Example:
      >>> show_progress()(Progress(1, 1, 15, 15, 2.3, {"train_loss": 2.25}))
       epoch      train loss steps/s
           1          2.2500
    """
    for name, stream, part in (("lines", lines, "write"), ("bar", bar, "isatty")):
        if stream is not None and not hasattr(stream, part):
            raise TypeError(f"`{name}` must be a text stream. Got {describe(stream)}.")
    drawn = _Bar(bar or sys.stderr)
    recent: deque[tuple[float, int]] = deque(maxlen=6)
    headed, last, told_at = False, (0, 0), time.perf_counter()

    def show(progress: Progress) -> None:
        nonlocal headed, last, told_at
        record, told = progress.record if progress.measures else {"loss": progress.loss}, []
        if record is not None and not headed:
            recent.clear()  # the time so far was compilation
            told.append(_header(progress, record))
            headed = True
        now = time.perf_counter()
        recent.append((now, progress.step))
        mark = last if record is None else _mark(progress, last)
        if record is not None and (mark != last or now - told_at > SECONDS):
            last, told_at = mark, now
            told.append(_row(progress, record, _speed(recent)))
        target = lines or sys.stdout
        if told and is_open(target):
            drawn.clear()
            print("\n".join(told), file=target, flush=True)
        drawn.draw(progress)

    return show


def _header(progress: Progress, record: dict[str, Any]) -> str:
    names = (f"{name.replace('_', ' '):>14}" for name in _scalars(record))
    column = "epoch" if _in_epochs(progress) else " step"
    return f" {column}  {'  '.join(names)} steps/s"


def _row(progress: Progress, record: dict[str, Any], speed: str) -> str:
    numbers = _scalars(record).values()
    cells = (f"{x:14.4f}" if abs(x) < 1e6 else f"{x:14.4g}" for x in numbers)
    where = progress.epoch if _in_epochs(progress) else progress.step
    return f"{where:6}  {'  '.join(cells)}  {speed:>7}".rstrip()


def _speed(recent: Sequence[tuple[float, int]]) -> str:
    """Steps per second between the first and the last of some times; empty if unknown."""
    (began, first), (now, step) = recent[0], recent[-1]
    if not (step > first and now > began):
        return ""
    speed = (step - first) / (now - began)
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _in_epochs(progress: Progress) -> bool:
    """Whether a line reports an epoch rather than a step."""
    return bool(progress.epochs) and progress.measures


def _mark(progress: Progress, last: tuple[int, int]) -> tuple[int, int]:
    """A mark that changes when the next line is due, about once per tenth of the run."""
    epochs, steps = progress.epochs, progress.steps
    epoch, tenth = last
    if progress.reason is not None:
        return progress.epoch, progress.step
    if epochs and (progress.epoch % max(1, epochs // 10) == 0 or progress.epoch == epochs):
        epoch = progress.epoch
    if steps is None:
        return progress.step, 0
    if (epochs or 0) < 10:
        tenth = 10 * progress.step // steps
    return epoch, tenth


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """The scalars of a record, without its arrays."""
    return {name: value for name, value in record.items() if isinstance(value, float)}


# The fields of `Progress` that are not written to a log as they are.
NOT_LOGGED = frozenset("params opt_state state resumed record reason measures step_loss".split())


def progress_log(path: str | os.PathLike) -> Callable[[Progress], None]:
    """A callback that appends each `Progress` to a file as a JSON line: its numbers, and the
    `time` in seconds since 1970.

    Args:
      path: the file; existing lines are kept.

    Returns:
      A callback for `on_progress`.

    Raises:
      TypeError: `path` is not a path.
      OSError: at the first line, if the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     log = progress_log(f"{directory}/log")
      ...     log(Progress(1, 1, 15, 15, 2.3, {"train_loss": 2.25}))
      ...     print(pathlib.Path(directory, "log").read_text()[:45])
      {"epoch": 1, "epochs": 1, "step": 15, "steps"
    """
    path, begun = as_path("path", path), False

    def log(progress: Progress) -> None:
        nonlocal begun
        numbers = {
            name: without_nan(value)
            for name, value in progress._asdict().items()
            if name not in NOT_LOGGED and (value is not None or name in ("epochs", "steps"))
        }
        line = json.dumps({**numbers, "record": without_nan(progress.record), "time": time.time()})
        try:
            before = path.read_bytes() if not begun and path.is_file() else b""
            cut_off = bool(before) and not before.endswith(b"\n")  # the last line of a killed run
            with path.open("a", encoding="utf-8") as file:
                file.write("\n" * cut_off + line + "\n")
        except OSError as error:
            raise type(error)(
                f"`path` must be a file in an existing directory. Got {str(path)!r}: "
                f"{error.strerror}."
            ) from None
        begun = True

    return log


class _Bar:
    """tqdm's progress bar, if tqdm is installed and the stream is a terminal."""

    def __init__(self, stream: Any):
        self.stream, self.bar, self.tqdm, self.begun = stream, None, None, False
        if not takes_codes(stream):
            return
        try:
            from tqdm import tqdm  # pyright: ignore[reportMissingModuleSource]
        except ImportError:
            return
        self.tqdm, self.begun = tqdm, True
        write(self.stream, "compiling the first steps ")  # which takes time

    def clear(self) -> None:
        """Clear the current line for other output."""
        if self.begun and is_open(self.stream):
            erase_line(self.stream)
        self.begun = False
        if self.bar is not None:
            self.bar.clear()

    def draw(self, progress: Progress) -> None:
        """Draw the bar in its current state."""
        if self.begun:
            self.clear()
        if self.tqdm is None or not is_open(self.stream):
            return
        if self.bar is None:
            options = {"unit": "step", "leave": False, "dynamic_ncols": True}
            start = {"total": progress.steps, "initial": progress.step}
            self.bar = self.tqdm(file=self.stream, **start, **options)
        self.bar.set_postfix_str(_told(progress), refresh=False)
        self.bar.update(progress.step - self.bar.n)
        if progress.step == progress.steps:
            self.bar.close()


def _told(progress: Progress) -> str:
    record = _scalars(progress.record or {})
    accuracy = "".join(
        f", {name.replace('_', ' ')} {value:.4f}"
        for name, value in record.items()
        if "accuracy" in name
    )
    of = f"/{progress.epochs}" if progress.epochs else ""
    return f"epoch {progress.epoch}{of}, loss {progress.loss:.4f}{accuracy}"
