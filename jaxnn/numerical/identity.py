"""Whether two programs are the same, by value: JAX compares their equations as objects."""

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core

from jaxnn._validate import is_key
from jaxnn.numerical.interpret import (
    Equation,
    Program,
    called,
    equations,
    has_custom_rule,
    is_foreign,
    is_program,
    opened,
    private,
)

# The largest array, in bytes, that is compared by value.
LARGE = 4096


def fingerprint(program: Program) -> Hashable:
    """A key that two programs share if they compute the same: equations, shapes, parameters.

    It leaves out the values of constants, source lines, and derivative rules, none of which affect
    the computation.

    Raises:
      TypeError: the program contains something that cannot be compared by value, such as a host
        callback.
    """
    jaxpr, _ = opened(program)
    numbers: dict[Any, int] = {}

    def atom(x):
        if isinstance(x, core.Literal):
            value = np.asarray(x.val)
            return x.aval, value.dtype.str, value.tobytes()
        return numbers.setdefault(x, len(numbers))

    def given(variables):
        return tuple((atom(v), v.aval) for v in variables)

    inputs = given(jaxpr.constvars), given(jaxpr.invars)
    body = tuple(
        (
            eqn.primitive,
            tuple(map(atom, eqn.invars)),
            given(eqn.outvars),
            _fingerprint_of_parameters(eqn),
            _fingerprint_of_context(eqn.ctx),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, body, tuple(map(atom, jaxpr.outvars))


def operation(eqn: Equation) -> Hashable:
    """A key that equations share if JAX compiles them once, outside of any program.

    Raises:
      TypeError: as for `fingerprint`.
    """
    shapes = tuple((v.aval.shape, v.aval.dtype) for v in eqn.invars)
    key = eqn.primitive, shapes, _fingerprint_of_parameters(eqn)
    hash(key)
    return key


def same_program(first: Program, second: Program) -> bool:
    """Whether two traces are of the same function: equal equations and constants."""
    consts = [opened(program)[1] for program in (first, second)]
    if len(consts[0]) != len(consts[1]) or not all(map(_same_array, *consts)):
        return False
    pairs = itertools.zip_longest(equations(first), equations(second))
    return all(a is not None and b is not None and _same_equation(a, b) for a, b in pairs)


def _same_equation(first: Equation, second: Equation) -> bool:
    if first.primitive is not second.primitive or len(first.invars) != len(second.invars):
        return False
    for a, b in zip(first.invars, second.invars, strict=True):
        if isinstance(a, core.Literal) != isinstance(b, core.Literal):
            return False
        if isinstance(a, core.Literal) and not _same_array(a.val, b.val):
            return False
    numbers = [
        [p for p in jax.tree.leaves(list(eqn.params.values())) if isinstance(p, int | float)]
        for eqn in (first, second)
    ]
    return numbers[0] == numbers[1]


def _same_array(a: Any, b: Any) -> bool:
    if a is b or isinstance(a, Tracer):
        return True
    if is_key(a):
        return is_key(b) and _same_array(jax.random.key_data(a), jax.random.key_data(b))
    a, b = np.asarray(a), np.asarray(b)
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc")


def _fingerprint_of_parameters(eqn: Equation) -> Hashable:
    if is_foreign(eqn.primitive):
        raise TypeError(f"`{eqn.primitive.name}` runs code that is not JAX's")
    if has_custom_rule(eqn):
        return fingerprint(called(eqn))
    batched = eqn.primitive is private("custom_batching", "custom_vmap_p")
    package = __name__.partition(".")[0]
    if batched and str(getattr(eqn.params["rule"], "__module__", "")).startswith(f"{package}."):
        return _fingerprint_of(eqn.params["call"])  # our own batching rule
    return tuple((name, _fingerprint_of(value)) for name, value in sorted(eqn.params.items()))


def _fingerprint_of_constants(consts: Sequence[Any]) -> Hashable:
    """The values of the constants that a program inside has of its own, which are few and small."""
    arrays = [np.asarray(x) for x in consts if not isinstance(x, Tracer)]
    if len(arrays) < len(consts) or any(x.nbytes > LARGE for x in arrays):
        raise TypeError("a program inside has constants of its own")
    return tuple((x.shape, x.dtype.str, x.tobytes()) for x in arrays)


def _fingerprint_of_context(context: Any) -> Hashable:
    """The user's contexts around an operation: device, mesh, random bit generation."""
    names = "compute_type", "threefry_partitionable", "cur_abstract_mesh", "xla_metadata"
    return tuple(getattr(context, name, None) for name in names)


def _fingerprint_of(value: Any) -> Hashable:
    """A key for an equation's parameter by value; JAX's own objects are compared as they are."""
    if isinstance(value, int | str | np.dtype | None):  # most are
        return type(value), value
    if is_program(value):
        return fingerprint(value), _fingerprint_of_constants(opened(value)[1])
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_fingerprint_of, value))
    if isinstance(value, dict):
        return tuple((name, _fingerprint_of(x)) for name, x in sorted(value.items()))
    if callable(value) and not isinstance(value, type | np.dtype | core.Primitive):
        whose = str(getattr(value, "__module__", "")).partition(".")[0]
        if whose not in ("jax", "numpy") or getattr(value, "__closure__", None):
            raise TypeError("a function of the user's is a parameter")
    if isinstance(value, float):  # 0.0 and -0.0 are equal
        return float, value.hex()
    hash(value)
    return type(value), value
