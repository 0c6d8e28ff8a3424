"""Difference quotients by every entry of every leaf: the loop around `propagate.py`.

Entries are processed in chunks of bounded size, with both ends of each difference side by side, so
memory does not grow with their number and a mesh of devices can share each chunk. The function is
evaluated as a whole, once per end, if it has side effects or an unperturbed value is not finite.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn.numerical.propagate import perturbations

Leaves = Sequence[Any]
Ends = tuple[Any, Any, Any]  # per entry: x + h, x - h, and the divisor of the difference


def by_entry(
    f: Callable, leaves: Leaves, ends: Sequence[Ends], batch_size: int | None, mesh: Mesh | None
) -> list[Any]:
    """For each leaf, the difference quotients of the outputs of `f` by each of its entries.

    Args:
      f: takes a list of arrays, returns a pytree of arrays.
      leaves: the point, a list of floating arrays.
      ends: for each leaf, arrays of its shape: the upper and the lower value of each entry, and the
        divisor of the difference.
      batch_size: number of entries evaluated at once, over all devices; None for as many as
        `entries_at_once` says.
      mesh: a mesh (axis types Auto) whose devices split the entries; the point is replicated on it.

    Returns:
      For each leaf, the output pytree of f with arrays of shape (*leaf, *out).
    """
    dense = functools.partial(by_entry_dense, f, leaves, ends, batch_size, mesh)

    def of_leaf(x, ends, change, _, bytes_per_entry):
        quotient = functools.partial(_quotient, change, [e.ravel() for e in ends])
        batch = batch_size or entries_at_once(bytes_per_entry, mesh)
        rows = in_chunks(quotient, x.size, batch, mesh)
        return jax.tree.map(lambda r: r.reshape(*x.shape, *r.shape[1:]), rows)

    try:
        prepared = None if any(map(_is_cut, leaves)) else perturbations(f, leaves)
        if prepared is None:  # side effects, which must happen at each evaluation
            return dense()
        pairs = list(zip(leaves, ends, prepared, strict=True))
        propagate = lambda: [of_leaf(x, end, *one) for x, end, one in pairs]  # noqa: E731
        finite = functools.reduce(operator.and_, (_unbatched(one.finite) for one in prepared))
        return lax.cond(finite, propagate, dense)
    except (TypeError, ValueError, NotImplementedError):
        # A user's primitive does not batch as slabs do; or f itself fails, and will fail again.
        return dense()


# The space that an evaluation as a whole takes, in copies of the leaves, is at least about this.
COPIES = 4


def entries_at_once(bytes_per_entry: int, mesh: Mesh | None = None, most: int = 64) -> int:
    """How many entries to evaluate at once: enough to fill a CPU's caches, at most `most`, or an
    accelerator.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    budget, most = (2**24, most) if platform == "cpu" else (2**30, 4096)
    fitting = budget // max(1, 2 * bytes_per_entry)  # two ends
    return (1 if mesh is None else mesh.size) * 2 ** int(math.log2(min(max(fitting, 1), most)))


def in_chunks(function: Callable, size: int, batch: int, mesh: Mesh | None = None) -> Any:
    """The result of `function(jnp.arange(size))`, computed `batch` indices at a time; a mesh's
    devices share each chunk.
    """
    devices = 1 if mesh is None else mesh.size
    batch = -(-max(1, min(batch, size)) // devices) * devices
    chunks = -(-size // batch)

    def place(tree, *axes):
        if mesh is None:
            return tree
        return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))

    shared = mesh and mesh.axis_names
    chunk = lambda indices: place(function(place(indices, shared)), shared)  # noqa: E731
    # Padding the last chunk with the last entry lets one program evaluate all chunks.
    indices = jnp.minimum(jnp.arange(chunks * batch, dtype=jnp.int32), max(size - 1, 0))
    indices = indices.reshape(chunks, batch)
    rows = chunk(indices[0]) if chunks == 1 else lax.map(chunk, indices)
    whole = lambda r: r.reshape(chunks * batch, *r.shape[(chunks != 1) + 1 :])[:size]  # noqa: E731
    return place(jax.tree.map(whole, rows))


