"""Compiled programs, kept for as long as the user's functions that they were made of live.

As under `jax.jit`, a function is compiled once per function object. Unlike a plain cache, this one
does not keep the function alive, nor the data it closes over: a program sees its functions through
weak references, and goes when one of them goes.
"""

import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxnn._validate import is_concrete

_kept: dict[Hashable, tuple[Any, list[weakref.finalize]]] = {}


class Reference:
    """A function held weakly: called like it, equal to another reference where the functions are.

    A function that says it cannot be hashed (a dataclass with `eq`, say) is equal to itself alone.
    """

    def __init__(self, function: Callable):
        """Raises TypeError where the function cannot be referenced weakly."""
        if isinstance(function, types.MethodType):  # dies at once; what it is bound to, not
            self._target, owner = weakref.WeakMethod(function), function.__self__
        else:
            self._target, owner = weakref.ref(function), function
        self.owner: Callable[[], Any] = weakref.ref(owner)
        try:
            self._hash, self._by_value = hash(function), True
        except TypeError:
            self._hash, self._by_value = id(function), False

    @property
    def function(self) -> Callable:
        """The function itself, while it lives."""
        function = self._target()
        if function is None:
            raise ReferenceError("the function of a compiled program is gone")
        return function

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Reference):
            return NotImplemented
        mine, theirs = self._target(), other._target()
        if mine is None or theirs is None:
            return False
        return mine is theirs or (self._by_value and other._by_value and bool(mine == theirs))


def kept(build: Callable, *arguments: Any, values: PyTree = ()) -> Any:
    """`build(*arguments)`, made once for equal arguments while the functions among them live.

    Args:
      build: makes the program. Functions reach it as `Reference`s, which it may keep.
      *arguments: what the program depends on; functions also inside tuples. Where they cannot be
        hashed, or a function cannot be referenced weakly, the program is made anew each time.
      values: what the program will be given. Inside somebody else's trace nothing is kept: a
        function may close over its tracers, and it is compiled there anyway.

    Returns:
      What `build` returns.
    """
    if not outermost(values):
        return build(*arguments)
    references: list[Reference] = []
    try:
        weak = tuple(_weakly(argument, references) for argument in arguments)
        key = (build, weak)
        hash(key)
    except TypeError:
        return build(*arguments)
    if key not in _kept:
        made = build(*weak), []
        if _kept.setdefault(key, made) is made:  # else another thread was first
            made[1].extend(_when_gone(reference, key) for reference in references)
    return _kept[key][0]


def outermost(values: PyTree) -> bool:
    """Whether neither the values nor the place of the call are traced."""
    return is_concrete(values, jnp.zeros(()))


def _when_gone(reference: Reference, key: Hashable) -> weakref.finalize:
    finalizer = weakref.finalize(reference.owner(), _forget, key)
    finalizer.atexit = False
    return finalizer


def _forget(key: Hashable) -> None:
    """Let a program go; and the key, which the finalizers of functions that live on would hold."""
    _, finalizers = _kept.pop(key, (None, []))
    for finalizer in finalizers:
        finalizer.detach()


def _weakly(value: Any, references: list[Reference]) -> Any:
    """`value` with references in the place of functions, which are added to `references`."""
    if isinstance(value, tuple):
        parts = [_weakly(part, references) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if callable(value) and not isinstance(value, type | Mesh):  # a mesh decorates, too
        references.append(Reference(value))
        return references[-1]
    return value
