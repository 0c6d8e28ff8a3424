"""Does each constant of the check earn its place? Each is halved and doubled, all else as it is.

For every one is printed: how many verdicts or named entries change, and which, among the project's
cases (`gradient_cases.py`, `test_check.py`), functions whose terms cancel (`cancelling_cases.py`)
and bounds held against known derivatives (`calibration.py`); the median of those bounds, relative
to the usual; and how many steps are asked for, likewise.

Run it:  python tests/benchmarks/ablation.py [NAME ...] [--factors FACTOR ...]
"""

import argparse
import collections
import contextlib
import importlib
import pathlib
import pkgutil
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn.checking
from jaxnn import _programs, check_gradient
from jaxnn.checking import further, report

sys.path += [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
import calibration  # noqa: E402
from cancelling_cases import CANCELLING, filled_in  # noqa: E402
from gradient_cases import CASES  # noqa: E402
from test_check import HARD  # noqa: E402

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(jaxnn.checking.__path__, "jaxnn.checking.")
]


def constants():
    """The numbers that modules of the check are written with, by name, and where each stands."""
    found = {}
    for module in set(MODULES) - {report}:  # the numbers there are columns of its table
        for name, value in vars(module).items():
            if name.lstrip("_").isupper() and isinstance(value, int | float):
                found.setdefault(name, []).append(module)
    return dict(sorted(found.items()))


class Measured(NamedTuple):
    """What the check says of every case, the bounds it gives, and the values it asks for."""

    said: dict[str, str]
    bound: float
    steps: int


def examples():
    """`(name, function, arguments, order)` of everything that is checked, made once."""
    for case in CASES:
        yield case.name, *case.make(), case.order
    for name, (f, x) in HARD.items():
        yield name, f, (jnp.asarray(x),), 1
    for name in CANCELLING:
        f, _ = filled_in(name)
        yield f"{name}, filled in", f, (jnp.array([0.0, 0.5, 1.2]),), 1


def measured(cases):
    """Every case once."""
    said, bounds, steps, off = {}, [], 0, collections.Counter()
    for name, f, args, order in cases:
        try:
            found = check_gradient(f, *args, order=order)
            said[name], steps = verdict(found), steps + found.evaluations
        except Exception as error:  # noqa: BLE001  a ladder may be too short for anything
            said[name] = type(error).__name__
    for dtype, _, error, bound in calibration.sample(points=3):
        bounds.append(bound)
        off[dtype] += int(error > bound)
    said |= {f"bounds that do not hold in {dtype}": str(count) for dtype, count in off.items()}
    return Measured(said, float(np.median(bounds)), steps)


def verdict(report):
    """The verdict, and the first entry that is named."""
    wrong = [
        (leaf.path, e.index) for leaf in report.leaves for e in leaf.entries if e.verdict.wrong
    ]
    path, index = min(wrong, default=("", ""))
    return f"{report.verdict} {path}{index}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="constants; all of them by default")
    parser.add_argument("--factors", nargs="+", type=float, default=[0.5, 2], metavar="FACTOR")
    options = parser.parse_args()
    cases = list(examples())
    usual = measured(cases)
    print(f"{len(usual.said)} cases; JAX {jax.__version__}")
    print(f"{'constant':48} {'change':>6} {'bound':>6} {'steps':>6}")
    for name, modules in constants().items():
        if options.names and name not in options.names:
            continue
        value = getattr(modules[0], name)
        for factor in options.factors:
            other = type(value)(value * factor)
            what = f"{name} {value:g} -> {other:g}"
            with replaced(name, modules, other):
                try:
                    now = measured(cases)
                except ValueError as error:  # the two halves of the ladder have to meet
                    print(f"{what:48} does not run: {error}", flush=True)
                    continue
            changed = [case for case in usual.said if now.said[case] != usual.said[case]]
            bound, steps = now.bound / usual.bound, now.steps / usual.steps
            print(f"{what:48} {len(changed):6} {bound:6.2f} {steps:6.2f}", flush=True)
            for case in changed:
                print(f"    {case}: {usual.said[case]} -> {now.said[case]}")


@contextlib.contextmanager
def replaced(name, modules, other):
    """Another number under a name, in every module that knows it."""
    value = getattr(modules[0], name)
    for module in modules:
        setattr(module, name, other)
    if further in modules:  # its constants are compiled in
        _programs._kept.clear()
    try:
        yield
    finally:
        for module in modules:
            setattr(module, name, value)
        if further in modules:
            _programs._kept.clear()


if __name__ == "__main__":
    main()
