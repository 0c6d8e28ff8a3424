"""Training: runs that need no supervision.

Steps run on the device (`steps.py`); about twice a second, and at the end of each epoch, control
returns to the host, which measures, reports, saves and may stop. The loss, its gradient, the
optimiser and the metrics are arguments, so any pytree of parameters and any model will do.

The order of the examples in epoch e comes from `jax.random.fold_in(key, e)` alone, so a resumed run
takes the same steps as an uninterrupted one, to the bit.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jax.tree_util import treedef_is_leaf
from jaxtyping import Array, Key, PyTree

from jaxnn._arguments import Skeleton, arrays_of
from jaxnn._validate import (
    as_mesh,
    is_array,
    is_key,
    require_arguments,
    require_callable,
    require_differentiable,
    require_key,
    require_optimizer,
    require_same_form,
)
from jaxnn.data import count_examples, require_batches
from jaxnn.descent import DivergenceWarning
from jaxnn.training.examples import Batches, Examples
from jaxnn.training.history import Fit
from jaxnn.training.objective import Objective
from jaxnn.training.optimizers import learning_rate
from jaxnn.training.options import (
    Feeding,
    Measuring,
    Options,
    Reporting,
    Saving,
    Start,
    require_counts,
)
from jaxnn.training.run import Config, Reached, Run, Saves, Schedule
from jaxnn.training.saves import as_place
from jaxnn.training.steps import Plan, State, Way, in_parts, is_large, is_sharded, replicate

# Default number of epochs, and default number of examples per step.
EPOCHS, BATCH_SIZE = 10, 100


def fit(
    loss: Callable[..., Any],
    params: PyTree,
    data: PyTree | Callable[[int], Iterable[Any]],
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    key: Key[Array, ""],
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    grad: Callable = jax.grad,
    has_aux: bool = False,
    start: Start | None = None,
    feeding: Feeding | None = None,
    measuring: Measuring | None = None,
    saving: Saving | None = None,
    reporting: Reporting | None = None,
    **old: Any,
) -> Fit:
    """Train `params` on mini-batches of `data`.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 stop the run after the steps in progress: it saves a
    checkpoint and raises KeyboardInterrupt, with status "interrupted". A second signal stops the
    run at once.

    The functions are traced at each call and compiled once for equal programs, so new values of
    variables that they read take effect.

    A resumed run takes the same steps as an uninterrupted one, to the bit. Some options may change
    when a run is resumed: `epochs`, `max_steps`, all of `measuring`, when checkpoints are saved,
    `mesh` and `stream`, the loss, and the numbers of the optimiser, including those that
    `optax.inject_hyperparams` keeps in its state. A change of `data`, `batch_size`, `key`,
    `replacement`, the form of `params` or the form of the optimiser's state raises an error.

    Args:
      loss: `loss(params, *batch)`, the mean over the examples of a batch. If it takes a keyword
        `key`, step s of epoch e gets `fold_in(fold_in(key, e), s)`; measurements get
        `fold_in(key, 0)`, or none if `key` has a default.
      params: initial parameters, any pytree; not overwritten. Floating and complex leaves are
        trained; everything else is treated as constant. So are Python numbers (settings, such as a
        dropout rate) in a module with arrays, that is, an object whose class is registered as a
        pytree. Leaves that are sharded by a `NamedSharding` on `mesh` stay sharded, and so does the
        optimiser's state.
      data: a tuple of arrays whose first axis is the examples, for instance `(x, t)`; memory maps
        are read as needed. Or a function that maps the epoch, counted from 1, to an iterable of
        batches, each such a tuple. The function decides on the order, size and number of batches.
        It runs in a thread, a little ahead of the steps. To resume within an epoch, its first
        batches are skipped. Each of several processes must yield the whole batch. An iterable that
        begins anew in each epoch, such as a loader, may stand for the function. A dictionary of
        arrays, or as a batch, is one argument of the loss. Arrays that are read in slices, as from
        an HDF5 file, are read as needed.
      optimizer: an optax optimiser.
      key: a PRNG key; epoch e uses `jax.random.fold_in(key, e)`.
      epochs: how many times to go through the data; by default ten or, if `max_steps` is given, as
        many as it takes.
      max_steps: steps after which the run ends, unless its epochs end earlier.
      batch_size: examples per step, on all devices together; 100 by default. A smaller last batch
        is used, too; no examples are dropped.
      grad: maps `loss` to its gradient: `jax.grad`, `numerical_grad`, or a function with the same
        calling convention.
      has_aux: whether the loss returns `(value, aux)`, a dictionary of scalars that is recorded at
        each step in `history.aux`; with a model state `(value, (model_state, aux))`.
      start: a `Start`: model state, optimiser state, and whether memory may be reused.
      feeding: a `Feeding`: with replacement or not, on which devices, streamed or not.
      measuring: a `Measuring`: test data, metrics, when to measure, and patience.
      saving: a `Saving`: where and when checkpoints are written, and whether to resume.
      reporting: a `Reporting`: a callback, what it receives, and what an interruption does.
      **old: fields of these bundles as separate arguments, as in versions before 0.3.

    Returns:
      A `Fit` of parameters, optimiser state, history and status.

    Raises:
      KeyboardInterrupt: the run was interrupted; the `fit` attribute is the result so far.
      TypeError: `params` has no floating leaf, or `epochs` or another count is not an integer.
      ValueError: `data` is empty, its arrays differ in length, the checkpoint is broken or from
        another run, or processes begin a run differently.
      FileExistsError: `checkpoint` contains checkpoints, and `resume` is not set.
      BlockingIOError: another run uses `checkpoint`.
      OSError: the last checkpoint could not be written.
      RuntimeError: another process failed; the message gives the reason.
      Exception: what the data or the callback raised. Whatever ends a run has the attribute `fit`,
        the result so far.

    Warns:
      DivergenceWarning: the loss ended above twice its first value, on the first batch, too. (A
        non-finite step gives a status with its cause and its examples, not a warning.)
      RuntimeWarning: the watched number is NaN, a checkpoint could not be written, or a directory
        could not be locked.
      DeprecationWarning: for each of `old`.

    Source:
      the chapter, 4.5.2 and 4.5.3.

    Example:
      >>> digits = jaxnn.load_digits()
      >>> params = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
      >>> train = (digits.x_train, digits.t_train)
      >>> key = jax.random.key(1)
      >>> jaxnn.fit(jaxnn.loss, params, train, optax.adam(0.01), key=key, epochs=2).status
      Status(reason='finished', step=30, leaf=None)
    """
    options = Options.of(
        old,
        start=start,
        feeding=feeding,
        measuring=measuring,
        saving=saving,
        reporting=reporting,
    )
    test = _as_tests(options.measuring.test, data)
    options = options._replace(measuring=options.measuring._replace(test=test))
    data = _as_examples(data)
    require_run(loss, grad, data, test)
    batch_size = _batch_size(data, batch_size, options.feeding)
    require_counts(epochs=epochs, batch_size=batch_size, max_steps=max_steps)
    require_differentiable("params", params)
    require_optimizer("optimizer", optimizer)
    require_key("key", key)
    options = options.require(params)
    run = _run(
        loss,
        params,
        data,
        optimizer,
        key,
        _length(data, batch_size, epochs, max_steps, options),
        grad,
        has_aux,
        options,
    )
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
        raise Interrupted(result)
    if result.status.reason == "finished":
        _warn_of_divergence(result, run, options.start.model_state)
    if result.status.reason == "not finite":
        from jaxnn.training.cause import with_cause  # takes longer to import than all of training

        return with_cause(result, run)
    return result


def _run(
    loss: Callable,
    params: PyTree,
    data: Any,
    optimizer: Any,
    key: Any,
    plan: Plan,
    grad: Callable,
    has_aux: bool,
    options: Options,
) -> Run:
    """A run that is ready to start."""
    (model_state, opt_state, donate), measuring, reporting = (
        options.start,
        options.measuring,
        options.reporting,
    )
    mesh = as_mesh("mesh", options.feeding.mesh or _mesh_of(params))
    sets = _sets(data, measuring.test, plan.batch_size, mesh, options.feeding.stream)
    names = _measured(sets, measuring)
    skeleton, arrays = arrays_of(params)
    state = _state(arrays, skeleton, optimizer, opt_state, model_state, mesh, donate)
    _require_kept(reporting.record, state)
    batch = sets["train"].batch
    objective = Objective.of(loss, measuring.metrics, grad, skeleton, batch, model_state, has_aux)
    objective.require(state.params, state.model_state, key, batch)
    more = {"norm": "gradient_norm" in reporting.record, "mesh": mesh, "guarded": is_large(state)}
    more["skips"] = options.feeding.skip_not_finite
    first = [*list(sets)[1:], "train"][0]
    watch = measuring.watch or (lambda record: record[f"{first}_loss"])
    every, steps = measuring.evaluate_every, measuring.evaluate_steps
    schedule = Schedule(names, every, steps, watch, measuring.patience)
    saving = options.saving
    place = None if saving.checkpoint is None else as_place(saving.checkpoint, saving.keep)
    config = Config(
        plan=plan,
        key=key,
        mesh=mesh,
        objective=objective,
        optimizer=optimizer,
        way=Way.of(plan, **more),
        across=_go_across(plan, schedule, sets["train"]),
        sets=sets,
        schedule=schedule,
        saves=place and Saves(place, saving.every, dict(saving.notes or {})),
        on_progress=reporting.on_progress if jax.process_index() == 0 else None,
        record=tuple(reporting.record),
        eval_params=measuring.eval_params,
    )
    return Run(config, Reached(state))


def _batch_size(data: Any, batch_size: int | None, feeding: Feeding) -> int | None:
    """The number of examples per step; None if `data` is a function, which decides."""
    if not _is_function(data):
        return BATCH_SIZE if batch_size is None else batch_size
    if batch_size is not None or feeding.replacement or feeding.stream is not None:
        raise ValueError(
            "`batch_size`, `replacement` and `stream` must be left out where `data` is a function, "
            f"which makes the batches. Got {batch_size}, {feeding.replacement} and "
            f"{feeding.stream}."
        )
    return None


def _as_tests(test: Any, data: Any) -> Any:
    """The sets for measurements by name, in the form of `_as_examples`; None if there are none."""
    if test is None:
        return None
    several = isinstance(test, Mapping) and not (
        isinstance(data, Mapping) and test.keys() == data.keys()
    )
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
            f"`{asked[0]}` must come with `test` where `data` is a function. Got none."
        )
    if measuring.evaluate_steps is not None and not names:
        raise ValueError(
            "`evaluate_steps` must come with `test`, `metrics` or `patience`, for something to be "
            "measured. Got none."
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

    A dictionary of arrays is the loss's only argument. An iterable of batches, such as a loader, is
    gone through in each epoch.
    """
    if isinstance(data, Mapping):
        return (data,)
    if callable(data) or isinstance(data, Iterator) or not isinstance(data, Iterable):
        return data
    if not treedef_is_leaf(jax.tree.structure(data)) or isinstance(data, str) or is_array(data):
        return data
    return lambda epoch: data


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
    data: Any, test: Any, batch_size: int, mesh: Mesh | None, stream: bool | None
) -> dict[str, Examples | Batches]:
    """The sets of examples by name: "train" first, then the test sets."""

    def of(label, examples):
        if _is_function(examples):
            return Batches.of(label, examples, mesh)
        size = batch_size if not _is_function(data) else BATCH_SIZE
        return Examples.of(label, examples, size, mesh, stream)

    sets = {"train": of("data", data)}
    for name, examples in (test or {}).items():
        sets[name] = of("test" if name == "test" else f"test[{name!r}]", examples)
    return sets


