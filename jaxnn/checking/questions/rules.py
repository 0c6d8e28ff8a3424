"""Which derivative rule is wrong?

A wrong rule does not give the derivative of the values, at the actual inputs and cotangents of its
equation. Every equation is checked along one line; suspects are then checked like a gradient, and
so are the equations inside them: the innermost is to blame. For a primitive, a wrong JVP is
distinguished from a wrong transpose.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from jaxnn._programs import Jitted
from jaxnn.checking.compiling import compiler_options
from jaxnn.checking.evidence import (
    ROUNDINGS,
    ROUNDINGS_BETWEEN_CALLS,
    Evidence,
    Verdict,
    digits_shared,
    explained,
    judge,
    reach,
    relative_error,
)
from jaxnn.checking.findings import INTERRUPTED, LINES, LeafReport, RuleReport, SourceLine
from jaxnn.checking.further import ENDING, LOOSE, RUN_FURTHER, is_solver_with_rule
from jaxnn.checking.leaf import hint_on_loss
from jaxnn.checking.line import Line, along_program
from jaxnn.checking.locate import Allowed, examine, verdict_of
from jaxnn.checking.measure import Checked
from jaxnn.checking.moves import Along, Direction, drawer
from jaxnn.checking.precision import rounding_error
from jaxnn.checking.programs import shaken
from jaxnn.checking.questions._sites import (
    SiteQuestion,
    kind_of_rule,
    line_of_rule,
    named,
    of_site,
    projected,
    rules_inside,
    wrong_solve,
)
from jaxnn.checking.questions.solvers import (
    is_iterative,
    is_sampler,
    only_fine_steps_differ,
)
from jaxnn.checking.settings import COTANGENT
from jaxnn.checking.slope import CLEAR, HALF, Slope, estimate_slope, ladder
from jaxnn.checking.tape.inside import Inside, insides, tape_of
from jaxnn.checking.tape.layout import Site, is_inexact
from jaxnn.checking.tape.walk import Record, Tape, arithmetic, seeds_of
from jaxnn.numerical.float64 import coarsest, wide_arithmetic, wide_dtype, widen
from jaxnn.numerical.interpret import (
    OF_JAX,
    avals_of,
    equations_inside,
    has_custom_rule,
    is_foreign,
)
from jaxnn.numerical.sources import argument_paths, forward_source, rule_consts

# How many iterations of a loop are checked before all others.
SAMPLE = 32
# What two rules give is the same up to this relative error; or, if one of them is wrong, up to this
# part of its error: an implicit rule is as precise as its solver.
SAME, NEARLY = 1e-6, 0.01
# An argument is not named if its error changes the result by less than this part of what the error
# of another argument does.
LITTLE = 1e-3
# The error of a rule around a solver is the solver's if it shrinks by this factor when the solver
# runs further.
SHRINKS = 2
# The relative change of the gradient from which a rule counts as not linear in its cotangent: an
# absolute one, and one relative to the error, as an adaptive solver is linear to its tolerance.
LINEAR = 1e-9
LINEAR_FOR_ERROR = 1e-3


def applies(checked: Checked) -> bool:
    """Whether a leaf is suspicious, or a rule's forward pass changes the function's value."""
    suspicious = bool(checked.before) or any(map(_is_suspicious, checked.leaves))
    return checked.is_automatic and (suspicious or _has_another_value(checked))


def ask(checked: Checked) -> list[RuleReport]:
    """The rules that are wrong, worst first."""
    programs = checked.programs
    tape = programs.tape(checked.check.point, wide_dtype())
    # Where the values support the gradient without custom rules, JAX's own rules are right.
    suspicious = {leaf.path for leaf in checked.leaves if _is_suspicious(leaf)}
    only_custom = bool(checked.leaves) and suspicious <= checked.by_reference
    seeds = [COTANGENT * seed for seed in seeds_of(programs.program)]
    found = wrong_rules(tape, checked.values, seeds, only_custom)
    wrong = [leaf for leaf in checked.leaves if leaf.verdict is Verdict.DIFFERS]
    if wrong and not found and only_custom:  # a part of the function may have a narrower dtype
        closest = min(explained(leaf.dtype) for leaf in wrong)
        found = wrong_rules(tape, checked.values, seeds, only_custom, closest)
    found = [rule for rule in found if rule.name not in checked.check.settings.trust]
    # The user's rules come before JAX's, and about equally wrong ones in the order of the program.
    return sorted(found, key=lambda rule: (not rule.where, -float(f"{rule.difference:.1g}")))


def say(checked: Checked, found: list[RuleReport]) -> Checked:
    """The results with the first few rules, and with verdicts on leaves that they explain."""
    leaves = checked.leaves
    if found:
        # If no leaf was wrong, the rule is why running the solver further seemed to help.
        before = {} if checked.wrong else checked.before
        leaves = [before.get(leaf.path, leaf) for leaf in leaves]
        unreached = _unreached(checked, found)
        leaves = [
            _wrong_by_rule(leaf) if _is_suspicious(leaf) and leaf.path not in unreached else leaf
            for leaf in leaves
        ]
    else:
        leaves = [_within_rounding(leaf, checked) for leaf in leaves]
    checked = checked.with_leaves(leaves)._replace(rules=tuple(found[:LINES]))
    if found and (at_one := _if_not_linear(checked)) is not None:
        # What the cotangent 1 gives is another gradient, not a less precise one.
        each = zip(checked.leaves, checked.claims.own, at_one, strict=True)
        checked = checked.with_leaves([_of_half(*one) for one in each])._replace(losses={})
        given = "tangent" if all("jvp" in rule.kind for rule in found) else "cotangent"
        checked = checked.with_note(
            f"a rule is not linear in its {given}: the gradient of `2 * f` is not twice that of "
            "`f`; half of it is shown"
        )
    if not _has_another_value(checked):
        return checked
    note = (
        f"differentiating the function changes its value from {checked.centre:.6g} to "
        f"{checked.claims.forward:.6g}: the forward pass of a custom rule is wrong"
    )
    return checked.with_note(note)._replace(least=Verdict.DIFFERS)


def _unreached(checked: Checked, found: list[RuleReport]) -> frozenset[str]:
    """The paths of the unresolved leaves that the custom rules found do not reach."""
    paths = (leaf.path for leaf in checked.leaves if leaf.verdict is Verdict.UNRESOLVED)
    unresolved = frozenset(paths) if all(rule.where for rule in found) else frozenset()
    return unresolved & checked.without_rules() if unresolved else unresolved


def _if_not_linear(checked: Checked) -> list[Any] | None:
    """The gradient if the value has the cotangent 1; None if it is the same."""
    worst = max(rule.difference for rule in checked.rules)
    most = max(LINEAR, LINEAR_FOR_ERROR * worst)
    _, gradient = checked.programs.in_float64(checked.check.point, cotangent=1)
    errors = map(relative_error, checked.claims.wide, gradient)
    return gradient if any(error > most for error in errors) else None


def _of_half(leaf: LeafReport, own: Any, at_one: Any) -> LeafReport:
    """The report on a leaf whose gradient is half that of twice the function: no common factor says
    what is wrong, and its own digits are those of the function's gradient.
    """
    digits = digits_shared(relative_error(own, at_one), 1.0)
    return leaf._replace(pattern="", hint="", own_dtype_digits=digits)


def _is_suspicious(leaf: LeafReport) -> bool:
    """Whether a leaf differs, is unresolved, or agrees but is off more than its dtype explains."""
    if leaf.hint == INTERRUPTED:
        return False
    return leaf.verdict in (Verdict.DIFFERS, Verdict.UNRESOLVED) or leaf.is_slightly_off


def _wrong_by_rule(leaf: LeafReport) -> LeafReport:
    """The leaf as "differs", because a rule is wrong; so are all its entries whose error the dtype
    does not explain, even if the error is within the usual tolerance.
    """
    if leaf.verdict is Verdict.DIFFERS:
        return leaf
    entries = tuple(
        entry._replace(verdict=Verdict.DIFFERS)
        for entry in leaf.entries
        if abs(entry.autodiff - entry.numerical)
        > max(entry.bound, explained(leaf.dtype) * abs(entry.numerical))
    )
    hint = "a derivative rule that this leaf's gradient uses is off by more than rounding error"
    return leaf._replace(verdict=Verdict.DIFFERS, hint=hint, entries=entries)


def _within_rounding(leaf: LeafReport, checked: Checked) -> LeafReport:
    """The report on a leaf; a wrong leaf is "unresolved" if the gradient is nothing but rounding
    error in its own dtype, and the values are off by less. No rule is off by more than rounding,
    but all that they give cancels. It is "imprecise" if this error is large beside the function.
    """
    if leaf.verdict is not Verdict.DIFFERS or leaf.own_dtype_digits or not leaf.entries:
        return leaf
    k = checked.paths.index(leaf.path)
    own, wide = (np.asarray(g[k], np.float64) for g in (checked.claims.own, checked.claims.wide))
    error = np.max(np.abs(own - wide))
    if not all(abs(entry.autodiff - entry.numerical) < error for entry in leaf.entries):
        return leaf
    loss, x = checked.losses[k], checked.check.point.leaves[k]
    if error * np.max(np.abs(x)) > reach(x.dtype) * abs(checked.centre):
        hint = hint_on_loss(loss, leaf.dtype, Verdict.UNRESOLVED)
        return leaf._replace(verdict=Verdict.IMPRECISE, entries=loss.entries, hint=hint, pattern="")
    hint = f"the difference is smaller than the gradient's rounding error in {leaf.dtype}"
    return leaf._replace(verdict=Verdict.UNRESOLVED, hint=hint)


def _has_another_value(checked: Checked) -> bool:
    """Whether the function has another value where it is differentiated."""
    forward, centre = checked.claims.forward, checked.centre
    if not (np.isfinite(forward) and np.isfinite(centre)):
        return False
    noise = (leaf.noise for leaf in checked.leaves if math.isfinite(leaf.noise))
    dtypes = [x.dtype for x in checked.check.point.leaves]
    rounding = max([float(np.finfo(np.float64).eps) * abs(centre), *noise])
    tolerance = min(map(reach, dtypes))

    def differ_by_more_than(rounding):
        bound = ROUNDINGS_BETWEEN_CALLS * rounding
        return judge(Evidence(forward, centre, centre, bound), tolerance).wrong

    point = checked.check.point
    return differ_by_more_than(rounding) and differ_by_more_than(
        max(rounding, rounding_error(checked.programs, point, forward))
    )


def wrong_rules(
    tape: Tape,
    inputs: Sequence[Any],
    seeds: Sequence[Any],
    only_custom: bool = False,
    tolerance: float | None = None,
) -> list[RuleReport]:
    """The rules that do not give the derivative of the values at their actual inputs.

    Args:
      tape: the tape of a program, in a wide dtype.
      inputs: the values of the inputs.
      seeds: the cotangents of the outputs, None for outputs without one.
      only_custom: whether JAX's own rules are known to be right.
      tolerance: the relative error that is allowed, if not that of the dtypes of each equation.
    """
    numbers = [
        number
        for number, site in enumerate(tape.sites)
        if site.asked and (not only_custom or _holds_custom_rule(site))
    ]
    record = tape.record(inputs, seeds, only=numbers if only_custom else None)
    found, suspects, named_at = [], _suspects(tape, record, numbers), set()
    for number in numbers:
        site = tape.sites[number]
        if (place := _place(site)) in named_at:  # one report for all calls in a line
            continue
        report = _whole(tape, record, number, suspects.get(number), tolerance)
        if report is None and number not in tape.arbitrary and not _solves_with_rules(site):
            continue
        how = {"only_custom": only_custom, "tolerance": tolerance}
        found += _blamed(tape, record, number, report, **how)
        if report is not None:
            named_at.add(place)
    worst: dict[Any, RuleReport] = {}
    for report in found:  # one report per rule and line
        line = report.line.file, report.line.line
        worst.setdefault((report.name, report.kind, report.where, *line), report)
    return list(worst.values())


def _place(site: Site) -> tuple[str, str, str]:
    """The name, line and rule of a call; two lambdas in a line have one name."""
    rule = line_of_rule(site.eqn) if has_custom_rule(site.eqn) else ""
    return site.name, site.line, rule


def _whole(
    tape: Tape, record: Record, number: int, asked: SiteQuestion | None, tolerance: float | None
) -> RuleReport | None:
    """The report on a site as a whole, if it is wrong."""
    site = tape.sites[number]
    report = _examined(tape, number, asked, tolerance) if asked is not None else None
    if site.eqn.primitive is primitives.linear_solve_p:
        report = wrong_solve(site, record, tape.dtype)
    if report is None and has_custom_rule(site.eqn):
        report = _with_another_value(site, record, tape.dtype)
    return report


def _blamed(
    tape: Tape,
    record: Record,
    number: int,
    report: RuleReport | None,
    only_custom: bool,
    **how: Any,
) -> list[RuleReport]:
    """The wrong rules inside a site. If there are none but the site itself is wrong: its own rule,
    or the rules inside it that the error may come from.
    """
    programs, eqn = insides(tape, number, record), tape.sites[number].eqn
    rules = _inside(tape, record, number, programs, report, only_custom=only_custom, **how)
    if rules or report is None:
        return rules
    if has_custom_rule(eqn):
        return [report]
    if programs and any(map(is_solver_with_rule, equations_inside(eqn))):
        return []  # each solver is right to its tolerance, though their errors may add up
    return rules_inside(tape, record, number, report, _same(report), only_custom)


def _inside(
    tape: Tape,
    record: Record,
    number: int,
    programs: Sequence[Inside],
    report: RuleReport | None,
    **how: Any,
) -> list[RuleReport]:
    """The wrong rules in the first of the programs inside a site that has any; none if the site is
    a function whose own rule does not use them. If no report gives a reason to search a loop, a few
    iterations are enough.
    """
    searched = _spread_first(programs)[: SAMPLE if report is None else None]
    seeded = (one for one in searched if any(seed is not None for seed in one.seeds))
    asked = (
        wrong_rules(tape_of(tape, number, one), one.inputs, one.seeds, **how) for one in seeded
    )
    rules = next(filter(None, asked), [])
    has_own = has_custom_rule(tape.sites[number].eqn)
    is_own = rules and has_own and not _passes_on(tape, record, number, report)
    return [] if is_own else rules


def _same(report: RuleReport | None) -> float:
    """Up to which relative error two derivatives are the same, beside that of a wrong rule."""
    return max(SAME, NEARLY * report.difference) if report is not None else SAME


def _passes_on(tape: Tape, record: Record, number: int, report: RuleReport | None) -> bool:
    """Whether the rule of a function gives what the rules inside the function give, or may do so:
    JAX cannot differentiate every loop. If the rule is wrong, one argument for which it is wrong is
    enough: loops may give other cotangents on purpose for entries that are overwritten.
    """
    (inside,) = insides(tape, number, record)
    inner, site = tape_of(tape, number, inside), tape.sites[number]
    if inner.arbitrary:
        return True
    given = inner.record(inside.inputs, inside.seeds).cotangents
    of_rule = dict(zip(site.active, map(np.ravel, record.pulled[number]), strict=True))
    of_inside = {i: np.ravel(given.get(inner.inputs[i], 0 * x)) for i, x in of_rule.items()}
    compared = [[i] for i in _wrong_inputs(report, site) if np.any(of_rule[i])] or [[*of_rule]]
    joined = lambda by, those: np.concatenate([by[i] for i in those])  # noqa: E731
    errors = (relative_error(joined(of_rule, x), joined(of_inside, x)) for x in compared)
    return any(error <= _same(report) for error in errors)


def _wrong_inputs(report: RuleReport | None, site: Site) -> list[int]:
    """The positions of a site's inputs for which a report says that its own rule is wrong."""
    if report is None or report.argument is None:
        return []
    also = (k for k, path in argument_paths(site.eqn).items() if path in report.also)
    return [rule_consts(site.eqn) + k for k in (report.argument, *also)]


