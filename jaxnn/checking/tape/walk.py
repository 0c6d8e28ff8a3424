"""Walks through a flat program: the values of every equation and, in the backward pass, the
cotangents of its outputs and those that its derivative gives for its inputs.

A walk is one compiled program; for a long program that repeats itself, there is one per kind of
equation.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnn._programs import Jitted
from jaxnn.checking.compiling import compiler_options
from jaxnn.checking.scalar import forward_gradient
from jaxnn.checking.settings import COTANGENT
from jaxnn.checking.tape.layout import Site, is_inexact, lay_out
from jaxnn.numerical.float64 import RULES, Evaluation, wide_arithmetic, widen, widen_leaf
from jaxnn.numerical.interpret import (
    OF_JAX,
    Equation,
    Program,
    avals_of,
    bind,
    derivative_rules,
    equations_inside,
    has_custom_rule,
    opened,
    trace_context,
)

# A walk through more equations than this, and than so many per kind, is compiled separately for
# each kind of equation.
TOGETHER, PER_KIND = 100, 4
# How many pullbacks of JAX's own operations are kept, before all are made anew.
MOST_SHARED = 1024


class Record(NamedTuple):
    """The result of a walk.

    Attributes:
      values: the value of each slot.
      cotangents: the cotangent of each slot that has one.
      pulled: for each site, the cotangents of its active inputs from its pullback.
    """

    values: dict[int, Any]
    cotangents: dict[int, Any]
    pulled: list[list[Any]]


class Cut(NamedTuple):
    """Replaces the results of a walk, up to `place`, by exact ones.

    Attributes:
      place: how many of the walk's `places` are exact.
      exact: the record of an exact walk.
    """

    place: Any
    exact: Record

    def chosen(self, number: int, own: Any, exact: Any) -> Any:
        """The result that the walk continues with after a place."""
        return jnp.where(number < self.place, exact.astype(own.dtype), own)

    def of_site(self, number: int, site: Site, own: Sequence[Any]) -> list[Any]:
        """A site's outputs."""
        pairs = [(x, self.exact.values[s]) for s, x in zip(site.outputs, own, strict=True)]
        return [self.chosen(number, x, y) if is_inexact(x) else x for x, y in pairs]

    def of_pullback(self, place: int, number: int, own: Sequence[Any]) -> list[Any]:
        """What a site's pullback gives."""
        pairs = zip(own, self.exact.pulled[number], strict=True)
        return [self.chosen(place, *pair) for pair in pairs]

    def of_sums(self, place: int, own: dict[int, Any]) -> dict[int, Any]:
        """The sums of cotangents that a place completes, by slot."""
        exact = self.exact.cotangents
        return {slot: self.chosen(place, x, exact[slot]) for slot, x in own.items()}


class Place(NamedTuple):
    """A place of a walk.

    Attributes:
      site: number of the site.
      back: whether the place is in the backward pass.
      slots: the slots whose cotangents are summed there; empty for the site's pullback.
    """

    site: int
    back: bool = False
    slots: tuple[int, ...] = ()


