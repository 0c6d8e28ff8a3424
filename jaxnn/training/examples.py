"""The examples of a run, in pieces on the device: whole arrays, arrays streamed from the host, or
batches from a function of the epoch.

While the steps of one piece run, a thread gathers the next piece on the host.
"""

import atexit
import functools
import itertools
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key, PyTree

from jaxnn._jax import enable_x64
from jaxnn._validate import describe, require_same_form
from jaxnn.data import count_examples, require_batches
from jaxnn.training.steps import Plan, batch_form, send

# Bytes of a piece. It is large enough for many steps and small enough that freed memory is reused,
# which is several times as fast as new memory. Three pieces exist at once: one in use, one waiting,
# one being gathered.
PIECE = 2**24
# Arrays that fill more of the device than this fraction are streamed; parameters need the rest.
MOST_OF_DEVICE = 0.5
# The most batches from a function that are sent together, and how many seconds the first of them
# waits for the others.
TOGETHER, WAIT = 256, 0.25
# Seconds between looks at whether a run that waits for examples has been interrupted.
LOOK = 0.05
# The name of the threads that prepare pieces, and how many seconds Python waits for them to end
# when it exits.
THREAD, AT_EXIT = "jaxnn examples", 5.0


class Piece(NamedTuple):
    """The examples of some steps of one epoch.

    Attributes:
      data: arrays on the device.
      order: indices into `data`; None if all examples are used in order.
      epoch: its number, from 1.
      first: the number of the first step within the epoch.
      steps: number of steps.
      batch_size: examples per step.
      rest: examples of the last step if it is smaller, else 0.
      ends: whether this is the last piece of the epoch.
    """

    data: PyTree
    order: Any
    epoch: int
    first: int
    steps: int
    batch_size: int
    rest: int = 0
    ends: bool = True


Pieces = Generator[Piece, None, None]
# Returns whether a run should wait for examples no longer.
Stopped = Callable[[], Any]


def _never() -> bool:
    return False


