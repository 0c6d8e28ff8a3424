"""Measuring a set of examples: the loss and the metrics, as means over all of it.

The device sums over chunks of batches. Control returns to the host often enough for signals to
be handled, and the result does not depend on when it returns.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from jaxnn._programs import Jitted
from jaxnn.training.steps import shard_batch

# Seconds between returns of control to the host, during steps and measurements: often enough for a
# person to watch, rarely enough to cost nothing.
PACE = 0.5
# The largest factor between consecutive chunks, as the first ones include compilation.
GROWTH = 10


def paced(pace: int, taken: int, seconds: float) -> int:
    """The length of the next chunk in steps, given that `taken` steps took `seconds`."""
    fitting = int(max(taken, 1) * PACE / seconds) if seconds > 0 else GROWTH * pace
    return max(1, min(GROWTH * pace, fitting))


# Numbers and arrays by name, means over a batch, from the state, a key, and the batch.
Measured = Callable[[Any, Any, Any], dict[str, Any]]


class Measure(NamedTuple):
    """Sums of the loss and the metrics over batches, weighted by batch size.

    A sum is a pair: the total and the rounding error of the last addition, which is subtracted from
    the next term. So the result depends only on the order of the batches.

    Attributes:
      begin: `begin(state, key, data)`, empty sums.
      add: `add(state, key, data, sums, start, stop, short)`, the sums after adding batches `start`
        to `stop` of `data`; if `short`, the last one is the smaller batch at the end.
    """

    begin: Callable[..., dict[str, Any]]
    add: Callable[..., dict[str, Any]]

    @classmethod
    def of(
        cls, measured: Measured, sharding: NamedSharding | None, batch_size: int, rest: int
    ) -> "Measure":
        """A measure for batches of `batch_size`, and a last one of `rest` examples if not 0."""

        @functools.partial(jax.jit, static_argnames="size")  # one trace serves `eval_shape` as well
        def terms(state, key, data, i, size):
            batch = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * batch_size, size), data)
            record = measured(state, key, tuple(shard_batch(batch, sharding)))
            wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)) * size  # noqa: E731
            return jax.tree.map(wide, record)

        def begin(*given):
            shapes = terms.eval_shape(*given, np.int32(0), size=batch_size)
            return {name: (np.zeros(x.shape, x.dtype),) * 2 for name, x in shapes.items()}

        def add(state, key, data, sums, start, stop, short):
            def with_batch(sums, i, size):
                new = terms(state, key, data, i, size=size)
                return {name: compensated(sums[name], value) for name, value in new.items()}

            last = stop - jnp.astype(short, jnp.int32)
            loop = lambda i, sums: with_batch(sums, i, batch_size)  # noqa: E731
            sums = lax.fori_loop(start, last, loop, sums)
            if rest:
                small = lambda sums: with_batch(sums, last, rest)  # noqa: E731
                sums = lax.cond(short, small, lambda sums: sums, sums)
            return sums

        return cls(begin, Jitted(add))


def compensated(sum: tuple[Any, Any], value: Any) -> tuple[Any, Any]:
    """Add a term to a compensated sum: the new total and its rounding error."""
    total, lost = sum
    term = value - lost
    new = total + term
    return new, (new - total) - term


def mean_over(
    pieces: Iterable[Any],
    measure_of: Callable[[int, int], Measure],
    given: tuple[PyTree, Any],
    goes_on: Callable[[int], tuple[bool, int]] = lambda pace: (True, pace),
) -> dict[str, Any] | None:
    """The loss and the metrics as means over the examples of a set, the loss first.

    Args:
      pieces: of the set.
      measure_of: a cached function from (batch size, size of the smaller batch) to a `Measure`.
      given: the state, and the key.
      goes_on: called before each chunk, when its examples are there, with the number of batches
        proposed for it; returns whether to continue and the number agreed by all processes.

    Returns:
      Numbers and arrays by name; None if `goes_on` stopped the measurement.
    """
    sums, count, pace = None, 0, 1
    for piece in pieces:
        measure = measure_of(piece.batch_size, piece.rest)
        if sums is None:
            sums = measure.begin(*given, piece.data)
        at = 0
        while at < piece.steps:
            going, pace = goes_on(pace)
            if not going:
                return None
            began = time.perf_counter()
            stop = min(piece.steps, at + pace)
            short = stop == piece.steps and piece.rest > 0
            limits = np.int32(at), np.int32(stop), np.bool_(short)
            sums = jax.block_until_ready(measure.add(*given, piece.data, sums, *limits))
            count += (stop - at) * piece.batch_size - short * (piece.batch_size - piece.rest)
            pace, at = paced(pace, stop - at, time.perf_counter() - began), stop
    means = {
        name: np.asarray(total, np.float64) / count for name, (total, _) in (sums or {}).items()
    }
    return loss_first({name: _as_number(value) for name, value in means.items()})


def lowered(
    piece: Any, measure_of: Callable[[int, int], Measure], given: tuple[PyTree, Any]
) -> jax.stages.Lowered:
    """The lowered program that will measure such a piece, to compile before its first call."""
    measure = measure_of(piece.batch_size, piece.rest)
    sums = measure.begin(*given, piece.data)
    add: Any = measure.add
    return add.lower(*given, piece.data, sums, np.int32(0), np.int32(1), np.bool_(False))


def loss_first(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the loss first, since compilation sorts the keys of a dictionary."""
    return {name: record[name] for name in sorted(record, key=lambda name: name != "loss")}


def _as_number(value: Any) -> Any:
    """A float, or a NumPy array."""
    return float(value) if np.shape(value) == () else np.asarray(value)
