"""Checks functions that JAX cannot trace, by calling them once per step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._arguments import Partition
from jaxnn._validate import describe, reason_of
from jaxnn.checking.by_hand import gradient_by_hand
from jaxnn.checking.line import Line
from jaxnn.checking.scalar import PROJECTED, is_real_scalar, scalar_of
from jaxnn.checking.settings import Claims, Point, Settings, looked_at
from jaxnn.checking.tape.layout import is_inexact
from jaxnn.numerical.float64 import wide_arithmetic, wide_dtype, widen_leaf

# A note on each such function.
UNTRACED = "JAX cannot trace the function, so it was called once for each step"


@dataclasses.dataclass(frozen=True)
class Untraced:
    """A function that JAX cannot trace, called once per step.

    Attributes:
      value: the function.
      gradient: computes value and gradient in the user's dtypes.
    """

    value: Callable
    gradient: Callable
    narrow: frozenset[tuple[str, Any]] = frozenset()
    rounding: float = 0.0
    consts: tuple[Any, ...] = ()
    deterministic: bool = True
    program: None = None
    notes: tuple[str, ...] = (UNTRACED,)

    def line(self, point: Point, watch: Callable[[Line], None], own: bool) -> Line:
        """The function along lines: on float64 leaves if it takes them, else in its own dtypes."""
        leaves, kind = self._accepted(point, wide_dtype())
        origin = [np.asarray(x, np.float64) for x in leaves]

        def values(moves, steps):
            moves = [np.asarray(v) for v in moves]

            def at(t):
                with wide_arithmetic(kind):
                    triples = zip(origin, moves, leaves, strict=True)
                    moved = [jnp.asarray(x + t * v, leaf.dtype) for x, v, leaf in triples]
                    return float(self.value(moved, point.data))

            return np.array([at(t) for t in steps])

        epsilon = max(float(jnp.finfo(x.dtype).eps) for x in leaves)
        return Line(values, point.leaves, wide_dtype(), epsilon, own=True, watch=watch)

    def claims(self, point: Point) -> Claims:
        """Value and gradient at a point, in the user's dtypes."""
        value, gradient = self.gradient(point.leaves, point.data)
        own = [looked_at(g) for g in gradient]
        return Claims(float(value), own, own, False)

    def reference(self, point: Point) -> None:
        """None: JAX cannot differentiate values that it cannot trace."""
        return None

    def _accepted(self, point: Point, dtype: Any) -> tuple[Sequence[Any], Any]:
        """The leaves that the function accepts, widened if possible, and the wide dtype or None."""
        with wide_arithmetic(dtype):
            leaves = [widen_leaf(x, dtype) for x in point.leaves]
        try:
            with wide_arithmetic(dtype):
                out = np.asarray(self.value(leaves, point.data))
        except (TypeError, ValueError):
            return point.leaves, None
        wide = out.dtype == np.float64 and bool(np.isfinite(out))
        return (leaves, dtype) if wide else (point.leaves, None)


def untraced(call: Partition, point: Point, settings: Settings) -> Untraced:
    """An `Untraced` function, with the user's gradient if there is one, else JAX's."""
    static, notes = call.static, [UNTRACED]
    if not settings.projected and settings.by_hand is None:
        shown = jax.tree.leaves(static.value(point.leaves, point.data[0]))
        is_scalar = len(shown) == 1 and is_real_scalar(shown[0])
        if shown and all(map(is_inexact, shown)) and not is_scalar:
            settings = settings._replace(projected=True)
            notes.append(PROJECTED)
    of = scalar_of(lambda leaves, data: static.value(leaves, data[0]), settings)

    def value(leaves, data):
        out = of(leaves, data)
        if not is_real_scalar(out if isinstance(out, jax.Array) else np.asarray(out)):
            raise TypeError(
                "`f` must return a real scalar, or `cotangent` must say how to project. Got "
                f"{describe(out)}."
            )
        return out

    def both(leaves, data):
        if settings.by_hand is not None:
            return value(leaves, data), gradient_by_hand(settings.by_hand, call)
        try:
            return jax.value_and_grad(value)(leaves, data)
        except jax.errors.JAXTypeError as error:
            raise TypeError(
                "`f` must be differentiable by JAX (written in `jax.numpy`, not NumPy), or "
                f"`gradient` must be given. Got {reason_of(error)}"
            ) from None

    return Untraced(value, both, notes=tuple(notes))
