"""How honest are the bounds? Functions with known derivatives, at random points, in three dtypes.

For each, the check's numerical slope is held against the true one (closed forms in float64, at the
point as rounded to the dtype). Run it:  python tests/benchmarks/calibration.py"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import check_gradient
from jaxnn.numerical.float64 import wide_arithmetic, widen

# name, function of an array, its derivative in NumPy, range of points
FUNCTIONS = [
    ("sin x", lambda x: jnp.sum(jnp.sin(x)), np.cos, (-3, 3)),
    ("exp x", lambda x: jnp.sum(jnp.exp(x)), np.exp, (-3, 3)),
    ("log x", lambda x: jnp.sum(jnp.log(x)), lambda x: 1 / x, (0.01, 3)),
    ("sqrt x", lambda x: jnp.sum(jnp.sqrt(x)), lambda x: 0.5 / np.sqrt(x), (0.01, 3)),
    ("tanh 3x", lambda x: jnp.sum(jnp.tanh(3 * x)), lambda x: 3 / np.cosh(3 * x) ** 2, (-1, 1)),
    ("x^5 - 3x", lambda x: jnp.sum(x**5 - 3 * x), lambda x: 5 * x**4 - 3, (-2, 2)),
    ("1/(1+x^2)", lambda x: jnp.sum(1 / (1 + x**2)), lambda x: -2 * x / (1 + x**2) ** 2, (-3, 3)),
    ("sin 64x", lambda x: jnp.sum(jnp.sin(64 * x)), lambda x: 64 * np.cos(64 * x), (-3, 3)),
    ("1e6 + x^2", lambda x: 1e6 + jnp.sum(x**2), lambda x: 2 * x, (-3, 3)),
    ("softplus", lambda x: jnp.sum(jax.nn.softplus(x)), lambda x: 1 / (1 + np.exp(-x)), (-5, 5)),
    (
        "sigmoid",
        lambda x: jnp.sum(jax.nn.sigmoid(x)),
        lambda x: 0.25 / np.cosh(x / 2) ** 2,
        (-5, 5),
    ),
    (
        "x cos x^2",
        lambda x: jnp.sum(x * jnp.cos(x**2)),
        lambda x: np.cos(x**2) - 2 * x**2 * np.sin(x**2),
        (-2, 2),
    ),
]
DTYPES = ("float64", "float32", "bfloat16")
POINTS = 40


def sample():
    """`(dtype, true error, bound)` of the derivative by one number, relative to the derivative's
    size.
    """
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            for _, f, derivative, (low, high) in FUNCTIONS:
                for _ in range(POINTS):
                    x = jnp.asarray(rng.uniform(low, high), dtype)
                    leaf = check_gradient(f, x).leaves[0]
                    exact = np.asarray(x, np.float64)
                    # The slope is along a direction of which the claim is the gradient times the
                    # length.
                    length = leaf.autodiff / widened_gradient(f, x)
                    true = float(derivative(exact)) * length
                    yield dtype, abs(leaf.numerical - true) / abs(true), leaf.bound / abs(true)


def widened_gradient(f, x):
    with wide_arithmetic(jnp.float64):
        return float(_program(f, x.shape, x.dtype)(x))


@functools.cache
def _program(f, shape, dtype):
    return jax.jit(widen(jax.grad(f), (jax.ShapeDtypeStruct(shape, dtype),), jnp.float64).call)


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = list(sample())
    print("dtype      triples  error inside the bound  median error  median bound  ratio")
    for dtype in (*DTYPES, "all"):
        errors, bounds = np.array([(e, b) for d, e, b in rows if dtype in (d, "all")]).T
        inside = np.mean(errors <= bounds)
        middle, wide = np.median(errors), np.median(bounds)
        print(
            f"{dtype:9} {len(errors):8} {inside:22.2%} {middle:14.1e} {wide:13.1e} "
            f"{wide / middle:6.0f}"
        )


if __name__ == "__main__":
    main()
