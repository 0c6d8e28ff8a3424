"""A hand-written gradient, matched to the leaves of the arguments.

It may have the form of the arguments, as `jax.grad` returns it; leave out what is treated as
constant, as `equinox.filter_grad` does; or be another container with the same names in it, like the
state that `flax.nnx.grad` returns.
"""

from collections.abc import Callable, Sequence
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

# What containers call the array inside a variable: not part of a leaf's name.
_WRAPPERS = frozenset(["value", "raw_value"])


def gradient_by_hand(gradient: Callable, call: Partition) -> list[Any]:
    """What a hand-written gradient returns, leaf by leaf, complex leaves in their real form.

    Raises:
      TypeError: a complex derivative with respect to a real leaf, or none at all.
      ValueError: the form is not that of the arguments.
    """
    args, kwargs = call.arguments
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
    moving = [role.moves for role, on in zip(call.roles, call.chosen, strict=True) if on]
    found = _matched(result, name, chosen, moving)
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


def _matched(result: Any, name: str, chosen: Any, moving: Sequence[bool]) -> list[tuple[str, Any]]:
    """The derivative by each leaf that moves, and its place in the result."""
    given = tree_flatten_with_path(result)[0]
    wanted = [path for path, _ in tree_flatten_with_path(chosen)[0]]
    if jax.tree.structure(result) == jax.tree.structure(chosen):
        pairs = zip(given, moving, strict=True)
        return [(_place(path), leaf) for (path, leaf), moves in pairs if moves]
    by_name = {_names(path): (_place(path), leaf) for path, leaf in given}
    needed = [_names(path) for path, moves in zip(wanted, moving, strict=True) if moves]
    if set(needed) <= set(by_name) <= set(map(_names, wanted)):
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
