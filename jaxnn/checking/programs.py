"""The programs that a check evaluates: a scalar function and its gradient, traced in the user's
dtypes, then evaluated in float64.

Compiled programs are reused for every function that traces to the same program. A function that
cannot be traced is called once per step instead.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import PyTree

from jaxnn._arguments import Partition, Static
from jaxnn._programs import Traced, jitted, kept
from jaxnn._validate import first_line
from jaxnn.checking.by_hand import gradient_by_hand
from jaxnn.checking.compiling import compiler_options
from jaxnn.checking.further import RUN_FURTHER, ending_if_moved
from jaxnn.checking.held import beside, holding
from jaxnn.checking.line import Line, compiled_along
from jaxnn.checking.packed import Packing, on_one_cpu
from jaxnn.checking.scalar import (
    MAYBE_AUXILIARY,
    PROJECTED,
    forward_gradient,
    is_real_scalar,
    require_known,
    require_output,
    scalar_of,
)
from jaxnn.checking.settings import COTANGENT, Claims, Point, Settings, looked_at
from jaxnn.checking.small import along_in_numpy, by_operation, in_numpy_if_small, is_by_operation
from jaxnn.checking.tape.walk import Tape
from jaxnn.checking.untraced import Untraced, untraced
from jaxnn.numerical.float64 import (
    coarsest,
    is_wide,
    wide_arithmetic,
    wide_dtype,
    widen_form,
    widen_leaf,
    widened,
)
from jaxnn.numerical.identity import same_program
from jaxnn.numerical.interpret import (
    Program,
    emptied,
    equations,
    form_of,
    implicit_solve,
    make_jaxpr,
    prints,
    pruned,
    with_own_constants,
    without_refs,
)

# An evaluation rule that differentiates the operand of `stop_gradient`, too.
_THROUGH = {primitives.stop_gradient_p: lambda _, inputs, __: inputs}
# Without a reverse mode, the reference uses forward mode for up to this many entries.
MOST_FORWARD = 4096


class Compiled(NamedTuple):
    """The compiled programs of a function; their inputs are its constants, leaves, and data.

    Attributes:
      own: value and packed gradient in the user's dtypes.
      wide: value and packed gradient in float64.
      along: the values along a line.
      references: the packed gradient of the values without custom rules: by reverse mode; by
        reverse mode if `stop_gradient` stops it, None if there is none; by forward mode.
      packing: how leaves share the arrays of a packed gradient.
      narrow: the primitives that keep a narrower dtype, and that dtype.
    """

    own: Callable
    wide: Callable
    along: Callable
    references: tuple[Callable, Callable | None, Callable]
    packing: Packing
    narrow: frozenset[tuple[str, Any]]


@dataclasses.dataclass(frozen=True)
class Programs:
    """A function that JAX can trace.

    Attributes:
      compiled: the compiled programs.
      program: the scalar function itself, with its custom rules.
      values: its trace, without custom rules.
      both: a trace of value and gradient.
      form: the shapes of a point.
      settings: how it is differentiated.
      again: traces the user's function once more, and returns `program` anew; if it is given the
        arguments that are not differentiated, these are constants.
      by_hand: the user's gradient, if there is one.
      notes: remarks on anything unusual.
    """

    compiled: Compiled
    program: Program
    values: Traced
    both: Traced
    form: Point
    settings: Settings
    again: Callable[[Any], Program]
    by_hand: "ByHand | None" = None
    notes: tuple[str, ...] = ()

    def changed(self, **settings: bool) -> "Programs":
        """The programs of the same function if solvers are run further, or if what `stop_gradient`
        stops is held or not: what this leaves as it is need not be compiled again.
        """
        new, usual = self.settings._replace(**settings), self.compiled
        compiled = _compiled(self.values, self.both, self.form, new, usual.packing)
        compiled = compiled._replace(
            own=usual.own, wide=compiled.wide if new.further else usual.wide
        )
        same = lambda _: self.program  # noqa: E731
        return dataclasses.replace(self, compiled=compiled, settings=new, again=same)

    def closed(self, point: Point) -> "Programs":
        """The same programs with the data as constants, and with whatever depends on nothing else
        computed while the function is traced.
        """
        with jax.ensure_compile_time_eval():
            return dataclasses.replace(self, program=self.again(point.data[0]))

    @property
    def consts(self) -> Sequence[Any]:
        """The values of the function's constants."""
        return self.values.consts

    @functools.cached_property
    def deterministic(self) -> bool:
        """Whether tracing the function twice gives the same program."""
        return same_program(pruned(self.program), pruned(self.again(None)))

    @functools.cached_property
    def rounding(self) -> float:
        """The largest relative rounding error of a float in the function."""
        dtypes = {v.aval.dtype for eqn in equations(self.program) for v in eqn.outvars}
        floats = [kind for kind in dtypes if jnp.issubdtype(kind, jnp.floating)]
        return max((float(jnp.finfo(kind).eps) for kind in floats), default=0.0)

    @property
    def narrow(self) -> frozenset[tuple[str, Any]]:
        """The primitives that keep a narrower dtype, and that dtype."""
        return self.compiled.narrow

    def tape(self, point: Point, dtype: Any = None, unrolled: bool = False) -> Tape:
        """The function's tape, in its own dtypes or in a wide one."""
        moving = [k < len(point.leaves) for k in range(len(jax.tree.leaves(point)))]
        return Tape(without_refs(self.program), moving, dtype, unrolled)

    def line(self, point: Point, watch: Callable[[Line], None], own: bool) -> Line:
        """The function along lines through a point; `own` if claims are in the user's dtypes."""
        data, dtype = (self.consts, point.data), wide_dtype()
        leaves = _widened(point.leaves, dtype)

        def along(moves, steps):
            with wide_arithmetic(dtype), _unlogged():
                return np.asarray(self.compiled.along(leaves, moves, steps, data))

        def at(moves, step):
            try:
                return along(moves, np.array([step]))[0]
            except Exception:
                if step == 0:
                    raise  # at the point itself: such a function cannot be checked
                return np.nan

        def values(moves, steps):
            try:
                return along(moves, steps)
            except Exception:  # a host callback may raise anything, outside its domain
                return np.array([at(moves, step) for step in steps])

        coarse, narrow = coarsest(kind for _, kind in self.narrow), bool(self.narrow)
        return Line(values, point.leaves, dtype, coarse, narrow=narrow, own=own, watch=watch)

    def own_line(self, point: Point) -> Line:
        """The function along lines through a point, in the function's own dtypes."""
        dtype = max((x.dtype for x in point.leaves), key=lambda kind: jnp.finfo(kind).bits)
        value = lambda _, moved, data: core.jaxpr_as_fun(self.program)(  # noqa: E731
            *jax.tree.leaves((moved, data))
        )[0]
        # Optimised as the user's is, because its rounding depends on that.
        along = compiled_along(value, dtype, self.program, runs=math.inf)

        def values(moves, steps):
            moves = [jnp.asarray(v, x.dtype) for v, x in zip(moves, point.leaves, strict=True)]
            steps = jnp.asarray(steps, dtype)
            return np.asarray(along(point.leaves, moves, steps, point.data), np.float64)

        return Line(values, point.leaves, dtype, self.rounding, own=True)

    def claims(self, point: Point) -> Claims:
        """Value and gradient at a point, in the user's dtypes and in float64."""
        one = np.ones((), self.program.out_avals[0].dtype)
        value, gradient = self.compiled.own(self.both.consts, point.leaves, point.data, one)
        value, by_hand = float(value), self.by_hand
        own = self._unpacked(gradient) if by_hand is None else list(map(looked_at, by_hand.own()))
        if by_hand is not None and by_hand.wide is None:
            return Claims(value, own, own, False)
        try:
            forward, wide = self.in_float64(point)
        except Exception as error:
            error.add_note("jaxnn: the function raised this in float64, not in its own dtypes")
            raise
        return Claims(value, own, wide, True, forward)

    def in_float64(
        self,
        point: Point,
        shakes: Sequence[float] | None = None,
        seed: int = 0,
        cotangent: float = COTANGENT,
    ) -> tuple[float, list[Any]]:
        """Value and gradient in float64.

        Args:
          point: where they are evaluated.
          shakes: how many roundings the entries of each leaf are moved by, at most.
          seed: seed of these random movements.
          cotangent: the cotangent of the value; the gradient is divided by it.
        """
        dtype = wide_dtype()
        leaves = _widened(point.leaves, dtype)
        if shakes is not None:
            rng = np.random.default_rng(seed)
            leaves = [shaken(x, shake, rng) for x, shake in zip(point.leaves, shakes, strict=True)]
        with wide_arithmetic(dtype):
            if self.by_hand is not None:
                assert self.by_hand.wide is not None
                return math.nan, self._unpacked(self.by_hand.wide(leaves, point.data))
            given = self.both.consts, leaves, point.data, np.asarray(cotangent, dtype)
            value, gradient = self.compiled.wide(*given)
            return float(value), [g / cotangent for g in self._unpacked(gradient)]

    def reference(self, point: Point) -> list[Any] | None:
        """The gradient of the values at a point; None if the values cannot be differentiated.

        What `stop_gradient` stops is differentiated, too, if it has a derivative.
        """
        few = sum(x.size for x in point.leaves) <= MOST_FORWARD
        found = (self._by(way, point) for way in self.compiled.references[: 3 if few else 2])
        return next((gradient for gradient in found if gradient is not None), None)

    def stopped_reference(self, point: Point) -> list[Any] | None:
        """The same gradient where `stop_gradient` stops it; None if there is none."""
        return self._by(self.compiled.references[1], point)

    def _by(self, way: Callable | None, point: Point) -> list[Any] | None:
        dtype = wide_dtype()
        if way is None:
            return None
        try:
            with wide_arithmetic(dtype):
                found = way(self.consts, _widened(point.leaves, dtype), point.data)
        except Exception:  # a host callback may raise anything
            return None
        return None if found is None else self._unpacked(found)

    def _unpacked(self, gradient: Sequence[Any]) -> list[Any]:
        return [looked_at(g) for g in self.compiled.packing.unpack(gradient)]


