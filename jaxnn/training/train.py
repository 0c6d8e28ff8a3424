"""Training with any step, in runs that need no supervision.

Steps run on the device (`steps.py`); about twice a second, and at the end of each epoch, control
returns to the host, which measures, reports, saves and may stop. The loop knows neither losses nor
optimisers: `fit` is this loop with one particular step.

The order of the examples in epoch e comes from `jax.random.fold_in(key, e)` alone, so a resumed run
takes the same steps as an uninterrupted one, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

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
)
from jaxnn.data import count_examples, require_alike, require_batches
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
from jaxnn.training.run import Config, Reached, Run
from jaxnn.training.saves import as_place
from jaxnn.training.steps import (
    Plan,
    Way,
    in_parts,
    is_large,
    is_sharded,
    not_finite,
    replicate,
)
from jaxnn.training.task import Task, UserState, UserStep

# Numbers of epochs, of steps at most, and of examples per step, as far as they are given.
Sizes = tuple[int | None, int | None, int | None]
# Default number of epochs, and default number of examples per step.
EPOCHS, BATCH_SIZE = 10, 100
# Chunks of steps go across epochs if there are at most this many examples: each chunk draws their
# order anew, which takes about 10 ms for this many.
SHUFFLED_AGAIN = 2**17


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

    Runs are compiled, measured, reported, saved, resumed bit for bit, and stopped as in `fit`. Use
    `train` for several losses or optimisers, for per-example gradients, and for any other step that
    does not follow the gradient of one loss.

    Args:
      step: a pure function that JAX can trace; a jitted one is not traced again at the next call.
        `batch` has the form of `data`; step s of epoch e gets the key `fold_in(fold_in(key, e),
        s)`. `step` returns the new state, of the same form, and a dictionary of scalars to record,
        which must include "loss".
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
    options = Options.of({}, None, feeding, measuring, saving, reporting)
    require_callable("step", step)
    skeleton, arrays = arrays_of(state)
    if not jax.tree.leaves(arrays):
        raise TypeError(f"`state` must hold at least one array. Got {describe(state)}.")
    options = options.require_of_train()
    config = configured(data, key, (epochs, max_steps, batch_size), options, state)
    batch = config.sets["train"].batch
    is_mapping = len(batch) == 1 and isinstance(batch[0], Mapping)
    task = UserStep(step, options.measuring.metrics, skeleton, is_mapping)
    start = UserState(placed(arrays, config.mesh, set()))
    if is_large(start):  # its memory is used again
        start = UserState(replicate(start.state, config.mesh))
    watches = options.measuring.patience is not None and options.measuring.watch is None
    task.require(start, key, batch, watches)
    result = run_to_end(begun(config, task, start))
    assert isinstance(result, Trained)
    return result


def configured(data: Any, key: Any, sizes: Sizes, options: Options, state: PyTree) -> Config:
    """The inputs of a run, validated; its data are read and placed."""
    data = _as_examples(data)
    given = {"train": data} | _as_tests(options.measuring.test)
    for name, examples in given.items():
        if not _is_function(examples):
            require_batches(_label(name), examples)
        elif name == "train":
            require_arguments("data", data, 1)
    plan = _planned(data, sizes, options.feeding)
    require_key("key", key)
    mesh = as_mesh("mesh", options.feeding.mesh or _mesh_of(state))
    sharding = _batch_sharding(mesh, options.feeding.batch_spec, state)
    stream, parts = options.feeding.stream, sharding if options.feeding.parts else None
    size = BATCH_SIZE if plan.count is None else plan.batch_size
    sets: dict[str, Examples | Batches] = {}
    for name, examples in given.items():
        label = _label(name)
        if _is_function(examples):
            sets[name] = Batches.of(label, examples, mesh, parts)
        else:
            sets[name] = Examples.of(label, examples, size, mesh, stream)
        require_alike(label, sets[name].batch, sets["train"].batch)
    names = _measured(sets, options.measuring)
    return Config(plan, key, mesh, sharding, sets, names, options)


def begun(config: Config, task: Task, state: Any) -> Run:
    """A run that is ready to start."""
    plan, options, saving = config.plan, config.options, config.options.saving
    place = None if saving.checkpoint is None else as_place(saving.checkpoint, saving.keep)
    skips = options.feeding.skip_not_finite
    more = {"skips": skips, "sharding": config.sharding, "unwatched": not_finite(state)}
    way = Way.of(plan, guarded=is_large(state), **more)
    few = plan.whole or (plan.count or 0) <= SHUFFLED_AGAIN
    across = few and not (plan.rest or config.sets["train"].streamed)
    return Run(config, task, way, across, place, Reached(state))


def run_to_end(run: Run) -> Fit | Trained:
    """Take the steps of a run; its result."""
    options = run.config.options
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
        more = "; saved: pass `resume=True` to continue" if run.place else ""
        error: Any = KeyboardInterrupt(f"interrupted after step {result.status.step}{more}")
        error.fit = result
        raise error
    return result


def _planned(data: Any, sizes: Sizes, feeding: Feeding) -> Plan:
    """How the epochs of a run are divided into steps; `data` that is a function decides alone."""
    made, (epochs, max_steps, batch_size) = _is_function(data), sizes
    if feeding.parts and not made:
        raise ValueError(
            "`parts` must be used with a function as `data`, which gives the parts. Got arrays."
        )
    if made and (batch_size is not None or feeding.replacement or feeding.stream is not None):
        raise ValueError(
            "`batch_size`, `replacement` and `stream` must be left out if `data` is a function "
            f"or a loader, which makes the batches. Got {batch_size}, {feeding.replacement} and "
            f"{feeding.stream}."
        )
    require_counts(epochs=epochs, batch_size=batch_size, max_steps=max_steps)
    epochs = EPOCHS if epochs is None and max_steps is None else epochs
    if made:
        return Plan(None, 1, epochs, False, max_steps)
    count, size = count_examples(data), BATCH_SIZE if batch_size is None else batch_size
    return Plan(count, min(size, count), epochs, feeding.replacement, max_steps)


def _as_tests(test: Any) -> dict[str, Any]:
    """The sets for measurements by name, in the form of `_as_examples`."""
    if test is None:
        return {}
    several = isinstance(test, Mapping) and not any(map(is_array, test.values()))
    if several and "train" in test:
        raise ValueError(
            "`test` must not contain a set named 'train': that name stands for `data`. Got one."
        )
    return {name: _as_examples(x) for name, x in (test if several else {"test": test}).items()}


def _measured(sets: Mapping[str, Examples | Batches], measuring: Measuring) -> tuple[str, ...]:
    """The names of the sets that are measured; refuses options that need a set if there is none."""
    asked = [
        name for name in ("metrics", "patience", "measure") if getattr(measuring, name) is not None
    ]
    # Training batches from a function are available only to the steps, once per epoch.
    names = tuple(n for n, s in sets.items() if n != "train" or isinstance(s, Examples))
    names = names if asked or measuring.test is not None else ()
    if asked and not names:
        raise ValueError(
            f"`test` must be given with `{asked[0]}` if `data` is a function. Got none."
        )
    if measuring.evaluate_steps is not None and not names:
        raise ValueError(
            "`test`, `metrics` or `patience` must be given with `evaluate_steps`, so that "
            "something is measured. Got none."
        )
    return names if measuring.measure is None else _chosen(measuring.measure, names)


def _chosen(measure: str | Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the sets that the user wants to be measured."""
    given = (measure,) if isinstance(measure, str) else measure
    if not isinstance(given, Sequence) or not given or any(name not in names for name in given):
        raise ValueError(f"`measure` must name some of {names}. Got {measure!r}.")
    return tuple(given)


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


def _label(name: str) -> str:
    """What errors call a set."""
    return {"train": "data", "test": "test"}.get(name, f"test[{name!r}]")


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
