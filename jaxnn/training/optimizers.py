"""Facts about optax optimisers that a run needs: their parts and their hyperparameters."""

from typing import Any

import jax
import optax
from jaxtyping import PyTree

from jaxnn.descent import updated


def kind_of(opt_state: PyTree) -> str:
    """The structure of an optimiser without its numbers: the names of the parts of its state."""
    return " ".join(_states(opt_state)) or "no state"


def _states(node: Any) -> list[str]:
    names = [type(node).__name__] if hasattr(node, "_fields") else []
    parts = node if isinstance(node, tuple) else ()
    return names + [name for part in parts for name in _states(part)]


def program_of(optimizer: Any, params: PyTree, opt_state: PyTree) -> str:
    """The text of an optimiser's lowered update, including all its numbers."""

    def step(gradient, opt_state, params):
        return updated(optimizer, opt_state, params, size(params), gradient, size)

    size = lambda params: optax.tree.norm(params)  # noqa: E731

    return jax.jit(step).lower(params, opt_state, params).as_text()


def with_new_numbers(opt_state: PyTree, start: PyTree) -> PyTree:
    """A saved state with the hyperparameters of `optax.inject_hyperparams` replaced by those of
    `start`.
    """

    def renewed(old: Any, new: Any) -> Any:
        if not _is_injected(old):
            return old
        inner = with_new_numbers(old.inner_state, new.inner_state)
        return old._replace(hyperparams=new.hyperparams, inner_state=inner)

    return jax.tree.map(renewed, opt_state, start, is_leaf=_is_injected)


def learning_rate(opt_state: PyTree) -> Any:
    """The learning rate kept by `optax.inject_hyperparams`, or None if there is none."""
    for node in jax.tree.leaves(opt_state, is_leaf=_is_injected):
        if _is_injected(node) and "learning_rate" in node.hyperparams:
            return node.hyperparams["learning_rate"]
    return None


def _is_injected(node: Any) -> bool:
    return hasattr(node, "_fields") and "hyperparams" in node._fields
