"""`check_gradient`: is this gradient right? No step, no tolerance: what the evidence carries, and where it speaks against it.

For each leaf, lines through the point are asked for their slope: the gradient claims one, the function's values show another
with a bound on its error (`probe`, `slope`). A claim outside the bound is followed to the entries that cause it (`search`).
Values are computed in float64 whatever the dtype (`widen`), and so is the gradient that is checked: the program that
differentiates `f`, custom rules included, run in float64. What the gradient loses in the user's own dtype is reported apart.

A difference is called wrong if, on the entry concerned, it exceeds half the digits of the leaf's dtype: the gradient of an
iterative solver is right only to the solver's tolerance. That is a statement about the dtype, not a knob.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._calls import Call
from jaxnn._door import (
    describe,
    require_arguments,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_same_form,
)
from jaxnn.checking.precision import half_digits, own_precision
from jaxnn.checking.probe import Probe
from jaxnn.checking.report import ALL_DIGITS, VERDICTS, Entry, GradientReport, LeafReport, digits_shared
from jaxnn.checking.search import (
    HANDFUL,
    ask_leaf,
    describe_pattern,
    find_entries,
    judge_entry,
    sample_entries,
    without_evidence,
)
from jaxnn.checking.subject import Settings, prepare, wide_gradient
from jaxnn.numerical.widen import has_solver, wide_arithmetic, wide_dtype, widen_leaf


def check_gradient(
    f: Callable,
    *args: Any,
    argnums: int | tuple[int, ...] = 0,
    gradient: Callable | None = None,
    order: int = 1,
    has_aux: bool = False,
    cotangent: Any = None,
    seed: int = 0,
) -> GradientReport:
    """Hold the gradient of `f` at `args` against the function's values.

    Args:
      f: a scalar function of pytrees (with `cotangent`, of any real output). It is not jitted by you, or is: both work.
      *args: the point. Integer, boolean and key leaves are held fixed.
      argnums: the argument or arguments whose gradient is checked, as in `jax.grad`.
      gradient: a hand-written gradient, called as `jax.grad(f, argnums)` would be; `jax.grad`'s own by default.
      order: 2 checks the gradient of a random projection of the gradient as well: the Hessian.
      has_aux: whether `f` returns `(value, aux)`.
      cotangent: for an output that is not a scalar: a pytree like it, or "random". What is checked is the gradient of the
        sum of its products with the output.
      seed: of the random projections.

    Returns:
      A `GradientReport`: `report.ok`, `print(report)`, `report.raise_if_wrong()`.

    Raises:
      TypeError: no floating leaf in the arguments chosen, an output that is not real, or (without `cotangent`) no scalar;
        `f` cannot be differentiated by JAX and no `gradient` is given.
      ValueError: `argnums` or `order` out of range, NaN or inf in an argument, `gradient` or `cotangent` of another form.

    Example:
      >>> report = check_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
      >>> report.verdict
      'agrees'
    """
    require_callable("f", f)
    require_count("seed", seed)
    if gradient is not None:
        require_callable("gradient", gradient)
    require_choice("order", order, (1, 2))
    if order == 2 and gradient is not None:
        raise ValueError("`order` must be 1 where a hand-written `gradient` is given. Got 2.")
    call = Call.of(f, argnums, args, {}, has_aux, name="args[0]", real=True)
    _require_finite(call)
    data = (call.with_role("traced"), _require_cotangent(cotangent))
    settings = Settings(argnums, gradient is None, cotangent is not None, isinstance(cotangent, str), seed)
    # What is not finite is reported; and beyond the domain of `f`, where coarse steps may lead, it is no fault.
    with jax.debug_nans(False), jax.debug_infs(False):
        report = _check_order(call, data, settings, 1, gradient, args)
        if order == 1 or not report.ok:
            return report
        report = _check_order(call, data, settings, 2, None, args)
    note = "the gradient itself agrees; these are the slopes of a random projection of it"
    return dataclasses.replace(report, notes=(*report.notes, note), order=2)


def assert_gradient(f: Callable, *args: Any, **options: Any) -> None:
    """Raise `GradientError` unless the gradient of `f` at `args` is right; for tests. Takes what `check_gradient` takes.

    Example:
      >>> assert_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
    """
    check_gradient(f, *args, **options).raise_if_wrong()


def _check_order(call, data, settings, order, gradient, args):
    """A check; and if it accuses a function with a solver inside, another one with the solver run further than it asks for."""
    subject = prepare(call, data, settings, order)
    report = _check(call, data, subject, gradient, args)
    if report.verdict != "differs" or gradient is not None or subject.closed is None or not has_solver(subject.closed.jaxpr):
        return report
    further = prepare(call, data, settings, order, True)
    tight = {leaf.path: leaf for leaf in _check(call, data, further, None, args).leaves}
    pairs = zip(wide_gradient(subject, call, data), wide_gradient(further, call, data), strict=True)
    steady = {
        path for path, (a, b) in zip(_paths(call), pairs, strict=True) if np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(b)
    }
    leaves = [_within_tolerance(leaf, tight[leaf.path]) if leaf.path in steady else leaf for leaf in report.leaves]
    return dataclasses.replace(report, verdict=_worst(leaves), leaves=_sorted(leaves))


def _within_tolerance(leaf, tight):
    """A wrong leaf that is right once the solver inside is run further, while its gradient hardly changes, agrees."""
    if leaf.verdict != "differs" or tight.verdict not in ("agrees", "kink"):
        return leaf
    hint = f"right to the tolerance of the solver inside; solved further, to {tight.digits:.1f} digits"
    return leaf._replace(verdict=tight.verdict, entries=tight.entries, pattern="", hint=hint)


def _sorted(leaves):
    return tuple(sorted(leaves, key=lambda leaf: (-VERDICTS.index(leaf.verdict), leaf.digits)))


def _worst(leaves):
    return max((leaf.verdict for leaf in leaves), key=VERDICTS.index)


def _check(call, data, subject, gradient, args) -> GradientReport:
    points, paths = call.with_role("differentiate"), _paths(call)
    name = getattr(call.form.f, "__name__", type(call.form.f).__name__)
    notes, dtype = list(subject.notes), wide_dtype()
    if fixed := call.complex_paths():
        notes.append(f"complex leaves are held fixed: {', '.join(path.removeprefix('args') for path in fixed)}")
    value, own = subject.own(points, data)
    value = np.asarray(value)
    if subject.probe is None and not (value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(f"`f` must return a real scalar, or `cotangent` must say how to project. Got {describe(value)}.")
    if gradient is not None:
        own = _given_gradient(call, gradient, args)
    own = [np.asarray(g, np.float64) for g in own]
    with wide_arithmetic(dtype):
        wide_points = [widen_leaf(x, dtype) for x in points]
    claims = [np.array(g) for g in own] if subject.wide is None else wide_gradient(subject, call, data)
    if subject.forward is not None:
        notes.append(_dot_product(subject, wide_points, data, claims, dtype))
    if subject.probe is not None:
        epsilon = float(jnp.finfo(dtype).eps)
        probe = Probe(
            lambda leaves, *question: subject.probe(leaves, *question, data), wide_points, claims, dtype, epsilon, True
        )
        # The first question fills in `leaks`.
        centre = probe.centre()
        if subject.leaks:
            coarse = max(subject.leaks, key=lambda kind: jnp.finfo(kind).eps)
            probe.epsilon = float(jnp.finfo(coarse).eps)
            notes.append(f"parts of the function were evaluated in {jnp.dtype(coarse).name}: a host callback, or the like")
    else:
        probe = _eager_probe(subject, points, wide_points, data, claims, dtype)
        centre = probe.centre()
    if any(note.startswith("not deterministic") for note in notes) or _differ(centre, probe.centre(), probe.epsilon):
        return GradientReport(name, "not deterministic", (), (), tuple(notes))
    if not np.isfinite(centre):
        notes.append(f"the function itself is {centre} here")
    counts = {
        n for leaf in jax.tree.leaves((data, subject.closed.consts if subject.closed else [])) for n in np.shape(leaf)[:1]
    }

    @functools.cache
    def shaken():
        """What roundings of the arguments make of the gradient."""
        both = [] if subject.wide is None else [wide_gradient(subject, call, data, shake) for shake in (1.0, -1.0)]
        return [[np.abs(moved[k] - g) for moved in both] for k, g in enumerate(claims)]

    values = float(value), centre, subject.rounding
    leaves = [
        _examine(probe, k, paths[k], x.dtype, own[k], lambda k=k: shaken()[k], *values, counts) for k, x in enumerate(points)
    ]
    rules = subject.rules((points, data)) if subject.rules is not None else ()
    return GradientReport(name, _worst(leaves), _sorted(leaves), rules, tuple(notes))


def _dot_product(subject, points, data, claims, dtype):
    """Whether forward and reverse mode give the same slope along a random direction, as a note."""
    with wide_arithmetic(dtype):
        forward, direction = subject.forward(points, data)
    terms = np.concatenate([(g * np.asarray(d)).ravel() for g, d in zip(claims, direction, strict=True)])
    if not np.all(np.isfinite(terms)):
        return "forward mode was not held against reverse mode, whose gradient is not finite"
    same = abs(terms.sum() - float(forward)) <= np.finfo(np.float32).eps ** 0.5 * np.abs(terms).sum()
    verb = "agrees" if same else "DISAGREES"
    return f"forward mode {verb} with reverse mode: {float(forward):.9g} and {terms.sum():.9g} along a random direction"


def _examine(probe, k, path, dtype, own, shaken, value, centre, rounding, counts) -> LeafReport:
    """All that can be said of one leaf."""
    half = half_digits(dtype)
    claims, shape = probe.claims[k].copy(), probe.leaves[k].shape
    kind = jnp.dtype(dtype).name
    if claims.size == 0:
        digits, hint = (ALL_DIGITS, ALL_DIGITS), "the leaf has no entries"
        return LeafReport(path, shape, kind, "agrees", 0.0, 0.0, 0.0, 0.0, 0.0, *digits, (), "", hint, (), ())
    entries: list[Entry] = []
    bad = np.flatnonzero(~np.isfinite(claims.ravel()))
    for index in bad[:HANDFUL]:
        entry = judge_entry(probe, k, int(index), half)
        if entry is not None:
            probe.claims[k].ravel()[index] = entry.numerical
        entries.append(entry or without_evidence(probe, k, int(index)))
    answers = ask_leaf(probe, k)
    found, explained, sampled = [], True, []
    if len(bad) <= HANDFUL:
        found, explained, answers = find_entries(probe, k, answers, half)
        if not explained:
            sampled = sample_entries(probe, k, half)
    answer = min(answers, key=lambda a: a.slope.bound)
    slope = answer.slope
    entries += found
    known = {entry.index for entry in entries}
    entries += [e for e in sampled if e.index not in known]
    wrong = [e for e in entries if e.verdict in ("differs", "not finite")]
    scale = max(answer.size, abs(slope.value) if np.isfinite(slope.value) else 0.0)
    if not explained and _is_diffuse(entries, half):
        wrong, entries = [], [e for e in entries if e.verdict == "kink"]
    relevant = max(scale, 1e-6 * max(abs(centre), slope.size))
    pattern, hint = describe_pattern(entries, shape, claims, counts, not explained)
    if any(e.verdict == "not finite" for e in wrong):
        verdict = "not finite"
        if all(e.bound > max(0.1 * abs(e.numerical), 1e-6 * abs(centre)) or np.isinf(e.bound) for e in wrong):
            hint = "the function itself, or its slope, is not finite near this point"
    elif wrong:
        verdict = "differs"
    elif not np.isfinite(slope.bound):
        verdict = "unresolved" if np.isfinite(centre) else "not finite"
        hint = "the function itself, or its slope, is not finite near this point"
    elif any(e.verdict == "kink" for e in entries):
        verdict = "kink"
    elif not explained and abs(answer.difference) > half * scale + slope.bound:
        verdict, pattern = "differs", "the slope is wrong, but no single entry is by enough to be named"
    elif slope.bound > 0.1 * relevant and slope.bound > 0:
        verdict = "unresolved"
        hint = f"an error smaller than {slope.bound:.1e} along this direction could not have been seen"
    else:
        verdict = "agrees"
    own_digits, own_wrong = own_precision(own, claims, shaken, probe.scales[k][0], value, centre, dtype, rounding, slope)
    if own_wrong and verdict in ("agrees", "kink", "unresolved"):
        verdict, indices, hint = own_wrong
        named = [_named(probe, k, index, own, half, verdict) for index in indices]
        entries = [e for e in named if e is not None]
    if verdict == "agrees" and slope.constant and not np.any(claims):
        hint = "the function does not depend on this leaf here"
    elif verdict == "agrees" and slope.bound > scale:
        hint = f"a slope of nothing beside the function's values: none above {slope.bound:.1e} is there, and none is claimed"
    if verdict != "agrees":
        order = {"not finite": 0, "differs": 1, "kink": 2, "agrees": 3}
        entries = sorted(entries, key=lambda e: (order[e.verdict], -abs(e.autodiff - e.numerical)))
    digits = digits_shared(max(abs(answer.difference), slope.bound), scale or slope.size)
    return LeafReport(
        path, shape, kind, verdict, answer.claim, slope.value, slope.bound, slope.step, slope.noise, digits, own_digits,
        tuple(entries), pattern, hint, tuple(slope.steps.tolist()), tuple(slope.differences.tolist()),
    )  # fmt: skip


def _is_diffuse(entries, half):
    """Whether the entries looked at are right to half their digits as a whole, and small ones only share the error of all."""
    claims, values = (np.array([getattr(e, name) for e in entries]) for name in ("autodiff", "numerical"))
    errors, wrong = np.abs(claims - values), np.array([e.verdict == "differs" for e in entries])
    shared = not np.all(wrong) and np.any(wrong) and np.max(errors[~wrong]) > 0.1 * np.median(errors[wrong])
    return bool(shared and np.linalg.norm(errors) <= half * np.linalg.norm(values))


def _named(probe, k, index, own, half, verdict):
    claim = probe.claims[k].ravel()[index]
    probe.claims[k].ravel()[index] = own.ravel()[index]
    entry = judge_entry(probe, k, index, half)
    probe.claims[k].ravel()[index] = claim
    return entry and entry._replace(verdict=verdict)


def _given_gradient(call, gradient, args):
    """What a hand-written gradient returns, leaf by leaf, if it has the form of the arguments."""
    require_arguments("gradient", gradient, *args)
    result = gradient(*args)
    chosen = tuple(args[i] for i in call.argnums) if isinstance(call.argnums, tuple) else args[call.argnums]
    require_same_form("gradient(...)", result, "args" if isinstance(call.argnums, tuple) else f"args[{call.argnums}]", chosen)
    for path, leaf in jax.tree_util.tree_flatten_with_path(result)[0]:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(f"`gradient(...){jax.tree_util.keystr(path)}` must be real. Got {describe(leaf)}.")
    like = jax.tree.leaves(chosen)
    differentiated = {id(leaf) for leaf, role in zip(call.leaves, call.form.roles, strict=True) if role == "differentiate"}
    return [g for g, leaf in zip(jax.tree.leaves(result), like, strict=True) if id(leaf) in differentiated]


def _eager_probe(subject, points, wide_points, data, claims, dtype):
    """A probe that calls the function itself: on float64 arguments if it takes them, else in its own dtypes."""
    value = lambda leaves: subject.value(leaves, data)  # noqa: E731
    try:
        with wide_arithmetic(dtype):
            out = np.asarray(value(wide_points))
        if out.dtype == np.float64 and np.isfinite(out):
            return Probe(value, wide_points, claims, dtype, float(np.finfo(out.dtype).eps), False)
    except (TypeError, ValueError):
        pass
    epsilon = max(float(jnp.finfo(x.dtype).eps) for x in points)
    return Probe(value, points, claims, None, epsilon, False)


def _require_finite(call):
    for path, leaf, role in zip(call.paths, call.leaves, call.form.roles, strict=True):
        if role != "fixed" and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            x = np.asarray(leaf)
            bad = np.argwhere(~np.isfinite(x.astype(np.complex128)))
            if role == "differentiate" and len(bad):
                index = bad[0].tolist()
                raise ValueError(f"`{path}` must be finite. Got {x[tuple(index)]} at index {index}.")


def _require_cotangent(cotangent):
    if isinstance(cotangent, str) and cotangent != "random":
        raise ValueError(f"`cotangent` must be a pytree like the output of `f`, or 'random'. Got {cotangent!r}.")
    if cotangent is None or isinstance(cotangent, str):
        return None
    require_arrays("cotangent", cotangent)
    for path, leaf in jax.tree_util.tree_flatten_with_path(cotangent)[0]:
        name, dtype = f"cotangent{jax.tree_util.keystr(path)}", jnp.result_type(leaf)
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise TypeError(f"`{name}` must be real. Got {describe(leaf)}.")
        if not np.all(np.isfinite(np.asarray(leaf, np.float64))):
            raise ValueError(f"`{name}` must be finite. Got {leaf}.")
    return jax.tree.map(jnp.asarray, cotangent)


def _differ(a, b, epsilon):
    return abs(a - b) > 1e3 * epsilon * max(abs(a), abs(b))


def _paths(call):
    """Paths in the argument tuple, as `jax.tree_util.keystr` writes them: `[0]['W1']`."""
    return [path.removeprefix("args") for path in call.paths_differentiated()]
