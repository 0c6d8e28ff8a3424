"""Sweeps: many training runs at once, in one program compiled under `vmap`.

A small network leaves most of a device idle; runs with different learning rates or seeds fill it.
Each run takes the same steps as `fit` alone, and stops on its own once a value is no longer finite.
"""

import functools
import operator
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import treedef_is_leaf
from jaxtyping import Array, Key, PyTree

from jaxnn._arguments import Skeleton, arrays_of
from jaxnn._programs import Jitted
from jaxnn._validate import (
    describe,
    is_key,
    require_arguments,
    require_arrays,
    require_callable,
    require_differentiable,
    require_optimizer,
)
from jaxnn.data import count_examples, require_alike, require_batches
from jaxnn.training.history import Fit, Log, Status
from jaxnn.training.measuring import Measure, loss_first
from jaxnn.training.objective import Form, Objective
from jaxnn.training.options import require_counts
from jaxnn.training.progress import Progress
from jaxnn.training.steps import (
    Chunk,
    Plan,
    Way,
    batch_form,
    make_chunk,
    not_finite,
    replicate,
    run_chunk,
)
from jaxnn.training.task import Descent, State


def sweep(
    loss: Callable[..., Any],
    params: PyTree | Callable[[Key[Array, ""]], PyTree],
    data: PyTree,
    optimizer: Callable[[Any], optax.GradientTransformation],
    values: PyTree,
    *,
    key: Key[Array, "..."],
    epochs: int = 10,
    batch_size: int = 100,
    grad: Callable = jax.grad,
    replacement: bool = False,
    test: PyTree | None = None,
    metrics: Callable[..., dict[str, Any]] | None = None,
    model_state: PyTree = None,
    has_aux: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Fit]:
    """Train one run for each of `values`, all in parallel.

    Args:
      loss: as for `fit`.
      params: the initial parameters of every run; or a function from a run's key to them, such as
        an initialiser.
      data: a tuple of arrays, such as (x, t).
      optimizer: a function from one of `values` to an optimiser, such as `optax.sgd`.
      values: an array of learning rates, or a pytree of arrays with one entry per run on the first
        axis.
      key: one key, so that all runs see the same batches; or an array of keys, one per run.
      epochs: as for `fit`.
      batch_size: as for `fit`.
      grad: as for `fit`.
      replacement: as for `fit`.
      test: a tuple of arrays like `data`.
      metrics: as for `fit`; the loss and the metrics are always measured after each epoch.
      model_state: as for `fit`; shared by all runs at the start.
      has_aux: as for `fit`.
      on_progress: called after each epoch with the loss and the record of the run whose loss on
        `data` is lowest.

    Returns:
      One `Fit` per run, in the order of `values`; `seconds` in each is the time of all runs.

    Raises:
      TypeError: as for `fit`.
      ValueError: as for `fit`; or `values` and `key` differ in length.

    Example:
      >>> digits = jaxnn.load_digits()
      >>> params = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
      >>> train, rates = (digits.x_train, digits.t_train), jnp.array([0.1, 1.0])
      >>> key = jax.random.key(1)
      >>> runs = jaxnn.sweep(jaxnn.loss, params, train, optax.sgd, rates, key=key, epochs=5)
      >>> [round(float(run.history.metrics["train_loss"][-1]), 1) for run in runs]
      [2.3, 1.9]
    """
    given = [data] if test is None else [data, test]
    for name, examples in zip(("data", "test"), given, strict=False):
        require_batches(name, examples)
        require_alike(name, examples, data)
    require_callable("loss", loss)
    require_arguments("grad", grad, loss)
    if on_progress is not None:
        require_arguments("on_progress", on_progress, None)
    require_counts(epochs=epochs, batch_size=batch_size)
    if isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "`optimizer` must be a function of one of `values`, such as optax.sgd itself. Got an "
            "already constructed optimiser."
        )
    require_callable("optimizer", optimizer)
    values, runs = _as_values(values)
    keys = _require_keys(key, runs)
    skeleton, starts = _starts(params, keys)
    first = _one(values, 0)
    require_arguments("optimizer", optimizer, first)
    require_optimizer("optimizer(...)", optimizer(first))
    sets = dict(zip(("train", "test"), replicate(given, None), strict=False))
    require_arrays("model_state", model_state)
    form = Form.of(loss, data, model_state, has_aux)
    objective = Objective(loss, metrics, grad, skeleton, form)
    model_state = replicate(model_state, None)
    plan = Plan(count := count_examples(data), min(batch_size, count), epochs, replacement)
    batch = batch_form(sets["train"], plan.batch_size)
    objective.require(_one(starts, 0), model_state, keys[0], batch)

    def begin(params, value):
        return State(params, optimizer(value).init(skeleton.split(params)[0]), model_state)

    states = jax.vmap(begin)(replicate(starts, None), values)
    way = Way.of(plan, unwatched=not_finite(states))
    take, evaluate, order_of, keys_of = _compiled(objective, optimizer, way, plan, key.ndim)
    logs, broken = [Log() for _ in range(runs)], [None] * runs
    measured_by = keys_of(keys, 0)
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        # A run that is no longer finite takes no further steps.
        going = np.array([leaf is None for leaf in broken])
        stop, short = np.where(going, np.int32(plan.per_epoch), 0), going & (plan.rest > 0)
        order, limits = order_of(key, epoch), (np.zeros(runs, np.int32), stop, short)
        examples = values, sets["train"], order, keys_of(keys, epoch), np.int32(0)
        chunk = run_chunk(take, states, examples, limits)
        states = chunk.state
        measured = {
            f"{name}_{what}": np.asarray(value)
            for name, examples in sets.items()
            for what, value in loss_first(evaluate(states, measured_by, examples)).items()
        }
        seconds = time.perf_counter() - began
        for i, log in enumerate(logs):
            own = _one(chunk, i)
            broken[i] = broken[i] or own.not_finite()
            _add(log, own, broken[i], plan, seconds)
            log.measured({name: value[i] for name, value in measured.items()})
        if on_progress is not None:
            on_progress(_progress(plan, epoch, measured))
    return [_result(objective, log, broken[i], _one(states, i)) for i, log in enumerate(logs)]


