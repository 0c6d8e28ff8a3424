"""A hand-written gradient, matched to the leaves that it is of.

It may have the form of what it is differentiated by, as `jax.grad` returns it, or leave out what is
held fixed, as `equinox.filter_grad` does, or be another container with the same names in it, as the
state that `flax.nnx.grad` returns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path

from jaxnn._arguments import Partition, real_form
from jaxnn._validate import (
    describe,
    is_array,
    require_arguments,
    require_arrays,
    require_same_shape,
    require_same_structure,
)

# What containers call the array inside a variable: no part of a leaf's name.
_WRAPPERS = frozenset(["value", "raw_value"])


def gradient_by_hand(
    gradient: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], call: Partition
) -> list[Any]:
    """What a hand-written gradient returns, leaf by leaf, complex ones in their real form.

    Raises:
      TypeError: a complex derivative by a real leaf, or none at all.
      ValueError: the form is not that of the arguments.
    """
    require_arguments("gradient", gradient, *args, **kwargs)
    result = gradient(*args, **kwargs)
    if isinstance(call.argnums, tuple):
        # In the order of the arguments, as the leaves are, whatever order was asked for.
        numbers = [number % len(args) for number in call.argnums]
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        name, chosen = "args", tuple(args[numbers[i]] for i in order)
        if isinstance(result, tuple) and len(result) == len(order):
            result = tuple(result[i] for i in order)
    else:
        name, chosen = f"args[{call.argnums}]", args[call.argnums]
    found = _matched(result, name, chosen, {id(leaf) for _, leaf in call.moving})
    derivatives = []
    for (place, leaf), (path, x) in zip(found, call.moving, strict=True):
        require_arrays(place, leaf)
        require_same_shape(place, leaf, path, x)
        if jnp.iscomplexobj(x):
            derivatives.append(real_form(jnp.conj(jnp.asarray(leaf))))
        elif jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(f"`{place}` must be real. Got {describe(leaf)}.")
        else:
            derivatives.append(leaf)
    return derivatives


def _matched(result: Any, name: str, chosen: Any, moving: set[int]) -> list[tuple[str, Any]]:
    """The derivative by each leaf that moves, and where it stands in the result."""
    given = tree_flatten_with_path(result)[0]
    wanted = tree_flatten_with_path(chosen)[0]
    if jax.tree.structure(result) == jax.tree.structure(chosen):
        pairs = zip(given, wanted, strict=True)
        return [(_place(path), g) for (path, g), (_, x) in pairs if id(x) in moving]
    by_name = {_names(path): (_place(path), leaf) for path, leaf in given}
    needed = [_names(path) for path, x in wanted if id(x) in moving]
    known = {_names(path) for path, _ in wanted}
    if set(needed) <= set(by_name) <= known:
        return [by_name[names] for names in needed]
    arrays = [(_place(path), leaf) for path, leaf in given if is_array(leaf)]
    if len(arrays) != len(needed) or not set(needed).isdisjoint(by_name):
        require_same_structure("gradient(...)", result, name, chosen)
    return arrays  # in the same order, under other names


def _place(path: Any) -> str:
    return f"gradient(...){keystr(path)}"


def _names(path: Any) -> tuple[str, ...]:
    """A path as names alone: an attribute and a key of the same name are the same."""
    names = (jax.tree_util.keystr((key,), simple=True) for key in path)
    return tuple(name for name in names if name not in _WRAPPERS)
