"""The same function in wider arithmetic: traced as its user runs it, evaluated in float64.

A difference quotient in float32 keeps three digits; in float64 it keeps ten. Calling `f` on float64 arguments is not the same
function any more: draws of random numbers change, a scan whose carry starts in float32 refuses, a cast inside goes back to
float32. So `f` is traced once with the dtypes it was given, and its jaxpr is evaluated with every narrower float replaced by
the wide one, casts included. Whatever cannot be widened (a host callback, bits reinterpreted) is evaluated in its own dtype.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

# Defined on bits or host code, or drawing random numbers that would differ: these see the dtypes they were traced with.
_OWN_DTYPE = frozenset(
    "bitcast_convert_type nextafter pure_callback io_callback debug_callback ffi_call pallas_call "
    "random_gamma rng_uniform".split()
)


# What `tight` adds to a loop; and how far, relative, a result may still move, and the residual of a linear solver be, to be
# taken for a solution that is only loose.
_MORE_STEPS, _LOOSE = 64, 5e-3


class _Target(NamedTuple):
    """What is widened to, the dtypes that were kept all the same, and whether solvers are run further than they ask for."""

    dtype: Any
    leaks: set
    tight: bool


def wide_dtype() -> Any:
    """float64, or float32 on a TPU, which has no float64."""
    return jnp.float32 if jax.default_backend() == "tpu" else jnp.float64


@contextlib.contextmanager
def wide_arithmetic(dtype: Any):
    """The JAX settings under which `dtype` exists and matrix products are exact to its rounding (no TF32, no bfloat16)."""
    x64 = jax.enable_x64(True) if dtype == jnp.float64 else contextlib.nullcontext()
    with x64, jax.default_matmul_precision("highest"):
        yield


def widen_leaf(leaf: Any, dtype: Any) -> Any:
    """A leaf in the wide dtype if it is a narrower float (or complex), unchanged if it is anything else."""
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    wide = _widened_dtype(leaf.dtype, dtype)
    return leaf if wide == leaf.dtype else jax.lax.convert_element_type(leaf, wide)


def widen(
    f: Callable, args: Sequence[Any], dtype: Any, leaks: set | None = None, tight: bool = False
) -> tuple[Callable, Any, core.ClosedJaxpr]:
    """`f` as traced at `args`, evaluated in `dtype`.

    Args:
      f: a traceable function of `args`.
      args: example arguments; their dtypes and shapes decide what is traced.
      dtype: the floating dtype that narrower ones are replaced by.
      leaks: dtypes that were kept all the same, by host callbacks and the like, are added to it at the first evaluation.
      tight: go on with loops that have nearly converged, and refine linear solves, so that the tolerance of a solver
        inside plays no part. Not the function as it is, but what it would be with a tighter tolerance.

    Returns:
      A function of arguments like `args` (narrow or wide), which returns the pytree that `f` returns, widened; call it
      inside `wide_arithmetic(dtype)`. The shapes and dtypes that `f` itself returns. And its jaxpr.
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    out_tree = jax.tree.structure(shapes)
    target = _Target(dtype, set() if leaks is None else leaks, tight)

    def wide(*args):
        leaves = [widen_leaf(leaf, dtype) for leaf in jax.tree.leaves(args)]
        return jax.tree.unflatten(out_tree, _evaluate(closed.jaxpr, closed.consts, leaves, target))

    return wide, shapes, closed


def _widened_dtype(dtype, wide):
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < jnp.finfo(wide).bits:
        return jnp.dtype(wide)
    if jnp.issubdtype(dtype, jnp.complexfloating) and wide == jnp.float64:
        return jnp.dtype(jnp.complex128)
    return dtype