def _add(log: Log, chunk: Chunk, broken: str | None, plan: Plan, seconds: float) -> None:
    """Record one run's epoch, which ends at the same time for all runs; none of its steps if it was
    broken before.
    """
    taken = int(chunk.reached)
    good = max(0, taken - (broken is not None))
    sizes = np.full(taken, plan.batch_size)
    if plan.rest and taken == plan.per_epoch:
        sizes[-1] = plan.rest
    rows = lambda x: np.asarray(x)[:taken]  # noqa: E731
    end = log.step + good
    log.add(rows(chunk.losses), jax.tree.map(rows, chunk.aux), sizes, good, [end], 0.0)
    log.add_seconds(seconds)


def _result(objective: Objective, log: Log, broken: str | None, state: State) -> Fit:
    """The result of one run."""
    status = Status("finished" if broken is None else "not finite", log.step, broken)
    history = log.history()._replace(evaluated=np.zeros(0, np.int64))
    return Descent(objective, None).result(state, history, status)


def _compiled(
    objective: Objective, optimizer: Callable, way: Way, plan: Plan, own_keys: int
) -> list[Callable]:
    """The programs of a sweep: chunks of steps, measurements, orders of epochs, and keys of epochs;
    `own_keys` is 1 if each run has its own key, else 0.
    """

    def take(state, value, *given):
        return make_chunk(Descent(objective, optimizer(value)), way)(state, *given)

    axes = (0, 0, None, 0 if own_keys else None, 0, None, 0, 0, 0)

    def evaluate(state, key, data):
        count = count_examples(data)
        size = min(plan.batch_size, count)
        full, rest = divmod(count, size)
        measure = Measure.of(Descent(objective, None).measured, None, size, rest)
        given = state, key, data
        sums = measure.add(*given, measure.begin(*given), 0, full + (rest > 0), rest > 0)
        return {name: total / count for name, (total, _) in sums.items()}

    def order(key, epoch):
        """One order for all runs if they share a key."""
        of = functools.partial(plan.order, epoch=epoch)
        return lax.map(of, key) if own_keys else of(key)

    keys = jax.vmap(jax.random.fold_in, (0, None))
    programs = jax.vmap(take, axes), jax.vmap(evaluate, (0, 0, None))
    return list(map(Jitted, (*programs, order, keys)))


def _require_keys(key: Any, runs: int) -> Key[Array, "runs"]:  # noqa: F821
    """A key for each run; refuse anything but one key, or one per run."""
    if not is_key(key) or key.ndim > 1:
        raise TypeError(
            f"`key` must be one typed PRNG key, or an array of them, one per run. Got "
            f"{describe(key)}."
        )
    if key.ndim and len(key) != runs:
        raise ValueError(
            f"`key` must be one key, or one for each of the {runs} runs. Got {len(key)}."
        )
    return key if key.ndim else jnp.broadcast_to(key, (runs,))


def _as_values(values: PyTree) -> tuple[PyTree, int]:
    """The values of all runs as arrays, and the number of runs."""
    require_arrays("values", values)
    if isinstance(values, list | tuple) and all(isinstance(v, int | float) for v in values):
        raise TypeError(
            "`values` must be an array, or a pytree of arrays with one entry per run, as "
            f"from jnp.array(...). Got {describe(values)}."
        )
    values = replicate(values, None)
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(values)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        got = jax.tree.map(describe, values)
        raise ValueError(
            f"`values` must have one entry per run on the first axis, at least one. Got {got}."
        )
    return values, lengths.pop()[0]


def _starts(params: PyTree | Callable, keys: Key[Array, "runs"]) -> tuple[Skeleton, PyTree]:  # noqa: F821
    """The skeleton that all runs share, and their initial arrays, stacked."""
    if not (callable(params) and treedef_is_leaf(jax.tree.structure(params))):  # a module is a tree
        require_differentiable("params", params)
        skeleton, arrays = arrays_of(params)
        return skeleton, jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * len(keys)), arrays)
    require_arguments("params", params, keys)
    first = params(keys[0])
    require_differentiable("params(...)", first)
    # Map over keys one at a time: under `vmap`, draws of some generators depend on the other keys.
    return arrays_of(first)[0], lax.map(lambda key: arrays_of(params(key))[1], keys)


def _progress(plan: Plan, epoch: int, measured: dict[str, np.ndarray]) -> Progress:
    """The progress of the run with the lowest loss."""
    losses = measured["train_loss"]
    best = int(np.nanargmin(np.append(losses, np.inf))) % len(losses)
    record = {
        name: float(values[best]) if values.ndim == 1 else values[best]
        for name, values in measured.items()
    }
    step = epoch * plan.per_epoch
    return Progress(epoch, plan.epochs, step, plan.steps, record["train_loss"], record)


def _one(runs: PyTree, i: int) -> PyTree:
    """The part of run i."""
    return jax.tree.map(operator.itemgetter(i), runs)
