"""The command `jaxnn watch`: runs a program as `python` does, and checks its gradients."""

import _thread
import argparse
import concurrent.futures.thread
import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import os
import pathlib
import runpy
import signal
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxnn._jax import set_from
from jaxnn._terminal import coloured, takes_codes
from jaxnn.checking.noting import noting
from jaxnn.checking.watch import Watcher
from jaxnn.checking.watched import interruptible, judged
from jaxnn.cli.output import mark, passing, print_json, require_places

# Frames of these files come before those of the program in a traceback.
_OWN = (os.path.join(str(pathlib.Path(__file__).parents[1]), ""), "<frozen runpy>", runpy.__file__)


def watch(args: argparse.Namespace) -> int:
    """Run a program and report on its gradients; returns the program's exit code if it is not 0,
    else 1 if a gradient is wrong or was not finite, 2 if none could be judged, or 0.
    """
    require_places(args, "html", "json", "sarif")
    stopped: list[threading.Timer] = []

    def stop():
        if args.stop and not stopped:
            # Not from inside of the callback, whose error JAX would print.
            stopped.append(threading.Timer(0.01, _thread.interrupt_main))
            stopped[0].start()

    watcher = Watcher(args.points, not args.no_nan, args.trust, stop)
    stoppable = interruptible() if args.stop else contextlib.nullcontext()
    with noting(watcher), stoppable, _ended_in_order():
        code = _ran(args.program, stopped)
        with contextlib.suppress(KeyboardInterrupt):  # the program may have ended before it came
            for timer in stopped:
                timer.cancel()
                timer.join()
        with contextlib.suppress(ValueError):  # the program closed it
            sys.stdout.flush()
    if stopped and code == 130:
        print("stopped at the first gradient that is not finite", file=sys.stderr)
    with passing("checking gradients"):
        report = judged(watcher, args.budget)
    text = str(report)
    text = coloured(text, report.exit_code) if takes_codes(sys.stderr) else text
    print(text, file=sys.stderr)
    mark(report.found, args.sarif)
    if args.html:
        report.save(args.html)
        print(f"page written to {args.html}", file=sys.stderr)
    if args.json:
        with open(args.json, "w") as file:
            print_json(report.to_dict(), file)
    if args.save:
        for path in report.save_inputs(args.save):
            print(f"inputs written to {path}", file=sys.stderr)
    return report.exit_code if code == 0 or stopped else code


class _Terminated(SystemExit, KeyboardInterrupt):
    """What SIGTERM raises in a program; test runners pass on an interruption alone."""


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM, as `timeout` and schedulers send it, ends a program that does not handle it as
    `sys.exit(143)` does, so that there is a report.
    """

    def end(*_):
        raise _Terminated(128 + signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    ours = before is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def _await_threads(others: Iterable[threading.Thread]) -> None:
    """Wait for threads that outlive the program, as Python does at its end; but not for those of
    pools, which wait for more work themselves.
    """
    passed = {*others, *getattr(concurrent.futures.thread, "_threads_queues", ())}
    while its_own := [t for t in threading.enumerate() if not (t.daemon or t in passed)]:
        its_own[0].join()


def _ran(program: list[str], stopped: list) -> int:
    """The exit code of a program, run as the main module with its arguments."""
    is_module = program[0] == "-m"
    if is_module and len(program) == 1:
        raise ValueError("`-m` must be followed by the name of a module. Got nothing.")
    name, *rest = program[is_module:]
    in_folder = os.path.join(name, "__main__.py") if os.path.isdir(name) else name
    if not is_module and not os.path.exists(in_folder):
        raise ValueError(f"`PROGRAM` must be a Python file, or -m MODULE. Got {name!r}.")
    if is_module and name == "pytest":
        _let_pytest_start()
    run = functools.partial(_run_file, os.path.abspath(name))
    if os.path.isdir(name) or name.endswith(".pyc") or zipfile.is_zipfile(name):
        run = functools.partial(runpy.run_path, name, run_name="__main__")
    if is_module:
        run = functools.partial(runpy.run_module, name, run_name="__main__", alter_sys=True)
    before, others = (sys.argv, sys.path[:]), threading.enumerate()
    sys.argv = [name, *rest]
    sys.path[0] = os.getcwd() if is_module else os.path.dirname(os.path.abspath(name))
    try:
        with _imported_anew():
            code = _exit_code(run, stopped)
            waited = 0 if stopped else _exit_code(lambda: _await_threads(others), stopped)
            return code or waited
    finally:
        sys.argv, sys.path[:] = before


def _let_pytest_start() -> None:
    """Pytest shall not warn that packages with plugins, such as this one, are imported already: a
    project may turn each warning into an error.
    """
    for plugin in importlib.metadata.entry_points(group="pytest11"):
        module = sys.modules.get(plugin.module.partition(".")[0])
        if module is not None:
            module.__doc__ = f"{module.__doc__ or ''}\n\nPYTEST_DONT_REWRITE"


def _run_file(path: str) -> None:
    """Run a file as the main module: like `runpy.run_path`, but as with `python`, `__file__` is
    absolute, and `sys.argv[0]` as it was typed.
    """
    main, before = types.ModuleType("__main__"), sys.modules["__main__"]
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    vars(main).update(__file__=path, __loader__=loader)
    code: Any = loader.source_to_code(loader.get_data(path), path)
    sys.modules["__main__"] = main
    try:
        exec(code, vars(main))
    finally:
        sys.modules["__main__"] = before


def _exit_code(run: Callable[[], Any], stopped: list) -> int:
    """The exit code with which Python would end after `run()`; an interruption prints nothing if
    the program was stopped.
    """
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        by_ctrl_c = isinstance(error, KeyboardInterrupt)
        if not (by_ctrl_c and stopped):
            error = error.with_traceback(_without_own(error.__traceback__))
            sys.excepthook(type(error), error, error.__traceback__)
        return 130 if by_ctrl_c else 1
    return 0


class _ImportedAgain(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports JAX, which is there already, with the variables of the environment that a program set
    before it did so.
    """

    def __init__(self):
        self.jax, self.before = sys.modules.pop("jax"), dict(os.environ)
        self.spec = self.jax.__spec__

    def find_spec(self, fullname, path, target=None):
        return importlib.machinery.ModuleSpec("jax", self) if fullname == "jax" else None

    def create_module(self, spec):
        return self.jax

    def exec_module(self, module):
        module.__spec__ = self.spec
        new = {k: text for k, text in os.environ.items() if self.before.get(k) != text}
        self.before |= new
        set_from(new)


@contextlib.contextmanager
def _imported_anew() -> Iterator[None]:
    """A program that imports JAX inside does so for the first time, as far as it can tell."""
    again = _ImportedAgain()
    sys.meta_path.insert(0, again)
    try:
        yield
    finally:
        sys.meta_path.remove(again)
        sys.modules["jax"] = again.jax


def _without_own(frames: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback from the program's first frame on; None if it never ran."""
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OWN):
        frames = frames.tb_next
    return frames
