"""What is shown while a run goes on, and what is logged."""

import io
import json
import os
import stat
import sys
import time

import numpy as np
import pytest

from jaxnn import Progress, progress_log, show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(*watchers, epochs=20, steps=3):
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            record = {"train_loss": 1 / epoch, "test_accuracy": 0.5} if step == steps else None
            progress = Progress(
                epoch, epochs, (epoch - 1) * steps + step, epochs * steps, 2.0, record
            )
            for watcher in watchers:
                watcher(progress)


def test_progress_is_one_line():
    told = Progress(1, None, 15, 30, 2.3, {"train_loss": 2.25, "hits": np.ones(2)})
    assert repr(told) == "<Progress: epoch 1, step 15 of 30; loss 2.3; train_loss 2.25>"
    assert told._repr_html_() == f"<p>{repr(told)[1:-1]}</p>"


def test_a_tenth_of_the_epochs_are_told_in_a_table_and_no_bar_where_there_is_no_terminal():
    lines, bar = io.StringIO(), io.StringIO()
    run(show_progress(lines, bar))
    head, *rows = lines.getvalue().splitlines()
    assert head.split() == ["epoch", "train", "loss", "test", "accuracy", "steps/s"]
    assert [row.split()[:3] for row in rows] == [
        [str(e), f"{1 / e:.4f}", "0.5000"] for e in range(2, 21, 2)
    ]
    assert bar.getvalue() == ""


@pytest.mark.parametrize(
    "plain",
    [{"TERM": "dumb"}, {"NO_COLOR": "1"}, "no terminal", "closed", "no stream", "no tqdm"],
)
def test_there_are_plain_lines_alone_where_no_bar_can_be_drawn(monkeypatch, plain):
    lines, terminal = io.StringIO(), Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    if isinstance(plain, dict):
        for name, value in plain.items():
            monkeypatch.setenv(name, value)
    if plain == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    if plain == "no terminal":
        terminal = io.StringIO()
    if plain == "closed":
        terminal.close()
    if plain == "no stream":
        terminal = None
        monkeypatch.setattr(sys, "stderr", None)
    run(show_progress(lines, terminal))
    assert lines.getvalue().count("\n") == 11 and "\x1b" not in lines.getvalue()
    if terminal is not None and not terminal.closed:
        assert terminal.getvalue() == ""


@pytest.mark.parametrize("lines", [None, "closed"])
def test_lines_that_nobody_can_read_are_left_out(monkeypatch, lines):
    monkeypatch.setattr(sys, "stdout", None)
    if lines == "closed":
        lines = io.StringIO()
        lines.close()
    run(show_progress(lines, io.StringIO()))


def test_a_clock_that_stands_still_gives_no_speed(monkeypatch):
    monkeypatch.setattr("jaxnn.training.progress.time.perf_counter", lambda: 1.0)
    lines = io.StringIO()
    run(show_progress(lines, io.StringIO()))
    assert "inf" not in lines.getvalue() and "nan" not in lines.getvalue()


def shown(text):
    """The lines that a terminal ends with: what was written over is gone."""
    return [line.split("\r")[-1].strip() for line in text.split("\n")]


def test_a_run_that_measures_nothing_is_told_by_the_loss_of_its_steps():
    lines = io.StringIO()
    show = show_progress(lines, io.StringIO())
    for step in range(1, 41):
        show(Progress(1, 1, step, 40, 1 / step, None, measures=False))
    head, *rows = lines.getvalue().splitlines()
    assert head.split() == ["step", "loss", "steps/s"]
    assert [row.split()[:2] for row in rows[1:]] == [
        [str(step), f"{1 / step:.4f}"] for step in range(4, 41, 4)
    ]


def test_the_speed_is_told_without_the_time_of_compilation(monkeypatch):
    clock = iter([0.0, 0.0, 100.0, 101.0])  # the first measurement is compiled for 100 seconds
    monkeypatch.setattr("jaxnn.training.progress.time.perf_counter", lambda: next(clock))
    lines = io.StringIO()
    show = show_progress(lines, io.StringIO())
    for epoch, step, record in (
        (1, 1, None),
        (1, 10, {"train_loss": 1.0}),
        (2, 20, {"train_loss": 1.0}),
    ):
        show(Progress(epoch, 2, step, 20, 1.0, record))
    assert [line.split()[2:] for line in lines.getvalue().splitlines()[1:]] == [[], ["10"]]


def test_tqdm_is_used_where_it_is_installed(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    run(show_progress(terminal, terminal))
    rows = [line.split()[:3] for line in shown(terminal.getvalue())]
    assert all([str(e), f"{1 / e:.4f}", "0.5000"] in rows for e in range(2, 21, 2))
    bar = Terminal()
    show = show_progress(io.StringIO(), bar)
    for step in (1, 2):
        show(Progress(1, 1, step, 9, 2.0, None))
        time.sleep(0.15)  # it draws ten times a second
    assert "2/9 [" in bar.getvalue() and "epoch 1/1, loss 2.0000" in bar.getvalue()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def test_the_log_is_added_to(tmp_path):
    path = tmp_path / "log"
    path.write_text("buy bread\n")
    run(progress_log(path), epochs=2)
    with path.open("a") as file:
        file.write("x" * 7)  # a line that a killed run did not finish
    log = progress_log(path)
    for step in range(5, 10):  # resumed from a checkpoint after step 4
        log(Progress(2, 3, step, 9, float("nan"), None, resumed=4))
    lines = read(path)
    assert path.read_text().startswith("buy bread\n{")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9]
    assert lines[2]["record"] == {"train_loss": 1.0, "test_accuracy": 0.5}
    assert lines[-1]["loss"] is None and all(line["time"] > 1.7e9 for line in lines)
    assert lines[-1].keys() == {"epoch", "epochs", "step", "steps", "loss", "record", "time"}
    run(progress_log(path), epochs=1)  # a second run
    assert [line["step"] for line in read(path)[-3:]] == [1, 2, 3]


def test_a_log_is_written_to_whatever_is_there(tmp_path):
    run(progress_log("/dev/null"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old\n")
    target.chmod(0o600)
    link.symlink_to(target)
    run(progress_log(link), epochs=1)
    assert link.is_symlink() and target.read_text().startswith("old\n{") and len(read(target)) == 3
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_of_a_long_run_there_is_a_line_every_ten_seconds(monkeypatch):
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr("jaxnn.training.progress.time.perf_counter", lambda: next(clock))
    lines = io.StringIO()
    show = show_progress(lines, io.StringIO())
    for epoch in range(1, 8):
        show(Progress(epoch, 1000, epoch, 1000, 1.0, {"train_loss": 1.0}))
    assert [line.split()[0] for line in lines.getvalue().splitlines()[1:]] == ["3", "6"]