def _evaluate(jaxpr, consts, args, wide) -> list[Any]:
    """The outputs of a jaxpr for wide arguments."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom):
        return widen_leaf(atom.val if isinstance(atom, core.Literal) else values[atom], wide.dtype)

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        with eqn.ctx.manager:
            outputs = _RULES.get(eqn.primitive.name, _bind)(eqn, inputs, wide)
        values.update(zip(eqn.outvars, [widen_leaf(out, wide.dtype) for out in outputs], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn, inputs, wide):
    """Any primitive without a rule: on wide inputs if it takes them, else in its own dtypes."""
    narrow = [
        atom.aval for atom in [*eqn.invars, *eqn.outvars] if _widened_dtype(atom.aval.dtype, wide.dtype) != atom.aval.dtype
    ]
    if narrow and eqn.primitive.name not in _OWN_DTYPE:
        # Which primitives take float64 is not written down anywhere but in their own checks: ask them.
        with contextlib.suppress(TypeError, ValueError, NotImplementedError):
            params = {name: _widened_param(value, wide) for name, value in eqn.params.items()}
            return _outputs(eqn, eqn.primitive.bind(*inputs, **params))
    if narrow:
        wide.leaks.update(a.aval.dtype for a in eqn.invars if a.aval in narrow)
        inputs = [
            x if x.dtype == atom.aval.dtype else x.astype(atom.aval.dtype) for x, atom in zip(inputs, eqn.invars, strict=True)
        ]
    return _outputs(eqn, eqn.primitive.bind(*inputs, **eqn.params))


def _outputs(eqn, out):
    return out if eqn.primitive.multiple_results else [out]


def _widened_param(value, wide):
    """A parameter of an equation: dtypes and jaxprs in it are widened, precision settings dropped."""
    if isinstance(value, core.ClosedJaxpr):
        return _widened_jaxpr(value, wide)
    if isinstance(value, core.Jaxpr):
        return _widened_jaxpr(core.ClosedJaxpr(value, ()), wide).jaxpr if not value.constvars else value
    if isinstance(value, jax.lax.Precision | jax.lax.DotAlgorithm | jax.lax.DotAlgorithmPreset):
        return None
    if isinstance(value, jnp.dtype | type) and jnp.issubdtype(value, jnp.inexact):
        return _widened_dtype(jnp.dtype(value), wide.dtype)
    return value


def _widened_jaxpr(closed, wide):
    avals = [jax.ShapeDtypeStruct(a.shape, _widened_dtype(a.dtype, wide.dtype)) for a in closed.in_avals]
    return jax.make_jaxpr(lambda *args: _evaluate(closed.jaxpr, closed.consts, args, wide))(*avals)


def _call(name):
    """A call: its body, evaluated in place. Custom derivative rules play no part in a function's value."""

    def rule(eqn, inputs, wide):
        body = eqn.params[name]
        consts = body.consts if isinstance(body, core.ClosedJaxpr) else ()
        return _evaluate(getattr(body, "jaxpr", body), consts, inputs, wide)

    return rule


def _composite(eqn, inputs, wide):
    """A primitive that JAX 0.12 makes of others, such as `custom_root`: what it stands for, as its user traced it."""
    primitive = eqn.params["_prim"]
    avals = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars]
    closed = jax.make_jaxpr(lambda *leaves: jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, leaves))))(
        *avals
    )
    return _evaluate(closed.jaxpr, closed.consts, inputs, wide)


def _same(eqn, inputs, wide):
    """`reduce_precision`: a cast to a narrower format and back, and like every cast in wide arithmetic it rounds nothing."""
    return inputs


def _cond(eqn, inputs, wide):
    branches = [lambda *args, b=b: _evaluate(b.jaxpr, b.consts, args, wide) for b in eqn.params["branches"]]
    return jax.lax.switch(inputs[0], branches, *inputs[1:])


def _while(eqn, inputs, wide):
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    n, m = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, init = inputs[:n], inputs[n : n + m], inputs[n + m :]
    inner = wide._replace(tight=False)  # the outermost loop alone is run further, or nested ones would multiply
    going = lambda carry: _evaluate(cond.jaxpr, cond.consts, [*cond_consts, *carry], inner)[0]  # noqa: E731
    step = lambda carry: _evaluate(body.jaxpr, body.consts, [*body_consts, *carry], inner)  # noqa: E731

    def step_of_those_that_go_on(carry):
        on = going(carry)
        return [
            jnp.where(on.reshape(on.shape + (1,) * (a.ndim - on.ndim)), b, a) for a, b in zip(carry, step(carry), strict=True)
        ]

    # Under `vmap` the loops of a batch are one, whose condition has the batch's shape.
    batched = cond.out_avals[0].shape != ()
    end = jax.lax.while_loop(lambda carry: jnp.any(going(carry)), step_of_those_that_go_on if batched else step, list(init))
    return _further(step, end) if wide.tight else end


