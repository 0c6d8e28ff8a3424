"""Training: runs that can be left alone.

The device takes the steps (`stepping.py`); the host comes back about twice a second and at the end of each epoch, and then it
measures, reports, saves and may stop. The loss, its gradient, the optimiser and the metrics come in as functions, so any
pytree of parameters and any model will do.

The order of the examples in epoch e comes from `jax.random.fold_in(key, e)` alone, so a resumed run takes the steps that an
uninterrupted one takes, to the bit.
"""

import contextlib
import dataclasses
import functools
import html
import operator
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from jaxnn._door import (
    as_mesh,
    as_path,
    require_all_floating,
    require_arguments,
    require_callable,
    require_count,
    require_floating,
    require_key,
    require_optimizer,
)
from jaxnn.checkpoint import Checkpoint, checkpoints, load_checkpoint, locked, save_checkpoint
from jaxnn.data import count_examples, require_batches
from jaxnn.progress import Progress
from jaxnn.stepping import State, compiled, loss_first, order_of_epoch, placed, require_scalars, taken

_LOOK_IN = 0.5  # the host comes back after about so many seconds of steps
_BETWEEN_SAVES = 10  # without `every`, checkpoints at the ends of epochs are so many seconds apart
_PIECE = 2**28  # bytes of streamed examples that are on the device at once


