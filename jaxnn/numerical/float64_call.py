"""Calls that are traced, batched and lowered in wide arithmetic, even inside a user's `jit`.

With x64 off, float64 exists only inside `wide_arithmetic`. Our own programs are compiled inside it.
A user's `jit` lowers everything outside it, where some primitives (`argmax`, the incomplete beta
and gamma functions) check the setting again and refuse float64. Wrapping the whole program in one
equation that enables the setting during lowering fixes this for every primitive.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from jaxnn.numerical.float64 import wide_arithmetic
from jaxnn.numerical.interpret import Program, make_jaxpr

_float64_call_p = core.Primitive("float64_call")
_float64_call_p.multiple_results = True


def float64_call(f: Callable, dtype: Any, *args: Any) -> Any:
    """Evaluate `f(*args)` as one equation inside `wide_arithmetic(dtype)`; `f` must return dtypes
    that exist outside it.
    """
    with wide_arithmetic(dtype):
        closed, shapes = make_jaxpr(f, return_shape=True)(*args)
        leaves = _float64_call_p.bind(*jax.tree.leaves(args), closed=closed, dtype=dtype)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _evaluate(*leaves: Any, closed: Program, dtype: Any) -> list[Any]:
    with wide_arithmetic(dtype):
        return core.jaxpr_as_fun(closed)(*leaves)


def _batch(
    leaves: Sequence[Any], axes: Sequence[Any], *, closed: Program, dtype: Any
) -> tuple[list[Any], list[int]]:
    with wide_arithmetic(dtype):
        batched = make_jaxpr(jax.vmap(core.jaxpr_as_fun(closed), in_axes=tuple(axes)))(*leaves)
        out = _float64_call_p.bind(*leaves, closed=batched, dtype=dtype)
    return out, [0] * len(out)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, closed: Program, dtype: Any) -> Any:
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    with wide_arithmetic(dtype):
        return jax.jvp(core.jaxpr_as_fun(closed), tuple(primals), tuple(tangents))


def _lower(ctx: Any, *operands: Any, closed: Program, dtype: Any) -> Any:
    with wide_arithmetic(dtype):
        return mlir.lower_fun(core.jaxpr_as_fun(closed), multiple_results=True)(ctx, *operands)


_float64_call_p.def_impl(_evaluate)
_float64_call_p.def_abstract_eval(lambda *leaves, closed, dtype: closed.out_avals)
batching.primitive_batchers[_float64_call_p] = _batch
ad.primitive_jvps[_float64_call_p] = _jvp
mlir.register_lowering(_float64_call_p, _lower)
