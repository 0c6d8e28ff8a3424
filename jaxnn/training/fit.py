"""Training: runs that can be left alone.

The device takes the steps (`steps.py`); the host comes back about twice a second and at the end of
each epoch, and then it measures, reports, saves and may stop. The loss, its gradient, the optimiser
and the metrics come in as functions, so any pytree of parameters and any model will do.

The order of the examples in epoch e comes from `jax.random.fold_in(key, e)` alone, so a resumed run
takes the steps that an uninterrupted one takes, to the bit.
"""

import functools
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import optax
from jax.sharding import Mesh
from jax.tree_util import treedef_is_leaf
from jaxtyping import Array, Key, PyTree

from jaxnn._arguments import Skeleton, arrays_of
from jaxnn._validate import (
    as_mesh,
    is_key,
    require_arguments,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_differentiable,
    require_key,
    require_mapping,
    require_optimizer,
    require_same_form,
)
from jaxnn.data import count_examples, require_batches
from jaxnn.descent import DivergenceWarning
from jaxnn.training.examples import Batches, Examples
from jaxnn.training.history import Fit
from jaxnn.training.objective import Objective
from jaxnn.training.optimizers import learning_rate
from jaxnn.training.progress import Progress
from jaxnn.training.run import Run, Saves, Schedule
from jaxnn.training.saves import as_place
from jaxnn.training.steps import Plan, State, Way, in_parts, is_large, is_sharded, replicate

# Epochs, and examples a step, of a run that says nothing else.
EPOCHS, BATCH_SIZE = 10, 100
# What a callback may be told besides.
RECORDED = ("params", "opt_state", "learning_rate", "gradient_norm")


