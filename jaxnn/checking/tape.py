"""The tape of a program: what goes into and comes out of each of its equations, both ways.

A program is laid out flat once, calls entered; then one compiled walk gives the values of every
equation and, carried back from the result, the cotangent of each of its outputs and what each
equation makes of that for its inputs. Loops, branches and functions with a rule of their own are
equations here; what is inside of one is a tape again, made only when it is wanted. Lines are the
user's: where JAX's own code stands between, the line that called it.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.numerical.float64 import RULES, Evaluation, wide_arithmetic, widen, widen_leaf
from jaxnn.numerical.interpret import (
    CUSTOM_RULES,
    FLAT,
    Equation,
    Program,
    bind,
    branches,
    called,
    line_of,
    opened,
    outputs_that_change,
    prints,
    scan_parts,
    source,
    while_parts,
)

# Iterations of a loop that are looked into, and equations that loops may be unrolled to.
ITERATIONS, UNROLLED = 1000, 600
# A walk through more equations than these is not worth one compilation: each kind of them is.
TOGETHER = 100


class Site(NamedTuple):
    """An equation in its place.

    Attributes:
      eqn: the equation.
      line: of the user's, as JAX sums it up.
      inputs: the slots that it reads, and
      outputs: those that it fills.
      active: the numbers of the inputs that it is differentiated by.
      active: the numbers of the inputs that it is differentiated by.
      asked: the numbers of the outputs that have a cotangent.
    """

    eqn: Equation
    line: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    active: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What it is called: the primitive, or the function that carries a rule."""
        if self.eqn.primitive in CUSTOM_RULES:
            return source(self.eqn)[0]
        return self.eqn.primitive.name

    @property
    def kind(self) -> Any:
        """What is the same for sites that are compiled alike: all but where they stand."""
        eqn = self.eqn
        shapes = tuple((x.shape, x.dtype, x.weak_type) for x in avals_of(eqn.invars))
        params = tuple(sorted(eqn.params.items()))
        try:
            hash(params)
        except TypeError:
            params = id(eqn)
        return eqn.primitive, params, shapes, self.active, self.asked


class Record(NamedTuple):
    """What a walk found.

    Attributes:
      values: of each slot.
      cotangents: of each slot that has one.
      pulled: for each site, what it makes of the cotangents of its outputs, for each active input.
    """

    values: dict[int, Any]
    cotangents: dict[int, Any]
    pulled: list[list[Any]]


class Cut(NamedTuple):
    """Up to `place` of a walk, there and back, what it finds is replaced by what is exact.

    Attributes:
      place: how many of the walk's `places` are exact.
      exact: what another walk found.
    """

    place: Any
    exact: Record

    def chosen(self, number: int, own: Any, exact: Any) -> Any:
        """What goes on behind a place of the walk."""
        return jnp.where(number < self.place, exact.astype(own.dtype), own)


class Place(NamedTuple):
    """A place of a walk.

    Attributes:
      site: number of the site.
      back: whether it is its pullback.
      slots: whose cotangents are summed there, if it is that.
    """

    site: int
    back: bool = False
    slots: tuple[int, ...] = ()


class Inside(NamedTuple):
    """What is inside of a site: a program, and what it is given there.

    Attributes:
      name: which iteration; empty where there is one alone.
      program: what is evaluated.
      inputs: its values.
      moving: which of them it is differentiated by.
      seeds: the cotangents of its outputs, None for those without.
    """

    name: str
    program: Program
    inputs: list[Any]
    moving: tuple[bool, ...]
    seeds: list[Any]


