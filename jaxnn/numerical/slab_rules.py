"""How each primitive propagates a one-entry change: the rules that `propagate.py` uses.

A rule takes arrays and slabs and returns the index of the output's change and the new values there,
or None for cases that it does not cover. Those are made dense, like primitives without a rule.
Rules are grouped by kind of operation: elementwise functions keep the index of a change, data
movement moves it, operations along an axis are dense along it, and products are linear in each
operand. Linear operations also propagate the change itself, which keeps digits that new minus old
loses.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.numerical.interpret import CUMULATIVE, ELEMENTWISE, REDUCTIONS, named
from jaxnn.numerical.slab import (
    Index,
    Slab,
    any_index,
    base_of,
    common,
    cut,
    drop,
    fit,
    unravel,
    write,
)

Shape = Sequence[Any]  # of integers, NumPy's too
Axes = Sequence[Any]
Values = list[Any]  # arrays and slabs
Result = list[tuple] | None  # for each output `(index, new)` or `(index, new, change)`

RULES: dict[core.Primitive, Callable] = {}


def rule(*on: core.Primitive) -> Callable:
    """Register a rule: `(bind, ins, outs, **params) -> [(index, new), ...]`, or None for dense.

    `ins` are arrays or slabs, `outs` the unperturbed outputs; `bind(*args, **params)` evaluates the
    primitive and returns a list. A rule that knows the change itself returns `(index, new,
    change)`.
    """

    def register(function):
        RULES.update((primitive, function) for primitive in on)
        return function

    return register


def linear(*on: core.Primitive) -> Callable:
    """Register a rule for operations that are jointly linear in their floating operands. Applied to
    changes, such a rule gives the change of the output as well.
    """

    def register(function):
        @rule(*on)
        @functools.wraps(function)
        def with_change(bind, ins, outs, **params):
            return _with_change(function, jnp.zeros_like, bind, ins, outs, params)

        return function

    return register


def _with_change(
    function: Callable, others: Callable, bind: Callable, ins: list, outs: list, params: dict
) -> Result:
    """The result of a rule, with the change of the output if all slabs know their own.

    `others` maps an unperturbed floating operand to its counterpart among changes: zero in a sum.
    """
    results = function(bind, ins, outs, **params)
    slabs, dtype = [x for x in ins if isinstance(x, Slab)], outs[0].dtype
    known = all(x.change is not None for x in slabs) and jnp.issubdtype(dtype, jnp.inexact)
    if results is None or not known:
        return results
    if any(jnp.promote_types(x.base.dtype, dtype) != dtype for x in slabs):
        return results  # a narrowing cast rounds the value that the change is added to

    def change(x):
        if isinstance(x, Slab):
            return x.difference
        return others(x) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x

    zeros = [jnp.zeros_like(out) for out in outs]
    moved = function(bind, list(map(change, ins)), zeros, **params)
    pairs = zip(results, moved or [], strict=True)
    return [(index, new, change) for (index, new), (_, change) in pairs]


# Elementwise functions.


@rule(*ELEMENTWISE)
def _elementwise(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    rank = outs[0].ndim
    index = (None,) * rank
    # A perturbed scalar changes every entry.
    if all(jnp.ndim(base_of(x)) == rank for x in ins if isinstance(x, Slab)):
        index = common(ins)
    args = [fit(x, index if jnp.ndim(base_of(x)) == rank else ()) for x in ins]
    return [(index, x) for x in bind(*args, **params)]


linear(*named("add sub neg copy convert_element_type"))(_elementwise)


def _scaled(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    """The rule for a slab times or divided by an unperturbed operand."""
    return _with_change(_elementwise, lambda x: x, bind, ins, outs, params)


@rule(primitives.mul_p)
def _mul(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    both = isinstance(ins[0], Slab) and isinstance(ins[1], Slab)
    return (_elementwise if both else _scaled)(bind, ins, outs, **params)


@rule(primitives.div_p)
def _div(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    return (_elementwise if isinstance(ins[1], Slab) else _scaled)(bind, ins, outs, **params)


# Data movement.


@linear(primitives.broadcast_in_dim_p)
def _broadcast_in_dim(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    (x,), shape, axes = ins, params["shape"], params["broadcast_dimensions"]
    index = [None] * len(shape)
    for a, i in zip(axes, x.index, strict=True):
        index[a] = i
    sizes = [n if i is None else 1 for n, i in zip(shape, index, strict=True)]
    return [(tuple(index), lax.broadcast_in_dim(x.new, sizes, axes))]


@linear(primitives.transpose_p)
def _transpose(bind: Callable, ins: Values, outs: Values, *, permutation: Axes) -> Result:
    return [(tuple(ins[0].index[a] for a in permutation), lax.transpose(ins[0].new, permutation))]


@linear(primitives.reshape_p, primitives.squeeze_p)
def _reshape(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    """Match axes in groups of equal size; split or join an index if it covers its whole group."""
    (x,), shape = ins, outs[0].shape
    if "new_sizes" in params and params["dimensions"] is not None:
        return None  # a reshape that moves axes first
    keep, index = list(x.index), [None] * len(shape)
    for old, new in _groups(x.base.shape, shape):
        inner = [a for a in old if x.base.shape[a] > 1]
        outer = [a for a in new if shape[a] > 1]
        if len(inner) == len(outer) == 1:
            index[outer[0]] = x.index[inner[0]]
        elif inner and all(x.index[a] is not None for a in inner):
            flat = functools.reduce(lambda i, a: i * x.base.shape[a] + x.index[a], inner, 0)
            for a, i in zip(outer, unravel(flat, tuple(shape[a] for a in outer)), strict=True):
                index[a] = i
        else:
            for a in inner:
                keep[a] = None
    sizes = [n if i is None else 1 for n, i in zip(shape, index, strict=True)]
    return [(tuple(index), lax.reshape(fit(x, tuple(keep)), sizes))]


def _groups(old: Shape, new: Shape) -> Iterator[tuple[range, range]]:
    """The finest split of two shapes of equal product into runs of axes of equal product."""
    a = b = 0
    while a < len(old) or b < len(new):
        i, j = a, b
        m = n = 1
        while (a == i and b == j) or m != n:
            if m <= n and a < len(old):
                m, a = m * old[a], a + 1
            else:
                n, b = n * new[b], b + 1
        yield range(i, a), range(j, b)


@linear(primitives.rev_p)
def _rev(bind: Callable, ins: Values, outs: Values, *, dimensions: Axes) -> Result:
    (x,) = ins
    flipped = [
        n - 1 - i if a in dimensions and i is not None else i
        for a, (i, n) in enumerate(zip(x.index, x.base.shape, strict=True))
    ]
    return [(tuple(flipped), lax.rev(x.new, dimensions))]


def _window(x: Slab, out: Any, start: Sequence[Any], stride: Shape = ()) -> tuple[Index, Any]:
    """A strided window of a slab. If the changed index is outside the window, its unperturbed
    values are returned.
    """
    index, part, inside = list(x.index), x.new, True
    stride = stride or (1,) * out.ndim
    begin = [jnp.zeros((), jnp.int32)] * out.ndim
    sizes, steps = list(jnp.shape(x.new)), [1] * out.ndim
    for a, (i, n) in enumerate(zip(x.index, out.shape, strict=True)):
        if i is None:
            begin[a], steps[a] = jnp.asarray(start[a], jnp.int32), stride[a]
            sizes[a] = (n - 1) * stride[a] + 1
        elif n != x.base.shape[a]:
            at = i - jnp.asarray(start[a], i.dtype)
            inside = inside & (at >= 0) & (at < n * stride[a]) & (at % stride[a] == 0)
            index[a] = jnp.clip(at // stride[a], 0, n - 1)
    if sizes != list(part.shape):
        part = lax.dynamic_slice(part, begin, sizes)
    part = lax.slice(part, [0] * out.ndim, part.shape, steps)
    return tuple(index), part if inside is True else jnp.where(inside, part, cut(out, tuple(index)))


@linear(primitives.slice_p)
def _slice(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    return [_window(ins[0], outs[0], params["start_indices"], params["strides"] or ())]


@linear(lax.split_p)
def _split(bind: Callable, ins: Values, outs: Values, *, sizes: Sequence[Any], axis: int) -> Result:
    firsts = itertools.accumulate(sizes[:-1], initial=0)
    starts = ([first * (a == axis) for a in range(outs[0].ndim)] for first in firsts)
    return [_window(ins[0], out, start) for start, out in zip(starts, outs, strict=True)]


@linear(primitives.dynamic_slice_p)
def _dynamic_slice(bind: Callable, ins: Values, outs: Values, *, slice_sizes: Shape) -> Result:
    x, *start = ins
    if not isinstance(x, Slab) or any(isinstance(s, Slab) for s in start):
        return None
    triples = zip(start, x.base.shape, slice_sizes, strict=True)
    return [_window(x, outs[0], [jnp.clip(s, 0, n - m) for s, n, m in triples])]


@linear(primitives.concatenate_p)
def _concatenate(bind: Callable, ins: Values, outs: Values, *, dimension: int) -> Result:
    slabs = [k for k, x in enumerate(ins) if isinstance(x, Slab)]
    only, offset = ins[slabs[0]], sum(jnp.shape(base_of(x))[dimension] for x in ins[: slabs[0]])
    # An axis of size one has no index.
    place = jnp.int32(0) if only.base.shape[dimension] == 1 else only.index[dimension]
    if len(slabs) == 1 and place is not None:
        return [
            (
                tuple(place + offset if a == dimension else i for a, i in enumerate(only.index)),
                only.new,
            )
        ]
    index = drop(common(ins), [dimension])
    return [(index, x) for x in bind(*(fit(x, index) for x in ins), dimension=dimension)]


@linear(primitives.pad_p)
def _pad(bind: Callable, ins: Values, outs: Values, *, padding_config: Any) -> Result:
    x, value = ins
    if not isinstance(x, Slab) or isinstance(value, Slab):
        return None
    keep, index, padding = list(x.index), [], []
    for a, (low, high, inside) in enumerate(padding_config):
        i = jnp.int32(0) if x.base.shape[a] == 1 else x.index[a]
        if i is None or low < 0 or high < 0:  # negative padding may cut the changed entry off
            keep[a] = None
            index.append(None)
            padding.append((low, high, inside))
        else:
            index.append(low + i * (inside + 1))
            padding.append((0, 0, 0))
    return [(tuple(index), *bind(fit(x, tuple(keep)), value, padding_config=tuple(padding)))]


@linear(primitives.dynamic_update_slice_p)
def _dynamic_update_slice(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    """Keep the index along an axis that the update covers whole; if only the update changes, along
    any axis.
    """
    (x, part, *start), (out,) = ins, outs
    if any(isinstance(s, Slab) for s in start):
        return None
    sizes = jnp.shape(base_of(part))
    whole = [n == m for n, m in zip(out.shape, sizes, strict=True)]
    pairs = zip(start, out.shape, sizes, strict=True)
    start = [jnp.clip(jnp.asarray(s, jnp.int32), 0, n - m) for s, n, m in pairs]
    if isinstance(x, Slab):
        index = tuple(i if w else None for i, w in zip(common(ins[:2]), whole, strict=True))
        fitted = [fit(y, index) for y in (x, part)]
    else:
        index = _place_of_update(part, start, whole)
        fitted = [cut(x, index), part.new]
    at = [s if i is None else jnp.zeros_like(s) for s, i in zip(start, index, strict=True)]
    return [(index, *bind(*fitted, *at, **params))]


def _place_of_update(part: Slab, start: Sequence[Any], whole: Sequence[bool]) -> tuple[Any, ...]:
    """The index of a changed part in the array that it updates from `start` on."""
    own = [jnp.int32(0) if n == 1 else i for i, n in zip(part.index, part.base.shape, strict=True)]
    places = zip(own, start, whole, strict=True)
    return tuple(i if all_of_it or i is None else s + i for i, s, all_of_it in places)


def _scatter(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    """With unperturbed indices, keep the index along each axis that the updates cover whole."""
    (x, indices, updates), numbers = ins, params["dimension_numbers"]
    if isinstance(indices, Slab) or numbers.operand_batching_dims:
        return None
    shape, own = outs[0].shape, jnp.shape(base_of(updates))
    inside = [a for a in range(len(shape)) if a not in numbers.inserted_window_dims]
    axes = dict(zip(inside, numbers.update_window_dims, strict=True))
    moved = numbers.scatter_dims_to_operand_dims
    axes = {a: u for a, u in axes.items() if shape[a] == own[u] and a not in moved}
    places = [
        {a: y.index[by[a]] for a in axes}
        for y, by in ((x, {a: a for a in axes}), (updates, axes))
        if isinstance(y, Slab)
    ]
    same = {a: i for a, i in places[0].items() if all(p[a] is i for p in places)}
    index = tuple(same.get(a) for a in range(len(shape)))
    of_updates = {axes[a]: i for a, i in same.items()}
    part = fit(updates, tuple(of_updates.get(u) for u in range(len(own))))
    return [(index, *bind(fit(x, index), indices, part, **params))]


linear(primitives.scatter_p, primitives.scatter_add_p)(_scatter)
rule(primitives.scatter_mul_p, primitives.scatter_min_p, primitives.scatter_max_p)(_scatter)


# Operations along an axis are dense along it.


def _along(
    bind: Callable, ins: Values, outs: Values, along: Axes, params: dict[str, Any]
) -> Result:
    index = drop(common(ins), along)
    return [(index, x) for x in bind(*(fit(x, index) for x in ins), **params)]


@rule(*CUMULATIVE - {primitives.cumsum_p})
@linear(primitives.cumsum_p)
def _cumulative(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    return _along(bind, ins, outs, [params["axis"]], params)


@rule(primitives.sort_p)
def _sort(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    return _along(bind, ins, outs, [params["dimension"]], params)


@rule(primitives.reduce_window_max_p, primitives.reduce_window_min_p)
@linear(primitives.reduce_window_sum_p)
def _reduce_window(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    """Keep the index along axes where each window is one entry and no entry is skipped."""
    names = "window_dimensions", "window_strides", "base_dilation", "window_dilation"
    ones = zip(*(params[name] for name in names), strict=True)
    pairs = enumerate(zip(ones, params["padding"], strict=True))
    along = [a for a, (one, pad) in pairs if set(one) != {1} or tuple(pad) != (0, 0)]
    return _along(bind, ins, outs, along, params)


# Reductions keep the indices of the remaining axes.


@rule(*REDUCTIONS - {primitives.reduce_sum_p})
def _reduce(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    axes = params["axes"]
    index = drop(common(ins), axes)
    results = bind(*(fit(x, index) for x in ins), **params)
    return [(tuple(i for a, i in enumerate(index) if a not in axes), x) for x in results]


@rule(primitives.reduce_sum_p)
def _reduce_sum(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    (x,), (out,), axes = ins, outs, params["axes"]
    rest = tuple(i for a, i in enumerate(x.index) if a not in axes)
    (change,) = bind(x.difference.new, **params)
    if all(x.index[a] is None for a in axes):
        return [(rest, bind(x.new, **params)[0], change)]
    return [(rest, cut(out, rest) + change, change)]


# Products are linear in each operand, and a changed operand is its unperturbed value plus a part
# that is zero elsewhere.


@rule(primitives.dot_general_p)
def _dot_general(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    (out,), (lhs, rhs) = outs, ins
    product = functools.partial(_product, bind, params, out)
    if isinstance(lhs, Slab) and isinstance(rhs, Slab):
        return _product_of_slabs(product, out, lhs, rhs)
    side = 0 if isinstance(lhs, Slab) else 1
    axes = params["dimension_numbers"][0][side]
    term = product(_difference(lhs), _difference(rhs))
    if all(ins[side].index[a] is None for a in axes):
        return [(*product(lhs, rhs), term[1])]
    return _sum_of_changes(out, [term])


def _product_of_slabs(product: Callable, out: Any, lhs: Slab, rhs: Slab) -> Result:
    if not (any_index(lhs.index) or any_index(rhs.index)):
        return None
    if not any_index(lhs.index):
        start, term = product(lhs.new, rhs.base)[1], product(lhs.new, rhs.difference)
    elif not any_index(rhs.index):
        start, term = product(lhs.base, rhs.new)[1], product(lhs.difference, rhs.new)
    else:
        pairs = [(lhs.difference, rhs.base), (lhs.base, rhs.difference)]
        pairs.append((lhs.difference, rhs.difference))
        return _sum_of_changes(out, [product(*pair) for pair in pairs])
    if term is None:
        return None
    return [((None,) * out.ndim, start + write(jnp.zeros_like(start), *term))]


def _sum_of_changes(out: Any, terms: list[Any]) -> Result:
    """The product plus its changes, `(index, values)` each; None if one is unknown."""
    if None in terms:
        return None
    places = [where for where, _ in terms]
    index = tuple(i[0] if all(j is i[0] for j in i) else None for i in zip(*places, strict=True))
    change = jnp.zeros_like(cut(out, index))
    zeros = change
    for where, part in terms:
        rest = tuple(None if j is not None else i for i, j in zip(where, index, strict=True))
        change = change + write(zeros, rest, part)
    return [(index, cut(out, index) + change, change)]


def _difference(x: Any) -> Any:
    return x.difference if isinstance(x, Slab) else x


def _product(bind: Callable, params: dict[str, Any], out: Any, lhs: Any, rhs: Any) -> Any:
    """The `(index, values)` of a product; operands that are slabs count as zero outside their
    index.
    """
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    i = list(lhs.index) if isinstance(lhs, Slab) else [None] * lhs.ndim
    j = list(rhs.index) if isinstance(rhs, Slab) else [None] * rhs.ndim
    for a, b in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        if None not in (i[a], j[b]) and i[a] is not j[b]:
            return None
        i[a] = j[b] = j[b] if i[a] is None else i[a]
    x, y = _part(lhs, i), _part(rhs, j)
    free = [
        [a for a in range(len(i)) if a not in (*left, *left_batch)],
        [b for b in range(len(j)) if b not in (*right, *right_batch)],
    ]
    index = tuple([i[a] for a in (*left_batch, *free[0])] + [j[b] for b in free[1]])
    if any(x.shape[a] != 1 for a in left):
        return index, bind(x, y, **params)[0]
    # A contraction of length one is an elementwise product, far cheaper than a dot once batched
    # over entries.
    x = lax.transpose(x, (*left_batch, *free[0], *left)).astype(out.dtype)
    y = lax.transpose(y, (*right_batch, *right, *free[1])).astype(out.dtype)
    batch = len(left_batch)
    x = x.reshape(x.shape[: batch + len(free[0])] + (1,) * len(free[1]))
    return index, x * y.reshape(
        y.shape[:batch] + (1,) * len(free[0]) + y.shape[batch + len(right) :]
    )


def _part(x: Any, index: Sequence[Any]) -> Any:
    """An operand of a product at `index`, which includes the slab's own indices."""
    if not isinstance(x, Slab):
        return cut(x, tuple(index))
    return cut(
        x.new, tuple(None if own is not None else i for i, own in zip(index, x.index, strict=True))
    )


