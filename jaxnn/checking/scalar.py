"""The scalar function whose gradient is checked.

It is the user's function, projected onto a cotangent if it is not scalar; or, for a higher order, a
random projection of its gradient.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxnn._validate import describe
from jaxnn.checking.settings import Settings
from jaxnn.numerical.interpret import Program, equations, has_custom_rule
from jaxnn.numerical.sources import source

# A note on a function whose output is not one real number.
PROJECTED = "the output is not a real scalar: a random projection of it was checked"
MAYBE_AUXILIARY = "; set `has_aux=True` if its second part is auxiliary"


def projection(tree: PyTree, weights: Sequence[Any]) -> jax.Array:
    """The sum of the products of weights and an output's leaves; its real part if complex.

    Infinite entries (masks) are skipped: they have no slope.
    """
    pairs = zip(weights, jax.tree.leaves(tree), strict=True)
    terms = [
        jnp.sum(jnp.real(w * jnp.where(jnp.isinf(x), 0, x)))
        for w, x in pairs
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    ]
    return functools.reduce(jnp.add, terms)


def random_like(tree: PyTree, seed: int) -> list[jax.Array]:
    """Random weights for a projection, drawn by NumPy so that x64 mode does not change them."""
    rng = np.random.default_rng(seed)

    def drawn(x):
        shape, dtype = jnp.shape(x), jnp.result_type(x)
        size = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            size = size * np.exp(1j * rng.uniform(0, 2 * np.pi, shape))
        return jnp.asarray(size, dtype if jnp.issubdtype(dtype, jnp.inexact) else float)

    return [drawn(x) for x in jax.tree.leaves(tree)]


def scalar_of(value: Callable, settings: Settings) -> Callable:
    """The scalar function of leaves and data whose gradient is checked; `value` is the user's."""
    if settings.order > 1:
        lower = scalar_of(value, settings._replace(order=settings.order - 1))
        seed, derive = settings.seed + settings.order - 1, jax.grad(lower)
        if settings.forward:
            derive = lambda leaves, data: forward_gradient(lower)(leaves, data)[1]  # noqa: E731

        def projected_gradient(leaves, data):
            gradient = derive(leaves, data)
            return projection(gradient, random_like(gradient, seed))

        return projected_gradient

    def scalar(leaves, data):
        out, (_, cotangent) = value(leaves, data), data
        if not settings.projected:
            return out
        random = cotangent is None
        weights = random_like(out, settings.seed) if random else jax.tree.leaves(cotangent)
        return projection(out, weights)

    return scalar


def forward_gradient(value: Callable, tangent: Any = 1) -> Callable:
    """A function that returns value and gradient, with one JVP for each entry of all leaves.

    The gradient is `tangent`, the tangent of each entry, times that of `value`.
    """

    def both(leaves, data):
        ends = np.cumsum([x.size for x in leaves])

        def slope(entry):
            def moved(x, end):
                chosen = jnp.arange(x.size) + (end - x.size) == entry
                return jnp.where(chosen, jnp.asarray(tangent, x.dtype), 0).reshape(x.shape)

            tangents = list(map(moved, leaves, ends.tolist()))
            return jax.jvp(lambda leaves: value(leaves, data), (leaves,), (tangents,))[1]

        slopes = jnp.split(jax.lax.map(slope, jnp.arange(ends[-1])), ends[:-1])
        pairs = zip(slopes, leaves, strict=True)
        return value(leaves, data), [g.reshape(x.shape) for g, x in pairs]

    return both


def is_real_scalar(shapes: PyTree) -> bool:
    """Whether an output is one real number."""
    real = hasattr(shapes, "dtype") and jnp.issubdtype(shapes.dtype, jnp.floating)
    return real and shapes.shape == ()


def rules_of(program: Program) -> set[str]:
    """The names of the functions with custom rules that a program calls."""
    return {source(e)[0] for e in equations(program) if has_custom_rule(e)}


def require_known(trust: Sequence[str], program: Program) -> None:
    """Refuse names of functions without a custom rule in the program."""
    rules = rules_of(program)
    for name in trust:
        if name not in rules:
            there = ", ".join(sorted(rules)) or "none"
            raise ValueError(
                "`trust` must name functions with custom rules (`jax.custom_jvp`, "
                f"`jax.custom_vjp`) that `f` calls (here: {there}). Got {name!r}; for "
                "`stop_gradient`, set stop_gradient='held'."
            )


def require_output(shapes: PyTree, cotangent: PyTree, settings: Settings) -> None:
    """Refuse an output that is not differentiable, and a cotangent that does not match it."""
    leaves, got = jax.tree.leaves(shapes), jax.tree.map(describe, shapes)
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        raise TypeError(f"`f` must return floating-point output. Got {got}.")
    if not settings.projected:
        if not is_real_scalar(shapes):
            raise TypeError(
                "`f` must return a scalar, or `cotangent` must say how to project its output (a "
                f"pytree like it, or 'random'). Got {got}."
            )
    elif cotangent is not None:
        if jax.tree.structure(cotangent) != jax.tree.structure(shapes):
            raise ValueError(
                "`cotangent` must have the structure of the output of `f`, "
                f"{jax.tree.structure(shapes)}. Got {jax.tree.structure(cotangent)}."
            )
        wanted = [leaf.shape for leaf in leaves]
        if (given := [np.shape(c) for c in jax.tree.leaves(cotangent)]) != wanted:
            raise ValueError(
                f"`cotangent` must have the shapes of the output of `f`, {wanted}. Got {given}."
            )
        for c, leaf in zip(jax.tree.leaves(cotangent), leaves, strict=True):
            if jnp.iscomplexobj(c) and not jnp.iscomplexobj(leaf):
                raise TypeError(
                    f"`cotangent` must be real where the output of `f` is. Got {describe(c)}."
                )
