"""The history and the status of a run, and the log from which they are made."""

import dataclasses
import html
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from jaxnn._notebook import paragraph

Reason = Literal["finished", "no improvement", "not finite", "interrupted", "stopped", "failed"]


class History(NamedTuple):
    """The measurements of a run.

    Attributes:
      step_loss: the loss of each step's mini-batch, before that step's update.
      metrics: measurements by name, as arrays over the epochs, or over the steps in `evaluated`.
      seconds: time of each epoch, including measurements; the first includes compilation.
      aux: auxiliary outputs of the loss at each step, by name.
      evaluated: the steps after which `metrics` were measured.

    Example:
      >>> run = History(np.array([2.0, 1.0]), {"train_loss": np.array([0.5])}, np.array([0.1]))
      >>> run.metrics["train_loss"]
      array([0.5])
    """

    step_loss: Float[np.ndarray, "steps"]  # noqa: F821
    metrics: dict[str, Shaped[np.ndarray, "epochs ..."]]  # noqa: F821
    seconds: Float[np.ndarray, "epochs"]  # noqa: F821
    aux: Mapping[str, np.ndarray] = MappingProxyType({})
    evaluated: Int[np.ndarray, "measurements"] = np.zeros(0, np.int64)  # noqa: F821

    def __repr__(self) -> str:
        ends = [f"{name} {v[-1]:.4g}" for name, v in self.metrics.items() if v.ndim == 1 and v.size]
        return f"<History: {', '.join([f'steps {len(self.step_loss)}', *ends])}>"

    def _repr_html_(self) -> str:
        scalars = {name: values for name, values in self.metrics.items() if values.ndim == 1}
        rows, each = [["epoch", *(name.replace("_", " ") for name in scalars), "seconds"]], None
        count = len(self.seconds)
        if any(len(values) != count for values in scalars.values()):
            count, each = len(self.evaluated), self.evaluated
            rows[0] = ["step", *rows[0][1:-1]]
        tenth = max(1, count // 10)
        for e in (e for e in range(count) if (e + 1) % tenth == 0 or e == count - 1):
            measured = [f"{values[e]:.4f}" for values in scalars.values()]
            begin, end = (e + 1, [f"{self.seconds[e]:.2f}"]) if each is None else (each[e], [])
            rows.append([str(begin), *measured, *end])
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<p>steps: {len(self.step_loss)}</p><table>{table}</table>"


class Status(NamedTuple):
    """How a run ended.

    Attributes:
      reason: "finished"; "no improvement" for `patience` measurements; "not finite", if the next
        step would have made a value non-finite; "interrupted" by Ctrl-C, SIGTERM or a scheduler
        signal; "stopped" by `on_progress`; or "failed", in the result that an error carries.
      step: number of steps taken, all of them finite.
      leaf: the non-finite value: `loss`, or for instance `params['W1']`, `opt_state[0].mu['W1']`;
        `state['W1']` in `train`.
      cause: where it comes from: the lines in which NaN or infinity first appears in the loss or
        its gradient; empty if that is not known.
      batch: the examples of that step; None if the run ended otherwise.
      examples: those whose own loss or gradient is not finite: their positions in the data, or in
        the batch if the data come from a function.

    Example:
      >>> Status("not finite", 12, "params['W1']").leaf
      "params['W1']"
    """

    reason: Reason
    step: int
    leaf: str | None = None
    cause: str = ""
    batch: Any = None
    examples: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """The fields, without the batch."""
        fields = {name: value for name, value in self._asdict().items() if name != "batch"}
        for name in ("cause", "examples"):
            if not fields[name]:
                del fields[name]
        return f"Status({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    _repr_html_ = paragraph


def _text(self: Any) -> str:
    """How a run ended, and its history, in one line."""
    return f"<{type(self).__name__}: {self.status.reason}; {str(self.history)[1:-1]}>"


def _html(result: Any) -> str:
    """How a run ended, and its history."""
    return result.status._repr_html_() + result.history._repr_html_()


class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
      params: after the last good step; with `patience`, the best ones measured.
      opt_state: the optimiser's state after the same step, from which a later run can continue.
      history: a `History`.
      status: a `Status`.
      model_state: the model's own state after the same step, if it has one.

    Example:
      >>> f = lambda params, x: jnp.mean((params - x) ** 2)
      >>> data, key = (jnp.ones(4),), jax.random.key(0)
      >>> result = jaxnn.fit(f, jnp.zeros(()), data, optax.sgd(0.5), key=key, epochs=1)
      >>> result.params, result.status.reason
      (Array(1., dtype=float32), 'finished')
    """

    params: PyTree
    opt_state: PyTree
    history: History
    status: Status
    model_state: PyTree = None

    __repr__, _repr_html_ = _text, _html


class Trained(NamedTuple):
    """The result of `train`.

    Attributes:
      state: after the last good step; with `patience`, the best one measured.
      history: a `History`; its `aux` is what the steps recorded.
      status: a `Status`.

    Example:
      >>> def step(state, batch, key):
      ...     return state + 1, {"loss": 1 / state}
      >>> data, key = (jnp.ones(4),), jax.random.key(0)
      >>> jaxnn.train(step, jnp.ones(()), data, key=key, epochs=3).state
      Array(4., dtype=float32)
    """

    state: PyTree
    history: History
    status: Status

    __repr__, _repr_html_ = _text, _html


# The numbers of a log that a checkpoint holds in one array, in its order.
_NUMBERS = "begun spent total examples best best_step waited".split()


@dataclasses.dataclass
class Log:
    """The host's record of a run; all of it is saved in checkpoints.

    Attributes:
      step: number of steps taken.
      begun: the step after which the current epoch began, or the last one ended.
      losses: of each step, in pieces.
      aux: auxiliary outputs of the loss, likewise, by name.
      records: measurements by name, in order.
      evaluated: the steps after which they were taken.
      seconds: of each completed epoch.
      spent: seconds of the current epoch.
      total: sum of the current epoch's losses, weighted by examples.
      examples: number of examples in the current epoch so far.
      best: the smallest watched value.
      best_step: the step after which it was measured.
      waited: number of measurements since then.
    """

    step: int = 0
    begun: int = 0
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)
    aux: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    records: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    evaluated: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    spent: float = 0.0
    total: float = 0.0
    examples: int = 0
    best: float = np.inf
    best_step: int = 0
    waited: int = 0

    @classmethod
    def of(cls, step: int, rows: Mapping[str, np.ndarray]) -> "Log":
        """Restore a log from the `records_to_save` of a step."""
        numbers = zip(_NUMBERS, rows["numbers"].tolist(), strict=True)
        named = lambda prefix: {  # noqa: E731
            name.removeprefix(prefix): values
            for name, values in rows.items()
            if name.startswith(prefix)
        }
        return cls(
            step,
            losses=[rows["step_loss"]],
            aux={name: [values] for name, values in named("aux/").items()},
            records={name: list(values) for name, values in named("metrics/").items()},
            evaluated=rows["evaluated"].tolist(),
            seconds=rows["seconds"].tolist(),
            **{name: type(getattr(cls, name))(number) for name, number in numbers},
        )

    @property
    def records_to_save(self) -> dict[str, np.ndarray]:
        """The arrays from which `of` restores the log."""
        history = self.history()
        metrics = {f"metrics/{name}": values for name, values in history.metrics.items()}
        metrics |= {f"aux/{name}": values[: self.step] for name, values in history.aux.items()}
        return {
            "numbers": np.array([getattr(self, name) for name in _NUMBERS]),
            "step_loss": history.step_loss[: self.step],
            "seconds": history.seconds,
            "evaluated": history.evaluated,
            **metrics,
        }

    def history(self) -> History:
        """The `History` for the user."""
        step_loss = np.concatenate(self.losses) if self.losses else np.zeros(0, np.float32)
        metrics = {name: np.array(values) for name, values in self.records.items()}
        aux = {name: np.concatenate(pieces) for name, pieces in self.aux.items()}
        evaluated = np.array(self.evaluated, np.int64)
        return History(step_loss, metrics, np.array(self.seconds), aux, evaluated)

    @property
    def mean_loss(self) -> float:
        """The mean loss over the examples of the current epoch, or of one that has just ended; NaN
        if all its steps were left out.
        """
        return self.total / self.examples if self.examples else np.nan

    @property
    def epoch(self) -> int:
        """The current epoch or, between chunks, the one that has just ended; from 1."""
        return max(1, len(self.seconds) + (self.step > self.begun))

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether the last chunk completed an epoch."""
        return self.step > 0 and self.step == self.begun

    def add(
        self,
        losses: np.ndarray,
        aux: Mapping[str, np.ndarray],
        sizes: np.ndarray,
        good: int,
        ends: Iterable[int],
        seconds: float,
    ) -> None:
        """Record a chunk of steps.

        Args:
          losses: of each step, including one that was rejected as non-finite.
          aux: auxiliary outputs of the loss at each step.
          sizes: number of examples of each step.
          good: number of steps taken.
          ends: the steps of the run after which an epoch ends.
          seconds: duration of the chunk, divided among the epochs by steps.
        """
        for name in {**self.aux, **aux}:  # NaN if a value was not recorded
            values = aux.get(name, np.full(len(losses), np.nan))
            if name not in self.aux:
                self.aux[name] = [np.full(self.step, np.nan)] if self.step else []
            self.aux[name].append(values)
        self.losses.append(losses)
        first, each, ends = self.step, seconds / max(1, good), list(ends)
        self.step += good
        began = [self.begun, *ends][-2 if self.step in ends else -1]  # the epoch of the last step
        if began >= first:
            self.total, self.examples = 0.0, 0
        part = slice(max(began, first) - first, good)
        taken = np.isfinite(losses[part])  # the others were left out
        self.total += float(losses[part][taken].astype(np.float64) @ sizes[part][taken])
        self.examples += int(sizes[part][taken].sum())
        for end in ends:
            self.spent += each * (end - max(first, self.begun))
            self.end_epoch(end)
        self.spent += each * (self.step - max(first, self.begun))

    def end_epoch(self, step: int | None = None) -> None:
        """Record that an epoch ends after a step, by default after the last one."""
        self.seconds.append(self.spent)
        self.begun, self.spent = self.step if step is None else step, 0.0

    def add_seconds(self, seconds: float) -> None:
        """Add time to the current epoch, or to one that has just ended."""
        if self.at_end_of_epoch and self.seconds:
            self.seconds[-1] += seconds
        else:
            self.spent += seconds

    def measured(self, record: dict[str, Any]) -> None:
        """Record a measurement and its step; missing values become NaN."""
        for name in {*record, *self.records}:
            values = self.records.setdefault(name, [])
            like = record.get(name, values[-1] if values else np.nan)
            nothing = np.full(np.shape(like), np.nan)[()]
            values += [nothing] * (len(self.evaluated) - len(values))
            values.append(record.get(name, nothing))
        self.records = {name: self.records[name] for name in {**record, **self.records}}
        self.evaluated.append(self.step)

    def watch(self, number: float) -> bool:
        """Record a watched value; return whether it is the best so far."""
        better = number < self.best
        if better:
            self.best, self.best_step, self.waited = number, self.step, 0
        else:
            self.waited += 1
        return better
