"""What a check is given, and what it compares with values."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxnn.checking.packed import on_one_cpu

# Relative error, in roundings, that a gradient in its own dtype has along a random direction if no
# digits are lost. A larger error is looked into, at a cost; it is not wrong for that.
OF_CLAIMS = 16


class Settings(NamedTuple):
    """How the gradient is computed.

    Attributes:
      by_hand: the user's gradient function; None for JAX's.
      projected: whether the output is projected on a cotangent, and
      random: whether that is drawn at random.
      seed: of random projections.
      order: n for the gradient of a projection of the gradient of order n - 1.
      forward: by forward mode; None for reverse mode where there is one.
      further: whether solvers inside run further than they ask for.
      held: whether what `stop_gradient` stops is held at its value at the point.
      trust: names of functions whose custom rules are meant to differ from them; held too.
    """

    by_hand: Callable | None = None
    projected: bool = False
    random: bool = False
    seed: int = 0
    order: int = 1
    forward: bool | None = None
    further: bool = False
    held: bool = False
    trust: tuple[str, ...] = ()


class Point(NamedTuple):
    """Where a function is checked.

    Attributes:
      leaves: those that are differentiated, in their real form.
      data: the other arrays, and the cotangent or None.
    """

    leaves: list[jax.Array]
    data: tuple[list[jax.Array], PyTree | None]


class Claims(NamedTuple):
    """What is checked.

    Attributes:
      value: of the function, in the user's dtypes.
      own: the gradient leaf by leaf, in the user's dtypes.
      wide: the same evaluated in float64: this is compared with values.
      in_float64: whether it could be; else `wide` is `own`.
      forward: the value of the function where it is differentiated, in float64; NaN if the gradient
        is written by hand.
    """

    value: float
    own: list[Any]
    wide: list[Any]
    in_float64: bool = True
    forward: float = math.nan


def looked_at(x: Any) -> Any:
    """An array as NumPy has it, if it is on one CPU."""
    return np.asarray(x) if on_one_cpu(x) else x


def roundings(point: Point, own: bool) -> list[float]:
    """How far off, relative, a gradient may be for being in its own dtypes, leaf by leaf."""
    return [OF_CLAIMS * float(jnp.finfo(x.dtype).eps) if own else 0.0 for x in point.leaves]
