"""What users write passes the type checkers, and what is mistyped does not."""

import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
CHECKERS = {
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
    "mypy": [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent"],
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_ordinary_use_passes(checker, tmp_path):
    command = [*CHECKERS[checker], str(HERE / "typed_use.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_mistyped_argument_is_seen(checker, tmp_path):
    text = "import jax.numpy as jnp, jaxnn\njaxnn.assert_gradient(jnp.sum, jnp.ones(2), argnum=0)\n"
    (tmp_path / "wrong.py").write_text(text)
    command = [*CHECKERS[checker], str(tmp_path / "wrong.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=400)
    assert done.returncode == 1 and "argnum" in done.stdout, done.stdout + done.stderr
