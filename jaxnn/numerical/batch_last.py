"""A function of scalars over a batch, computed with the batch as the last axis.

`jax.vmap` puts the batch first, and code on a short last axis (ten classes) hardly vectorises on a CPU. Here the elementwise
and axis-moving primitives are given the batch behind their own axes, and every other one goes through `jax.vmap`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from jaxnn.numerical.slab_rules import CALLS, ELEMENTWISE, inner_jaxpr, one_result

# These act along the axes they name, wherever the batch is, as long as it is last.
_SAME_AXES = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin cumsum cumprod cummax cummin "
    "cumlogsumexp rev squeeze".split()
)


class Batched:
    """A jaxpr of scalar inputs, without the equations that no output needs."""

    def __init__(self, closed):
        self.jaxpr, self.consts = closed.jaxpr, closed.consts
        needed, self.eqns = {v for v in self.jaxpr.outvars if not isinstance(v, core.Literal)}, []
        for eqn in reversed(self.jaxpr.eqns):
            if any(v in needed for v in eqn.outvars):
                needed |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
                self.eqns.insert(0, eqn)
        self.bytes_per_entry = _bytes(self.eqns)

    def __call__(self, *args):
        """The outputs for vectors in place of the scalars; the batch is their first axis."""
        (size,) = {x.shape[0] for x in args}
        outs = _walk(self.jaxpr, self.eqns, self.consts, [(x, True) for x in args], size)
        return [jnp.moveaxis(_spread(x, mapped, size), -1, 0) for x, mapped in outs]


def _bytes(eqns):
    """What the outputs of equations and of those inside them take; a loop's only once."""
    own = sum(v.aval.size * v.aval.dtype.itemsize for eqn in eqns for v in eqn.outvars)
    return own + sum(_bytes(inner.eqns) for eqn in eqns for inner in core.jaxprs_in_params(eqn.params))


def _walk(jaxpr, eqns, consts, args, size):
    """Evaluate equations on pairs `(array, whether its last axis is the batch)`."""
    values = dict(zip(jaxpr.constvars, [(c, False) for c in consts], strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(var):
        return (var.val, False) if isinstance(var, core.Literal) else values[var]

    for eqn in eqns:
        with eqn.ctx.manager:
            outs = _bind(eqn, [read(v) for v in eqn.invars], size)
        values |= dict(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _bind(eqn, ins, size):
    name, params, shape = eqn.primitive.name, eqn.params, eqn.outvars[0].aval.shape
    bind = eqn.primitive.bind if eqn.primitive.multiple_results else one_result(eqn.primitive.bind)
    bind = functools.partial(bind, **eqn.primitive.get_bind_params(params))
    xs, mapped = [x for x, _ in ins], [m for _, m in ins]
    if not any(mapped):
        return [(x, False) for x in bind(*xs)]
    if name in CALLS:
        jaxpr, consts = inner_jaxpr(eqn)
        return _walk(jaxpr, jaxpr.eqns, consts, ins, size)
    if name in ELEMENTWISE:
        outs = bind(*(_spread(x, m, size, shape) for x, m in ins))
    elif name in _SAME_AXES:
        outs = bind(*xs)
    elif name == "concatenate":
        outs = bind(*(_spread(x, m, size) for x, m in ins))
    elif name == "broadcast_in_dim" and len(ins) == 1:
        outs = [lax.broadcast_in_dim(xs[0], (*shape, size), (*params["broadcast_dimensions"], len(shape)))]
    elif name == "reshape" and len(ins) == 1 and params["dimensions"] is None:
        outs = [lax.reshape(xs[0], (*shape, size))]
    elif name == "transpose":
        outs = [lax.transpose(xs[0], (*params["permutation"], len(shape)))]
    else:
        outs = jax.vmap(bind, [-1 if m else None for m in mapped], -1, axis_size=size)(*xs)
    return [(x, True) for x in outs]


def _spread(x, mapped, size, shape=None):
    """An array with the batch last, over `shape` if it is a scalar."""
    x = x if mapped else jnp.expand_dims(x, -1)
    shape = x.shape[:-1] if shape is None else shape
    return jnp.broadcast_to(x.reshape((1,) * (len(shape) + 1 - x.ndim) + x.shape), (*shape, size))