def _spread_first(insides: Sequence[Any]) -> Sequence[Any]:
    """All programs inside a site, some that are spread over a loop first."""
    places = np.unique(np.linspace(0, len(insides) - 1, min(len(insides), SAMPLE)).astype(int))
    return [insides[i] for i in dict.fromkeys([*places.tolist(), *range(len(insides))])]


def _holds_custom_rule(site: Site) -> bool:
    """Whether a site is a function with a rule that JAX did not derive, or contains one."""
    return any(
        has_custom_rule(eqn) or eqn.primitive is primitives.linear_solve_p
        for eqn in (site.eqn, *equations_inside(site.eqn))
    )


def _solves_with_rules(site: Site) -> bool:
    """Whether a site is a linear solve, which is not asked itself, and has custom rules inside."""
    of_solve = site.eqn.primitive is primitives.linear_solve_p
    return of_solve and any(map(has_custom_rule, equations_inside(site.eqn)))


def _suspects(tape: Tape, record: Record, numbers: Sequence[int]) -> dict[int, SiteQuestion]:
    """The questions on those of some sites whose claims and values differ along one line."""
    epsilon, suspects = float(jnp.finfo(tape.dtype).eps), {}
    for number, question, along, slope in slopes_of_sites(tape, record, numbers):
        off = abs(float(np.sum(along.terms)) - slope.value)
        # The sums have rounding errors that the bound of the slope does not cover.
        size = max(along.size, abs(slope.value), slope.size)
        if np.isfinite(slope.bound) and off > slope.bound + ROUNDINGS * epsilon * size:
            suspects[number] = question
    return suspects