class Tape:
    """A flat program, and the walks through it.

    Attributes:
      sites: its equations, in the order of evaluation.
      kinds: a number for each site, the same for sites that share compiled programs.
      together: whether a walk is one compiled program.
      kept: a cache of further tapes and compiled programs.
      inputs: the slots of the program's inputs.
      outputs: the slots of its outputs.
      places: the places of a walk in order: each site; then, in the backward pass, each pullback,
        followed by the sums of cotangents that it completes.
      dtype: the dtype of the evaluation; None for the program's own dtypes.
      arbitrary: the sites that JAX cannot differentiate but that contain functions with custom
        rules, such as the loop of a solver with an adjoint of its own. Their pullbacks give
        arbitrary cotangents, with which the rules before and inside them can be checked.
    """

    def __init__(
        self,
        program: Program,
        moving: Sequence[bool],
        dtype: Any = None,
        unrolled: bool = False,
        line: str = "",
    ):
        """Lay out a program.

        Args:
          program: the program.
          moving: whether each of its inputs is differentiated.
          dtype: the dtype of the evaluation; None for the program's own dtypes.
          unrolled: whether short loops are unrolled, to see which equations round; in its own
            dtypes, the program is then compiled as the user's is, since that decides what rounds.
          line: the user's line that led to the program; empty for a whole function.
        """
        self.dtype = dtype
        self._options = None if unrolled and dtype is None else compiler_options
        self.kept: dict[Any, Any] = {}
        found = lay_out(program, moving, unrolled, line)
        self.sites, self.inputs, self.outputs, self._consts = found
        ones = self._kinds()
        pulls, arbitrary = _pullbacks(ones, dtype)
        self.arbitrary = {n for n, k in enumerate(self.kinds) if k in arbitrary}
        values = [functools.partial(evaluated, site.eqn, dtype=dtype) for site in ones]
        self.together = len(self.sites) <= max(TOGETHER, PER_KIND * len(ones))
        if not self.together:
            values = [Jitted(value, options=self._options) for value in values]
            pulls = [pull and Jitted(pull, options=self._options) for pull in pulls]
        self._values = [values[k] for k in self.kinds]
        self._pulls = [pulls[k] for k in self.kinds]
        pairs = zip(self.sites, self._pulls, strict=True)  # no pullback: treated as constant
        self.sites = [s if pull else s._replace(active=(), asked=()) for s, pull in pairs]
        self.places = self._places()
        self._walk = Jitted(self._walked, options=self._options) if self.together else self._walked

    def keep(self, key: Any, build: Callable[[], Any]) -> Any:
        """What `build` returns, built once for equal keys."""
        if key not in self.kept:
            self.kept[key] = build()
        return self.kept[key]

    def record(
        self,
        inputs: Sequence[Any],
        seeds: Sequence[Any],
        cut: Cut | None = None,
        only: Sequence[int] | None = None,
    ) -> Record:
        """The record of a walk. Where a walk is one program, one for a few sites alone compiles
        about as fast as the gradient.

        Args:
          inputs: the values of the inputs.
          seeds: the cotangents of the outputs, None for outputs without one.
          cut: which results are replaced by exact ones.
          only: the sites; all by default.
        """
        walk = self._walk
        if only is not None and self.together:
            walk = Jitted(functools.partial(self._part, set(only)), options=self._options)
        with arithmetic(self.dtype):
            record = walk(list(inputs), list(seeds), cut)
        given = dict(zip(self.inputs, inputs, strict=True))
        return record._replace(values={**self._consts, **given, **record.values})

    def _part(self, chosen: set[int], inputs: list[Any], seeds: list[Any], cut: Any) -> Record:
        record = self._walked(inputs, seeds, cut)
        sites = [self.sites[number] for number in chosen]
        slots = {slot for site in sites for slot in (*site.inputs, *site.outputs)}
        of_slots = lambda found: {s: x for s, x in found.items() if s in slots}  # noqa: E731
        pulled = [x if k in chosen else [] for k, x in enumerate(record.pulled)]
        return Record(of_slots(record.values), of_slots(record.cotangents), pulled)

    def levels(self, record: Record) -> Record:
        """For each array of a record: 0 if finite, 1 if it has infinities, 2 if it has NaN."""
        levels = jax.jit(_levels)(record) if self.together else jax.tree.map(jax.jit(level), record)
        return jax.device_get(levels)

    def _walked(self, inputs: list[Any], seeds: list[Any], cut: Cut | None) -> Record:
        given = {slot: self._lifted(x) for slot, x in self._consts.items()}
        given |= dict(zip(self.inputs, map(self._lifted, inputs), strict=True))
        values = self._there(dict(given), cut)
        found = {slot: x for slot, x in values.items() if slot not in given}
        return Record(found, *self._back(values, seeds, cut))

    def _lifted(self, x: Any) -> Any:
        return x if self.dtype is None else widen_leaf(x, self.dtype)

    def _there(self, values: dict[int, Any], cut: Cut | None) -> dict[int, Any]:
        """The values of all slots, from those of inputs and constants."""
        for number, site in enumerate(self.sites):
            outputs = self._values[number]([values[s] for s in site.inputs])
            if cut is not None:
                outputs = cut.of_site(number, site, outputs)
            values |= dict(zip(site.outputs, outputs, strict=True))
        return values

    def _back(
        self, values: dict[int, Any], seeds: list[Any], cut: Cut | None
    ) -> tuple[dict[int, Any], list[list[Any]]]:
        """The cotangents of slots, and the results of each site's pullback."""
        cotangents: dict[int, Any] = {}
        pulled: list[list[Any]] = [[] for _ in self.sites]

        def add(slot, x):
            cotangents[slot] = x if slot not in cotangents else cotangents[slot] + x

        for slot, seed in zip(self.outputs, seeds, strict=True):
            if seed is not None:
                add(slot, self._lifted(seed))
        for place, (number, back, slots) in enumerate(self.places):
            if cut is not None:
                cotangents |= cut.of_sums(place, {slot: cotangents[slot] for slot in slots})
            site, pull = self.sites[number], self._pulls[number]
            if slots or not back:
                continue
            given = [site.outputs[j] for j in site.asked]
            cts = [cotangents.setdefault(s, jnp.zeros_like(values[s])) for s in given]
            pulled[number] = pull([values[s] for s in site.inputs], cts)
            if cut is not None:
                pulled[number] = cut.of_pullback(place, number, pulled[number])
            for i, x in zip(site.active, pulled[number], strict=True):
                add(site.inputs[i], x)
        return cotangents, pulled

    def _kinds(self) -> list[Site]:
        """One site of each kind; also sets `self.kinds`."""
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
        """The first site where two paths from a slot meet again."""
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


