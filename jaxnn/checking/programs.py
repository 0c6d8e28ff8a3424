"""What a check evaluates: a scalar function and its gradient, traced as the user runs them, then
evaluated in float64.

Compiled programs are kept for the next check of a function that traces to the same program. A
function that cannot be traced is called step by step instead.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Static
from jaxnn._programs import Traced, jitted, kept
from jaxnn._validate import describe
from jaxnn.checking.by_hand import gradient_by_hand
from jaxnn.checking.further import RUN_FURTHER, has_solver
from jaxnn.checking.held import beside, holding
from jaxnn.checking.line import Line, along_program, one_by_one
from jaxnn.checking.moves import drawer
from jaxnn.checking.packed import Packing, on_one_cpu
from jaxnn.checking.tape import Tape
from jaxnn.numerical.float64 import (
    narrow_dtypes,
    wide_arithmetic,
    wide_dtype,
    widen_leaf,
    widened,
)
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

# Relative error, in roundings, that a gradient in its own dtype has along a random direction if no
# digits are lost. A larger error is looked into, at a cost; it is not wrong for that.
OF_CLAIMS = 16


# With up to so many entries the reference is computed by forward mode if there is no reverse mode.
MOST_FORWARD = 4096


class Settings(NamedTuple):
    """How the gradient is computed.

    Attributes:
      by_hand: the user's gradient function; None for JAX's.
      projected: whether the output is projected on a cotangent, and
      random: whether that is drawn at random.
      seed: of random projections.
      order: n for the gradient of a projection of the gradient of order n - 1.
      forward: by forward mode; None for reverse mode where there is one.
      further: whether solvers inside run further than they ask for.
      held: whether what `stop_gradient` stops is held at its value at the point.
      trust: names of functions whose custom rules are meant to differ from them; held too.
    """

    by_hand: Callable | None = None
    projected: bool = False
    random: bool = False
    seed: int = 0
    order: int = 1
    forward: bool | None = None
    further: bool = False
    held: bool = False
    trust: tuple[str, ...] = ()


class Point(NamedTuple):
    """Where a function is checked.

    Attributes:
      leaves: those that are differentiated, in their real form.
      data: the other arrays, and the cotangent or None.
    """

    leaves: list[jax.Array]
    data: tuple[list[jax.Array], PyTree | None]


class Claims(NamedTuple):
    """What is checked.

    Attributes:
      value: of the function, in the user's dtypes.
      own: the gradient leaf by leaf, in the user's dtypes.
      wide: the same evaluated in float64: this is compared with values.
      in_float64: whether it could be; else `wide` is `own`.
      forward: the value of the function where it is differentiated, in float64; NaN if the gradient
        is written by hand.
    """

    value: float
    own: list[Any]
    wide: list[Any]
    in_float64: bool = True
    forward: float = math.nan


class Compiled(NamedTuple):
    """The compiled programs of a function: of the values of its constants, leaves, and data.

    Attributes:
      own: value and packed gradient in the user's dtypes.
      wide: the same in float64.
      along: the values along a line.
      references: the gradient of the values, packed, by reverse and by forward mode: no custom rule
        plays a part in it.
      packing: how leaves share the arrays of a packed gradient.
      narrow: dtypes in which parts of the function are evaluated all the same.
    """

    own: Callable
    wide: Callable
    along: Callable
    references: tuple[Callable, Callable]
    packing: Packing
    narrow: frozenset[Any]


@dataclasses.dataclass(frozen=True)
class Programs:
    """A function that JAX can trace.

    Attributes:
      compiled: its programs.
      program: the scalar function itself, with its custom rules.
      consts: the values of the constants of the function, and
      gradient_consts: of its gradient.
      by_hand: the user's gradient, if there is one.
      forward: whether JAX differentiates it by forward mode.
      deterministic: whether tracing the function twice gives the same program.
      notes: what is unusual about it.
    """

    compiled: Compiled
    program: Program
    consts: Sequence[Any]
    gradient_consts: Sequence[Any]
    by_hand: "ByHand | None" = None
    deterministic: bool = True
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def rounding(self) -> float:
        """The largest relative rounding error of a float in the function."""
        dtypes = {v.aval.dtype for eqn in equations(self.program) for v in eqn.outvars}
        floats = [kind for kind in dtypes if jnp.issubdtype(kind, jnp.floating)]
        return max((float(jnp.finfo(kind).eps) for kind in floats), default=0.0)

    @functools.cached_property
    def has_solver(self) -> bool:
        """Whether an iterative solver may be inside."""
        return has_solver(self.program)

    @property
    def counts(self) -> frozenset[int]:
        """The lengths of the first axes of the constants: numbers of examples, perhaps."""
        return frozenset(n for const in self.consts for n in np.shape(const)[:1])

    @property
    def narrow(self) -> frozenset[Any]:
        """The dtypes in which parts of the function are evaluated all the same."""
        return self.compiled.narrow

    def tape(self, point: Point, dtype: Any = None, unrolled: bool = False) -> Tape:
        """The function's tape, in its own dtypes or in a wide one."""
        moving = [k < len(point.leaves) for k in range(len(jax.tree.leaves(point)))]
        return Tape(self.program, moving, dtype, unrolled)

    def line(self, point: Point, dtype: Any, watch: Callable[[Line], None], own: bool) -> Line:
        """The function along lines through a point; `own`: of claims in the user's dtypes."""
        data = self.consts, point.data

        def values(moves, steps):
            run = lambda steps: np.asarray(  # noqa: E731
                self.compiled.along(point.leaves, moves, steps, data)
            )
            with wide_arithmetic(dtype):
                try:
                    return run(steps)
                except Exception:  # a host callback may raise anything
                    return one_by_one(lambda t: run(np.array([t]))[0], steps)

        epsilon, draw = float(jnp.finfo(dtype).eps), drawer(point.leaves, dtype)
        return Line(draw, values, point.leaves, epsilon, _roundings(point, own), watch)

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

        draw, epsilon = drawer(point.leaves, dtype), max(self.rounding, float(jnp.finfo(dtype).eps))
        return Line(draw, values, point.leaves, epsilon, _roundings(point, True))

    def claims(self, point: Point, dtype: Any) -> Claims:
        """Value and gradient at a point, in the user's dtypes and in float64."""
        value, gradient = self.compiled.own(self.gradient_consts, point.leaves, point.data)
        if self.by_hand is None:
            own = self._unpacked(gradient)
            forward, wide = self.in_float64(point, dtype)
            return Claims(float(value), own, wide, True, forward)
        own = [_looked_at(g) for g in self.by_hand.own()]
        if self.by_hand.wide is None:
            return Claims(float(value), own, own, False)
        return Claims(float(value), own, self.in_float64(point, dtype)[1], True)

    def in_float64(
        self, point: Point, dtype: Any, shakes: Sequence[float] | None = None
    ) -> tuple[float, list[Any]]:
        """Value and gradient in float64; `shakes` moves each leaf, in roundings of its dtype."""
        leaves = point.leaves
        if shakes is not None:
            rngs = map(np.random.default_rng, range(len(leaves)))
            leaves = list(map(_shaken, leaves, shakes, rngs))
        with wide_arithmetic(dtype):
            if self.by_hand is not None:
                assert self.by_hand.wide is not None
                return math.nan, self._unpacked(self.by_hand.wide(leaves, point.data))
            value, gradient = self.compiled.wide(self.gradient_consts, leaves, point.data)
            return float(value), self._unpacked(gradient)

    def reference(self, point: Point, dtype: Any) -> list[Any] | None:
        """The gradient of the values at a point; None if the values cannot be differentiated."""
        few = sum(x.size for x in point.leaves) <= MOST_FORWARD
        for way in self.compiled.references[: 1 + few]:
            try:
                with wide_arithmetic(dtype):
                    leaves = [widen_leaf(x, dtype) for x in point.leaves]
                    return self._unpacked(way(self.consts, leaves, point.data))
            except Exception:  # a loop without a reverse mode, a host callback, or a rule's mistake
                continue
        return None

    def _unpacked(self, gradient: Sequence[Any]) -> list[Any]:
        return [_looked_at(g) for g in self.compiled.packing.unpack(gradient)]


