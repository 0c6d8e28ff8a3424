"""What all tests share: shapes in signatures are checked at run time, here alone (what has no shape
is pyright's to check); and properties are drawn anew each day.
"""

import contextlib
import datetime
import gc
import os
import pathlib
import re
import subprocess
import sys
import threading
from importlib.metadata import version

# Compiling takes most of the time: less without fused emitters and, in the quick tests, without
# optimisation. Only JAX 0.10 takes the first flag and is fast with it. To test without them:
# `XLA_FLAGS= pytest`; the tests with older versions of JAX do so anyway.
JAXLIB = tuple(map(int, version("jaxlib").split(".")[:2]))
FLAG = "--xla_cpu_use_fusion_emitters=false" if JAXLIB == (0, 10) else ""
UNOPTIMISED = "--xla_backend_optimization_level=0"
if JAXLIB >= (0, 10):
    os.environ.setdefault("XLA_FLAGS", FLAG)
if JAXLIB == (0, 9):  # it complains of programs that it has kept itself
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from hypothesis import settings
from jax._src.interpreters import mlir
from jaxlib.mlir import ir

if not hasattr(jax, "enable_x64"):  # before JAX 0.8; the tests are written for later versions
    jax.enable_x64 = jax.experimental.enable_x64

if not hasattr(mlir, "_create_ir_context"):
    # Before JAX 0.12, each program is lowered in a context of its own, and a small program is
    # lowered faster than its context is made. As in JAX 0.12, ten programs of a thread share one,
    # but not while one of them is being lowered.
    _own_context, _shared = mlir.make_ir_context, threading.local()

    def _context():
        if ir.Context.current is not None:
            return _own_context()
        _shared.count = getattr(_shared, "count", -1) + 1
        if _shared.count % 10 == 0:
            _shared.context = _own_context()
        return _shared.context

    mlir.make_ir_context = _context

# JAX makes many objects that stay: looking through them less often saves a twelfth of the time.
gc.set_threshold(200_000, 20, 50)
HOUSE = pathlib.Path(__file__).parents[1]
# `PyTree` alone is no shape.
SHAPED = [
    ".".join(path.relative_to(HOUSE).with_suffix("").parts)
    for path in (HOUSE / "jaxnn").rglob("*.py")
    if re.search("^from jaxtyping import (?!PyTree$)", path.read_text(), re.MULTILINE)
]
jaxtyping.install_import_hook(SHAPED, "beartype.beartype")
# The time that an example takes is that of its compilation; and what fails is found again by its
# seed, not by a database.
settings.register_profile("jaxnn", deadline=None, database=None, print_blob=True)
settings.load_profile("jaxnn")


TODAY = datetime.date.today().toordinal()


def pytest_addoption(parser):
    what = "run a third of the tests, and the others on the next two days"
    parser.addoption("--today", action="store_true", help=what)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("today"):
        others = [item for number, item in enumerate(items) if number % 3 != TODAY % 3]
        config.hook.pytest_deselected(items=others)
        items[:] = items[TODAY % 3 :: 3]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """The same examples all day, so that a failure comes again, and others tomorrow; and compiled
    programs are kept for the next run (`pytest --cache-clear` deletes them).
    """
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(TODAY)
    if os.environ.get("XLA_FLAGS") == FLAG and "not slow" in config.option.markexpr:
        os.environ["XLA_FLAGS"] = f"{FLAG} {UNOPTIMISED}"
    # The environment is for programs that tests start.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HOUSE / "tests"), os.environ.get("PYTHONPATH")))
    )
    # From Python 3.14 on, JAX compresses them otherwise.
    kept = config.rootpath / ".pytest_cache" / "d"
    programs = kept / f"programs-{sys.implementation.cache_tag}"
    programs = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if exitstatus:
        seed = config.getoption("hypothesis_seed")
        terminalreporter.write_line(f"properties were drawn with --hypothesis-seed={seed}")


COMPILED = []


def _note(event, *_, **__):
    if event.endswith("backend_compile_duration"):
        COMPILED.append(threading.current_thread())


jax.monitoring.register_event_duration_secs_listener(_note)


@pytest.fixture
def compilations():
    """Tells how many programs have been compiled so far."""
    return lambda: len(COMPILED)


@pytest.fixture
def compiled_apart():
    """Tells how many programs have been compiled in other threads so far."""
    return lambda: sum(thread is not threading.main_thread() for thread in COMPILED)


STRICT = {"numpy_dtype_promotion": "strict", "numpy_rank_promotion": "raise"}


@pytest.fixture(autouse=True)
def strict(request):
    """No promotion of dtypes and ranks, except in slow tests and those marked with `promotes`."""
    marks = map(request.node.get_closest_marker, ("promotes", "slow", "ecosystem"))
    usual = {name: getattr(jax.config, f"jax_{name}") for name in STRICT}
    for name, value in ({} if any(marks) else STRICT).items():
        jax.config.update(f"jax_{name}", value)
    yield
    for name, value in usual.items():
        jax.config.update(f"jax_{name}", value)


@pytest.fixture
def own_errors():
    """The package's own errors, not those of the shape checker that would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both dtypes; float64 with x64 on."""
    with jax.enable_x64(True) if request.param == "float64" else contextlib.nullcontext():
        yield jnp.dtype(request.param)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compiled_as_usual():
    """Runs a file in a process that compiles as usual, or by other flags: last digits depend on
    which operations are fused.
    """
    how = {"capture_output": True, "text": True, "timeout": 300}
    return lambda file, flags="": subprocess.run(
        [sys.executable, file], env=os.environ | {"XLA_FLAGS": flags}, **how
    )