def fit(
    loss: Callable[..., Any],
    params: PyTree,
    data: PyTree | Callable[[int], Iterable[Any]],
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    grad: Callable = jax.grad,
    replacement: bool = False,
    test: PyTree | Callable[[int], Iterable[Any]] | Mapping[str, Any] | None = None,
    metrics: Callable[..., dict[str, Any]] | None = None,
    evaluate_every: int = 1,
    evaluate_steps: int | None = None,
    measure: Sequence[str] | None = None,
    model_state: PyTree = None,
    has_aux: bool = False,
    opt_state: PyTree = None,
    donate: bool = False,
    eval_params: Callable[[PyTree, PyTree], PyTree] | None = None,
    patience: int | None = None,
    watch: Callable[[dict[str, Any]], float] | None = None,
    checkpoint: Any = None,
    resume: bool | Literal["previous"] = False,
    every: int | None = None,
    keep: int = 3,
    notes: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    stream: bool | None = None,
    on_progress: Callable[[Progress], Any] | None = None,
    record: Sequence[str] = (),
    on_interrupt: Literal["raise", "return"] = "raise",
) -> Fit:
    """Train `params` on mini-batches of `data`.

    Ctrl-C and SIGTERM, SIGHUP and SIGUSR1 end the run after the steps that are under way, with a
    checkpoint and status "interrupted", and KeyboardInterrupt is raised; a second one ends it at
    once.

    As under `jax.jit`, the functions are compiled once per function object and form of the
    arguments; what they close over is part of what is compiled. A function is compiled again if a
    variable that it reads was set to something else; a method, or an object that is called, if an
    attribute of the object was. What changes inside a list or a large NumPy array is not
    seen.

    A resumed run takes the steps that an uninterrupted one takes, to the bit. What may change
    between its parts takes effect: `epochs`, `max_steps`, `patience`, `test`, `metrics` and all
    that says when something is measured or saved; `mesh` and `stream`; the loss; and the numbers of
    the optimiser, also those that `optax.inject_hyperparams` keeps in its state. Refused by name
    are other `data`, `batch_size`, `key`, `replacement`, forms of `params`, and optimisers made of
    other parts.

    Args:
      loss: `loss(params, *batch)`, the mean over the examples of a batch. If it takes a keyword
        `key`, step s of epoch e has its own, `fold_in(fold_in(key, e), s)`; what is measured has
        `fold_in(key, 0)`, or none if `key` has a default.
      params: where to start; any pytree, not overwritten. Its floating and complex leaves are
        trained; everything else is held fixed, and so are Python numbers in a module (an object of
        a class that is registered as a pytree) that has arrays: they are its settings, such as a
        rate of dropout. Leaves that come in parts, by a `NamedSharding` on
        `mesh`, stay so, and the optimiser's state with them.
      data: a tuple of arrays whose first axis is the examples, for instance `(x, t)`; memory maps
        among them are read as they are needed. Or a function of the epoch, counted from 1, that
        returns an iterable of batches, such tuples themselves: it decides on their order, size and
        number; it runs in a thread, a little ahead of the steps; to resume within an epoch its
        first batches are passed over; and of several processes each gives the whole batch.
      optimizer: from optax.
      key: a PRNG key; epoch e uses `jax.random.fold_in(key, e)`.
      epochs: how many times the data are gone through: ten by default, or as often as `max_steps`
        takes.
      max_steps: steps after which the run ends, if its epochs do not end it before.
      batch_size: examples a step, on all devices together; 100 by default. A last batch that is
        smaller is used as it is; nothing is dropped.
      grad: makes the gradient out of `loss`: `jax.grad`, `numerical_grad`, or anything with their
        calling form.
      replacement: draw every batch from all examples, as the chapter does, instead of going through
        them in a shuffled order.
      test: examples that are measured and not trained on, in the form of `data`; or several sets of
        them by name. A function is called with 1.
      metrics: `metrics(params, *batch)`, a dictionary of means over the examples of a batch,
        numbers or arrays. With `metrics`, `test` or `patience`, the loss and the metrics are
        measured after each epoch on all of `data` and of `test`, `batch_size` examples at once,
        weighted by examples, as `train_...` and `test_...`; on `data` not if it is a function.
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
      donate: whether the run may have the memory of `params` and `opt_state`, which are then gone.
      eval_params: `eval_params(params, opt_state)`, the parameters that are measured, and kept as
        best: an average of those of many steps, say.
      patience: stop after so many measurements without improvement, and return the best
        parameters.
      watch: of a measurement's record, what is to become smaller; by default the loss on `test`, or
        on the first of several sets, or on `data` if there is no `test`.
      checkpoint: a directory for checkpoints, of this run alone, which all processes must see; they
        are written while the run goes on. Or an `orbax.checkpoint.CheckpointManager`, which then
        decides how many stay.
      resume: go on from the newest checkpoint there, if there is one; "previous": from the newest
        that is whole.
      every: steps between checkpoints; by default one at the end of an epoch, if ten seconds have
        passed, one every ten minutes, and one at the end.
      keep: how many of the newest checkpoints stay.
      notes: what else is kept in each checkpoint, as `info["notes"]`; what JSON can hold.
      mesh: devices that share each batch, also of several processes. The numbers are those of one
        device, up to rounding.
      stream: keep `data` on the host, and send it in pieces, which a thread gathers ahead of the
        steps; by default where NumPy arrays would fill half of the device, and for memory maps.
      on_progress: called with a `Progress` about twice a second and after each measurement, in
        process 0 alone. If it returns a true value, the run ends with status "stopped"; what it
        raises goes on up once the run is saved, and ends all processes.
      record: what `Progress` holds besides, of "params", "opt_state", "learning_rate" (as
        `optax.inject_hyperparams` keeps it) and "gradient_norm", which is then in `history.aux`,
        too. Arrays of the run are lent for the call: copy what is to stay.
      on_interrupt: "return" gives the `Fit` back where "raise" has it as the `fit` of a
        KeyboardInterrupt.

    Returns:
      A `Fit` of parameters, optimiser state, history and status.

    Raises:
      KeyboardInterrupt: interrupted; its `fit` is what was reached.
      TypeError: `params` has no floating leaf; `epochs` or another count is not an integer.
      ValueError: `data` is empty, or its arrays differ in length; the checkpoint is of another run,
        or broken; processes begin a run differently.
      FileExistsError: `checkpoint` holds checkpoints, and `resume` is not set.
      BlockingIOError: another run holds `checkpoint`.
      RuntimeError: another process failed; the message has its reason.

    Warns:
      DivergenceWarning: the loss ended above twice what it was (that a step would not be finite is
        no warning, but a status).
      RuntimeWarning: what is watched is NaN.

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
    require_run(loss, grad, data, test, on_progress)
    batch_size = _batch_size(data, batch_size, replacement, stream)
    require_counts(
        epochs=epochs,
        batch_size=batch_size,
        evaluate_every=evaluate_every,
        max_steps=max_steps,
        evaluate_steps=evaluate_steps,
        patience=patience,
    )
    record = _require_record(record)
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
    saves = _saves(checkpoint, resume, keep, every, notes)
    mesh = as_mesh("mesh", _mesh_of(params) if mesh is None else mesh)
    plan = _plan(data, batch_size, epochs, replacement, max_steps)
    sets = _sets(data, test, plan.batch_size, mesh, stream)
    names = _measured(sets, measure, evaluate_steps, test, metrics=metrics, patience=patience)
    skeleton, arrays = arrays_of(params)
    state = _state(arrays, skeleton, optimizer, opt_state, model_state, mesh, donate)
    del arrays
    _require_kept(record, state)
    objective = Objective.of(
        loss, metrics, grad, skeleton, sets["train"].batch, model_state, has_aux
    )
    objective.require(state.params, state.model_state, key, sets["train"].batch)
    more = {"norm": "gradient_norm" in record, "mesh": mesh, "guarded": is_large(state)}
    way = Way.of(plan, optimizer, **more)
    first = [*list(sets)[1:], "train"][0]
    watch = (lambda record: record[f"{first}_loss"]) if watch is None else watch
    schedule = Schedule(names, evaluate_every, evaluate_steps, watch, patience)
    run = Run(
        plan=plan,
        key=key,
        mesh=mesh,
        objective=objective,
        optimizer=optimizer,
        way=way,
        across=_go_across(plan, schedule, sets["train"]),
        sets=sets,
        schedule=schedule,
        saves=saves,
        on_progress=on_progress if jax.process_index() == 0 else None,
        record=record,
        eval_params=eval_params,
        state=state,
    )
    with run.held():
        run.begin(resume)
        while not run.ended:
            run.take_steps()
            run.report(run.measurements())
            run.prepare()
            run.listen()
        run.finish()
    result = run.result()
    if result.status.reason == "interrupted" and on_interrupt == "raise":
        raise Interrupted(result)
    if result.status.reason == "finished":
        _warn_of_divergence(result, run.log.mean_loss)
    return result


def _batch_size(
    data: Any, batch_size: int | None, replacement: bool, stream: bool | None
) -> int | None:
    """The examples of a step; None where a function decides, which is then asked for no more."""
    if not _is_function(data):
        return BATCH_SIZE if batch_size is None else batch_size
    if batch_size is not None or replacement or stream is not None:
        raise ValueError(
            "`batch_size`, `replacement` and `stream` must be left out where `data` is a function, "
            f"which makes the batches. Got {batch_size}, {replacement} and {stream}."
        )
    return None


def _measured(
    sets: Mapping[str, Examples | Batches],
    measure: Any,
    evaluate_steps: int | None,
    test: Any,
    **reasons: Any,
) -> tuple[str, ...]:
    """The names of the sets that are measured; refused is what asks for it where there are none."""
    reasons |= {"measure": measure}
    asked = [name for name, given in reasons.items() if given is not None]
    names = _require_measure(measure, sets) if asked or test is not None else ()
    if asked and not names:
        raise ValueError(
            f"`{asked[0]}` must come with `test` where `data` is a function. Got none."
        )
    if evaluate_steps is not None and not names:
        raise ValueError(
            "`evaluate_steps` must come with `test`, `metrics` or `patience`, for something to be "
            "measured. Got none."
        )
    return names


def _go_across(plan: Plan, schedule: Schedule, train: Examples | Batches) -> bool:
    """Whether stretches go across epochs: where nothing is measured at the end of each."""
    between = schedule.steps or schedule.epochs * plan.per_epoch
    seldom = not schedule.names or between > plan.per_epoch
    return seldom and not (plan.rest or train.streamed)


def _is_function(data: Any) -> bool:
    """Whether examples are given by a function; a pytree may be one that can be called."""
    return callable(data) and treedef_is_leaf(jax.tree.structure(data))


def _plan(
    data: Any,
    batch_size: int | None,
    epochs: int | None,
    replacement: bool,
    max_steps: int | None,
) -> Plan:
    """How long a run is: so many epochs, or as many as its steps take."""
    if epochs is None and max_steps is None:
        epochs = EPOCHS
    if batch_size is None:  # a function knows what an epoch is
        return Plan(None, 1, epochs, False, max_steps)
    count = count_examples(data)
    return Plan(count, min(batch_size, count), epochs, replacement, max_steps)


def _sets(
    data: Any, test: Any, batch_size: int, mesh: Mesh | None, stream: bool | None
) -> dict[str, Examples | Batches]:
    """The sets of examples by name: "train" first, then what else is measured."""

    def of(label, examples):
        if _is_function(examples):
            return Batches.of(label, examples, mesh)
        size = batch_size if not _is_function(data) else BATCH_SIZE
        return Examples.of(label, examples, size, mesh, stream)

    sets = {"train": of("data", data)}
    tests = {} if test is None else dict(test) if isinstance(test, Mapping) else {"test": test}
    for name, examples in tests.items():
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
    """What a run begins with, each array its own, where they are needed; those of a large state may
    be overwritten.
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
    if donate or not is_large(state):  # a small one is never given away
        return state
    return state._replace(
        params=place(params), opt_state=place(start) if opt_state is not None else state.opt_state
    )


