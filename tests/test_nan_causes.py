"""Each row of the table of causes is said of the primitive that it is about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy.linalg import lu, solve_triangular
from versions import since

import jaxnn
from jaxnn.checking.nan_causes import NOT_FINITE

TWO_EQUAL = jnp.eye(2)
SINGULAR = jnp.zeros((2, 2))
HUGE, LARGEST = 1e200, 1.5e308


def eigenvectors(x):
    return jnp.abs(lax.linalg.eig(x, compute_left_eigenvectors=False, enable_eigvec_derivs=True)[1])


# A function, and a point where its value, or its slope behind a mask, is not finite; None where the
# table says nothing of it.
EXAMPLES = {
    "sqrt": (jnp.sqrt, -1.0, 0.0),
    "rsqrt": (lax.rsqrt, 0.0, 0.0),
    "cbrt": (jnp.cbrt, None, 0.0),
    "log": (jnp.log, 0.0, 0.0),
    "log1p": (jnp.log1p, -2.0, -1.0),
    "div": (lambda x: 1 / x, 0.0, 0.0),
    "pow": (lambda x: x**0.5, -1.0, 0.0),
    "integer_pow": (lambda x: x**-2, 0.0, 0.0),
    "square": (jnp.square, HUGE, None),
    "exp": (jnp.exp, 1e4, 1e4),
    "exp2": (jnp.exp2, 1e5, 1e5),
    "expm1": (jnp.expm1, 1e4, 1e4),
    "cosh": (jnp.cosh, 1e4, 1e4),
    "sinh": (jnp.sinh, 1e4, 1e4),
    "eigh": (lambda x: jnp.linalg.eigh(x)[1], None, TWO_EQUAL),
    "eig": (eigenvectors, None, TWO_EQUAL),
    "svd": (lambda x: jnp.linalg.svd(x)[0], None, TWO_EQUAL),
    "acos": (jnp.arccos, 2.0, 1.0),
    "asin": (jnp.arcsin, 2.0, 1.0),
    "acosh": (jnp.arccosh, 0.5, 1.0),
    "atanh": (jnp.arctanh, 2.0, 1.0),
    "atan2": (lambda x: jnp.arctan2(x, 0 * x), None, 0.0),
    "erf_inv": (lax.erf_inv, 2.0, 1.0),
    "sub": (lambda x: x - (-x), LARGEST, None),
    "add": (lambda x: x + x, LARGEST, None),
    "mul": (lambda x: x * HUGE, HUGE, None),
    "cholesky": (jnp.linalg.cholesky, -TWO_EQUAL, None),
    "lu": (lambda x: lu(x)[2], None, SINGULAR),
    "triangular_solve": (lambda x: solve_triangular(x, jnp.ones(2)), SINGULAR, SINGULAR),
    "lgamma": (jax.scipy.special.gammaln, 0.0, 0.0),
    "digamma": (jax.scipy.special.digamma, 0.0, 0.0),
    "reduce_prod": (jnp.prod, np.full(2, HUGE), None),
    "dot_general": (lambda x: x @ x, np.full(2, HUGE), None),
    "reduce_sum": (jnp.sum, np.full(2, LARGEST), None),
    "convert_element_type": (lambda x: x.astype("float32"), HUGE, None),
}
ROWS = {primitive.name: cause for primitive, cause in NOT_FINITE.items()}
KINDS = ("value", "slope")
SAID = [(name, which) for name in ROWS for which in KINDS if getattr(ROWS[name], which)]
LATER = {("eig", "slope"): since(0, 10), ("svd", "slope"): since(0, 9)}


def test_each_row_has_an_example_of_what_it_says():
    points = {name: dict(zip(KINDS, of, strict=True)) for name, (_, *of) in EXAMPLES.items()}
    shown = [(n, w) for n, of in points.items() for w, x in of.items() if x is not None]
    assert sorted(shown) == sorted(SAID)


@pytest.mark.parametrize(
    "name, which", [pytest.param(*said, marks=LATER.get(said, ())) for said in SAID]
)
def test_the_cause_is_said_of_the_primitive(name, which):
    f, of_value, of_slope = EXAMPLES[name]
    masked = lambda x: jnp.where(jnp.arange(2) < 1, 0 * jnp.sum(x), jnp.sum(f(x)))[0]  # noqa: E731
    with jax.enable_x64(True):
        point = jnp.asarray(of_value if which == "value" else of_slope, jnp.float64)
        loss = masked if which == "slope" else lambda x: jnp.sum(f(x))
        (birth,) = jaxnn.explain(loss, point).births
    assert birth.operation == name
    assert f"`{name}`: {getattr(ROWS[name], which)}" in birth.what
    assert ROWS[name].cure.rpartition("; else ")[2] in birth.cure
    assert birth.line.file == __file__


def test_of_an_operation_inside_a_call_the_call_is_to_be_written_out():
    def norm(x):
        return jnp.linalg.norm(x)

    (birth,) = jaxnn.explain(norm, jnp.zeros(2)).births
    cure = "`sqrt` is inside a call on this line: write the call out, and make the"
    assert birth.cure.startswith(cure)


def test_of_several_operands_the_entries_of_one_are_counted():
    power = lambda x, k: jnp.sum(x**k)  # noqa: E731
    (birth,) = jaxnn.explain(power, jnp.array([0.0, 1.0, 2.0]), jnp.float32(0.5)).births
    assert (birth.count, birth.total) == (1, 3)


def test_an_infinite_value_is_named_before_the_slope_that_it_makes_nan():
    f = lambda x: jnp.arctan2(jnp.exp(x), 1.0)  # noqa: E731
    assert [birth.operation for birth in jaxnn.explain(f, jnp.float32(1e3)).births] == ["exp"]


def test_a_few_births_are_enough():
    def f(x):
        y = jnp.sum(jnp.sqrt(x))
        y += jnp.sum(jnp.sqrt(2 * x))
        y += jnp.sum(jnp.sqrt(3 * x))
        y += jnp.sum(jnp.sqrt(4 * x))
        return y

    lines = [birth.line.line for birth in jaxnn.explain(f, jnp.zeros(2)).births]
    assert len(lines) == 3 and lines == sorted(lines, reverse=True)


@pytest.mark.parametrize("f", [jnp.square, jnp.sqrt, jnp.exp, lambda x: 1 / x])
def test_what_is_nan_in_the_data_is_not_said_to_overflow(f):
    data = jnp.array([1.0, jnp.nan, 2.0])
    (birth,) = jaxnn.explain(lambda w: jnp.nansum(f(w * data)), jnp.ones(3)).births
    assert "its operand is NaN" in birth.what and "nan_to_num" in birth.cure
    assert (birth.count, birth.total) == (1, 3)
