"""Does the report name the line? The cases of `tests/blame_cases.py`: found, wrong line, nothing.

The line that is named first counts, in the report of a check or, if that is silent, in `explain`.
Run it:  python tests/benchmarks/blame.py [NAME ...]"""

import argparse
import pathlib
import re
import sys
import time

import jax
import jax.numpy as jnp

from jaxnn import check_gradient, explain

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import blame_cases  # noqa: E402


def named(text):
    """The lines of `blame_cases.py` in a text."""
    return [int(number) for number in re.findall(r"blame_cases\.py:(\d+)", text)]


def differentiated(args):
    floats = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.inexact)  # noqa: E731
    return tuple(i for i, x in enumerate(args) if any(map(floats, jax.tree.leaves(x))))


def outcome(case):
    """The verdict, what is named first, and how long both took."""
    f, args = case.make()
    began = time.perf_counter()
    report = check_gradient(f, *args, argnums=differentiated(args))
    lines = named(str(report)) or named(str(explain(f, *args)))
    word = "nothing" if not lines else "found" if lines[0] in case.lines else "wrong line"
    return report.verdict, word, lines, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help="some cases alone, each printed")
    names, rows = parser.parse_args().name, {}
    for case in blame_cases.CASES:
        if names and not any(name in (case.name, case.question) for name in names):
            continue
        verdict, word, lines, seconds = outcome(case)
        rows.setdefault(case.question, []).append((word, seconds))
        if names or word != "found":
            print(
                f"{case.question:6} {case.name:45} {verdict:12} {word:10} {case.lines} {lines[:3]}"
            )
    print("question  cases  found  wrong line  nothing  seconds (median)")
    for question, found in rows.items():
        words, seconds = zip(*found, strict=True)
        counts = "  ".join(
            f"{words.count(word):{width}}"
            for word, width in (("found", 5), ("wrong line", 10), ("nothing", 7))
        )
        middle = sorted(seconds)[len(seconds) // 2]
        print(f"{question:8}  {len(words):5}  {counts}  {middle:16.1f}")


if __name__ == "__main__":
    main()
