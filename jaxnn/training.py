"""Training: mini-batches, epochs, and a history of what happened.

An epoch is one `lax.scan` on the device; between epochs the host measures and reports. The loss, its gradient, the optimiser
and the metrics come in as functions, so any pytree of parameters and any model will do.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxnn._door import require_callable, require_count, require_floating
from jaxnn.data import count_examples, sample_batch, shuffled


class History(NamedTuple):
    """What a run measured.

    Attributes:
      step_loss: the loss of each step's mini-batch, before that step's update.
      metrics: what `metrics` returned after each epoch, as arrays over the epochs.
      seconds: time of each epoch, its measurement included; the first contains compilation.
    """

    step_loss: Float[np.ndarray, "steps"]  # noqa: F821
    metrics: dict[str, Float[np.ndarray, "epochs"]]  # noqa: F821
    seconds: Float[np.ndarray, "epochs"]  # noqa: F821


class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
      params: after the last step.
      opt_state: the optimiser's state, to go on with.
      history: a `History`.
    """

    params: PyTree
    opt_state: PyTree
    history: History


def fit(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    data: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    epochs: int = 10,
    batch_size: int = 100,
    grad: Callable = jax.grad,
    replacement: bool = False,
    metrics: Callable[[PyTree], dict[str, Any]] | None = None,
    on_progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Fit:
    """Train `params` on mini-batches of `data`.

    Args:
      loss: `loss(params, *batch)`, the mean over the examples of a batch.
      params: where to start; not overwritten.
      data: a tuple of arrays whose first axis is the examples, for instance `(x, t)`.
      optimizer: from optax.
      key: a PRNG key; epoch e uses `jax.random.fold_in(key, e)`.
      epochs: how many times the data are gone through.
      batch_size: examples a step. A last batch that is smaller is used as it is; nothing is dropped.
      grad: makes the gradient out of `loss`: `jax.grad`, `numerical_grad`, or anything with their calling form.
      replacement: draw every batch from all examples, as the chapter does, instead of going through them in a shuffled order.
      metrics: `metrics(params)` is measured after each epoch, compiled; a dictionary of scalars.
      on_progress: called after each epoch with its number (from 1) and its record: `loss` (the mean over its steps,
        weighted by their examples) and the metrics.

    Returns:
      A `Fit` of parameters, optimiser state and history.

    Raises:
      TypeError: `params` has no floating leaf; `epochs` or `batch_size` is not an integer.
      ValueError: `data` is empty, or its arrays differ in length.
    """
    for name, function in (("loss", loss), ("grad", grad)):
        require_callable(name, function)
    require_floating("params", params)
    require_count("epochs", epochs, least=1)
    require_count("batch_size", batch_size, least=1)
    count = count_examples(data)
    batch_size = min(batch_size, count)
    full, rest = divmod(count, batch_size)
    gradient = grad(loss)

    def step(carry, batch):
        params, opt_state = carry
        updates, opt_state = optimizer.update(gradient(params, *batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss(params, *batch)

    @jax.jit
    def epoch(params, opt_state, key, data):
        def chosen(indices):
            return jax.tree.map(lambda a: a[indices], data)

        if replacement:
            keys = jax.random.split(key, full + (rest > 0))
            return jax.lax.scan(lambda c, k: step(c, sample_batch(k, data, batch_size)), (params, opt_state), keys)
        order = shuffled(key, count)
        batches = order[: full * batch_size].reshape(full, batch_size)
        carry, losses = jax.lax.scan(lambda c, indices: step(c, chosen(indices)), (params, opt_state), batches)
        if rest:
            carry, last = step(carry, chosen(order[full * batch_size :]))
            losses = jnp.append(losses, last)
        return carry, losses

    measure = jax.jit(metrics) if metrics else lambda params: {}
    sizes = np.array([batch_size] * full + ([batch_size if replacement else rest] if rest else []))
    data, opt_state = jax.tree.map(jnp.asarray, data), optimizer.init(params)
    step_loss, records, seconds = [], [], []
    for number in range(1, epochs + 1):
        start = time.perf_counter()
        (params, opt_state), losses = epoch(params, opt_state, jax.random.fold_in(key, number), data)
        record = {name: float(value) for name, value in measure(params).items()}
        step_loss.append(np.asarray(losses))
        records.append(record)
        seconds.append(time.perf_counter() - start)
        if on_progress:
            on_progress(number, {"loss": float(np.average(step_loss[-1], weights=sizes)), **record})
    by_name = {name: np.array([record[name] for record in records]) for name in records[0]}
    return Fit(params, opt_state, History(np.concatenate(step_loss), by_name, np.array(seconds)))
