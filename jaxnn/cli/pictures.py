"""What `jaxnn figures` and `jaxnn tour` do with their arguments; each returns the exit code."""

import argparse

from jaxnn.cli.output import print_json
from jaxnn.cli.tour import Row, walk

# Matplotlib, which takes as long to import as all the rest, is imported where something is drawn.


def figures(args: argparse.Namespace) -> int:
    """Draw every picture, and say where."""
    paths = _drawn(args.out)
    if args.json:
        print_json(paths, args.stdout)
    else:
        print(*paths, sep="\n")
    return 0


def tour(args: argparse.Namespace) -> int:
    """Print the chapter's numbers beside ours."""
    rows = list(walk())
    paths = _drawn(args.figures) if args.figures else []
    if args.json:
        numbers = [row._asdict() for row in rows]
        print_json({"numbers": numbers, "figures": paths} if args.figures else numbers, args.stdout)
        return 0
    _print_table(rows)
    if paths:
        print("\nThe pictures:", *paths, sep="\n  ")
    else:
        print("\nThe pictures: jaxnn tour --figures DIR draws them")
    return 0


def _print_table(rows: list[Row]) -> None:
    columns = [row[1:] for row in rows]
    what, here, there = (max(map(len, column)) for column in zip(*columns, strict=True))
    print(f"{'':{what + 2}}  {'here':>{here}}  {'in the chapter':>{there}}")
    section = None
    for row in rows:
        if row.section != section:
            section = row.section
            print(f"\n{section}")
        print(f"  {row.quantity:{what}}  {row.here:>{here}}  {row.chapter:>{there}}")


def _drawn(directory: str) -> list[str]:
    from jaxnn.figures import draw

    return [str(path) for path in draw(directory)]
