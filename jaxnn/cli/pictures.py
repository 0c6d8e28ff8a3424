"""The commands `jaxnn figures` and `jaxnn tour`; each returns the exit code."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

from jaxnn.cli.output import print_json, silent
from jaxnn.cli.tour import walk

# Matplotlib is imported only to draw: its import takes as long as all others together.


def figures(args: argparse.Namespace) -> int:
    """Draw figures, and print the path of each before it is drawn."""
    say = silent if args.json else functools.partial(print, flush=True)
    paths = _drawn(args.out, say, args.names or None, style=args.style)
    if args.json:
        print_json(paths, args.stdout)
    return 0


def tour(args: argparse.Namespace) -> int:
    """Print the chapter's numbers beside ours, each as soon as it is computed."""
    rows, say = [], silent if args.json else functools.partial(print, flush=True)
    say(_line("in float64", "here", "in the chapter"))
    for row in walk():
        if not rows or row.section != rows[-1].section:
            say(f"\n{row.section}")
        say(_line(f"  {row.quantity}", row.here, row.chapter))
        rows.append(row)
    say(f"\nFigures: {'' if args.figures else 'run jaxnn tour --figures DIR'}")
    paths = _drawn(args.figures, lambda path: say(f"  {path}")) if args.figures else []
    if args.json:
        numbers = [row._asdict() for row in rows]
        told = {"numbers": numbers, "figures": paths} if args.figures else numbers
        print_json(told, args.stdout)
    return 0


# The width of a narrow terminal.
_WIDTH = 79


def _line(quantity: str, here: str, chapter: str) -> str:
    """A row of the table, split over several lines if it is too wide."""
    line = f"{quantity:41} {here:>18} {chapter:>18}"
    if len(line) <= _WIDTH:
        return line
    return f"{quantity}\n{'here':>20}  {here}\n{'in the chapter':>20}  {chapter}"


def _drawn(directory: str, say: Callable, names: Any = None, **options: Any) -> list[str]:
    from jaxnn.figures import draw

    return [str(path) for path in draw(directory, names, on_picture=say, **options)]
