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
from jax.extend import core
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Static
from jaxnn._programs import kept
from jaxnn._validate import describe
from jaxnn.checking.detached import beside, holding
from jaxnn.checking.joined import joined, on_joined
from jaxnn.checking.line import Line, along_program, one_by_one
from jaxnn.checking.moves import drawer
from jaxnn.checking.packed import Packing
from jaxnn.checking.solvers import RUN_FURTHER, has_solver
from jaxnn.checking.tape import Tape
from jaxnn.numerical.float64 import narrow_dtypes, wide_arithmetic, wide_dtype, widen, widen_leaf
from jaxnn.numerical.interpret import (
    CUSTOM_RULES,
    Program,
    equations,
    prints,
    pruned,
    same_program,
    source,
    with_own_constants,
)

# Roundings that a gradient in its own dtype is off by along a random direction, where no digits are
# lost. What is off by more is looked into, at a cost; it is not wrong for that.
OF_CLAIMS = 16


class Settings(NamedTuple):
    """How the gradient is asked for.

    Attributes:
      automatic: by JAX, or else by hand.
      projected: whether the output is projected on a cotangent, and
      random: whether that is drawn.
      seed: of random projections.
      order: n for the gradient of a projection of the gradient of order n - 1.
      forward: by forward mode; None for reverse mode where there is one.
      further: whether solvers inside run further than they ask for.
      held: whether what `stop_gradient` stops is held at its value at the point.
      trust: names of functions whose custom rules are meant to differ from them; held too.
    """

    automatic: bool
    projected: bool
    random: bool
    seed: int
    order: int = 1
    forward: bool | None = None
    further: bool = False
    held: bool = False
    trust: tuple[str, ...] = ()


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
      joined: how they take the leaves.
      packing: how they give the gradient by what they take.
      own: value and gradient (None where that is given by hand) in the user's dtypes.
      wide: the same in float64; None where the gradient is given by hand.
      along: the values along a line.
      narrow: dtypes in which parts of the function are evaluated all the same.
      rounding: the largest rounding, relative, of a float in the function.
      counts: the lengths of the first axes of what it closes over.
      has_solver: whether an iterative solver may be inside.
      deterministic: whether tracing it twice gives one function.
      program: the function itself, traced.
      notes: what is particular.
      tapes: of the function, by the dtype that they are in and whether loops are laid out.
    """

    joined: Packing
    packing: Packing
    own: Callable
    wide: Callable | None
    along: Callable
    narrow: frozenset[Any]
    rounding: float
    counts: frozenset[int]
    has_solver: bool
    program: Program
    deterministic: bool = True
    notes: tuple[str, ...] = ()
    tapes: dict[Any, Tape] = dataclasses.field(default_factory=dict)

    def tape(self, point: Point, dtype: Any = None, unrolled: bool = False) -> Tape:
        """The function's tape, in its own dtypes or in a wide one; kept."""
        if (kind := (dtype, unrolled)) not in self.tapes:
            moving = [k < len(point.leaves) for k in range(len(jax.tree.leaves(point)))]
            self.tapes[kind] = Tape(self.program, moving, dtype, unrolled)
        return self.tapes[kind]

    def line(self, point: Point, dtype: Any, watch: Callable[[Line], None]) -> Line:
        """The function along lines through a point."""
        leaves = self._taken(point.leaves)

        def values(moves, steps):
            run = lambda steps: np.asarray(  # noqa: E731
                self.along(leaves, moves, steps, point.data)
            )
            with wide_arithmetic(dtype):
                try:
                    return run(steps)
                except Exception:  # a host callback may raise anything
                    return one_by_one(lambda t: run(np.array([t]))[0], steps)

        sizes, roundings = [x.size for x in point.leaves], _roundings(point, self.wide is None)
        epsilon, draw = float(jnp.finfo(dtype).eps), drawer(point.leaves, dtype, self.joined.groups)
        return Line(draw, values, sizes, epsilon, roundings, watch)

    def own_line(self, point: Point) -> Line:
        """The same in the function's own dtypes."""
        dtype = max((x.dtype for x in point.leaves), key=lambda kind: jnp.finfo(kind).bits)
        value = lambda _, moved, data: core.jaxpr_as_fun(self.program)(  # noqa: E731
            *jax.tree.leaves((moved, data))
        )[0]
        along = along_program(value, dtype)

        def values(moves, steps):
            moves = [jnp.asarray(v, x.dtype) for v, x in zip(moves, point.leaves, strict=True)]
            steps = jnp.asarray(steps, dtype)
            return np.asarray(along(point.leaves, moves, steps, point.data), np.float64)

        draw, sizes = drawer(point.leaves, dtype), [x.size for x in point.leaves]
        epsilon = max(self.rounding, float(jnp.finfo(dtype).eps))
        return Line(draw, values, sizes, epsilon, _roundings(point, True))

    def in_float64(self, point: Point, dtype: Any, shake: float = 0.0) -> tuple[float, list[Any]]:
        """Value and gradient in float64; `shake` moves the point, in roundings of its dtypes."""
        assert self.wide is not None
        leaves = point.leaves
        if shake:
            moved = []
            for k, x in enumerate(leaves):
                signs = np.random.default_rng(k).choice([-1, 1], x.shape)
                rounding = shake * float(jnp.finfo(x.dtype).eps)
                moved.append(np.asarray(x, np.float64) * (1 + rounding * signs))
            leaves = moved
        with wide_arithmetic(dtype):
            value, gradient = self.wide(self._taken(leaves), point.data)
            return float(value), self._by_leaf(gradient)

    def value_and_gradient(self, point: Point) -> tuple[Any, list[Any] | None]:
        """In the user's dtypes; no gradient where that is given by hand."""
        value, gradient = self.own(self._taken(point.leaves), point.data)
        return value, gradient and self._by_leaf(gradient)

    def _taken(self, leaves: Sequence[Any]) -> list[Any]:
        """What is given leaf by leaf, as the programs take it."""
        pairs = zip(self.joined.groups, self.joined.pack(leaves, np), strict=True)
        with jax.enable_x64(True):  # which keeps the dtype, whatever it is
            return [jax.device_put(x) if group[1:] else x for group, x in pairs]

    def _by_leaf(self, gradient: Sequence[Any]) -> list[Any]:
        """A gradient, as the programs give it, leaf by leaf."""
        return self.joined.unpack(self.packing.unpack(gradient))


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
    program: None = None
    notes: tuple[str, ...] = ("the function cannot be traced: it was called step by step",)

    def line(self, point: Point, dtype: Any, watch: Callable[[Line], None]) -> Line:
        """The function along lines: on float64 leaves if it takes them, else in its own dtypes."""
        leaves, kind = self._accepted(point, dtype)
        origin = [np.asarray(x, np.float64) for x in leaves]

        def values(moves, steps):
            moves = [np.asarray(v) for v in moves]

            def at(t):
                with wide_arithmetic(kind):
                    triples = zip(origin, moves, leaves, strict=True)
                    moved = [jnp.asarray(x + t * v, leaf.dtype) for x, v, leaf in triples]
                    return float(self.value(moved, point.data))

            return np.array([at(t) for t in steps])

        epsilon = max(float(jnp.finfo(x.dtype).eps) for x in leaves)
        draw, sizes = drawer(point.leaves, dtype), [x.size for x in point.leaves]
        return Line(draw, values, sizes, epsilon, _roundings(point, True), watch)

    def value_and_gradient(self, point: Point) -> tuple[Any, list[Any] | None]:
        """In the user's dtypes; no gradient where that is given by hand."""
        return self.own(point.leaves, point.data)

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
    kind = tuple(leaves), tree, settings, Packing.of(point.leaves), jnp.result_type(float)
    return kept(_build, call.static, *kind, values=point)


