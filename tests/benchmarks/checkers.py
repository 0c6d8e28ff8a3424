"""What gradient checkers say of the project's own cases (`tests/gradient_cases.py`): ours beside
four others.

Run it:  python tests/benchmarks/checkers.py
"""

import argparse
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from jaxnn import check_gradient

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from gradient_cases import CASES  # noqa: E402

LARGEST = 5_000  # entries; checkers that go entry by entry give no verdict on more


def ours(f, args, order):
    report = check_gradient(f, *args, order=order)
    places = [
        (leaf.path, e.index)
        for leaf in report.leaves
        for e in leaf.entries
        if e.verdict in ("differs", "not finite")
    ]
    verdict = {"agrees": True, "kink": True, "unresolved": None}.get(report.verdict, False)
    return verdict, places[:1]


def jax_check_grads(f, args, order):
    try:
        check_grads(f, args, order=order, modes=("rev",))
    except AssertionError as error:
        if "Not equal" not in str(error):
            raise
        return False, []
    return True, []


def in_float64(f, args):
    """f of one float64 vector, and the point; its other leaves stay as they are."""
    leaves, tree = jax.tree.flatten(args)
    moving = [hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    vector, restore = ravel_pytree(
        [jnp.asarray(x, jnp.float64) for x, m in zip(leaves, moving, strict=True) if m]
    )

    def g(v):
        found = iter(restore(v))
        return f(
            *jax.tree.unflatten(
                tree, [next(found) if m else x for x, m in zip(leaves, moving, strict=True)]
            )
        )

    if vector.size > LARGEST:
        raise OverflowError("too many entries")
    return g, vector


def scipy_check_grad(f, args, order):
    with jax.enable_x64(True):
        g, x = in_float64(f, args)
        value, gradient = jax.jit(g), jax.jit(jax.grad(g))
        error = scipy.optimize.check_grad(
            lambda v: float(value(v)), lambda v: np.asarray(gradient(v)), np.asarray(x)
        )
    return bool(error < 1e-4), []


def torch_rule(f, args, order):
    """Every entry by central differences: eps 1e-6, |a - n| <= 1e-5 + 1e-3 |n|."""
    with jax.enable_x64(True):
        g, x = in_float64(f, args)
        value, claims = jax.jit(g), np.asarray(jax.jit(jax.grad(g))(x))
        for i, claim in enumerate(claims):
            step = jnp.zeros_like(x).at[i].set(1e-6)
            numerical = float(value(x + step) - value(x - step)) / 2e-6
            if not abs(claim - numerical) <= 1e-5 + 1e-3 * abs(numerical):
                return False, [i]
    return True, []


def torch_fast_rule(f, args, order):
    """One random direction by central differences, with the same tolerances."""
    with jax.enable_x64(True):
        g, x = in_float64(f, args)
        u = np.random.default_rng(0).uniform(size=x.shape)
        u = jnp.asarray(u / np.linalg.norm(u))
        value = jax.jit(g)
        numerical = float(value(x + 1e-6 * u) - value(x - 1e-6 * u)) / 2e-6
        claim = float(jax.jit(jax.grad(g))(x) @ u)
        return bool(abs(claim - numerical) <= 1e-5 * float(u.sum()) + 1e-3 * abs(numerical)), []


CHECKERS = {
    "jaxnn.check_gradient": ours,
    "jax.test_util.check_grads": jax_check_grads,
    "scipy.optimize.check_grad, float64": scipy_check_grad,
    "PyTorch gradcheck's rule, float64": torch_rule,
    "PyTorch gradcheck's fast rule, float64": torch_fast_rule,
}


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    wrong = sum(bool(case.wrong) for case in CASES)
    print(
        f"{len(CASES) - wrong} right and {wrong} wrong gradients; JAX {jax.__version__} on "
        f"{jax.devices()[0].device_kind}\n"
    )
    print(f"{'':40} {'right ones':^30}  {'wrong ones':^32}")
    print(
        f"{'checker':40} passed  false alarm  no verdict   caught  missed  no verdict  located  "
        f"median s"
    )
    for name, checker in CHECKERS.items():
        counts, located, seconds = {}, 0, []
        for case in CASES:
            f, args = case.make()
            start = time.perf_counter()
            try:
                verdict, places = checker(f, args, case.order)
            except Exception:  # noqa: BLE001  a checker that breaks down gives no verdict
                verdict, places = None, []
            seconds.append(time.perf_counter() - start)
            counts[bool(case.wrong), verdict] = counts.get((bool(case.wrong), verdict), 0) + 1
            located += bool(case.wrong and verdict is False and places)
        right = [counts.get((False, v), 0) for v in (True, False, None)]
        bad = [counts.get((True, v), 0) for v in (False, True, None)]
        print(
            f"{name:40} {right[0]:6} {right[1]:12} {right[2]:11}   {bad[0]:6} {bad[1]:7} "
            f"{bad[2]:11} {located:8} "
            f"{statistics.median(seconds):9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
