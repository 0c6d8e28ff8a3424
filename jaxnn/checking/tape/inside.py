"""The programs inside an equation: the function of a custom rule, a branch, iterations of a loop,
the product that a linear solve inverts.

Each program has its actual inputs and cotangents.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from jaxnn._programs import Jitted
from jaxnn.checking.compiling import compiler_options
from jaxnn.checking.tape.layout import is_inexact
from jaxnn.checking.tape.walk import Record, Tape, arbitrary_vjp, arithmetic, run_program, vjp_of
from jaxnn.numerical.interpret import (
    LinearSolve,
    Program,
    branches,
    called,
    has_custom_rule,
    linear_solve_parts,
    opened,
    outputs_that_change,
    scan_parts,
    while_parts,
)

# Loops with more iterations than this are not searched.
ITERATIONS = 1000


class Inside(NamedTuple):
    """A program inside a site, with its inputs and cotangents.

    Attributes:
      name: the iteration; empty outside loops.
      program: the program.
      inputs: the values of its inputs.
      moving: whether each input is differentiated.
      seeds: the cotangents of its outputs, None for outputs without one.
    """

    name: str
    program: Program
    inputs: list[Any]
    moving: tuple[bool, ...]
    seeds: list[Any]


def insides(tape: Tape, number: int, record: Record) -> list[Inside]:
    """The programs inside a site, in the order of evaluation; empty if there are none."""
    site = tape.sites[number]
    eqn, kind = site.eqn, site.eqn.primitive
    inputs = [record.values[s] for s in site.inputs]
    moving = tuple(i in site.active for i in range(len(inputs)))
    seeds = [
        record.cotangents.get(s) if j in site.asked else None for j, s in enumerate(site.outputs)
    ]
    if has_custom_rule(eqn):
        return [Inside("", called(eqn), inputs, moving, seeds)]
    if kind is primitives.cond_p:
        choices = branches(eqn)
        index = min(max(int(inputs[0]), 0), len(choices) - 1)
        return [Inside("", choices[index], inputs[1:], moving[1:], seeds)]
    if kind is primitives.scan_p:
        parts = scan_parts(eqn.params, inputs)
        places = range(parts.options["length"])[:: -1 if parts.options["reverse"] else 1]
        loop = _Loop(parts.body, parts.consts, parts.carry, parts.xs, places)
        return _iterations(tape, loop, moving, seeds)
    if kind is primitives.while_p:
        parts = while_parts(eqn.params, inputs)
        if parts.condition.out_avals[0].shape == ():
            first = len(parts.condition_consts)
            going = lambda c: _run(tape, parts.condition, [*parts.condition_consts, *c])[0]  # noqa: E731
            loop = _Loop(parts.body, parts.body_consts, parts.carry, [], itertools.count(), going)
            return _iterations(tape, loop, moving[first:], seeds)
    if kind is primitives.linear_solve_p:
        parts = linear_solve_parts(eqn.params, inputs)
        solution = [record.values[s] for s in site.outputs]
        return _product(tape, parts, solution, moving, seeds)
    return []


def tape_of(tape: Tape, number: int, inside: Inside) -> Tape:
    """The tape of a program inside a site; all iterations of a loop share one."""
    program, moving, line = inside.program, inside.moving, tape.sites[number].line
    build = lambda: (Tape(program, moving, tape.dtype, line=line), program)  # noqa: E731
    return tape.keep((line, id(program), moving), build)[0]


def _run(tape: Tape, program: Program, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a program inside a site, which is compiled once."""
    run = functools.partial(run_program, program, dtype=tape.dtype)
    jitted, _ = tape.keep(id(program), lambda: (Jitted(run, options=compiler_options), program))
    with arithmetic(tape.dtype):
        return jitted(list(inputs))


