"""The examples of a run, in pieces that are on the device: arrays whole, arrays from the host part
by part, or the batches that a function of the epoch gives.

What comes from the host is gathered by a thread, while the steps of the piece before it are taken.
"""

import contextlib
import functools
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from jaxnn._validate import describe, require_callable, require_same_form
from jaxnn.data import count_examples, require_batches
from jaxnn.training.steps import Plan, batch_form, send

# Bytes of a piece: enough for many steps, and little enough for memory that was used before to be
# used again, which is several times as fast as new memory; three pieces are there at once, of which
# one is used, one waits, and one is gathered.
PIECE = 2**24
# Examples that fill more of the device than this are streamed; parameters need the rest.
MOST_OF_DEVICE = 0.5
# Batches of a function that are sent together, at most; and for how many seconds the first of them
# waits for the others.
TOGETHER, WAIT = 256, 0.25


class Piece(NamedTuple):
    """The examples of some steps of one epoch.

    Attributes:
      data: on the device.
      order: which of them are used, in which order; None where all are, as they stand.
      epoch: from 1.
      first: the number in its epoch of the first step.
      steps: how many.
      batch_size: examples of a step.
      rest: examples of the last step, where they are fewer; else 0.
      ends: whether its epoch ends with it.
    """

    data: PyTree
    order: Any
    epoch: int
    first: int
    steps: int
    batch_size: int
    rest: int = 0
    ends: bool = True


