"""What `jaxnn check` and `jaxnn explain` do with their arguments; they return the exit code."""

import argparse
import importlib
import inspect
import os
import pathlib
import runpy
import sys
from collections.abc import Callable
from typing import Any

from jaxnn.checking import explain as of_checking
from jaxnn.checking.check import check_gradient
from jaxnn.checking.evidence import Verdict
from jaxnn.cli.output import print_json, require_place

# Matplotlib, which takes as long to import as all the rest, is imported where something is drawn.

# Of a terminal, by the exit code that a verdict gives: green, red, yellow.
_COLOURS = {0: 32, 1: 31, 2: 33}


def check(args: argparse.Namespace) -> int:
    """Hold a gradient against values; the exit code says whether it is right, wrong or unknown."""
    if args.plot:
        _require_picture("--plot", args.plot)
    f, point = _load(args.target)
    options = {"argnums": tuple(range(len(point))), "order": args.order, "seed": args.seed}
    report = _ran(check_gradient, f, *point, **options)
    drawn = args.plot and report.leaves
    if drawn:
        import matplotlib

        matplotlib.use("agg")
        report.plot().figure.savefig(args.plot)
    if args.json:
        print_json(report.to_dict(), args.stdout)
    else:
        print(report.text(_paint) if _has_colours() else report)
        if drawn:
            print(f"evidence drawn in {args.plot}")
    return report.exit_code


def explain(args: argparse.Namespace) -> int:
    """Name the lines where a gradient goes bad; the exit code says whether there are any."""
    f, point = _load(args.target)
    found = _ran(of_checking.explain, f, *point)
    if args.json:
        print_json(found.to_dict(), args.stdout)
    else:
        print(found)
    return found.exit_code


def _ran(ask: Callable, *args: Any, **options: Any) -> Any:
    """What is asked of a user's function, whose exit code must not say "right"."""
    try:
        return ask(*args, **options)
    except (ValueError, TypeError, OSError):
        raise
    except (Exception, SystemExit) as error:
        raise _refusal("TARGET", "a function that runs", error) from error


def _has_colours() -> bool:
    """Whether standard output is a terminal whose user has nothing against colours."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return sys.stdout.isatty() and wanted  # https://no-color.org


def _paint(verdict: Verdict, text: str) -> str:
    colour = 33 if verdict in (Verdict.KINK, Verdict.IMPRECISE) else _COLOURS[verdict.exit_code]
    return f"\x1b[{colour}m{text}\x1b[0m"


def _load(target: str) -> tuple[Callable, tuple[Any, ...]]:
    """The function that a target names, and the arguments to check it at."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"`TARGET` must be FILE.py:NAME or MODULE:NAME. Got {target!r}.")
    try:
        if place.endswith(".py"):
            names = runpy.run_path(place, run_name="jaxnn_check")
        else:
            names = vars(importlib.import_module(place))
    except (Exception, SystemExit) as error:  # a file may raise anything
        raise _refusal("TARGET", "a file or module that runs", error) from error
    function = names.get(name)
    if not callable(function):
        is_there = name in names
        what = f"which is {type(function).__name__}" if is_there else "which it does not define"
        raise ValueError(f"`TARGET` must name a function of {place}. Got {name!r}, {what}.")
    parameters = inspect.signature(function).parameters.values()
    if not parameters:
        return _made_by(name, function)
    missing = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    if missing:
        got = f"Got none for {', '.join(missing)}."
        raise ValueError(f"`{name}` must have a default for each argument. {got}")
    return function, tuple(p.default for p in parameters)


def _made_by(name: str, make: Callable) -> tuple[Callable, tuple[Any, ...]]:
    """The pair that a function without arguments returns."""
    try:
        result = make()
    except (Exception, SystemExit) as error:
        raise _refusal(name, "a function that runs", error) from error
    is_pair = isinstance(result, tuple) and len(result) == 2
    if not is_pair or not callable(result[0]) or not isinstance(result[1], tuple | list):
        raise ValueError(
            f"`{name}` must return (function, arguments) where it takes no arguments itself. Got "
            f"{result!r}."
        )
    return result[0], tuple(result[1])


def _refusal(name: str, requirement: str, error: BaseException) -> ValueError:
    return ValueError(f"`{name}` must be {requirement}. Got {type(error).__name__}: {error}")


def _require_picture(option: str, path: str) -> None:
    """Refuse a file whose ending names no format that Matplotlib writes."""
    from matplotlib.figure import Figure

    require_place(option, path)
    formats = Figure().canvas.get_supported_filetypes()
    if pathlib.Path(path).suffix[1:].lower() not in formats:
        endings = ", .".join(sorted(formats))
        raise ValueError(f"`{option}` must end in one of .{endings}. Got {path!r}.")
