"""What `jaxnn check`, `jaxnn figures` and `jaxnn tour` do with their arguments; each returns the exit code."""

import importlib
import inspect
import json
import math
import os
import pathlib
import re
import runpy
import sys
from typing import Any

from jaxnn.checking.check import check_gradient
from jaxnn.tour import walk

# Matplotlib, which takes as long to import as all the rest, is imported where something is drawn.


def figures(args) -> int:
    """Draw every picture, and say where."""
    paths = _drawn(args.out)
    if args.json:
        print_json(paths)
    else:
        print(*paths, sep="\n")
    return 0


def tour(args) -> int:
    """Print the chapter's numbers beside ours."""
    rows = list(walk())
    paths = _drawn(args.figures) if args.figures else []
    if args.json:
        numbers = [row._asdict() for row in rows]
        print_json({"numbers": numbers, "figures": paths} if args.figures else numbers)
        return 0
    what, here, there = (max(len(row[k]) for row in rows) for k in (1, 2, 3))
    print(f"{'':{what + 2}}  {'here':>{here}}  {'in the chapter':>{there}}")
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            print(f"\n{section}")
        print(f"  {row.quantity:{what}}  {row.here:>{here}}  {row.chapter:>{there}}")
    print("\nThe pictures:", *paths or ["jaxnn tour --figures DIR draws them"], sep="\n  " if paths else " ")
    return 0


def _drawn(directory):
    from jaxnn.figures import draw

    return [str(path) for path in draw(directory)]


def check(args) -> int:
    """Hold a gradient against values; the exit code says whether it is right, wrong or unresolved."""
    if args.plot:
        _require_picture("--plot", args.plot)
    f, point = _load(args.target)
    try:
        report = check_gradient(f, *point, argnums=tuple(range(len(point))), order=args.order, seed=args.seed)
    except (ValueError, TypeError, OSError):
        raise
    except (Exception, SystemExit) as error:  # a function may raise anything, and end with an exit code that says "right"
        raise ValueError(f"`TARGET` must be a function that runs. Got {type(error).__name__}: {error}") from error
    if args.plot and report.leaves:
        import matplotlib

        matplotlib.use("agg")
        report.plot().figure.savefig(args.plot)
    if args.json:
        print_json(report.to_dict())
    else:
        print(_coloured(str(report)) if _colours() else report)
        if args.plot and report.leaves:
            print(f"evidence drawn in {args.plot}")
    return 0 if report.ok else 2 if report.verdict == "unresolved" else 1


def _colours():
    """Whether standard output is a terminal whose user has nothing against colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _coloured(report):
    """A report with its verdicts in green, yellow or red."""
    colours = {"agrees": 32, "kink": 33, "unresolved": 33, "differs": 31, "not finite": 31, "not deterministic": 31}
    verdict = re.compile(rf"\b({'|'.join(colours)})\b")
    return verdict.sub(lambda found: f"\x1b[{colours[found[0]]}m{found[0]}\x1b[0m", report)


def _load(target):
    """The function that a target names, and the arguments to check it at."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"`TARGET` must be FILE.py:NAME or MODULE:NAME. Got {target!r}.")
    try:
        names = runpy.run_path(place, run_name="jaxnn_check") if place.endswith(".py") else vars(importlib.import_module(place))
    except (Exception, SystemExit) as error:  # noqa: BLE001  a file that fails to run may raise anything; its own words are shown
        raise ValueError(f"`TARGET` must be a file or module that runs. Got {type(error).__name__}: {error}") from error
    if not callable(names.get(name)):
        what = f"which is {type(names[name]).__name__}" if name in names else "which it does not define"
        raise ValueError(f"`TARGET` must name a function of {place}. Got {name!r}, {what}.")
    parameters = inspect.signature(names[name]).parameters.values()
    if not parameters:
        try:
            result = names[name]()
        except (Exception, SystemExit) as error:  # noqa: BLE001
            raise ValueError(f"`{name}` must be a function that runs. Got {type(error).__name__}: {error}") from error
        if not (isinstance(result, tuple) and len(result) == 2 and callable(result[0]) and isinstance(result[1], tuple | list)):
            raise ValueError(f"`{name}` must return (function, arguments) where it takes no arguments itself. Got {result!r}.")
        return result[0], tuple(result[1])
    if any(p.default is inspect.Parameter.empty for p in parameters):
        missing = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        raise ValueError(f"`{name}` must have a default for each argument. Got none for {', '.join(missing)}.")
    return names[name], tuple(p.default for p in parameters)


def print_json(value: Any) -> None:
    """One line of JSON."""

    def finite(x):
        if isinstance(x, float) and not math.isfinite(x):
            return None  # JSON has no NaN; a reader of strict JSON would refuse the file
        if isinstance(x, dict):
            return {k: finite(v) for k, v in x.items()}
        return [finite(v) for v in x] if isinstance(x, list | tuple) else x

    print(json.dumps(finite(value)))


def require_place(option: str, path: str, made: str | None = None) -> None:
    """Refuse a file that could not be written, before the work that it is to hold."""
    place = pathlib.Path(path)
    if (
        "\0" in path
        or place.is_dir()
        or not (place.parent.is_dir() or (made and pathlib.Path(made).is_relative_to(place.parent)))
    ):
        raise ValueError(f"`{option}` must be a file in a directory that is there. Got {path!r}.")


def _require_picture(option, path):
    """Refuse a file whose ending names no format that Matplotlib writes."""
    from matplotlib.figure import Figure

    require_place(option, path)
    formats = Figure().canvas.get_supported_filetypes()
    if pathlib.Path(path).suffix[1:].lower() not in formats:
        raise ValueError(f"`{option}` must end in one of .{', .'.join(sorted(formats))}. Got {path!r}.")