def _form(x: Any) -> jax.ShapeDtypeStruct:
    """A Python number stays one that takes the dtype of what it is added to."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=getattr(x, "weak_type", False))


def widened(leaves: Sequence[Any], dtype: Any) -> list[Any]:
    """Leaves in the wide dtype."""
    with wide_arithmetic(dtype):
        return [widen_leaf(x, dtype) for x in leaves]


def projection(tree: PyTree, weights: Sequence[Any]) -> jax.Array:
    """The sum of the products of weights and an output's leaves; of complex ones the real part.

    What is infinite is left out: masks are, and no slope can be taken of them.
    """
    pairs = zip(weights, jax.tree.leaves(tree), strict=True)
    terms = [
        jnp.sum(jnp.real(w * jnp.where(jnp.isinf(x), 0, x)))
        for w, x in pairs
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    ]
    return functools.reduce(jnp.add, terms)


def random_like(tree: PyTree, seed: int) -> list[jax.Array]:
    """Weights for a projection, drawn by NumPy, so that they are the same with x64 on or off."""
    rng = np.random.default_rng(seed)

    def drawn(x):
        shape, dtype = jnp.shape(x), jnp.result_type(x)
        size = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            size = size * np.exp(1j * rng.uniform(0, 2 * np.pi, shape))
        return jnp.asarray(size, dtype if jnp.issubdtype(dtype, jnp.inexact) else float)

    return [drawn(x) for x in jax.tree.leaves(tree)]


def _build(
    static: Static,
    avals: tuple[Any, ...],
    tree: Any,
    settings: Settings,
    packing: Packing,
    default_dtype: Any,
) -> Programs:
    point = jax.tree.unflatten(tree, avals)
    notes, mistakes = [], []
    try:
        program, shapes = _trace(static, point)
        same = same_program(pruned(program), pruned(_trace(static, point)[0]))
    except jax.errors.JAXTypeError:
        return _eager(static, settings)
    if not settings.projected and settings.automatic and not _is_real_scalar(shapes):
        settings = settings._replace(projected=True, random=True)
        notes.append("the output is no real scalar: a random projection of it was checked")
    _require_output(shapes, point.data[1], settings)
    _require_known(settings.trust, program)
    for forward in (False, True) if settings.forward is None else (settings.forward,):
        if forward and settings.forward is None:
            notes.append(
                "reverse mode does not exist for this function: the forward mode was checked"
            )
        chosen = settings._replace(forward=forward)
        try:
            traced = _traced(program, shapes, point, chosen, packing)
            return dataclasses.replace(traced, deterministic=same, notes=tuple(notes))
        except jax.errors.JAXTypeError:
            return _eager(static, settings)
        except Exception as mistake:  # of a rule: JAX and its users raise anything
            mistakes.append(mistake)
            if not settings.automatic:
                break
    if settings.order > 1:
        reason = str(mistakes[0]).partition("\n")[0]
        raise TypeError(
            f"`order` must be {settings.order - 1} here, as JAX has no derivative of the one "
            f"before by either mode. Got {settings.order}: {reason}"
        ) from mistakes[0]
    if settings.forward:
        mistakes[0].add_note("`modes` asks for forward mode, which there is none of here.")
    raise mistakes[0]


def _trace(static: Static, point: Point) -> tuple[Program, PyTree]:
    """The user's function as a program of a point, and the form of what it returns.

    A function that goes at once, so that it is traced each time; and see `widen` for constants.
    """
    f = lambda leaves, data: static.value(leaves, data[0])  # noqa: E731
    program, shapes = jax.make_jaxpr(f, return_shape=True)(*point)
    return with_own_constants(program), shapes


def _moving(value: Callable, settings: Settings) -> Callable:
    """The function of a point, where it is moved to, and data: what is held is so at the point."""
    if settings.held or settings.trust:
        return beside(value)
    return lambda _, moved, data: value(moved, data)


def _eager(static: Static, settings: Settings) -> Eager:
    value = _scalar_of(lambda leaves, data: static.value(leaves, data[0]), settings)
    by_hand = lambda leaves, data: (value(leaves, data), None)  # noqa: E731
    return Eager(value, _eager_gradient(value) if settings.automatic else by_hand)


def _traced(
    traced: Program, shapes: PyTree, point: Point, settings: Settings, packing: Packing
) -> Traced:
    """The programs for reverse or forward mode, out of a trace of the user's function."""
    program, dtype = _scalar(traced, shapes, point, settings), wide_dtype()
    taken = joined(program, packing)
    packing, of_all = packing.of_packed(taken), on_joined(program, taken)
    point = point._replace(leaves=taken.forms(point.leaves))
    # What the user prints is printed where the function runs as it is, and not at every step.
    rules = {primitive: lambda *_: [] for primitive in prints()}
    rules |= RUN_FURTHER if settings.further else {}

    def value(leaves, data):
        return of_all(leaves, jax.tree.leaves(data))[0]

    wide = widen(value, point, dtype, rules | holding(settings.held, settings.trust))
    if not settings.automatic:
        own, wide_both = jax.jit(lambda leaves, data: (value(leaves, data), None)), None
    else:
        apart = _forward_gradient(value) if settings.forward else jax.value_and_grad(value)

        def both(leaves, data):
            value, gradient = apart(leaves, data)
            return value, packing.pack(gradient)

        own, wide_both = jax.jit(both), jax.jit(widen(both, point, dtype, rules).call)
        if settings.forward:
            own.lower(*point)  # not before is a rule for reverse mode alone refused
    return Traced(
        joined=taken,
        packing=packing,
        own=own,
        wide=wide_both,
        along=along_program(_moving(wide.call, settings), dtype),
        narrow=narrow_dtypes(wide.program, dtype),
        rounding=_largest_rounding(program),
        counts=frozenset(n for const in program.consts for n in np.shape(const)[:1]),
        has_solver=has_solver(program),
        program=program,
    )


