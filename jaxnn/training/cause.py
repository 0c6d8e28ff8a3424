"""Why a step of a run is not finite: the step is taken apart after the run has ended."""

import jax

from jaxnn.checking.explain import origins
from jaxnn.training.history import Fit
from jaxnn.training.run import Run


def with_cause(result: Fit, run: Run) -> Fit:
    """The result of a run that ended at a step that is not finite, with its batch and its cause."""
    if jax.process_count() > 1:  # the others hold parts of the batch
        return result
    state, key, batch = run.failed_step()
    objective = run.config.objective
    moving, held = objective.skeleton.split(state.params)

    def loss(params):
        arrays = objective.skeleton.merge(params, held)
        return objective.value(arrays, state.model_state, key, batch)[0]

    try:
        found = origins(loss, moving)
        finite = "the loss and its gradient are finite; the optimizer's update is not"
        cause = "\n".join(map(str, found)) or finite
    except Exception as error:  # the user's loss may refuse to be called on its own
        cause = f"not known ({type(error).__name__} when the step was repeated)"
    return result._replace(status=result.status._replace(cause=cause, batch=batch))
