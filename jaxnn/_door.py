"""What public functions ask of their arguments, and the one form in which they refuse: name, requirement, what came.

Shapes, dtypes and structure are looked at under `jit` as well; values only where they can be seen.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path


def is_differentiable(leaf: Any) -> bool:
    """Whether a leaf is a real floating array or number: what a gradient is taken for."""
    return jnp.issubdtype(getattr(leaf, "dtype", None) or jnp.result_type(leaf), jnp.floating)


def is_concrete(*values: Any) -> bool:
    """Whether none of the leaves is traced, so that their values can be looked at."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def describe(leaf: Any) -> str:
    """A leaf in an error message: dtype and shape of arrays, the value of anything else."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return f"{type(leaf).__name__} {leaf!r}"


def require_arrays(name: str, tree: Any) -> None:
    """Refuse leaves that are not arrays or numbers (strings, None-like objects, functions)."""
    for path, leaf in tree_flatten_with_path(tree)[0]:
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")) and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(f"`{name}{keystr(path)}` must be an array or a number. Got {describe(leaf)}.")


def require_floating(name: str, tree: Any) -> None:
    """Refuse a tree in which no leaf is floating, naming the first leaf; other leaves are held fixed by the caller."""
    require_arrays(name, tree)
    leaves = tree_flatten_with_path(tree)[0]
    if not leaves:
        raise TypeError(f"`{name}` must hold at least one floating-point array. Got an empty {type(tree).__name__}.")
    if not any(is_differentiable(leaf) for _, leaf in leaves):
        path, leaf = leaves[0]
        raise TypeError(
            f"`{name}{keystr(path)}` must be floating-point, for a derivative with respect to it. Got {describe(leaf)}."
        )


def require_callable(name: str, f: Any) -> None:
    """Refuse anything that cannot be called."""
    if not callable(f):
        raise TypeError(f"`{name}` must be a function. Got {describe(f)}.")


def require_count(name: str, value: Any, least: int = 0) -> None:
    """Refuse anything but an integer of at least `least`; of a traced one only the dtype is seen."""
    if not is_concrete(value):
        if not jnp.issubdtype(value.dtype, jnp.integer) or value.shape != ():
            raise TypeError(f"`{name}` must be an integer. Got {describe(value)}.")
        return
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer. Got {describe(value)}.") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Got {value!r}.")


def require_number(name: str, value: Any, *, positive: bool = False) -> None:
    """Refuse anything but one real number; if its value can be seen, it must be finite (and positive, if asked)."""
    dtype = getattr(value, "dtype", None)
    number = isinstance(value, int | float) or (dtype is not None and jnp.issubdtype(dtype, jnp.number))
    if isinstance(value, bool) or not number or getattr(value, "shape", ()) != ():
        raise TypeError(f"`{name}` must be a number. Got {describe(value)}.")
    if is_concrete(value):
        size = float(value)
        if not math.isfinite(size) or (positive and size <= 0):
            raise ValueError(f"`{name}` must be {'positive and finite' if positive else 'finite'}. Got {size!r}.")


def require_classes(name: str, t: Any, classes: int) -> None:
    """Refuse class indices out of range, where their values can be seen."""
    if not is_concrete(t):
        return
    t = np.asarray(t)
    wrong = t[(t < 0) | (t >= classes)]
    if wrong.size:
        raise ValueError(f"`{name}` must be class indices from 0 to {classes - 1}. Got {wrong[0]}.")


def require_same_form(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Refuse a tree whose structure or shapes differ from those of another one, naming the leaf."""
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(
            f"`{name}` must have the structure of `{like_name}`, {jax.tree.structure(like)}. Got {jax.tree.structure(tree)}."
        )
    for (path, leaf), other in zip(tree_flatten_with_path(tree)[0], jax.tree.leaves(like), strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"`{name}{keystr(path)}` must have shape {jnp.shape(other)}, like `{like_name}{keystr(path)}`. "
                f"Got shape {jnp.shape(leaf)}."
            )