def slopes_of_sites(
    tape: Tape, record: Record, numbers: Sequence[int]
) -> Iterator[tuple[int, SiteQuestion, Along, Slope]]:
    """The slopes of some sites along a line on which each entry moves by at least its leaf's usual
    size; and, of a function with a custom rule of which it shows little, along a second one, on
    which each entry moves by its own size.
    """
    unclear = []
    for number, question, along, slope in _slopes(tape, record, numbers, relative=False):
        yield number, question, along, slope
        shows = slope.bound <= CLEAR * max(along.size, abs(slope.value))
        if not shows and has_custom_rule(tape.sites[number].eqn):
            unclear.append(number)
    yield from _slopes(tape, record, unclear, relative=True)


def _slopes(
    tape: Tape, record: Record, numbers: Sequence[int], relative: bool
) -> Iterator[tuple[int, SiteQuestion, Along, Slope]]:
    half, asked, given = ladder()[:HALF], {}, []
    steps = np.concatenate([half, -half, [0.0]])
    for number in numbers:
        site = tape.sites[number]
        if number in tape.arbitrary or not _shows_alone(site):
            continue
        with arithmetic(tape.dtype):
            question = SiteQuestion.of(site, record, number, tape.dtype)
            if question is None:
                continue
            through = Direction.through([x.size for x in question.points])
            direction = through._replace(relative=relative)
            moves, along = drawer(question.points, tape.dtype)(question.claims, direction)
            moves = [jnp.asarray(v) for v in moves]
        asked[number] = question, along
        given.append((question.points, moves, steps, (question.rest, question.cts)))

    def at_once(given):
        return [along.__wrapped__(*inputs) for along, inputs in zip(alongs, given, strict=True)]

    if not given:
        return
    alongs = [_along(tape, number) for number in asked]
    with wide_arithmetic(tape.dtype):
        if tape.together and len(given) > 1:
            values = Jitted(at_once, options=compiler_options)(given)
        else:
            values = [along(*inputs) for along, inputs in zip(alongs, given, strict=True)]
    epsilon = float(jnp.finfo(tape.dtype).eps)
    for (number, found), phi in zip(asked.items(), map(np.asarray, values), strict=True):
        coarse = max(epsilon, coarsest(_narrow(tape.sites[number])))
        slope = estimate_slope(half, phi[:HALF], phi[HALF:-1], float(phi[-1]), coarse)
        yield number, *found, slope


