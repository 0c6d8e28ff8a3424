"""Training with any step, in runs that need no supervision.

Steps run on the device (`steps.py`); about twice a second, and at the end of each epoch, control
returns to the host, which measures, reports, saves and may stop. The loop knows neither losses nor
optimisers: `fit` is this loop with one particular step.

The order of the examples in epoch e comes from `jax.random.fold_in(key, e)` alone, so a resumed run
takes the same steps as an uninterrupted one, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import treedef_is_leaf
from jaxtyping import Array, Key, PyTree

from jaxnn._arguments import arrays_of
from jaxnn._validate import (
    as_mesh,
    describe,
    is_array,
    is_key,
    require_arguments,
    require_callable,
    require_key,
    require_same_form,
)
from jaxnn.data import count_examples, require_batches
from jaxnn.training.examples import Batches, Examples
from jaxnn.training.history import Fit, Trained
from jaxnn.training.options import (
    Feeding,
    Measuring,
    Options,
    Reporting,
    Saving,
    require_counts,
)
from jaxnn.training.run import Config, Reached, Run, Saves, Schedule
from jaxnn.training.saves import as_place
from jaxnn.training.steps import (
    Plan,
    Way,
    batch_form,
    in_parts,
    is_large,
    is_sharded,
    not_finite,
    replicate,
)
from jaxnn.training.task import Task, UserState, UserStep

# Default number of epochs, and default number of examples per step.
EPOCHS, BATCH_SIZE = 10, 100


def train(
    step: Callable[[Any, Any, Key[Array, ""]], tuple[Any, dict[str, Any]]],
    state: PyTree,
    data: PyTree | Callable[[int], Iterable[Any]],
    *,
    key: Key[Array, ""],
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    feeding: Feeding | None = None,
    measuring: Measuring | None = None,
    saving: Saving | None = None,
    reporting: Reporting | None = None,
) -> Trained:
    """Train with a step that you write, `state, record = step(state, batch, key)`, on mini-batches.

    Its steps are compiled, measured, reported, saved, resumed bit for bit, and stopped like those
    of `fit`. Use it for several losses or optimisers, for per-example gradients, and for any other
    step that does not follow the gradient of one loss.

    Args:
      step: a pure function that JAX can trace; a jitted one is not traced again at the next call.
        `batch` has the form of `data`; step s of epoch e gets `fold_in(fold_in(key, e), s)`. It
        returns the new state, of the same form, and a dictionary of scalars to record. One of them
        is "loss".
      state: any pytree: parameters, the states of optimisers, averages, counters. Its arrays are
        updated; everything else in it is treated as constant.
      data: as for `fit`.
      key: as for `fit`.
      epochs: as for `fit`.
      max_steps: as for `fit`.
      batch_size: as for `fit`.
      feeding: a `Feeding`, as for `fit`.
      measuring: a `Measuring`, as for `fit`; its `metrics(state, batch)` are all that is measured.
        With `patience`, one of them must be "loss", unless `watch` is set.
      saving: a `Saving`, as for `fit`.
      reporting: a `Reporting`, as for `fit`; `record` may only name "state".

    Returns:
      A `Trained` of state, history and status.

    Raises:
      TypeError: `step` does not return a state of the same form and a dictionary of scalars.
      ValueError: the record of `step` has no "loss"; or as for `fit`.
      KeyboardInterrupt: the run was interrupted; the `fit` attribute is the result so far.

    Example:
      >>> optimizer = optax.sgd(0.1)
      >>> def step(state, batch, key):
      ...     params, opt_state = state
      ...     loss, gradient = jax.value_and_grad(jaxnn.loss)(params, *batch)
      ...     updates, opt_state = optimizer.update(gradient, opt_state)
      ...     return (optax.apply_updates(params, updates), opt_state), {"loss": loss}
      >>> digits = jaxnn.load_digits()
      >>> params = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
      >>> data, key = (digits.x_train, digits.t_train), jax.random.key(1)
      >>> jaxnn.train(step, (params, optimizer.init(params)), data, key=key, epochs=2).status
      Status(reason='finished', step=30, leaf=None)
    """
    options = Options.of(
        {}, feeding=feeding, measuring=measuring, saving=saving, reporting=reporting
    )
    require_callable("step", step)
    skeleton, arrays = arrays_of(state)
    if not jax.tree.leaves(arrays):
        raise TypeError(f"`state` must hold at least one array. Got {describe(state)}.")
    options = options.require_of_train()
    setup = Setup.of(data, key, epochs, max_steps, batch_size, options, state)
    task = UserStep(step, options.measuring.metrics, skeleton, setup.is_mapping)
    begun = UserState(placed(arrays, setup.mesh, set()))
    if is_large(begun):  # its memory is used again
        begun = UserState(replicate(begun.state, setup.mesh))
    watches = options.measuring.patience is not None and options.measuring.watch is None
    task.require(begun, key, setup.sets["train"].batch, watches)
    result = run_to_end(setup.run(task, begun), options)
    assert isinstance(result, Trained)
    return result


class Setup(NamedTuple):
    """The inputs of a run, apart from its steps.

    Attributes:
      key: the key of the run.
      plan: how its epochs are divided into steps.
      mesh: devices that split each batch.
      sharding: how a batch is sharded over them.
      sets: examples by name; the training data are called "train".
      names: of the sets to measure.
      options: the bundles.
      is_mapping: whether a batch is a dictionary.
    """

    key: Any
    plan: Plan
    mesh: Mesh | None
    sharding: NamedSharding | None
    sets: dict[str, Examples | Batches]
    names: tuple[str, ...]
    options: Options
    is_mapping: bool

    @classmethod
    def of(
        cls,
        data: Any,
        key: Any,
        epochs: int | None,
        max_steps: int | None,
        batch_size: int | None,
        options: Options,
        state: PyTree,
    ) -> "Setup":
        """Read, validate and place the data."""
        test = _as_tests(options.measuring.test)
        data = _as_examples(data)
        _require_data(data, test)
        batch_size = _batch_size(data, batch_size, options.feeding)
        require_counts(epochs=epochs, batch_size=batch_size, max_steps=max_steps)
        require_key("key", key)
        plan = _length(data, batch_size, epochs, max_steps, options)
        mesh = as_mesh("mesh", options.feeding.mesh or _mesh_of(state))
        sharding = _batch_sharding(mesh, options.feeding.batch_spec, state)
        sets = _sets(data, test, plan.batch_size, mesh, sharding, options.feeding)
        batch = sets["train"].batch
        is_mapping = len(batch) == 1 and isinstance(batch[0], Mapping)
        names = _measured(sets, options.measuring)
        return cls(key, plan, mesh, sharding, sets, names, options, is_mapping)

    def run(self, task: Task, state: Any) -> Run:
        """A run that is ready to start."""
        measuring, reporting, saving = (
            self.options.measuring,
            self.options.reporting,
            self.options.saving,
        )
        first = next((name for name in self.names if name != "train"), "train")
        watch = measuring.watch or (lambda record: record[f"{first}_loss"])
        every, steps = measuring.evaluate_every, measuring.evaluate_steps
        schedule = Schedule(self.names, every, steps, watch, measuring.patience)
        place = None if saving.checkpoint is None else as_place(saving.checkpoint, saving.keep)
        skips = self.options.feeding.skip_not_finite
        more = {"skips": skips, "sharding": self.sharding, "unwatched": not_finite(state)}
        way = Way.of(self.plan, guarded=is_large(state), **more)
        config = Config(
            plan=self.plan,
            key=self.key,
            mesh=self.mesh,
            task=task,
            way=way,
            across=_go_across(self.plan, schedule, self.sets["train"]),
            sets=self.sets,
            schedule=schedule,
            saves=place and Saves(place, saving.every, dict(saving.notes or {})),
            on_progress=reporting.on_progress if jax.process_index() == 0 else None,
            record=tuple(reporting.record),
        )
        return Run(config, Reached(state))


def run_to_end(run: Run, options: Options) -> Fit | Trained:
    """Take the steps of a run; its result."""
    with run.held():
        run.begin(options.saving.resume)
        while not run.ended:
            run.take_steps()
            run.report(run.measurements())
            run.prepare()
            run.listen()
        run.finish()
    result = run.result()
    if result.status.reason == "interrupted" and options.reporting.on_interrupt == "raise":
        raise Interrupted(result, options.saving.checkpoint is not None)
    return result


def _batch_size(data: Any, batch_size: int | None, feeding: Feeding) -> int | None:
    """The number of examples per step; None if `data` is a function, which decides."""
    if not _is_function(data):
        if feeding.parts:
            raise ValueError(
                "`parts` must be used with a function as `data`, which gives the parts. Got arrays."
            )
        return BATCH_SIZE if batch_size is None else batch_size
    if batch_size is not None or feeding.replacement or feeding.stream is not None:
        raise ValueError(
            "`batch_size`, `replacement` and `stream` must be left out if `data` is a function "
            f"or a loader, which makes the batches. Got {batch_size}, {feeding.replacement} and "
            f"{feeding.stream}."
        )
    return None


def _as_tests(test: Any) -> Any:
    """The sets for measurements by name, in the form of `_as_examples`; None if there are none."""
    if test is None:
        return None
    several = isinstance(test, Mapping) and not any(map(is_array, test.values()))
    return {name: _as_examples(x) for name, x in (test if several else {"test": test}).items()}


def _measured(sets: Mapping[str, Examples | Batches], measuring: Measuring) -> tuple[str, ...]:
    """The names of the sets that are measured; refuses options that need a set if there is none."""
    asked = [
        name for name in ("metrics", "patience", "measure") if getattr(measuring, name) is not None
    ]
    wanted = asked or measuring.test is not None
    names = _require_measure(measuring.measure, sets) if wanted else ()
    if asked and not names:
        raise ValueError(
            f"`{asked[0]}` must be used with `test` if `data` is a function. Got none."
        )
    if measuring.evaluate_steps is not None and not names:
        raise ValueError(
            "`evaluate_steps` must be used with `test`, `metrics` or `patience`, so that something "
            "is measured. Got none."
        )
    return names


def _go_across(plan: Plan, schedule: Schedule, train: Examples | Batches) -> bool:
    """Whether a chunk of steps may span several epochs."""
    between = schedule.steps or schedule.epochs * plan.per_epoch
    seldom = not schedule.names or between > plan.per_epoch
    return seldom and not (plan.rest or train.streamed)


def _is_function(data: Any) -> bool:
    """Whether `data` is a function; a callable pytree is not."""
    return callable(data) and treedef_is_leaf(jax.tree.structure(data))


def _as_examples(data: Any) -> Any:
    """Data as a tuple of arrays, or as a function of the epoch.

    A dictionary of arrays is the loss's only argument, and so is a data frame, as a dictionary of
    its columns. An iterable of batches, such as a loader, is gone through in each epoch.
    """
    data = tuple(map(_columns, data)) if type(data) is tuple else _columns(data)
    if isinstance(data, Mapping):
        return (dict(data),)
    if callable(data) or isinstance(data, Iterator) or not isinstance(data, Iterable):
        return data
    if not treedef_is_leaf(jax.tree.structure(data)) or isinstance(data, str) or is_array(data):
        return data
    return lambda epoch: data


def _columns(data: Any) -> Any:
    """A data frame as a dictionary of its columns; anything else as it is."""
    if not (hasattr(data, "columns") and hasattr(data, "to_numpy")):
        return data
    return {name: data[name].to_numpy() for name in data.columns}


def _length(
    data: Any,
    batch_size: int | None,
    epochs: int | None,
    max_steps: int | None,
    options: Options,
) -> Plan:
    """The plan of a run: its examples, batch size, and number of epochs or steps."""
    if epochs is None and max_steps is None:
        epochs = EPOCHS
    if batch_size is None:  # the function determines the length of an epoch
        return Plan(None, 1, epochs, False, max_steps)
    count = count_examples(data)
    replacement = options.feeding.replacement
    return Plan(count, min(batch_size, count), epochs, replacement, max_steps)


def _sets(
    data: Any,
    test: Any,
    batch_size: int,
    mesh: Mesh | None,
    sharding: NamedSharding | None,
    feeding: Feeding,
) -> dict[str, Examples | Batches]:
    """The sets of examples by name: "train" first, then the test sets."""

    def of(label, examples):
        if _is_function(examples):
            parts = sharding if feeding.parts else None
            return Batches.of(label, examples, mesh, parts)
        size = batch_size if not _is_function(data) else BATCH_SIZE
        return Examples.of(label, examples, size, mesh, feeding.stream)

    sets = {"train": of("data", data)}
    for name, examples in (test or {}).items():
        label = _label(name)
        sets[name] = of(label, examples)
        one, other = (batch_form(sets[key].batch, 1) for key in (name, "train"))
        require_same_form(f"an example of {label}", one, "data", other)
    return sets


def _label(name: str) -> str:
    """What errors call a test set."""
    return "test" if name == "test" else f"test[{name!r}]"


def placed(tree: PyTree, mesh: Mesh | None, taken: set[int]) -> PyTree:
    """The tree with each array on the right devices: the array itself if it is there and not in
    `taken`, else a copy.
    """

    def own(leaf):
        there = isinstance(leaf, jax.Array) and not is_key(leaf) and not leaf.weak_type
        if not there or id(leaf) in taken or (mesh is not None and not is_sharded(leaf)):
            return replicate(leaf, mesh)
        taken.add(id(leaf))
        return leaf if mesh is None else in_parts(leaf, mesh)

    return jax.tree.map(own, tree)


def _batch_sharding(
    mesh: Mesh | None, spec: PartitionSpec | None, state: PyTree
) -> NamedSharding | None:
    """How a batch is sharded: by default, over the axes of the mesh that no leaf uses."""
    if mesh is None:
        if spec is not None:
            raise ValueError(f"`batch_spec` must be used with `mesh`. Got {spec} alone.")
        return None
    if spec is None:
        taken = [leaf.sharding.spec for leaf in jax.tree.leaves(state) if is_sharded(leaf)]
        used = set(jax.tree.leaves([tuple(axes) for axes in taken]))
        free = tuple(axis for axis in mesh.axis_names if axis not in used)
        spec = PartitionSpec(free or mesh.axis_names)
    return NamedSharding(mesh, spec)


def _mesh_of(params: PyTree) -> Mesh | None:
    """The mesh of the first sharded parameter; None if no parameter is sharded."""
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(params) if is_sharded(leaf)]
    return meshes[0] if meshes else None


class Interrupted(KeyboardInterrupt):
    """Raised when a run is interrupted, after it is saved; `fit` is the result so far."""

    def __init__(self, fit: Fit | Trained, is_saved: bool):
        more = "; saved: `resume=True` continues" if is_saved else ""
        super().__init__(f"interrupted after step {fit.status.step}{more}")
        self.fit = fit


def _require_data(data: Any, test: Any) -> None:
    """Refuse invalid `data` and `test`."""
    if _is_function(data):
        require_arguments("data", data, 1)
    else:
        require_batches("data", data)
    for name, examples in (test or {}).items():
        if not _is_function(examples):
            like = None if _is_function(data) else data
            require_batches(_label(name), examples, like)


def _require_measure(measure: Any, sets: Mapping[str, Examples | Batches]) -> tuple[str, ...]:
    """The names of the sets to measure."""
    # Training batches from a function are available only to the steps, once per epoch.
    names = tuple(n for n, s in sets.items() if n != "train" or isinstance(s, Examples))
    if measure is None or not names:
        return names
    given = (measure,) if isinstance(measure, str) else measure
    if not isinstance(given, Sequence) or not given or any(name not in names for name in given):
        raise ValueError(f"`measure` must name some of {names}. Got {measure!r}.")
    return tuple(given)