class Tape:
    """A program laid out flat, and the walks through it.

    Attributes:
      sites: its equations, in the order of evaluation.
      kinds: a number for each, the same for those that are compiled alike.
      together: whether a walk is one program; else each kind of equation is.
      lines: what else is compiled for a kind, by its number.
      inputs: the slots of what it is given, and
      outputs: of its result.
      places: of a walk, in their order: each site; and on the way back each again, and where the
        last of several cotangents of one slot was added.
      dtype: that it is evaluated in; None for its own.
    """

    def __init__(
        self, program: Program, moving: Sequence[bool], dtype: Any = None, unrolled: bool = False
    ):
        """Lay out a program, differentiated by the inputs that move.

        Args:
          program: what is evaluated.
          moving: whether each of its inputs is.
          dtype: that it is evaluated in.
          unrolled: whether short loops are laid out too.
        """
        self.dtype, self._consts, self._count = dtype, {}, 0
        self._insides: dict[Any, Any] = {}
        self.lines: dict[int, Any] = {}
        self._unrolled = unrolled
        sites: list[Site] = []
        self.inputs = tuple(self._slot() for _ in opened(program)[0].invars)
        self.outputs = self._lay(program, self.inputs, "", sites)
        inexact = [is_inexact(v.aval) for v in opened(program)[0].outvars]
        ends = {s for s, floats in zip(self.outputs, inexact, strict=True) if floats}
        starts = {s for s, moves in zip(self.inputs, moving, strict=True) if moves}
        self.sites = _differentiated(sites, starts, ends)
        ones = self._kinds()
        pulls = [pull_of(site, dtype) if site.asked else None for site in ones]
        values = [functools.partial(evaluated, site.eqn, dtype=dtype) for site in ones]
        self.together = len(self.sites) <= TOGETHER
        if not self.together:
            values = list(map(jax.jit, values))
            pulls = [pull and jax.jit(pull) for pull in pulls]
        self._values = [values[k] for k in self.kinds]
        self._pulls = [pulls[k] for k in self.kinds]
        pairs = zip(self.sites, self._pulls, strict=True)  # where there is no way back, it ends
        self.sites = [s if pull else s._replace(active=(), asked=()) for s, pull in pairs]
        self.places = self._places()
        self._walk, self._levels = self._walked, _levels_one_by_one
        if self.together:
            self._walk, self._levels = jax.jit(self._walked), jax.jit(_levels)

    def record(self, inputs: Sequence[Any], seeds: Sequence[Any], cut: Cut | None = None) -> Record:
        """Walk. `seeds` are the cotangents of the outputs; None for those without."""
        with arithmetic(self.dtype):
            record = self._walk(list(inputs), list(seeds), cut)
        given = dict(zip(self.inputs, inputs, strict=True))
        return record._replace(values={**self._consts, **given, **record.values})

    def levels(self, record: Record) -> Record:
        """In the place of each array how finite it is: 0 finite, 1 with infinities, 2 with NaN."""
        return jax.device_get(self._levels(record))

    def inside(self, number: int, record: Record) -> list[Inside]:
        """What is inside of a site, as it is met; nothing for what has no inside."""
        site = self.sites[number]
        eqn, kind = site.eqn, site.eqn.primitive
        inputs = [record.values[s] for s in site.inputs]
        moving = tuple(i in site.active for i in range(len(inputs)))
        seeds = [
            record.cotangents.get(s) if j in site.asked else None
            for j, s in enumerate(site.outputs)
        ]
        if kind in CUSTOM_RULES:
            return [Inside("", called(eqn), inputs, moving, seeds)]
        if kind is primitives.cond_p:
            choices = branches(eqn)
            index = min(max(int(inputs[0]), 0), len(choices) - 1)
            return [Inside("", choices[index], inputs[1:], moving[1:], seeds)]
        if kind is primitives.scan_p:
            parts = scan_parts(eqn.params, inputs)
            order = list(range(parts.options["length"]))[:: -1 if parts.options["reverse"] else 1]
            loop = _Loop(parts.body, parts.consts, parts.carry, parts.xs, order)
            return self._iterations(loop, moving, seeds)
        if kind is primitives.while_p:
            parts = while_parts(eqn.params, inputs)
            if parts.condition.out_avals[0].shape == ():
                first = len(parts.condition_consts)
                loop = _Loop(parts.body, parts.body_consts, parts.carry, [], None)
                going = lambda c: self._run(parts.condition, [*parts.condition_consts, *c])[0]  # noqa: E731
                return self._iterations(loop, moving[first:], seeds, going)
        return []

    def tape_of(self, inside: Inside) -> "Tape":
        """The tape of what is inside; one for all iterations of a loop."""
        key = id(inside.program), inside.moving
        if key not in self._insides:
            self._insides[key] = Tape(inside.program, inside.moving, self.dtype), inside.program
        return self._insides[key][0]

    def _slot(self) -> int:
        self._count += 1
        return self._count - 1

    def _constant(self, value: Any) -> int:
        slot = self._slot()
        self._consts[slot] = value
        return slot

    def _lay(
        self, program: Program, arguments: Sequence[int], line: str, sites: list[Site]
    ) -> tuple[int, ...]:
        """Add a program's equations to the sites; returns the slots of its outputs."""
        jaxpr, consts = opened(program)
        slots = dict(zip(jaxpr.constvars, map(self._constant, consts), strict=True))
        slots |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return self._constant(atom.val) if isinstance(atom, core.Literal) else slots[atom]

        for eqn in jaxpr.eqns:
            if eqn.primitive in prints():
                continue
            inputs, here = tuple(map(read, eqn.invars)), line_of(eqn) or line
            inner = None if eqn.primitive in CUSTOM_RULES else called(eqn)
            if inner is not None:
                outputs = self._lay(inner, inputs, here, sites)
            elif self._unrolled and _is_short(eqn):
                outputs = self._lay_loop(eqn, inputs, here, sites)
            else:
                outputs = tuple(self._slot() for _ in eqn.outvars)
                sites.append(Site(eqn, here, inputs, outputs))
            slots |= dict(zip(eqn.outvars, outputs, strict=True))
        return tuple(map(read, jaxpr.outvars))

    def _lay_loop(
        self, eqn: Equation, inputs: Sequence[int], line: str, sites: list[Site]
    ) -> tuple[int, ...]:
        """A scan, iteration by iteration."""
        parts = scan_parts(eqn.params, inputs)
        n, m, length = len(parts.consts), len(parts.carry), parts.options["length"]
        avals = avals_of(eqn.invars)[n + m :]
        row = lambda x, i: lax.dynamic_index_in_dim(x, i, keepdims=False)  # noqa: E731
        rows = [jax.make_jaxpr(row)(x, np.int32(0)) for x in avals]
        carry, ys = list(parts.carry), []
        order = range(length)[:: -1 if parts.options["reverse"] else 1]
        for place in order:
            index = self._constant(np.int32(place))
            pairs = zip(rows, parts.xs, strict=True)
            xs = [self._lay(one, (x, index), line, sites)[0] for one, x in pairs]
            outputs = self._lay(parts.body, [*parts.consts, *carry, *xs], line, sites)
            carry, ys = list(outputs[:m]), [*ys, outputs[m:]]
        in_place = ys if not parts.options["reverse"] else ys[::-1]
        stacked = []
        for k, aval in enumerate(avals_of(opened(parts.body)[0].outvars[m:])):
            together = jax.make_jaxpr(lambda *x: jnp.stack(x))(*[aval] * length)
            stacked += self._lay(together, [y[k] for y in in_place], line, sites)
        return (*carry, *stacked)

    def _walked(self, inputs: list[Any], seeds: list[Any], cut: Cut | None) -> Record:
        given = {slot: self._lifted(x) for slot, x in self._consts.items()}
        given |= dict(zip(self.inputs, map(self._lifted, inputs), strict=True))
        values = self._there(dict(given), cut)
        found = {slot: x for slot, x in values.items() if slot not in given}
        return Record(found, *self._back(values, seeds, cut))

    def _lifted(self, x: Any) -> Any:
        return x if self.dtype is None else widen_leaf(x, self.dtype)

    def _there(self, values: dict[int, Any], cut: Cut | None) -> dict[int, Any]:
        """The values of all slots, out of those that are given."""
        for number, site in enumerate(self.sites):
            outputs = self._values[number]([values[s] for s in site.inputs])
            if cut is not None:
                outputs = [
                    cut.chosen(number, x, cut.exact.values[s]) if is_inexact(x) else x
                    for s, x in zip(site.outputs, outputs, strict=True)
                ]
            values |= dict(zip(site.outputs, outputs, strict=True))
        return values

    def _back(
        self, values: dict[int, Any], seeds: list[Any], cut: Cut | None
    ) -> tuple[dict[int, Any], list[list[Any]]]:
        """The cotangents of slots, and what each site makes of those of its outputs."""
        cotangents: dict[int, Any] = {}
        pulled: list[list[Any]] = [[] for _ in self.sites]

        def add(slot, x):
            cotangents[slot] = x if slot not in cotangents else cotangents[slot] + x

        for slot, seed in zip(self.outputs, seeds, strict=True):
            if seed is not None:
                add(slot, self._lifted(seed))
        for place, (number, back, slots) in enumerate(self.places):
            if slots and cut is not None:
                for slot in slots:
                    exact = cut.exact.cotangents[slot]
                    cotangents[slot] = cut.chosen(place, cotangents[slot], exact)
            site, pull = self.sites[number], self._pulls[number]
            if slots or not back or pull is None:
                continue
            given = [site.outputs[j] for j in site.asked]
            cts = [cotangents.setdefault(s, jnp.zeros_like(values[s])) for s in given]
            pulled[number] = pull([values[s] for s in site.inputs], cts)
            if cut is not None:
                pairs = zip(pulled[number], cut.exact.pulled[number], strict=True)
                pulled[number] = [cut.chosen(place, *pair) for pair in pairs]
            for i, x in zip(site.active, pulled[number], strict=True):
                add(site.inputs[i], x)
        return cotangents, pulled

    def _kinds(self) -> list[Site]:
        """One site of each kind; notes which kind each is of."""
        first: dict[Any, int] = {}
        self.kinds = [first.setdefault(site.kind, len(first)) for site in self.sites]
        one = dict(zip(reversed(self.kinds), reversed(self.sites), strict=True))
        return [one[k] for k in range(len(first))]

    def _places(self) -> list[Place]:
        """The places of a walk."""
        uses: dict[int, list[int]] = {}
        for number, site in enumerate(self.sites):
            for slot in (site.inputs[i] for i in site.active):
                uses.setdefault(slot, []).append(number)
        summed: dict[int, tuple[int, ...]] = {}
        for slot, numbers in uses.items():
            if len(numbers) > 1:
                summed[min(numbers)] = (*summed.get(min(numbers), ()), slot)
        places = [Place(number) for number in range(len(self.sites))]
        for number in reversed(range(len(self.sites))):
            if self._pulls[number] is not None:
                places.append(Place(number, True))
                if number in summed:
                    places.append(Place(number, True, summed[number]))
        return places

    def meeting(self, slot: int) -> int:
        """The first site where two ways from a slot come together again."""
        ways: dict[int, frozenset[Any]] = {}
        for number, site in enumerate(self.sites):
            found = [ways.get(s, frozenset()) for s in site.inputs]
            used = [
                frozenset([(number, i)]) if s == slot and i in site.active else way
                for i, (s, way) in enumerate(zip(site.inputs, found, strict=True))
            ]
            every = frozenset().union(*used)
            if sum(map(bool, used)) > 1 and len(every) > 1:
                return number
            ways |= dict.fromkeys(site.outputs, every)
        return max(n for n, site in enumerate(self.sites) if slot in site.inputs)

    def _run(self, program: Program, inputs: Sequence[Any]) -> list[Any]:
        """A program of what is inside, compiled once."""
        if id(program) not in self._insides:
            run = functools.partial(run_program, program, dtype=self.dtype)
            self._insides[id(program)] = jax.jit(run), program
        with arithmetic(self.dtype):
            return self._insides[id(program)][0](list(inputs))

    def _iterations(
        self,
        loop: "_Loop",
        moving: Sequence[bool],
        seeds: Sequence[Any],
        going: Callable[[list[Any]], Any] = lambda carry: True,
    ) -> list[Inside]:
        """The iterations of a loop in their order, each with what its outputs have for cotangents;
        none where there are too many.
        """
        n, m, body = len(loop.consts), len(loop.carry), loop.body
        given, carry = self._unrolled_inputs(loop, going)
        moving = _moving_in_loop(body, moving, n, m)
        outputs = [v.aval for v in opened(body)[0].outvars]
        asked = [
            j
            for j, aval in enumerate(outputs)
            if is_inexact(aval) and (moving[n + j] if j < m else seeds[j] is not None)
        ]
        active = [i for i, moves in enumerate(moving) if moves]
        back = self._back_through(body, active, asked)
        cts = {j: _zeros_like(carry[j], seeds[j]) for j in asked if j < m}
        found = []
        for place, inputs in reversed(given):
            here = {**cts, **{j: seeds[j][place] for j in asked if j >= m}}
            every = [here.get(j) for j in range(len(outputs))]
            found.append(Inside(f"iteration {place}", body, inputs, tuple(moving), every))
            if asked and active:
                with arithmetic(self.dtype):
                    pulled = dict(zip(active, back(inputs, [here[j] for j in asked]), strict=True))
                cts = {j: pulled[n + j] for j in cts}
        return found[::-1]

    def _unrolled_inputs(
        self, loop: "_Loop", going: Callable[[list[Any]], Any]
    ) -> tuple[list[tuple[int, list[Any]]], list[Any]]:
        """What each iteration is given, behind its number, and what is carried at the end; nothing
        of loops that are too long.
        """
        carry, given = list(loop.carry), []
        for step in range(ITERATIONS + 1):
            if (loop.order is not None and step == len(loop.order)) or not going(carry):
                return given, carry
            place = step if loop.order is None else loop.order[step]
            inputs = [*loop.consts, *carry, *(x[place] for x in loop.xs)]
            given.append((place, inputs))
            carry = self._run(loop.body, inputs)[: len(carry)]
        return [], carry

    def _back_through(
        self, body: Program, active: Sequence[int], asked: Sequence[int]
    ) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
        """The pullback of a loop's body; kept."""
        key = "back", id(body), tuple(asked), tuple(active)
        if key not in self._insides:
            call = lambda xs: core.jaxpr_as_fun(body)(*xs)  # noqa: E731
            avals = avals_of(opened(body)[0].invars)
            self._insides[key] = jax.jit(vjp_of(call, avals, active, asked, self.dtype)), body
        return self._insides[key][0]


