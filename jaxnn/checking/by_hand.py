"""Matches a hand-written gradient to the leaves of the arguments.

The gradient may have the structure of the arguments, as from `jax.grad`; it may leave out leaves
that are treated as constant, as from `equinox.filter_grad`; or it may be another container with the
same names, like the state that `flax.nnx.grad` returns.
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

# Names that containers give to the array inside a variable; they are not part of a leaf's name.
_WRAPPERS = frozenset(["value", "raw_value"])


def gradient_by_hand(gradient: Callable, call: Partition) -> list[Any]:
    """The result of a hand-written gradient, leaf by leaf, with complex leaves in their real form.

    Raises:
      TypeError: a derivative is not an array, or is complex although its leaf is real.
      ValueError: the structure does not match that of the arguments.
    """
    args, kwargs = call.arguments
    require_arguments("gradient", gradient, *args, **kwargs)
    result = gradient(*args, **kwargs)
    if isinstance(call.argnums, tuple):
        # Leaves are in the order of the arguments, whatever the order of `argnums`.
        numbers = [number % len(args) for number in call.argnums]
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        name, chosen = "args", tuple(args[numbers[i]] for i in order)
        if isinstance(result, tuple | list) and len(result) == len(order):
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
    """The derivative with respect to each differentiated leaf, and its path in the result."""
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
        if isinstance(result, tuple) and not isinstance(chosen, tuple):
            raise ValueError(
                f"`gradient(...)` must be the derivative with respect to `{name}` alone; to check "
                f"several arguments, pass `argnums`. Got a tuple of {len(result)}."
            )
        require_same_structure("gradient(...)", result, name, chosen)
    return arrays  # in the same order, under other names


def _place(path: Any) -> str:
    return f"gradient(...){keystr(path)}"


def _names(path: Any) -> tuple[str, ...]:
    """The names in a path, without distinguishing attributes from keys."""
    names = (jax.tree_util.keystr((key,), simple=True) for key in path)
    return tuple(name for name in names if name not in _WRAPPERS)
