"""What the documentation shows is what happens: the README, every docstring's example, every script in examples/."""

import doctest
import importlib
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxnn

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "jaxnn").rglob("*.py")
    if path.name not in ("__main__.py",)
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    names = {"jax": jax, "jnp": jnp, "optax": optax, "jaxnn": jaxnn}
    failed, _ = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert failed == 0


def test_python_in_the_readme():
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert failed == 0 and attempted > 5


@pytest.mark.parametrize("name", [n for n in dir(jaxnn) if n in jaxnn.__all__])
def test_every_public_name_is_documented_with_an_example(name):
    assert len(getattr(jaxnn, name).__doc__) > 40 and ">>> " in getattr(jaxnn, name).__doc__


@pytest.mark.slow  # all but fetch_mnist.py, which needs the network
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("[!f]*.py")), ids=lambda path: path.stem)
def test_examples_run(script, tmp_path):
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert not done.stderr, done.stderr


@pytest.mark.slow
def test_the_wheel_carries_the_digits_and_works_alone(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True, capture_output=True, timeout=600)
    command = [str(tmp_path / "venv" / "bin" / "jaxnn"), "train", "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr
