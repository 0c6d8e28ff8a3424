"""Measuring a set of examples: the loss and the metrics on all of it, as means.

The device sums them over stretches of batches; the host comes back often enough to be interrupted,
and what is measured does not depend on when.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxnn._programs import Jitted
from jaxnn.training.objective import Objective
from jaxnn.training.steps import shard_batch

# The host comes back after about so many seconds, of steps or of measurements: often enough for a
# person to watch, too seldom to cost anything.
PACE = 0.5
# What is done at once grows by this at most: the first stretches contain compilation.
GROWTH = 10


def paced(pace: int, taken: int, seconds: float) -> int:
    """How many steps the next stretch should have, where the last one had so many."""
    fitting = int(max(taken, 1) * PACE / seconds) if seconds > 0 else GROWTH * pace
    return max(1, min(GROWTH * pace, fitting))


class Measure(NamedTuple):
    """Sums of the loss and the metrics over batches, each times its examples.

    A sum is a pair: what it loses to rounding is beside it, and is added to the next term. So it
    depends on nothing but the order of the batches.

    Attributes:
      begin: `begin(params, model_state, key, data)`, the sums over nothing.
      add: `add(params, model_state, key, data, sums, start, stop, short)`, with the batches `start`
        to `stop` of `data`; if `short`, the last is the smaller one at the end.
    """

    begin: Callable[..., dict[str, Any]]
    add: Callable[..., dict[str, Any]]

    @classmethod
    def of(cls, objective: Objective, batch_size: int, rest: int, mesh: Mesh | None) -> "Measure":
        """That of so many examples at once, and `rest` in the smaller batch, if there is one."""

        @functools.partial(jax.jit, static_argnames="size")  # traced once, for its shapes too
        def terms(params, model_state, key, data, i, size):
            batch = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * batch_size, size), data)
            record = objective.measured(params, model_state, key, tuple(shard_batch(batch, mesh)))
            wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)) * size  # noqa: E731
            return jax.tree.map(wide, record)

        def begin(*given):
            shapes = terms.eval_shape(*given, np.int32(0), size=batch_size)
            return {name: (np.zeros(x.shape, x.dtype),) * 2 for name, x in shapes.items()}

        def add(params, model_state, key, data, sums, start, stop, short):
            def with_batch(sums, i, size):
                new = terms(params, model_state, key, data, i, size=size)
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
    """A sum with one more term, and what it lost to rounding."""
    total, lost = sum
    term = value - lost
    new = total + term
    return new, (new - total) - term


def measures(objective: Objective, mesh: Mesh | None = None) -> Callable[[int, int], Measure]:
    """`Measure`s by the size of a batch and of the smaller one, each looked for once.

    Args:
      objective: what is measured.
      mesh: devices that share each batch.
    """
    return functools.cache(lambda size, rest: Measure.of(objective, size, rest, mesh))


def mean_over(
    pieces: Iterable[Any],
    measure_of: Callable[[int, int], Measure],
    given: tuple[PyTree, PyTree, Any],
    goes_on: Callable[[int], tuple[bool, int]] = lambda pace: (True, pace),
) -> dict[str, Any] | None:
    """The loss and the metrics on a set, as means over its examples, the loss first.

    Args:
      pieces: of the set.
      measure_of: from `measures`.
      given: parameters, the model's state, and the key.
      goes_on: asked after each stretch, with the number of batches in the next one: whether to go
        on, and that number as all processes have it.

    Returns:
      Numbers and arrays by name; None if it did not go on to the end.
    """
    sums, count, pace = None, 0, 1
    for piece in pieces:
        measure = measure_of(piece.batch_size, piece.rest)
        if sums is None:
            sums = measure.begin(*given, piece.data)
        at = 0
        while at < piece.steps:
            began = time.perf_counter()
            stop = min(piece.steps, at + pace)
            short = stop == piece.steps and piece.rest > 0
            limits = np.int32(at), np.int32(stop), np.bool_(short)
            sums = jax.block_until_ready(measure.add(*given, piece.data, sums, *limits))
            count += (stop - at) * piece.batch_size - short * (piece.batch_size - piece.rest)
            going, pace = goes_on(paced(pace, stop - at, time.perf_counter() - began))
            at = stop
            if not going:
                return None
    means = {
        name: np.asarray(total, np.float64) / count for name, (total, _) in (sums or {}).items()
    }
    return loss_first({name: _as_number(value) for name, value in means.items()})


def lowered(
    piece: Any, measure_of: Callable[[int, int], Measure], given: tuple[PyTree, PyTree, Any]
) -> jax.stages.Lowered:
    """The program that will measure such a piece, to be compiled ahead of its first call."""
    measure = measure_of(piece.batch_size, piece.rest)
    sums = measure.begin(*given, piece.data)
    add: Any = measure.add
    return add.lower(*given, piece.data, sums, np.int32(0), np.int32(1), np.bool_(False))


def loss_first(record: dict[str, Any]) -> dict[str, Any]:
    """A record in the order of a table: compilation sorts the names of a dictionary."""
    return {name: record[name] for name in sorted(record, key=lambda name: name != "loss")}


def _as_number(value: Any) -> Any:
    """A float, or an array of NumPy's."""
    return float(value) if np.shape(value) == () else np.asarray(value)
