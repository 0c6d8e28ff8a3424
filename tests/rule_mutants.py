"""Rules of JAX's own, made wrong one at a time: `mutants` lists them for a function, and under
`mutated` JAX has one.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.interpreters import ad
from jax.extend.core import primitives


def draw(seed, *shape, low=0.3, high=1.7):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape), jnp.float32)


X, Y, M, N = draw(0, 4), draw(1, 4), draw(2, 3, 4), draw(3, 4, 3)
SQUARE = jnp.asarray(np.eye(3) * 2, jnp.float32) + draw(4, 3, 3, high=0.6)

# name: a function, its arguments, and the primitives in it whose rules are made wrong
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...], tuple[str, ...]]] = {
    "sin": (lambda x: jnp.sum(jnp.sin(x) * x), (X,), ("sin", "mul", "reduce_sum")),
    "cos": (lambda x: jnp.sum(jnp.cos(x * 2)), (X,), ("cos",)),
    "tan": (lambda x: jnp.sum(jnp.tan(x / 2)), (X,), ("tan", "div")),
    "exp": (lambda x: jnp.sum(jnp.exp(-x)), (X,), ("exp", "neg")),
    "log": (lambda x: jnp.sum(jnp.log(x + 1)), (X,), ("log", "add")),
    "expm1": (lambda x: jnp.sum(jnp.expm1(x) + jnp.log1p(x)), (X,), ("expm1", "log1p")),
    "tanh": (lambda x: jnp.sum(jnp.tanh(x) ** 2), (X,), ("tanh", "integer_pow")),
    "logistic": (lambda x: jnp.sum(lax.logistic(x - 1)), (X,), ("logistic", "sub")),
    "sqrt": (lambda x: jnp.sum(jnp.sqrt(x) + lax.rsqrt(x)), (X,), ("sqrt", "rsqrt")),
    "pow": (lambda x, y: jnp.sum(x**y), (X, Y), ("pow",)),
    "erf": (lambda x: jnp.sum(lax.erf(x) + lax.erfc(x / 2)), (X,), ("erf", "erfc")),
    "lgamma": (lambda x: jnp.sum(lax.lgamma(x) + lax.digamma(x)), (X,), ("lgamma", "digamma")),
    "atan2": (lambda x, y: jnp.sum(jnp.arctan2(x, y)), (X, Y), ("atan2",)),
    "asin": (
        lambda x: jnp.sum(jnp.arcsin(x / 2) + jnp.arccos(x / 3) + jnp.arctan(x)),
        (X,),
        ("asin", "acos", "atan"),
    ),
    "sinh": (lambda x: jnp.sum(jnp.sinh(x) + jnp.cosh(x)), (X,), ("sinh", "cosh")),
    "dot": (lambda a, b: jnp.sum(jnp.sin(a @ b)), (M, N), ("dot_general",)),
    "transposed": (lambda a: jnp.sum(jnp.sin(a.T) @ a), (M,), ("transpose",)),
    "reshaped": (lambda a: jnp.sum(a.reshape(6, 2) ** 3), (M,), ("reshape",)),
    "broadcast": (
        lambda x: jnp.sum(jnp.broadcast_to(x, (3, 4)) * M),
        (X,),
        ("broadcast_in_dim",),
    ),
    "maximum": (
        lambda x, y: jnp.sum(jnp.maximum(x, 1.1 * y) * jnp.minimum(x, y)),
        (X, Y),
        ("max", "min"),
    ),
    "reduce max": (lambda a: jnp.sum(jnp.max(a, 0) ** 2), (M,), ("reduce_max",)),
    "product": (lambda x: jnp.prod(x), (X,), ("reduce_prod",)),
    "cumsum": (
        lambda x: jnp.sum(jnp.cumsum(x) ** 2) + jnp.sum(jnp.cumprod(x)),
        (X,),
        ("cumsum", "cumprod"),
    ),
    "cumulative maximum": (
        lambda x: jnp.sum(lax.cummax(x) ** 2) + jnp.sum(lax.cumlogsumexp(x) ** 2),
        (X,),
        ("cummax", "cumlogsumexp"),
    ),
    "sliced": (
        lambda x: jnp.sum(x[1:] * x[:-1]) + lax.dynamic_slice(x, (1,), (2,)).prod(),
        (X,),
        ("slice", "dynamic_slice"),
    ),
    "concatenated": (
        lambda x, y: jnp.sum(jnp.concatenate([x, y * 2]) ** 2),
        (X, Y),
        ("concatenate",),
    ),
    "padded": (lambda x: jnp.sum(jnp.pad(x, 1) * jnp.arange(6.0)), (X,), ("pad",)),
    "gathered": (lambda x: jnp.sum(x[jnp.array([0, 2, 2])] ** 2), (X,), ("gather",)),
    "scattered": (
        lambda x: jnp.sum(x.at[jnp.array([0, 2])].add(x[:2] ** 2) ** 3),
        (X,),
        ("scatter-add",),
    ),
    "selected": (lambda x: jnp.sum(jnp.where(x > 1, x**2, 3 * x)), (X,), ("select_n",)),
    "sorted": (lambda x: jnp.sum(jnp.sort(x) * jnp.arange(4.0)), (X,), ("sort",)),
    "reversed": (lambda x: jnp.sum(x[::-1] * jnp.arange(4.0)), (X,), ("rev",)),
    "absolute": (lambda x: jnp.sum(jnp.abs(x - 1) ** 2), (X,), ("abs",)),
    "cast": (
        lambda x: jnp.sum(x.astype(jnp.bfloat16).astype(jnp.float32) ** 2),
        (X,),
        ("convert_element_type",),
    ),
    "cholesky": (
        lambda a: jnp.sum(jnp.linalg.cholesky(a @ a.T + jnp.eye(3)) ** 3),
        (SQUARE,),
        ("cholesky",),
    ),
    "eigenvalues": (lambda a: jnp.sum(jnp.linalg.eigh(a + a.T)[0] ** 3), (SQUARE,), ("eigh",)),
    "solved": (
        lambda a, b: jnp.sum(jax.scipy.linalg.solve_triangular(a, b, lower=True) ** 2),
        (SQUARE, X[:3]),
        ("triangular_solve",),
    ),
    "singular values": (
        lambda a: jnp.sum(jnp.linalg.svd(a, compute_uv=False) ** 3),
        (SQUARE,),
        ("svd",),
    ),
    "qr": (lambda a: jnp.sum(jnp.linalg.qr(a)[1] ** 2 * SQUARE), (SQUARE,), ("qr",)),
    "factors": (lambda a: jnp.sum(jax.scipy.linalg.lu(a)[2] ** 2), (SQUARE,), ("lu",)),
    "convolved": (
        lambda x, y: jnp.sum(
            lax.conv(x.reshape(1, 1, 4), y[:2].reshape(1, 1, 2), (1,), "SAME") ** 2
        ),
        (X, Y),
        ("conv_general_dilated",),
    ),
    "in a scan": (
        lambda x: lax.scan(lambda c, v: (jnp.sin(c) * v, jnp.cos(c)), 1.0, x)[0],
        (X,),
        ("sin", "cos"),
    ),
    "in a branch": (
        lambda x: lax.cond(jnp.sum(x) > 0, lambda x: jnp.sum(jnp.tanh(x)), jnp.sum, x),
        (X,),
        ("tanh",),
    ),
}


class Mutant(NamedTuple):
    """One rule made wrong."""

    function: str
    primitive: str
    rule: str  # "jvp" or "transpose"
    error: str


def off(error, value):
    """A derivative made wrong."""
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    if error == "sign":
        return -value
    if error == "1%":
        return value * jnp.asarray(1.01, value.dtype)
    if error == "one entry":
        return value.at[(0,) * value.ndim].multiply(1.05) if value.ndim else value * 1.05
    if error == "bfloat16":
        return value.astype(jnp.bfloat16).astype(value.dtype)
    raise ValueError(error)


ERRORS = ("sign", "1%", "one entry", "bfloat16")


def mutants(function):
    """Those of one function, each rule with every other error, in turn; those that change nothing
    are not alive.
    """
    rules = [
        (primitive, rule)
        for primitive in FUNCTIONS[function][2]
        for rule in ("jvp", "transpose")
        if _has(primitive, rule)
    ]
    first = list(FUNCTIONS).index(function)
    return [
        Mutant(function, primitive, rule, error)
        for number, (primitive, rule) in enumerate(rules)
        for error in ERRORS[(first + number) % 2 :: 2]
    ]


def primitive_of(name):
    return getattr(primitives, name.replace("-", "_") + "_p")


def _has(name, rule):
    table = ad.primitive_jvps if rule == "jvp" else ad.primitive_transposes
    return primitive_of(name) in table


@contextlib.contextmanager
def mutated(mutant):
    """JAX with one wrong rule."""
    primitive = primitive_of(mutant.primitive)
    table = ad.primitive_jvps if mutant.rule == "jvp" else ad.primitive_transposes
    right, linear = table[primitive], ad.primitive_linearizations.pop(primitive, None)

    def jvp(primals, tangents, **params):
        value, change = right(primals, tangents, **params)
        if primitive.multiple_results:
            return value, [off(mutant.error, t) for t in change]
        return value, off(mutant.error, change)

    def transpose(cts, *args, **params):
        return [off(mutant.error, ct) for ct in right(cts, *args, **params)]

    table[primitive] = jvp if mutant.rule == "jvp" else transpose
    jax.clear_caches()
    try:
        yield
    finally:
        table[primitive] = right
        if linear is not None:
            ad.primitive_linearizations[primitive] = linear
        jax.clear_caches()
