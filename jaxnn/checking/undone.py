"""Restores what a call of a function changes, so that a program does not notice a second call.

These are the variables that a function closes over, the global ones that it names, and what these
hold, as attributes, in containers, or named by methods: the key that a model splits, a count of
calls, a list that a call fills or empties. Items already taken from an iterator cannot be put back.
"""

import contextlib
import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# How deep attributes, containers and global variables are followed, how many objects are, and how
# long a container may be.
DEPTH, MOST, LONGEST = 4, 1000, 1000
_CONTAINERS = list, deque, dict, set
# What holds nothing that a call may change, or more than should be looked at.
_PLAIN = int, float, complex, str, bytes, type(None), type, types.ModuleType, np.ndarray, jax.Array


def state_of(f: Callable, is_library: Callable[[str], bool]) -> Callable[[], None]:
    """Note what a call of `f` may change; the result puts it back.

    Args:
      f: the function.
      is_library: whether a file is not the user's. Global variables are those of the user's
        functions.
    """
    undo: list[Callable[[], None]] = []
    seen: dict[int, Any] = {}
    todo = [(f, DEPTH)]
    while todo and len(seen) < MOST:
        x, depth = todo.pop()
        with contextlib.suppress(Exception):  # an object of the user's may raise anything
            if depth and id(x) not in seen and not isinstance(x, _PLAIN):
                seen[id(x)] = x
                todo += [(inside, depth) for inside in _parts_of(x, undo)]
                todo += [(inside, depth - 1) for inside in _held(x, is_library, undo)]

    def put_back():
        for one in undo:
            with contextlib.suppress(Exception):
                one()

    return put_back


def random_state() -> Callable[[], None]:
    """Note the states of the global random generators; the result puts back what has changed."""
    states = random.getstate(), np.random.get_state()

    def put_back():
        if random.getstate() != states[0]:
            random.setstate(states[0])
        pairs = zip(np.random.get_state(), states[1], strict=True)
        if not all(np.array_equal(a, b) for a, b in pairs):
            np.random.set_state(states[1])

    return put_back


def _parts_of(x: Any, undo: list[Callable[[], None]]) -> Iterator[Any]:
    """What a function or a tuple is made of, however deep; `undo` is as for `_held`."""
    if isinstance(x, types.MethodType):
        yield from (x.__self__, x.__func__)
    elif isinstance(x, functools.partial):
        yield from (x.func, x.args, x.keywords)
    elif isinstance(x, tuple):
        yield from x
    elif isinstance(x, types.FunctionType):
        for cell in x.__closure__ or ():
            yield from _attribute(cell, "cell_contents", undo)


def _held(x: Any, is_library: Callable, undo: list[Callable[[], None]]) -> Iterator[Any]:
    """What else an object holds; how to put it back is added to `undo`."""
    if isinstance(x, types.FunctionType):
        if not is_library(x.__code__.co_filename):
            variables = x.__globals__
            named = {n: variables[n] for n in _names_in(x.__code__) if n in variables}
            undo.append(functools.partial(_rename, variables, named))
            yield from named.values()
        yield from x.__dict__.values()
    elif isinstance(x, np.random.Generator):
        undo.append(functools.partial(setattr, x.bit_generator, "state", x.bit_generator.state))
    elif isinstance(x, _CONTAINERS):
        if len(x) <= LONGEST:
            undo.append(functools.partial(_refill, x, x.copy()))
            yield from x.values() if isinstance(x, dict) else x
    elif not isinstance(x, types.MethodType | functools.partial | tuple):
        yield from _attributes(x, undo)
        yield from (f for f in _methods(x) if not is_library(f.__code__.co_filename))


def _names_in(code: types.CodeType) -> Iterator[str]:
    """The names that code uses, with those of the functions inside it."""
    yield from code.co_names
    for inside in code.co_consts:
        if isinstance(inside, types.CodeType):
            yield from _names_in(inside)


def _attributes(x: Any, undo: list[Callable[[], None]]) -> Iterator[Any]:
    """The values of an object's attributes."""
    if held := getattr(x, "__dict__", {}):
        undo.append(functools.partial(_refill, held, dict(held)))
        yield from held.values()
    for kind in type(x).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            yield from _attribute(x, name, undo)


def _methods(x: Any) -> Iterator[types.FunctionType]:
    """The functions of an object's classes."""
    held = (f for kind in type(x).__mro__ for f in vars(kind).values())
    return (f for f in held if isinstance(f, types.FunctionType))


def _attribute(x: Any, name: str, undo: list[Callable[[], None]]) -> Iterator[Any]:
    """The value of an attribute, if it has one."""
    try:
        value = getattr(x, name)
    except (AttributeError, ValueError):  # an empty slot or cell
        return
    undo.append(functools.partial(_set, x, name, value))
    yield value


def _set(x: Any, name: str, value: Any) -> None:
    if getattr(x, name, None) is not value:
        object.__setattr__(x, name, value)


def _rename(variables: dict[str, Any], named: dict[str, Any]) -> None:
    variables.update({n: x for n, x in named.items() if variables.get(n) is not x})


def _refill(container: Any, before: Any) -> None:
    """Give a container the entries that it had, unless it has them."""
    entries = (lambda c: [*c.keys(), *c.values()]) if isinstance(container, dict) else list
    now, then = entries(container), entries(before)
    if len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True)):
        return
    container.clear()
    fill: Any = getattr(container, "extend", None) or getattr(container, "update")  # noqa: B009
    fill(before)
