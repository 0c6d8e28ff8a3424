"""A run under way: chunks of steps on the device, and the host's work between them: measure,
report, handle signals, save.

Every process does the same. Between chunks, in `listen`, all processes agree on the signals,
exceptions and timings of each of them.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key

from jaxnn._programs import Jitted
from jaxnn.data import count_examples
from jaxnn.training.examples import Batches, Examples, Piece
from jaxnn.training.history import Fit, Log, Reason, Status, Trained
from jaxnn.training.measuring import Measure, lowered, mean_over, paced
from jaxnn.training.options import Options
from jaxnn.training.progress import Progress
from jaxnn.training.saves import (
    ANYWHERE,
    AT_EPOCHS,
    LAYOUT,
    Files,
    Manager,
    Saved,
    checksum,
    is_apart,
    on_host,
)
from jaxnn.training.signals import noted
from jaxnn.training.steps import (
    Chunk,
    Plan,
    Way,
    across_epochs,
    copied,
    make_chunk,
    replicate,
    rows_of,
    run_chunk,
)
from jaxnn.training.task import NORM, Task
from jaxnn.training.together import Vote, failure_of_others, require_same


class Config(NamedTuple):
    """The inputs of a run, apart from its steps.

    Attributes:
      plan: how its epochs are divided into steps.
      key: for the order of its examples, and for its steps.
      mesh: devices that split each batch.
      sharding: how a batch is sharded over them.
      sets: examples by name; the training data are called "train".
      names: of the sets to measure.
      options: the bundles.
    """

    plan: Plan
    key: Key[Array, ""]
    mesh: Mesh | None
    sharding: NamedSharding | None
    sets: dict[str, Examples | Batches]
    names: tuple[str, ...]
    options: Options


@dataclasses.dataclass
class Reached:
    """The parts of a run that change as it proceeds.

    Attributes:
      state: the arrays that steps update.
      best: the best state so far.
      log: the host's record of the run.
      resumed: the step from which the run resumed.
      pace: number of steps in the next chunk.
      at: number of steps taken in the current piece.
      norm: of the last gradient, if it is recorded.
      broken: the name of the non-finite value.
      reason: why the run ends, once it does.
    """

    state: Any
    best: Any = None
    log: Log = dataclasses.field(default_factory=Log)
    resumed: int = 0
    pace: int = 1
    at: int = 0
    norm: float | None = None
    broken: str | None = None
    reason: Reason | None = None


@dataclasses.dataclass
class Host:
    """Host resources that accompany the steps.

    Attributes:
      feed: yields the pieces of examples.
      piece: the current one.
      failure: the exception raised in this process.
      caught: the signals received.
      compiling: measuring programs being compiled.
      digest: of the current examples, to compare processes; 0 where these have parts of their own.
      reported: how many pieces of the losses have been reported.
      saved: the step of the last checkpoint, or None.
      saved_at: its time.
    """

    feed: Generator[Piece, None, None] | None = None
    piece: Piece | None = None
    failure: BaseException | None = None
    caught: list[int] = dataclasses.field(default_factory=list)
    compiling: list[concurrent.futures.Future] = dataclasses.field(default_factory=list)
    digest: int = 0
    reported: int = 0
    saved: int | None = None
    saved_at: float = 0.0


class Given(NamedTuple):
    """What a step is given besides the state.

    Attributes:
      key: for the loss, or None.
      batch: its examples.
      rows: their positions in the data, or in the batch if the data come from a function.
    """

    key: Any
    batch: tuple[Any, ...]
    rows: np.ndarray


@dataclasses.dataclass
class Run:
    """A run under way.

    Attributes:
      config: its inputs.
      task: what its steps do.
      way: options that its steps are compiled for.
      across: whether chunks span epochs.
      place: where it is saved, or None.
      now: what it has reached.
      host: its resources on the host.
    """

    config: Config
    task: Task
    way: Way
    across: bool
    place: Files | Manager | None
    now: Reached
    host: Host = dataclasses.field(default_factory=Host)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run's directory, catch signals, and close the examples' thread at the end."""
        with contextlib.ExitStack() as stack:
            if self.place is not None:
                with self._own():
                    stack.enter_context(self.place.held())
            stack.enter_context(noted(self.host.caught))
            stack.callback(lambda: self.host.feed and self.host.feed.close())
            yield

    @contextlib.contextmanager
    def _own(self, kind: type[BaseException] = BaseException) -> Iterator[None]:
        """Hold back an exception in code of this process alone, so that all end together."""
        try:
            yield
        except kind as error:
            self.host.failure = self.host.failure or error

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold back an exception while devices compute, so that the run is saved. Of several
        processes, the others would wait for this one's devices, so it ends.
        """
        return self._own(Exception) if jax.process_count() == 1 else contextlib.nullcontext()

    def begin(self, resume: bool | str) -> None:
        """Check that all processes start alike, and resume from the last checkpoint, if any."""
        require_same(self._settings())
        self._end_if_failed(self._vote())
        if self.place is not None:
            found = self.place.found(resume, self.identity, self.now.state, self.config.mesh)
            if found is not None:
                self.now.log, self.now.best = found.log, found.best
                self.now.state = self.task.resumed(found.state, self.now.state)
                self._lose_patience()
            self.now.resumed, self.host.reported = self.now.log.step, len(self.now.log.losses)
            self.host.saved, self.host.saved_at = self.now.log.step or None, time.perf_counter()
        if self.config.options.measuring.patience is None:
            self.now.best = None
        elif self.now.best is None:
            self.now.best = self._copied(self.now.state)
        self._compile_measures()
        self.now.pace = (self._known or {}).get("pace", 1)
        self.prepare()
        self.listen()

    @property
    def _known(self) -> dict | None:
        """What earlier runs found out about such steps of a jitted function: their pace."""
        sizes = (leaf.size for leaf in jax.tree.leaves(self.now.state))
        return self.task.programs("known", self.config.plan.batch_size, *sizes)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The settings that a resumed run must share with its checkpoint."""
        train = self.config.sets["train"]
        return {
            "layout": LAYOUT,
            "batch_size": self.config.plan.batch_size,
            "replacement": self.config.plan.replacement,
            "key": np.asarray(jax.random.key_data(self.config.key)).tolist(),
            "data": _told(train),
            **self.task.identity(self.now.state),
        }

    def _settings(self) -> dict[str, Any]:
        """The settings that all processes must share."""
        if jax.process_count() == 1:
            return {}
        named = self.config.sets.items()
        tests = {name: checksum(s.data) for name, s in named if isinstance(s, Examples)}
        measuring = self.config.options.measuring
        return {
            **self.identity,
            "epochs": self.config.plan.epochs,
            "max_steps": self.config.plan.most,
            "evaluate_every": measuring.evaluate_every,
            "evaluate_steps": measuring.evaluate_steps,
            "patience": measuring.patience,
            "measure": self.config.names,
            "checkpoint": self.place is not None,
            "every": self.place and self.config.options.saving.every,
            "test": tests,
            self.now.state._fields[0]: checksum(self.now.state[0]),
            **self.task.program(self.now.state),
        }

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        plan, log = self.config.plan, self.now.log
        over = plan.epochs is not None and len(log.seconds) >= plan.epochs
        return over or (plan.most is not None and log.step >= plan.most)

    @property
    def owes(self) -> bool:
        """Whether a measurement is due and has not been taken yet."""
        log, measuring = self.now.log, self.config.options.measuring
        measured = bool(log.evaluated) and log.evaluated[-1] == log.step
        if not self.config.names or self.now.broken is not None or log.step == 0 or measured:
            return False
        if measuring.evaluate_steps:
            due = log.step % measuring.evaluate_steps == 0
        else:
            due = log.at_end_of_epoch and len(log.seconds) % measuring.evaluate_every == 0
        return due or self.done

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.now.reason is not None or (self.done and not self.owes)

    def _compile_measures(self) -> None:
        """Start compiling the measuring programs in a thread while the first steps compile."""
        sets = [self.config.sets[name] for name in self.config.names]
        here = [x for x in sets if isinstance(x, Examples) and not x.streamed]
        if self.config.mesh is not None or self.ended or not here:
            return
        given = self.now.state, self._key_of(0)
        pieces = (piece for examples in here for piece in examples.measuring())
        programs = [lowered(piece, self._measure_of, given) for piece in pieces]
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self.host.compiling = [pool.submit(program.compile) for program in programs]
        pool.shutdown(wait=False)

    def prepare(self) -> None:
        """Fetch the piece of examples for the next steps."""
        used_up = self.host.piece is None or self.now.at >= self.host.piece.steps
        over = self.done or self.now.reason is not None or self.host.failure is not None
        if self.across or over or not used_up:
            return
        train, position = self.config.sets["train"], self.now.log.step - self.now.log.begun
        with self._own():
            if self.host.feed is None:
                epoch = len(self.now.log.seconds) + 1
                self.host.feed = train.training(
                    self.config.plan, self.config.key, epoch, position, self._is_interrupted
                )
            self.host.piece = piece = next(self.host.feed, None)
            if piece is not None or not self._is_interrupted():
                self._begin(piece, position)

    def _begin(self, piece: Piece | None, position: int) -> None:
        """Begin a piece of examples at a position in its epoch; None ends the epoch."""
        if piece is None or piece.epoch > len(self.now.log.seconds) + 1:
            self.now.log.end_epoch()  # of a resumed run that had taken all its batches
            position = 0
        if piece is None:
            return
        self.now.at, train = position - piece.first, self.config.sets["train"]
        if jax.process_count() > 1 and isinstance(train, Batches) and train.whole:
            self.host.digest = int(checksum(piece.data), 16) % 2**31

    def take_steps(self) -> None:
        """Run the next chunk of steps and record it."""
        if not self.owes:  # a resumed run may have to measure first
            with self._alone():
                self._take_steps()

    def _take_steps(self) -> None:
        began, before = time.perf_counter(), self.now.log.step
        take = self._across_epochs if self.across else self._within_piece
        chunk, first, offset, sizes, ends = take()
        self.now.state, self.now.broken = chunk.state, chunk.not_finite()
        taken = int(chunk.reached) - first
        of_steps = lambda x: np.asarray(x).reshape(-1)[offset : offset + taken]  # noqa: E731
        losses, aux = of_steps(chunk.losses), jax.tree.map(of_steps, chunk.aux)
        seconds = time.perf_counter() - began
        good = taken - (self.now.broken is not None)
        if self.task.norm and good:
            self.now.norm = float(aux[NORM][good - 1])
        ends = [end for end in ends if end <= before + good]
        self.now.log.add(losses, aux, sizes[:taken], good, ends, seconds)
        self.now.at += taken
        if self.now.broken is not None:
            self.now.reason = "not finite"
        self.now.pace = paced(self.now.pace, taken, seconds)

    def _across_epochs(self) -> tuple[Chunk, int, int, np.ndarray, Any]:
        """Run a chunk of steps across epochs; returns the chunk, the number of its first step, that
        step's offset in the losses, the batch sizes, and the steps after which an epoch ends.
        """
        begin, plan, per_epoch = self.now.log.step, self.config.plan, self.config.plan.per_epoch
        longest = rows_of(plan) * per_epoch - begin % per_epoch
        stop = min(begin + min(self._length(), longest), plan.steps or begin)
        (piece,) = self.config.sets["train"].measuring()
        given = piece.data, replicate(self.config.key, self.config.mesh)
        chunk = self._chunk(self._take_of(self.way, plan), given, begin, stop)
        ends = range((begin // per_epoch + 1) * per_epoch, stop + 1, per_epoch)
        return chunk, begin, begin % per_epoch, np.full(stop - begin, plan.batch_size), ends

    def _within_piece(self) -> tuple[Chunk, int, int, np.ndarray, Any]:
        """Run a chunk of steps within one piece; returns the same as `_across_epochs`."""
        piece, at, before = self.host.piece, self.now.at, self.now.log.step
        assert piece is not None
        stop = min(piece.steps, at + self._length())
        if self.config.plan.most is not None:
            stop = min(stop, at + self.config.plan.most - before)
        short = piece.rest > 0 and stop == piece.steps
        take = self._take_of(self.way._replace(batch_size=piece.batch_size))
        given = piece.data, piece.order, self._key_of(piece.epoch), np.int32(piece.first)
        chunk = self._chunk(take, given, at, stop, short)
        sizes = np.full(stop - at, piece.batch_size)
        if short:
            sizes[-1] = piece.rest
        ends = [before + stop - at] if piece.ends and stop == piece.steps else []
        return chunk, at, at, sizes, ends

    @functools.cached_property
    def _take_of(self) -> Callable[..., Callable[..., Chunk]]:
        """A cached function from options, and a plan to go across epochs, to a compiled program."""
        task = self.task  # a function that held the run would keep its arrays when it is over

        def take(way, *plan):
            made = across_epochs(task, way, *plan) if plan else make_chunk(task, way)
            donated = (0,) if way.guarded else ()  # a small state may be needed for a rerun
            return Jitted(made, donated, task.programs(way, *plan))

        return functools.cache(take)

    @functools.cached_property
    def _measure_of(self) -> Callable[[int, int], Measure]:
        of = functools.partial(Measure.of, self.task.measured, self.way.sharding)
        return functools.cache(of)

    def _key_of(self, epoch: int) -> Any:
        """The key of an epoch, if the steps take keys."""
        if not self.task.keyed:
            return np.uint32(0)
        return replicate(jax.random.fold_in(self.config.key, epoch), self.config.mesh)

    def _chunk(
        self, take: Callable[..., Chunk], given: Any, start: int, stop: int, short: bool = False
    ) -> Chunk:
        limits = np.int32(start), np.int32(stop), np.bool_(short)
        chunk = run_chunk(take, self.now.state, given, limits, self.way.guarded)
        return jax.block_until_ready(chunk)

    def measurements(self) -> dict[str, Any] | None:
        """The measurements, if due; None if they are not, or a signal interrupted them."""
        if not self.owes or self.host.failure is not None:
            return None
        with self._alone():
            return self._measurements()
        return None

    def _measurements(self) -> dict[str, Any] | None:
        began, record = time.perf_counter(), {}
        given = self.task.measured_state(self.now.state), self._key_of(0)
        concurrent.futures.wait(self.host.compiling)
        for name in self.config.names:
            with contextlib.closing(self._pieces(name)) as pieces:
                means = mean_over(pieces, self._measure_of, given, self._goes_on)
            if means is None or not self._goes_on(1)[0]:
                return None
            record |= {f"{name}_{what}": value for what, value in means.items()}
        self.now.log.add_seconds(time.perf_counter() - began)
        return record

    def _pieces(self, name: str) -> Generator[Piece, None, None]:
        """The pieces of a set; if one cannot be read, all processes end together."""
        with self._own(Exception):
            yield from self.config.sets[name].measuring(self._is_interrupted)

    def _is_interrupted(self) -> bool:
        """Whether this process has received a signal."""
        return bool(self.host.caught)

    def _goes_on(self, pace: int) -> tuple[bool, int]:
        failed = self.host.failure is not None
        vote = Vote(False, self._is_interrupted(), failed, False, 0, pace).agreed()
        return not (vote.interrupted or vote.failed), vote.pace

    def report(self, record: dict[str, Any] | None) -> None:
        """Record the measurements, and call `on_progress`."""
        if self.now.broken is not None or self.host.failure is not None:
            return
        if record is not None:
            self.now.log.measured(record)
            with self._alone():
                self._watch(record)
        on_progress = self.config.options.reporting.on_progress
        if on_progress is None or jax.process_index() != 0:
            return
        with self._own():
            wish = on_progress(self._progress(record))
            # Only True itself stops: what a callback writes to may return anything.
            if isinstance(wish, bool | np.bool_) and wish:
                self.now.reason = self.now.reason or "stopped"

    def _watch(self, record: dict[str, Any]) -> None:
        """Keep the state if it is the best so far, or lose patience; NaN is never the best."""
        measuring = self.config.options.measuring
        if measuring.patience is None:
            return
        first = next((name for name in self.config.names if name != "train"), "train")
        number = float(measuring.watch(record) if measuring.watch else record[f"{first}_loss"])
        if number != number:
            warnings.warn(
                f"the watched value is NaN after epoch {self.now.log.epoch}: NaN never counts as "
                "the best",
                RuntimeWarning,
                stacklevel=3,
            )
        if self.now.log.watch(number):
            self.now.best = self._copied(self.task.measured_state(self.now.state))
        self._lose_patience()

    def _progress(self, record: dict[str, Any] | None) -> Progress:
        """The `Progress` to report."""
        plan, log, state = self.config.plan, self.now.log, self.now.state
        more = self.task.progress_fields(state, self.config.options.reporting.record)
        if NORM in self.config.options.reporting.record:
            more[NORM] = self.now.norm
        where = log.epoch, plan.epochs, log.step, plan.steps, log.mean_loss, record
        more |= {"resumed": self.now.resumed, "reason": self.now.reason}
        new = log.losses[self.host.reported :]
        more["step_loss"] = np.concatenate([np.zeros(0, np.float32), *new])
        self.host.reported = len(log.losses)
        return Progress(*where, measures=bool(self.config.names), **more)

    def listen(self) -> None:
        """Handle signals and the votes of the other processes, and save if due."""
        vote = self._vote()
        self.now.pace = vote.pace
        if vote.stopped:
            self.now.reason = "stopped"
        if vote.interrupted and not self.ended:
            self.now.reason = "interrupted"
        self._end_if_failed(vote)
        begun = self.now.log.step > 0
        if self.place is not None and begun and (vote.due or self.ended):
            self._save()

    def _is_due(self) -> bool:
        """Whether the run should be saved now."""
        if every := self.config.options.saving.every:
            return self.now.log.step % every == 0
        waited = time.perf_counter() - self.host.saved_at
        return waited > ANYWHERE or (self.now.log.at_end_of_epoch and waited > AT_EPOCHS)

    def _vote(self) -> Vote:
        due = self.place is not None and self._is_due()
        stopped, failed = self.now.reason == "stopped", self.host.failure is not None
        mine = stopped, self._is_interrupted(), failed, due, self.host.digest, self.now.pace
        return Vote(*mine).agreed()

    def _end_if_failed(self, vote: Vote) -> None:
        """If any process failed, save, then raise this process's exception or the other's."""
        if vote.digest < 0:
            self.host.failure = self.host.failure or ValueError(
                "`data` must yield the same batches in all processes or, with `parts=True`, one "
                "part each. Got batches that differ."
            )
        elif not vote.failed:
            return
        others = failure_of_others(self.host.failure)
        failure = self.host.failure or others
        if self.now.log.step > self.now.resumed:
            self._save()
        with contextlib.suppress(BaseException):  # report the first failure, not later ones
            if self.place is not None:
                self.place.wait()
        assert failure is not None
        self.now.reason = self.now.reason or "failed"
        with contextlib.suppress(AttributeError):  # an exception without attributes
            failure.fit = self.result()  # pyright: ignore[reportAttributeAccessIssue]
        raise failure

    def _save(self) -> None:
        """Write a checkpoint of this step."""
        place, notes = self.place, dict(self.config.options.saving.notes or {})
        if place is None or self.now.log.step == self.host.saved:
            return
        info, last = {"run": self.identity, "notes": notes}, self.ended
        with self._own():
            if isinstance(place, Manager):
                place.save(Saved(self.now.state, self.now.best, self.now.log, info), last)
            elif is_apart(self.now.state) or jax.process_index() == 0:
                best = None if self.now.best is None else on_host(self.now.best)
                place.save(Saved(on_host(self.now.state), best, self.now.log, info), last)
        self.host.saved, self.host.saved_at = self.now.log.step, time.perf_counter()

    def finish(self) -> None:
        """Wait for pending writes and for the other processes."""
        if (known := self._known) is not None:
            known["pace"] = self.now.pace
        with self._own():
            if self.place is not None:
                self.place.finish()
        self._end_if_failed(self._vote())

    def result(self) -> Fit | Trained:
        """The result for the user."""
        status = Status(self.now.reason or "finished", self.now.log.step, self.now.broken)
        state = self.now.state if self.now.best is None else self.now.best
        return self.task.result(state, self.now.log.history(), status)

    def given(self, epoch: int, step: int) -> Given:
        """What a step of an epoch is given. Of data from a function, only the first batch and those
        of the current piece are known.
        """
        plan, train, piece = self.config.plan, self.config.sets["train"], self.host.piece
        rows: Any = slice(step * plan.batch_size, (step + 1) * plan.batch_size)
        if isinstance(train, Examples):
            rows = np.asarray(plan.order(self.config.key, epoch))[rows]
            batch = train.rows(rows)
        elif (epoch, step) == (1, 0):
            batch, rows = train.first, np.arange(count_examples(train.first))
        else:
            assert piece is not None
            first = (step - piece.first) * piece.batch_size
            rows = np.arange(piece.batch_size)
            batch = jax.tree.map(lambda a: a[first : first + piece.batch_size], piece.data)
        key = None
        if self.task.keyed:
            key = jax.random.fold_in(self._key_of(epoch), step)
        return Given(key, tuple(batch), rows)

    def failed_step(self) -> Given:
        """What the step that was not finite was given."""
        if self.across:
            epoch, step = divmod(self.now.log.step, self.config.plan.per_epoch)
            return self.given(epoch + 1, step)
        piece = self.host.piece
        assert piece is not None
        return self.given(piece.epoch, piece.first + self.now.at - 1)

    def _copied(self, state: Any) -> Any:
        """A state whose memory is not donated to guarded steps."""
        return copied(state) if self.way.guarded else state

    def _length(self) -> int:
        """The maximum number of steps in the next chunk."""
        longest, step = self.now.pace, self.now.log.step
        measuring = self.config.options.measuring
        if self.config.names and (measuring.evaluate_steps or self.across):
            of_epochs = measuring.evaluate_every * self.config.plan.per_epoch
            between = measuring.evaluate_steps or of_epochs
            longest = min(longest, between - step % between)
        if self.place is not None and (every := self.config.options.saving.every):
            longest = min(longest, every - step % every)
        return longest

    def _lose_patience(self) -> None:
        patience = self.config.options.measuring.patience
        if patience is not None and self.now.log.waited >= patience:
            self.now.reason = "no improvement"


def _told(examples: Examples | Batches) -> str:
    """A description that distinguishes the data of different runs."""
    if isinstance(examples, Batches):
        return "a function"
    return f"{examples.count} examples of checksum {checksum(examples.data)}"
