"""Why a step of a run is not finite: the step is taken apart after the run has ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking.explain import origins
from jaxnn.data import count_examples
from jaxnn.training.history import Fit
from jaxnn.training.objective import Objective
from jaxnn.training.run import Run

# Larger batches are not searched for the examples to blame.
MOST = 2**12


def with_cause(result: Fit, run: Run, objective: Objective) -> Fit:
    """The result of a run that ended at a step that is not finite, with its cause, its batch, and
    the examples to blame.
    """
    if jax.process_count() > 1:  # the others hold parts of the batch
        return result
    state, given = run.now.state, run.failed_step()
    moving, held = objective.skeleton.split(state.params)

    def loss(params, *batch):
        arrays = objective.skeleton.merge(params, held)
        return objective.value(arrays, state.model_state, given.key, batch)[0]

    examples: tuple[int, ...] = ()
    try:
        found = origins(lambda params: loss(params, *given.batch), moving)
        finite = "the loss and its gradient are finite; the optimiser's update is not"
        cause = "\n".join(map(str, found)) or finite
        if found and count_examples(given.batch) <= MOST:
            bad = ~_finite_alone(loss, moving, given.batch)
            examples = tuple(given.rows[bad].tolist())
    except Exception as error:  # the user's loss may refuse to be called on its own
        cause = f"unknown: repeating the step raised {type(error).__name__}"
    named = {"cause": cause, "batch": given.batch, "examples": examples}
    return result._replace(status=result.status._replace(**named))


def _finite_alone(loss: Callable, params: Any, batch: tuple[Any, ...]) -> np.ndarray:
    """Whether the loss and its gradient are finite for each example of a batch alone."""

    def one(example):
        found = jax.value_and_grad(loss)(params, *jax.tree.map(lambda a: a[None], example))
        return jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(found)]).all()

    return np.asarray(jax.jit(lambda batch: jax.lax.map(one, batch))(batch))
