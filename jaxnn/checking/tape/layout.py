"""Flattens a program: its equations in order, with calls inlined.

Each value has a slot. Loops, branches and functions with a custom rule stay single equations; short
loops can be unrolled. The line of an equation is the user's line that led to it, even if code of
JAX lies between them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.numerical.interpret import (
    FLAT,
    Equation,
    Program,
    avals_of,
    called,
    has_custom_rule,
    line_of,
    make_jaxpr,
    opened,
    prints,
    scan_parts,
    source,
)

# A loop is unrolled if that gives at most this many equations.
UNROLLED = 600


class Site(NamedTuple):
    """An equation with its slots.

    Attributes:
      eqn: the equation.
      line: the user's line, in JAX's summary form.
      inputs: the slots that it reads.
      outputs: the slots that it fills.
      active: the positions of the inputs that are differentiated.
      asked: the positions of the outputs that have a cotangent.
    """

    eqn: Equation
    line: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    active: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name of the primitive, or of the function that has a custom rule."""
        if has_custom_rule(self.eqn):
            return source(self.eqn)[0]
        return self.eqn.primitive.name

    @property
    def kind(self) -> Any:
        """A key that is equal for sites that can share compiled programs."""
        eqn = self.eqn
        shapes = tuple((x.shape, x.dtype, x.weak_type) for x in avals_of(eqn.invars))
        params = tuple(sorted(eqn.params.items()))
        try:
            hash(params)
        except TypeError:
            params = id(eqn)
        return eqn.primitive, params, shapes, self.active, self.asked


class Layout(NamedTuple):
    """A flat program.

    Attributes:
      sites: its equations, in the order of evaluation.
      inputs: the slots of its inputs.
      outputs: the slots of its outputs.
      constants: the values of its constants, by slot.
    """

    sites: list[Site]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]


def lay_out(program: Program, moving: Sequence[bool], unrolled: bool = False) -> Layout:
    """The flat layout of a program, with the inputs and outputs of sites that derivatives pass.

    Args:
      program: the program.
      moving: whether each of its inputs is differentiated.
      unrolled: whether short loops are unrolled.
    """
    layer = _Layer(unrolled)
    variables = opened(program)[0]
    inputs = tuple(layer.slot() for _ in variables.invars)
    outputs = layer.lay(program, inputs, "")
    inexact = [is_inexact(v.aval) for v in variables.outvars]
    ends = {s for s, floats in zip(outputs, inexact, strict=True) if floats}
    starts = {s for s, moves in zip(inputs, moving, strict=True) if moves}
    return Layout(_differentiated(layer.sites, starts, ends), inputs, outputs, layer.constants)


class _Layer:
    """Collects sites and constants while a program is laid out."""

    def __init__(self, unrolled: bool):
        self.sites: list[Site] = []
        self.constants: dict[int, Any] = {}
        self._unrolled, self._count = unrolled, 0

    def slot(self) -> int:
        """A new slot."""
        self._count += 1
        return self._count - 1

    def _constant(self, value: Any) -> int:
        slot = self.slot()
        self.constants[slot] = value
        return slot

    def lay(self, program: Program, arguments: Sequence[int], line: str) -> tuple[int, ...]:
        """The slots of a program's outputs, after its equations are added to the sites."""
        jaxpr, consts = opened(program)
        slots = dict(zip(jaxpr.constvars, map(self._constant, consts), strict=True))
        slots |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return self._constant(atom.val) if isinstance(atom, core.Literal) else slots[atom]

        for eqn in jaxpr.eqns:
            if eqn.primitive in prints():
                continue
            inputs, here = tuple(map(read, eqn.invars)), line_of(eqn) or line
            inner = None if has_custom_rule(eqn) else called(eqn)
            if inner is not None:
                outputs = self.lay(inner, inputs, here)
            elif self._unrolled and _is_short(eqn):
                outputs = self._lay_loop(eqn, inputs, here)
            else:
                outputs = tuple(self.slot() for _ in eqn.outvars)
                self.sites.append(Site(eqn, here, inputs, outputs))
            slots |= dict(zip(eqn.outvars, outputs, strict=True))
        return tuple(map(read, jaxpr.outvars))

    def _lay_loop(self, eqn: Equation, inputs: Sequence[int], line: str) -> tuple[int, ...]:
        """The slots of a scan's outputs, after its iterations are added to the sites."""
        parts = scan_parts(eqn.params, inputs)
        n, m, length = len(parts.consts), len(parts.carry), parts.options["length"]
        avals = avals_of(eqn.invars)[n + m :]
        row = lambda x, i: lax.dynamic_index_in_dim(x, i, keepdims=False)  # noqa: E731
        rows = [make_jaxpr(row)(x, np.int32(0)) for x in avals]
        carry, ys = list(parts.carry), []
        order = range(length)[:: -1 if parts.options["reverse"] else 1]
        for place in order:
            index = self._constant(np.int32(place))
            pairs = zip(rows, parts.xs, strict=True)
            xs = [self.lay(one, (x, index), line)[0] for one, x in pairs]
            outputs = self.lay(parts.body, [*parts.consts, *carry, *xs], line)
            carry, ys = list(outputs[:m]), [*ys, outputs[m:]]
        in_place = ys if not parts.options["reverse"] else ys[::-1]
        stacked = []
        for k, aval in enumerate(avals_of(opened(parts.body)[0].outvars[m:])):
            together = make_jaxpr(lambda *x: jnp.stack(x))(*[aval] * length)
            stacked += self.lay(together, [y[k] for y in in_place], line)
        return (*carry, *stacked)


def is_inexact(x: Any) -> bool:
    """Whether `x` has a floating or complex dtype."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def _differentiated(sites: Sequence[Site], starts: set[int], ends: set[int]) -> list[Site]:
    """The sites, with the inputs and outputs that derivatives pass as `active` and `asked`."""
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


def _is_short(eqn: Equation) -> bool:
    if eqn.primitive is not primitives.scan_p:
        return False
    return eqn.params["length"] * len(opened(eqn.params["jaxpr"])[0].eqns) <= UNROLLED