class _Loop(NamedTuple):
    """What a loop is made of; `order` of its rows, or None for one that ends by itself."""

    body: Program
    consts: list[Any]
    carry: list[Any]
    xs: list[Any]
    order: list[int] | None


def arithmetic(dtype: Any) -> Any:
    """JAX's settings for a walk in a wide dtype; those that are, for one in its own."""
    return jax.default_matmul_precision(None) if dtype is None else wide_arithmetic(dtype)


def is_inexact(x: Any) -> bool:
    """Whether it is of floating or complex numbers."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def level(x: Any) -> Any:
    """How finite an array is: 0 finite, 1 with infinities, 2 with NaN."""
    if not is_inexact(x):
        return np.int8(0)
    worst = jnp.where(jnp.any(jnp.isnan(x)), 2, jnp.where(jnp.any(jnp.isinf(x)), 1, 0))
    return worst.astype(jnp.int8)


def _levels(record: Record) -> Record:
    return jax.tree.map(level, record)


def _levels_one_by_one(record: Record) -> Record:
    return jax.tree.map(jax.jit(level), record)


def evaluated(eqn: Equation, inputs: Sequence[Any], dtype: Any) -> list[Any]:
    """The outputs of an equation, in its own dtypes or in a wide one."""
    if dtype is None:
        return bind(eqn, inputs)
    return Evaluation(dtype, RULES, set()).step(eqn, list(inputs))


def run_program(program: Program, inputs: Sequence[Any], dtype: Any) -> list[Any]:
    """The outputs of a program, in its own dtypes or in a wide one."""
    if dtype is None:
        return core.jaxpr_as_fun(program)(*inputs)
    return Evaluation(dtype, RULES, set())(program, inputs)


def of_active(
    call: Callable[[Sequence[Any]], Sequence[Any]],
    active: Sequence[int],
    asked: Sequence[int],
    full: Sequence[Any],
) -> Callable[[Sequence[Any]], list[Any]]:
    """The outputs of a function that are `asked` for, by its `active` inputs; `full` has all."""

    def of(points):
        moved = list(full)
        for i, x in zip(active, points, strict=True):
            moved[i] = x
        outputs = call(moved)
        return [outputs[j] for j in asked]

    return of


def vjp_of(
    call: Callable[[Sequence[Any]], Sequence[Any]],
    avals: Sequence[Any],
    active: Sequence[int],
    asked: Sequence[int],
    dtype: Any,
) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """A function of a function's inputs and of cotangents of the outputs `asked` for: what they are
    for its `active` inputs.

    The function is differentiated in its own dtypes, and that evaluated in `dtype`; by forward mode
    where there is no reverse.
    """
    of = functools.partial(of_active, call, active, asked)

    def reverse(full, cts):
        return jax.vjp(of(full), [full[i] for i in active])[1](cts)[0]

    def forward(full, cts):
        points = [full[i] for i in active]

        def along(k, flat):
            tangents = [jnp.zeros_like(x) for x in points]
            tangents[k] = tangents[k].ravel().at[flat].set(1).reshape(points[k].shape)
            changes = jax.jvp(of(full), (points,), (tangents,))[1]
            return functools.reduce(jnp.add, map(lambda ct, dy: jnp.sum(ct * dy), cts, changes))

        return [
            lax.map(functools.partial(along, k), jnp.arange(x.size)).reshape(x.shape)
            for k, x in enumerate(points)
        ]

    shapes = jax.eval_shape(lambda full: of(full)([full[i] for i in active]), list(avals))
    for way in (reverse, forward):
        try:
            if dtype is not None:
                return widen(way, (list(avals), list(shapes)), dtype).call
            jax.eval_shape(way, list(avals), list(shapes))
            return way
        except Exception:  # of a rule: JAX and its users raise anything
            if way is forward:
                raise
    raise AssertionError


def seeds_of(program: Program) -> list[Any]:
    """The cotangents of a program's outputs that begin the way back: 1 for its scalar."""
    return [jnp.ones(aval.shape, aval.dtype) for aval in avals_of(opened(program)[0].outvars)]


