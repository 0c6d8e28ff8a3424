"""Checks keep compiled programs for the next process, where the user has not chosen otherwise."""

import os
import subprocess
import sys

import pytest

from jaxnn import _cache

COUNTED = """
import jax, sys
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if event.endswith("retrieval_time_sec") else None
)
from jaxnn.cli.parser import main
code = main(["check", "model.py:loss", *sys.argv[1:]])
print(len(compiled), code)
"""


@pytest.fixture
def check(tmp_path):
    """Runs a check in a process of its own; returns how many programs it found in a cache."""
    (tmp_path / "model.py").write_text(
        "import jax.numpy as jnp\ndef loss(x=jnp.ones(5000)): return jnp.sum(jnp.tanh(x) ** 2)\n"
    )

    def run(*options, **variables):
        own = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
        given = {name: value for name, value in os.environ.items() if name not in own}
        given |= {"XDG_CACHE_HOME": str(tmp_path / "caches"), **variables}
        command = [sys.executable, "-c", COUNTED, *options]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=given, timeout=120
        )
        found, code = done.stdout.splitlines()[-1].split()
        assert code == "0" and not done.stderr, done.stderr
        return int(found)

    return run


def test_a_second_process_finds_compiled_programs(check, tmp_path):
    assert check() == 0
    kept = set((tmp_path / "caches" / "jaxnn").glob("*/*"))
    assert kept and check() > 0


@pytest.mark.parametrize("how", ["--no-cache", "off", "a file"])
def test_nothing_is_kept_where_that_is_not_wanted(check, tmp_path, how):
    if how == "a file":
        (tmp_path / "caches").write_text("")
    options = [how] if how.startswith("-") else []
    variables = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if how == "off" else {}
    assert check(*options, **variables) == check(*options, **variables) == 0
    assert not list(tmp_path.glob("caches/*"))


def test_a_folder_that_the_user_chose_is_used(check, tmp_path):
    chosen = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert check(**chosen) == 0 < check(**chosen)
    assert not (tmp_path / "caches").exists()


def test_the_newest_programs_stay(monkeypatch, tmp_path):
    for age in range(5):
        (tmp_path / str(age)).write_text("x" * 10)
        os.utime(tmp_path / str(age), (1000 - age, 1000 - age))
    monkeypatch.setattr(_cache, "MOST", 35)
    _cache._make_room(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
