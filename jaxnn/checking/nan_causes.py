"""A table of what usually makes a primitive's value or slope infinite or NaN, and what helps.

The keys are primitives, not names, because a user's primitive may have any name.
"""

import re
from typing import NamedTuple

from jax.extend import core
from jax.extend.core import primitives

from jaxnn.numerical.interpret import Equation


class Cause(NamedTuple):
    """Why a primitive's value or slope is not finite, and what helps; empty if unknown."""

    value: str = ""
    slope: str = ""
    cure: str = ""


_SAFE = "make the argument safe first"
# Functions of one number that `jax.numpy` has, too; others are written as operators.
_FUNCTIONS = frozenset(["sqrt", "rsqrt", "cbrt", "log", "log1p"])
_DISTINCT = "separate equal values: add small distinct numbers to the matrix's diagonal"
_SINGULAR = "add a small multiple of the identity"
_OVERFLOW = Cause(
    "it overflows",
    "it overflows",
    "subtract the maximum first, or use `jnp.logaddexp`, `jax.nn.logsumexp`, `jax.nn.softmax`",
)
_SUM = Cause("an overflow, or infinity minus infinity")
_EIGENVECTORS = Cause(
    slope="eigenvectors have no derivative where eigenvalues are equal", cure=_DISTINCT
)
_GAMMA = Cause(
    "an argument of 0 or a negative integer", "it has no slope at 0 and negative integers"
)
_ARC = Cause(
    "an argument outside -1 to 1",
    "its slope at -1 and 1 is infinite",
    "keep the argument away from -1 and 1, or use `jnp.arctan2` for the angle",
)
# `integer_pow` with a positive exponent.
_POSITIVE_POWER = Cause("it overflows", "it overflows", "scale the base down")

NOT_FINITE: dict[core.Primitive, Cause] = {
    primitives.sqrt_p: Cause(
        "the square root of a negative number",
        "its slope at 0 is infinite",
        f"{_SAFE}, as in `jnp.sqrt(jnp.where(x > 0, x, 1))`",
    ),
    primitives.rsqrt_p: Cause(
        "one over the square root of 0 or less",
        "its slope at 0 is infinite",
        f"{_SAFE}, as in `lax.rsqrt(jnp.where(x > 0, x, 1))`",
    ),
    primitives.cbrt_p: Cause(
        slope="its slope at 0 is infinite",
        cure=f"{_SAFE}, as in `jnp.cbrt(jnp.where(x != 0, x, 1))`",
    ),
    primitives.log_p: Cause(
        "the logarithm of 0, or of a negative number",
        "its slope at 0 is infinite",
        "for probabilities use `jax.nn.log_softmax` of the scores; else "
        f"{_SAFE}, as in `jnp.log(jnp.where(x > 0, x, 1))`",
    ),
    primitives.log1p_p: Cause(
        "the logarithm of 0, or of a negative number",
        "its slope at -1 is infinite",
        f"{_SAFE}, as in `jnp.log1p(jnp.where(x > -1, x, 0))`",
    ),
    primitives.div_p: Cause(
        "a division by 0, or of infinity by infinity",
        "its slope is infinite where it divides by 0",
        f"{_SAFE}, as in `a / jnp.where(b != 0, b, 1)`",
    ),
    primitives.pow_p: Cause(
        "an overflow, or a power of 0 or of a negative number",
        "its slope at 0 is infinite for an exponent below 1",
        f"{_SAFE}, as in `jnp.where(x > 0, x, 1) ** k`",
    ),
    primitives.integer_pow_p: Cause(
        "a negative power of 0",
        "its slope is infinite where a negative power of 0 is taken",
        f"{_SAFE}, as in `jnp.where(x != 0, x, 1) ** k`",
    ),
    primitives.square_p: Cause("it overflows", cure="scale the argument down"),
    primitives.exp_p: _OVERFLOW,
    primitives.exp2_p: _OVERFLOW,
    primitives.expm1_p: _OVERFLOW,
    primitives.cosh_p: _OVERFLOW,
    primitives.sinh_p: _OVERFLOW,
    primitives.eigh_p: _EIGENVECTORS,
    primitives.eig_p: _EIGENVECTORS,
    primitives.svd_p: Cause(
        slope="singular vectors have no derivative where singular values are equal, or 0",
        cure=_DISTINCT,
    ),
    primitives.acos_p: _ARC,
    primitives.asin_p: _ARC,
    primitives.acosh_p: Cause(
        "an argument below 1", "its slope at 1 is infinite", "keep the argument above 1"
    ),
    primitives.atanh_p: Cause(
        "an argument of -1 or 1, or beyond",
        "its slope at -1 and 1 is infinite",
        "keep the argument strictly between -1 and 1",
    ),
    primitives.atan2_p: Cause(
        slope="it has no slope where both arguments are 0",
        cure="make sure that the arguments are not both 0",
    ),
    primitives.erf_inv_p: Cause(
        "an argument of -1 or 1, or beyond", "its slope at -1 and 1 is infinite"
    ),
    primitives.sub_p: _SUM._replace(cure="mask with a large finite number instead of `-jnp.inf`"),
    primitives.add_p: _SUM,
    primitives.reduce_sum_p: _SUM,
    primitives.dot_general_p: _SUM,
    primitives.mul_p: Cause("an overflow, or 0 times infinity"),
    primitives.reduce_prod_p: Cause("it overflows"),
    primitives.cholesky_p: Cause("the matrix is not positive definite", cure=_SINGULAR),
    primitives.lu_p: Cause(slope="the matrix is singular"),
    primitives.triangular_solve_p: Cause(
        "the matrix is singular", "the matrix is singular", _SINGULAR
    ),
    primitives.convert_element_type_p: Cause(
        "a number beyond the range of the dtype",
        cure="scale the loss down, or compute in bfloat16 or float32",
    ),
    primitives.lgamma_p: _GAMMA,
    primitives.digamma_p: _GAMMA,
}


def usual_cause(eqn: Equation) -> Cause:
    """Why an equation's value or slope is not finite, and what helps; empty if unknown."""
    if eqn.primitive is primitives.integer_pow_p and eqn.params["y"] > 0:
        return _POSITIVE_POWER
    return NOT_FINITE.get(eqn.primitive, Cause())


def cure_unmasked(cure: str) -> str:
    """What helps if the value is not masked afterwards: a safe argument alone would change it."""
    return f"{cure},\nand select the value with another `jnp.where`" if _SAFE in cure else cure


def as_written(cure: str, name: str, text: str) -> str:
    """What helps if the operation `name` may be inside of what the line `text` calls."""
    if name not in _FUNCTIONS or not text or re.search(rf"\b{name}\b", text):
        return cure
    hidden = f"`{name}` is inside a call on this line: write the call out, and"
    return f"{hidden} {cure.rpartition('; else ')[2]}"
