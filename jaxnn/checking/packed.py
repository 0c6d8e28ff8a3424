"""Packs the leaves of a gradient into one array per dtype, as the output of compiled programs.

A thousand outputs take seconds to compile; one output takes no time. (Inputs are not packed: a
thousand slices of one array take minutes to compile.) Only leaves on one CPU are packed, because
packing would gather sharded leaves.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._jax import enable_x64


class Packing(NamedTuple):
    """Which leaves share an array; hashable.

    Attributes:
      groups: the numbers of the leaves in each array.
      shapes: the shapes of all leaves.
    """

    groups: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, leaves: Sequence[Any]) -> "Packing":
        """A packing that groups the leaves on one CPU by dtype."""
        together: dict[Any, list[int]] = {}
        for k, x in enumerate(leaves):
            together.setdefault(jnp.dtype(x.dtype) if on_one_cpu(x) else k, []).append(k)
        return cls(tuple(map(tuple, together.values())), tuple(x.shape for x in leaves))

    def pack(self, leaves: Sequence[Any]) -> list[Any]:
        """A flat array for each group; the leaf itself for a group of one."""
        groups = ([leaves[k] for k in group] for group in self.groups)
        return [jnp.concatenate(some, axis=None) if some[1:] else some[0] for some in groups]

    def unpack(self, arrays: Iterable[Any]) -> list[Any]:
        """The leaves from packed arrays."""
        leaves: list[Any] = [None] * len(self.shapes)
        for group, array in zip(self.groups, arrays, strict=True):
            if len(group) == 1:
                leaves[group[0]] = array
                continue
            flat, low = np.asarray(array), 0
            for k in group:
                high = low + math.prod(shape := self.shapes[k])
                leaves[k], low = flat[low:high].reshape(shape), high
        return leaves


def count_not_finite(x: Any) -> int:
    """How many entries of an array are not finite, computed on the array's devices."""
    if on_one_cpu(x):
        return x.size - int(np.count_nonzero(np.isfinite(x)))
    with enable_x64(True):
        return int(jnp.sum(~jnp.isfinite(x)))


def on_one_cpu(x: Any) -> bool:
    """Whether an array is on a single CPU device, or is not a JAX array."""
    if not isinstance(x, jax.Array):
        return True
    devices = x.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"
