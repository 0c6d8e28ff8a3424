"""Loads command-line targets: functions in the user's files and modules, and the points to check
them at.

A file is imported as by `python -m`: as part of its package, if there is one, so that relative
imports work, and with the working directory and the file's directory on the path.
"""

import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from jaxnn._arguments import take_apart

# The functions to check if the target is a file without a name.
PREFIXES = ("check_", "loss")


class Target(NamedTuple):
    """A function and the arguments to check it at.

    Attributes:
      name: the target as the user would write it.
      function: the function to check or, with `test`, to run.
      point: the function's arguments.
      test: whether the function is a test, which makes its own checks.
    """

    name: str
    function: Callable
    point: tuple[Any, ...] = ()
    test: bool = False


def load(target: str) -> list[Target]:
    """The functions that a target names: FILE.py, FILE.py:NAME, FILE.py::TEST or MODULE:NAME, where
    NAME may be dotted.
    """
    place, names, test = _parted(target)
    try:
        module = _module(place)
    except (Exception, SystemExit) as error:  # a file may raise anything
        raise refusal("TARGET", "a file or module that runs", error) from error
    if not names:
        return _candidates(target, module)
    function = _attribute(place, module, names)
    if test:
        _require_defaults(
            names,
            function,
            f"For tests with fixtures or parameters, run `pytest --check-gradients {place}`",
        )
        return [Target(target, function, test=True)]
    return [_target(target, names, function)]


def _watching(place: str) -> str:
    """The command that checks what cannot be called on its own."""
    return f"`jaxnn watch {'' if place.endswith('.py') else '-m '}{place}`"


def _target(target: str, name: str, function: Callable) -> Target:
    """A function with its defaults as arguments, or the pair that it returns if it takes none. For
    a method of a module with weights, the module is the first argument.
    """
    owner = getattr(function, "__self__", None)
    if owner is not None and take_apart(owner)[1]:
        defaults = _require_defaults(name, function, "`self` needs no default")
        return Target(target, function.__func__, (owner, *defaults))
    if not isinstance(owner, type) and getattr(owner, "__dict__", None):
        kind = type(owner).__name__
        said = f"{kind} is not a pytree, so the attributes of its instance are treated as constant"
        print(f"jaxnn: {target}: {said}", file=sys.stderr)
    if not inspect.signature(function).parameters:
        return Target(target, *_made_by(name, function))
    way = (
        f"Alternatively, let `{name}()` return (function, arguments), or run "
        f"{_watching(_parted(target)[0])}, which checks the gradients that a program takes"
    )
    return Target(target, function, _require_defaults(name, function, way))


def _parted(target: str) -> tuple[str, str, bool]:
    """The file or module, the name in it, and whether it is a test."""
    if "::" in target:
        place, _, names = target.partition("::")
        names = names.replace("::", ".")  # of a class of tests
    elif target.endswith(".py"):
        return target, "", False
    else:
        place, _, names = target.rpartition(":")
    if not place or not names:
        raise ValueError(
            f"`TARGET` must be FILE.py, FILE.py:NAME, FILE.py::TEST or MODULE:NAME. Got {target!r}."
        )
    return place, names, "::" in target


def _module(place: str) -> ModuleType:
    """A file or module, imported."""
    _importable(os.getcwd())
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = pathlib.Path(place).resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    _importable(str(root))
    if len(parts) > 1:
        return importlib.import_module(".".join(part for part in parts if part != "__init__"))
    # A file outside a package may have the name of a standard module.
    name = f"jaxnn_check_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(2, os.strerror(2), place)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _attribute(place: str, module: ModuleType, names: str) -> Callable:
    """The function with a dotted name; a method is bound to an instance built without arguments."""
    found, owner = module, None
    for name in names.split("."):
        if not hasattr(found, name):
            raise ValueError(
                f"`TARGET` must name a function in {place}. Got {names!r}, which is not "
                f"there. For a function inside another, {_watching(place)} checks the gradients "
                "that a program takes."
            )
        owner, found = found, getattr(found, name)
    if isinstance(found, type) or not callable(found):
        is_class = f"a class; name a method as {names}.NAME"
        what = is_class if isinstance(found, type) else f"of type {type(found).__name__}"
        raise ValueError(f"`TARGET` must name a function in {place}. Got {names!r}, {what}.")
    first = next(iter(inspect.signature(found).parameters), None)
    if isinstance(owner, type) and first == "self":
        try:
            return getattr(owner(), names.rpartition(".")[2])
        except TypeError as error:
            way = (
                "a method of a class that can be built without arguments; otherwise, run "
                f"{_watching(place)}"
            )
            raise refusal(names, way, error) from error
    return found


def _candidates(target: str, module: ModuleType) -> list[Target]:
    """The functions of a file to check: those with a prefix in `PREFIXES` and all defaults."""
    functions = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    chosen = {name: f for name, f in functions.items() if name.startswith(PREFIXES)}
    left_out = [name for name, f in chosen.items() if _missing(f)]
    found = [_of(f"{target}:{n}", n, f) for n, f in chosen.items() if n not in left_out]
    if found and left_out:
        said = f"skipped functions without defaults for all arguments: {', '.join(left_out)}"
        print(f"jaxnn: {said}", file=sys.stderr)
    if not found:
        there = f"with functions: {', '.join(functions)}" if functions else "with no functions"
        tests = any(name.startswith("test") for name in functions)
        form = "FILE.py:NAME or FILE.py::TEST" if tests else "FILE.py:NAME"
        raise ValueError(
            f"`TARGET` must be {form} if no check_... or loss... function has defaults for all "
            f"arguments; for a method, FILE.py:Class.NAME. Got {target!r}, {there}. "
            f"{_watching(target)} checks the gradients that it takes."
        )
    return found


def _of(target: str, name: str, function: Callable) -> Target:
    """One of several functions; if it cannot be checked, its error must not hide the others."""
    try:
        return _target(target, name, function)
    except (ValueError, AssertionError) as error:
        return Target(target, raising(error), test=True)


def raising(error: Exception) -> Callable:
    """A function that raises an error."""

    def again():
        raise error

    return again


def _missing(function: Callable) -> list[str]:
    """The arguments that have no default."""
    parameters = inspect.signature(function).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _require_defaults(name: str, function: Callable, way: str) -> tuple[Any, ...]:
    """The defaults of all arguments that are not keyword-only."""
    if missing := _missing(function):
        raise ValueError(
            f"`{name}` must have a default for each argument. Got none for {', '.join(missing)}. "
            f"{way}."
        )
    parameters = inspect.signature(function).parameters.values()
    given = [p for p in parameters if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY]
    return tuple(p.default for p in given)


def _made_by(name: str, make: Callable) -> tuple[Callable, tuple[Any, ...]]:
    """The pair that a function without arguments returns."""
    try:
        result = make()
    except AssertionError:
        raise
    except (Exception, SystemExit) as error:
        raise refusal(name, "a function that runs", error) from error
    is_pair = isinstance(result, tuple) and len(result) == 2
    if not is_pair or not callable(result[0]) or not isinstance(result[1], tuple | list):
        test = f"; to run a test, write FILE.py::{name}" if name.startswith("test") else ""
        raise ValueError(
            f"`{name}` must return (function, arguments) if it takes no arguments itself{test}. "
            f"Got {result!r}."
        )
    return result[0], tuple(result[1])


def refusal(name: str, requirement: str, error: BaseException) -> ValueError:
    """A ValueError that reports an error in the user's code."""
    return ValueError(f"`{name}` must be {requirement}. Got {type(error).__name__}: {error}")
