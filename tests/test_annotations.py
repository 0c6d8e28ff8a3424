"""What a failing test prints, and the lines that are marked in a change under GitHub Actions."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("processes", ["0", "2"])
def test_pytest_marks_lines(model, processes):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", processes]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert out.count("::error") == 1 and RULE in out


@pytest.mark.parametrize("option", ["-q", "-v"])
def test_pytest_shows_a_short_report_and_with_v_the_whole(model, option):
    command = [sys.executable, "-m", "pytest", option, "-p", "no:cacheprovider", "test_model.py"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    error = [line for line in out.splitlines() if line.startswith("E  ")]
    assert "wrong rule: custom_vjp" in error[0] and "half.defvjp(" in error[1] and len(error) <= 15
    assert ("- gradient report -" in out) == (option == "-v")
