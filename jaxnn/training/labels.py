"""Labels below 0: JAX indexes with them from the end, so a loss that looks up class -1 trains the
last one and says nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from jaxnn.training.examples import Batches, Examples
from jaxnn.training.objective import Objective


def require_classes(
    objective: Objective, arrays: PyTree, model_state: PyTree, key: Any, train: Examples | Batches
) -> None:
    """Refuse negative integers among examples in arrays that the loss reads as classes.

    Losses that ignore -1, as padding, or that compute with it pass.
    """
    if isinstance(train, Batches) or train.streamed or jax.process_count() > 1:
        return

    def slopes(*leaves):
        batch = jax.tree.unflatten(tree, leaves)
        return objective.value_and_gradient(arrays, model_state, key, batch)[:2]

    paths, tree = tree_flatten_with_path(train.data)
    leaves = [leaf for _, leaf in paths]
    for number, (path, labels) in enumerate(paths):
        signed = jnp.issubdtype(labels.dtype, jnp.signedinteger)
        below = signed and np.any(np.asarray(labels) < 0)  # NumPy compiles nothing
        if below and (misread := _misread(jax.jit(slopes), leaves, number)):
            raise ValueError(
                f"`data{keystr(path)}` must be class indices of at least 0. Got {misread}."
            )


def _misread(slopes: Callable, leaves: Sequence[Any], number: int) -> str | None:
    """What the loss makes of the first label below 0, beside an example without one; None if that
    is no mistake.

    It is one if the loss and its gradient are the same for class -1 and for the last one, unlike
    for a third; or if they are not finite for -1 alone.
    """
    labels = leaves[number]
    below = np.any(np.reshape(labels < 0, (len(labels), -1)), axis=1)
    row, beside = int(np.argmax(below)), int(np.argmin(below))
    classes, label = int(labels.max()) + 1, int(labels[row].min())
    if classes < 2 or label < -classes or below[beside]:
        return None
    two = [leaf[np.array([row, beside])] for leaf in leaves]

    def made_of(taken):
        changed = jnp.where(two[number] == label, taken, two[number])
        found = slopes(*two[:number], changed, *two[number + 1 :])
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    last = label + classes
    try:
        given, of_last, of_third = map(made_of, (label, last, (last + 1) % classes))
    except Exception:  # a loss may refuse a batch of two examples
        return None
    if not (np.isfinite(of_last).all() and np.isfinite(of_third).all()):
        return None
    if not np.isfinite(given).all():
        return f"{label} in example {row}, which gives a loss that is not finite"
    if np.array_equal(given, of_last) and not np.array_equal(given, of_third):
        return f"{label} in example {row}, which is read as class {last}"
    return None
