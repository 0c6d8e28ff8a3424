"""Training by the gradient of a loss: the loop of `train.py` with a step that an optimiser takes.

The loss, its gradient, the optimiser and the metrics are arguments, so any pytree of parameters and
any model will do.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from jaxnn._arguments import Skeleton, arrays_of
from jaxnn._validate import (
    require_arguments,
    require_callable,
    require_differentiable,
    require_optimizer,
    require_same_form,
)
from jaxnn.descent import DivergenceWarning
from jaxnn.training.history import Fit
from jaxnn.training.labels import require_classes
from jaxnn.training.objective import Form, Objective
from jaxnn.training.optimizers import learning_rate
from jaxnn.training.options import Feeding, Measuring, Options, Reporting, Saving, Start
from jaxnn.training.run import Run
from jaxnn.training.steps import is_large, replicate
from jaxnn.training.task import NORM, Descent, State
from jaxnn.training.train import begun, configured, placed, run_to_end


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
    checkpoint, if `saving` is set, and raises KeyboardInterrupt with status "interrupted". A second
    signal stops the run at once.

    `loss` and the other functions are traced at each call and recompiled only if the traced program
    has changed, so new values of variables that they read take effect. To save the time of tracing
    in many short runs, pass a jitted loss and the same optimiser; new values are then ignored, as
    by any jitted function.

    A resumed run takes the same steps as an uninterrupted one, bit for bit. Some options may change
    when a run is resumed: `epochs`, `max_steps`, all of `measuring`, when checkpoints are saved,
    `mesh` and `stream`, the loss, and the optimiser's hyperparameters, including those that
    `optax.inject_hyperparams` keeps in its state. A change of `data`, `batch_size`, `key`,
    `replacement`, the form of `params` or the form of the optimiser's state raises an error. A run
    that `max_steps` stops within an epoch is measured there, and this counts towards `patience`.

    Args:
      loss: `loss(params, *batch)`, the mean over the examples of a batch. If it takes a keyword
        `key`, step s (from 0) of epoch e (from 1) gets `fold_in(fold_in(key, e), s)`; measurements
        get `fold_in(key, 0)`, or none if `key` has a default.
      params: initial parameters, any pytree; not overwritten. Floating and complex leaves are
        trained; everything else is treated as constant, and so are Python numbers, such as a
        dropout rate, in a module (an object with arrays, registered as a pytree). Leaves that
        are sharded by a `NamedSharding` on `mesh` stay sharded, and so does the optimiser's state.
      data: a tuple of arrays whose first axis is the examples, for instance `(x, t)`; memory maps
        are read as needed. Or a function that maps the epoch, counted from 1, to an iterable of
        such tuples, the batches. The function determines their order, size and number. It runs in a
        thread, a little ahead of the steps. A run resumed within an epoch skips the batches already
        used. With several processes, each yields the whole batch, unless `feeding.parts` is set. A
        loader, or another iterable that can be iterated once per epoch, may replace the function;
        if it shuffles, a resumed run starts again with its first order. A dictionary of arrays, as
        `data` or as a batch, is passed to the loss as one argument; a data frame is treated as a
        dictionary of columns. Arrays that can be sliced, as in an HDF5 file, are read as needed.
      optimizer: an optax optimiser.
      key: a PRNG key; epoch e uses `jax.random.fold_in(key, e)`.
      epochs: how many times to go through the data; by default ten or, if `max_steps` is given, as
        many as it takes.
      max_steps: steps after which the run ends, unless its epochs end earlier.
      batch_size: examples per step, on all devices together; 100 by default. A smaller last batch
        is used, too; no examples are dropped.
      grad: maps `loss` to its gradient: `jax.grad`, `numerical_grad`, or a function with the same
        calling convention.
      has_aux: whether the loss returns `(value, aux)` or, with a model state,
        `(value, (model_state, aux))`. `aux` is a dictionary of scalars, recorded at each step in
        `history.aux`.
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
      TypeError: `params` has no floating or complex leaf, or `epochs` or another count is not an
        integer.
      ValueError: `data` is empty, has arrays of different lengths, or labels below 0 that the loss
        reads as classes; the checkpoint is damaged or from another run; or the processes have
        different settings.
      FileExistsError: the directory of `saving` contains checkpoints, and `resume` is not set.
      BlockingIOError: another run uses that directory.
      OSError: the last checkpoint could not be written.
      RuntimeError: another process failed; the message gives the reason.
      Exception: what the data or the callback raised. Any exception that ends a run has an
        attribute `fit`, the result so far.

    Warns:
      DivergenceWarning: the loss more than doubled, both on average and on the first batch. (A
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
    options = Options.of(old, start, feeding, measuring, saving, reporting)
    require_callable("loss", loss)
    require_arguments("grad", grad, loss)
    require_differentiable("params", params)
    require_optimizer("optimizer", optimizer)
    options = options.require(params)
    config = configured(data, key, (epochs, max_steps, batch_size), options, params)
    model_state, measuring = options.start.model_state, options.measuring
    skeleton, arrays = arrays_of(params)
    state = _state(arrays, skeleton, optimizer, options.start, config.mesh)
    _require_kept(options.reporting.record, state)
    batch = config.sets["train"].batch
    form = Form.of(loss, batch, model_state, has_aux)
    objective = Objective(loss, measuring.metrics, grad, skeleton, form)
    objective.require(state.params, state.model_state, key, batch)
    require_classes(objective, state.params, state.model_state, key, config.sets["train"])
    norm = NORM in options.reporting.record
    run = begun(config, Descent(objective, optimizer, norm, measuring.eval_params), state)
    result = run_to_end(run)
    assert isinstance(result, Fit)
    if result.status.reason == "finished":
        _warn_of_divergence(result, run, objective, model_state)
    if result.status.reason == "not finite":
        from jaxnn.training.cause import with_cause  # takes longer to import than all of training

        return with_cause(result, run, objective)
    return result


def _state(
    arrays: PyTree, skeleton: Skeleton, optimizer: Any, given: Start, mesh: Mesh | None
) -> State:
    """The initial state of a run, on the devices that need it. The run may overwrite the arrays of
    a large state, so those are copies unless the user donates theirs.
    """
    place = functools.partial(replicate, mesh=mesh)
    taken: set[int] = set()
    params = placed(arrays, mesh, taken)
    start = optimizer.init(skeleton.split(params)[0])
    if given.opt_state is not None:
        require_same_form("opt_state", given.opt_state, "optimizer.init(...)", start)
        start = given.opt_state
    taken |= {id(leaf) for leaf in jax.tree.leaves(params)}
    state = State(params, placed(start, mesh, taken), place(given.model_state))
    if given.donate or not is_large(state):  # a small state is never overwritten
        return state
    opt_state = state.opt_state if given.opt_state is None else place(start)
    return state._replace(params=place(params), opt_state=opt_state)


def _warn_of_divergence(result: Fit, run: Run, objective: Objective, model_state: PyTree) -> None:
    """Warn if the loss more than doubled: on average over an epoch and, as batches differ and a
    loss may be annealed, on the first batch, too.
    """
    losses = result.history.step_loss[np.isfinite(result.history.step_loss)]
    if not len(losses):
        text = "no step was finite, so all were skipped: nothing has been learned"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        return
    began, ended = float(losses[0]), run.now.log.mean_loss
    most = began + abs(began)
    if not ended > most:
        return
    if jax.process_count() == 1:
        given = run.given(1, 0)
        value = jax.jit(objective.value)
        alike = float(value(run.now.state.params, model_state, given.key, given.batch)[0])
        ended = alike if np.isfinite(alike) else ended
    if ended > most:
        warnings.warn(
            f"fit diverged: the loss went from {began:.6g} to {ended:.6g} by step "
            f"{result.status.step}; a smaller learning rate may help.",
            DivergenceWarning,
            stacklevel=3,
        )


def _require_kept(record: Sequence[str], state: State) -> None:
    """Refuse to record a learning rate that the optimiser's state does not hold."""
    if "learning_rate" in record and learning_rate(state.opt_state) is None:
        raise ValueError(
            "`record` must name 'learning_rate' only with `optax.inject_hyperparams`, which keeps "
            f"it in the optimiser's state. Got {record!r}."
        )
