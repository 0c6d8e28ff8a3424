"""A function of scalars over a batch, computed with the batch as the last axis.

`jax.vmap` puts the batch first, and loops over a short last axis (ten classes) hardly vectorise on
a CPU. Here elementwise and axis-moving primitives run with the batch behind their own axes; every
other primitive goes through `jax.vmap`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from jaxnn.numerical.interpret import (
    CUMULATIVE,
    ELEMENTWISE,
    REDUCTIONS,
    Equation,
    Program,
    bind,
    called,
    equations,
    evaluate,
    pruned,
)

# These act along the axes they name, so they need no change if the batch is last.
_SAME_AXES = REDUCTIONS | CUMULATIVE | {primitives.rev_p, primitives.squeeze_p}


class Mapped(NamedTuple):
    """An array with the batch as its last axis; any other value is shared by the whole batch."""

    array: Any


class Batched:
    """A program of scalar inputs, vectorised.

    Attributes:
      bytes_per_entry: total bytes of the outputs of all equations for one batch entry; loop bodies
        count once.
    """

    def __init__(self, program: Program):
        self._program = pruned(program)
        self.bytes_per_entry = sum(
            v.aval.size * v.aval.dtype.itemsize
            for eqn in equations(self._program)
            for v in eqn.outvars
        )

    def __call__(self, *args: Any) -> list[Any]:
        """The outputs for vectors in place of the scalars; the batch is the first axis."""
        (size,) = {x.shape[0] for x in args}
        step = functools.partial(_step, size)
        outputs = evaluate(self._program, [Mapped(x) for x in args], step)
        return [jnp.moveaxis(_spread(x, size), -1, 0) for x in outputs]


def _step(size: int, eqn: Equation, inputs: list[Any]) -> list[Any]:
    if not any(isinstance(x, Mapped) for x in inputs):
        return bind(eqn, inputs)
    if (program := called(eqn)) is not None:
        return evaluate(program, inputs, functools.partial(_step, size))
    return [Mapped(x) for x in _mapped(size, eqn, inputs)]


def _mapped(size: int, eqn: Equation, inputs: list[Any]) -> list[Any]:
    """The outputs of an equation, with the batch as their last axis."""
    primitive, params, shape = eqn.primitive, eqn.params, eqn.outvars[0].aval.shape
    arrays = [x.array if isinstance(x, Mapped) else x for x in inputs]
    if primitive in ELEMENTWISE:
        return bind(eqn, [_spread(x, size, shape) for x in inputs])
    if primitive in _SAME_AXES:
        return bind(eqn, arrays)
    if primitive in (primitives.concatenate_p, primitives.sort_p):
        return bind(eqn, [_spread(x, size) for x in inputs])
    if len(inputs) == 1 and (moved := _moved(size, eqn, arrays[0])) is not None:
        return [moved]
    if primitive is primitives.pad_p and not isinstance(inputs[1], Mapped):
        operand, value = arrays
        return [lax.pad(operand, value, (*params["padding_config"], (0, 0, 0)))]
    axes = [-1 if isinstance(x, Mapped) else None for x in inputs]
    return jax.vmap(lambda *args: bind(eqn, args), axes, -1, axis_size=size)(*arrays)


def _moved(size: int, eqn: Equation, x: Any) -> Any:
    """An array with its axes moved by an equation, the batch last; None if no rule here does so."""
    primitive, params, shape = eqn.primitive, eqn.params, eqn.outvars[0].aval.shape
    if primitive is primitives.broadcast_in_dim_p:
        axes = (*params["broadcast_dimensions"], len(shape))
        return lax.broadcast_in_dim(x, (*shape, size), axes)
    if primitive is primitives.reshape_p and params["dimensions"] is None:
        return lax.reshape(x, (*shape, size))
    if primitive is primitives.transpose_p:
        return lax.transpose(x, (*params["permutation"], len(shape)))
    return None


def _spread(x: Any, size: int, shape: tuple[int, ...] | None = None) -> Any:
    """An array with the batch last, over `shape` if it is a scalar."""
    x = x.array if isinstance(x, Mapped) else jnp.expand_dims(x, -1)
    over = x.shape[:-1] if shape is None else shape
    return jnp.broadcast_to(x.reshape((1,) * (len(over) + 1 - x.ndim) + x.shape), (*over, size))
