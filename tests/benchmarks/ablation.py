"""Does each constant of the check earn its place? Each is halved and doubled, all else as it is.

For every one, what changes is printed: verdicts on the project's cases (`gradient_cases.py`,
`test_check.py`), also on functions whose terms cancel (`test_slope.py`), and how many bounds no
longer hold the true error (`calibration.py`).

Run it:  python tests/benchmarks/ablation.py [NAME ...]"""

import argparse
import importlib
import pathlib
import pkgutil
import sys

import jax
import jax.numpy as jnp

import jaxnn.checking
from jaxnn import _programs, check_gradient
from jaxnn.checking import solvers

sys.path += [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
import calibration  # noqa: E402
from gradient_cases import CASES  # noqa: E402
from test_check import HARD  # noqa: E402
from test_slope import CANCELLING, filled_in  # noqa: E402

MODULES = [
    importlib.import_module(f"jaxnn.checking.{module.name}")
    for module in pkgutil.iter_modules(jaxnn.checking.__path__)
]


def constants():
    """The numbers that modules of the check are written with, by name, and where each stands."""
    found = {}
    for module in MODULES:
        for name, value in vars(module).items():
            if name.lstrip("_").isupper() and isinstance(value, int | float):
                found.setdefault(name, []).append(module)
    return found


def examples():
    """`(name, function, arguments, order)` of everything that is checked, made once."""
    for case in CASES:
        yield case.name, *case.make(), case.order
    for name, (f, x) in HARD.items():
        yield name, f, (jnp.asarray(x),), 1
    for name in CANCELLING:
        f, _ = filled_in(name)
        yield f"{name}, filled in", f, (jnp.array([0.0, 0.5, 1.2]),), 1


def verdicts(cases):
    """What the check says of every case: verdict, and the entries that it names."""
    said = {}
    for name, f, args, order in cases:
        try:
            report = check_gradient(f, *args, order=order)
        except Exception as error:  # noqa: BLE001  a ladder may be too short for anything
            said[name] = type(error).__name__
            continue
        places = [(leaf.path, e.index) for leaf in report.leaves for e in leaf.entries]
        wrong = [e.verdict.wrong for leaf in report.leaves for e in leaf.entries]
        named = sorted(p for p, bad in zip(places, wrong, strict=True) if bad)[:1]
        said[name] = f"{report.verdict} {named[0][0]}{named[0][1]}" if named else report.verdict
    for dtype, _, error, bound in calibration.sample(points=3):
        said[f"bounds in {dtype}"] = said.get(f"bounds in {dtype}", 0) + int(error > bound)
    return said


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="constants; all of them by default")
    chosen = parser.parse_args().names
    cases, everywhere = list(examples()), constants()
    usual = verdicts(cases)
    print(f"{len(usual)} cases; JAX {jax.__version__}")
    for name, modules in everywhere.items():
        if chosen and name not in chosen:
            continue
        value = getattr(modules[0], name)
        for factor in (0.5, 2):
            other = type(value)(value * factor)
            for module in modules:
                setattr(module, name, other)
            if solvers in modules:  # its constants are compiled in
                _programs._kept.clear()
            try:
                said = verdicts(cases)
            except ValueError as error:  # the two halves of the ladder have to meet
                print(f"{name} {value:g} -> {other:g}: does not run: {error}", flush=True)
                continue
            changed = [
                f"{case}: {usual[case]} -> {said[case]}"
                for case in usual
                if said[case] != usual[case]
            ]
            print(f"{name} {value:g} -> {other:g}: {len(changed)} change", flush=True)
            for line in changed:
                print(f"    {line}")
        for module in modules:
            setattr(module, name, value)
        if solvers in modules:
            _programs._kept.clear()


if __name__ == "__main__":
    main()