class ByHand(NamedTuple):
    """A hand-written gradient.

    Attributes:
      own: calls it in the user's dtypes.
      wide: the packed gradient evaluated in float64; None if JAX cannot trace it.
    """

    own: Callable[[], list[Any]]
    wide: Callable | None


def prepare(call: Partition, point: Point, settings: Settings) -> Programs | Untraced:
    """The programs for a call: traced at each call, compiled once for equal programs."""
    form = jax.tree.map(lambda x: form_of(jax.typeof(x)), point)
    notes, mistakes = [], []
    try:
        program, shapes = _trace(call.static, form)
    except jax.errors.JAXTypeError:
        return untraced(call, point, settings)
    automatic = settings.by_hand is None
    if not settings.projected and automatic and not is_real_scalar(shapes):
        settings = settings._replace(projected=True)
        is_pair = isinstance(shapes, tuple) and len(shapes) == 2 and is_real_scalar(shapes[0])
        notes.append(PROJECTED + MAYBE_AUXILIARY * is_pair)
    require_output(shapes, point.data[1], settings)
    require_known(settings.trust, program)
    packing = Packing.of(point.leaves)
    either = settings.forward is None and automatic
    for forward in (False, True) if either else (bool(settings.forward),):
        if forward and settings.forward is None:
            notes.append("this function does not support reverse mode; forward mode was checked")
        chosen = settings._replace(forward=forward)
        try:
            scalar = _scalar(program, shapes, form, chosen)
            found = _differentiated(call.static, scalar, form, chosen, packing)
        except jax.errors.JAXTypeError:
            return untraced(call, point, settings)
        except Exception as mistake:  # a derivative rule may raise anything
            mistakes.append(mistake)
        else:
            by_hand = _by_hand(call, form, settings.by_hand, packing)
            return dataclasses.replace(found, by_hand=by_hand, notes=tuple(notes))
    raise _cannot_differentiate(mistakes[0], settings)


