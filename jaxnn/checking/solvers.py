"""Functions with an iterative solver inside: right to the solver's tolerance, and no further.

A gradient by implicit differentiation is that of the exact solution; the values are those of a
loose one. Where the two differ, the solver is run further than it asks for: loops that have nearly
converged go on, linear solves are refined. That is not the function as it is, but what it would be
with a tighter tolerance.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.checking.evidence import Evidence, Verdict, is_diffuse
from jaxnn.checking.findings import LeafReport
from jaxnn.numerical.float64 import RULES, Evaluation, scan_step, solved, while_step
from jaxnn.numerical.interpret import (
    CUSTOM_RULES,
    Equation,
    Program,
    called,
    equations,
    linear_solve_parts,
    only_carries,
    scan_parts,
    while_parts,
)

# How many steps a loop goes on for; a contraction by 0.8 gains six digits in them.
MORE_STEPS = 64
# Each refinement gains the digits that the solver's tolerance asks for.
REFINEMENTS = 4
# How far, relative, a result may still move, and the residual of a linear solver be, to be taken
# for a solution that is only loose: tolerances are smaller, mistakes larger.
LOOSE = 5e-3
# By how much, relative, a leaf's gradient may change when the solver is run further, for it to be
# the gradient of the solution rather than of the steps taken.
STEADY = 0.1


def has_solver(program: Program) -> bool:
    """Whether a program holds a linear solve, or a loop that only carries values."""
    return any(
        eqn.primitive in (primitives.linear_solve_p, primitives.while_p)
        or (eqn.primitive is primitives.scan_p and only_carries(eqn))
        for eqn in equations(program)
    )


def within_tolerance(
    leaf: LeafReport, further: LeafReport, gradient: np.ndarray, gradient_further: np.ndarray
) -> LeafReport:
    """What is known of a leaf once the solver inside was run further.

    A wrong leaf that is right then, while its gradient hardly changes, is right to the tolerance;
    one that is only closer may be.
    """
    closer = further.digits > max(leaf.digits + 1, -np.log10(LOOSE))
    if leaf.verdict is not Verdict.DIFFERS or not (further.verdict.ok or closer):
        return leaf
    moved = np.linalg.norm(gradient - gradient_further)
    if not moved <= STEADY * np.linalg.norm(gradient_further):
        return leaf
    if not further.verdict.ok:
        hint = (
            f"values and gradient agree to {leaf.digits:.1f} digits, to {further.digits:.1f} where "
            "the solver inside is run further: what is beyond may be its tolerance"
        )
        return leaf._replace(verdict=Verdict.UNRESOLVED, hint=hint)
    hint = (
        "right to the tolerance of the solver inside; solved further, to "
        f"{further.digits:.1f} digits"
    )
    return further._replace(hint=hint, own_dtype_digits=leaf.own_dtype_digits)


def within_approximation(leaf: LeafReport, program: Program) -> LeafReport:
    """What is known of a wrong leaf of a program that holds an approximation whose error cannot be
    made smaller from here: no more than that it may be to blame.

    So are adaptive steps behind a rule of their own, as of `odeint`, and the draws of
    `jax.random.gamma`, whose gradient is that of the distribution.
    """
    if leaf.verdict is not Verdict.DIFFERS:
        return leaf
    if any(eqn.primitive is primitives.random_gamma_p for eqn in equations(program)):
        hint = (
            "draws from a gamma distribution have an implicit gradient, at a fixed value of the "
            "distribution function: right of the distribution, and not of the draw"
        )
        return leaf._replace(verdict=Verdict.UNRESOLVED, hint=hint)
    off = [abs(e.autodiff - e.numerical) / abs(e.numerical) for e in leaf.entries if e.numerical]
    close = leaf.digits > -np.log10(LOOSE) and max(off, default=0.0) < LOOSE
    loops = any(
        eqn.primitive in CUSTOM_RULES
        and any(inner.primitive is primitives.while_p for inner in equations(called(eqn)))
        for eqn in equations(program)
    )
    if not (close and loops):
        return leaf
    hint = (
        f"values and gradient agree to {leaf.digits:.1f} digits; what is beyond may be the "
        "tolerance of the solver inside"
    )
    return leaf._replace(verdict=Verdict.UNRESOLVED, hint=hint)


def without_diffuse(leaf: LeafReport, tolerance: float) -> LeafReport:
    """What is known of a wrong leaf behind which no rule is wrong: that an error which all entries
    share, and which is none beside the whole, is that of an approximation inside.
    """
    if leaf.verdict is not Verdict.DIFFERS:
        return leaf
    entries = [e for e in leaf.entries if not isinstance(e.autodiff, complex)]
    evidence = [Evidence(e.autodiff, e.left, e.right, e.bound) for e in entries]
    if not is_diffuse(evidence, [e.verdict for e in entries], tolerance):
        return leaf
    kinks = tuple(e for e in entries if e.verdict is Verdict.KINK)
    hint = (
        f"all entries share an error of {10**-leaf.digits:.0e} beside the whole, and no rule "
        "inside is wrong: an approximation"
    )
    verdict = Verdict.KINK if kinks else Verdict.AGREES
    return leaf._replace(verdict=verdict, entries=kinks, pattern="", hint=hint)


def _once(evaluation: Evaluation) -> Evaluation:
    """The outermost solver alone is run further, or nested ones would multiply."""
    return evaluation._replace(rules=RULES)


def _size(values: Sequence[Any]) -> Any:
    squares = [jnp.sum(jnp.abs(x) ** 2) for x in values if jnp.issubdtype(x.dtype, jnp.inexact)]
    return functools.reduce(jnp.add, squares, jnp.zeros(()))


def _further(step: Callable, end: Sequence[Any]) -> list[Any]:
    """What a loop carries after more steps, if it was about to converge.

    Steps are taken as long as they are finite and none moves further than the first may: solvers
    that adapt themselves do so suddenly, and go on from there another way.
    """
    scale = _size(end)

    def more(_, state):
        carry, going = state
        new = step(carry)
        inexact = [
            (a, b) for a, b in zip(carry, new, strict=True) if jnp.issubdtype(a.dtype, jnp.inexact)
        ]
        going &= _size([b - a for a, b in inexact]) <= LOOSE**2 * scale  # not of NaN
        return [jnp.where(going, b, a) for a, b in zip(carry, new, strict=True)], going

    return lax.fori_loop(0, MORE_STEPS, more, (list(end), jnp.bool_(True)))[0]


def _while(eqn: Equation, inputs: list[Any], evaluation: Evaluation) -> list[Any]:
    parts, inner = while_parts(eqn.params, inputs), _once(evaluation)
    end = lax.while_loop(*while_step(parts, inner), parts.carry)
    return _further(lambda carry: inner(parts.body, [*parts.body_consts, *carry]), end)


def _scan(eqn: Equation, inputs: list[Any], evaluation: Evaluation) -> list[Any]:
    parts = scan_parts(eqn.params, inputs)
    if not only_carries(eqn):
        carry, ys = lax.scan(scan_step(parts, evaluation), parts.carry, parts.xs, **parts.options)
        return [*carry, *ys]
    step = scan_step(parts, _once(evaluation))
    carry, _ = lax.scan(step, parts.carry, parts.xs, **parts.options)
    return _further(lambda carry: step(carry, [])[0], carry)


def _linear_solve(eqn: Equation, inputs: list[Any], evaluation: Evaluation) -> list[Any]:
    parts, inner = linear_solve_parts(eqn.params, inputs), _once(evaluation)
    start = solved(parts, parts.rhs, inner)

    def residual(x):
        product = inner(parts.matvec, [*parts.matvec_consts, *x])
        return [b - y for b, y in zip(parts.rhs, product, strict=True)]

    # A residual that is not small is no tolerance but a mistake, and stays one.
    loose = _size(residual(start)) < LOOSE**2 * _size(parts.rhs)

    def refined(_, x):
        rest = residual(x)
        # As large as the right-hand side again, for a tolerance that is absolute.
        scale = jnp.sqrt(_size(rest) / _size(parts.rhs))
        scale = jnp.where(scale > 0, scale, 1)
        correction = solved(parts, [r / scale for r in rest], inner)
        return [jnp.where(loose, a + scale * d, a) for a, d in zip(x, correction, strict=True)]

    return lax.fori_loop(0, REFINEMENTS, refined, start)


RUN_FURTHER: Mapping[core.Primitive, Callable] = {
    primitives.while_p: _while,
    primitives.scan_p: _scan,
    primitives.linear_solve_p: _linear_solve,
}
