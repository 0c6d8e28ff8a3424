"""Flattens a program: its equations in order, with calls inlined.

Each value has a slot. Loops, branches and functions with a custom rule stay single equations; short
loops can be unrolled. The line of an equation is the user's line that led to it, even if code of
JAX lies between them. JAX records no line in a `cond` that `vmap` has turned into a `select`; such
an equation has the line of the one before it.
"""

import itertools
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
    equations_inside,
    evaluate,
    has_custom_rule,
    make_jaxpr,
    opened,
    prints,
    scan_parts,
)
from jaxnn.numerical.sources import line_of, operation_name

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
      held: whether an input changes with those that are differentiated, but passes no derivative.
    """

    eqn: Equation
    line: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    active: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    held: bool = False

    @property
    def name(self) -> str:
        """The name of the primitive, or of the function that has a custom rule."""
        return operation_name(self.eqn)

    @property
    def moved(self) -> tuple[tuple[int, ...], ...]:
        """The active inputs that move together: an operand that enters a program several times is
        one, as a solver's condition, body and rule must see the same value.
        """
        if not (has_custom_rule(self.eqn) or any(equations_inside(self.eqn))):
            return tuple((i,) for i in self.active)
        slots = dict.fromkeys(self.inputs[i] for i in self.active)
        return tuple(tuple(i for i in self.active if self.inputs[i] == s) for s in slots)

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
        return eqn.primitive, params, shapes, self.moved, self.asked


def lay_out(
    program: Program, moving: Sequence[bool], unrolled: bool, line: str
) -> tuple[list[Site], tuple[int, ...], tuple[int, ...], dict[int, Any]]:
    """The sites of a program in order, the slots of its inputs and of its outputs, and the values
    of its constants by slot. Sites have the inputs and outputs that derivatives pass.

    Args:
      program: the program.
      moving: whether each of its inputs is differentiated.
      unrolled: whether short loops are unrolled.
      line: the user's line that led to the program; empty for a whole function.
    """
    sites: list[Site] = []
    constants: dict[int, Any] = {}
    slots = itertools.count()

    def constant(value):
        constants[slot := next(slots)] = value
        return slot

    def lay(program, arguments, line):
        def step(eqn, inputs):
            if eqn.primitive in prints():
                return ()
            here = line_of(eqn) or line or (sites[-1].line if sites else "")
            inner = None if has_custom_rule(eqn) else called(eqn)
            if unrolled and _is_short(eqn):
                inner = _unrolled(eqn)
            if inner is not None:
                return lay(inner, inputs, here)
            outputs = tuple(next(slots) for _ in eqn.outvars)
            sites.append(Site(eqn, here, tuple(inputs), outputs))
            return outputs

        return tuple(evaluate(program, arguments, step, constant))

    variables = opened(program)[0]
    inputs = tuple(next(slots) for _ in variables.invars)
    outputs = lay(program, inputs, line)
    inexact = [is_inexact(v.aval) for v in variables.outvars]
    ends = {s for s, floats in zip(outputs, inexact, strict=True) if floats}
    starts = {s for s, moves in zip(inputs, moving, strict=True) if moves}
    return _differentiated(sites, starts, ends), inputs, outputs, constants


def is_inexact(x: Any) -> bool:
    """Whether `x` has a floating or complex dtype."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def _differentiated(sites: Sequence[Site], starts: set[int], ends: set[int]) -> list[Site]:
    """The sites, with the inputs and outputs that derivatives pass as `active` and `asked`, and
    with `held`.
    """
    moving, changing, found = set(starts), set(starts), []
    for site in sites:
        variables = zip(site.inputs, site.eqn.invars, strict=True)
        active = tuple(
            i for i, (s, v) in enumerate(variables) if s in moving and is_inexact(v.aval)
        )
        if changed := changing.intersection(site.inputs):
            changing.update(site.outputs)
        if active and site.eqn.primitive not in FLAT:
            outputs = zip(site.outputs, site.eqn.outvars, strict=True)
            moving.update(s for s, v in outputs if is_inexact(v.aval))
            site = site._replace(active=active, held=not changed <= moving)
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


def _unrolled(eqn: Equation) -> Program:
    """A scan as a program without a loop."""

    def run(*inputs):
        parts = scan_parts(eqn.params, inputs)
        m, carry, ys = len(parts.carry), parts.carry, []
        order = range(parts.options["length"])[:: -1 if parts.options["reverse"] else 1]
        for place in order:
            # The same operation in each iteration: its place is an input.
            at = lambda x, i=place: lax.dynamic_index_in_dim(x, np.int32(i), keepdims=False)  # noqa: E731
            outputs = core.jaxpr_as_fun(parts.body)(*parts.consts, *carry, *map(at, parts.xs))
            carry, ys = outputs[:m], [*ys, outputs[m:]]
        in_place = ys if not parts.options["reverse"] else ys[::-1]
        return [*carry, *map(jnp.stack, zip(*in_place, strict=True))]

    return make_jaxpr(run)(*avals_of(eqn.invars))
