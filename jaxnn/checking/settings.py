"""The input of a check, and the claims that it compares with values."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxnn._arguments import Partition
from jaxnn.checking.packed import on_one_cpu
from jaxnn.numerical.float64 import host

# Relative error, in roundings, that a gradient in its own dtype may have along a random direction
# if no digits are lost. A larger error is examined further; that does not yet make it wrong.
OF_CLAIMS = 16
# The cotangent of the value in float64, and the tangent of an entry. It is not 1, to see rules that
# are not linear; a power of 2 changes no digit of the others.
COTANGENT = 2


class Settings(NamedTuple):
    """How the gradient is computed.

    Attributes:
      by_hand: the user's gradient function; None for JAX's.
      projected: whether the output is projected onto a cotangent.
      seed: seed of the random projections.
      order: n for the gradient of a projection of the gradient of order n - 1.
      forward: whether to use forward mode; None for reverse mode if there is one, else forward.
      further: whether solvers in the function run further than their tolerance requires.
      held: whether the operands of `stop_gradient` keep their values at the point.
      trust: names of functions whose custom rules deliberately differ from their derivatives.
    """

    by_hand: Callable | None = None
    projected: bool = False
    seed: int = 0
    order: int = 1
    forward: bool | None = None
    further: bool = False
    held: bool = False
    trust: tuple[str, ...] = ()


class Point(NamedTuple):
    """Where a function is checked.

    Attributes:
      leaves: the leaves that are differentiated, in their real form.
      data: the other arrays, and the cotangent; None if it is random or missing.
    """

    leaves: list[jax.Array]
    data: tuple[list[jax.Array], PyTree | None]

    @classmethod
    def of(cls, call: Partition, cotangent: PyTree | None = None) -> "Point":
        """The point of a call; on the CPU if the accelerator has no float64."""
        point = cls(call.points, (call.dynamic, cotangent))
        return point if host() is None else jax.device_put(point, host())


class Claims(NamedTuple):
    """The gradient that is checked.

    Attributes:
      value: the function's value in the user's dtypes.
      own: the gradient leaf by leaf, in the user's dtypes.
      wide: the gradient in float64, which is compared with values.
      in_float64: whether the gradient could be evaluated in float64; if not, `wide` is `own`.
      forward: the function's value under differentiation, in float64; NaN if the gradient is
        hand-written.
    """

    value: float
    own: list[Any]
    wide: list[Any]
    in_float64: bool = True
    forward: float = math.nan


def looked_at(x: Any) -> Any:
    """A NumPy array if `x` is on one CPU, else `x` itself."""
    return np.asarray(x) if on_one_cpu(x) else x