def _widened(leaves: Sequence[Any], dtype: Any) -> list[Any]:
    """The leaves in a wide dtype, as shaken ones are, so that one compiled program serves both. On
    a CPU they are widened by NumPy, since XLA takes numbers below the smallest normal one for 0.
    """
    with wide_arithmetic(dtype):
        return [
            jnp.asarray(np.asarray(x).astype(dtype)) if on_one_cpu(x) else widen_leaf(x, dtype)
            for x in leaves
        ]


def _differentiated(
    static: Static, scalar: Program, form: Point, settings: Settings, packing: Packing
) -> Programs:
    """The programs of a scalar function in one mode; a derivative rule may raise anything here."""
    one = jax.ShapeDtypeStruct((), scalar.out_avals[0].dtype)
    both = _both(static, settings, packing, (*form, one))
    values = _values(scalar, form, settings)
    compiled = _compiled(values, both, form, settings, packing)
    if settings.forward and settings.by_hand is None:
        jitted(both.bare).lower(both.consts, *form, one)  # raises if a rule has no forward mode
    again = lambda data: _scalar(*_trace(static, form, data), form, settings)  # noqa: E731
    return Programs(compiled, scalar, values, both, form, settings, again)


def _cannot_differentiate(mistake: Exception, settings: Settings) -> Exception:
    """The error that says why JAX cannot differentiate a function as the settings ask."""
    if settings.order > 1:
        refused = TypeError(
            f"`order` must be {settings.order - 1} here, as neither mode can differentiate "
            f"further. Got {settings.order}: {first_line(mistake)}"
        )
        refused.__cause__ = mistake
        return refused
    if settings.forward:
        mistake.add_note("`modes` asks for forward mode, which `f` does not support.")
    return mistake


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """JAX does not log that a host callback raised, as a solver may at a point nearby."""
    log, refuse = logging.getLogger("jax._src.callback"), lambda record: False
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)


