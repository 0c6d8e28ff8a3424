"""How honest are the bounds? Functions with known derivatives, at random points, in three dtypes.

For each, the check's numerical slope is held against the true one (closed forms and series in
float64, at the point as rounded to the dtype). And of models with many leaves, which are asked
together, each leaf's slope against that by their gradient in float64, which is right to 1e-13.
Run it:  python tests/benchmarks/calibration.py"""

import argparse
import functools
import pathlib
import sys
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import check_gradient

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from cancelling_cases import filled_in  # noqa: E402

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
# Of some functions of `cancelling_cases.py`, the k-th coefficient of the Taylor series.
TAYLOR = {
    "(exp - 1)/x": lambda k: 1 / factorial(k + 1),
    "(exp - 1 - x)/x^2": lambda k: 1 / factorial(k + 2),
    "log(1 + x)/x": lambda k: (-1) ** k / (k + 1),
    "(1 - cos)/x": lambda k: odd(k) / factorial(k + 1),
    "(x - sin)/x^2": lambda k: odd(k) / factorial(k + 2),
    "spherical Bessel j1": lambda k: odd(k) * (k + 1) / factorial(k + 2),
    "(sinh - x)/x^2": lambda k: k % 2 / factorial(k + 2),
    "(atan - x)/x^2": lambda k: -odd(k) / (k + 2),
    "(sqrt(1 + x) - 1)/x": lambda k: choose(0.5, k + 1),
    "(1/sqrt(1 + x) - 1)/x": lambda k: choose(-0.5, k + 1),
}
TERMS = np.arange(60)
DTYPES = ("float64", "float32", "bfloat16")
POINTS = 40


def odd(k):
    """0, 1, 0, -1, 0, 1, ..."""
    return (0, 1, 0, -1)[k % 4]


def choose(n, k):
    """The binomial coefficient of any n."""
    return float(np.prod((n - np.arange(k)) / (1 + np.arange(k))))


def sample(points=POINTS):
    """`(dtype, kind, true error, bound)` of the derivative by one number, relative to its size."""
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            for _, f, derivative, (low, high) in FUNCTIONS:
                for _ in range(points):
                    x = jnp.asarray(rng.uniform(low, high), dtype)
                    yield dtype, "elementary", *error_and_bound(f, derivative, x)
            for name, coefficient in TAYLOR.items():
                coefficients = np.array([coefficient(int(k)) for k in TERMS])
                filled, _ = filled_in(name)
                derivative = functools.partial(series, (TERMS * coefficients)[1:])
                for i in range(points):  # the first at 0, the others of any size
                    x = rng.choice([-1, 1]) * 10 ** rng.uniform(-4, np.log10(0.5)) * (i > 0)
                    x = jnp.asarray(x, dtype)
                    yield dtype, "cancelling", *error_and_bound(filled, derivative, x)


def terms(leaves):
    """A sum of functions, one a leaf, whose sizes are up to a million apart."""
    functions = [f for _, f, *_ in FUNCTIONS]
    pairs = zip(functions, leaves, strict=True)
    return sum(10.0 ** (k / 2) * f(x) for k, (f, x) in enumerate(pairs))


def points_of_terms(rng):
    return [rng.uniform(*interval, k + 1) for k, (*_, interval) in enumerate(FUNCTIONS)]


def network(leaves):
    """The mean square of the output of a network of four layers."""
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    for weight, bias in zip(leaves[::2], leaves[1::2], strict=True):
        x = jnp.tanh(x @ weight + bias)
    return jnp.mean(x**2)


def points_of_network(rng):
    shapes = [(3, 8), (8,), (8, 16), (16,), (16, 8), (8,), (8, 2), (2,)]
    return [rng.normal(size=shape) / shape[0] ** 0.5 for shape in shapes]


def attention(leaves):
    """Softmax attention with normalisation, and the log-likelihood of a class."""
    query, key, value, scale, shift, out = leaves
    x = jnp.sin(jnp.arange(20.0)).reshape(5, 4)
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * scale + shift
    x = jax.nn.softmax((x @ query) @ (x @ key).T) @ (x @ value)
    return -jnp.mean(jax.nn.log_softmax(x @ out)[:, 1])


def points_of_attention(rng):
    return [rng.normal(size=shape) for shape in [(4, 4)] * 3 + [(4,)] * 2 + [(4, 3)]]


MODELS = (
    (terms, points_of_terms),
    (network, points_of_network),
    (attention, points_of_attention),
)


def sample_of_groups(points=20):
    """The same of `(model, leaf, point)`, whose leaves are asked together."""
    rng = np.random.default_rng(1)
    for dtype in DTYPES[:2]:
        with jax.enable_x64(dtype == "float64"):
            for model, draw in MODELS:
                for _ in range(points):
                    leaves = [jnp.asarray(x, dtype) for x in draw(rng)]
                    for leaf in check_gradient(model, leaves).leaves:
                        size = abs(leaf.autodiff)
                        error = abs(leaf.autodiff - leaf.numerical)
                        yield dtype, "in groups", error / size, leaf.bound / size


def series(coefficients, x):
    return np.polynomial.polynomial.polyval(x, coefficients)


def error_and_bound(f, derivative, x):
    """Of the check's slope, which is along a direction of some length: that of the true gradient
    is known, whatever JAX says.
    """
    true = derivative(np.asarray(x, np.float64))
    rounded = np.asarray(true, x.dtype)
    leaf = check_gradient(f, x, gradient=lambda x: rounded).leaves[0]
    length = leaf.autodiff / float(rounded)
    return abs(leaf.numerical / length - true) / abs(true), leaf.bound / abs(length * true)


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = [*sample(), *sample_of_groups()]
    print("functions   triples  error inside the bound  median error  median bound  ratio")
    for group in (*DTYPES, "elementary", "cancelling", "in groups", "all"):
        chosen = [(e, b) for dtype, kind, e, b in rows if group in (dtype, kind, "all")]
        errors, bounds = np.array(chosen).T
        inside = np.mean(errors <= bounds)
        middle, wide = np.median(errors), np.median(bounds)
        print(
            f"{group:10} {len(errors):8} {inside:22.2%} {middle:14.1e} {wide:13.1e} "
            f"{wide / middle:6.0f}"
        )


if __name__ == "__main__":
    main()