def avals_of(variables: Sequence[Any]) -> list[Any]:
    """Shapes and dtypes of a program's variables."""
    return [
        jax.ShapeDtypeStruct(
            v.aval.shape, v.aval.dtype, weak_type=getattr(v.aval, "weak_type", False)
        )
        for v in variables
    ]


def pull_of(site: Site, dtype: Any) -> Callable | None:
    """The pullback of a site; None where it has no derivative."""
    call, avals = functools.partial(bind, site.eqn), avals_of(site.eqn.invars)
    with contextlib.suppress(Exception):  # of a rule: JAX and its users raise anything
        return vjp_of(call, avals, site.active, site.asked, dtype)
    return None


def _differentiated(sites: Sequence[Site], starts: set[int], ends: set[int]) -> list[Site]:
    """The sites, knowing which of their inputs and outputs a derivative goes through."""
    moving, found = set(starts), []
    for site in sites:
        variables = zip(site.inputs, site.eqn.invars, strict=True)
        active = tuple(
            i for i, (s, v) in enumerate(variables) if s in moving and is_inexact(v.aval)
        )
        if active and site.eqn.primitive not in FLAT:
            outputs = zip(site.outputs, site.eqn.outvars, strict=True)
            moving.update(s for s, v in outputs if is_inexact(v.aval))
            site = site._replace(active=active)
        found.append(site)
    needed = moving & ends
    for number, site in reversed(list(enumerate(found))):
        asked = tuple(j for j, s in enumerate(site.outputs) if site.active and s in needed)
        if asked:
            needed.update(site.inputs[i] for i in site.active)
        found[number] = site._replace(asked=asked, active=site.active if asked else ())
    return found


def _moving_in_loop(body: Program, moving: Sequence[bool], n: int, m: int) -> list[bool]:
    """Which inputs of a loop's body move: what is carried does if an iteration makes it."""
    moving, inexact = list(moving), [is_inexact(v.aval) for v in opened(body)[0].invars]
    moving = [a and b for a, b in zip(moving, inexact, strict=True)]
    for _ in range(m + 1):
        changed = outputs_that_change(body, moving)[:m]
        pairs = zip(moving[n : n + m], changed, inexact[n : n + m], strict=True)
        moving[n : n + m] = [(a or b) and floats for a, b, floats in pairs]
    return moving


def _is_short(eqn: Equation) -> bool:
    if eqn.primitive is not primitives.scan_p:
        return False
    return eqn.params["length"] * len(opened(eqn.params["jaxpr"])[0].eqns) <= UNROLLED


def _zeros_like(x: Any, seed: Any) -> Any:
    return jnp.zeros_like(x) if seed is None else seed
