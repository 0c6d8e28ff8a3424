"""What a run measured, how it ended, and what the host has to remember of it."""

import dataclasses
import html
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from jaxnn.training.checkpoint import Checkpoint

Reason = Literal["finished", "no improvement", "not finite", "interrupted", "stopped"]


class History(NamedTuple):
    """What a run measured.

    Attributes:
      step_loss: the loss of each step's mini-batch, before that step's update.
      metrics: what was measured after each epoch, as arrays over the epochs; or after each of
        `evaluated`.
      seconds: time of each epoch, its measurement included; the first contains compilation.
      aux: what the loss returned besides at each step, by name.
      evaluated: after which steps `metrics` were measured.

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
        return f"<p>{len(self.step_loss)} steps</p><table>{table}</table>"


class Status(NamedTuple):
    """How a run ended.

    Attributes:
      reason: "finished"; "no improvement" for as many epochs as `patience`; "not finite", where the
        step after `step` would have made it so; or "interrupted" by Ctrl-C or SIGTERM.
      step: how many steps were taken, all of them good.
      leaf: what was not finite: `loss`, or for instance `params['W1']`.

    Example:
      >>> Status("not finite", 12, "params['W1']").leaf
      "params['W1']"
    """

    reason: Reason
    step: int
    leaf: str | None = None


class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
      params: after the last good step; with `patience`, after the best epoch, as measured.
      opt_state: the optimiser's state after the same step, to go on with.
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


@dataclasses.dataclass
class Log:
    """What the host remembers of a run; all of it is in a checkpoint.

    Attributes:
      step: how many steps were taken.
      losses: of each of them, in pieces.
      aux: what else the loss returned, likewise, by name.
      records: what was measured, each time.
      evaluated: after which steps.
      seconds: of each epoch.
      spent: seconds of the epoch that is running.
      total: its losses so far, each times its examples.
      examples: of the epoch so far.
      best: the smallest number that was watched.
      waited: epochs since then.
    """

    step: int = 0
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)
    aux: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    records: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    evaluated: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    spent: float = 0.0
    total: float = 0.0
    examples: int = 0
    best: float = np.inf
    waited: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Log":
        """As it was when a checkpoint was written."""
        arrays = checkpoint.records
        spent, total, examples, best, waited = arrays["numbers"].tolist()
        return cls(
            step=checkpoint.step,
            losses=[arrays["step_loss"]],
            aux={
                name.removeprefix("aux/"): [values]
                for name, values in arrays.items()
                if name.startswith("aux/")
            },
            records={
                name.removeprefix("metrics/"): list(values)
                for name, values in arrays.items()
                if name.startswith("metrics/")
            },
            evaluated=arrays["evaluated"].tolist(),
            seconds=arrays["seconds"].tolist(),
            spent=spent,
            total=total,
            examples=int(examples),
            best=best,
            waited=int(waited),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of` reads."""
        history = self.history()
        numbers = np.array([self.spent, self.total, self.examples, self.best, self.waited])
        metrics = {f"metrics/{name}": values for name, values in history.metrics.items()}
        metrics |= {f"aux/{name}": values[: self.step] for name, values in history.aux.items()}
        return {
            "step_loss": history.step_loss[: self.step],
            "seconds": history.seconds,
            "evaluated": history.evaluated,
            "numbers": numbers,
            **metrics,
        }

    def history(self) -> History:
        """The same for the user."""
        step_loss = np.concatenate(self.losses) if self.losses else np.zeros(0, np.float32)
        metrics = {name: np.array(values) for name, values in self.records.items()}
        aux = {name: np.concatenate(pieces) for name, pieces in self.aux.items()}
        evaluated = np.array(self.evaluated, np.int64)
        return History(step_loss, metrics, np.array(self.seconds), aux, evaluated)

    @property
    def mean_loss(self) -> float:
        """Over the examples of this epoch so far."""
        return self.total / max(1, self.examples)

    def add_steps(
        self,
        losses: np.ndarray,
        sizes: np.ndarray,
        broken: bool,
        per_epoch: int,
        aux: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """Note the losses of steps, each of so many examples; a `broken` last one was not taken."""
        for name, values in aux.items():
            self.aux.setdefault(name, []).append(values)
        good, before = len(losses) - broken, self.step
        self.losses.append(losses)
        self.step += good
        # The epoch that is running, or has just ended, began here.
        first = max(0, (self.step - 1) // per_epoch * per_epoch - before)
        if first or before % per_epoch == 0:
            self.total, self.examples = 0.0, 0
        self.total += float(losses[first:good].astype(np.float64) @ sizes[first:good])
        self.examples += int(sizes[first:good].sum())

    def pass_epochs(self, before: int, per_epoch: int, seconds: float) -> None:
        """Note the epochs that steps since `before` have ended, and their time, shared by steps."""
        each = seconds / max(1, self.step - before)
        while before < self.step:
            end = (before // per_epoch + 1) * per_epoch
            self.spent += each * (min(end, self.step) - before)
            before = end
            if end <= self.step:
                self.seconds.append(self.spent)
                self.spent = 0.0

    def add_seconds(self, seconds: float, at_end_of_epoch: bool) -> None:
        """Add to the epoch that is running, or that has just ended."""
        if at_end_of_epoch and self.seconds:
            self.seconds[-1] += seconds
        else:
            self.spent += seconds

    def measured(self, record: dict[str, Any]) -> None:
        """Note what was measured, and when."""
        for name, value in record.items():
            self.records.setdefault(name, []).append(value)
        self.evaluated.append(self.step)

    def watch(self, number: float) -> bool:
        """Whether an epoch was better than all before it."""
        better = number < self.best
        self.best, self.waited = (number, 0) if better else (self.best, self.waited + 1)
        return better
