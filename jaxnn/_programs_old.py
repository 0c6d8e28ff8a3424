"""Compiled programs, kept for as long as the user's functions that they were made of live.

As under `jax.jit`, a function is compiled once per function object. Unlike a plain cache, this one
does not keep the function alive, nor the data it closes over: a program sees its functions through
weak references, and goes when one of them goes. And it is made anew where a variable that the
function reads has been set to something else, as `jax.grad` would see it.
"""

import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxnn._surroundings import surroundings
from jaxnn._validate import is_concrete

_kept: dict[Hashable, tuple[Any, list[weakref.finalize], list["Reference"]]] = {}


class Reference:
    """Something of the user's held weakly, a function mostly: called like it, and equal to another
    reference where what they refer to is.

    What says it cannot be hashed (a dataclass with `eq`, say) is equal to itself alone. Of a
    method, or of an object that is called, the attributes count, too, and of a function what it
    reads from around it (`surroundings`): what was set to something else makes another program.
    """

    def __init__(self, referent: Any):
        """Raises TypeError where there are no weak references to it."""
        if isinstance(referent, types.MethodType):  # dies at once; what it is bound to, not
            self._target, owner = _weak_method(referent), referent.__self__
        else:
            self._target, owner = weakref.ref(referent), referent
        self.owner: Callable[[], Any] = weakref.ref(owner)
        self._surroundings = surroundings(owner)
        try:
            self._hash, self._by_value = hash(referent), True
        except TypeError:
            self._hash, self._by_value = id(referent), False

    @property
    def referent(self) -> Any:
        """The thing itself, while it lives."""
        referent = self._target()
        if referent is None:
            raise ReferenceError("the function of a compiled program is gone")
        return referent

    def is_outdated_by(self, other: "Reference") -> bool:
        """Whether it is of the same thing, but of attributes or variables that have changed."""
        owner = self.owner()
        same = owner is not None and owner is other.owner()
        return same and self._surroundings != other._surroundings

    @property
    def __name__(self) -> str:
        return getattr(self.referent, "__name__", type(self.referent).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.referent(*args, **kwargs)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Reference):
            return NotImplemented
        mine, theirs = self._target(), other._target()
        if mine is None or theirs is None or self._surroundings != other._surroundings:
            return False
        return mine is theirs or (self._by_value and other._by_value and bool(mine == theirs))


def _weak_method(method: types.MethodType) -> Callable[[], Any]:
    """Gives a method while what it is bound to lives. `weakref.WeakMethod` has a callback, which
    fails where both go in one collection.
    """
    owner, function = weakref.ref(method.__self__), weakref.ref(method.__func__)

    def target():
        there, of = owner(), function()
        return None if there is None or of is None else types.MethodType(of, there)

    return target


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
        key = (build, _typed(weak))
        hash(key)
    except TypeError:
        return build(*arguments)
    if key not in _kept:
        _forget_outdated(references)
        made = build(*weak), [], references
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


def _forget_outdated(references: list[Reference]) -> None:
    """Let the programs go of functions that read something else now."""
    for key, (_, _, theirs) in list(_kept.items()):
        if any(old.is_outdated_by(new) for old in theirs for new in references):
            _forget(key)


def _forget(key: Hashable) -> None:
    """Let a program go; and the key, which the finalizers of functions that live on would hold."""
    _, finalizers, _ = _kept.pop(key, (None, [], []))
    for finalizer in finalizers:
        finalizer.detach()


def _weakly(value: Any, references: list[Reference]) -> Any:
    """`value` with references, which are added to `references`, in the place of functions and of
    other objects that are equal to themselves alone.
    """
    if isinstance(value, tuple):
        parts = [_weakly(part, references) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    kind = type(value)
    itself = kind.__hash__ is object.__hash__ and bool(kind.__weakrefoffset__)
    if (callable(value) or itself) and not isinstance(value, type | Mesh):  # a mesh decorates, too
        references.append(Reference(value))
        return references[-1]
    return value


def _typed(value: Any) -> Any:
    """A key that tells 1 from True and from 1.0, which are equal."""
    if isinstance(value, tuple):
        return type(value), *map(_typed, value)
    return type(value), value
