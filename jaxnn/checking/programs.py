"""What is compiled for a check: a scalar function and its gradient, traced once as the user runs
them, and evaluated in float64.

Programs are kept for the next check of the same function on arguments of the same kind, which then
compiles nothing. A function that cannot be traced is called step by step instead.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Static
from jaxnn._programs import kept
from jaxnn._validate import describe
from jaxnn.checking.custom_rules import rule_checker
from jaxnn.checking.findings import RuleReport
from jaxnn.checking.line import Line, along_program, one_by_one, split_like
from jaxnn.checking.solvers import RUN_FURTHER, has_solver
from jaxnn.numerical.float64 import narrow_dtypes, wide_arithmetic, wide_dtype, widen, widen_leaf
from jaxnn.numerical.interpret import Program, equations, same_program


class Settings(NamedTuple):
    """How the gradient is asked for.

    Attributes:
      automatic: by JAX, or else by hand.
      projected: whether the output is projected on a cotangent, and
      random: whether that is drawn.
      seed: of random projections.
      order: 2 for the gradient of a projection of the gradient.
      further: whether solvers inside run further than they ask for.
    """

    automatic: bool
    projected: bool
    random: bool
    seed: int
    order: int = 1
    further: bool = False


class Point(NamedTuple):
    """Where a function is checked: the leaves that are differentiated, and what else it is given.

    Attributes:
      leaves: that are differentiated.
      data: the other arrays, and the cotangent, or None.
    """

    leaves: list[jax.Array]
    data: tuple[list[jax.Array], PyTree | None]


@dataclasses.dataclass(frozen=True)
class Traced:
    """The programs of a function that JAX can trace.

    Attributes:
      own: value and gradient (None where that is given by hand) in the user's dtypes.
      wide: the same in float64; None where the gradient is given by hand.
      along: the values along a line.
      rules: checks the custom rules.
      narrow: dtypes in which parts of the function are evaluated all the same.
      rounding: the largest rounding, relative, of a float in the function.
      counts: the lengths of the first axes of what it closes over.
      has_solver: whether an iterative solver may be inside.
      deterministic: whether tracing it twice gives one function.
      notes: what is particular.
    """

    own: Callable
    wide: Callable | None
    along: Callable
    rules: Callable[[Any], tuple[RuleReport, ...]]
    narrow: frozenset[Any]
    rounding: float
    counts: frozenset[int]
    has_solver: bool
    deterministic: bool
    notes: tuple[str, ...]

    def line(self, point: Point, dtype: Any) -> Line:
        """The function along lines through a point."""
        leaves = widened(point.leaves, dtype)

        def run(direction, steps):
            with wide_arithmetic(dtype):
                return np.asarray(self.along(leaves, direction, steps, point.data))

        def values(direction, steps):
            try:
                return run(direction, steps)
            except Exception:  # a host callback may raise anything
                return one_by_one(lambda t: run(direction, np.array([t]))[0], steps)

        coarsest = max([dtype, *self.narrow], key=lambda kind: jnp.finfo(kind).eps)
        return Line(values, leaves, float(jnp.finfo(coarsest).eps))

    def wide_gradient(self, point: Point, dtype: Any, shake: float = 0.0) -> list[np.ndarray]:
        """The gradient in float64; `shake` moves the point, in roundings of its own dtypes."""
        assert self.wide is not None
        leaves = widened(point.leaves, dtype)
        with wide_arithmetic(dtype):
            if shake:
                roundings = [shake * float(jnp.finfo(x.dtype).eps) for x in point.leaves]
                signs = random_like(leaves, 0)
                triples = zip(leaves, roundings, signs, strict=True)
                leaves = [x * (1 + rounding * sign) for x, rounding, sign in triples]
            return [np.asarray(g, np.float64) for g in self.wide(leaves, point.data)[1]]


@dataclasses.dataclass(frozen=True)
class Eager:
    """A function that JAX cannot trace, called step by step.

    Attributes:
      value: the function.
      own: value and gradient (None where that is given by hand).
    """

    value: Callable
    own: Callable
    wide: None = None
    narrow: frozenset[Any] = frozenset()
    rounding: float = 0.0
    counts: frozenset[int] = frozenset()
    has_solver: bool = False
    deterministic: bool = True
    notes: tuple[str, ...] = ("the function cannot be traced: it was called step by step",)

    def line(self, point: Point, dtype: Any) -> Line:
        """The function along lines: on float64 leaves if it takes them, else in its own dtypes."""
        leaves, kind = self._accepted(point, dtype)
        origin = np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])

        def at(direction, t):
            with wide_arithmetic(kind):
                parts = split_like(origin + t * direction, leaves)
                pairs = zip(parts, leaves, strict=True)
                return float(
                    self.value([jnp.asarray(x, leaf.dtype) for x, leaf in pairs], point.data)
                )

        epsilon = max(float(jnp.finfo(x.dtype).eps) for x in leaves)
        return Line(lambda v, steps: np.array([at(v, t) for t in steps]), leaves, epsilon)

    def rules(self, args: Any) -> tuple[RuleReport, ...]:
        """None: custom rules are found in traced functions alone."""
        return ()

    def _accepted(self, point: Point, dtype: Any) -> tuple[Sequence[Any], Any]:
        """The leaves that the function takes, and the dtype that they ask for, if it is another."""
        leaves = widened(point.leaves, dtype)
        try:
            with wide_arithmetic(dtype):
                out = np.asarray(self.value(leaves, point.data))
        except (TypeError, ValueError):
            return point.leaves, None
        wide = out.dtype == np.float64 and bool(np.isfinite(out))
        return (leaves, dtype) if wide else (point.leaves, None)


Programs = Traced | Eager


def prepare(call: Partition, point: Point, settings: Settings) -> Programs:
    """The programs for a call, new or kept."""
    avals = jax.tree.map(lambda x: _form(x), point)
    leaves, tree = jax.tree.flatten(avals)
    kind = tuple(leaves), tree, settings, jnp.result_type(float)
    return kept(_build, call.static, *kind, values=point)


def _form(x: Any) -> jax.ShapeDtypeStruct:
    """A Python number stays one that takes the dtype of what it is added to."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=getattr(x, "weak_type", False))


