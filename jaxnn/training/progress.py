"""Watching a run: what `fit` tells after each stretch of steps, shown on a terminal or written to a
log.

`fit(..., on_progress=f)` calls `f` with a `Progress` from process 0 alone. `show_progress` and
`progress_log` make such functions; any other will do.
"""

import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from io import TextIOBase
from typing import Any, NamedTuple, TextIO

from jaxnn._files import as_path, replacing
from jaxnn._validate import describe


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
      epoch: the epoch that is running or has just ended, from 1.
      epochs: how many there will be.
      step: steps taken since the beginning of the run, earlier parts of a resumed one included.
      steps: how many there will be.
      loss: mean over the examples of this epoch so far, each measured before the update that it
        took part in.
      record: what was measured after the epoch, or None where the epoch has not ended.

    Example:
      >>> Progress(epoch=1, epochs=2, step=15, steps=30, loss=2.3, record=None).step
      15
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    record: dict[str, Any] | None


def show_progress(
    lines: TextIOBase | None = None, bar: TextIOBase | None = None
) -> Callable[[Progress], None]:
    """A line for each tenth of the epochs, and between them a bar where `bar` is a terminal.

    Args:
      lines: where the lines go; standard output by default.
      bar: where the bar goes; standard error by default. With tqdm (`pip install
        'jaxnn[progress]'`) it is tqdm's.

    Returns:
      A function for `on_progress`.

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
    terminal = bar or sys.stderr
    draw, clear = _bar(terminal) if terminal.isatty() else (silent, silent)
    recent: deque[tuple[float, int]] = deque(maxlen=6)
    headed = False

    def show(progress: Progress) -> None:
        nonlocal headed
        told = []
        if progress.record is not None and not headed:
            recent.clear()  # until here the time was spent on compilation
            told.append(
                " epoch  "
                + "  ".join(f"{name.replace('_', ' '):>14}" for name in _scalars(progress.record))
                + " steps/s"
            )
            headed = True
        recent.append((time.perf_counter(), progress.step))
        (began, first), (now, step) = recent[0], recent[-1]
        speed = (step - first) / (now - began) if step > first else math.nan
        tenth = (
            progress.epoch % max(1, progress.epochs // 10) == 0 or progress.epoch == progress.epochs
        )
        if progress.record is not None and tenth:
            cells = "  ".join(
                f"{value:14.4f}" if abs(value) < 1e6 else f"{value:14.4g}"
                for value in _scalars(progress.record).values()
            )
            told.append(f"{progress.epoch:6}  {cells}  {_short(speed):>7}".rstrip())
        if told:
            clear()
            print("\n".join(told), file=lines or sys.stdout, flush=True)
        draw(progress, speed)

    return show


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record, without its arrays."""
    return {name: value for name, value in record.items() if isinstance(value, float)}


def _json(value: Any) -> Any:
    """A number or an array as JSON has it, which knows no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_json(part) for part in value.tolist()] if hasattr(value, "tolist") else value


def silent(*_: Any) -> None:
    """Takes the place of what is shown, where nobody looks."""


def progress_log(path: str | os.PathLike) -> Callable[[Progress], None]:
    """One line of JSON for each `Progress`, with its fields and the `time` in seconds since 1970.

    Lines of steps that a run resumed from a checkpoint takes again are taken out first, so each
    step is told once.

    Args:
      path: the file; it is appended to.

    Returns:
      A function for `on_progress`.

    Raises:
      TypeError: `path` is not a path.
      OSError: at the first line, where there is no such place for a file.
      ValueError: at the first line, where the file is something else than a log.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     log = progress_log(f"{directory}/log")
      ...     log(Progress(1, 1, 15, 15, 2.3, {"train_loss": 2.25}))
      ...     print(pathlib.Path(directory, "log").read_text()[:45])
      {"epoch": 1, "epochs": 1, "step": 15, "steps"
    """
    path = as_path("path", path)
    begun = False

    def log(progress: Progress) -> None:
        nonlocal begun
        if not begun:
            try:
                _drop_lines(path, progress.step)
                path.touch()
            except OSError as error:
                got = f"Got {str(path)!r}: {error.strerror}."
                raise type(error)(
                    f"`path` must be a file in a directory that is there. {got}"
                ) from None
            begun = True
        loss = progress.loss if math.isfinite(progress.loss) else None
        record = progress.record and {k: _json(v) for k, v in progress.record.items()}
        with open(path, "a") as file:
            print(
                json.dumps(
                    {**progress._asdict(), "loss": loss, "record": record, "time": time.time()}
                ),
                file=file,
            )

    return log


def _drop_lines(path: pathlib.Path, step: int) -> None:
    """Take out what an earlier run logged from `step` on, and a last line left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] < step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"`path` must be a log of steps, or a new file. Got {str(path)!r}, with a line "
                f"{line[:40]!r}."
            ) from None
    with replacing(path) as file:
        file.write("".join(kept).encode())


def _short(number: float) -> str:
    return "" if math.isnan(number) else f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _bar(stream: TextIOBase | TextIO) -> tuple[Callable, Callable]:
    """Two functions, to draw the bar and to clear its line: tqdm's bar if it is installed, else a
    plain one.
    """

    def clear():
        stream.write("\r\x1b[K")
        stream.flush()

    def draw(progress, speed):
        clear()
        if progress.step < progress.steps:
            # A line that is wider than the terminal could not be cleared.
            stream.write(_line(progress, speed)[: shutil.get_terminal_size().columns - 1])
            stream.flush()

    try:
        from tqdm import tqdm  # pyright: ignore[reportMissingModuleSource]
    except ImportError:
        return draw, clear
    bar = None

    def draw_tqdm(progress, speed):
        nonlocal bar
        bar = bar or tqdm(
            total=progress.steps,
            initial=progress.step,
            file=stream,
            unit="step",
            leave=False,
            dynamic_ncols=True,
        )
        bar.set_postfix_str(_told(progress), refresh=False)
        bar.update(progress.step - bar.n)
        if progress.step == progress.steps:
            bar.close()

    return draw_tqdm, clear


def _line(progress: Progress, speed: float) -> str:
    """The plain bar, and what is told beside it."""
    part = progress.step / progress.steps
    left = (progress.steps - progress.step) / speed if speed > 0 else math.nan
    time_left = (
        ""
        if math.isnan(left)
        else f", {left:.0f} s left"
        if left < 120
        else f", {left / 60:.0f} min left"
    )
    rate = "" if math.isnan(speed) else f", {_short(speed)} steps/s"
    filled = int(20 * part)
    return f"{part:4.0%} |{'#' * filled}{'.' * (20 - filled)}| {_told(progress)}{rate}{time_left}"


def _told(progress: Progress) -> str:
    record = _scalars(progress.record or {})
    accuracy = "".join(
        f", {name.replace('_', ' ')} {value:.4f}"
        for name, value in record.items()
        if "accuracy" in name
    )
    return f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.4f}{accuracy}"
