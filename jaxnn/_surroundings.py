"""What a function reads from around it, as something that is compared: is it what it was?

A program that was compiled for a function holds what the function read when it was traced. Where a
variable, an attribute or a rule has been set to something else since, it is another function, as
`jax.grad` would find it. Plain values, small arrays and dictionaries are compared by what they
are, all else by identity, and nothing is kept alive. What changes inside a list, or a large array,
is not seen.
"""

import collections
import contextlib
import dis
import functools
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

# What of these packages a function reads does not change, but for rules of the user's.
LIBRARIES = frozenset(["jax", "jaxlib", "jaxnn", "numpy", "optax"]) | sys.stdlib_module_names
LOOKED_INTO = (jax.custom_vjp, jax.custom_jvp, types.SimpleNamespace)
# Things around a function that are looked into, and entries of a dictionary and bytes of an array
# that are compared: more would be felt at each call.
MOST, ENTRIES, BYTES = 200, 64, 4096


def surroundings(owner: Any) -> tuple[tuple[str, Any], ...]:
    """What a function reads, or the attributes of an object of the user's class, by name."""
    while isinstance(owner, functools.partial):
        owner = owner.func
    if isinstance(owner, types.FunctionType):
        return tuple(_read_by(owner))
    if isinstance(owner, types.ModuleType | type):
        return ()
    return tuple(_tokens(_attributes(owner)))


class Read(NamedTuple):
    """What a code reads by name. What it sets itself, a counter say, is its own.

    Attributes:
      globals: global variables.
      free: variables of the functions around it.
      attributes: of anything, and
      sets: those that it sets.
      sets_items: whether it sets entries of containers.
    """

    globals: frozenset[str]
    free: frozenset[str]
    attributes: frozenset[str]
    sets: frozenset[str]
    sets_items: bool


def _read_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function reads from around it; and what functions of the same module do that it uses,
    rules, dictionaries, and objects and modules of the user's.
    """
    if _is_of_library(function.__module__):
        return
    todo: list[tuple[Any, Read]] = [(function, _read(function.__code__))]
    seen = {id(function)}
    while todo:
        thing, read = todo.pop()
        around = _around(thing, read)
        yield from _tokens(around)
        for value in around.values():
            known = id(value) in seen or len(seen) > MOST
            if not known and _is_looked_into(value, function.__module__, read):
                seen.add(id(value))
                is_function = isinstance(value, types.FunctionType)
                todo.append((value, _read(value.__code__) if is_function else read))


def _is_looked_into(value: Any, module: str, read: Read) -> bool:
    if isinstance(value, types.FunctionType):
        return value.__module__ == module
    if type(value) is dict:
        return len(value) <= ENTRIES and not read.sets_items
    if isinstance(value, types.ModuleType):
        return not _is_of_library(value.__name__)
    if isinstance(value, type):
        return False
    return isinstance(value, LOOKED_INTO) or not _is_of_library(type(value).__module__)


def _around(thing: Any, read: Read) -> dict[str, Any]:
    """What is read of a function's variables, or of a dictionary, a module or an object."""
    if isinstance(thing, dict):
        return {str(key): value for key, value in thing.items()}
    if isinstance(thing, types.ModuleType):
        return {name: vars(thing)[name] for name in sorted(read.attributes & vars(thing).keys())}
    if not isinstance(thing, types.FunctionType):
        return {name: value for name, value in _attributes(thing).items() if name not in read.sets}
    here = thing.__globals__
    around = {name: here[name] for name in sorted(read.globals & here.keys())}
    for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
        if name in read.free:
            with contextlib.suppress(ValueError):  # it is not set yet
                around[name] = cell.cell_contents
    return around


def _attributes(thing: Any) -> dict[str, Any]:
    found = getattr(thing, "__dict__", None)
    return found if isinstance(found, dict) else {}


def _is_of_library(module: Any) -> bool:
    return str(module).partition(".")[0] in LIBRARIES


@functools.lru_cache(maxsize=1024)
def _read(code: types.CodeType) -> Read:
    names: dict[str, set[str]] = collections.defaultdict(set)
    codes = [code]
    while codes:
        one = codes.pop()
        for instruction in dis.get_instructions(one):
            names[instruction.opname].add(str(instruction.argval))
        codes += [const for const in one.co_consts if isinstance(const, types.CodeType)]
    return Read(
        frozenset(names["LOAD_GLOBAL"] - names["STORE_GLOBAL"]),
        frozenset(code.co_freevars) - names["STORE_DEREF"],
        frozenset(names["LOAD_ATTR"] | names["LOAD_METHOD"]),
        frozenset(names["STORE_ATTR"]),
        bool(names["STORE_SUBSCR"]),
    )


def _tokens(named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values by name, as what can be compared later without keeping them alive."""
    plain = (bool, int, float, complex, str, bytes, type(None), np.generic)

    def token(value):
        if isinstance(value, plain):
            return type(value), value
        if isinstance(value, tuple):
            return tuple, tuple(_Same(token(part)) for part in value)
        if isinstance(value, np.ndarray) and value.nbytes <= BYTES and value.dtype != object:
            return value.shape, value.dtype, value.tobytes()
        try:
            return weakref.ref(value)  # equal while both live and are the same; or to itself
        except TypeError:
            return id(value)

    return ((name, _Same(token(value))) for name, value in sorted(named.items()))


class _Same:
    """An attribute's value, equal to another where it is the same object, or an equal plain one."""

    def __init__(self, token: Any):
        self.token = token

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        mine, theirs = self.token, other.token
        if isinstance(mine, weakref.ref) and isinstance(theirs, weakref.ref):
            return mine() is not None and mine() is theirs()
        return type(mine) is type(theirs) and mine == theirs