def widened(leaves: Sequence[Any], dtype: Any) -> list[Any]:
    """Leaves in the wide dtype."""
    with wide_arithmetic(dtype):
        return [widen_leaf(x, dtype) for x in leaves]


def random_like(tree: PyTree, seed: int) -> list[jax.Array]:
    """Weights for a projection, drawn by NumPy, so that they are the same with x64 on or off."""
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.uniform(0.5, 1.5, x.shape) * rng.choice([-1, 1], x.shape), x.dtype)
        for x in jax.tree.leaves(tree)
    ]


def _build(
    static: Static, avals: tuple[Any, ...], tree: Any, settings: Settings, default_dtype: Any
) -> Programs:
    point = jax.tree.unflatten(tree, avals)
    value, dtype = _scalar(static, settings), wide_dtype()
    rules = RUN_FURTHER if settings.further else None
    try:
        shapes = jax.eval_shape(lambda p, data: static.value(p, data[0]), *point)
        _require_output(shapes, point.data[1], settings)
        wide = widen(value, point, dtype, rules)
    except jax.errors.JAXTypeError:
        by_hand = lambda leaves, data: (value(leaves, data), None)  # noqa: E731
        return Eager(value, _eager_gradient(value) if settings.automatic else by_hand)
    program = wide.program
    # Traced anew, through another function: the trace of the same one is kept.
    again = jax.make_jaxpr(lambda leaves, data: value(leaves, data))(*point)
    own, wide_both, notes = _gradients(value, point, program, settings)
    return Traced(
        own=own,
        wide=wide_both,
        along=along_program(wide.call),
        rules=rule_checker(program, dtype) if settings.automatic else (lambda args: ()),
        narrow=narrow_dtypes(program, dtype),
        rounding=_largest_rounding(program),
        counts=frozenset(n for const in program.consts for n in np.shape(const)[:1]),
        has_solver=has_solver(program),
        deterministic=same_program(program, again),
        notes=notes,
    )


