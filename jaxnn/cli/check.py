"""What `jaxnn check` and `jaxnn explain` do with their arguments; they return the exit code."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from jaxnn.checking import explain as of_checking
from jaxnn.checking.check import check_gradient
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.report import GradientError, GradientReport
from jaxnn.cli.output import print_json, require_place
from jaxnn.cli.targets import Target, load, refusal

# Matplotlib, which takes as long to import as all the rest, is imported where something is drawn.

# Of a terminal, by the exit code that a verdict gives: green, red, yellow.
_COLOURS = {0: 32, 1: 31, 2: 33}


def check(args: argparse.Namespace) -> int:
    """Hold gradients against values; the exit code says whether they are right, wrong or unknown:
    that of the worst of them.
    """
    if args.plot:
        _require_picture("--plot", args.plot)
    if args.html:
        require_place("--html", args.html)
    codes, told, targets = [], [], _targets(args)
    for target in targets:
        if not args.json and len(targets) > 1:
            print(*([""] if codes else []), target.name, sep="\n")
        report = _report(target, args)
        codes.append(0 if report is None else report.exit_code)
        if args.json:
            told.append(_as_json(target, report))
        elif report is None:
            print(f"{target.name}: passed")
        else:
            print(report.text(_paint) if _has_colours() else report)
        if report is not None:
            _keep(report, args)
    if args.json:
        print_json(told[0] if len(told) == 1 else {"targets": told}, args.stdout)
    return max(codes, key=(0, 2, 1).index)


def explain(args: argparse.Namespace) -> int:
    """Name the lines where a gradient goes bad; the exit code says whether there are any."""
    found = [
        (target, _ran(of_checking.explain, target.function, *target.point))
        for target in _targets(args)
    ]
    if args.json:
        told = [explanation.to_dict() for _, explanation in found]
        print_json(told[0] if len(told) == 1 else {"targets": told}, args.stdout)
    else:
        for target, explanation in found:
            print(f"{target.name}\n{explanation}" if len(found) > 1 else explanation)
    return max((explanation.exit_code for _, explanation in found), key=(0, 2, 1).index)


def _targets(args: argparse.Namespace) -> list[Target]:
    """What is to be checked; a target may itself hold a gradient against values."""
    found = []
    for name in args.targets:
        try:
            found += load(name)
        except GradientError as error:
            found.append(Target(name, _raising(error), test=True))
    return found


def _raising(error: GradientError) -> Callable:
    def again():
        raise error

    return again


def _report(target: Target, args: argparse.Namespace) -> GradientReport | None:
    """What a check says; None for a test that passed."""
    try:
        if target.test:
            _ran(target.function)
            return None
        point = target.point
        options = {"argnums": tuple(range(len(point))), "order": args.order, "seed": args.seed}
        return _ran(check_gradient, target.function, *point, **options)
    except GradientError as error:
        if error.report is None:
            raise refusal("TARGET", "a test that passes", error) from error
        return error.report


def _as_json(target: Target, report: GradientReport | None) -> dict[str, Any]:
    if report is None:
        return {"ok": True, "target": target.name}
    return report.to_dict() | {"target": target.name}


def _keep(report: GradientReport, args: argparse.Namespace) -> None:
    """Draw and write what was asked for."""
    if args.plot and report.leaves:
        import matplotlib

        matplotlib.use("agg")
        report.plot().figure.savefig(args.plot)
    if args.html:
        report.save(args.html)
    if not args.json:
        if args.plot and report.leaves:
            print(f"evidence drawn in {args.plot}")
        if args.html:
            print(f"page written to {args.html}")


def _ran(ask: Callable, *args: Any, **options: Any) -> Any:
    """What is asked of a user's function, whose exit code must not say "right"."""
    try:
        return ask(*args, **options)
    except (ValueError, TypeError, OSError, GradientError):
        raise
    except (Exception, SystemExit) as error:
        raise refusal("TARGET", "a function that runs", error) from error


def _has_colours() -> bool:
    """Whether standard output is a terminal whose user has nothing against colours."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return sys.stdout.isatty() and wanted  # https://no-color.org


def _paint(verdict: Verdict, text: str) -> str:
    colour = 33 if verdict in (Verdict.KINK, Verdict.IMPRECISE) else _COLOURS[verdict.exit_code]
    return f"\x1b[{colour}m{text}\x1b[0m"


def _require_picture(option: str, path: str) -> None:
    """Refuse a file whose ending names no format that Matplotlib writes."""
    from matplotlib.figure import Figure

    require_place(option, path)
    formats = Figure().canvas.get_supported_filetypes()
    if pathlib.Path(path).suffix[1:].lower() not in formats:
        endings = ", .".join(sorted(formats))
        raise ValueError(f"`{option}` must end in one of .{endings}. Got {path!r}.")
