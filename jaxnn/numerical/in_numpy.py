"""Small programs evaluated in float64 by NumPy, which needs no compilation.

XLA takes about 0.05 s to compile a program of a few lines; NumPy runs it in 0.1 ms. The table has
the primitives for which NumPy has a function of the same meaning, for real numbers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import PyTree

from jaxnn._programs import Traced
from jaxnn._validate import is_key
from jaxnn.numerical.float64 import OWN_DTYPE, RULES, Evaluation
from jaxnn.numerical.interpret import (
    CONTROL_FLOW,
    Equation,
    called,
    evaluate,
    is_foreign,
    shard_map_parts,
)


def _wide(dtype: Any) -> Any:
    return np.dtype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype)


def _lifted(x: Any) -> Any:
    """An array in NumPy's form, with floats widened. Random keys have no such form."""
    if is_key(x):
        return x
    x = np.asarray(x)
    return x.astype(_wide(x.dtype), copy=False)


def _broadcast_in_dim(x: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x), strict=True):
        sizes[axis] = size
    return np.broadcast_to(np.reshape(x, sizes), shape)


def _dot_general(x: Any, y: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    (summed_x, summed_y), (batch_x, batch_y) = dimension_numbers
    of_x = list(range(x.ndim))
    of_y = list(range(x.ndim, x.ndim + y.ndim))
    for i, j in zip((*summed_x, *batch_x), (*summed_y, *batch_y), strict=True):
        of_y[j] = i
    rest = [i for i in (*of_x, *of_y) if i not in (*summed_x, *batch_x)]
    return np.einsum(x, of_x, y, of_y, [*batch_x, *rest])


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    strides = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


def _iota(*, dtype: Any, shape: Any, dimension: int, **_: Any) -> Any:
    sizes = [-1 if axis == dimension else 1 for axis in range(len(shape))]
    return np.broadcast_to(np.arange(shape[dimension], dtype=_wide(dtype)).reshape(sizes), shape)


def _reshape(x: Any, *, new_sizes: Any, dimensions: Any, **_: Any) -> Any:
    return np.reshape(x if dimensions is None else np.transpose(x, dimensions), new_sizes)


def _over_axes(function: Callable) -> Callable:
    """A reduction, in the dtype of its operand: NumPy would add up int32 in int64."""
    return lambda x, *, axes, **_: np.asarray(function(x, axis=tuple(axes)), np.asarray(x).dtype)


# Functions of whole arrays, without parameters.
_PLAIN: dict[str, Callable] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "add": np.add,
    "add_jaxvals": np.add,
    "and": np.bitwise_and,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "clamp": lambda least, x, most: np.minimum(np.maximum(x, least), most),
    "copy": np.asarray,
    "cos": np.cos,
    "cosh": np.cosh,
    "div": np.divide,
    "eq": np.equal,
    "erf": np.vectorize(math.erf, [np.float64]),
    "erfc": np.vectorize(math.erfc, [np.float64]),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, no, yes: np.where(which, yes, no),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.asarray,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}
_WITH_PARAMETERS: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "convert_element_type": lambda x, *, new_dtype, **_: np.asarray(x).astype(_wide(new_dtype)),
    "dot_general": _dot_general,
    "integer_pow": lambda x, *, y: x**y if y >= 0 else 1 / x**-y,
    "iota": _iota,
    "reduce_and": _over_axes(np.all),
    "reduce_max": _over_axes(np.max),
    "reduce_min": _over_axes(np.min),
    "reduce_or": _over_axes(np.any),
    "reduce_prod": _over_axes(np.prod),
    "reduce_sum": _over_axes(np.sum),
    "reshape": _reshape,
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "slice": _slice,
    "squeeze": lambda x, *, dimensions: np.squeeze(x, dimensions),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
}


def _without_parameters(function: Callable) -> Callable:
    return lambda *inputs, **_: function(*inputs)


_BY_NAME = {name: _without_parameters(f) for name, f in _PLAIN.items()} | _WITH_PARAMETERS
FUNCTIONS: Mapping[core.Primitive, Callable] = {
    getattr(primitives, f"{name}_p"): function for name, function in _BY_NAME.items()
} | {lax.split_p: lambda x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis)}
# NumPy divides integers otherwise, and refuses their negative powers.
_OF_FLOATS = frozenset([primitives.div_p, primitives.integer_pow_p, primitives.pow_p])
# At most so many operations of a program are left to JAX, which compiles them one by one.
LEFT_TO_JAX = 4


