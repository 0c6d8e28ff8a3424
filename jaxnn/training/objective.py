"""The functions that a run minimises and measures, in one form for every signature of a loss.

A loss is `loss(params, *batch)`. It may also take a keyword `key`, which differs at each step, and
the model's state, which it then returns updated. It may return auxiliary values to record.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxnn._arguments import Skeleton
from jaxnn._programs import programs_of
from jaxnn._validate import (
    describe,
    require_arguments,
    require_arrays,
    require_callable,
    require_pair,
    require_same_form,
    require_scalar,
    tracing,
)
from jaxnn.descent import is_automatic
from jaxnn.training.steps import batch_form


class Form(NamedTuple):
    """The optional inputs and outputs of a loss.

    Attributes:
      keyed: whether it takes a `key`.
      key_optional: whether `key` has a default, which is used for measurements.
      stateful: whether it takes and returns the model's state.
      has_aux: whether it returns a dictionary of scalars.
    """

    keyed: bool = False
    key_optional: bool = False
    stateful: bool = False
    has_aux: bool = False

    @classmethod
    def of(cls, loss: Callable, batch: Sequence[Any], model_state: Any, has_aux: bool) -> "Form":
        """The form of a loss of such a batch; a `model_state` other than None makes it stateful."""
        stateful = model_state is not None
        given = 1 + stateful + len(batch)
        try:
            parameters = list(inspect.signature(loss).parameters.values())
        except (TypeError, ValueError):
            return cls(False, False, stateful, has_aux)
        named = {p.name: (i, p) for i, p in enumerate(parameters)}
        place, key = named.get("key", (0, None))
        by_keyword = key is not None and (
            key.kind is key.KEYWORD_ONLY
            or (key.kind is key.POSITIONAL_OR_KEYWORD and place >= given)
        )
        optional = key is not None and by_keyword and key.default is not key.empty
        return cls(by_keyword, optional, stateful, has_aux)


class Objective(NamedTuple):
    """The user's functions for a run.

    Attributes:
      loss: as the user wrote it.
      metrics: `metrics(params, *batch)`, with the state after the parameters if there is one; None
        for no metrics.
      grad: makes the gradient function.
      skeleton: of the parameters; the methods take only their arrays.
      form: of the loss.
    """

    loss: Callable
    metrics: Callable | None
    grad: Callable
    skeleton: Skeleton
    form: Form

    def value(
        self, arrays: PyTree, model_state: PyTree, key: Any, batch: tuple[Any, ...]
    ) -> tuple[Any, tuple[PyTree, dict[str, Any]]]:
        """The loss on a batch, with the new state and the recorded values."""
        keyword = {"key": key} if self.form.keyed and key is not None else {}
        out = self.loss(*self._given(arrays, model_state), *batch, **keyword)
        value, new_state, aux = self._parts(out)
        if self.form.stateful:
            self._require_state(new_state, model_state)
        return value, (new_state, scalars("the aux of loss(...)", aux))

    def _parts(self, out: Any) -> tuple[Any, PyTree, Any]:
        """The value, the new state and the recorded values that the loss returns together."""
        if self.form.stateful:
            value, state = require_pair("loss", out, "(value, model_state), as requested")
            if not self.form.has_aux:
                return value, state, {}
            form = "(value, (model_state, aux)), as requested"
            return value, *require_pair("loss", state, form)
        if self.form.has_aux:
            value, aux = require_pair("loss", out, "(value, aux), as requested")
            return value, None, aux
        return out, None, {}

    def _require_state(self, state: PyTree, before: PyTree) -> None:
        another = jax.tree.structure(state) != jax.tree.structure(before)
        is_pair = isinstance(state, tuple) and len(state) == 2
        if another and is_pair and not self.form.has_aux:
            raise TypeError(
                "`loss` must return (value, model_state), or with `has_aux=True` (value, "
                f"(model_state, aux)). Got a state {jax.tree.map(describe, state)}."
            )
        require_same_form("the model's state of loss(...)", state, "model_state", before)

    def value_and_gradient(
        self, arrays: PyTree, model_state: PyTree, key: Any, batch: tuple[Any, ...]
    ) -> tuple[Any, PyTree, PyTree, dict[str, Any]]:
        """The loss, its gradient with respect to the leaves that move, the new state, and the
        recorded values.
        """
        moving, held = self.skeleton.split(arrays)

        def of_moving(moving, held, model_state, key, *batch):
            return self.value(self.skeleton.merge(moving, held), model_state, key, batch)

        of_moving.__name__ = getattr(self.loss, "__name__", "loss")  # for reports
        given = moving, held, model_state, key, *batch
        if is_automatic(self.grad):
            both = jax.value_and_grad(of_moving, has_aux=True)
            (value, (new_state, aux)), gradient = both(*given)
        else:
            value, (new_state, aux) = of_moving(*given)
            gradient = self._by_grad(moving, held, model_state, key, batch)
        require_same_form("grad(loss)(...)", gradient, "params", moving)
        # JAX's gradient with respect to a complex number is the conjugate of the direction of
        # steepest ascent.
        return value, jax.tree.map(jnp.conj, gradient), new_state, aux

    def _by_grad(
        self, moving: PyTree, held: PyTree, model_state: PyTree, key: Any, batch: tuple[Any, ...]
    ) -> PyTree:
        """The gradient that `grad` makes of the loss, which has the user's own arguments: of the
        parameters, those that are trained.
        """
        state = (model_state,) if self.form.stateful else ()
        keyword = {"key": key} if self.form.keyed and key is not None else {}

        def loss(moving, *rest, key=None):
            model_state, batch = (rest[0], rest[1:]) if self.form.stateful else (None, rest)
            return self.value(self.skeleton.merge(moving, held), model_state, key, batch)[0]

        loss.__name__ = getattr(self.loss, "__name__", "loss")
        gradient = self.grad(loss)
        require_callable("grad(loss)", gradient)
        return gradient(moving, *state, *batch, **keyword)

    def measured(
        self, arrays: PyTree, model_state: PyTree, key: Any, batch: tuple[Any, ...]
    ) -> dict[str, Any]:
        """The loss and the metrics on a batch."""
        value, _ = self.value(arrays, model_state, None if self.form.key_optional else key, batch)
        if self.metrics is None:
            return {"loss": value}
        return {"loss": value, **self.metrics(*self._given(arrays, model_state), *batch)}

    def require(self, arrays: PyTree, model_state: PyTree, key: Any, batch: PyTree) -> None:
        """Refuse a loss that is not a scalar, and metrics that are not a dictionary of numbers; a
        jitted loss without metrics is looked at once.
        """
        leaves, tree = jax.tree.flatten((arrays, model_state, batch))
        forms = tree, *((x.shape, x.dtype) for x in leaves)
        alike = "required", self.skeleton.key, self.form, *forms
        known = programs_of(self.loss, self.loss, *alike) if self.metrics is None else None
        if known:
            return
        given = self._given(arrays, model_state)
        keyword = {"key": key} if self.form.keyed else {}
        require_arguments("loss", self.loss, *given, *batch, **keyword)

        def value(arrays, model_state, key, *batch):
            out = self.value(arrays, model_state, key, batch)[0]
            require_arrays("loss(...)", out)
            return out

        with tracing("loss"):
            require_scalar("loss", jax.eval_shape(value, arrays, model_state, key, *batch))
        if (measure := self.metrics) is not None:
            require_arguments("metrics", measure, *given, *batch)
            of = lambda state, batch: measure(*self._given(*state), *batch)  # noqa: E731
            record = require_means(of, (arrays, model_state), batch)
            if "loss" in record:
                raise ValueError(f"`metrics` must not use the name 'loss'. Got {sorted(record)}.")
        if known is not None:
            known["required"] = True

    def _given(self, arrays: PyTree, model_state: PyTree) -> tuple[PyTree, ...]:
        params = self.skeleton.fill(arrays)
        return (params, model_state) if self.form.stateful else (params,)


def require_means(of: Callable[[Any, Any], Any], state: PyTree, batch: PyTree) -> dict[str, Any]:
    """Refuse metrics that are not a dictionary of real numbers or arrays, each a mean over the
    examples of a batch.

    Args:
      of: `of(state, batch)`, the metrics.
      state: its first argument.
      batch: the shapes and dtypes of a batch.

    Returns:
      The shapes and dtypes of the metrics.
    """

    def metrics(state, batch):
        record = of(state, batch)
        if isinstance(record, dict) and not all(isinstance(name, str) for name in record):
            raise TypeError(f"`metrics(...)` must have strings for its keys. Got {list(record)}.")
        require_arrays("metrics(...)", record)
        return record

    with tracing("metrics"):
        record = jax.eval_shape(metrics, state, batch)
    if not isinstance(record, dict) or any(not hasattr(v, "dtype") for v in record.values()):
        got = jax.tree.map(describe, record)
        raise TypeError(f"`metrics` must return a dictionary of arrays. Got {got}.")
    for name, measured in record.items():
        if jnp.issubdtype(measured.dtype, jnp.complexfloating):
            raise TypeError(f"`metrics(...)[{name!r}]` must be real. Got {describe(measured)}.")
    try:
        of_one = jax.eval_shape(metrics, state, batch_form(batch, 1))
    except Exception:  # metrics may refuse a batch of one example
        return record
    for name, measured in record.items():
        if of_one[name].shape != measured.shape:
            raise TypeError(
                f"`metrics(...)[{name!r}]` must be a mean over the examples, of a shape that does "
                f"not depend on their number. Got {describe(measured)}."
            )
    return record


def scalars(name: str, record: Any) -> dict[str, Any]:
    """A record as arrays; refuses anything but a dictionary of scalars."""
    fine = isinstance(record, dict) and all(
        isinstance(key, str) and x is not None and jnp.shape(x) == () for key, x in record.items()
    )
    if not fine:
        got = jax.tree.map(describe, record)
        raise TypeError(f"`{name}` must be a dictionary of scalars. Got {got}.")
    return {key: jnp.asarray(x) for key, x in record.items()}