def _gradients(
    value: Callable, point: Point, program: Program, settings: Settings
) -> tuple[Callable, Callable | None, tuple[str, ...]]:
    """Value and gradient in the user's dtypes and in float64; a note on how, if unusual."""
    if not settings.automatic:
        return jax.jit(lambda leaves, data: (value(leaves, data), None)), None, ()
    rules = RUN_FURTHER if settings.further else None
    both, notes = jax.value_and_grad(value), ()
    try:
        wide = widen(both, point, wide_dtype(), rules)
    except ValueError:
        if not any(eqn.primitive is primitives.while_p for eqn in equations(program)):
            raise
        both = _forward_gradient(value)
        wide = widen(both, point, wide_dtype(), rules)
        notes = ("reverse mode does not exist for this function: the forward mode was checked",)
    return jax.jit(both), jax.jit(wide.call), notes


def _scalar(static: Static, settings: Settings) -> Callable:
    """The function whose gradient is checked, of the leaves and the data."""

    def scalar(leaves, data):
        out = static.value(leaves, data[0])
        if not settings.projected:
            return out
        weights = random_like(out, settings.seed) if settings.random else data[1]
        pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(out), strict=True)
        return functools.reduce(jnp.add, [jnp.sum(w * x) for w, x in pairs])

    def projected_gradient(leaves, data):
        gradient = jax.grad(scalar)(leaves, data)
        pairs = zip(random_like(gradient, settings.seed + 1), gradient, strict=True)
        return functools.reduce(jnp.add, [jnp.sum(w * g) for w, g in pairs])

    return scalar if settings.order == 1 else projected_gradient


def _eager_gradient(value: Callable) -> Callable:
    def both(leaves, data):
        try:
            return jax.value_and_grad(value)(leaves, data)
        except jax.errors.JAXTypeError as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(
                f"`f` must be differentiable by JAX, or `gradient` must be given. Got {reason}"
            ) from None

    return both


def _forward_gradient(value: Callable) -> Callable:
    """Value and gradient with one jvp for each entry."""

    def both(leaves, data):
        def by_leaf(k):
            def one(i):
                tangents = [jnp.zeros_like(x) for x in leaves]
                tangents[k] = tangents[k].ravel().at[i].set(1).reshape(leaves[k].shape)
                return jax.jvp(lambda leaves: value(leaves, data), (leaves,), (tangents,))[1]

            return jax.lax.map(one, jnp.arange(leaves[k].size)).reshape(leaves[k].shape)

        return value(leaves, data), [by_leaf(k) for k in range(len(leaves))]

    return both


def _require_output(shapes: PyTree, cotangent: PyTree, settings: Settings) -> None:
    leaves, got = jax.tree.leaves(shapes), jax.tree.map(describe, shapes)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise TypeError(f"`f` must return real floating-point output. Got {got}.")
    if not settings.projected:
        if not hasattr(shapes, "shape") or shapes.shape != ():
            raise TypeError(
                "`f` must return a scalar, or `cotangent` must say how to project its output (a "
                f"pytree like it, or 'random'). Got {got}."
            )
    elif not settings.random:
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


def _largest_rounding(program: Program) -> float:
    dtypes = {v.aval.dtype for eqn in equations(program) for v in eqn.outvars}
    floats = [kind for kind in dtypes if jnp.issubdtype(kind, jnp.floating)]
    return max((float(jnp.finfo(kind).eps) for kind in floats), default=0.0)