class History(NamedTuple):
    """What a run measured.

    Attributes:
      step_loss: the loss of each step's mini-batch, before that step's update.
      metrics: what was measured after each epoch, as arrays over the epochs.
      seconds: time of each epoch, its measurement included; the first contains compilation.

    Example:
      >>> History(np.array([2.0, 1.0]), {"train_loss": np.array([0.5])}, np.array([0.1])).metrics["train_loss"]
      array([0.5])
    """

    step_loss: Float[np.ndarray, "steps"]  # noqa: F821
    metrics: dict[str, Float[np.ndarray, "epochs"]]  # noqa: F821
    seconds: Float[np.ndarray, "epochs"]  # noqa: F821

    def _repr_html_(self) -> str:
        epochs = len(self.seconds)
        shown = [e for e in range(epochs) if (e + 1) % max(1, epochs // 10) == 0 or e == epochs - 1]
        names = ["epoch", *(name.replace("_", " ") for name in self.metrics), "seconds"]
        rows = [[str(e + 1), *(f"{v[e]:.4f}" for v in self.metrics.values()), f"{self.seconds[e]:.2f}"] for e in shown]
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in (names, *rows)]
        return f"<p>{len(self.step_loss)} steps</p><table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


class Status(NamedTuple):
    """How a run ended.

    Attributes:
      reason: "finished"; "no improvement" for as many epochs as `patience`; "not finite", where the step after `step` would
        have made it so; or "interrupted" by Ctrl-C or SIGTERM.
      step: how many steps were taken, all of them good.
      leaf: what was not finite: `loss`, or for instance `params['W1']`.

    Example:
      >>> Status("not finite", 12, "params['W1']").leaf
      "params['W1']"
    """

    reason: Literal["finished", "no improvement", "not finite", "interrupted"]
    step: int
    leaf: str | None = None


class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
      params: after the last good step; with `patience`, after the best epoch.
      opt_state: the optimiser's state after the last good step, to go on with.
      history: a `History`.
      status: a `Status`.

    Example:
      >>> f = lambda params, x: jnp.mean((params - x) ** 2)
      >>> result = fit(f, jnp.zeros(()), (jnp.ones(4),), optax.sgd(0.5), key=jax.random.key(0), epochs=1)
      >>> result.params, result.status.reason
      (Array(1., dtype=float32), 'finished')
    """

    params: PyTree
    opt_state: PyTree
    history: History
    status: Status


def fit(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    data: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    epochs: int = 10,
    batch_size: int = 100,
    grad: Callable = jax.grad,
    replacement: bool = False,
    test: PyTree | None = None,
    metrics: Callable[..., dict[str, Any]] | None = None,
    patience: int | None = None,
    watch: Callable[[dict[str, float]], float] | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool | Literal["previous"] = False,
    every: int | None = None,
    keep: int = 3,
    mesh: Mesh | None = None,
    stream: bool | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Fit:
    """Train `params` on mini-batches of `data`.

    Ctrl-C and SIGTERM end the run after the steps that are under way, with a checkpoint and status "interrupted"; a second one
    ends it at once.

    Args:
      loss: `loss(params, *batch)`, the mean over the examples of a batch.
      params: where to start; not overwritten.
      data: a tuple of arrays whose first axis is the examples, for instance `(x, t)`.
      optimizer: from optax.
      key: a PRNG key; epoch e uses `jax.random.fold_in(key, e)`.
      epochs: how many times the data are gone through.
      batch_size: examples a step, on all devices together. A last batch that is smaller is used as it is; nothing is dropped.
      grad: makes the gradient out of `loss`: `jax.grad`, `numerical_grad`, or anything with their calling form.
      replacement: draw every batch from all examples, as the chapter does, instead of going through them in a shuffled order.
      test: examples that are measured and not trained on, in the form of `data`.
      metrics: `metrics(params, *batch)`, a dictionary of means over the examples of a batch. With `metrics`, `test` or
        `patience`, the loss and the metrics are measured after each epoch on all of `data` and of `test`, weighted by
        examples, as `train_...` and `test_...`.
      patience: stop after so many epochs without improvement, and return the best parameters.
      watch: of an epoch's record, what is to become smaller; by default the loss on `test`, or on `data` if there is no `test`.
      checkpoint: a directory for checkpoints, of this run alone; all processes must see it.
      resume: go on from the newest checkpoint there, if there is one; "previous": from the newest that is whole.
      every: steps between checkpoints; by default one at the end of an epoch, if ten seconds have passed, and one at the end.
      keep: how many of the newest checkpoints stay.
      mesh: devices that share each batch, also of several processes. The numbers are those of one device, up to rounding.
      stream: keep `data` on the host, and send it in pieces; by default where NumPy arrays would fill half of the device.
      on_progress: called with a `Progress` about twice a second and after each epoch, in process 0 alone.

    Returns:
      A `Fit` of parameters, optimiser state, history and status.

    Raises:
      TypeError: `params` has no floating leaf; `epochs` or another count is not an integer.
      ValueError: `data` is empty, or its arrays differ in length; the checkpoint is of another run, or broken.
      FileExistsError: `checkpoint` holds checkpoints, and `resume` is not set.
      BlockingIOError: another run holds `checkpoint`.

    Example:
      >>> digits = jaxnn.load_digits()
      >>> params = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
      >>> train = (digits.x_train, digits.t_train)
      >>> result = fit(jaxnn.loss, params, train, optax.adam(0.01), key=jax.random.key(1), epochs=2)
      >>> result.status
      Status(reason='finished', step=30, leaf=None)
    """
    for name, function in (("loss", loss), ("grad", grad)):
        require_callable(name, function)
    require_floating("params", params)
    if grad is jax.grad:
        require_all_floating("params", params)
    require_optimizer("optimizer", optimizer)
    require_key("key", key)
    require_batches("data", data)
    if test is not None:
        require_batches("test", test, data)
    if watch is not None:
        require_arguments("watch", watch, {})
    if on_progress is not None:
        require_callable("on_progress", on_progress)
    if checkpoint is not None:
        as_path("checkpoint", checkpoint)
    counts = {"epochs": epochs, "batch_size": batch_size, "keep": keep, "patience": patience, "every": every}
    for name, number in counts.items():
        if number is not None or name in ("epochs", "batch_size", "keep"):
            require_count(name, number, least=1)
    mesh = as_mesh("mesh", mesh)
    if not isinstance(resume, bool | int | str) or resume not in (True, False, "previous"):
        raise ValueError(f"`resume` must be True, False or 'previous'. Got {resume!r}.")
    if resume and checkpoint is None:
        raise ValueError(f"`resume` must come with `checkpoint`, a directory. Got {resume!r} alone.")
    count = count_examples(data)
    batch_size = min(batch_size, count)
    per_epoch, rest = -(-count // batch_size), 0 if replacement else count % batch_size
    total = per_epoch * epochs
    place = functools.partial(placed, mesh=mesh)
    source = _Source.of("data", data, batch_size, place, stream)
    sets = {"train": source} if test is None else {"train": source, "test": _Source.of("test", test, batch_size, place, stream)}
    params = place(params)
    require_scalars(loss, metrics, params, source.data)
    run, measure = compiled(loss, optimizer, grad, metrics, batch_size, rest, mesh)
    state, log = State(params, place(optimizer.init(params))), _Log()
    measured = metrics is not None or test is not None or patience is not None
    watch = watch or (lambda record: record["train_loss" if test is None else "test_loss"])
    best = params if patience else None
    # What has to be the same for a resumed run to be the same run.
    identity = {
        "examples": count,
        "batch_size": batch_size,
        "replacement": replacement,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }
    first_process = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if checkpoint is not None:
            if first_process:
                stack.enter_context(locked(checkpoint))
            found = _find(checkpoint, resume, identity)
            if found:
                log = _Log.of(found)
                params, opt_state = (found.restore(part, getattr(state, part)) for part in ("params", "opt_state"))
                state = State(place(params), place(opt_state))
                best = place(found.restore("best", params) if "best" in found.leaves else params) if patience else None
        signals = stack.enter_context(_signals())
        saved, saved_at = (log.step if log.step else None), time.perf_counter()
        reason = "no improvement" if patience and log.waited >= patience else None
        pace, order, broken = 1, None, None
        while reason is None and log.step < total:
            began = time.perf_counter()
            epoch, start = divmod(log.step, per_epoch)
            if order is None or start == 0:
                order = order_of_epoch(key, epoch + 1, count, per_epoch * batch_size, replacement)
                order = order if mesh is None else place(order)
            stop = min(per_epoch, start + min(pace, source.steps), start + every - log.step % every if every else per_epoch)
            piece, rows, offset = source.piece(order, start, stop)
            short = np.bool_(rest > 0 and stop == per_epoch)
            first, last = np.int32(start - offset), np.int32(stop - offset)
            stretch = taken(run, state, piece, rows, start=first, stop=last, short=short)
            state, broken = stretch.state, stretch.not_finite()
            log.passed(
                np.asarray(stretch.losses)[first : int(stretch.reached)], batch_size, rest if short else 0, broken is not None
            )
            seconds = time.perf_counter() - began
            pace = max(1, min(10 * pace, int((stop - start) * _LOOK_IN / seconds)))
            record = None
            if broken:
                reason = "not finite"
            elif stop == per_epoch:
                mean = log.mean_loss
                if measured:
                    record = {f"{name}_{k}": v for name, s in sets.items() for k, v in s.measure(measure, state.params).items()}
                log.ended(record, time.perf_counter() - began)
                if record and patience:
                    best = state.params if log.improved(watch(record)) else best
                    reason = "no improvement" if log.waited >= patience else None
            else:
                mean, log.spent = log.mean_loss, log.spent + seconds
            if on_progress and first_process and not broken:
                on_progress(Progress(epoch + 1, epochs, log.step, total, mean, record))
            interrupted, pace = _agreed(bool(signals), pace)
            if interrupted and log.step < total:
                reason = reason or "interrupted"
            due = log.step % every == 0 if every else stop == per_epoch and time.perf_counter() - saved_at > _BETWEEN_SAVES
            if checkpoint is not None and first_process and log.step != saved and (due or reason or log.step == total):
                parts = {"params": state.params, "opt_state": state.opt_state, **({"best": best} if patience else {})}
                save_checkpoint(checkpoint, log.step, parts, records=log.arrays(), info=identity, keep=keep)
                saved, saved_at = log.step, time.perf_counter()
        if checkpoint is not None and jax.process_count() > 1:  # when one returns, what process 0 saved is there for it
            multihost_utils.sync_global_devices("the last checkpoint is written")
    status = Status(reason or "finished", log.step, broken)
    return Fit(best if patience else state.params, state.opt_state, log.history(), status)


@dataclasses.dataclass
class _Log:
    """What the host remembers of a run; all of it is in a checkpoint."""

    step: int = 0
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)
    records: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)
    spent: float = 0.0  # seconds of the epoch that is running
    total: float = 0.0  # its losses so far, each times its examples
    examples: int = 0
    best: float = np.inf
    waited: int = 0  # epochs since the best

    @classmethod
    def of(cls, found: Checkpoint) -> "_Log":
        """As it was when a checkpoint was written."""
        spent, total, examples, best, waited = found.records["numbers"].tolist()
        log = cls(found.step, [found.records["step_loss"]], {}, found.records["seconds"].tolist(), spent, total)
        log.examples, log.best, log.waited = int(examples), best, int(waited)
        log.records = {name[8:]: a.tolist() for name, a in found.records.items() if name.startswith("metrics/")}
        return log

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of` reads."""
        history = self.history()
        numbers = np.array([self.spent, self.total, self.examples, self.best, self.waited])
        metrics = {f"metrics/{name}": values for name, values in history.metrics.items()}
        return {"step_loss": history.step_loss[: self.step], "seconds": history.seconds, "numbers": numbers, **metrics}

    def history(self) -> History:
        """The same for the user."""
        step_loss = np.concatenate(self.losses) if self.losses else np.zeros(0, np.float32)
        return History(step_loss, {name: np.array(values) for name, values in self.records.items()}, np.array(self.seconds))

    @property
    def mean_loss(self) -> float:
        """Over the examples of this epoch so far."""
        return self.total / self.examples

    def passed(self, losses: np.ndarray, batch_size: int, last: int, broken: bool) -> None:
        """Note the losses of a stretch; the final one is of `last` examples, unless that is 0, and counts unless `broken`."""
        self.losses.append(losses)
        sizes = np.full(len(losses), batch_size)
        sizes[-1] = last or batch_size
        taken = len(losses) - broken
        self.step += taken
        self.total += float(losses[:taken].astype(np.float64) @ sizes[:taken])
        self.examples += int(sizes[:taken].sum())

    def ended(self, record: dict[str, float] | None, seconds: float) -> None:
        """Close an epoch."""
        for name, value in (record or {}).items():
            self.records.setdefault(name, []).append(value)
        self.seconds.append(self.spent + seconds)
        self.spent, self.total, self.examples = 0.0, 0.0, 0

    def improved(self, watched: float) -> bool:
        """Whether an epoch was better than all before it."""
        better = watched < self.best
        self.best, self.waited = (watched, 0) if better else (self.best, self.waited + 1)
        return better


class _Source(NamedTuple):
    """Examples, on the device or, if streamed, on the host."""

    data: PyTree
    count: int
    batch_size: int
    steps: int  # at most so many in a piece
    streamed: bool
    place: Callable

    @classmethod
    def of(cls, name: str, data: PyTree, batch_size: int, place: Callable, stream: bool | None) -> "_Source":
        count = count_examples(data, name)
        leaves = jax.tree.leaves(data)
        size = sum(leaf.nbytes for leaf in leaves)
        if stream is None:
            memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", np.inf)
            stream = all(isinstance(leaf, np.ndarray) for leaf in leaves) and size > memory / 2
        if not stream:
            return cls(place(data), count, batch_size, count, False, place)
        steps = max(1, min(-(-count // batch_size), int(_PIECE // (size / count * batch_size))))
        return cls(jax.tree.map(np.asarray, data), count, batch_size, steps, True, place)

    def piece(self, order, start: int, stop: int) -> tuple[PyTree, Any, int]:
        """The examples of some steps, in which order, and the number of the step that comes first there."""
        if not self.streamed:
            return self.data, order, 0
        rows = np.asarray(order)[start * self.batch_size : stop * self.batch_size]
        filled = np.resize(rows, self.steps * self.batch_size)  # one size, one compilation
        return self.place(jax.tree.map(lambda a: a[filled], self.data)), np.arange(len(filled), dtype=np.int32), start

    def measure(self, measure: Callable, params: PyTree) -> dict[str, float]:
        """Means over all examples."""
        if not self.streamed:
            return loss_first({name: float(value) for name, value in measure(params, self.data).items()})
        size, sums = self.steps * self.batch_size, {}
        for first in range(0, self.count, size):
            piece = slice(first, first + size)
            record = measure(params, self.place(jax.tree.map(operator.itemgetter(piece), self.data)))
            for name, value in record.items():
                sums[name] = sums.get(name, 0.0) + float(value) * min(size, self.count - first)
        return loss_first({name: total / self.count for name, total in sums.items()})


def _find(directory, resume, identity):
    """The checkpoint to go on from, if there is one."""
    there = checkpoints(directory)
    if there and not resume:
        raise FileExistsError(
            f"`checkpoint` must be empty unless `resume` is set. Got {str(directory)!r}, with {there[-1].name}."
        )
    found = load_checkpoint(directory, previous=resume == "previous") if there else None
    if jax.process_count() > 1:
        step = np.array(found.step if found else -1)
        multihost_utils.assert_equal(step, "`checkpoint` must be a directory that all processes see.")
    if found is None:
        return None
    if found.info.keys() != identity.keys():
        raise ValueError(f"`checkpoint` must hold a run of `fit`. Got {str(directory)!r}, with something else.")
    for name, value in identity.items():
        if found.info[name] != value:
            raise ValueError(f"`{name}` must be {found.info[name]}, as in the checkpoint. Got {value}.")
    return found


def _agreed(interrupted, pace):
    """What the processes of a run decide together: to stop if one of them is told to, and how many steps are next."""
    if jax.process_count() == 1:
        return interrupted, pace
    all_of_them = multihost_utils.process_allgather(np.array([interrupted, pace]))
    return bool(all_of_them[:, 0].any()), int(all_of_them[:, 1].min())


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted in a list; a second one does what it did before."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # Python leaves signals to the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
        if caught:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        caught.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