class Examples(NamedTuple):
    """A set of examples held in arrays.

    Attributes:
      data: the arrays.
      count: number of examples.
      batch_size: examples per step.
      steps: maximum number of steps per piece.
      streamed: whether the arrays are on the host.
      mesh: the devices that they are sent to.
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
        """A set of examples. By default it is streamed if it would fill half of the device, is a
        memory map larger than a piece, or is read in slices, as from an HDF5 file.
        """
        count, leaves, size = count_examples(data, name), jax.tree.leaves(data), _bytes(data)
        if stream is None:
            mapped = any(isinstance(leaf, np.memmap) for leaf in leaves)
            on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
            stream = on_host and size > (PIECE if mapped else MOST_OF_DEVICE * _memory())
            stream = stream or any(map(_is_elsewhere, leaves))
        batch_size = min(batch_size, count)
        total = -(-count // batch_size)
        if not stream:
            return cls(send(data, mesh), count, batch_size, total, False, mesh)
        fitting = int(PIECE // (size / count * batch_size))
        steps = max(1, min(total, fitting))
        here = jax.tree.map(lambda a: a if _is_elsewhere(a) else np.asarray(a), data)
        return cls(here, count, batch_size, steps, True, mesh)

    @property
    def batch(self) -> PyTree:
        """The shapes and dtypes of a batch."""
        return batch_form(self.data, self.batch_size)

    def training(
        self, plan: Plan, key: Key[Array, ""], epoch: int, step: int, stopped: Stopped
    ) -> Pieces:
        """Yield the pieces of a run, starting at a step of an epoch; none once it is `stopped`."""
        if self.streamed:
            jobs = self._jobs(plan, key, epoch, step)
            yield from _ahead(jobs, self.mesh, stopped)
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

    def _piece(self, order: Any, plan: Plan, epoch: int, first: int) -> Piece:
        of_epoch, size = plan.per_epoch, plan.batch_size
        stop = min(first + self.steps, of_epoch)
        rows = np.asarray(order[first * size : stop * size])
        data = self._gathered(rows) if self.streamed else self.data
        rest = plan.rest if stop == of_epoch else 0
        return Piece(data, None, epoch, first, stop - first, size, rest, stop == of_epoch)

    def measuring(self, stopped: Stopped = _never) -> Pieces:
        """Yield the pieces of the set, each example once, in its own order; none once `stopped`."""
        size, total = self.batch_size, -(-self.count // self.batch_size)
        if not self.streamed and self.mesh is None and self.count % total == 0:
            size = self.count // total  # equal batches avoid compiling a smaller one
        piece = functools.partial(self._piece, range(self.count), Plan(self.count, size, 1), 1)
        jobs = (functools.partial(piece, first) for first in range(0, total, self.steps))
        if self.streamed:
            yield from _ahead(jobs, self.mesh, stopped)
        else:
            yield from (job() for job in jobs)

    def _gathered(self, rows: np.ndarray) -> PyTree:
        """Examples from the host, padded to the size of a piece, so that one program serves all."""
        size = self.steps * self.batch_size
        filled = rows if len(rows) == size else np.resize(rows, size)
        return self.rows(filled)

    def rows(self, rows: np.ndarray) -> PyTree:
        """The examples at `rows`. Arrays not in memory are read once per distinct row, in order."""

        def some(array):
            if not _is_elsewhere(array):
                return array[rows]
            unique, places = np.unique(rows, return_inverse=True)
            return np.asarray(array[unique])[places]

        return jax.tree.map(some, self.data)


class Batches(NamedTuple):
    """A set of examples from a function that returns an iterable of batches for each epoch.

    Attributes:
      name: what errors call the function.
      make: the function, `make(epoch)`.
      mesh: the devices that the batches are sent to.
      parts: how a batch lies on them if each process gives its own part; None if each gives the
        whole batch.
      first: the first batch, whose form the others must have.
      opened: the iterable of epoch 1, from which `first` was taken, until it is used.
    """

    name: str
    make: Callable[[int], Iterable[Any]]
    mesh: Mesh | None
    parts: NamedSharding | None
    first: tuple[Any, ...]
    opened: list[Iterator[Any]]

    streamed = True

    @classmethod
    def of(
        cls, name: str, make: Callable, mesh: Mesh | None, parts: NamedSharding | None = None
    ) -> "Batches":
        """A set whose first batch is read at once and validated."""
        batches = _iterator(name, make, 1)
        first = next(batches, None)
        if first is None:
            raise ValueError(f"`{name}(1)` must yield at least one batch. Got none.")
        opened = itertools.chain([first], batches)
        first = _as_batch(f"a batch of {name}(1)", first)
        return cls(name, make, mesh, parts, first, [opened])

    @property
    def whole(self) -> bool:
        """Whether each process gives the whole of each batch."""
        return self.parts is None and not any(map(_is_global, jax.tree.leaves(self.first)))

    @property
    def batch(self) -> PyTree:
        """The shapes and dtypes of the first batch."""
        return batch_form(self.first, self._count(self.first))

    def _count(self, batch: PyTree) -> int:
        """The number of examples of a batch, in all processes together."""
        return count_examples(batch) * (jax.process_count() if self.parts else 1)

    def training(
        self, plan: Plan, key: Key[Array, ""], epoch: int, step: int, stopped: Stopped
    ) -> Pieces:
        """Yield the pieces of a run from a step of an epoch on, skipping earlier batches; none once
        it is `stopped`.
        """
        del key  # the function does its own sampling
        return self._ahead(self._training(plan.epochs, epoch, step), stopped)

    def _training(self, epochs: int | None, epoch: int, step: int) -> Pieces:
        while epochs is None or epoch <= epochs:
            yield from self._epoch(epoch, step)
            epoch, step = epoch + 1, 0

    def measuring(self, stopped: Stopped = _never) -> Pieces:
        """Yield the pieces of the set; none once `stopped`."""
        return self._ahead(self._epoch(1, 0), stopped)

    def _ahead(self, pieces: Pieces, stopped: Stopped) -> Pieces:
        one_more = functools.partial(next, pieces, None)
        return _ahead(itertools.repeat(one_more), self.mesh, stopped, pieces.close, self.parts)

    def _epoch(self, epoch: int, step: int) -> Pieces:
        opened = self.opened.pop() if epoch == 1 and self.opened else None
        batches = _iterator(self.name, self.make, epoch) if opened is None else opened
        passed = sum(1 for _ in itertools.islice(batches, step))
        if passed < step:
            raise ValueError(
                f"`{self.name}({epoch})` must yield at least the {step} batches already taken. Got "
                f"{passed}."
            )
        size, together = count_examples(self.first), 1
        if self.whole:
            together = max(1, min(TOGETHER, PIECE // max(1, _bytes(self.first))))
        for group, ends in _grouped(self._checked(batches, epoch), together):
            data, of_group, steps = group[0], count_examples(group[0]), len(group)
            if together > 1:
                fill = together - steps if of_group == size else 0
                filled = [*group, *[group[0]] * fill]
                data = jax.tree.map(lambda *parts: np.concatenate(parts), *filled)
            yield Piece(data, None, epoch, step, steps, self._count(group[0]), 0, ends)
            step += steps
            passed += steps
        if not passed:
            raise ValueError(
                f"`{self.name}({epoch})` must yield at least one batch, from a new iterable for "
                "each epoch. Got none."
            )

    def _checked(self, batches: Iterable[Any], epoch: int) -> Iterator[Any]:
        name, form = f"a batch of {self.name}({epoch})", batch_form(self.first, 1)
        for batch in batches:
            batch = _as_batch(name, batch)
            require_same_form(name, batch_form(batch, 1), f"the first of {self.name}(1)", form)
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
    """Yield groups of batches of one size, and whether each group is the last.

    A group ends at `most` batches, once the first has waited `WAIT` seconds, or before an error.
    """
    group, began = [], 0.0
    try:
        for batch in batches:
            full = len(group) == most or time.perf_counter() - began > WAIT
            if group and (full or count_examples(batch) != count_examples(group[0])):
                yield group, False
                group = []
            if not group:
                began = time.perf_counter()
            group.append(batch)
    except Exception:  # the user's iterable may raise anything
        if group:
            yield group, False
        raise
    if group:
        yield group, True


def _ahead(
    jobs: Iterable[Callable[[], Piece | None]],
    mesh: Mesh | None,
    stopped: Stopped,
    close: Callable[[], Any] = lambda: None,
    parts: NamedSharding | None = None,
) -> Pieces:
    """Yield the pieces that jobs return, on the device, until one is None or the run is `stopped`
    while it waits. A thread prepares each while the one before is in use; `close` is its last job.
    If each process has its own `parts`, they are joined.
    """
    # Settings of the caller's thread that a new thread does not have.
    config: Any = jax.config
    wide, device = jnp.result_type(float) == jnp.float64, config.jax_default_device

    def done(job):
        with enable_x64(wide), jax.default_device(device):
            piece = job()
            if piece is None:
                return None
            if parts is None:
                return piece._replace(data=send(piece.data, mesh, ours=True))
            join = functools.partial(jax.make_array_from_process_local_data, parts)
            return piece._replace(data=jax.tree.map(join, piece.data))

    def result(future):
        while not (future.done() or stopped()):
            wait([future], LOOK)
        return future.result() if future.done() else None

    todo: queue.SimpleQueue[tuple[Future, Callable] | None] = queue.SimpleQueue()
    # An executor's thread would keep the process from ending while the user's iterable blocks.
    threading.Thread(target=_work, args=(todo,), name=THREAD, daemon=True).start()

    def submit(job):
        todo.put((future := Future(), job))
        return future

    waiting: deque[Future[Piece | None]] = deque()
    try:
        for job in jobs:
            waiting.append(submit(functools.partial(done, job)))
            if len(waiting) > 1:
                if (piece := result(waiting.popleft())) is None:
                    return
                yield piece
        while waiting and (piece := result(waiting.popleft())) is not None:
            yield piece
    finally:
        for future in waiting:
            future.cancel()
        submit(close)
        todo.put(None)


def _work(todo: "queue.SimpleQueue[tuple[Future, Callable] | None]") -> None:
    """Do jobs, one after the other, until there is None."""
    while (item := todo.get()) is not None:
        future, job = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)


@atexit.register
def _let_end() -> None:
    """Let threads end whose run is over: if one is inside JAX when Python exits, Python aborts."""
    until = time.monotonic() + AT_EXIT
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(max(0.0, until - time.monotonic()))


def _as_batch(name: str, batch: Any) -> tuple[Any, ...]:
    """A batch as a tuple of NumPy arrays, the arguments of the loss: a dictionary is one of them.

    Tensors of other libraries are converted, and buffers copied, as a loader may fill them again.
    """
    here = lambda x: np.asarray(x) if hasattr(x, "__array__") and not _is_global(x) else x  # noqa: E731
    batch = jax.tree.map(here, (dict(batch),) if isinstance(batch, Mapping) else batch)
    require_batches(name, batch)
    return jax.tree.map(lambda x: x if _is_global(x) else np.array(x), tuple(batch))


def _is_global(array: Any) -> bool:
    """Whether an array has parts in other processes."""
    return isinstance(array, jax.Array) and not array.is_fully_addressable


def _is_elsewhere(array: Any) -> bool:
    """Whether an array is not in memory but read in slices, as from an HDF5 file."""
    return hasattr(array, "shape") and not isinstance(array, np.ndarray | jax.Array | np.generic)


def _bytes(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)


def _memory() -> float:
    """Bytes of device memory, or of host memory on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return math.inf
