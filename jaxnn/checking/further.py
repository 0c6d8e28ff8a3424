"""Evaluation rules that run iterative solvers further than their tolerance requires, or that end
them where they may never meet it.

Loops that have nearly converged continue, and linear solves are refined. The result approximates
the function with a tighter tolerance.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.checking.moves import usual_size
from jaxnn.checking.tape.layout import is_inexact
from jaxnn.numerical.float64 import RULES, Evaluation
from jaxnn.numerical.interpret import (
    Equation,
    Program,
    called,
    dependencies,
    equations,
    has_custom_rule,
    linear_solve_parts,
    named,
    only_carries,
    scan_parts,
    solved,
    while_parts,
    while_step,
)

# How many further steps a loop takes at most, unless it has taken more; a contraction by 0.97 gains
# three digits in them.
MORE_STEPS = 256
# After how many iterations a loop ends whose inputs were moved apart, or further than their size.
MOST_STEPS = 2**16
# After how many iterations a loop ends at any other point than that of the check.
MOST_STEPS_NEARBY = 2**20
# A loop is about to settle if a step changes an array by at most this relative size.
NEARLY = 0.05
# Primitives that take indices.
_INDEXED = named("dynamic_slice dynamic_update_slice gather scatter scatter_add")
# How many times a linear solve is refined; each time gains the digits of the solver's tolerance.
REFINEMENTS = 4
# A relative error or residual below this counts as a solver's tolerance rather than a mistake.
LOOSE = 5e-3


def has_solver(program: Program) -> bool:
    """Whether a program contains a linear solve, or a loop that only carries values."""
    return any(
        eqn.primitive in (primitives.linear_solve_p, primitives.while_p)
        or (eqn.primitive is primitives.scan_p and only_carries(eqn))
        for eqn in equations(program)
    )


def is_solver_with_rule(eqn: Equation) -> bool:
    """Whether an equation calls a function that has a custom rule and may contain a solver."""
    return has_custom_rule(eqn) and has_solver(called(eqn))


def _goes_through(body: Program, carry: int) -> bool:
    """Whether a loop goes through the entries of an array by one of its counts, such as over the
    coordinates of a point. It is over at the last of them, so it is no solver.
    """
    indices: list[frozenset[int]] = []

    def passes(eqn, inputs):
        if eqn.primitive in _INDEXED:
            pairs = zip(inputs, eqn.invars, strict=True)
            indices.extend(x for x, v in pairs if not is_inexact(v.aval))
        return True

    dependencies(body, passes)
    avals = list(enumerate(body.in_avals))
    counts = [k for k, x in avals[len(avals) - carry :] if not is_inexact(x)]
    return any(index.intersection(counts) for index in indices)


def _size(values: Sequence[Any]) -> Any:
    squares = [jnp.sum(jnp.abs(x) ** 2) for x in values if is_inexact(x)]
    return functools.reduce(jnp.add, squares, jnp.zeros(()))


def _further(
    inner: Evaluation,
    body: Program,
    consts: Sequence[Any],
    end: Sequence[Any],
    taken: Any,
    flags: dict[int, Any],
) -> list[Any]:
    """The carry of a loop after further steps, as long as these are finite and one of its arrays
    is about to settle.

    Others need not settle: residuals, step sizes, weights of momentum. Counts and flags are those
    of the end, because the solver may permit no more steps. Each further step is taken with the
    given `flags`, by their places in the carry: a body may change nothing once the loop is over.
    """
    inexact = [k for k, x in enumerate(end) if is_inexact(x)]
    if not inexact or _goes_through(body, len(end)):
        return list(end)
    most = jnp.maximum(MORE_STEPS, taken)

    def more(state):
        carry, taken, _ = state
        given = [flags.get(k, x) for k, x in enumerate(carry)]
        new = inner(body, [*consts, *given])
        moved = jnp.stack([_size([new[k] - carry[k]]) for k in inexact])
        sizes = jnp.stack([_size([carry[k]]) for k in inexact])
        near = (moved > 0) & (moved <= NEARLY**2 * sizes)
        going = jnp.any(near) & jnp.all(jnp.isfinite(moved))
        return [jnp.where(going, b, a) for a, b in zip(carry, new, strict=True)], taken + 1, going

    def going(state):
        return state[2] & (state[1] < most)

    last = lax.while_loop(going, more, (list(end), 0, jnp.bool_(True)))[0]
    return [b if k in inexact else a for k, (a, b) in enumerate(zip(end, last, strict=True))]


def _flags(carry: Sequence[Any]) -> dict[int, Any]:
    return {k: x for k, x in enumerate(carry) if x.dtype == bool}


def _ended(
    eqn: Equation, inputs: list[Any], evaluation: Evaluation, most: Any = MOST_STEPS
) -> tuple[list[Any], Any, dict[int, Any]]:
    """The result of a loop, how many steps it took, and the flags in its carry before the last one.
    The result is NaN if it does not end in `most` steps: where its inputs move independently, a
    solver may solve one equation and wait for the residual of another.
    """
    parts = while_parts(eqn.params, inputs)
    goes_on, step = while_step(parts, evaluation)
    going = lambda state: goes_on(state[0]) & (state[1] < most)  # noqa: E731
    further = lambda state: (step(state[0]), state[1] + 1, _flags(state[0]))  # noqa: E731
    start = parts.carry, jnp.int32(0), _flags(parts.carry)
    end, taken, flags = lax.while_loop(going, further, start)
    ended = lambda x: jnp.where(taken < most, x, jnp.nan)  # noqa: E731
    return [ended(x) if is_inexact(x) else x for x in end], taken, flags


def _while(eqn: Equation, inputs: list[Any], evaluation: Evaluation) -> list[Any]:
    parts, inner = while_parts(eqn.params, inputs), evaluation._replace(rules=RULES)
    return _further(inner, parts.body, parts.body_consts, *_ended(eqn, inputs, inner))


def _scan(eqn: Equation, inputs: list[Any], evaluation: Evaluation) -> list[Any]:
    if not only_carries(eqn):
        return RULES[eqn.primitive](eqn, inputs, evaluation)
    parts, inner = scan_parts(eqn.params, inputs), evaluation._replace(rules=RULES)
    end = RULES[eqn.primitive](eqn, inputs, inner)
    return _further(inner, parts.body, parts.consts, end, parts.options["length"], {})


def _linear_solve(eqn: Equation, inputs: list[Any], evaluation: Evaluation) -> list[Any]:
    parts, inner = linear_solve_parts(eqn.params, inputs), evaluation._replace(rules=RULES)
    longer = evaluation._replace(rules={**RULES, primitives.while_p: _while})
    start = solved(parts, parts.rhs, longer)

    def residual(x):
        product = inner(parts.matvec, [*parts.matvec_consts, *x])
        return [b - y for b, y in zip(parts.rhs, product, strict=True)]

    # A large residual is a mistake, not a tolerance, so it is not refined.
    loose = _size(residual(start)) < LOOSE**2 * _size(parts.rhs)

    def refined(_, x):
        rest = residual(x)
        # Scaled to the size of the right-hand side, in case the tolerance is absolute.
        scale = jnp.sqrt(_size(rest) / _size(parts.rhs))
        scale = jnp.where(scale > 0, scale, 1)
        correction = solved(parts, [r / scale for r in rest], inner)
        return [jnp.where(loose, a + scale * d, a) for a, d in zip(x, correction, strict=True)]

    return lax.fori_loop(0, REFINEMENTS, refined, start)


def ending_if_moved(
    point: Sequence[Any], moved: Sequence[Any]
) -> dict[core.Primitive, Callable[[Equation, list[Any], Evaluation], Any]]:
    """Evaluation rules that end loops where a point has moved: there, a solver may have no solution
    to find, or its tolerance may be smaller than the rounding error of what it compares with it.
    """
    most = jnp.int32(np.iinfo(np.int32).max)
    for x, y in zip(point, moved, strict=True):
        change, size = jnp.abs(y - x), jnp.maximum(jnp.abs(x), usual_size(x, jnp))
        steps = jnp.where(jnp.any(change > size), MOST_STEPS, MOST_STEPS_NEARBY)
        most = jnp.where(jnp.any(change > 0), jnp.minimum(most, steps), most)
    return {primitives.while_p: lambda *given: _ended(*given, most=most)[0]}


ENDING: Mapping[core.Primitive, Callable] = {
    **RULES,
    primitives.while_p: lambda *given: _ended(*given)[0],
}
RUN_FURTHER: Mapping[core.Primitive, Callable] = {
    primitives.while_p: _while,
    primitives.scan_p: _scan,
    primitives.linear_solve_p: _linear_solve,
}