@rule(primitives.conv_general_dilated_p)
def _conv(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    """A changed image keeps its batch index; a changed kernel affects one output channel."""
    (out,), (lhs, rhs) = outs, ins
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    index = [None] * out.ndim
    if params["batch_group_count"] != 1 or isinstance(lhs, Slab) and isinstance(rhs, Slab):
        return None
    if isinstance(lhs, Slab):
        index[out_spec[0]] = lhs.index[lhs_spec[0]]
        return [(tuple(index), bind(fit(lhs, drop(lhs.index, lhs_spec[1:])), rhs, **params)[0])]
    feature = index[out_spec[1]] = rhs.index[rhs_spec[0]]
    if params["feature_group_count"] != 1:
        return None
    if all(n == 1 or i is not None for n, i in zip(rhs.base.shape, rhs.index, strict=True)):
        # One weight: its change times the window of the padded input that it multiplies.
        at = [jnp.int32(0) if rhs.index[a] is None else rhs.index[a] for a in rhs_spec]
        change = rhs.difference.new.reshape(()).astype(out.dtype) * _seen(
            lhs, at[1], at[2:], out, params
        )
        return [(tuple(index), cut(out, tuple(index)) + change, change)]
    if feature is None:
        return None
    return [(tuple(index), bind(lhs, fit(rhs, drop(rhs.index, rhs_spec[1:])), **params)[0])]


def _seen(lhs: Any, channel: Any, tap: Sequence[Any], out: Any, params: dict[str, Any]) -> Any:
    """The input entries that one kernel tap multiplies in one channel, in the output's layout."""
    spec, _, out_spec = params["dimension_numbers"]
    padding, step = [(0, 0, 0)] * lhs.ndim, [1] * lhs.ndim
    start, size = [np.int32(0)] * lhs.ndim, list(lhs.shape)
    start[spec[1]], size[spec[1]] = channel, 1
    for d, a in enumerate(spec[2:]):
        padding[a] = (*params["padding"][d], params["lhs_dilation"][d] - 1)
        step[a], start[a] = params["window_strides"][d], tap[d] * params["rhs_dilation"][d]
        size[a] = (out.shape[out_spec[d + 2]] - 1) * step[a] + 1
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), padding)
    window = lax.dynamic_slice(padded, [jnp.asarray(i, jnp.int32) for i in start], size)
    window = lax.slice(window, [0] * lhs.ndim, size, step)
    return lax.transpose(window, [spec[out_spec.index(a)] for a in range(out.ndim)]).astype(
        out.dtype
    )


