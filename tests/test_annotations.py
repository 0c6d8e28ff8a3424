"""What a failing test prints, and the lines that are marked in a change under GitHub Actions."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

import jaxnn
from jaxnn.checking.findings import Birth, SourceLine, annotations, sarif
from jaxnn.cli.parser import main

MODEL = """import jax, jax.numpy as jnp, jaxnn

half = jax.custom_vjp(lambda x: x / 2)
half.defvjp(lambda x: (x / 2, None), lambda _, g: (g / 3,))

def loss(x=jnp.ones(2)): return jnp.sum(half(x))
def right(x=jnp.ones(2)): return jnp.sum(x**2)
def root(x=jnp.zeros(2)): return jnp.sqrt(jnp.sum(x))

def test_loss(): jaxnn.assert_gradient(loss, jnp.ones(2))
def test_right(): jaxnn.assert_gradient(right, jnp.ones(2))
if __name__ == "__main__": jax.grad(loss)(jnp.ones(2))
"""
RULE = "::error file=test_model.py,line=4,title=gradient::wrong rule: custom_vjp of `<lambda>`"
ROOT = "::error file=test_model.py,line=8,title=gradient::born at test_model.py:8 (root): `sqrt`"


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "test_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")


@pytest.mark.parametrize(
    ("command", "mark"),
    [
        (["check", "test_model.py:loss"], RULE),
        (["check", "test_model.py:root"], ROOT),
        (["explain", "test_model.py:root"], ROOT),
        (["check", "test_model.py::test_loss"], RULE),
        (["watch", "test_model.py"], RULE),
        (["check", "test_model.py:right"], ""),
    ],
)
def test_the_commands_mark_lines(model, monkeypatch, capsys, command, mark):
    main(command)
    marks = [x for x in capsys.readouterr().err.splitlines() if x.startswith("::error")]
    assert len(marks) == bool(mark) and all(x.startswith(mark) for x in marks)
    monkeypatch.delenv("GITHUB_ACTIONS")
    main(command)
    assert "::error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "line"),
    [(["check", "test_model.py:loss"], 4), (["explain", "test_model.py:root"], 8)]
    + [(["watch", "test_model.py"], 4), (["check", "test_model.py:right"], None)],
)
def test_what_is_found_is_written_as_sarif(model, capsys, command, line):
    main([command[0], "--sarif", "found.sarif", *command[1:]])
    assert "SARIF written to found.sarif" in capsys.readouterr().err
    found = json.loads(pathlib.Path("found.sarif").read_text())
    assert found["version"] == "2.1.0" and found["$schema"].endswith("sarif-2.1.0.json")
    (run,) = found["runs"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("jaxnn", jaxnn.__version__)
    places = [result["locations"][0]["physicalLocation"] for result in run["results"]]
    assert [place["region"]["startLine"] for place in places] == [line] * (line is not None)
    for place, result in zip(places, run["results"], strict=True):
        assert place["artifactLocation"]["uri"] == "test_model.py"
        assert result["ruleId"] in {rule["id"] for rule in driver["rules"]}


def test_a_line_in_no_file_is_not_marked():
    nowhere, here = SourceLine("", 0, "", ""), SourceLine("model.py", 5, "loss", "jnp.log(x)")
    found = [Birth(line, "log", "inf", 1, 2, "", False, "") for line in (nowhere, here)]
    (mark,) = annotations(found)
    assert mark.startswith("::error file=model.py,line=5,title=gradient::born at model.py:5")
    assert len(sarif(found, "1")["runs"][0]["results"]) == 1


def test_a_place_for_sarif_that_is_none_is_refused_first(model, capsys):
    for command in ("check", "explain", "watch"):
        assert main([command, "--sarif", "nowhere/x.sarif", "test_model.py:loss"]) == 2
        assert "`--sarif` must be a file in an existing directory." in capsys.readouterr().err


@pytest.mark.parametrize("processes", ["0", "2"])
def test_pytest_marks_lines(model, processes):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", processes]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert out.count("::error") == 1 and RULE in out


@pytest.mark.parametrize("option", ["-q", "-v"])
def test_pytest_shows_a_short_report_and_with_v_the_whole(model, option):
    command = [sys.executable, "-m", "pytest", option, "-p", "no:cacheprovider", "test_model.py"]
    coloured = [*command, "--color=yes"] if option == "-v" else command
    out = subprocess.run(coloured, capture_output=True, text=True, timeout=300).stdout
    assert ("gradient of loss: \x1b[31mdiffers\x1b[0m\n" in out) == (option == "-v")
    out = re.sub("\x1b\\[[0-9;]*m", "", out)
    error = [line for line in out.splitlines() if line.startswith("E  ")]
    assert "wrong rule: custom_vjp" in error[0] and "half.defvjp(" in error[1] and len(error) <= 15
    assert ("- gradient report -" in out) == (option == "-v")
