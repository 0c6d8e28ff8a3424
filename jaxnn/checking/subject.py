"""What is checked: a scalar function and its gradient, traced once as the user runs them, widened, and compiled.

A subject is kept for the next check of the same function on arguments of the same kind, which then compiles nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnn._door import describe, is_key
from jaxnn.checking.probe import compiled_probe
from jaxnn.checking.rules import rule_checker
from jaxnn.numerical.widen import any_equation, wide_arithmetic, wide_dtype, widen, widen_leaf


class Settings(NamedTuple):
    """How the gradient is asked for: which arguments, by JAX or by hand, and how the output is projected."""

    argnums: int | tuple[int, ...]
    automatic: bool
    projected: bool
    random: bool
    seed: int


class Subject(NamedTuple):
    """A scalar function of (points, data), its gradient, and its probe; kept for the next check of the same kind.

    Attributes:
      value: in the user's dtypes.
      own: value and gradient in the user's dtypes, compiled.
      wide: the same in float64; None if the function cannot be traced.
      leaks: dtypes in which parts of the function were evaluated all the same, filled in by the first evaluation.
      probe: the compiled probe, or None.
      closed: the traced function, or None.
      rounding: the largest rounding, relative, of a float in it.
      rules: checks the custom rules in it.
      forward: the slope along a random direction by forward mode, and the direction; None where there is no such mode.
      notes: what is particular.
    """

    value: Callable
    own: Callable
    wide: Callable | None
    leaks: set
    probe: Callable | None
    closed: Any
    rounding: float
    rules: Callable | None
    forward: Callable | None
    notes: tuple[str, ...]


def prepare(call: Any, data: Any, settings: Settings, order: int, tight: bool = False) -> Subject:
    """The subject of a call, new or kept; `tight` runs solvers inside further than they ask for."""
    avals = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (call.with_role("differentiate"), data))
    leaves, tree = jax.tree.flatten(avals)
    key = (call.form, tuple(leaves), tree, settings, order, tight, jnp.result_type(float))
    return (_build if call.form.hashable else _build.__wrapped__)(*key)


def wide_gradient(subject: Subject, call: Any, data: Any, shake: float = 0.0) -> list[np.ndarray]:
    """The gradient that is checked, in float64; a list over leaves. `shake` moves the point, in roundings of its own dtypes."""
    assert subject.wide is not None
    dtype = wide_dtype()
    with wide_arithmetic(dtype):
        points = [widen_leaf(x, dtype) for x in call.with_role("differentiate")]
        if shake:
            up = [float(jnp.finfo(x.dtype).eps) for x in call.with_role("differentiate")]
            signs = _random_like(points, 0)
            points = [x * (1 + shake * epsilon * sign) for x, epsilon, sign in zip(points, up, signs, strict=True)]
        return [np.array(g, np.float64) for g in subject.wide(points, data)[1]]


@functools.lru_cache(maxsize=64)
def _build(form, avals, tree, settings, order, tight, _default_dtype):
    points, data = jax.tree.unflatten(tree, avals)

    def scalar(points, data):
        out = form.value(points, data[0])
        if not settings.projected:
            return out
        weights = _random_like(out, settings.seed) if settings.random else data[1]
        products = [jnp.sum(w * x) for w, x in zip(jax.tree.leaves(weights), jax.tree.leaves(out), strict=True)]
        return functools.reduce(jnp.add, products)

    def projected_gradient(points, data):
        gradient = jax.grad(scalar)(points, data)
        weights = _random_like(gradient, settings.seed + 1)
        return functools.reduce(jnp.add, [jnp.sum(w * g) for w, g in zip(weights, gradient, strict=True)])

    value = scalar if order == 1 else projected_gradient
    dtype = wide_dtype()
    leaks: set = set()
    try:
        _require_output(jax.eval_shape(lambda points, data: form.value(points, data[0]), points, data), data[1], settings)
        wide_value, _, closed = widen(value, (points, data), dtype, leaks, tight)
    except jax.errors.JAXTypeError:
        note = "the function cannot be traced: it was called step by step"
        own = _eager_gradient(value) if settings.automatic else lambda points, data: (value(points, data), None)
        return Subject(value, own, None, leaks, None, None, 0.0, None, None, (note,))
    notes, rounding = [], _largest_rounding(closed.jaxpr)
    # Traced anew, through another function: the trace of the same one is kept.
    again = jax.make_jaxpr(lambda points, data: value(points, data))(points, data)
    if not _same_constants(closed, again):
        notes.append("not deterministic: tracing the function twice gives two functions")
    if not settings.automatic:
        only_value = jax.jit(lambda points, data: (value(points, data), None))
        return Subject(value, only_value, None, leaks, compiled_probe(wide_value), closed, rounding, None, None, tuple(notes))
    both = jax.value_and_grad(value)
    try:
        wide_both, _, _ = widen(both, (points, data), dtype, tight=tight)
        one_way = any_equation(closed.jaxpr, lambda eqn: eqn.primitive.name == "custom_vjp_call")  # has no forward mode
        forward = None if one_way else _forward_product(value, points, data, settings.seed)
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        notes.append("reverse mode does not exist for this function: the forward mode was checked")
        both, forward = _value_and_forward_gradient(value), None
        wide_both, _, _ = widen(both, (points, data), dtype, tight=tight)
    rules, probe = rule_checker(closed, dtype), compiled_probe(wide_value)
    return Subject(value, jax.jit(both), jax.jit(wide_both), leaks, probe, closed, rounding, rules, forward, tuple(notes))


def _forward_product(value, points, data, seed):
    """The slope along a random direction by forward mode, in float64, and the direction: one side of the dot-product test."""

    def forward(points, data):
        direction = _random_like(points, seed)
        return jax.jvp(lambda points: value(points, data), (points,), (direction,))[1], direction

    return jax.jit(widen(forward, (points, data), wide_dtype())[0])


def _eager_gradient(value):
    def both(points, data):
        try:
            return jax.value_and_grad(value)(points, data)
        except jax.errors.JAXTypeError as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(f"`f` must be differentiable by JAX, or `gradient` must be given. Got: {reason}") from None

    return both


def _value_and_forward_gradient(value):
    """Value and gradient with one jvp for each entry."""

    def both(points, data):
        def by_leaf(k):
            def one(i):
                tangents = [jnp.zeros_like(x) for x in points]
                tangents[k] = tangents[k].ravel().at[i].set(1).reshape(points[k].shape)
                return jax.jvp(lambda points: value(points, data), (points,), (tangents,))[1]

            return jax.lax.map(one, jnp.arange(points[k].size)).reshape(points[k].shape)

        return value(points, data), [by_leaf(k) for k in range(len(points))]

    return both


def _require_output(shapes, cotangent, settings):
    leaves = jax.tree.leaves(shapes)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves) or not leaves:
        raise TypeError(f"`f` must return real floating-point output. Got {jax.tree.map(describe, shapes)}.")
    if not settings.projected:
        if not hasattr(shapes, "shape") or shapes.shape != ():
            raise TypeError(
                f"`f` must return a scalar, or `cotangent` must say how to project its output (a pytree like it, or "
                f"'random'). Got {jax.tree.map(describe, shapes)}."
            )
    elif not settings.random:
        if jax.tree.structure(cotangent) != jax.tree.structure(shapes):
            raise ValueError(
                f"`cotangent` must have the structure of the output of `f`, {jax.tree.structure(shapes)}. "
                f"Got {jax.tree.structure(cotangent)}."
            )
        got, wanted = [np.shape(c) for c in jax.tree.leaves(cotangent)], [leaf.shape for leaf in leaves]
        if got != wanted:
            raise ValueError(f"`cotangent` must have the shapes of the output of `f`, {wanted}. Got {got}.")


def _random_like(tree, seed):
    """Weights for a projection, drawn by NumPy, so that they are the same with x64 on or off."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.uniform(0.5, 1.5, x.shape) * rng.choice([-1, 1], x.shape), x.dtype) for x in jax.tree.leaves(tree)]


def _same_constants(first, second):
    pairs = zip(first.consts, second.consts, strict=False)
    same = all(a is b or isinstance(a, Tracer) or _equal(a, b) for a, b in pairs)
    return same and len(first.consts) == len(second.consts) and str(first.jaxpr) == str(second.jaxpr)


def _largest_rounding(jaxpr):
    found = {0.0}

    def look(eqn):
        found.update(float(jnp.finfo(v.aval.dtype).eps) for v in eqn.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating))
        return False

    any_equation(jaxpr, look)
    return max(found)


def _equal(a, b):
    if is_key(a):
        return is_key(b) and _equal(jax.random.key_data(a), jax.random.key_data(b))
    a, b = np.asarray(a), np.asarray(b)
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc")