def _pullbacks(sites: Sequence[Site], dtype: Any) -> tuple[list[Any], set[int]]:
    """The pullback of each site, if it has one, and the sites where it is arbitrary."""
    shared = _shared(derivative_rules())
    if len(shared) > MOST_SHARED:
        shared.clear()
    pulls = [_pullback(site, dtype, shared) if site.asked else None for site in sites]
    arbitrary = set()
    for k, site in enumerate(sites):
        if site.asked and not pulls[k] and any(map(has_custom_rule, equations_inside(site.eqn))):
            pulls[k] = arbitrary_vjp(site.active)
            arbitrary.add(k)
    return pulls, arbitrary


@functools.lru_cache(maxsize=1)
def _shared(rules: Hashable) -> dict[Any, Any]:
    """The pullbacks of JAX's own operations that earlier tapes made by these rules."""
    return {}


def _pullback(site: Site, dtype: Any, shared: dict[Any, Any]) -> Callable | None:
    """The pullback of a site; for JAX's own operations, one that all tapes share."""
    eqn, kind = site.eqn, site.kind
    make = lambda: vjp_of(functools.partial(bind, eqn), eqn, site.active, site.asked, dtype)  # noqa: E731
    # A program inside may be the user's, and parameters without a hash are no key.
    has_program = has_custom_rule(eqn) or any(equations_inside(eqn))
    if eqn.primitive not in OF_JAX or has_program or not isinstance(kind[1], tuple):
        return make()
    key = kind, site.active, eqn.ctx, trace_context(), dtype
    if key not in shared:
        shared[key] = make()
    return shared[key]


def arithmetic(dtype: Any) -> Any:
    """A context manager with JAX's settings for a walk in a wide dtype; if None, in its own."""
    return jax.default_matmul_precision(None) if dtype is None else wide_arithmetic(dtype)


def level(x: Any) -> Any:
    """0 if an array is finite, 1 if it has infinities, 2 if it has NaN."""
    if not is_inexact(x):
        return np.int8(0)
    worst = jnp.where(jnp.any(jnp.isnan(x)), 2, jnp.where(jnp.any(jnp.isinf(x)), 1, 0))
    return worst.astype(jnp.int8)


def _levels(record: Record) -> Record:
    return jax.tree.map(level, record)


def evaluated(
    eqn: Equation,
    inputs: Sequence[Any],
    dtype: Any,
    rules: Mapping[core.Primitive, Callable] = RULES,
) -> list[Any]:
    """The outputs of an equation, in its own dtypes or in a wide one by `rules`."""
    if dtype is None:
        return bind(eqn, inputs)
    return Evaluation(dtype, rules, set()).step(eqn, list(inputs))


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
    """A function of the `active` inputs of `call` that returns its `asked` outputs; `full` has the
    values of all inputs.
    """

    def of(points):
        moved = list(full)
        for i, x in zip(active, points, strict=True):
            moved[i] = x
        outputs = call(moved)
        return [outputs[j] for j in asked]

    return of


def vjp_of(
    call: Callable[[Sequence[Any]], Sequence[Any]],
    form: Any,
    active: Sequence[int],
    asked: Sequence[int],
    dtype: Any,
) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]] | None:
    """A function that maps all inputs of `call`, and cotangents of its `asked` outputs, to the
    cotangents of its `active` inputs; None if it cannot be differentiated. `form` is the equation
    or the program that `call` evaluates.

    The function is differentiated in its own dtypes; the derivative is evaluated in `dtype`. If it
    has no reverse mode, forward mode is used.
    """
    of = functools.partial(of_active, call, active, asked)
    outputs = avals_of(form.outvars)
    given = avals_of(form.invars), [outputs[j] for j in asked]

    def reverse(full, cts):
        return jax.vjp(of(full), [full[i] for i in active])[1](cts)[0]

    def forward(full, cts):
        def value(points, _):
            pairs = zip(cts, of(full)(points), strict=True)
            return functools.reduce(jnp.add, [jnp.sum(ct * y) for ct, y in pairs])

        _, gradient = forward_gradient(value, COTANGENT)([full[i] for i in active], None)
        return [g / COTANGENT for g in gradient]

    for pull in (reverse, forward):
        with contextlib.suppress(Exception):  # a derivative rule may raise anything
            if pull is forward:  # only here does JAX notice that a VJP has no forward mode
                jax.jit(forward).lower(*given)
            if dtype is not None:
                return widen(pull, given, dtype)
            jax.eval_shape(pull, *given)
            return pull
    return None


def arbitrary_vjp(active: Sequence[int]) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """Like `vjp_of`, with arbitrary cotangents of the `active` inputs."""

    def arbitrary(full, cts):
        flat = [jnp.cos(jnp.arange(full[i].size, dtype=full[i].dtype)) for i in active]
        return [x.reshape(full[i].shape) for i, x in zip(active, flat, strict=True)]

    return arbitrary


def seeds_of(program: Program) -> list[Any]:
    """The cotangents of a program's outputs that start the backward pass: ones."""
    return [jnp.ones(aval.shape, aval.dtype) for aval in avals_of(opened(program)[0].outvars)]