def _scalar(traced: Program, shapes: PyTree, point: Point, settings: Settings) -> Program:
    """The program whose gradient is checked, out of a trace of the user's function."""
    if not settings.projected and settings.order == 1:
        return traced

    def user(leaves, data):
        out = core.jaxpr_as_fun(traced)(*jax.tree.leaves((leaves, data)))
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return with_own_constants(jax.make_jaxpr(_scalar_of(user, settings))(*point))


def _scalar_of(value: Callable, settings: Settings) -> Callable:
    """The function whose gradient is checked, of the leaves and the data; `value` is the user's."""

    def scalar(leaves, data):
        out = value(leaves, data)
        if not settings.projected:
            return out
        return projection(
            out, random_like(out, settings.seed) if settings.random else _weights(data)
        )

    def projected_gradient(f, seed):
        def projected(leaves, data):
            if settings.forward:
                gradient = _forward_gradient(f)(leaves, data)[1]
            else:
                gradient = jax.grad(f)(leaves, data)
            return projection(gradient, random_like(gradient, seed))

        return projected

    function = scalar
    for level in range(1, settings.order):
        function = projected_gradient(function, settings.seed + level)
    return function


def _weights(data: Any) -> list[Any]:
    return jax.tree.leaves(data[1])


def _eager_gradient(value: Callable) -> Callable:
    def both(leaves, data):
        try:
            return jax.value_and_grad(value)(leaves, data)
        except jax.errors.JAXTypeError as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(
                "`f` must be differentiable by JAX (made of `jax.numpy`, not of NumPy), or "
                f"`gradient` must be given. Got {reason}"
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


def _is_real_scalar(shapes: PyTree) -> bool:
    real = hasattr(shapes, "dtype") and jnp.issubdtype(shapes.dtype, jnp.floating)
    return real and shapes.shape == ()


def _require_known(trust: Sequence[str], program: Program) -> None:
    """Refuse names that no rule in the function has."""
    rules = {source(e)[0] for e in equations(program) if e.primitive in CUSTOM_RULES}
    for name in trust:
        if name not in rules:
            there = ", ".join(sorted(rules)) or "none"
            raise ValueError(
                "`trust` must name functions with custom rules (`jax.custom_jvp`, "
                f"`jax.custom_vjp`) that `f` calls: {there}. Got {name!r}; what is stopped by "
                "`stop_gradient` is held by stop_gradient='held'."
            )


def _require_output(shapes: PyTree, cotangent: PyTree, settings: Settings) -> None:
    leaves, got = jax.tree.leaves(shapes), jax.tree.map(describe, shapes)
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        raise TypeError(f"`f` must return floating-point output. Got {got}.")
    if not settings.projected:
        if not _is_real_scalar(shapes):
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
        for c, leaf in zip(jax.tree.leaves(cotangent), leaves, strict=True):
            if jnp.iscomplexobj(c) and not jnp.iscomplexobj(leaf):
                raise TypeError(
                    f"`cotangent` must be real where the output of `f` is. Got {describe(c)}."
                )


def _roundings(point: Point, own: bool) -> list[float]:
    """How far off, relative, a gradient may be for being in its own dtypes, leaf by leaf."""
    return [OF_CLAIMS * float(jnp.finfo(x.dtype).eps) if own else 0.0 for x in point.leaves]


def _largest_rounding(program: Program) -> float:
    dtypes = {v.aval.dtype for eqn in equations(program) for v in eqn.outvars}
    floats = [kind for kind in dtypes if jnp.issubdtype(kind, jnp.floating)]
    return max((float(jnp.finfo(kind).eps) for kind in floats), default=0.0)
