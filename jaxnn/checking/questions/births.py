"""Where is NaN or infinity born?

It first appears in an equation whose inputs are finite and whose output is not; or, in the backward
pass, in an equation whose outputs have finite cotangents and whose inputs do not. Non-finite values
are traced back to the equation where they first appear, or to an argument. Loops and branches are
searched, too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import primitives

from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import LINES, Birth, SourceLine
from jaxnn.checking.measure import Checked
from jaxnn.checking.nan_causes import as_written, cure_unmasked, usual_cause
from jaxnn.checking.tape.inside import insides, tape_of
from jaxnn.checking.tape.layout import Site, is_inexact
from jaxnn.checking.tape.walk import Record, Tape, seeds_of
from jaxnn.numerical.interpret import has_custom_rule

# What contains NaN or infinity from the start, if it is no argument.
CONSTANT = "a constant"


def applies(checked: Checked) -> bool:
    """Whether the value or a gradient is not finite."""
    finite = Verdict.NOT_FINITE not in checked.verdicts and np.isfinite(checked.claims.value)
    return checked.is_automatic and not finite


def ask(checked: Checked) -> list[Birth]:
    """Where NaN or infinity first appears, nearest to the result first."""
    programs, check = checked.programs, checked.check
    tape, seeds = programs.tape(check.point), seeds_of(programs.program)
    return births(tape, checked.values, seeds, check.call.traced_paths)


def say(checked: Checked, found: list[Birth]) -> Checked:
    """The results with the first few births."""
    return checked._replace(births=tuple(found[:LINES]))


def births(
    tape: Tape, inputs: Sequence[Any], seeds: Sequence[Any], names: Sequence[str] | None = None
) -> list[Birth]:
    """The origins of non-finite values or cotangents, nearest to the result first.

    Args:
      tape: the tape of a program.
      inputs: the values of the inputs.
      seeds: the cotangents of the outputs, None for outputs without one.
      names: names of the inputs, if non-finite inputs are to be reported, too.
    """
    record = tape.record(inputs, seeds)
    levels = tape.levels(record)
    origin, undefined = _origins(tape, record, levels.values)
    ends = [s for s, seed in zip(tape.outputs, seeds, strict=True) if seed is not None]
    bad = [s for s in ends or tape.outputs if levels.values.get(s, 0)]
    if not bad:
        return _origins_of_cotangents(tape, record, levels, origin) if ends else []
    found = _origins_of_values(tape, record, bad, undefined | origin)
    if found or names is None:
        return found
    came = _came_in(tape, record, levels.values, names)
    infinite = all(levels.values[s] == 1 for s in bad)
    if infinite and undefined and all(birth.given == CONSTANT for birth in came):
        # An infinite constant may have been chosen because something was NaN.
        came = _born_in_values(tape, record, min(undefined.values())) + came
    return came


def _origins_of_values(
    tape: Tape, record: Record, bad: Sequence[int], first: dict[int, int]
) -> list[Birth]:
    """The origins of the results that are not finite, given the site where each of them began."""
    sites = dict.fromkeys(first[slot] for slot in bad if slot in first)
    return [birth for number in sites for birth in _born_in_values(tape, record, number)]


def _origins_of_cotangents(
    tape: Tape, record: Record, levels: Record, origin: dict[int, int]
) -> list[Birth]:
    """The origins of non-finite cotangents of finite results, nearest to the result first."""
    found: list[Birth] = []
    for number, site in reversed(list(enumerate(tape.sites))):
        # Its outputs have finite cotangents and its inputs do not.
        bad = any(levels.pulled[number])
        if bad and not any(levels.cotangents[site.outputs[j]] for j in site.asked):
            first = next((origin[s] for s in site.inputs if s in origin), number)
            born = _born_in_cotangents if first == number else _born_in_values
            found += born(tape, record, first)
        if len(found) >= LINES:
            break
    return found


def _origins(
    tape: Tape, record: Record, levels: dict[int, Any]
) -> tuple[dict[int, int], dict[int, int]]:
    """For each non-finite slot, the site where non-finite values first appeared; and for each slot
    with NaN, the site where NaN first appeared.
    """
    origin: dict[int, int] = {}
    undefined: dict[int, int] = {}
    for number, site in enumerate(tape.sites):
        # On ties, an input that became non-finite in this program says more than a constant.
        rank = lambda s: (levels.get(s, 0), s in origin)  # noqa: E731
        worst = max(_taken(site, record, levels), key=rank, default=-1)
        for least, known in ((1, origin), (2, undefined)):
            first = known.get(worst) if levels.get(worst, 0) >= least else number
            if first is not None:
                known |= {slot: first for slot in site.outputs if levels[slot] >= least}
    return origin, undefined


def _taken(site: Site, record: Record, levels: dict[int, Any]) -> Sequence[int]:
    """The inputs that can make an output non-finite; for `select_n`, only selected ones."""
    if site.eqn.primitive is not primitives.select_n_p or not any(map(levels.get, site.inputs)):
        return site.inputs
    which, *cases = (np.asarray(record.values[s]) for s in site.inputs)
    bad = [np.any(~np.isfinite(x) & (which == i)) for i, x in enumerate(cases)]
    return [s for s, of_case in zip(site.inputs[1:], bad, strict=True) if of_case]


def _came_in(
    tape: Tape, record: Record, levels: dict[int, Any], names: Sequence[str]
) -> list[Birth]:
    """The non-finite inputs and constants, each with the first line that uses it. If any contains
    NaN, those with infinity alone (such as masks) are left out.
    """
    takers = _takers(tape, levels)
    worst = max((levels[slot] for slot in takers), default=0)
    named = dict(zip(tape.inputs, names, strict=False))
    argued = any(levels[slot] == worst and slot in named for slot in takers)
    found = []
    for slot, site in takers.items():
        # A constant (usually a mask) is not to blame if an argument is equally non-finite.
        if levels[slot] < worst or (argued and slot not in named):
            continue
        bad = ~np.isfinite(np.asarray(record.values[slot]))
        kind = "NaN" if worst == 2 else "infinity"
        path = named.get(slot)
        name = CONSTANT if path is None else f"argument {path.removeprefix('args')}"
        what = f"{name}, an input of `{site.name}`, contains {kind}"
        line = SourceLine.of(site.line)
        found.append(Birth(line, site.name, what, int(bad.sum()), bad.size, "", given=name))
    return found


def _takers(tape: Tape, levels: dict[int, Any]) -> dict[int, Site]:
    """The first site that reads each non-finite input or constant."""
    produced = {slot for site in tape.sites for slot in site.outputs}
    takers: dict[int, Site] = {}
    for site in tape.sites:
        for slot in site.inputs:
            if levels.get(slot, 0) and slot not in produced:
                takers.setdefault(slot, site)
    return takers


def _born_in_values(tape: Tape, record: Record, number: int) -> list[Birth]:
    site = tape.sites[number]
    line = SourceLine.of(site.line)
    for inside in insides(tape, number, record):
        nothing = [None] * len(inside.seeds)
        if inner := births(tape_of(tape, number, inside), inside.inputs, nothing):
            return [birth.within(inside.name) for birth in inner]
    outputs = [np.asarray(record.values[s]) for s in site.outputs]
    outputs = [np.ravel(y) for y in outputs if is_inexact(y)]
    bad = np.concatenate([~np.isfinite(y) for y in outputs])
    kind = "NaN" if any(np.any(np.isnan(y)) for y in outputs) else "infinity"
    reason, _, cure = usual_cause(site.eqn)
    what = f"`{site.name}`{f': {reason}, giving' if reason else ' gives'} {kind}"
    cure = as_written(cure, site.name, line.text)
    return [Birth(line, site.name, what, int(bad.sum()), bad.size, cure)]


def _born_in_cotangents(tape: Tape, record: Record, number: int) -> list[Birth]:
    site = tape.sites[number]
    line = SourceLine.of(site.line)
    if not has_custom_rule(site.eqn):
        for inside in reversed(insides(tape, number, record)):
            finite = all(s is None or np.all(np.isfinite(s)) for s in inside.seeds)
            if finite and (
                inner := births(tape_of(tape, number, inside), inside.inputs, inside.seeds)
            ):
                return [birth.within(inside.name) for birth in inner]
    bad = [~np.isfinite(np.asarray(x)) for x in record.pulled[number]]
    most = max(bad, key=np.sum)  # of several operands
    _, reason, cure = usual_cause(site.eqn)
    if any(np.any(np.isnan(record.values[s])) for s in site.inputs if is_inexact(record.values[s])):
        reason, cure = "its operand is NaN", "replace it first, as in `jnp.nan_to_num(x)`"
    what = f"`{site.name}`: {reason or 'its derivative is not finite'}"
    masked = _is_masked(bad, np.asarray(record.cotangents[site.outputs[site.asked[0]]]))
    cure = as_written(cure if masked else cure_unmasked(cure), site.name, line.text)
    return [Birth(line, site.name, what, int(most.sum()), most.size, cure, masked)]


def _is_masked(bad: list[np.ndarray], ct: np.ndarray) -> bool:
    """Whether the entries that are not finite have the cotangent 0."""
    masks = [b for b in bad if b.shape == ct.shape and b.any()]
    return bool(masks) and all(np.all(ct[b] == 0) for b in masks)