class ByHand(NamedTuple):
    """A hand-written gradient.

    Attributes:
      own: calls it as it is.
      wide: the same evaluated in float64, packed; None if JAX cannot trace it.
    """

    own: Callable[[], list[Any]]
    wide: Callable | None


@dataclasses.dataclass(frozen=True)
class Untraced:
    """A function that JAX cannot trace, called step by step.

    Attributes:
      value: the function.
      gradient: computes value and gradient in the user's dtypes.
    """

    value: Callable
    gradient: Callable
    narrow: frozenset[Any] = frozenset()
    rounding: float = 0.0
    counts: frozenset[int] = frozenset()
    has_solver: bool = False
    deterministic: bool = True
    program: None = None
    notes: tuple[str, ...] = ("the function cannot be traced: it was called step by step",)

    def line(self, point: Point, dtype: Any, watch: Callable[[Line], None], own: bool) -> Line:
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
        draw = drawer(point.leaves, dtype)
        return Line(draw, values, point.leaves, epsilon, _roundings(point, True), watch)

    def claims(self, point: Point, dtype: Any) -> Claims:
        """Value and gradient at a point, in the user's dtypes."""
        value, gradient = self.gradient(point.leaves, point.data)
        value = np.asarray(value)
        if not (value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)):
            raise TypeError(
                "`f` must return a real scalar, or `cotangent` must say how to project. Got "
                f"{describe(value)}."
            )
        own = [_looked_at(g) for g in gradient]
        return Claims(float(value), own, own, False)

    def reference(self, point: Point, dtype: Any) -> None:
        """None: values that cannot be traced cannot be differentiated."""
        return None

    def _accepted(self, point: Point, dtype: Any) -> tuple[Sequence[Any], Any]:
        """The leaves that the function accepts, and the dtype they need, if it is another."""
        with wide_arithmetic(dtype):
            leaves = [widen_leaf(x, dtype) for x in point.leaves]
        try:
            with wide_arithmetic(dtype):
                out = np.asarray(self.value(leaves, point.data))
        except (TypeError, ValueError):
            return point.leaves, None
        wide = out.dtype == np.float64 and bool(np.isfinite(out))
        return (leaves, dtype) if wide else (point.leaves, None)