def _product(
    tape: Tape,
    parts: LinearSolve,
    solution: list[Any],
    moving: Sequence[bool],
    seeds: Sequence[Any],
) -> list[Inside]:
    """The product that a linear solve inverts, at its solution; empty if JAX cannot transpose it.

    The transposed solve gives the cotangents of the product, up to their sign.
    """
    if not parts.transposed:
        return []
    zeros = map(np.zeros_like, solution)
    cts = [zero if ct is None else ct for zero, ct in zip(zeros, seeds, strict=True)]
    back = _run(tape, parts.transposed, [*parts.transposed_consts, *cts])
    moves = *moving[: len(parts.matvec_consts)], *(False for _ in solution)
    return [Inside("", parts.matvec, [*parts.matvec_consts, *solution], moves, back)]


def _iterations(
    tape: Tape,
    loop: "_Loop",
    moving: Sequence[bool],
    seeds: Sequence[Any],
) -> list[Inside]:
    """The iterations of a loop in order, each with the cotangents of its outputs; empty if the loop
    is too long.
    """
    n, m, body = len(loop.consts), len(loop.carry), loop.body
    given, carry = _unrolled_inputs(tape, loop)
    moving = _moving_in_loop(body, moving, n, m)
    outputs = [v.aval for v in opened(body)[0].outvars]
    asked = [
        j
        for j, aval in enumerate(outputs)
        if is_inexact(aval) and (moving[n + j] if j < m else seeds[j] is not None)
    ]
    active = [i for i, moves in enumerate(moving) if moves]
    back = _back_through(tape, body, active, asked)
    zeros = lambda x: np.zeros(x.shape, x.dtype)  # noqa: E731
    cts = {j: zeros(carry[j]) if seeds[j] is None else seeds[j] for j in asked if j < m}
    found = []
    for place, inputs in reversed(given):
        here = {**cts, **{j: seeds[j][place] for j in asked if j >= m}}
        every = [here.get(j) for j in range(len(outputs))]
        found.append(Inside(f"iteration {place}", body, inputs, tuple(moving), every))
        if asked and active:
            with arithmetic(tape.dtype):
                pulled = dict(zip(active, back(inputs, [here[j] for j in asked]), strict=True))
            cts = {j: pulled[n + j] for j in cts}
    return found[::-1]


def _unrolled_inputs(tape: Tape, loop: "_Loop") -> tuple[list[tuple[int, list[Any]]], list[Any]]:
    """The number and inputs of each iteration, and the final carry; no iterations if the loop is
    too long.
    """
    carry, given = list(loop.carry), []
    for place in loop.places:
        if not loop.going(carry):
            break
        if len(given) == ITERATIONS:
            return [], carry
        given.append((place, [*loop.consts, *carry, *(x[place] for x in loop.xs)]))
        carry = _run(tape, loop.body, given[-1][1])[: len(carry)]
    return given, carry


def _back_through(
    tape: Tape, body: Program, active: Sequence[int], asked: Sequence[int]
) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """The pullback of a loop's body, compiled once; arbitrary if JAX cannot differentiate it."""

    def build():
        call = lambda xs: core.jaxpr_as_fun(body)(*xs)  # noqa: E731
        form, _ = opened(body)
        pull = vjp_of(call, form, active, asked, tape.dtype) or arbitrary_vjp(active)
        return Jitted(pull, options=compiler_options), body

    return tape.keep(("back", id(body), tuple(asked), tuple(active)), build)[0]


class _Loop(NamedTuple):
    """The parts of a loop, the numbers of its iterations, and whether it goes on after a carry."""

    body: Program
    consts: list[Any]
    carry: list[Any]
    xs: list[Any]
    places: Iterable[int]
    going: Callable[[list[Any]], Any] = lambda carry: True


def _moving_in_loop(body: Program, moving: Sequence[bool], n: int, m: int) -> list[bool]:
    """Whether each input of a loop's body moves; a carry does if any iteration changes it."""
    moving, inexact = list(moving), [is_inexact(v.aval) for v in opened(body)[0].invars]
    moving = [a and b for a, b in zip(moving, inexact, strict=True)]
    for _ in range(m + 1):
        changed = outputs_that_change(body, moving)[:m]
        pairs = zip(moving[n : n + m], changed, inexact[n : n + m], strict=True)
        moving[n : n + m] = [(a or b) and floats for a, b, floats in pairs]
    return moving
