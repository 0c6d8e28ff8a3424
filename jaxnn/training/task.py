"""What the steps of a run do: descend a loss with an optimiser, as for `fit`, or whatever a step of
the user's does, as for `train`.

A task knows how to take a step, what to measure, what a run must share with its checkpoint, and
what its result is; the run around it knows none of these.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from jaxnn._arguments import Skeleton, arrays_of
from jaxnn._programs import programs_of
from jaxnn._validate import (
    describe,
    require_arguments,
    require_pair,
    require_same_form,
    require_scalar,
    tracing,
)
from jaxnn.descent import is_automatic, updated
from jaxnn.training.history import Fit, History, Status, Trained
from jaxnn.training.objective import Objective, require_means, scalars
from jaxnn.training.optimizers import kind_of, learning_rate, program_of, with_new_numbers

# The name under which the norm of the gradient is recorded.
NORM = "gradient_norm"


class State(NamedTuple):
    """What a descent updates: parameters, optimiser state, and the model's own state, if any."""

    params: PyTree
    opt_state: PyTree
    model_state: PyTree = None


class Descent(NamedTuple):
    """The descent of a loss.

    Attributes:
      objective: the loss, its gradient and the metrics.
      optimizer: the optax optimiser.
      norm: whether the norm of the gradient is recorded.
      eval_params: maps parameters and optimiser state to the parameters that are measured.
    """

    objective: Objective
    optimizer: Any
    norm: bool = False
    eval_params: Callable | None = None

    @property
    def keyed(self) -> bool:
        """Whether the loss takes keys."""
        return self.objective.form.keyed

    def programs(self, *way: Hashable) -> dict | None:
        """Where the programs of these steps are kept, if the loss is jitted."""
        objective = self.objective
        if not is_automatic(objective.grad):
            return None
        key = objective.skeleton.key, objective.form, self.norm, *way
        return programs_of(objective.loss, self.optimizer.update, *key)

    def begin(self, state: State, batch: Any, key: Any) -> tuple[Any, Any, dict[str, Any]]:
        """The first part of a step: what `end` needs, the loss, and further values to record."""
        inputs = state.model_state, key, batch
        value, gradient, model_state, aux = self.objective.value_and_gradient(state.params, *inputs)
        aux = self._with_norm(aux, gradient)
        return (value, gradient, model_state, inputs), value, aux

    def end(self, state: State, work: Any) -> State:
        """The new state: the optimiser's update."""
        value, gradient, model_state, inputs = work
        skeleton = self.objective.skeleton
        moving, held = skeleton.split(state.params)

        def value_fn(moving):
            return self.objective.value(skeleton.merge(moving, held), *inputs)[0]

        given = self.optimizer, state.opt_state, moving, value, gradient, value_fn
        updates, opt_state = updated(*given)
        params = skeleton.merge(optax.apply_updates(moving, updates), held)
        return State(params, opt_state, model_state)

    def noted(self, state: State, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """The loss and the recorded values alone, for their shapes."""
        value, (_, aux) = self.objective.value(state.params, state.model_state, key, batch)
        return value, self._with_norm(aux, self.objective.skeleton.split(state.params)[0])

    def _with_norm(self, aux: dict[str, Any], gradient: PyTree) -> dict[str, Any]:
        if not self.norm:
            return aux
        if NORM in aux:
            raise ValueError(
                f"`record` must not name {NORM!r} if the aux of the loss does. Got both."
            )
        return {**aux, NORM: optax.tree.norm(gradient)}

    def measured(self, state: State, key: Any, batch: Any) -> dict[str, Any]:
        """The loss and the metrics on a batch."""
        return self.objective.measured(state.params, state.model_state, key, batch)

    def measured_state(self, state: State) -> State:
        """The state to measure: the current one, or with parameters from `eval_params`."""
        if self.eval_params is None:
            return state
        made = self.eval_params(self.objective.skeleton.fill(state.params), state.opt_state)
        arrays = arrays_of(made)[1]
        require_same_form("eval_params(...)", arrays, "params", state.params)
        return state._replace(params=arrays)

    def identity(self, state: State) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint."""
        return {"optimizer": kind_of(state.opt_state)}

    def program(self, state: State) -> dict[str, Any]:
        """What all processes must share."""
        moving, _ = self.objective.skeleton.split(state.params)
        return {"optimizer": program_of(self.optimizer, moving, state.opt_state)}

    def resumed(self, found: State, start: State) -> State:
        """A state from a checkpoint. Hyperparameters that the optimiser keeps in its state, such as
        the learning rate, take the values of `start`.
        """
        return found._replace(opt_state=with_new_numbers(found.opt_state, start.opt_state))

    def progress_fields(self, state: State, names: Sequence[str]) -> dict[str, Any]:
        """Optional fields of `Progress`."""
        fields: dict[str, Callable[[], Any]] = {
            "params": lambda: self.objective.skeleton.fill(state.params),
            "opt_state": lambda: state.opt_state,
            "learning_rate": lambda: float(learning_rate(state.opt_state)),
        }
        return {name: of() for name, of in fields.items() if name in names}

    def result(self, state: State, history: History, status: Status) -> Fit:
        """The result of a run."""
        params = self.objective.skeleton.fill(state.params)
        return Fit(params, state.opt_state, history, status, state.model_state)


class UserState(NamedTuple):
    """The arrays of a state of the user's."""

    state: PyTree


class UserStep(NamedTuple):
    """A step of the user's.

    Attributes:
      function: `function(state, batch, key)`, the new state and a record.
      metrics: `metrics(state, batch)`, a dictionary of means, or None.
      skeleton: of the state; the methods take only its arrays.
      is_mapping: whether a batch is one argument, a dictionary, rather than a tuple.
    """

    function: Callable
    metrics: Callable | None
    skeleton: Skeleton
    is_mapping: bool

    keyed, norm = True, False

    def programs(self, *way: Hashable) -> dict | None:
        """Where the programs of these steps are kept, if the step is jitted."""
        key = self.skeleton.key, self.is_mapping, *way
        return programs_of(self.function, self.function, *key)

    def begin(self, state: UserState, batch: Any, key: Any) -> tuple[Any, Any, dict[str, Any]]:
        """The new state, the loss, and further values to record."""
        made = self.function(self.skeleton.fill(state.state), self._batch(batch), key)
        new, record = require_pair("step", made, "(state, record)")
        skeleton, arrays = arrays_of(new)
        require_same_form("the state of step(...)", arrays, "state", state.state)
        pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(state.state), strict=True)
        for x, old in pairs:
            if x.dtype != old.dtype:
                raise TypeError(
                    f"`step` must keep the dtypes of the state. Got {describe(x)} for {old.dtype}."
                )
        for x, old in zip(skeleton.leaves, self.skeleton.leaves, strict=True):
            if x is not old and x != old:
                raise TypeError(
                    "`step` must leave non-arrays in its state unchanged; to change one, "
                    f"make it an array. Got {x!r} for {old!r}."
                )
        record = scalars("the record of step(...)", record)
        if "loss" not in record:
            raise ValueError(
                f"`step` must return a record with a 'loss'. Got one with {sorted(record)}."
            )
        value = record.pop("loss")
        require_scalar("the loss of step(...)", value)
        return UserState(arrays), value, record

    def end(self, state: UserState, work: UserState) -> UserState:
        """The new state."""
        return work

    def noted(self, state: UserState, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """The loss and the recorded values alone, for their shapes."""
        return self.begin(state, batch, key)[1:]

    def _batch(self, batch: Any) -> Any:
        return batch[0] if self.is_mapping else batch

    def require(self, state: UserState, key: Any, batch: Any, watches: bool) -> None:
        """Refuse a step and metrics that do not take or return what they should; `watches` is
        whether a 'loss' is what patience waits for.
        """
        full, one = self.skeleton.fill(state.state), self._batch(batch)
        require_arguments("step", self.function, full, one, key)
        with tracing("step"):
            jax.eval_shape(self.begin, state, batch, key)
        if self.metrics is None:
            return
        require_arguments("metrics", self.metrics, full, one)
        of = lambda state, batch: self.measured(state, None, batch)  # noqa: E731
        record = require_means(of, state, batch)
        if watches and "loss" not in record:
            raise ValueError(
                "`watch` must be given with `patience` if `metrics` returns no 'loss'. Got "
                f"{sorted(record)} alone."
            )

    def measured(self, state: UserState, key: Any, batch: Any) -> dict[str, Any]:
        """The metrics on a batch."""
        assert self.metrics is not None
        return self.metrics(self.skeleton.fill(state.state), self._batch(batch))

    def measured_state(self, state: UserState) -> UserState:
        """The state to measure."""
        return state

    def identity(self, state: UserState) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint."""
        leaves = jax.tree_util.tree_flatten_with_path(state.state)[0]
        return {"state": [f"{jax.tree_util.keystr(path)} {describe(x)}" for path, x in leaves]}

    def program(self, state: UserState) -> dict[str, Any]:
        """What all processes must share."""
        return {}

    def resumed(self, found: UserState, start: UserState) -> UserState:
        """A state from a checkpoint."""
        return found

    def progress_fields(self, state: UserState, names: Sequence[str]) -> dict[str, Any]:
        """Optional fields of `Progress`."""
        return {"state": self.skeleton.fill(state.state)} if "state" in names else {}

    def result(self, state: UserState, history: History, status: Status) -> Trained:
        """The result of a run."""
        return Trained(self.skeleton.fill(state.state), history, status)


Task = Descent | UserStep
