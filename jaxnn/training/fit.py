"""Training: runs that can be left alone.

The device takes the steps (`steps.py`); the host comes back about twice a second and at the end of
each epoch, and then it measures, reports, saves and may stop. The loss, its gradient, the optimiser
and the metrics come in as functions, so any pytree of parameters and any model will do.

The order of the examples in epoch e comes from `jax.random.fold_in(key, e)` alone, so a resumed run
takes the steps that an uninterrupted one takes, to the bit.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from jaxnn._arguments import arrays_of
from jaxnn._files import as_path, locked
from jaxnn._validate import (
    as_mesh,
    require_arguments,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_differentiable,
    require_key,
    require_optimizer,
    require_same_form,
)
from jaxnn.data import count_examples, require_batches
from jaxnn.descent import DivergenceWarning
from jaxnn.training.checkpoint import (
    Checkpoint,
    checkpoints,
    delete_leftovers,
    load_checkpoint,
    save_checkpoint,
)
from jaxnn.training.examples import Examples
from jaxnn.training.history import Fit, Log, Reason, Status
from jaxnn.training.objective import Objective
from jaxnn.training.progress import Progress
from jaxnn.training.steps import (
    Chunk,
    Plan,
    State,
    compiled,
    replicate,
    rows_of,
    run_chunk,
)

# Of what a checkpoint of a run holds; one of another is none that can be gone on with.
LAYOUT = 2
# Epochs of a run that says nothing else.
EPOCHS = 10
# The host comes back after about so many seconds of steps: often enough for a person to watch, too
# seldom to cost anything.
PACE = 0.5
# The number of steps in a chunk grows by this at most: the first ones contain compilation.
GROWTH = 10
# Without `every`, checkpoints at the ends of epochs are so many seconds apart.
BETWEEN_SAVES = 10


def fit(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    data: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int = 100,
    grad: Callable = jax.grad,
    replacement: bool = False,
    test: PyTree | Mapping[str, PyTree] | None = None,
    metrics: Callable[..., dict[str, Any]] | None = None,
    evaluate_every: int = 1,
    evaluate_steps: int | None = None,
    measure: Sequence[str] | None = None,
    model_state: PyTree = None,
    has_aux: bool = False,
    opt_state: PyTree = None,
    eval_params: Callable[[PyTree, PyTree], PyTree] | None = None,
    patience: int | None = None,
    watch: Callable[[dict[str, Any]], float] | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool | Literal["previous"] = False,
    every: int | None = None,
    keep: int = 3,
    mesh: Mesh | None = None,
    stream: bool | None = None,
    on_progress: Callable[[Progress], Any] | None = None,
    on_interrupt: Literal["raise", "return"] = "raise",
) -> Fit:
    """Train `params` on mini-batches of `data`.

    Ctrl-C and SIGTERM, SIGHUP and SIGUSR1 end the run after the steps that are under way, with a
    checkpoint and status "interrupted", and KeyboardInterrupt is raised; a second one ends it at
    once.

    Args:
      loss: `loss(params, *batch)`, the mean over the examples of a batch. If it takes a keyword
        `key`, step s of epoch e has its own, `fold_in(fold_in(key, e), s)`; what is measured has
        `fold_in(key, 0)`, or none if `key` has a default.
      params: where to start; any pytree, not overwritten. Its floating and complex leaves are
        trained; everything else is held fixed.
      data: a tuple of arrays whose first axis is the examples, for instance `(x, t)`.
      optimizer: from optax.
      key: a PRNG key; epoch e uses `jax.random.fold_in(key, e)`.
      epochs: how many times the data are gone through: ten by default, or as often as `max_steps`
        takes.
      max_steps: steps after which the run ends, if its epochs do not end it before.
      batch_size: examples a step, on all devices together. A last batch that is smaller is used as
        it is; nothing is dropped.
      grad: makes the gradient out of `loss`: `jax.grad`, `numerical_grad`, or anything with their
        calling form.
      replacement: draw every batch from all examples, as the chapter does, instead of going through
        them in a shuffled order.
      test: examples that are measured and not trained on, in the form of `data`; or several sets of
        them by name.
      metrics: `metrics(params, *batch)`, a dictionary of means over the examples of a batch,
        numbers or arrays. With `metrics`, `test` or `patience`, the loss and the metrics are
        measured after each epoch on all of `data` and of `test`, weighted by examples, as
        `train_...` and `test_...`.
      evaluate_every: epochs between measurements.
      evaluate_steps: steps between measurements, in the place of epochs.
      measure: the names of the sets that are measured, of "train", "test" or those of `test`; all
        by default. Without "train" the training data are not gone through for that.
      model_state: what the model remembers besides its parameters, as batch normalisation does. The
        loss is then `loss(params, model_state, *batch)`, and returns `(value, model_state)`; the
        metrics are `metrics(params, model_state, *batch)`.
      has_aux: whether the loss returns `(value, aux)`, a dictionary of scalars that is recorded at
        each step in `history.aux`; with a state `(value, (model_state, aux))`.
      opt_state: the optimiser's state to go on from; by default `optimizer.init` of what is
        trained.
      eval_params: `eval_params(params, opt_state)`, the parameters that are measured, and kept as
        best: an average of those of many steps, say.
      patience: stop after so many measurements without improvement, and return the best
        parameters.
      watch: of a measurement's record, what is to become smaller; by default the loss on `test`, or
        on the first of several sets, or on `data` if there is no `test`.
      checkpoint: a directory for checkpoints, of this run alone; all processes must see it.
      resume: go on from the newest checkpoint there, if there is one; "previous": from the newest
        that is whole.
      every: steps between checkpoints; by default one at the end of an epoch, if ten seconds have
        passed, and one at the end.
      keep: how many of the newest checkpoints stay.
      mesh: devices that share each batch, also of several processes. The numbers are those of one
        device, up to rounding.
      stream: keep `data` on the host, and send it in pieces; by default where NumPy arrays would
        fill half of the device.
      on_progress: called with a `Progress` about twice a second and after each measurement, in
        process 0 alone. If it returns a true value, the run ends with status "stopped"; what it
        raises goes on up once the run is saved.
      on_interrupt: "return" gives the `Fit` back where "raise" has it as the `fit` of a
        KeyboardInterrupt.

    Returns:
      A `Fit` of parameters, optimiser state, history and status.

    Raises:
      KeyboardInterrupt: interrupted; its `fit` is what was reached.
      TypeError: `params` has no floating leaf; `epochs` or another count is not an integer.
      ValueError: `data` is empty, or its arrays differ in length; the checkpoint is of another run,
        or broken.
      FileExistsError: `checkpoint` holds checkpoints, and `resume` is not set.
      BlockingIOError: another run holds `checkpoint`.

    Warns:
      DivergenceWarning: the loss ended above twice what it was; RuntimeWarning: what is watched is
        NaN.

    Example:
      >>> digits = jaxnn.load_digits()
      >>> params = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
      >>> train = (digits.x_train, digits.t_train)
      >>> key = jax.random.key(1)
      >>> jaxnn.fit(jaxnn.loss, params, train, optax.adam(0.01), key=key, epochs=2).status
      Status(reason='finished', step=30, leaf=None)
    """
    require_run(
        loss, grad, data, test, EPOCHS if epochs is None else epochs, batch_size, on_progress
    )
    _require_counts(
        evaluate_every=evaluate_every,
        max_steps=max_steps,
        evaluate_steps=evaluate_steps,
        patience=patience,
    )
    require_choice("on_interrupt", on_interrupt, ("raise", "return"))
    require_differentiable("params", params)
    if model_state is not None:
        require_arrays("model_state", model_state)
    if eval_params is not None:
        require_arguments("eval_params", eval_params, params, opt_state)
    require_optimizer("optimizer", optimizer)
    require_key("key", key)
    if watch is not None:
        require_arguments("watch", watch, {})
    _require_checkpoints(checkpoint, resume, keep, every)
    mesh = as_mesh("mesh", mesh)
    place = functools.partial(replicate, mesh=mesh)
    plan = _plan(count_examples(data), batch_size, epochs, replacement, max_steps)
    sets = _sets(data, test, plan.batch_size, place, stream)
    names = _require_measure(measure, tuple(sets))
    measured = metrics is not None or test is not None or patience is not None
    across = not (measured or plan.rest or sets["train"].streamed)
    skeleton, arrays = arrays_of(params)
    state = State(place(arrays), None, place(model_state))
    objective = Objective.of(loss, metrics, grad, skeleton, data, model_state, has_aux)
    objective.require(state.params, state.model_state, key, sets["train"].data)
    start = optimizer.init(skeleton.split(state.params)[0])
    if opt_state is not None:
        require_same_form("opt_state", opt_state, "optimizer.init(...)", start)
    state = state._replace(opt_state=place(start if opt_state is None else opt_state))
    take, evaluate = compiled(objective, optimizer, plan, mesh, across)
    watched = f"{[*list(sets)[1:], 'train'][0]}_loss"
    run = _Run(
        plan=plan,
        key=key,
        mesh=mesh,
        take=take,
        evaluate=evaluate,
        across=across,
        sets=sets,
        measured=names if measured else (),
        every=evaluate_steps or evaluate_every * plan.per_epoch,
        watch=watch or (lambda record: record[watched]),
        patience=patience,
        saves=None if checkpoint is None else _Saves(checkpoint, every, keep),
        on_progress=on_progress if jax.process_index() == 0 else None,
        objective=objective,
        eval_params=eval_params,
        state=state,
        best=state,
    )
    with run.held():
        run.begin(resume)
        while not run.ended:
            run.take_steps()
            record = run.measurements()
            run.report(record)
            run.listen()
            run.save()
        run.meet()
    result = run.result()
    if result.status.reason == "interrupted" and on_interrupt == "raise":
        raise Interrupted(result)
    if result.status.reason == "finished":
        _warn_of_divergence(result, run.log.mean_loss)
    return result


def _plan(
    count: int, batch_size: int, epochs: int | None, replacement: bool, max_steps: int | None
) -> Plan:
    """How long a run is: so many epochs, or as many as its steps take."""
    size = min(batch_size, count)
    if epochs is None:
        epochs = EPOCHS if max_steps is None else -(-max_steps // -(-count // size))
    return Plan(count, size, epochs, replacement, max_steps)


def _sets(
    data: PyTree, test: Any, batch_size: int, place: Callable, stream: bool | None
) -> dict[str, Examples]:
    """The sets of examples by name: "train" first, then what else is measured."""
    sets = {"train": Examples.of("data", data, batch_size, place, stream)}
    tests = {} if test is None else dict(test) if isinstance(test, Mapping) else {"test": test}
    for name, examples in tests.items():
        label = "test" if name == "test" else f"test[{name!r}]"
        sets[name] = Examples.of(label, examples, batch_size, place, stream)
    return sets


def _warn_of_divergence(result: Fit, ended: float) -> None:
    began = float(result.history.step_loss[0])
    if ended > began + abs(began):
        warnings.warn(
            f"fit diverged: the loss went from {began:.6g} to {ended:.6g} in "
            f"{result.status.step} steps; a smaller learning rate may converge.",
            DivergenceWarning,
            stacklevel=3,
        )


class Interrupted(KeyboardInterrupt):
    """A run that was interrupted, and saved; `fit` is what it reached."""

    def __init__(self, fit: Fit):
        super().__init__(f"interrupted after step {fit.status.step}")
        self.fit = fit


@dataclasses.dataclass
class _Saves:
    """When and where a run is saved.

    Attributes:
      directory: where.
      every: steps between checkpoints, or None.
      keep: how many stay.
      step: of the last one, or None.
      time: of the last one.
    """

    directory: str | os.PathLike
    every: int | None
    keep: int
    step: int | None = None
    time: float = 0.0


@dataclasses.dataclass
class _Run:
    """A run under way.

    Attributes:
      plan: how its epochs are cut into steps.
      key: of the order of its examples.
      mesh: devices that share each batch.
      take: takes a chunk of steps.
      evaluate: measures loss and metrics.
      across: whether `take` takes steps across epochs.
      sets: examples by name; those to train on are called "train".
      measured: the names of those that are measured.
      every: steps between measurements.
      watch: of a record, what is to become smaller.
      patience: for how many epochs to wait until it does.
      saves: when and where the run is saved, or None.
      on_progress: what is told.
      objective: what is minimised.
      eval_params: makes the parameters that are measured.
      state: the arrays of the parameters, the optimiser's state, and the model's own.
      best: the best so far.
      log: what else is remembered.
      pace: steps in the next chunk.
      order: of the examples of this epoch.
      broken: what was not finite.
      reason: why the run ends, once it does.
      caught: the signals that were caught.
    """

    plan: Plan
    key: Key[Array, ""]
    mesh: Mesh | None
    take: Callable[..., Chunk]
    evaluate: Callable
    across: bool
    sets: dict[str, Examples]
    measured: tuple[str, ...]
    every: int
    watch: Callable[[dict[str, Any]], float]
    patience: int | None
    saves: _Saves | None
    on_progress: Callable[[Progress], Any] | None
    objective: Objective
    eval_params: Callable | None
    state: State
    best: State
    log: Log = dataclasses.field(default_factory=Log)
    pace: int = 1
    order: Any = None
    broken: str | None = None
    reason: Reason | None = None
    caught: list[int] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The run's directory, held against other runs, and its signals."""
        with contextlib.ExitStack() as stack:
            if self.saves is not None and jax.process_index() == 0:
                delete_leftovers(stack.enter_context(locked("checkpoint", self.saves.directory)))
            stack.enter_context(_signals(self.caught))
            yield

    def begin(self, resume: bool | str) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self.saves is None:
            return
        found = _find(self.saves.directory, resume, self.identity)
        if found is not None:
            self.log = Log.of(found)
            self.state = self._restored(found, "")
            self.best = (
                self._restored(found, "best_") if "best_params" in found.leaves else self.state
            )
            self._lose_patience()
        self.saves.step, self.saves.time = self.log.step or None, time.perf_counter()

    def _restored(self, found: Checkpoint, prefix: str) -> State:
        """A state out of a checkpoint."""
        parts = {
            name: found.restore(f"{prefix}{name}", like)
            for name, like in self.state._asdict().items()
            if like is not None
        }
        return State(**{"model_state": None, **replicate(parts, self.mesh)})

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same for a resumed run to be the same run."""
        return {
            "examples": self.plan.count,
            "batch_size": self.plan.batch_size,
            "replacement": self.plan.replacement,
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "layout": LAYOUT,
        }

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to do."""
        return self.reason is not None or self.log.step >= self.plan.steps

    @property
    def epoch(self) -> int:
        """The epoch that is running or, between chunks, has just ended; from 1."""
        return max(1, -(-self.log.step // self.plan.per_epoch))

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether the last chunk was an epoch's last."""
        return self.log.step % self.plan.per_epoch == 0

    @property
    def is_due(self) -> bool:
        """Whether it is time to measure: every so many steps, and at the end."""
        step = self.log.step
        return bool(self.measured) and (step % self.every == 0 or step >= self.plan.steps)

    def take_steps(self) -> None:
        """Take some steps, as many as the host can wait for."""
        began, before = time.perf_counter(), self.log.step
        first, offset, chunk = self._stretch() if self.across else self._part_of_epoch()
        self.state, self.broken = chunk.state, chunk.not_finite()
        taken = int(chunk.reached) - first
        of_steps = lambda x: np.asarray(x).reshape(-1)[offset : offset + taken]  # noqa: E731
        losses, aux = of_steps(chunk.losses), jax.tree.map(of_steps, chunk.aux)
        seconds = time.perf_counter() - began
        sizes, per_epoch = self._sizes(before, taken), self.plan.per_epoch
        self.log.add_steps(losses, sizes, self.broken is not None, per_epoch, aux)
        self.log.pass_epochs(before, per_epoch, seconds)
        if self.broken is not None:
            self.reason = "not finite"
        fitting = int(max(taken, 1) * PACE / seconds)
        self.pace = max(1, min(GROWTH * self.pace, fitting))

    def _stretch(self) -> tuple[int, int, Chunk]:
        """Steps across epochs; before them what the chunk calls the first, and its place there."""
        begin, plan = self.log.step, self.plan
        longest = rows_of(plan) * plan.per_epoch - begin % plan.per_epoch
        stop = min(begin + min(self._length(), longest), plan.steps)
        data = self.sets["train"].piece(None, 0, 0).data
        key = replicate(self.key, self.mesh)
        limits = {"start": np.int32(begin), "stop": np.int32(stop), "short": np.bool_(False)}
        chunk = run_chunk(self.take, self.state, data, key, **limits)
        return begin, begin % plan.per_epoch, chunk

    def _part_of_epoch(self) -> tuple[int, int, Chunk]:
        """Steps of one epoch, likewise."""
        plan = self.plan
        epoch, start = divmod(self.log.step, plan.per_epoch)
        if self.order is None or start == 0:
            order = plan.order(self.key, epoch + 1)
            self.order = order if self.mesh is None else replicate(order, self.mesh)
        stop = min(start + self._length(), plan.per_epoch, start + plan.steps - self.log.step)
        short = plan.rest > 0 and stop == plan.per_epoch
        piece = self.sets["train"].piece(self.order, start, stop)
        first, last = np.int32(start - piece.first), np.int32(stop - piece.first)
        key = np.uint32(0)
        if self.objective.form.keyed:
            key = replicate(plan.key_of(self.key, epoch + 1), self.mesh)
        given = piece.data, piece.order, key, np.int32(piece.first)
        limits = {"start": first, "stop": last, "short": np.bool_(short)}
        return int(first), int(first), run_chunk(self.take, self.state, *given, **limits)

    def _sizes(self, before: int, taken: int) -> np.ndarray:
        """The examples of steps."""
        numbers = np.arange(before, before + taken) % self.plan.per_epoch
        last = (numbers == self.plan.per_epoch - 1) & (self.plan.rest > 0)
        return np.where(last, self.plan.rest, self.plan.batch_size)

    def measured_state(self) -> State:
        """What is measured: the parameters as they are, or as `eval_params` makes them."""
        if self.eval_params is None:
            return self.state
        params = self.objective.skeleton.fill(self.state.params)
        made = arrays_of(self.eval_params(params, self.state.opt_state))[1]
        require_same_form("eval_params(...)", made, "params", self.state.params)
        return self.state._replace(params=made)

    def measurements(self) -> dict[str, Any] | None:
        """What is measured where that is due."""
        if self.broken is not None or not self.is_due:
            return None
        began, record = time.perf_counter(), None
        if self.measured:
            state, key = self.measured_state(), replicate(self.plan.key_of(self.key, 0), self.mesh)
            measure = functools.partial(self.evaluate, state.params, state.model_state, key)
            record = {
                f"{name}_{what}": value
                for name in self.measured
                for what, value in self.sets[name].evaluate(measure).items()
            }
        self.log.add_seconds(time.perf_counter() - began, self.at_end_of_epoch)
        return record

    def report(self, record: dict[str, Any] | None) -> None:
        """Remember what was measured, and say where the run stands."""
        if self.broken is not None:
            return
        plan = self.plan
        if record is not None:
            self.log.measured(record)
            if self.patience is not None:
                if self.log.watch(self._watched(record)):
                    self.best = self.measured_state()
                self._lose_patience()
        if self.on_progress is None:
            return
        step, mean = self.log.step, self.log.mean_loss
        told = Progress(self.epoch, plan.epochs, step, plan.steps, mean, record)
        try:
            if self.on_progress(told):
                self.reason = self.reason or "stopped"
        except BaseException:
            self.reason = self.reason or "stopped"
            self.save()
            raise

    def listen(self) -> None:
        """Hear what the system, and the other processes, want."""
        stopped, interrupted, self.pace = _agreed(
            self.reason == "stopped", bool(self.caught), self.pace
        )
        if stopped:
            self.reason = "stopped"
        if interrupted and self.log.step < self.plan.steps:
            self.reason = self.reason or "interrupted"

    def save(self) -> None:
        """Write a checkpoint, if one is due."""
        if self.saves is None or jax.process_index() != 0 or self.log.step == self.saves.step:
            return
        if self.saves.every:
            due = self.log.step % self.saves.every == 0
        else:
            waited = time.perf_counter() - self.saves.time > BETWEEN_SAVES
            due = self.at_end_of_epoch and waited
        if not (due or self.ended):
            return
        states = {"": self.state} | ({} if self.patience is None else {"best_": self.best})
        parts = {
            f"{prefix}{name}": part
            for prefix, state in states.items()
            for name, part in state._asdict().items()
            if part is not None
        }
        save_checkpoint(
            self.saves.directory,
            self.log.step,
            parts,
            records=self.log.arrays(),
            info=self.identity,
            keep=self.saves.keep,
        )
        self.saves.step, self.saves.time = self.log.step, time.perf_counter()

    def meet(self) -> None:
        """Wait for process 0, so that what it saved is there when the others return."""
        if self.saves is not None and jax.process_count() > 1:
            multihost_utils.sync_global_devices("the last checkpoint is written")

    def result(self) -> Fit:
        """What the user gets."""
        status = Status(self.reason or "finished", self.log.step, self.broken)
        state = self.state if self.patience is None else self.best
        params = self.objective.skeleton.fill(state.params)
        return Fit(params, state.opt_state, self.log.history(), status, state.model_state)

    def _watched(self, record: dict[str, Any]) -> float:
        """What is to become smaller; NaN never is, and is told of."""
        number = float(self.watch(record))
        if number != number:
            warnings.warn(
                f"what `fit` watches is NaN after epoch {self.epoch}: no epoch is better for that",
                RuntimeWarning,
                stacklevel=4,
            )
        return number

    def _length(self) -> int:
        """How many steps the next chunk may have."""
        longest = self.pace if self.across else min(self.pace, self.sets["train"].steps)
        if self.measured:
            longest = min(longest, self.every - self.log.step % self.every)
        if self.saves is not None and self.saves.every:
            longest = min(longest, self.saves.every - self.log.step % self.saves.every)
        return longest

    def _lose_patience(self) -> None:
        if self.patience is not None and self.log.waited >= self.patience:
            self.reason = "no improvement"


def require_run(
    loss: Any,
    grad: Any,
    data: Any,
    test: Any,
    epochs: Any,
    batch_size: Any,
    on_progress: Any,
) -> None:
    """Refuse what no run can begin with."""
    require_callable("loss", loss)
    require_arguments("grad", grad, loss)
    require_batches("data", data)
    named = test if isinstance(test, Mapping) else {} if test is None else {None: test}
    for name, examples in named.items():
        require_batches("test" if name is None else f"test[{name!r}]", examples, data)
    require_count("epochs", epochs, least=1)
    require_count("batch_size", batch_size, least=1)
    if on_progress is not None:
        require_callable("on_progress", on_progress)


def _require_counts(**numbers: Any) -> None:
    """Refuse what is neither None nor an integer of at least 1."""
    for name, number in numbers.items():
        if number is not None:
            require_count(name, number, least=1)


def _require_checkpoints(checkpoint: Any, resume: Any, keep: Any, every: Any) -> None:
    if checkpoint is not None:
        as_path("checkpoint", checkpoint)
    require_count("keep", keep, least=1)
    if every is not None:
        require_count("every", every, least=1)
    if not isinstance(resume, bool | int | str) or resume not in (True, False, "previous"):
        raise ValueError(f"`resume` must be True, False or 'previous'. Got {resume!r}.")
    if resume and checkpoint is None:
        raise ValueError(
            f"`resume` must come with `checkpoint`, a directory. Got {resume!r} alone."
        )


def _find(
    directory: str | os.PathLike, resume: bool | str, identity: dict[str, Any]
) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one."""
    there = checkpoints(directory)
    if there and not resume:
        raise FileExistsError(
            f"`checkpoint` must be empty unless `resume` is set. Got {str(directory)!r}, with "
            f"{there[-1].name}."
        )
    found = load_checkpoint(directory, previous=resume == "previous") if there else None
    if jax.process_count() > 1:
        step = np.array(found.step if found else -1)
        message = "`checkpoint` must be a directory that all processes see."
        multihost_utils.assert_equal(step, message)
    if found is None:
        return None
    if found.info.keys() != identity.keys():
        raise ValueError(
            f"`checkpoint` must hold a run of `fit`. Got {str(directory)!r}, with something else."
        )
    for name, value in identity.items():
        if found.info[name] != value:
            raise ValueError(
                f"`{name}` must be {found.info[name]}, as in the checkpoint. Got {value}."
            )
    return found


def _agreed(stopped: bool, interrupted: bool, pace: int) -> tuple[bool, bool, int]:
    """What the processes of a run decide together: whether to end, and how many steps are next."""
    if jax.process_count() == 1:
        return stopped, interrupted, pace
    of_all = multihost_utils.process_allgather(np.array([stopped, interrupted, pace]))
    return bool(of_all[:, 0].any()), bool(of_all[:, 1].any()), int(of_all[:, 2].min())


def _require_measure(measure: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the sets to measure."""
    if measure is None:
        return names
    given = () if isinstance(measure, str) or not isinstance(measure, Sequence) else tuple(measure)
    if not given or any(name not in names for name in given):
        raise ValueError(f"`measure` must name some of {names}. Got {measure!r}.")
    return given


# What the system may send to end a run: Ctrl-C, and what schedulers and closed terminals do.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def _signals(caught: list[int]) -> Iterator[None]:
    """Signals that end a run are noted in a list; a second one does what it did before.

    Those that are ignored, as under `nohup`, stay so; and those whose handler is not Python's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python leaves signals to the main thread
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}

    def note(number, frame):
        if caught:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        caught.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