def _further(step, end):
    """The values of a loop after more steps, if it was about to converge; steps that would not be finite are not taken."""

    def size(xs):
        return sum(jnp.sum(jnp.abs(x) ** 2) for x in xs if jnp.issubdtype(x.dtype, jnp.inexact))

    def more(_, carry):
        new = step(carry)
        fine = jnp.isfinite(size(new))
        return [jnp.where(fine, b, a) for a, b in zip(carry, new, strict=True)]

    new = jax.lax.fori_loop(0, _MORE_STEPS, more, list(end))
    moved = [b - a for a, b in zip(end, new, strict=True) if jnp.issubdtype(a.dtype, jnp.inexact)]
    converging = size(moved) <= _LOOSE**2 * size(end)
    return [jnp.where(converging, b, a) for a, b in zip(end, new, strict=True)]


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many are carried; JAX 0.12 says it in another form than 0.10."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def _scan(eqn, inputs, wide):
    body = eqn.params["jaxpr"]
    n, m = scan_counts(eqn.params)
    further = wide.tight and _only_carries(eqn)
    inner = wide._replace(tight=wide.tight and not further)

    def step(carry, x):
        outputs = _evaluate(body.jaxpr, body.consts, [*inputs[:n], *carry, *x], inner)
        return outputs[:m], outputs[m:]

    carry, ys = jax.lax.scan(
        step,
        list(inputs[n : n + m]),
        list(inputs[n + m :]),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    if further:
        carry = _further(lambda carry: step(carry, [])[0], carry)
    return [*carry, *ys]


def _linear_solve(eqn, inputs, wide):
    """`custom_linear_solve`: its solver, on the solver's own constants and the right-hand sides."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    matvec_consts, rhs = inputs[: lengths.matvec], inputs[sum(lengths) :]
    start = lengths.matvec + lengths.vecmat
    solver_consts, inner = inputs[start : start + lengths.solve], wide._replace(tight=False)
    solve = lambda b: _evaluate(jaxprs.solve.jaxpr, jaxprs.solve.consts, [*solver_consts, *b], inner)  # noqa: E731
    x = solve(rhs)
    if not wide.tight:
        return x

    def residual(x):
        return [
            b - y
            for b, y in zip(rhs, _evaluate(jaxprs.matvec.jaxpr, jaxprs.matvec.consts, [*matvec_consts, *x], wide), strict=True)
        ]

    def size(v):
        return functools.reduce(jnp.add, [jnp.sum(jnp.abs(a) ** 2) for a in v])

    # A residual that is not small is no tolerance but a mistake, and stays one.
    loose = size(residual(x)) < _LOOSE**2 * size(rhs)

    def refined(_, x):
        rest = residual(x)
        scale = jnp.sqrt(size(rest) / size(rhs))  # as large as the right-hand side again, for a tolerance that is absolute
        scale = jnp.where(scale > 0, scale, 1)
        return [jnp.where(loose, a + scale * d, a) for a, d in zip(x, solve([r / scale for r in rest]), strict=True)]

    return jax.lax.fori_loop(0, 4, refined, list(x))


def has_solver(jaxpr: Any) -> bool:
    """Whether a jaxpr holds, at any depth, what `tight` runs further: a linear solve, or a loop that only carries values."""
    return any_equation(
        jaxpr,
        lambda eqn: (
            eqn.primitive.name in ("custom_linear_solve", "while") or (eqn.primitive.name == "scan" and _only_carries(eqn))
        ),
    )


def _only_carries(eqn):
    """Whether a scan neither takes nor gives anything step by step: a `fori_loop`."""
    return sum(scan_counts(eqn.params)) == len(eqn.invars) and scan_counts(eqn.params)[1] == len(eqn.outvars)


def any_equation(jaxpr: Any, condition: Callable[[Any], bool]) -> bool:
    """Whether an equation of a jaxpr, or of one inside it at any depth, fulfils a condition."""
    for eqn in jaxpr.eqns:
        if condition(eqn):
            return True
        for param in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns") and any_equation(inner, condition):
                return True
    return False


_RULES = {
    "jit": _call("jaxpr"),
    "closed_call": _call("call_jaxpr"),
    "core_call": _call("call_jaxpr"),
    "eval_jaxpr": _call("call_jaxpr"),
    "remat2": _call("jaxpr"),
    "checkpoint": _call("jaxpr"),
    "custom_jvp_call": _call("call_jaxpr"),
    "custom_vjp_call": _call("call_jaxpr"),
    "call_hi_primitive": _composite,
    "reduce_precision": _same,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "custom_linear_solve": _linear_solve,
}