def _ours(tree: PyTree, place: Callable, mesh: Mesh | None, taken: set[int]) -> PyTree:
    """Arrays that we may overwrite: as they are, if they are where they are needed and not `taken`
    already, else copies.
    """

    def own(leaf):
        there = isinstance(leaf, jax.Array) and not is_key(leaf) and not leaf.weak_type
        if not there or id(leaf) in taken or (mesh is not None and not is_sharded(leaf)):
            return place(leaf)
        taken.add(id(leaf))
        return leaf if mesh is None else in_parts(leaf, mesh)

    return jax.tree.map(own, tree)


def _mesh_of(params: PyTree) -> Mesh | None:
    """The mesh that parameters come cut into parts for, if any do."""
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(params) if is_sharded(leaf)]
    return meshes[0] if meshes else None


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


def require_run(loss: Any, grad: Any, data: Any, test: Any, on_progress: Any) -> None:
    """Refuse what no run can begin with."""
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
            require_batches("test" if name is None else f"test[{name!r}]", examples, like)
    if on_progress is not None:
        require_arguments("on_progress", on_progress, None)


def require_counts(**numbers: Any) -> None:
    """Refuse what is neither None nor an integer of at least 1."""
    for name, number in numbers.items():
        if number is not None:
            require_count(name, number, least=1)


def _saves(checkpoint: Any, resume: Any, keep: Any, every: Any, notes: Any) -> Saves | None:
    """Where and when a run is saved."""
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
    if checkpoint is not None:
        return Saves(as_place(checkpoint, keep), every, dict(notes or {}))
    if resume:
        raise ValueError(
            f"`resume` must come with `checkpoint`, a directory. Got {resume!r} alone."
        )
    return None


def _require_measure(measure: Any, sets: Mapping[str, Examples | Batches]) -> tuple[str, ...]:
    """The names of the sets to measure."""
    # What a function gives as "train" is seen but once an epoch, by its steps.
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


def _require_record(record: Any) -> tuple[str, ...]:
    """What a callback is told besides."""
    given = (record,) if isinstance(record, str) else record
    if not isinstance(given, Sequence) or any(name not in RECORDED for name in given):
        raise ValueError(f"`record` must name some of {RECORDED}. Got {record!r}.")
    return tuple(given)
