"""Sweeps: many training runs at once, in one compiled program, under `vmap`.

A small network leaves most of a device idle; runs that differ in a learning rate or a seed fill it. Each run takes the steps
that `fit` would take alone, and stops alone where it is no longer finite.
"""

import operator
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from jaxnn._door import (
    describe,
    is_key,
    require_all_floating,
    require_arguments,
    require_arrays,
    require_callable,
    require_count,
    require_floating,
    require_optimizer,
)
from jaxnn.data import count_examples, require_batches
from jaxnn.progress import Progress
from jaxnn.stepping import State, loss_first, measurer, order_of_epoch, placed, require_scalars, stepper, taken
from jaxnn.training import Fit, History, Status


def sweep(
    loss: Callable[..., Float[Array, ""]],
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
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Fit]:
    """Train once for each of `values`, all at the same time.

    Args:
      loss: as for `fit`.
      params: where every run starts; or a function of a run's key that makes it, such as an initialisation.
      data: as for `fit`.
      optimizer: a function of one of `values` that returns an optimiser, such as `optax.sgd`.
      values: an array of learning rates, or a pytree of arrays with one entry a run on the first axis.
      key: one for all runs, which then see the same batches; or an array of keys, one a run.
      epochs: as for `fit`.
      batch_size: as for `fit`.
      grad: as for `fit`.
      replacement: as for `fit`.
      test: as for `fit`.
      metrics: as for `fit`; the loss and the metrics are always measured after each epoch.
      on_progress: called after each epoch; loss and record are of the run whose loss on `data` is lowest.

    Returns:
      One `Fit` a run, in the order of `values`; its seconds are those of all runs together.

    Raises:
      TypeError: as `fit`.
      ValueError: as `fit`; or `values` and `key` differ in length.

    Example:
      >>> digits = jaxnn.load_digits()
      >>> params, train = jaxnn.init_network(jax.random.key(0), (64, 50, 10)), (digits.x_train, digits.t_train)
      >>> runs = sweep(jaxnn.loss, params, train, optax.sgd, jnp.array([0.1, 1.0]), key=jax.random.key(1), epochs=5)
      >>> [round(float(run.history.metrics["train_loss"][-1]), 1) for run in runs]
      [2.3, 1.9]
    """
    for name, function in (("loss", loss), ("optimizer", optimizer), ("grad", grad)):
        require_callable(name, function)
    require_count("epochs", epochs, least=1)
    require_count("batch_size", batch_size, least=1)
    require_arrays("values", values)
    require_batches("data", data)
    if test is not None:
        require_batches("test", test, data)
    if on_progress is not None:
        require_callable("on_progress", on_progress)
    if not is_key(key) or key.ndim > 1:
        raise TypeError(f"`key` must be one typed PRNG key, or an array of them, one a run. Got {describe(key)}.")
    if callable(params):
        require_arguments("params", params, key)
    else:
        require_arrays("params", params)
    values = placed(values, None)
    runs, count = count_examples(values, "values"), count_examples(data)
    if key.ndim and len(key) != runs:
        raise ValueError(f"`key` must be one key, or one for each of the {runs} runs. Got {len(key)}.")
    keys = key if key.ndim else jnp.broadcast_to(key, (runs,))
    # One key after the other: what some generators draw for a key depends on the others under `vmap`.
    starts = lax.map(params, keys) if callable(params) else jax.tree.map(lambda a: jnp.stack([a] * runs), params)
    require_floating("params", starts)
    if grad is jax.grad:
        require_all_floating("params", starts)
    first = _one(values, 0)
    require_arguments("optimizer", optimizer, first)
    require_optimizer("optimizer(...)", optimizer(first))
    data, test = placed(data, None), None if test is None else placed(test, None)
    require_scalars(loss, metrics, _one(starts, 0), data)
    batch_size = min(batch_size, count)
    per_epoch, rest = -(-count // batch_size), 0 if replacement else count % batch_size
    step = stepper(loss, grad, batch_size, rest, None)
    run = jax.jit(
        jax.vmap(
            lambda state, value, order, *stretch: step(optimizer(value), state, data, order, *stretch),
            (0, 0, 0 if key.ndim else None, 0, 0, 0),
        ),
        donate_argnums=0,
    )
    measure = jax.jit(jax.vmap(measurer(loss, metrics, None), (0, None)))

    @jax.jit
    def order(epoch):
        """One for all runs where they share a key."""

        def of(key):
            return order_of_epoch(key, epoch, count, per_epoch * batch_size, replacement)

        return lax.map(of, key) if key.ndim else of(key)

    states = jax.vmap(lambda p, value: State(p, optimizer(value).init(p)))(placed(starts, None), values)
    sets = {"train": data} if test is None else {"train": data, "test": test}
    start, broken = np.zeros(runs, np.int32), [None] * runs
    step_loss, records, seconds = [], [], []
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        # A run that is no longer finite stands still: it takes no steps any more.
        going = np.array([leaf is None for leaf in broken])
        stop, short = np.where(going, np.int32(per_epoch), 0), going & (rest > 0)
        stretch = taken(run, states, values, order(epoch), start=start, stop=stop, short=short)
        states = stretch.state
        for i in np.flatnonzero(going & ~np.asarray(stretch.finite).all(-1)):
            broken[i] = _one(stretch, i).not_finite()
        measured = {name: loss_first(measure(states.params, examples)) for name, examples in sets.items()}
        records.append({f"{name}_{k}": np.asarray(v) for name, record in measured.items() for k, v in record.items()})
        step_loss.append([row[:end] for row, end in zip(np.asarray(stretch.losses), np.asarray(stretch.reached), strict=True)])
        seconds.append(time.perf_counter() - began)
        if on_progress:
            best = int(np.nanargmin(np.append(records[-1]["train_loss"], np.inf))) % runs
            record = {name: float(v[best]) for name, v in records[-1].items()}
            on_progress(Progress(epoch, epochs, epoch * per_epoch, epochs * per_epoch, record["train_loss"], record))
    fits = []
    for i in range(runs):
        state, losses = _one(states, i), np.concatenate([rows[i] for rows in step_loss])
        status = Status("not finite" if broken[i] else "finished", len(losses) - (broken[i] is not None), broken[i])
        history = History(losses, {name: np.array([r[name][i] for r in records]) for name in records[0]}, np.array(seconds))
        fits.append(Fit(state.params, state.opt_state, history, status))
    return fits


def _one(runs, i):
    """What belongs to run i."""
    return jax.tree.map(operator.itemgetter(i), runs)