def shaken(x: Any, shake: float, rng: np.random.Generator) -> np.ndarray:
    """An array with each entry moved by up to `shake` roundings of its dtype, in float64 or complex
    accordingly.
    """
    rounding = shake * float(jnp.finfo(x.dtype).eps)
    return np.asarray(np.asarray(x) * (1 + rounding * rng.uniform(-1, 1, x.shape)))


def _trace(static: Static, form: Point, held: Any = None) -> tuple[Program, PyTree]:
    """The user's function as a program of a point, and the shapes of its output. The arguments
    that are not differentiated are inputs, or constants if they are given as `held`.

    A new wrapper function keeps JAX from returning an earlier trace. Constants are copied because
    JAX remembers, for each NumPy array, the precision that a live trace uses for it.
    """
    f = lambda leaves, data: static.value(leaves, data[0] if held is None else held)  # noqa: E731
    program, shapes = make_jaxpr(f, return_shape=True)(*form)
    return with_own_constants(program), shapes


def _scalar(traced: Program, shapes: PyTree, form: Point, settings: Settings) -> Program:
    """The program whose gradient is checked, from a trace of the user's function."""
    if not settings.projected and settings.order == 1:
        return traced

    def user(leaves, data):
        out = core.jaxpr_as_fun(traced)(*jax.tree.leaves((leaves, data)))
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return with_own_constants(make_jaxpr(scalar_of(user, settings))(*form))


def _both(static: Static, settings: Settings, packing: Packing, form: Sequence[Any]) -> Traced:
    """A function of leaves, data and the cotangent of the value that returns the value and the
    packed gradient, which is empty if the gradient is hand-written. In forward mode, the cotangent
    is the tangent of each entry.

    The user's function itself is differentiated, as by `jax.grad`, instead of an earlier trace.
    """
    value = scalar_of(lambda leaves, data: static.value(leaves, data[0]), settings)

    def both(leaves, data, cotangent):
        if settings.by_hand is not None:
            return value(leaves, data), []
        if settings.forward:
            result, gradient = forward_gradient(value, cotangent)(leaves, data)
            return result, packing.pack(gradient)
        result, back = jax.vjp(lambda leaves: value(leaves, data), leaves)
        return result, packing.pack(back(cotangent)[0])

    program, shapes = make_jaxpr(both, return_shape=True)(*form)
    return Traced.of_program(with_own_constants(program), shapes)


def _values(scalar: Program, form: Point, settings: Settings) -> Traced:
    """The program that slopes are taken of."""
    values = Traced.of_program(scalar, jax.ShapeDtypeStruct((), form.leaves[0].dtype))
    if settings.trust:  # only trusted rules affect the values; other rules are dropped
        values = values._replace(jaxpr=emptied(scalar), consts=tuple(scalar.consts), key=None)
    return values


def _compiled(
    values: Traced, both: Traced, form: Point, settings: Settings, packing: Packing
) -> Compiled:
    """The compiled programs of a scalar function and its gradient, cached for equal programs."""
    known = values.key is not None and both.key is not None
    options = settings.further, settings.held, settings.forward, packing, wide_dtype()
    key = (values.key, both.key, *options) if known else None
    consts = [form_of(jax.typeof(x)) for x in values.consts]
    form = form._replace(data=(consts, form.data))
    return kept(key, lambda: _compile(values.bare, both.bare, form, settings, packing))