def _state(
    arrays: PyTree,
    skeleton: Skeleton,
    optimizer: Any,
    opt_state: PyTree,
    model_state: PyTree,
    mesh: Mesh | None,
    donate: bool,
) -> State:
    """The initial state of a run, on the devices that need it. The run may overwrite the arrays of
    a large state, so those are copies unless the user donates theirs.
    """
    place = functools.partial(replicate, mesh=mesh)
    taken: set[int] = set()
    params = _ours(arrays, place, mesh, taken)
    start = optimizer.init(skeleton.split(params)[0])
    if opt_state is not None:
        require_same_form("opt_state", opt_state, "optimizer.init(...)", start)
        start = opt_state
    taken |= {id(leaf) for leaf in jax.tree.leaves(params)}
    state = State(params, _ours(start, place, mesh, taken), place(model_state))
    if donate or not is_large(state):  # a small state is never overwritten
        return state
    return state._replace(
        params=place(params), opt_state=place(start) if opt_state is not None else state.opt_state
    )


def _ours(tree: PyTree, place: Callable, mesh: Mesh | None, taken: set[int]) -> PyTree:
    """The tree with each array on the right devices: the array itself if it is there and not in
    `taken`, else a copy.
    """

    def own(leaf):
        there = isinstance(leaf, jax.Array) and not is_key(leaf) and not leaf.weak_type
        if not there or id(leaf) in taken or (mesh is not None and not is_sharded(leaf)):
            return place(leaf)
        taken.add(id(leaf))
        return leaf if mesh is None else in_parts(leaf, mesh)

    return jax.tree.map(own, tree)


