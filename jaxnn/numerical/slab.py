"""The effect of a one-entry change on an array: the unperturbed array, the index of the change, and
the new values there.

A changed weight affects one column of a product, and elementwise functions preserve that column. A
`Slab` stores the column and its index. The helpers here convert between slabs and whole arrays.
They know nothing of primitives (`slab_rules.py`) or of evaluating programs (`propagate.py`).
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

# Per axis: the one index that changed (a traced integer), or None if all may have changed.
Index = tuple[Any, ...]


class Slab(NamedTuple):
    """A perturbed array: `base` except at `index`, where it is `new` (of size one on the indexed
    axes).

    `change` is `new - base` at `index`, if it is known more precisely than by subtraction: a sum of
    small differences keeps digits that the difference of two sums loses.
    """

    base: Any
    index: Index
    new: Any
    change: Any = None

    @classmethod
    def of(cls, base: Any, index: Index | None, new: Any, change: Any = None) -> "Slab":
        """A slab in normal form: axes of size one have no index; `index=None` means that the whole
        array changed.
        """
        index = index or (None,) * jnp.ndim(base)
        return cls(
            base,
            tuple(None if n == 1 else i for i, n in zip(index, jnp.shape(base), strict=True)),
            new,
            change,
        )

    @property
    def difference(self) -> "Slab":
        """The change, as a slab over zeros."""
        change = self.new - cut(self.base, self.index) if self.change is None else self.change
        return Slab(jnp.zeros_like(self.base), self.index, change)


def base_of(x: Any) -> Any:
    """The unperturbed array of an array or a slab."""
    return x.base if isinstance(x, Slab) else x


def dense(x: Any) -> Any:
    """The whole array."""
    return fit(x, (None,) * len(x.index)) if isinstance(x, Slab) else x


def fit(x: Any, index: Index) -> Any:
    """The values of an array or a slab at `index`, a subset of the slab's own indices."""
    index = tuple(None if n == 1 else i for i, n in zip(index, jnp.shape(base_of(x)), strict=True))
    if not isinstance(x, Slab):
        return cut(x, index)
    rest = tuple(i if j is None else None for i, j in zip(x.index, index, strict=True))
    return write(cut(x.base, index), rest, x.new) if any_index(rest) else x.new


def cut(x: Any, index: Index) -> Any:
    """The part of an array at `index`, with size one on the indexed axes."""
    index = tuple(None if n == 1 else i for i, n in zip(index, jnp.shape(x), strict=True))
    if not any_index(index):
        return x
    zero = jnp.zeros((), jnp.int32)
    sizes = [n if i is None else 1 for i, n in zip(index, jnp.shape(x), strict=True)]
    return lax.dynamic_slice(x, [zero if i is None else i.astype(jnp.int32) for i in index], sizes)


def write(background: Any, index: Index, part: Any) -> Any:
    """`background` with `part` written at `index`. It uses a select, which fuses; an update would
    become a scatter.
    """
    shape = jnp.shape(background)
    axes = [(a, i.astype(jnp.int32)) for a, i in enumerate(index) if i is not None]
    if not axes:
        return part
    where = functools.reduce(
        operator.and_, (lax.broadcasted_iota(jnp.int32, shape, a) == i for a, i in axes)
    )
    return lax.select(where, jnp.broadcast_to(part, shape), background)


def common(xs: list[Any]) -> Index:
    """The indices that all slabs among `xs` share; only identical tracers count as equal."""
    indices = [x.index for x in xs if isinstance(x, Slab)]
    return tuple(i[0] if all(j is i[0] for j in i) else None for i in zip(*indices, strict=True))


def drop(index: Index, axes: Any) -> Index:
    """`index` without the entries of `axes`, which become dense."""
    return tuple(None if a in axes else i for a, i in enumerate(index))


def any_index(index: Index) -> bool:
    """Whether any axis has an index, so that part of the array is unperturbed."""
    return any(i is not None for i in index)


def unravel(index: Any, shape: tuple[int, ...]) -> Index:
    """The per-axis indices of a flat index, in int32 if it suffices: under x64, int64 costs twice
    as much.
    """
    index = jnp.asarray(index)
    if math.prod(shape) < 2**31:
        index = index.astype(jnp.int32)
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    number = functools.partial(jnp.array, dtype=index.dtype)
    return tuple(
        lax.rem(lax.div(index, number(s)), number(n)) for s, n in zip(strides, shape, strict=True)
    )
