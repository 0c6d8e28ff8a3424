"""Leaves side by side in one array for each dtype, as compiled programs take and give them.

A compiler takes seconds over a thousand inputs and outputs, and no time over one. Only leaves that
lie on one CPU are packed: elsewhere that would be a copy, or would gather what is spread over
devices. What has a dtype of its own making (a Python number's is weak) keeps it, and stays apart.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._validate import is_concrete


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
        """Leaves of one dtype together, if all are where they can be."""
        together: dict[Any, list[int]] = {}
        for k, x in enumerate(leaves):
            apart = getattr(x, "weak_type", False) or not on_one_cpu(x)
            together.setdefault(k if apart else jnp.dtype(x.dtype), []).append(k)
        return cls(tuple(map(tuple, together.values())), tuple(x.shape for x in leaves))

    def pack(self, leaves: Sequence[Any]) -> list[Any]:
        """One array for each group, of the leaves' entries; of a single leaf the leaf itself."""

        def packed(group):
            some = [leaves[k] for k in group]
            if len(some) == 1:
                return some[0]
            if is_concrete(some):  # what lies on a CPU is NumPy's as well, without a compilation
                return np.concatenate([np.asarray(x).ravel() for x in some])
            return jnp.concatenate([x.ravel() for x in some])

        return [packed(group) for group in self.groups]

    def unpack(self, arrays: Iterable[Any]) -> list[Any]:
        """The leaves again."""
        leaves: list[Any] = [None] * len(self.shapes)
        for group, array in zip(self.groups, arrays, strict=True):
            if len(group) == 1:
                leaves[group[0]] = array
                continue
            sizes = [int(np.prod(self.shapes[k])) for k in group]
            split = np.split if isinstance(array, np.ndarray) else jnp.split
            for k, part in zip(group, split(array, np.cumsum(sizes)[:-1]), strict=True):
                leaves[k] = part.reshape(self.shapes[k])
        return leaves


def count_not_finite(x: Any) -> int:
    """How many entries of an array are not finite; it stays where it lies."""
    if on_one_cpu(x):
        return int(np.sum(~np.isfinite(np.asarray(x, np.float64))))
    with jax.enable_x64(True):
        return int(jnp.sum(~jnp.isfinite(x)))


def on_one_cpu(x: Any) -> bool:
    """Whether an array lies where NumPy can look at it."""
    if not isinstance(x, jax.Array):
        return True
    devices = x.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"