def _shows_alone(site: Site) -> bool:
    """Whether moving one input of a site at a time shows whether its rule is right: not that of a
    library's own primitive which is told twice of one number, as of a matrix and its factors.
    """
    is_double = site.held and not (site.eqn.primitive in OF_JAX or has_custom_rule(site.eqn))
    of_solve = site.eqn.primitive is primitives.linear_solve_p
    return not (is_double or of_solve or is_sampler(site.eqn))


def _narrow(site: Site) -> list[Any]:
    """The dtypes of what a site does not evaluate in float64."""
    foreign = [e for e in (site.eqn, *equations_inside(site.eqn)) if is_foreign(e.primitive)]
    kinds = [v.aval.dtype for eqn in foreign for v in eqn.outvars]
    return [kind for kind in kinds if jnp.issubdtype(kind, jnp.floating) and kind != np.float64]


def _along(tape: Tape, number: int, further: bool = False) -> Callable:
    """A function that computes the values of a site along lines; shared by all sites of a kind."""
    site, rules = tape.sites[number], {**ENDING, **(RUN_FURTHER if further else {})}
    value = lambda _, moved, data: projected(site, data, moved, tape.dtype, rules)  # noqa: E731
    key = "line", further, tape.kinds[number]
    return tape.keep(
        key, lambda: Jitted(along_program(value, tape.dtype), options=compiler_options)
    )


