"""Programs that a check runs a few times, compiled without optimisation where that takes less time
in all.

On a CPU, XLA compiles a program without optimisation in a third of the time; elementwise operations
then take twice as long, and convolutions ten times.
"""

import math
from typing import Any

import jax
from jax.extend.core import primitives

from jaxnn._jax import OPTIMISED, UNOPTIMISED
from jaxnn.numerical.interpret import Equation, Program, equations, opened, programs_inside

# How many numbers an operation can compute, on average and in all runs, before its optimisation
# pays.
PAYS = 2**18
# How many iterations a loop is assumed to take that ends by a condition.
ITERATIONS = 100


def compiler_options(program: Program, runs: float = 2) -> dict[str, Any]:
    """The compiler's options for a program that a check runs about so many times."""
    if jax.default_backend() != "cpu":
        return {}
    count = sum(1 for _ in equations(program))
    return UNOPTIMISED if runs * work(program) <= PAYS * count else OPTIMISED


def work(program: Program) -> float:
    """How many numbers a program computes."""
    return sum(map(_work_of, opened(program)[0].eqns))


def _work_of(eqn: Equation) -> float:
    inside = sum(map(work, programs_inside(eqn)))
    if eqn.primitive is primitives.scan_p:
        return eqn.params["length"] * inside
    if eqn.primitive is primitives.while_p:
        return ITERATIONS * inside
    own = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
    if eqn.primitive is primitives.conv_general_dilated_p:  # one for each product
        kernel = eqn.invars[1].aval.shape
        own *= math.prod(kernel) / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return own + inside