class Examples(NamedTuple):
    """A set of examples that are arrays.

    Attributes:
      data: the arrays.
      count: how many examples.
      batch_size: of a step.
      steps: at most so many are in a piece.
      streamed: whether the arrays are on the host.
      mesh: of the devices that they go to.
    """

    data: PyTree
    count: int
    batch_size: int
    steps: int
    streamed: bool
    mesh: Mesh | None

    @classmethod
    def of(
        cls,
        name: str,
        data: PyTree,
        batch_size: int,
        mesh: Mesh | None,
        stream: bool | None,
    ) -> "Examples":
        """A set, streamed if `stream`, or by default where it would fill half of the device, or is
        a memory map of more than a piece.
        """
        count, leaves, size = count_examples(data, name), jax.tree.leaves(data), _bytes(data)
        if stream is None:
            mapped = any(isinstance(leaf, np.memmap) for leaf in leaves)
            on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
            stream = on_host and size > (PIECE if mapped else MOST_OF_DEVICE * _memory())
        batch_size = min(batch_size, count)
        total = -(-count // batch_size)
        if not stream:
            return cls(send(data, mesh), count, batch_size, total, False, mesh)
        fitting = int(PIECE // (size / count * batch_size))
        steps = max(1, min(total, fitting))
        return cls(jax.tree.map(np.asarray, data), count, batch_size, steps, True, mesh)

    @property
    def batch(self) -> PyTree:
        """The form of a batch, without its values."""
        return batch_form(self.data, self.batch_size)

    def training(
        self, plan: Plan, key: Key[Array, ""], epoch: int, step: int
    ) -> Generator[Piece, None, None]:
        """The pieces of a run from a step of an epoch on."""
        if self.streamed:
            yield from _placed(_ahead(self._jobs(plan, key, epoch, step)), self.mesh)
            return
        steps, size = plan.per_epoch, plan.batch_size
        while plan.epochs is None or epoch <= plan.epochs:
            order = send(plan.order(key, epoch), self.mesh)
            yield Piece(self.data, order, epoch, 0, steps, size, plan.rest)
            epoch += 1

    def _jobs(
        self, plan: Plan, key: Key[Array, ""], epoch: int, step: int
    ) -> Iterator[Callable[[], Piece]]:
        while plan.epochs is None or epoch <= plan.epochs:
            order = np.asarray(plan.order(key, epoch))
            for first in range(step, plan.per_epoch, self.steps):
                yield functools.partial(self._piece, order, plan, epoch, first)
            epoch, step = epoch + 1, 0

    def _piece(self, order: np.ndarray, plan: Plan, epoch: int, first: int) -> Piece:
        of_epoch, size = plan.per_epoch, plan.batch_size
        stop = min(first + self.steps, of_epoch)
        data = self._gathered(order[first * size : stop * size])
        rest = plan.rest if stop == of_epoch else 0
        return Piece(data, None, epoch, first, stop - first, size, rest, stop == of_epoch)

    def measuring(self) -> Generator[Piece, None, None]:
        """The pieces of the set, each example once, in its own order."""
        size, total = self.batch_size, -(-self.count // self.batch_size)
        if not self.streamed and self.mesh is None and self.count % total == 0:
            size = self.count // total  # where batches can be even, none is compiled for a rest

        def piece(first):
            steps = min(self.steps, total - first)
            count = min(self.count - first * size, steps * size)
            rows = np.arange(first * size, first * size + count)
            data = self._gathered(rows) if self.streamed else self.data
            return Piece(data, None, 1, first, steps, size, count % size)

        jobs = (functools.partial(piece, first) for first in range(0, total, self.steps))
        if self.streamed:
            yield from _placed(_ahead(jobs), self.mesh)
        else:
            yield from (job() for job in jobs)

    def _gathered(self, rows: np.ndarray) -> PyTree:
        """Examples from the host, filled up to the size of a piece: one size, one compilation."""
        size = self.steps * self.batch_size
        filled = rows if len(rows) == size else np.resize(rows, size)
        return jax.tree.map(lambda a: a[filled], self.data)


class Batches(NamedTuple):
    """A set of examples that a function gives: for each epoch an iterable of batches.

    Attributes:
      name: what an error calls it.
      make: `make(epoch)`.
      mesh: of the devices that they go to.
      first: the batch that the others are to be like.
      opened: the iterable of epoch 1, which was opened for that, until it is used.
    """

    name: str
    make: Callable[[int], Iterable[Any]]
    mesh: Mesh | None
    first: tuple[Any, ...]
    opened: list[Iterator[Any]]

    streamed = True

    @classmethod
    def of(cls, name: str, make: Callable, mesh: Mesh | None) -> "Batches":
        """A set, whose first batch is looked at."""
        require_callable(name, make)
        batches = _iterator(name, make, 1)
        first = next(batches, None)
        if first is None:
            raise ValueError(f"`{name}(1)` must give at least one batch. Got none.")
        require_batches(f"a batch of {name}(1)", first)
        opened = itertools.chain([first], batches)
        return cls(name, make, mesh, _on_host(first), [opened])

    @property
    def batch(self) -> PyTree:
        """The form of the first batch, without its values."""
        return batch_form(self.first, count_examples(self.first))

    def training(
        self, plan: Plan, key: Key[Array, ""], epoch: int, step: int
    ) -> Generator[Piece, None, None]:
        """The pieces of a run from a step of an epoch on; the batches before it are passed over."""
        del key  # the function knows what it draws
        return self._ahead(self._training(plan.epochs, epoch, step))

    def _training(self, epochs: int | None, epoch: int, step: int) -> Generator[Piece, None, None]:
        while epochs is None or epoch <= epochs:
            yield from self._epoch(epoch, step)
            epoch, step = epoch + 1, 0

    def measuring(self) -> Generator[Piece, None, None]:
        """The pieces of the set."""
        return self._ahead(self._epoch(1, 0))

    def _ahead(self, pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
        one_more = functools.partial(next, pieces, None)
        return _placed(_ahead(itertools.repeat(one_more), pieces.close), self.mesh)

    def _epoch(self, epoch: int, step: int) -> Generator[Piece, None, None]:
        opened = self.opened.pop() if epoch == 1 and self.opened else None
        batches = _iterator(self.name, self.make, epoch) if opened is None else opened
        passed = sum(1 for _ in itertools.islice(batches, step))
        size = count_examples(self.first)
        together = max(1, min(TOGETHER, PIECE // max(1, _bytes(self.first))))
        for group, ends in _grouped(self._checked(batches, epoch), together):
            of_group, steps = count_examples(group[0]), len(group)
            fill = (together if of_group == size else steps) - steps
            data = jax.tree.map(lambda *parts: np.concatenate(parts), *group, *[group[0]] * fill)
            yield Piece(data, None, epoch, step, steps, of_group, 0, ends)
            step += steps
            passed += steps
        if not passed:
            raise ValueError(
                f"`{self.name}({epoch})` must give at least one batch, from an iterable made anew "
                "for each epoch. Got none."
            )

    def _checked(self, batches: Iterable[Any], epoch: int) -> Iterator[Any]:
        name = f"a batch of {self.name}({epoch})"
        for batch in batches:
            require_batches(name, batch)
            batch = _on_host(batch)
            one = [jax.tree.map(lambda a: a[:1], form) for form in (batch, self.first)]
            require_same_form(name, one[0], f"the first of {self.name}(1)", one[1])
            for new, old in zip(jax.tree.leaves(batch), jax.tree.leaves(self.first), strict=True):
                if new.dtype != old.dtype:
                    raise TypeError(f"`{name}` must have dtype {old.dtype}. Got {describe(new)}.")
            yield batch


def _iterator(name: str, make: Callable, epoch: int) -> Iterator[Any]:
    made = make(epoch)
    try:
        return iter(made)
    except TypeError:
        got = describe(made)
        raise TypeError(f"`{name}({epoch})` must be an iterable of batches. Got {got}.") from None


def _grouped(batches: Iterable[Any], most: int) -> Iterator[tuple[list[Any], bool]]:
    """Batches of one size, at most so many together, or those that came in time; and whether they
    are the last.
    """
    group, began = [], 0.0
    for batch in batches:
        full = len(group) == most or time.perf_counter() - began > WAIT
        if group and (full or count_examples(batch) != count_examples(group[0])):
            yield group, False
            group = []
        if not group:
            began = time.perf_counter()
        group.append(batch)
    if group:
        yield group, True


def _ahead(
    jobs: Iterable[Callable[[], Piece | None]], close: Callable[[], Any] = lambda: None
) -> Generator[Piece, None, None]:
    """The pieces that jobs make, each by a thread while the one before it is used, until one is
    None; `close` is the last job.
    """
    wide = jnp.result_type(float) == jnp.float64

    def done(job):
        with jax.enable_x64(wide):  # what is set for one thread alone is not set for another
            return job()

    pool = ThreadPoolExecutor(1, "jaxnn examples")
    waiting: deque[Future[Piece | None]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(done, job))
            if len(waiting) > 1:
                if (piece := waiting.popleft().result()) is None:
                    return
                yield piece
        while waiting and (piece := waiting.popleft().result()) is not None:
            yield piece
    finally:
        for job in waiting:
            job.cancel()
        pool.submit(close)
        pool.shutdown(wait=False)


def _placed(
    pieces: Generator[Piece, None, None], mesh: Mesh | None
) -> Generator[Piece, None, None]:
    """The same pieces on the device, each sent there before the one before it is used up."""
    with contextlib.closing(pieces):
        last = None
        for piece in pieces:
            piece = piece._replace(data=send(piece.data, mesh, ours=True))
            if last is not None:
                yield last
            last = piece
        if last is not None:
            yield last


def _on_host(batch: Any) -> tuple[Any, ...]:
    return jax.tree.map(np.asarray, tuple(batch))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _memory() -> float:
    """Bytes of the device, or of the host where that is the device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return math.inf