def _reference(tape: Tape, number: int, asked: SiteQuestion) -> list[Any] | None:
    """The derivative of a function with a custom rule, without the rule; None for others."""
    site = tape.sites[number]
    if not has_custom_rule(site.eqn):
        return None
    value = lambda points, data: projected(site, data, points, tape.dtype)  # noqa: E731
    derive = tape.keep(
        ("reference", tape.kinds[number]), lambda: Jitted(jax.grad(value), options=compiler_options)
    )
    try:
        with wide_arithmetic(tape.dtype):
            found = derive(asked.points, (asked.rest, asked.cts))
    except Exception:  # a loop without a reverse mode, or a host callback
        return None
    pairs = zip(asked.points, found, asked.claims, strict=True)
    return [np.where(np.isfinite(x), g, claim) for x, g, claim in pairs]


def _examined(
    tape: Tape, number: int, asked: SiteQuestion, tolerance: float | None
) -> RuleReport | None:
    """A report on the rule of a site, checked like a gradient; None if it is correct."""
    site, line = tape.sites[number], _line(tape, number, asked)
    tolerance = LOOSE if is_iterative(site.eqn) else tolerance or _explained(site)
    allowed = [Allowed(tolerance, paired, tolerance, tolerance, 0.0) for paired in asked.paired]
    claims = [np.asarray(c, np.float64) for c in asked.claims]
    place, reports, differences = SourceLine.of(site.line), [], []
    reference = functools.partial(_reference, tape, number, asked)
    for k, found in examine(line, claims, allowed, reference, together=False):
        verdict = verdict_of(found, line.centre, tolerance)
        if not verdict.wrong:
            continue
        best, wrong = found.best, [e for e in found.entries if e.verdict.wrong]
        at, off = None, abs(best.difference) / max(best.size, abs(best.slope.value))
        if wrong:
            most = max(wrong, key=lambda e: abs(e.autodiff - e.numerical))
            # If the derivative from values is 0, the error is relative to the rule's own result.
            size = abs(most.numerical) or abs(most.autodiff)
            at, off = most.index, abs(most.autodiff - most.numerical) / size
            at = at[:-1] if asked.paired[k] else at
        differences.append(abs(best.difference))
        argument = site.moved[k][0]
        reports.append(RuleReport(site.name, place, "jvp", verdict, argument, off, "", at))
    # What is left of the influence of an iteration's start is no mistake.
    pairs = zip(reports, differences, strict=True)
    reports = [report for report, by in pairs if not by < LITTLE * max(differences)]
    if not reports or _is_of_a_solver(tape, number, asked, line):
        return None
    worst = max(reports, key=lambda report: report.difference)
    return named(worst, site, asked, line, [report.argument for report in reports])