def _compile(
    values: Traced, both: Traced, form: Point, settings: Settings, packing: Packing
) -> Compiled:
    """The compiled programs, given the shapes of leaves, and of constants and data."""
    dtype, narrow = wide_dtype(), set()
    rules = dict(RUN_FURTHER) if settings.further else {}
    held = holding(settings.held, settings.trust)
    # No closure here may refer to the settings, which hold the user's functions: it is kept.
    holds = settings.held or bool(settings.trust)

    def moving_by(rules, narrow=None):
        return _moving(values, dtype, rules | held, holds, narrow)

    rules_of_reference = {primitives.linear_solve_p: implicit_solve} | rules

    def by(derive, through=True):
        value = moving_by(rules_of_reference | (_THROUGH if through else {}))

        def gradient(consts, leaves, data):
            of = lambda moved, _: value(leaves, moved, (consts, data))  # noqa: E731
            return packing.pack(derive(of)(leaves, data)[1])

        return _if_possible(jax.jit(gradient, compiler_options=compiler_options(values.jaxpr)))

    stops = any(eqn.primitive is primitives.stop_gradient_p for eqn in equations(values.jaxpr))
    stopping = by(jax.value_and_grad, through=False) if stops else None
    own, wide, moving = jitted(both), widened(both, dtype, rules), moving_by(rules, narrow)
    value = None if holds else in_numpy_if_small(values)
    gradient = value and in_numpy_if_small(both)
    if value is not None and gradient is not None:
        own = by_operation(both) if is_by_operation(both.jaxpr) else own
        wide, along = gradient, along_in_numpy(value)
    else:
        points = [widen_form(x, dtype) for x in form.leaves]
        with wide_arithmetic(dtype):
            traced = Traced.of(moving, points, points, form.data)
        along = compiled_along(functools.partial(traced, traced.consts), dtype, values.jaxpr)
        same = not settings.further and _is_unchanged(both.jaxpr, dtype)
        wide = jax.jit(wide, compiler_options=None if same else compiler_options(both.jaxpr))
        own = wide_arithmetic(dtype)(wide) if same else own
    return Compiled(
        own=own,
        wide=wide,
        along=along,
        references=(by(jax.value_and_grad), stopping, by(forward_gradient)),
        packing=packing,
        narrow=frozenset(narrow),
    )


def _moving(
    values: Traced, dtype: Any, rules: dict[Any, Callable], holds: bool, narrow: Any
) -> Callable:
    """A scalar function of a point, a moved point and the data, at the moved point; if it `holds`
    anything, at both points together.
    """
    loops = any(eqn.primitive is primitives.while_p for eqn in equations(values.jaxpr))

    def moving(point, moved, data):
        ending = ending_if_moved(point, moved) if loops else {}
        wide = widened(values, dtype, ending | rules, narrow)
        value = lambda leaves, data: wide(data[0], leaves, data[1])  # noqa: E731
        return beside(value)(point, moved, data) if holds else value(moved, data)

    return moving


def _if_possible(derived: Any) -> Callable:
    """A jitted function that returns None if JAX cannot trace it, because of a loop without a
    reverse mode or a faulty rule. This is tried once, as it can take longer than all else.
    """
    refused: bool | None = None

    def call(*given):
        nonlocal refused
        if refused is None:
            try:
                derived.trace(*given)
            except Exception:
                refused = True
            else:
                refused = False
        return None if refused else derived(*given)

    return call


def _is_unchanged(program: Program, dtype: Any) -> bool:
    """Whether a program stays the same when it is evaluated in a wide dtype."""
    changed = {*prints(), primitives.reduce_precision_p}
    has_changed = any(eqn.primitive in changed for eqn in equations(program))
    return dtype == jnp.float64 and is_wide(program, dtype) and not has_changed


def _by_hand(
    call: Partition, form: Point, gradient: Callable | None, packing: Packing
) -> ByHand | None:
    """The hand-written gradient, in the user's dtypes and in float64."""
    if gradient is None:
        return None
    dtype = wide_dtype()
    own = functools.partial(gradient_by_hand, gradient, call)
    try:
        derive = lambda point: gradient_by_hand(gradient, call.at(point.leaves, point.data[0]))  # noqa: E731
        traced = Traced.of(lambda *point: packing.pack(derive(Point(*point))), *form)
    except Exception:  # JAX cannot trace the user's gradient, or its result does not match
        return ByHand(own, None)

    def build():
        if (run := in_numpy_if_small(traced.bare)) is not None:
            return run
        options = compiler_options(traced.jaxpr)
        return jax.jit(widened(traced.bare, dtype), compiler_options=options)

    wide = kept(traced.key and (traced.key, packing, dtype), build)
    return ByHand(own, functools.partial(wide, traced.consts))