def prepare(call: Partition, point: Point, settings: Settings) -> Programs | Untraced:
    """The programs for a call: traced anew, compiled once for equal programs."""
    form = jax.tree.map(_form, point)
    notes, mistakes = [], []
    try:
        program, shapes = _trace(call.static, form)
        same = same_program(pruned(program), pruned(_trace(call.static, form)[0]))
    except jax.errors.JAXTypeError:
        return _untraced(call, settings)
    automatic = settings.by_hand is None
    if not settings.projected and automatic and not _is_real_scalar(shapes):
        settings = settings._replace(projected=True, random=True)
        notes.append("the output is no real scalar: a random projection of it was checked")
    _require_output(shapes, point.data[1], settings)
    _require_known(settings.trust, program)
    packing = Packing.of(point.leaves)
    for forward in (False, True) if settings.forward is None else (settings.forward,):
        if forward and settings.forward is None:
            notes.append(
                "reverse mode does not exist for this function: the forward mode was checked"
            )
        chosen = settings._replace(forward=forward)
        try:
            scalar = _scalar(program, shapes, form, chosen)
            both = Traced.of(_both(scalar, chosen, packing), *form)
            compiled = _compiled(scalar, both, form, chosen, packing)
            if forward and automatic:
                compiled.own.lower(both.consts, *form)  # a rule for reverse mode alone shows here
        except jax.errors.JAXTypeError:
            return _untraced(call, settings)
        except Exception as mistake:  # of a rule: JAX and its users raise anything
            mistakes.append(mistake)
            if not automatic:
                break
            continue
        by_hand = _by_hand(call, form, settings.by_hand, packing)
        return Programs(compiled, scalar, scalar.consts, both.consts, by_hand, same, tuple(notes))
    if settings.order > 1:
        reason = str(mistakes[0]).partition("\n")[0]
        raise TypeError(
            f"`order` must be {settings.order - 1} here, as JAX has no derivative of the one "
            f"before by either mode. Got {settings.order}: {reason}"
        ) from mistakes[0]
    if settings.forward:
        mistakes[0].add_note("`modes` asks for forward mode, which there is none of here.")
    raise mistakes[0]


def _form(x: Any) -> jax.ShapeDtypeStruct:
    """A Python number stays one that takes the dtype of what it is added to."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=getattr(x, "weak_type", False))


def _looked_at(x: Any) -> Any:
    """An array as NumPy has it, if it is on one CPU."""
    return np.asarray(x) if on_one_cpu(x) else x


def _shaken(x: Any, shake: float, rng: np.random.Generator) -> np.ndarray:
    """A leaf moved by so many roundings of its dtype, up or down at random."""
    rounding = shake * float(jnp.finfo(x.dtype).eps)
    return np.asarray(np.asarray(x, np.float64) * (1 + rounding * rng.choice([-1, 1], x.shape)))


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


def _trace(static: Static, form: Point) -> tuple[Program, PyTree]:
    """The user's function as a program of a point, and the form of what it returns.

    Traced through a new function, so that JAX does not return an earlier trace; and with constants
    of our own: JAX remembers for each NumPy array in which precision a living trace has it.
    """
    f = lambda leaves, data: static.value(leaves, data[0])  # noqa: E731
    program, shapes = jax.make_jaxpr(f, return_shape=True)(*form)
    return with_own_constants(program), shapes


def _scalar(traced: Program, shapes: PyTree, form: Point, settings: Settings) -> Program:
    """The program whose gradient is checked, from a trace of the user's function."""
    if not settings.projected and settings.order == 1:
        return traced

    def user(leaves, data):
        out = core.jaxpr_as_fun(traced)(*jax.tree.leaves((leaves, data)))
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return with_own_constants(jax.make_jaxpr(_scalar_of(user, settings))(*form))


