"""What is shown while a run goes on, and what is logged."""

import io
import json
import sys
import time

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


def test_a_tenth_of_the_epochs_are_told_in_a_table_and_no_bar_where_there_is_no_terminal():
    lines, bar = io.StringIO(), io.StringIO()
    run(show_progress(lines, bar))
    head, *rows = lines.getvalue().splitlines()
    assert head.split() == ["epoch", "train", "loss", "test", "accuracy", "steps/s"]
    assert [row.split()[:3] for row in rows] == [
        [str(e), f"{1 / e:.4f}", "0.5000"] for e in range(2, 21, 2)
    ]
    assert bar.getvalue() == ""


def shown(text):
    """The lines that a terminal ends with: what was cleared is gone."""
    return [line.split("\r\x1b[K")[-1] for line in text.split("\n")]


def test_a_terminal_gets_a_bar_that_is_written_over_and_makes_room_for_the_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as where it is not installed
    monkeypatch.setenv("COLUMNS", "200")
    lines, terminal = io.StringIO(), Terminal()
    run(show_progress(lines, io.StringIO()))
    run(show_progress(terminal, terminal))
    states = terminal.getvalue().split("\r\x1b[K")
    bar = next(state for state in states if "epoch 10/20" in state)
    assert "47% |#########...........| epoch 10/20, loss 2.0000" in bar and bar.endswith("s left")
    without_speed = [
        [row.split()[:3] for row in rows]
        for rows in (shown(terminal.getvalue()), lines.getvalue().split("\n"))
    ]
    assert without_speed[0] == without_speed[1] and states[-1] == ""


def test_the_bar_stays_within_a_narrow_terminal(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setenv("COLUMNS", "40")
    bar = Terminal()
    run(show_progress(io.StringIO(), bar))
    assert max(map(len, bar.getvalue().split("\r\x1b[K"))) == 39


def test_the_speed_is_told_without_the_time_of_compilation(monkeypatch):
    clock = iter([0.0, 100.0, 101.0])  # the first measurement is compiled for 100 seconds
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


def test_tqdm_is_used_where_it_is_installed():
    pytest.importorskip("tqdm")
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


def test_the_log_tells_each_step_once_also_when_a_run_is_resumed(tmp_path):
    path = tmp_path / "log"
    run(progress_log(path), epochs=2)
    with path.open("a") as file:
        file.write('{"step": 7, "ep')  # a line that a killed run did not finish
    log = progress_log(path)
    for step in range(5, 10):  # resumed from a checkpoint after step 4
        log(Progress(2, 3, step, 9, float("nan"), None))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert (
        lines[2]["record"] == {"train_loss": 1.0, "test_accuracy": 0.5}
        and lines[-1]["loss"] is None
    )
    assert all(line["time"] > 1.7e9 for line in lines)


def test_a_file_that_is_no_log_is_left_alone(tmp_path):
    path = tmp_path / "notes"
    path.write_text("buy bread\n")
    with pytest.raises(
        ValueError,
        match="`path` must be a log of steps, or a new file. Got .* with a line 'buy bread",
    ):
        progress_log(path)(Progress(1, 1, 1, 1, 0.0, None))
    assert path.read_text() == "buy bread\n"
