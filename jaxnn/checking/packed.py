"""Leaves side by side in one array for each dtype, as compiled programs give a gradient.

A compiler takes seconds over a thousand outputs, and no time over one. (For inputs it is the other
way round: a thousand slices of one array take it minutes.) Only leaves on one CPU are packed:
elsewhere that would gather what is spread over devices.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Packing(NamedTuple):
    """Which leaves share an array; it can be hashed.

    Attributes:
      groups: numbers of leaves.
      shapes: of all leaves.
    """

    groups: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, leaves: Sequence[Any]) -> "Packing":
        """Leaves of one dtype together, if they are where they can be."""
        together: dict[Any, list[int]] = {}
        for k, x in enumerate(leaves):
            together.setdefault(jnp.dtype(x.dtype) if on_one_cpu(x) else k, []).append(k)
        return cls(tuple(map(tuple, together.values())), tuple(x.shape for x in leaves))

    def pack(self, leaves: Sequence[Any], xp: Any = jnp) -> list[Any]:
        """One array for each group, of the leaves' entries; of a single leaf the leaf itself."""
        groups = ([leaves[k] for k in group] for group in self.groups)
        return [xp.concatenate(some, axis=None) if some[1:] else some[0] for some in groups]

    def unpack(self, arrays: Iterable[Any]) -> list[Any]:
        """The leaves again."""
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
    """How many entries of an array are not finite; it stays where it lies."""
    if on_one_cpu(x):
        return x.size - int(np.count_nonzero(np.isfinite(x)))
    with jax.enable_x64(True):
        return int(jnp.sum(~jnp.isfinite(x)))


def on_one_cpu(x: Any) -> bool:
    """Whether an array lies where NumPy can look at it."""
    if not isinstance(x, jax.Array):
        return True
    devices = x.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"
