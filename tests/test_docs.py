"""What the documentation shows is what happens: the README, every docstring's example, every script
in examples/.
"""

import code
import contextlib
import doctest
import enum
import importlib
import inspect
import io
import pathlib
import re
import subprocess
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import nbclient
import nbformat
import optax
import pytest

import jaxnn

pytestmark = pytest.mark.promotes  # optax does

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "jaxnn").rglob("*.py")
    if path.name not in ("__main__.py",)
)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    names = {"jax": jax, "jnp": jnp, "optax": optax, "jaxnn": jaxnn}
    failed, _ = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert failed == 0


class SameReport(doctest.OutputChecker):
    """A report's words are compared as they are, its numbers to 2%, and digits to half a digit:
    rounding is the machine's.
    """

    def check_output(self, want, got, optionflags):
        if not want.startswith(("gradient of ", "<stdin>:")):
            return super().check_output(want, got, optionflags)
        number, place = (
            r"(?<![\w\[])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w\]])",
            r"<[^>]*>(:|\", line )\d+",
        )
        want, got = (re.sub(place, "here", text) for text in (want, got))
        words = [re.sub(number, "#", text).split() for text in (want, got)]
        pairs = list(zip(re.findall(number, want), re.findall(number, got), strict=False))
        is_digits = re.compile(r"\d+\.\d").fullmatch
        same = [
            float(a) == pytest.approx(float(b), rel=0.02, abs=0.5 if is_digits(a) else 1e-9)
            for a, b in pairs
        ]
        return words[0] == words[1] and all(same)


def require_as_shown(page, least):
    """The examples of a page, of which there are more than `least`, print what it shows."""
    text = page.read_text()
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, page.name, 0)
    results = doctest.DocTestRunner(SameReport(), optionflags=doctest.ELLIPSIS).run(test)
    assert results.failed == 0 and results.attempted > least


PAGES = sorted((ROOT / "examples" / "guide").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_in_the_guide(page):
    require_as_shown(page, 2)


def test_python_in_the_readme(compiled_as_usual):
    done = compiled_as_usual(__file__)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_it_holds():
    notebook = nbformat.read(ROOT / "examples" / "chapter.ipynb", 4)
    held = [printed(cell) for cell in notebook.cells]
    assert sum(cell.source.startswith("## ") for cell in notebook.cells) > 6
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    for cell, before in zip(notebook.cells, held, strict=True):
        numbers = [float(n) for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", printed(cell))]
        expected = [float(n) for n in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", before)]
        assert numbers == pytest.approx(expected, rel=0.05, abs=1e-9), cell.source


def printed(cell):
    """What a cell wrote; nothing may stand on standard error."""
    outputs = cell.get("outputs", [])
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    return "".join(o.text for o in outputs if o.output_type == "stream")


def test_python_in_the_readme_can_be_typed_as_it_stands():
    """Every block at the prompt is ended before the next statement."""
    console, lines = code.InteractiveConsole({}), (ROOT / "README.md").read_text().splitlines()
    console.runcode = lambda code: None  # only whether it is whole: what it does is tested above
    more = False
    for line in lines:
        if line.startswith((">>> ", "... ", "...")):
            assert more == line.startswith("..."), line
            with contextlib.redirect_stderr(io.StringIO()) as complaints:
                more = console.push(line[4:])
            assert not complaints.getvalue(), complaints.getvalue()
    assert not more


@pytest.mark.slow
def test_commands_in_the_readme(tmp_path):
    """Those of the section on training, in the order in which they stand, in an empty directory."""
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith("jaxnn train --checkpoint")]
    assert len(commands) == 2
    for command in commands:
        words = [sys.executable, "-m", *command.split()]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0 and done.stdout and not done.stderr, (command, done.stderr)


# Two say "takes what ... takes", of these.
LIKE = {"assert_gradient": "check_gradient", "numerical_gradient": "numerical_grad"}


@pytest.mark.parametrize("name", sorted(jaxnn.__all__))
def test_every_public_name_has_an_example_and_says_what_each_argument_is(name):
    public = getattr(jaxnn, name)
    text = inspect.getdoc(public)
    assert ">>> " in text
    if name in LIKE:
        assert f"`{LIKE[name]}" in text
    elif not isinstance(public, type) or not issubclass(public, Exception | enum.Enum):
        for argument in inspect.signature(public).parameters:
            assert re.search(rf"^ *\**{argument}\b.*:", text, re.MULTILINE), argument


# fetch_mnist.py needs the network, the one with Equinox needs Equinox.
ECOSYSTEM = "convolution_equinox"
SCRIPTS = [
    pytest.param(path, marks=pytest.mark.ecosystem if path.stem == ECOSYSTEM else pytest.mark.slow)
    for path in sorted((ROOT / "examples").glob("[!f]*.py"))
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_examples_run(script, tmp_path):
    if script.stem == ECOSYSTEM:
        pytest.importorskip("equinox", reason="equinox comes with '.[ecosystem]'")
    short = ["--short"] if "--short" in script.read_text() else []
    command = [sys.executable, script, *short]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert not done.stderr, done.stderr


@pytest.mark.slow
def test_the_wheel_carries_the_digits_and_works_alone(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    subprocess.run(check, check=True, capture_output=True, timeout=60)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        description = archive.read(name).decode()
    assert "## Check a gradient" in description and "<picture>" not in description
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", str(wheel)],
        check=True,
        capture_output=True,
        timeout=600,
    )
    command = [str(tmp_path / "venv" / "bin" / "jaxnn"), "train", "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr


if __name__ == "__main__":
    warnings.simplefilter("error")
    require_as_shown(ROOT / "README.md", 5)