def _mesh_of(params: PyTree) -> Mesh | None:
    """The mesh of the first sharded parameter; None if no parameter is sharded."""
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(params) if is_sharded(leaf)]
    return meshes[0] if meshes else None


def _warn_of_divergence(result: Fit, run: Run, model_state: PyTree) -> None:
    """Warn if the loss more than doubled: on average over an epoch and, as batches differ and a
    loss may be annealed, on the first batch, too.
    """
    began, ended = float(result.history.step_loss[0]), run.now.log.mean_loss
    most = began + abs(began)
    if not ended > most:
        return
    if jax.process_count() == 1:
        given = run.given(1, 0)
        value = jax.jit(run.config.objective.value)
        ended = float(value(run.now.state.params, model_state, given.key, given.batch)[0])
    if ended > most:
        warnings.warn(
            f"fit diverged: the loss of the first batch went from {began:.6g} to {ended:.6g} in "
            f"{result.status.step} steps; a smaller learning rate may converge.",
            DivergenceWarning,
            stacklevel=3,
        )


class Interrupted(KeyboardInterrupt):
    """Raised when a run is interrupted, after it is saved; `fit` is the result so far."""

    def __init__(self, fit: Fit):
        super().__init__(f"interrupted after step {fit.status.step}")
        self.fit = fit


def require_run(loss: Any, grad: Any, data: Any, test: Any) -> None:
    """Refuse invalid `loss`, `grad`, `data` and `test`."""
    require_callable("loss", loss)
    require_arguments("grad", grad, loss)
    if _is_function(data):
        require_arguments("data", data, 1)
    else:
        require_batches("data", data)
    named = test if isinstance(test, Mapping) else {} if test is None else {None: test}
    for name, examples in named.items():
        if not _is_function(examples):
            like = None if _is_function(data) else data
            label = "test" if name in (None, "test") else f"test[{name!r}]"
            require_batches(label, examples, like)


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


def _require_kept(record: Sequence[str], state: State) -> None:
    """Refuse to record a learning rate that the optimiser's state does not hold."""
    if "learning_rate" in record and learning_rate(state.opt_state) is None:
        raise ValueError(
            "`record` must name 'learning_rate' only with `optax.inject_hyperparams`, which keeps "
            f"it in the optimiser's state. Got {record!r}."
        )
