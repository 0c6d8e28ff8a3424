"""Small programs, run operation by operation instead of being compiled as a whole: by NumPy in
float64, by JAX in the user's dtypes.

JAX compiles an operation once for its shapes, whichever function it is in. So a process that checks
many small functions, as a test suite does, soon compiles nothing at all.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn._programs import Traced
from jaxnn.numerical.float64 import wide_dtype
from jaxnn.numerical.identity import operation
from jaxnn.numerical.in_numpy import in_numpy
from jaxnn.numerical.interpret import (
    Program,
    bind,
    called,
    equations,
    evaluate,
)

# A small program has at most this many operations, and no array of more entries than this.
OPERATIONS, ENTRIES = 200, 2**12
# A program is run by operations if at most so many of them still have to be compiled for it, and at
# least OFTEN earlier programs had these, too, so that later ones may have them again.
MISSING, OFTEN = 30, 5
# How many operations are compiled for such programs in a process.
MOST = 2000
_met: collections.Counter[Any] = collections.Counter()
_compiled: set[Any] = set()


def is_by_operation(program: Program) -> bool:
    """Whether a small program is to be run by operations from now on."""
    try:
        needed = {operation(eqn) for eqn in equations(program) if called(eqn) is None}
    except TypeError:  # an operation that cannot be compared with others
        return False
    missing = needed - _compiled
    are_usual = len(missing) <= MISSING and all(_met[one] >= OFTEN for one in missing)
    if are_usual and len(_compiled) + len(missing) <= MOST:
        _compiled.update(missing)
        return True
    _met.update(needed)
    return False


def in_numpy_if_small(traced: Traced) -> Callable[..., Any] | None:
    """A program run by NumPy in float64; None if it is large, or NumPy cannot run it."""
    fits = wide_dtype() == jnp.float64 and _is_small(traced.jaxpr)
    return in_numpy(traced) if fits else None


def _is_small(program: Program) -> bool:
    whole = list(equations(program))
    return len(whole) <= OPERATIONS and all(
        getattr(v.aval, "size", ENTRIES + 1) <= ENTRIES for eqn in whole for v in eqn.outvars
    )


def by_operation(traced: Traced) -> Callable[..., Any]:
    """Like `jitted(traced)`, but run operation by operation."""

    def step(eqn, inputs):
        inner = called(eqn)
        return bind(eqn, inputs) if inner is None else evaluate(inner, inputs, step)

    def call(consts, *args):
        program = core.ClosedJaxpr(traced.jaxpr, list(consts))
        outputs = evaluate(program, list(map(jnp.asarray, jax.tree.leaves(args))), step)
        return jax.tree.unflatten(jax.tree.structure(traced.shapes), outputs)

    return call


def along_in_numpy(run: Callable) -> Callable:
    """Like a jitted `along_program` of the function that `run` evaluates by NumPy, for one step
    after the other.
    """

    def along(points, moves, steps, data):
        consts, rest = data
        wide = [np.asarray(x, np.float64) for x in points]
        pairs = list(zip(wide, moves, strict=True))
        return np.array([run(consts, [x + t * v for x, v in pairs], rest) for t in steps])

    return along
