"""Functions to descend on: the chapter's functions of one and two variables, and harder ones with
saddle points, plateaus, local minima or curved valleys.

Each takes an array whose last axis is the variables and reduces that axis, so one call evaluates a
whole grid of points. `parabola` is elementwise.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnn._validate import describe


def parabola(x: float | Float[Array, "*points"]) -> float | Float[Array, "*points"]:
    """The chapter's function of one variable, 0.01 x^2 + 0.1 x, with derivative 0.02 x + 0.1.

    Source:
      the chapter, 4.3.2.

    Example:
      >>> parabola(5.0)
      0.75
    """
    return 0.01 * x**2 + 0.1 * x


def bowl(x: Float[Array, "*points variables"]) -> Float[Array, "*points"]:
    """The chapter's function of two variables, x0^2 + x1^2, for any number of variables; its
    gradient is 2 x.

    Source:
      the chapter, 4.3.3.

    Example:
      >>> bowl(jnp.array([3.0, 4.0]))
      Array(25., dtype=float32)
    """
    _require_variables(x, 1)
    return jnp.sum(x**2, axis=-1)


def saddle(x: Float[Array, "*points 2"]) -> Float[Array, "*points"]:
    """x0^2 - x1^2 + x1^4 / 4: a saddle point at the origin, and minima at (0, +-sqrt 2).

    Example:
      >>> saddle(jnp.array([[0.0, 0.0], [0.0, 2.0]]))
      Array([0., 0.], dtype=float32)
    """
    _require_variables(x, 2, 2)
    return x[..., 0] ** 2 - x[..., 1] ** 2 + x[..., 1] ** 4 / 4


def plateau(x: Float[Array, "*points variables"]) -> Float[Array, "*points"]:
    """1 - exp(-|x|^2 / 2): one minimum at the origin, and almost no slope a few units away.

    Example:
      >>> plateau(jnp.array([[0.0, 0.0], [9.0, 9.0]]))
      Array([0., 1.], dtype=float32)
    """
    _require_variables(x, 1)
    return 1 - jnp.exp(-jnp.sum(x**2, axis=-1) / 2)


def two_valleys(x: Float[Array, "*points 2"]) -> Float[Array, "*points"]:
    """(x0^2 - 1)^2 + 0.3 x0 + x1^2: a global minimum near (-1.04, 0) and a local one near (0.96,
    0).

    Example:
      >>> two_valleys(jnp.array([[-1.0, 0.0], [1.0, 0.0]]))
      Array([-0.3,  0.3], dtype=float32)
    """
    _require_variables(x, 2, 2)
    return (x[..., 0] ** 2 - 1) ** 2 + 0.3 * x[..., 0] + x[..., 1] ** 2


def rosenbrock(x: Float[Array, "*points variables"]) -> Float[Array, "*points"]:
    """sum 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2: a curved, nearly flat valley with its minimum at
    (1, ..., 1).

    Source:
      Rosenbrock, Computer Journal 3 (1960) 175.

    Example:
      >>> rosenbrock(jnp.array([1.0, 1.0]))
      Array(0., dtype=float32)
    """
    _require_variables(x, 2)
    return jnp.sum(100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2, axis=-1)


def _require_variables(x: Any, least: int, most: int | None = None) -> None:
    """Refuse too few or too many variables, since indexing would silently ignore or clamp them."""
    variables = (getattr(x, "shape", None) or (0,))[-1]
    if variables < least or (most is not None and variables > most):
        wanted = f"{least} variables" if most else f"at least {least} variable{'s' * (least > 1)}"
        raise ValueError(f"`x` must be an array with {wanted} on its last axis. Got {describe(x)}.")