@linear(primitives.gather_p)
def _gather(bind: Callable, ins: Values, outs: Values, **params: Any) -> Result:
    """With unperturbed indices, keep the index along axes taken whole; along the others, compare
    the origin of each output entry with the changed index.
    """
    (out,), (x, indices) = outs, ins
    numbers, slice_sizes = params["dimension_numbers"], params["slice_sizes"]
    if isinstance(indices, Slab) or numbers.operand_batching_dims:
        return None
    shape, moved = x.base.shape, numbers.start_index_map
    whole = [a for a, n in enumerate(shape) if slice_sizes[a] == n and a not in moved]
    rest = set(range(len(shape))) - set(whole)
    if any(x.index[a] is None and shape[a] != 1 for a in rest):
        return None
    kept = [a for a in range(len(shape)) if a not in numbers.collapsed_slice_dims]
    offset = dict(zip(kept, numbers.offset_dims, strict=True))
    index, sizes = [None] * out.ndim, [1] * out.ndim
    for a in whole:
        if a in offset:
            index[offset[a]], sizes[offset[a]] = x.index[a], x.new.shape[a]
    background = cut(out, tuple(index))
    params["slice_sizes"] = tuple(1 if a in whole else n for a, n in enumerate(slice_sizes))
    origins_of = lambda places: bind(places, indices, **params | {"fill_value": -1})[0]  # noqa: E731
    same = _from_index(origins_of, x, rest)
    same, part = (jnp.broadcast_to(y, background.shape) for y in (same, x.new.reshape(sizes)))
    return [(tuple(index), lax.select(same, part, background))]


def _from_index(origins_of: Callable, x: Slab, axes: set[int]) -> Any:
    """Which entries of what `origins_of` gathers are from a slab's index along some axes."""
    shape, same = tuple(n if a in axes else 1 for a, n in enumerate(x.base.shape)), True
    for a in axes:
        index = 0 if x.index[a] is None else x.index[a].astype(jnp.int32)
        same = same & (origins_of(lax.broadcasted_iota(jnp.int32, shape, a)) == index)
    return same
