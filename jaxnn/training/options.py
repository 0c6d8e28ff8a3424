"""The options of `fit`, in bundles of what belongs together."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxnn._validate import (
    describe,
    require_arguments,
    require_arrays,
    require_choice,
    require_count,
    require_mapping,
)
from jaxnn.training.progress import Progress

# What a callback can be given besides.
RECORDED = ("params", "opt_state", "learning_rate", "gradient_norm")


class Start(NamedTuple):
    """Where a run starts, besides its parameters.

    Attributes:
      model_state: what the model remembers besides its parameters, as batch normalisation does. The
        loss is then `loss(params, model_state, *batch)` and returns `(value, model_state)`; the
        metrics are `metrics(params, model_state, *batch)`.
      opt_state: the optimiser's state; by default `optimizer.init` of what is trained.
      donate: whether the run may reuse the memory of `params` and `opt_state`, which are then gone.

    Example:
      >>> jaxnn.Start(donate=True).model_state is None
      True
    """

    model_state: PyTree = None
    opt_state: PyTree = None
    donate: bool = False


class Feeding(NamedTuple):
    """How the data are fed.

    Attributes:
      replacement: draw every batch from all examples, as the chapter does, instead of going through
        them in a shuffled order.
      mesh: devices that share each batch, also of several processes. The numbers are those of one
        device, up to rounding.
      stream: keep the data on the host, and send them in pieces that a thread gathers ahead of the
        steps; by default where NumPy arrays would fill half of the device, and for memory maps.

    Example:
      >>> jaxnn.Feeding(replacement=True).stream is None
      True
    """

    replacement: bool = False
    mesh: Mesh | None = None
    stream: bool | None = None


class Measuring(NamedTuple):
    """What is measured, when, and what follows from it.

    With `test`, `metrics` or `patience`, the loss and the metrics are measured after each epoch on
    all of the training data and of `test`, weighted by examples, as `train_...` and `test_...`;
    not on training data that come from a function.

    Attributes:
      test: examples that are measured and not trained on, in the form of the training data; or
        several sets of them by name. A function is called with 1.
      metrics: `metrics(params, *batch)`, a dictionary of means over the examples of a batch,
        numbers or arrays.
      evaluate_every: epochs between measurements.
      evaluate_steps: steps between measurements, instead of epochs.
      measure: the names of the sets that are measured, of "train", "test" or those of `test`; all
        by default.
      eval_params: `eval_params(params, opt_state)`, the parameters that are measured, and kept as
        best: an average over many steps, say.
      patience: stop after so many measurements without improvement, and return the best
        parameters.
      watch: of a measurement's record, the number that should become smaller; by default the loss
        on `test`, or on the first of several sets, or on the training data if there is no `test`.

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
      checkpoint: a directory for the checkpoints of this run alone, which all processes must see;
        they are written while the run goes on. Or an `orbax.checkpoint.CheckpointManager`, which
        then decides how many are kept.
      resume: go on from the newest checkpoint there, if there is one; "previous": from the newest
        that is intact.
      every: steps between checkpoints; by default one at the end of an epoch, if ten seconds have
        passed, one every ten minutes, and one at the end.
      keep: how many of the newest checkpoints are kept.
      notes: what else is saved in each checkpoint, as `info["notes"]`; what JSON can hold.

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
    """Who is told how a run goes.

    Attributes:
      on_progress: called with a `Progress` about twice a second and after each measurement, in
        process 0 alone. If it returns a true value, the run ends with status "stopped"; an
        exception is raised once the run is saved, and ends all processes.
      record: what `Progress` contains besides, of "params", "opt_state", "learning_rate" (as
        `optax.inject_hyperparams` keeps it) and "gradient_norm", which is then in `history.aux`,
        too. Arrays of the run are lent for the call: copy what is to be kept.
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
    def of(cls, old: Mapping[str, Any], **bundles: Any) -> "Options":
        """The bundles, defaults for those that are None; `old` has their fields as `fit` took them.

        Warns:
          DeprecationWarning: for each field that is given by itself.

        Raises:
          TypeError: a name that is no option, or a bundle of another type.
        """
        defaults = cls()
        for name, bundle in bundles.items():
            kind = type(getattr(defaults, name))
            if bundle is not None and not isinstance(bundle, kind):
                raise TypeError(f"`{name}` must be a {kind.__name__}. Got {describe(bundle)}.")
        options = cls(**{name: bundle for name, bundle in bundles.items() if bundle is not None})
        for field, value in old.items():
            name = next((n for n in cls._fields if field in getattr(defaults, n)._fields), None)
            if name is None:
                raise TypeError(f"fit() got an unexpected keyword argument {field!r}")
            kind = type(getattr(defaults, name)).__name__
            warnings.warn(
                f"`{field}` of `fit` has moved: {name}=jaxnn.{kind}({field}=...)",
                DeprecationWarning,
                stacklevel=3,
            )
            options = options._replace(**{name: getattr(options, name)._replace(**{field: value})})
        return options

    def require(self, params: PyTree) -> "Options":
        """Refuse values that no run can have; `record` comes back as a tuple."""
        start, measuring, reporting = self.start, self.measuring, self.reporting
        require_counts(
            evaluate_every=measuring.evaluate_every,
            evaluate_steps=measuring.evaluate_steps,
            patience=measuring.patience,
        )
        if start.model_state is not None:
            require_arrays("model_state", start.model_state)
        if measuring.eval_params is not None:
            require_arguments("eval_params", measuring.eval_params, params, start.opt_state)
        if measuring.watch is not None:
            require_arguments("watch", measuring.watch, {})
        if reporting.on_progress is not None:
            require_arguments("on_progress", reporting.on_progress, None)
        require_choice("on_interrupt", reporting.on_interrupt, ("raise", "return"))
        _require_saving(self.saving)
        record = _require_record(reporting.record)
        return self._replace(reporting=reporting._replace(record=record))


def require_counts(**numbers: Any) -> None:
    """Refuse what is neither None nor an integer of at least 1."""
    for name, number in numbers.items():
        if number is not None:
            require_count(name, number, least=1)


def _require_saving(saving: Saving) -> None:
    checkpoint, resume, every, keep, notes = saving
    require_count("keep", keep, least=1)
    require_counts(every=every)
    if notes is not None:
        require_mapping("notes", notes)
        try:
            json.dumps(notes)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"`notes` must be what JSON can hold. Got what it cannot: {error}."
            ) from None
    if not isinstance(resume, bool | int | str) or resume not in (True, False, "previous"):
        raise ValueError(f"`resume` must be True, False or 'previous'. Got {resume!r}.")
    if resume and checkpoint is None:
        raise ValueError(
            f"`resume` must come with `checkpoint`, a directory. Got {resume!r} alone."
        )


def _require_record(record: Any) -> tuple[str, ...]:
    given = (record,) if isinstance(record, str) else record
    if not isinstance(given, Sequence) or any(name not in RECORDED for name in given):
        raise ValueError(f"`record` must name some of {RECORDED}. Got {record!r}.")
    return tuple(given)
