"""The options of `fit` and `train`, in bundles of related options."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from jaxnn._files import as_json
from jaxnn._validate import (
    describe,
    require_arguments,
    require_arrays,
    require_choice,
    require_count,
    require_mapping,
)
from jaxnn.training.progress import Progress

# What a callback can receive in addition.
RECORDED = ("params", "opt_state", "learning_rate", "gradient_norm")


class Start(NamedTuple):
    """What a run starts from, besides parameters.

    Attributes:
      model_state: state of the model that is not trained, as in batch normalisation. The loss is
        then `loss(params, model_state, *batch)` and returns `(value, model_state)`; the metrics are
        `metrics(params, model_state, *batch)`.
      opt_state: the optimiser's state; by default `optimizer.init` of the trained leaves.
      donate: whether the run may reuse the memory of `params` and `opt_state`; the caller can then
        no longer use them.

    Example:
      >>> jaxnn.Start(donate=True).model_state is None
      True
    """

    model_state: PyTree = None
    opt_state: PyTree = None
    donate: bool = False


class Feeding(NamedTuple):
    """How data are fed to the steps.

    Attributes:
      replacement: whether every batch is drawn from all examples, as in the chapter; by default,
        each epoch goes through them in a shuffled order.
      mesh: devices that split each batch, possibly in several processes. The results equal those on
        one device, up to rounding error.
      batch_spec: how a batch is sharded over `mesh`; by default along its first axis, over all axes
        of the mesh that no parameter uses (if there are none, over all).
      parts: whether each process yields its own part of every batch instead of the whole batch;
        the parts are concatenated in process order. Requires a function as `data`. Batches of
        global `jax.Array`s are used as they are.
      stream: whether the data stay on the host, where a thread prefetches them; by default, large
        memory maps, sliced arrays (HDF5), and arrays larger than half the device's memory do.
      skip_not_finite: whether a step that would make the loss, a parameter or the optimiser's state
        NaN or infinite is skipped instead of ending the run; its loss is recorded.

    Example:
      >>> jaxnn.Feeding(replacement=True).stream is None
      True
    """

    replacement: bool = False
    mesh: Mesh | None = None
    batch_spec: PartitionSpec | None = None
    parts: bool = False
    stream: bool | None = None
    skip_not_finite: bool = False


class Measuring(NamedTuple):
    """What is measured and when, and when a run stops early.

    With `test`, `metrics` or `patience`, the loss and the metrics are measured after each epoch on
    all training data and all of `test`, weighted by examples, and named `train_...` and `test_...`.
    Training data that come from a function are not measured.

    Attributes:
      test: examples for measurements only, in the form of the training data; or a dictionary of
        several such sets. A set that is a function is called with epoch 1.
      metrics: `metrics(params, *batch)`, a dictionary of means over the examples of a batch,
        numbers or arrays.
      evaluate_every: epochs between measurements.
      evaluate_steps: steps between measurements, instead of epochs.
      measure: the names of the sets to measure, among "train", "test" or the keys of `test`; by
        default all.
      eval_params: `eval_params(params, opt_state)`, the parameters to measure and to keep as best,
        for instance an average over many steps.
      patience: stop after this many measurements without improvement, and return the best
        parameters.
      watch: maps the record of a measurement to the number to minimise; by default the loss on
        `test`, on the first of several sets, or on the training data if there is no `test`.

    Example:
      >>> jaxnn.Measuring(patience=5).evaluate_every
      1
    """

    test: PyTree | Callable[[int], Iterable[Any]] | Mapping[str, Any] | None = None
    metrics: Callable[..., dict[str, Any]] | None = None
    evaluate_every: int = 1
    evaluate_steps: int | None = None
    measure: Sequence[str] | None = None
    eval_params: Callable[[PyTree, PyTree], PyTree] | None = None
    patience: int | None = None
    watch: Callable[[dict[str, Any]], float] | None = None


class Saving(NamedTuple):
    """What is saved, where and when.

    Attributes:
      checkpoint: a directory for this run's checkpoints alone, visible to all processes;
        checkpoints are written while steps continue. A failed write is retried, then skipped with
        a warning. Alternatively, a `CheckpointManager` of Orbax, which is offered each
        checkpoint, with the last measurements, and decides which to write and keep; the last one
        is always written.
      resume: whether to continue from the newest checkpoint, if there is one; "previous" continues
        from the newest intact one.
      every: steps between checkpoints; by default, one at the end of an epoch if ten seconds have
        passed, one every ten minutes, and one at the end.
      keep: how many of the newest checkpoints are kept.
      notes: JSON-compatible data to save in each checkpoint, as `info["notes"]`.

    Example:
      >>> jaxnn.Saving("runs/first", resume=True).keep
      3
    """

    checkpoint: Any = None
    resume: bool | Literal["previous"] = False
    every: int | None = None
    keep: int = 3
    notes: Mapping[str, Any] | None = None


class Reporting(NamedTuple):
    """How a run reports its progress.

    Attributes:
      on_progress: a callback that receives a `Progress` about twice a second and after each
        measurement, only in process 0. If it returns True, the run ends with status "stopped".
        If it raises, the run is saved and all processes end.
      record: additional contents of `Progress`: "params", "opt_state", "learning_rate" (requires
        `optax.inject_hyperparams`) and "gradient_norm", which `history.aux` then contains, too. The
        arrays are valid only during the call; copy them to keep them.
      on_interrupt: "return" returns the `Fit` that "raise" attaches to the KeyboardInterrupt.

    Example:
      >>> jaxnn.Reporting(jaxnn.show_progress()).on_interrupt
      'raise'
    """

    on_progress: Callable[[Progress], Any] | None = None
    record: Sequence[str] = ()
    on_interrupt: Literal["raise", "return"] = "raise"


class Options(NamedTuple):
    """All bundles."""

    start: Start = Start()
    feeding: Feeding = Feeding()
    measuring: Measuring = Measuring()
    saving: Saving = Saving()
    reporting: Reporting = Reporting()

    @classmethod
    def of(cls, old: Mapping[str, Any], *bundles: Any) -> "Options":
        """The bundles, with defaults for those that are None, updated with the fields in `old`.

        Warns:
          DeprecationWarning: for each field in `old`.

        Raises:
          TypeError: a name in `old` is not an option, or a bundle has the wrong type.
        """
        options = cls()
        for name, bundle in zip(cls._fields, bundles, strict=True):
            kind = type(getattr(options, name))
            if bundle is not None and not isinstance(bundle, kind):
                raise TypeError(f"`{name}` must be a {kind.__name__}. Got {describe(bundle)}.")
            options = options if bundle is None else options._replace(**{name: bundle})
        for field, value in old.items():
            name = next((n for n in cls._fields if field in getattr(options, n)._fields), None)
            if name is None:
                raise TypeError(f"fit() got an unexpected keyword argument {field!r}")
            bundle = getattr(options, name)
            warnings.warn(
                f"`{field}` of `fit` has moved: {name}=jaxnn.{type(bundle).__name__}({field}=...)",
                DeprecationWarning,
                stacklevel=3,
            )
            options = options._replace(**{name: bundle._replace(**{field: value})})
        return options

    def require(self, params: PyTree) -> "Options":
        """The options of `fit` with `record` as a tuple, after refusing invalid values."""
        require_arrays("model_state", self.start.model_state)
        if (eval_params := self.measuring.eval_params) is not None:
            require_arguments("eval_params", eval_params, params, self.start.opt_state)
        return self._required(RECORDED)

    def require_of_train(self) -> "Options":
        """The options of `train` with `record` as a tuple, after refusing invalid values."""
        measuring = self.measuring
        if measuring.eval_params is not None:
            raise ValueError(
                "`eval_params` must be left out of `train`, which has no parameters. Got one."
            )
        if measuring.metrics is None and (measuring.test is not None or measuring.patience):
            raise ValueError(
                "`metrics` must be given if `test` or `patience` is used in `train`, which "
                "measures nothing else. Got none."
            )
        return self._required(("state",))

    def _required(self, recorded: Sequence[str]) -> "Options":
        measuring, reporting = self.measuring, self.reporting
        require_counts(
            evaluate_every=measuring.evaluate_every,
            evaluate_steps=measuring.evaluate_steps,
            patience=measuring.patience,
        )
        if measuring.watch is not None:
            require_arguments("watch", measuring.watch, {})
        if reporting.on_progress is not None:
            require_arguments("on_progress", reporting.on_progress, None)
        require_choice("on_interrupt", reporting.on_interrupt, ("raise", "return"))
        _require_saving(self.saving)
        record = _require_record(reporting.record, recorded)
        return self._replace(reporting=reporting._replace(record=record))


def require_counts(**numbers: Any) -> None:
    """Refuse values that are neither None nor an integer of at least 1."""
    for name, number in numbers.items():
        if number is not None:
            require_count(name, number, least=1)


def _require_saving(saving: Saving) -> None:
    checkpoint, resume, every, keep, notes = saving
    require_count("keep", keep, least=1)
    require_counts(every=every)
    if notes is not None:
        require_mapping("notes", notes)
        as_json("notes", notes)
    if not isinstance(resume, bool | int | str) or resume not in (True, False, "previous"):
        raise ValueError(f"`resume` must be True, False or 'previous'. Got {resume!r}.")
    if resume and checkpoint is None:
        raise ValueError(f"`resume` must be used with `checkpoint`. Got {resume!r} alone.")


def _require_record(record: Any, recorded: Sequence[str]) -> tuple[str, ...]:
    given = (record,) if isinstance(record, str) else record
    if not isinstance(given, Sequence) or any(name not in recorded for name in given):
        raise ValueError(f"`record` must name some of {recorded}. Got {record!r}.")
    return tuple(given)
