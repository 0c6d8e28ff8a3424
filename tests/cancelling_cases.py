"""Functions whose terms cancel near 0, for the tests and the benchmarks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Differences of nearly equal terms near 0, where the function is filled in by hand, as people do:
# `where(x == 0, value, f(where(x == 0, 1, x)))`. JAX's gradient at 0 is 0; here is the true one.
CANCELLING = {
    "spherical Bessel j1": (lambda s: jnp.sin(s) / s**2 - jnp.cos(s) / s, 0, 1 / 3),
    "1/tanh - 1/x": (lambda s: 1 / jnp.tanh(s) - 1 / s, 0, 1 / 3),
    "derivative of sinc": (lambda s: jnp.cos(s) / s - jnp.sin(s) / s**2, 0, -1 / 3),
    "(1 - cos)/x": (lambda s: (1 - jnp.cos(s)) / s, 0, 1 / 2),
    "(1 - cos)/x^2": (lambda s: (1 - jnp.cos(s)) / s**2, 1 / 2, 0),
    "(exp - 1)/x": (lambda s: (jnp.exp(s) - 1) / s, 1, 1 / 2),
    "(exp - 1 - x)/x^2": (lambda s: (jnp.exp(s) - 1 - s) / s**2, 1 / 2, 1 / 6),
    "log(1 + x)/x": (lambda s: jnp.log(1 + s) / s, 1, -1 / 2),
    "(x - log(1 + x))/x": (lambda s: (s - jnp.log(1 + s)) / s, 0, 1 / 2),
    "(x - sin)/x^2": (lambda s: (s - jnp.sin(s)) / s**2, 0, 1 / 6),
    "(tan - x)/x^2": (lambda s: (jnp.tan(s) - s) / s**2, 0, 1 / 3),
    "(tanh - x)/x^2": (lambda s: (jnp.tanh(s) - s) / s**2, 0, -1 / 3),
    "(atan - x)/x^2": (lambda s: (jnp.arctan(s) - s) / s**2, 0, -1 / 3),
    "(asinh - x)/x^2": (lambda s: (jnp.arcsinh(s) - s) / s**2, 0, -1 / 6),
    "(sinh - x)/x^2": (lambda s: (jnp.sinh(s) - s) / s**2, 0, 1 / 6),
    "(cosh - 1)/x": (lambda s: (jnp.cosh(s) - 1) / s, 0, 1 / 2),
    "1/x - 1/sin": (lambda s: 1 / s - 1 / jnp.sin(s), 0, -1 / 6),
    "1/sin^2 - 1/x^2": (lambda s: 1 / jnp.sin(s) ** 2 - 1 / s**2, 1 / 3, 0),
    "1/log(1 + x) - 1/x": (lambda s: 1 / jnp.log(1 + s) - 1 / s, 1 / 2, -1 / 12),
    "1/(exp - 1) - 1/x": (lambda s: 1 / (jnp.exp(s) - 1) - 1 / s, -1 / 2, 1 / 12),
    "(sqrt(1 + x) - 1)/x": (lambda s: (jnp.sqrt(1 + s) - 1) / s, 1 / 2, -1 / 8),
    "(1/sqrt(1 + x) - 1)/x": (lambda s: (1 / jnp.sqrt(1 + s) - 1) / s, -1 / 2, 3 / 8),
    "(exp - exp(-x) - 2x)/x^2": (lambda s: (jnp.exp(s) - jnp.exp(-s) - 2 * s) / s**2, 0, 1 / 3),
}


@functools.cache
def filled_in(name):
    """A function of an array, and its true gradient."""
    f, value, slope = CANCELLING[name]

    def filled(x):
        return jnp.sum(jnp.where(x == 0, value, f(jnp.where(x == 0, 1, x))))

    def gradient(x):
        with jax.enable_x64(True):
            wide = jnp.where(x == 0, 1, x.astype(jnp.float64))
            true = jnp.where(x == 0, slope, jax.vmap(jax.grad(f))(wide))
            return np.asarray(true, x.dtype)

    return filled, gradient
