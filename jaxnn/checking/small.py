"""Small programs, run operation by operation instead of being compiled as a whole.

JAX compiles an operation once for its shapes, whichever function it is in. So a process that checks
many small functions, as a test suite does, soon compiles nothing at all.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from jaxnn._programs import Traced
from jaxnn.checking.line import along_program
from jaxnn.numerical.float64 import widen_leaf
from jaxnn.numerical.identity import operation
from jaxnn.numerical.interpret import (
    CONTROL_FLOW,
    Program,
    bind,
    called,
    equations,
    evaluate,
    shard_map_parts,
)

# A small program has at most this many operations, and no array of more entries than this.
OPERATIONS, ENTRIES = 300, 2**14
# How many values of a program are computed by operations before it is compiled after all.
VALUES = 1000
# A program is run by operations if at most so many of them still have to be compiled for it, and at
# least OFTEN earlier programs had these, too, so that later ones may have them again.
MISSING, OFTEN = 30, 5
# How many operations are compiled for such programs in a process.
MOST = 2000
_met: collections.Counter[Any] = collections.Counter()
_compiled: set[Any] = set()


def is_by_operation(values: Traced, both: Traced) -> bool:
    """Whether the programs of a function, its values and its gradient, are to be run by operations
    from now on.
    """
    if not (_is_small(values.jaxpr) and _is_small(both.jaxpr)):
        return False
    try:
        needed = _operations(values.jaxpr) | _operations(both.jaxpr)
    except TypeError:  # an operation that cannot be compared with others
        return False
    missing = needed - _compiled
    are_usual = len(missing) <= MISSING and all(_met[one] >= OFTEN for one in missing)
    if are_usual and len(_compiled) + len(missing) <= MOST:
        _compiled.update(missing)
        return True
    _met.update(needed)
    return False


def _is_small(program: Program) -> bool:
    whole = list(equations(program))
    loops = CONTROL_FLOW.keys() - {primitives.linear_solve_p}
    return len(whole) <= OPERATIONS and not any(
        eqn.primitive in loops
        or shard_map_parts(eqn) is not None
        or any(getattr(v.aval, "size", ENTRIES + 1) > ENTRIES for v in eqn.outvars)
        for eqn in whole
    )


def _operations(program: Program) -> set[Any]:
    return {operation(eqn) for eqn in equations(program) if called(eqn) is None}


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


def along_by_operation(value: Traced, dtype: Any) -> Callable:
    """Like `along_program`, but run operation by operation, for all steps at once; compiled as a
    whole once it has run often. Batching rules of the user's play no part: an operation that
    holds a function cannot be compared with others, so its program is compiled.
    """
    left, run = VALUES, functools.partial(by_operation(value), value.consts)
    compiled = jax.jit(along_program(functools.partial(value, value.consts), dtype))

    def along(points, moves, steps, data):
        nonlocal left
        left -= len(steps)
        if left < 0:
            return compiled(points, moves, steps, data)
        wide = [widen_leaf(x, dtype) for x in points]
        pairs = zip(wide, moves, strict=True)
        moved = [x + np.asarray(np.multiply.outer(steps, v), x.dtype) for x, v in pairs]
        try:
            return np.asarray(jax.vmap(run, in_axes=(None, 0, None))(wide, moved, data))
        except NotImplementedError:  # an operation without a batching rule
            left = 0
            return compiled(points, moves, steps, data)

    return along