def _has_function(eqn: Equation) -> bool:
    """Whether a function of NumPy's does what an equation says."""
    if eqn.primitive not in FUNCTIONS or not _is_plain(eqn):
        return False
    floats = [jnp.issubdtype(v.aval.dtype, jnp.floating) for v in (*eqn.invars, *eqn.outvars)]
    if eqn.primitive is primitives.convert_element_type_p:  # truncates as no function here does
        return not (floats[0] and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.integer))
    if eqn.primitive is primitives.select_n_p:
        return eqn.invars[0].aval.dtype == bool
    return floats[0] or eqn.primitive not in _OF_FLOATS


def _is_plain(eqn: Equation) -> bool:
    """Whether an equation is an operation on arrays of real numbers that JAX can run by itself."""
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    return (
        all(getattr(x, "size", 0) for x in avals)
        and not any(is_key(x) or jnp.issubdtype(x.dtype, jnp.complexfloating) for x in avals)
        and eqn.primitive not in OWN_DTYPE | CONTROL_FLOW.keys()
        and not (eqn.effects or is_foreign(eqn.primitive) or shard_map_parts(eqn))
        and (eqn.primitive in FUNCTIONS or _is_compiled_alone(eqn.primitive))
    )


def _is_compiled_alone(primitive: core.Primitive) -> bool:
    """Whether JAX runs a primitive outside `jit` as it runs its own operations, by compiling it; a
    library's may run any code on JAX's arrays instead.
    """
    how = [getattr(vars(one).get("impl"), "func", None) for one in (primitive, primitives.add_p)]
    return how[0] is how[1]


class _Place(int):
    """The position of one of a program's values in a list of them all."""


def in_numpy(traced: Traced) -> Callable[..., PyTree] | None:
    """A traced function of the values of its constants and its arguments, evaluated in float64 by
    NumPy; None if it computes with other than real arrays, or NumPy lacks more than a few of its
    operations. Call the result inside `wide_arithmetic(jnp.float64)`.
    """
    steps, left = [], []
    values: list[Any] = []  # constants; None at the places of what is computed

    def place(value=None):
        values.append(value)
        return _Place(len(values) - 1)

    def constant(x):
        return x if isinstance(x, _Place) else place(_lifted(x))

    def step(eqn, inputs):
        if (inner := called(eqn)) is not None:
            return evaluate(inner, inputs, step, constant)
        outputs = [place() for _ in eqn.outvars]
        if _has_function(eqn):
            steps.append((_by_function(eqn), inputs, outputs))
        else:
            steps.append((_by_jax(eqn), inputs, outputs))
            left.append(eqn)
        return outputs

    def call(consts, *args):
        now, given = values.copy(), (*consts, *jax.tree.leaves(args))
        now[: len(given)] = map(_lifted, given)
        with np.errstate(all="ignore"):
            for run, inputs, outputs in steps:
                for k, x in zip(outputs, run([now[i] for i in inputs]), strict=True):
                    now[k] = x
        return jax.tree.unflatten(jax.tree.structure(traced.shapes), [now[k] for k in results])

    places = [[place() for _ in of] for of in (traced.jaxpr.constvars, traced.jaxpr.invars)]
    results = evaluate(core.ClosedJaxpr(traced.jaxpr, places[0]), places[1], step, constant)
    is_possible = len(left) <= LEFT_TO_JAX and all(map(_is_plain, left))
    return call if is_possible else None


def _by_function(eqn: Equation) -> Callable[[list[Any]], Any]:
    """An equation's outputs for its inputs, by NumPy."""
    function, params = FUNCTIONS[eqn.primitive], eqn.params
    if eqn.primitive.multiple_results:
        return lambda inputs: function(*inputs, **params)
    return lambda inputs: [function(*inputs, **params)]


def _by_jax(eqn: Equation) -> Callable[[list[Any]], Any]:
    """An equation's outputs for its inputs, by JAX in float64."""
    evaluation = Evaluation(jnp.float64, RULES, set())

    def run(inputs):
        with eqn.ctx.manager:
            return list(map(_lifted, evaluation.step(eqn, inputs)))

    return run