def _line(tape: Tape, number: int, asked: SiteQuestion, further: bool = False) -> Line:
    """The lines through a site's inputs; further: with the solvers inside run further."""
    dtype, along = tape.dtype, _along(tape, number, further)

    def values(moves, steps):
        with wide_arithmetic(dtype):
            moves = [jnp.asarray(v) for v in moves]
            return np.asarray(along(asked.points, moves, steps, (asked.rest, asked.cts)))

    kinds = _narrow(tape.sites[number])
    return Line(values, asked.points, dtype, coarsest(kinds), narrow=bool(kinds))


def _is_of_a_solver(tape: Tape, number: int, asked: SiteQuestion, line: Line) -> bool:
    """Whether the error of a rule is that of a solver which has not converged."""
    if not is_solver_with_rule(tape.sites[number].eqn):
        return False
    direction = Direction.through(line.sizes)
    first = line.compare(asked.claims, direction)
    if only_fine_steps_differ(first.claim, first.slope.value, first.slope.differences):
        return True
    last = _line(tape, number, asked, further=True).compare(asked.claims, direction)
    if SHRINKS * (abs(last.difference) + last.slope.bound) < abs(first.difference):
        return True
    # A difference so small beside the value, as that of a first guess, may be a solver's noise.
    return abs(first.difference) < LOOSE * abs(line.centre) and not last.excess


