"""The commands `jaxnn check` and `jaxnn explain`; each returns the exit code."""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from jaxnn._cache import keep_programs
from jaxnn._terminal import takes_codes
from jaxnn.checking import explain as of_checking
from jaxnn.checking.check import MADE, check_gradient
from jaxnn.checking.noting import noting
from jaxnn.checking.page import page
from jaxnn.checking.report import GradientError, GradientReport, painted
from jaxnn.checking.watch import Watcher
from jaxnn.checking.watched import judged
from jaxnn.cli.output import mark, passing, place_of, print_json, require_places, silent
from jaxnn.cli.targets import Target, load, raising, refusal

# Matplotlib is imported only to draw: its import takes as long as all others together.


def check(args: argparse.Namespace) -> int:
    """Compare gradients with values; returns the exit code of the worst verdict."""
    targets, failures = _targets(args)
    codes, told, made = [2] * failures, [], []
    for number, target in enumerate(targets):
        if not args.json and len(targets) > 1:
            print(*([""] if number else []), target.name, sep="\n")
        try:
            reports = _reports(target, args)
        except (ValueError, TypeError, OSError) as error:
            if len(args.targets) == 1 == len(targets):
                raise
            _say(error, f"{target.name}: ")
            codes.append(2)
            continue
        for report in reports:
            codes.append(report.exit_code)
            told.append(report.to_dict() | {"target": target.name})
            if not args.json:
                print(report.text(painted) if takes_codes(sys.stdout) else report)
        made += reports
    mark((one for report in made if not report.ok for one in report.found), args.sarif)
    if made:
        _keep(made, args)
    if args.json:
        print_json(told[0] if len(told) == 1 else {"targets": told}, args.stdout)
    return max(codes, key=(0, 2, 1).index)


def explain(args: argparse.Namespace) -> int:
    """Name the lines where a gradient goes wrong; returns exit code 1 if there are any."""
    targets, failures = _targets(args)
    for target in targets:
        if target.test:
            raise ValueError(
                "`TARGET` must be a function, not a test; for a test, `jaxnn check` names the "
                f"lines. Got the test {target.name!r}."
            )
    found = [(t, _ran(of_checking.explain, t.function, *t.point)) for t in targets]
    codes = [2] * failures + [explanation.exit_code for _, explanation in found]
    mark((one for _, explanation in found for one in explanation.found), args.sarif)
    if args.json:
        told = [explanation.to_dict() for _, explanation in found]
        print_json(told[0] if len(told) == 1 else {"targets": told}, args.stdout)
    else:
        for target, explanation in found:
            print(f"{target.name}\n{explanation}" if len(found) > 1 else explanation)
    return max(codes, key=(0, 2, 1).index)


def _targets(args: argparse.Namespace) -> tuple[list[Target], int]:
    """The targets to check, and how many could not be loaded. A file that itself checks a wrong
    gradient when imported becomes a test.
    """
    require_places(args, "plot", "html", "sarif")
    if getattr(args, "plot", None):
        _require_picture("--plot", args.plot)
    if not args.no_cache:
        keep_programs()
    found, failures = [], 0
    for name in args.targets:
        try:
            found += load(name)
        except GradientError as error:
            found.append(Target(name, raising(error), test=True))
        except (ValueError, TypeError, OSError) as error:
            if len(args.targets) == 1:
                raise
            _say(error)
            failures += 1
    return found, failures


def _say(error: Exception, of: str = "") -> None:
    """Print why one of several targets cannot be checked."""
    message = " ".join([*str(error).split(), *place_of(error)])
    print(f"jaxnn: error: {of}{message}", file=sys.stderr)


def _reports(target: Target, args: argparse.Namespace) -> list[GradientReport]:
    """The report on a function, or the reports that a test makes; if it makes none, those on the
    gradients that it takes, as by `jax.test_util.check_grads`.
    """
    made: list[GradientReport] = []
    token, watcher = MADE.set(made), Watcher()
    try:
        if not target.test:
            point = target.point
            options = {"argnums": tuple(range(len(point))), "order": args.order, "seed": args.seed}
            return [_ran(check_gradient, target.function, *point, **options)]
        with noting(watcher):
            _ran(target.function)
    except GradientError as error:
        if error.report is None:
            raise refusal("TARGET", "a test that passes", error) from error
        return made or [error.report]
    except ValueError as refused:
        # If a test makes its own assertions about reports, its result is that of the reports.
        if isinstance(refused.__cause__, AssertionError):
            if made and not all(r.ok for r in made):
                return made
            if taken := not made and judged(watcher).reports:
                return list(taken)
        raise
    finally:
        MADE.reset(token)
    made = made or list(judged(watcher).reports)
    if not made:
        raise ValueError(
            f"`TARGET` must be a test that checks or takes a gradient. Got {target.name!r}."
        )
    return made


def _keep(reports: list[GradientReport], args: argparse.Namespace) -> None:
    """Draw the evidence of the worst report, and write a page with all reports, if requested."""
    worst = max(reports, key=lambda report: report.verdict.rank)
    say = silent if args.json else print
    if args.plot and worst.leaves:
        import matplotlib

        matplotlib.use("agg")
        worst.plot().figure.savefig(args.plot)
        say(f"plot written to {args.plot}")
    if args.html:
        with passing("drawing the page"):
            pathlib.Path(args.html).write_text(page(*reports), encoding="utf-8")
        say(f"page written to {args.html}")


def _ran(ask: Callable, *args: Any, **options: Any) -> Any:
    """The result of `ask`. Any error in the user's function becomes a ValueError, because even a
    SystemExit with code 0 must not pass for a correct gradient.
    """
    try:
        return ask(*args, **options)
    except (ValueError, TypeError, OSError, GradientError):
        raise
    except (Exception, SystemExit) as error:
        raise refusal("TARGET", "a function that runs", error) from error


def _require_picture(option: str, path: str) -> None:
    """Refuse a file whose extension is not a format that Matplotlib writes."""
    from matplotlib.figure import Figure

    formats = Figure().canvas.get_supported_filetypes()
    if pathlib.Path(path).suffix[1:].lower() not in formats:
        endings = ", .".join(sorted(formats))
        raise ValueError(f"`{option}` must end in one of .{endings}. Got {path!r}.")
