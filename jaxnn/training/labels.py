"""Labels below 0: JAX indexes with them from the end, so a loss that looks up class -1 trains the
last one and says nothing.
"""

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

    The first such example shows it, beside one without: the loss and its gradient are the same for
    class -1 and for the last one, unlike for a third; or they are not finite for -1 alone.
    Losses that ignore -1, as padding, or that compute with it pass.
    """
    if isinstance(train, Batches) or train.streamed or jax.process_count() > 1:
        return
    paths, tree = tree_flatten_with_path(train.data)
    leaves = [leaf for _, leaf in paths]
    for number, (path, labels) in enumerate(paths):
        if not jnp.issubdtype(labels.dtype, jnp.signedinteger) or not (labels < 0).any():
            continue
        below = np.any(np.reshape(labels < 0, (train.count, -1)), axis=1)
        row, beside = int(np.argmax(below)), int(np.argmin(below))
        classes, label = int(labels.max()) + 1, int(labels[row].min())
        if classes < 2 or label < -classes or below[beside]:
            continue
        two = [leaf[np.array([row, beside])] for leaf in leaves]

        def slopes(taken, two=two, number=number, label=label):
            changed = jnp.where(two[number] == label, taken, two[number])
            batch = jax.tree.unflatten(tree, [*two[:number], changed, *two[number + 1 :]])
            return objective.value_and_gradient(arrays, model_state, key, batch)[:2]

        last, third = label + classes, (label + classes + 1) % classes
        try:
            flat = [jax.tree.leaves(jax.jit(slopes)(taken)) for taken in (label, last, third)]
        except Exception:  # a loss may refuse a batch of two examples
            continue
        given, of_last, of_third = (np.concatenate([np.ravel(x) for x in one]) for one in flat)
        known = np.isfinite(of_last).all() and np.isfinite(of_third).all()
        wraps = np.array_equal(given, of_last) and not np.array_equal(given, of_third)
        if known and (wraps or not np.isfinite(given).all()):
            taken = f"is read as class {last}" if wraps else "gives a loss that is not finite"
            raise ValueError(
                f"`data{keystr(path)}` must be classes from 0 up. Got {label} in example {row}, "
                f"which {taken}."
            )