def _with_another_value(site: Site, record: Record, dtype: Any) -> RuleReport | None:
    """A report on a rule whose forward pass changes the function's value; None if it does not."""
    forward = lambda full: jax.vjp(of_site(site, full), [full[i] for i in site.active])[0]  # noqa: E731
    call = widen(forward, (avals_of(site.eqn.invars),), dtype)
    if is_iterative(site.eqn):  # as one program, it compiles faster
        call = jax.jit(call)
    inputs, tolerance = [record.values[s] for s in site.inputs], _explained(site)
    with wide_arithmetic(dtype):
        values = call(inputs)
    errors = [
        relative_error(value, record.values[site.outputs[j]])
        for j, value in zip(site.asked, values, strict=True)
    ]
    if not any(error > tolerance for error in errors):
        return None
    # Where terms cancel, what is left may be rounding error, which differs anyway.
    rng = np.random.default_rng(0)
    with wide_arithmetic(dtype):
        nearby = call([shaken(x, 1, rng) if is_inexact(x) else x for x in inputs])
    changes = map(relative_error, nearby, values)
    pairs = zip(errors, changes, strict=True)
    worst = max((error for error, change in pairs if error > ROUNDINGS * change), default=0.0)
    if not worst > tolerance:
        return None
    forward, kind = forward_source(site.eqn), kind_of_rule(site.eqn)
    place = str(SourceLine.of(forward)) if forward else line_of_rule(site.eqn)
    return RuleReport(
        site.name, SourceLine.of(site.line), kind, Verdict.DIFFERS, None, worst, place
    )


def _explained(site: Site) -> float:
    """The relative error that the dtypes of a site's inputs explain."""
    kinds = [v.aval.dtype for v in site.eqn.invars if is_inexact(v.aval)]
    own = max(kinds, key=lambda kind: float(jnp.finfo(kind).eps))
    return min(reach(own), explained(own))
