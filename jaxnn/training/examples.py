"""The examples of a run: on the device, or on the host and sent to it in pieces."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxnn.data import count_examples
from jaxnn.training.steps import loss_first

# Bytes of streamed examples that are on the device at once: large enough to keep a bus busy, small
# beside any device's memory.
PIECE = 2**28
# Examples that fill more of the device than this are streamed; parameters need the rest.
MOST_OF_DEVICE = 0.5


class Piece(NamedTuple):
    """The examples of some steps.

    Attributes:
      data: on the device.
      order: which of them are used, in which order.
      first: the number of the step that comes first in `order`.
    """

    data: PyTree
    order: Any
    first: int


class Examples(NamedTuple):
    """A set of examples.

    Attributes:
      data: the arrays.
      count: how many examples.
      batch_size: of a step.
      steps: at most so many are in a piece.
      streamed: whether the arrays are on the host.
      place: puts arrays on the device.
    """

    data: PyTree
    count: int
    batch_size: int
    steps: int
    streamed: bool
    place: Callable[[PyTree], PyTree]

    @classmethod
    def of(
        cls,
        name: str,
        data: PyTree,
        batch_size: int,
        place: Callable[[PyTree], PyTree],
        stream: bool | None,
    ) -> "Examples":
        """A set, streamed if `stream`, or by default where it would fill half of the device."""
        count, leaves = count_examples(data, name), jax.tree.leaves(data)
        size = sum(leaf.nbytes for leaf in leaves)
        if stream is None:
            memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", np.inf)
            on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
            stream = on_host and size > MOST_OF_DEVICE * memory
        if not stream:
            return cls(place(data), count, batch_size, count, False, place)
        fitting = int(PIECE // (size / count * batch_size))
        steps = max(1, min(-(-count // batch_size), fitting))
        return cls(jax.tree.map(np.asarray, data), count, batch_size, steps, True, place)

    def piece(self, order: Any, start: int, stop: int) -> Piece:
        """The examples of the steps `start` to `stop` of an order."""
        if not self.streamed:
            return Piece(self.data, order, 0)
        rows = np.asarray(order)[start * self.batch_size : stop * self.batch_size]
        filled = np.resize(rows, self.steps * self.batch_size)  # one size, one compilation
        data = self.place(jax.tree.map(lambda a: a[filled], self.data))
        return Piece(data, np.arange(len(filled), dtype=np.int32), start)

    def evaluate(self, measure: Callable[[PyTree], dict[str, Any]]) -> dict[str, Any]:
        """Means over all examples, of numbers and arrays alike."""
        if not self.streamed:
            return loss_first(jax.tree.map(_as_number, measure(self.data)))
        size, sums = self.steps * self.batch_size, {}
        for first in range(0, self.count, size):
            rows = operator.itemgetter(slice(first, first + size))
            record = measure(self.place(jax.tree.map(rows, self.data)))
            for name, value in record.items():
                part = np.asarray(value, np.float64) * min(size, self.count - first)
                sums[name] = sums.get(name, 0.0) + part
        return loss_first({name: _as_number(total / self.count) for name, total in sums.items()})


def _as_number(value: Any) -> Any:
    """A float, or an array of NumPy's."""
    return float(value) if np.shape(value) == () else np.asarray(value)