def _quotient(change: Callable, ends: Sequence[jax.Array], indices: jax.Array) -> Any:
    """The quotients of some entries. The two ends of an entry are adjacent, so they are on the same
    device.
    """
    up, down, taken = (e[indices] for e in ends)
    both = change(jnp.repeat(indices, 2), jnp.stack([up, down], 1).ravel())

    def divided(y):
        y = y.reshape(y.shape[0] // 2, 2, *y.shape[1:])
        difference = y[:, 0] - y[:, 1]
        return difference / taken.reshape(-1, *(1,) * (y.ndim - 2)).astype(
            jnp.result_type(difference)
        )

    return jax.tree.map(divided, both)


def by_entry_dense(
    f: Callable, leaves: Leaves, ends: Sequence[Ends], batch_size: int | None, mesh: Mesh | None
) -> list[Any]:
    """As `by_entry`, with f as a black box that is evaluated in full for each end. One program
    serves all leaves.
    """
    if any(map(_is_cut, leaves)):
        return _by_entry_where_it_is(f, leaves, ends)
    flat = [jnp.concatenate([e[side].ravel() for e in ends]) for side in range(3)]
    starts = [sum(x.size for x in leaves[:k]) for k in range(len(leaves))]

    def changed(entry, value):
        places = [
            jnp.where((entry >= s) & (entry < s + x.size), entry - s, x.size)
            for s, x in zip(starts, leaves, strict=True)
        ]
        return f(
            [
                jnp.where(
                    jnp.arange(x.size, dtype=i.dtype) == i, value.astype(x.dtype), x.ravel()
                ).reshape(x.shape)
                for i, x in zip(places, leaves, strict=True)
            ]
        )

    quotient = functools.partial(_quotient, _batched(changed, flat), flat)
    size, space = sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves)
    batch = batch_size or entries_at_once(COPIES * space, mesh, most=8)
    rows = in_chunks(quotient, size, batch, mesh)
    return [
        jax.tree.map(lambda r, x=x, s=s: r[s : s + x.size].reshape(*x.shape, *r.shape[1:]), rows)
        for x, s in zip(leaves, starts, strict=True)
    ]


def _is_cut(x: Any) -> bool:
    """Whether the type of an array says how it is cut along the explicit axes of a mesh."""
    return any(axes is not None for axes in jax.typeof(x).sharding.spec)


def _by_entry_where_it_is(f: Callable, leaves: Leaves, ends: Sequence[Ends]) -> list[Any]:
    """As `by_entry_dense`, one entry after the other, with every leaf on the devices where it is:
    an entry cannot be cut out of an array whose type says how it is cut.
    """

    def quotient(k: int, entry):
        x, place = leaves[k], jnp.unravel_index(entry, leaves[k].shape)
        axes = [
            lax.broadcasted_iota(i.dtype, x.shape, axis, out_sharding=jax.typeof(x).sharding) == i
            for axis, i in enumerate(place)
        ]
        at = functools.reduce(operator.and_, axes)
        high, low, taken = (jnp.sum(jnp.where(at, e, 0)) for e in ends[k])
        up, down = (
            f([*leaves[:k], jnp.where(at, value, x), *leaves[k + 1 :]]) for value in (high, low)
        )
        return jax.tree.map(lambda a, b: (a - b) / taken.astype(jnp.result_type(a)), up, down)

    def of_leaf(k):
        x = leaves[k]
        rows = lax.map(functools.partial(quotient, k), jnp.arange(x.size))
        found = jax.tree.map(lambda r: r.reshape(*x.shape, *r.shape[1:]), rows)
        like = jax.typeof(x).sharding
        return jax.tree.map(lambda r: jax.reshard(r, like) if r.shape == x.shape else r, found)

    return [of_leaf(k) for k in range(len(leaves))]


def _batched(changed: Callable, flat: Sequence[jax.Array]) -> Callable:
    """Vectorise `changed` over entries; loop instead if a primitive has no batching rule."""
    batched = jax.vmap(changed)
    try:
        jax.eval_shape(batched, jnp.zeros(1, jnp.int32), flat[0][:1])
    except NotImplementedError:
        return lambda indices, values: lax.map(lambda one: changed(*one), (indices, values))
    return batched


@jax.custom_batching.custom_vmap
def _unbatched(flag: jax.Array) -> jax.Array:
    """A flag that stays a scalar under `jax.vmap`: with a batched predicate, a `cond` would
    evaluate both branches.
    """
    return flag


@_unbatched.def_vmap
def _(axis_size: int, in_batched: Any, flag: jax.Array) -> tuple[jax.Array, bool]:
    return flag.all(), False