def _both(scalar: Program, settings: Settings, packing: Packing) -> Callable:
    """Value and packed gradient as a function of leaves and data; no gradient if it is written by
    hand.
    """

    def value(leaves, data):
        return core.jaxpr_as_fun(scalar)(*jax.tree.leaves((leaves, data)))[0]

    if settings.by_hand is not None:
        return lambda leaves, data: (value(leaves, data), [])
    derive = _forward_gradient(value) if settings.forward else jax.value_and_grad(value)

    def both(leaves, data):
        value, gradient = derive(leaves, data)
        return value, packing.pack(gradient)

    return both


def _compiled(
    scalar: Program, both: Traced, form: Point, settings: Settings, packing: Packing
) -> Compiled:
    """The compiled programs of a scalar function and its gradient, kept for equal ones."""
    dtype = wide_dtype()
    # A trusted rule takes part in the values; other rules do not, and are not kept alive.
    values = Traced.of_program(scalar, jax.ShapeDtypeStruct((), form.leaves[0].dtype))
    if settings.trust:
        values = values._replace(jaxpr=scalar.jaxpr, consts=tuple(scalar.consts), key=None)
    known = values.key is not None and both.key is not None
    options = settings.further, settings.held, settings.forward, packing, dtype
    key = (values.key, both.key, *options) if known else None
    return kept(key, lambda: _compile(values.bare, both.bare, scalar, settings, packing))


def _compile(
    values: Traced, both: Traced, scalar: Program, settings: Settings, packing: Packing
) -> Compiled:
    dtype = wide_dtype()
    # What the user prints is printed where the function runs as it is, and not at every step.
    rules = {primitive: lambda *_: [] for primitive in prints()}
    rules |= RUN_FURTHER if settings.further else {}
    wide = widened(values, dtype, rules | holding(settings.held, settings.trust))
    value = lambda leaves, data: wide(data[0], leaves, data[1])  # noqa: E731
    moving = lambda _, moved, data: value(moved, data)  # noqa: E731
    if settings.held or settings.trust:
        moving = beside(value)

    def by(derive):
        def gradient(consts, leaves, data):
            of = lambda moved, _: moving(leaves, moved, (consts, data))  # noqa: E731
            return packing.pack(derive(of)(leaves, data)[1])

        return jax.jit(gradient)

    return Compiled(
        own=jitted(both),
        wide=jax.jit(widened(both, dtype, rules)),
        along=along_program(moving, dtype),
        references=(by(jax.value_and_grad), by(_forward_gradient)),
        packing=packing,
        narrow=narrow_dtypes(scalar, dtype),
    )


def _by_hand(
    call: Partition, form: Point, gradient: Callable | None, packing: Packing
) -> ByHand | None:
    """A hand-written gradient, as it is and in float64."""
    if gradient is None:
        return None
    dtype = wide_dtype()
    own = functools.partial(gradient_by_hand, gradient, call)
    try:
        derive = lambda leaves, data: gradient_by_hand(  # noqa: E731
            gradient, call.at(leaves, data[0])
        )
        traced = Traced.of(lambda *point: packing.pack(derive(*point)), *form)
    except Exception:  # of the user's: what JAX cannot trace, or a result that does not fit
        return ByHand(own, None)
    wide = kept(
        traced.key and (traced.key, packing, dtype), lambda: jax.jit(widened(traced.bare, dtype))
    )
    return ByHand(own, functools.partial(wide, traced.consts))


def _untraced(call: Partition, settings: Settings) -> Untraced:
    static = call.static
    value = _scalar_of(lambda leaves, data: static.value(leaves, data[0]), settings)
    if settings.by_hand is None:
        return Untraced(value, _eager_gradient(value))
    own = functools.partial(gradient_by_hand, settings.by_hand, call)
    return Untraced(value, lambda leaves, data: (value(leaves, data), own()))


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
            if not leaves[k].size:
                return jnp.zeros_like(leaves[k])

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
