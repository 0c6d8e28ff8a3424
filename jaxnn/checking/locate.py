"""Locates the leaves whose gradient is wrong, and the wrong entries of those leaves.

Leaves are checked together along two random lines. Each leaf moves so that all claims are of
similar size and none hides another. If the claims disagree with the values, the reference gradient
is computed, which contains none of the user's rules. Where the values support the reference,
subtracting it from the claims gives every wrong entry. The reference alone never makes a leaf
wrong: the worst entries are checked against values one at a time. Without a supported reference,
wrong entries are found one by one, by bisection if necessary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnn.checking.evidence import (
    BLIND,
    NOTHING,
    ROUNDINGS_BETWEEN_CALLS,
    Evidence,
    Verdict,
    differs,
    judge,
)
from jaxnn.checking.findings import HANDFUL, Entry
from jaxnn.checking.line import Comparison, Line
from jaxnn.checking.moves import Direction, Part
from jaxnn.checking.packed import count_not_finite
from jaxnn.checking.slope import CLEAR, FORETOLD, TIGHT, ladder

# Leaves whose claims differ by more than this factor are not checked together: to make the claims
# similar, one leaf would move too little or too much for the steps of the others.
CLASS = 1e3
# A line confirms a leaf if its bound is below this fraction of the leaf's claim: an error of 5% in
# one of a hundred million similar entries would still be seen.
SHARP = 1e-6
# The relative error of a sum in float64.
LEAST_ROUNDING = ROUNDINGS_BETWEEN_CALLS * float(np.finfo(np.float64).eps)
# By how much more the entries move if the values do not show a claim, since entries may be tiny in
# comparison with what they are added to.
WIDER = (1e4, 1e8, 1e12, 1e16, 1e20, 1e24, 1e28)
# A large value hides a claim if the noise is at most this many roundings of the value, and the
# claim more than this many times the noise.
HIDDEN = 10
# While bisecting, a slope with a bound below 1 / ENOUGH of the difference tells which half is off.
ENOUGH = 8
# The first of two lines is reported unless the second has a bound below this fraction of the
# first's, so that rounding does not decide.
MUCH_CLOSER = 0.5


class Located(NamedTuple):
    """The evidence on the claims of one leaf.

    Attributes:
      asked: comparisons along lines through all entries; non-finite entries count as correct.
      entries: the entries that were checked against values one at a time.
      explained: whether the wrong entries account for the whole difference along the lines.
      searched: whether wrong entries were searched for.
      wrong: flat positions of all wrong entries, if the reference gives them.
      complete: whether no entry is undecided because its error could be rounding error.
      undecided: flat position of the entry with the largest error among those that are off by more
        than the tolerance, but by less than the rounding error of the leaf's largest entry, if any.
      reference: the leaf's reference gradient, if the values support it.
      interrupted: whether the user ended the search for wrong entries.
    """

    asked: tuple[Comparison, ...]
    entries: tuple[Entry, ...] = ()
    explained: bool = True
    searched: bool = True
    wrong: np.ndarray | None = None
    complete: bool = True
    undecided: int | None = None
    reference: np.ndarray | None = None
    interrupted: bool = False

    @property
    def any_wrong(self) -> bool:
        """Whether an entry is known to be wrong."""
        if self.wrong is not None:
            return bool(len(self.wrong))
        return any(entry.verdict.wrong for entry in self.entries)

    @property
    def best(self) -> Comparison:
        """The line with the closest bound; the first unless the second is much closer."""
        closest = min(self.asked, key=lambda comparison: comparison.slope.bound)
        much_closer = closest.slope.bound < MUCH_CLOSER * self.asked[0].slope.bound
        return closest if much_closer else self.asked[0]


class Allowed(NamedTuple):
    """Which errors in the claims of a leaf are not mistakes.

    Attributes:
      tolerance: the largest relative error of an entry that is not a mistake.
      paired: whether the leaf's entries come in pairs of real and imaginary part.
      exact: like `tolerance`, but for comparison with a reference that the values support.
      slight: the relative error that rounding explains; entries between `slight` and `exact` are
        checked against values.
      rounding: the error that counts as rounding error, relative to the largest entry of the leaf's
        gradient, both as it is and where each entry is multiplied by its scale.
    """

    tolerance: float
    paired: bool
    exact: float
    slight: float
    rounding: float


def examine(
    line: Line,
    gradient: Sequence[Any],
    allowed: Sequence[Allowed],
    reference: Callable[[], Sequence[Any] | None],
    together: bool = True,
) -> Iterator[tuple[int, Located]]:
    """Locate the wrong entries of each leaf that has entries; yields each leaf once it is settled.

    Args:
      line: measures slopes of the function.
      gradient: the gradient that is checked, leaf by leaf.
      allowed: for each leaf, which errors are not mistakes.
      reference: computes the gradient of the values; called only if the claims disagree with them.
      together: whether leaves may be checked together.
    """
    leaves = [k for k, size in enumerate(line.sizes) if size]
    finite = _finite(gradient, leaves)
    groups = [finite] if together else [[k] for k in finite]
    settled: set[int] = set()
    for group in groups:
        yield from _settled(settled, _supported(line, gradient, group, bisect=False))
    rest = [k for k in leaves if k not in settled]
    doubtful, supported = [k for k in rest if k in finite], {}
    right = reference() if doubtful else None
    if right is not None:
        supported = dict(_supported(line, right, _finite(right, rest)))
    elif together and len(doubtful) > 1:
        yield from _settled(settled, _supported(line, gradient, doubtful))
    left = HANDFUL
    for leaf in (_Leaf(line, gradient, k, allowed[k]) for k in rest if k not in settled):
        located = leaf.located(right, supported.get(leaf.number), max(0, left))
        left -= together * sum(entry.verdict.wrong for entry in located.entries)
        yield leaf.number, located
        if located.interrupted:
            raise KeyboardInterrupt


def _settled(settled: set[int], supported: Iterator[Any]) -> Iterator[tuple[int, Located]]:
    """Leaves that the values support, each noted in `settled` before it is yielded."""
    for k, asked in supported:
        settled.add(k)
        yield k, Located(asked)


def _finite(gradient: Sequence[Any], leaves: Sequence[int]) -> list[int]:
    return [k for k in leaves if not count_not_finite(gradient[k])]


def _supported(
    line: Line, claims: Sequence[Any], leaves: Sequence[int], bisect: bool = True
) -> Iterator[tuple[int, tuple[Comparison, ...]]]:
    """Yield each leaf whose claims the values support, with the evidence.

    Args:
      line: measures slopes.
      claims: the gradient, leaf by leaf.
      leaves: which leaves to check.
      bisect: whether a group that the values do not support is split until every leaf is settled.
    """
    sizes = dict.fromkeys(leaves, 1.0)
    if len(leaves) > 1:
        _, along = line.draw(claims, Direction(tuple(map(line.whole, leaves))))
        sizes = {k: float(along.sizes[k]) for k in leaves}
    todo = [sizes] if sizes else []
    while todo:
        group = todo.pop()
        known, off = _confirmed(line, claims, group, bisect)
        yield from known.items()
        rest = {k: size for k, size in group.items() if k not in known}
        if not rest or len(group) == 1 or (off and not bisect):
            continue
        parts = _classes(rest)
        if not known and len(parts) == 1:
            pairs, middle = list(rest.items()), (len(rest) + 1) // 2
            parts = map(dict, (pairs[middle:], pairs[:middle]))
        todo += parts


def _confirmed(
    line: Line, claims: Sequence[Any], group: dict[int, float], unseen_too: bool
) -> tuple[dict[int, tuple[Comparison, ...]], bool]:
    """The leaves of a group whose claims two lines through all of them confirm, each with its
    evidence, and whether the lines contradict the claims.

    Args:
      line: measures slopes.
      claims: the gradient, leaf by leaf.
      group: the leaves, and the sizes of their claims.
      unseen_too: whether claims that the values do not show count as confirmed.
    """
    parts, pair = _ask_wider(line, claims, _parts(line, group))
    unseen = not unseen_too and all(map(_is_unseen, pair))
    if unseen or any(comparison.is_off for comparison in pair):
        return {}, True
    if len(group) > 1:
        nothing = _nothing(line, pair, max(group.values()))
        parts = [part for part in parts if _confirms(pair, part, nothing)]
        pair = (Located(pair).best,)
    return {p.leaf: tuple(comparison.share(p) for comparison in pair) for p in parts}, False


class _Leaf(NamedTuple):
    """A leaf whose claims the values do not support.

    Attributes:
      line: measures slopes of the function.
      gradient: the gradient that is checked, leaf by leaf.
      number: the number of the leaf.
      allowed: which errors are not mistakes.
    """

    line: Line
    gradient: Sequence[Any]
    number: int
    allowed: Allowed

    @property
    def claims(self) -> np.ndarray:
        """The gradient of this leaf."""
        return np.asarray(self.gradient[self.number], np.float64)

    def with_claims(self, claims: np.ndarray) -> list[Any]:
        """The gradient with other claims for this leaf."""
        return [claims if k == self.number else g for k, g in enumerate(self.gradient)]

    def located(
        self, reference: Sequence[Any] | None, supported: tuple[Comparison, ...] | None, few: int
    ) -> Located:
        """The entries that explain why the claims disagree with the values.

        Args:
          reference: the gradient of the values, if there is one.
          supported: the lines that support the reference for this leaf, if any do.
          few: how many entries to check against values.
        """
        if reference is None:
            return self.one_by_one([], few)
        claims, right = self.claims.ravel(), np.asarray(reference[self.number], np.float64).ravel()
        with np.errstate(invalid="ignore"):
            error = np.nan_to_num(np.abs(claims - right), nan=np.inf)
        error[~np.isfinite(right) & np.isfinite(claims)] = 0.0  # it says nothing about these
        order = np.argsort(-error, kind="stable")
        if supported is not None:
            located = self.by_reference(right, order, supported, few)
            if located is not None:
                return located
        least = self.allowed.tolerance * abs(claims)
        return self.one_by_one([int(i) for i in order[:HANDFUL] if error[i] > least[i]], few)

    def by_reference(
        self, right: np.ndarray, order: np.ndarray, supported: tuple[Comparison, ...], few: int
    ) -> Located | None:
        """Every entry where claims and reference differ; None if values contradict the latter."""
        claims, line, tolerance = self.claims, self.line, self.allowed.exact
        flat, size = claims.ravel(), line.scales(self.number)
        # Beside the largest entry, and beside the one whose argument changes the function most.
        largest, most = (np.max(np.abs(x), initial=0) for x in (right, right * size))
        rounding = self.allowed.rounding * np.minimum(largest, most / size)
        off, slightly, undecided = (
            differs(flat, right, right, bound, part) | ~np.isfinite(flat)
            for bound, part in (
                (rounding, tolerance),
                (rounding, self.allowed.slight),
                (LEAST_ROUNDING * largest, tolerance),
            )
        )
        wrong = order[off[order]]
        suspects = wrong if wrong.size else order[slightly[order]]
        filled = np.where(np.isfinite(claims), claims, right.reshape(claims.shape))
        gradient = self.with_claims(filled)
        asked = tuple(_with_claims(line, gradient, comparison) for comparison in supported)
        complete = not np.any((undecided | slightly) & ~off)
        unknown = next(iter(order[(undecided & ~off)[order]].tolist()), None)
        found = Located(asked, (), False, bool(few), np.sort(wrong), complete, unknown, right)
        by_line = found._replace(wrong=None)
        if not few and verdict_of(by_line, line.centre, tolerance) is Verdict.AGREES:
            few = 1  # an entry may show an error that the line does not
        entries, interrupted = [], False
        for index in _with_pairs(suspects[:few], self.allowed.paired):
            try:
                entry = self.entry(index, tolerance, right)
            except KeyboardInterrupt:
                interrupted = True
                break
            slack = entry.bound + rounding[index] + tolerance * abs(right[index])
            if math.isfinite(slack) and not abs(entry.numerical - right[index]) <= slack:
                return None
            entries.append(entry)
        known = tuple(filter(_is_known, entries))
        explained = any(entry.verdict.wrong for entry in known)
        return found._replace(entries=known, explained=explained, interrupted=interrupted)

    def one_by_one(self, lead: list[int], few: int) -> Located:
        """Wrong entries without a supported reference: first those in `lead`, then those that
        bisection finds.

        A line is discarded if bisection along it ends at a correct entry, unless both lines do.
        """
        bad = np.flatnonzero(~np.isfinite(self.claims.ravel())).tolist()
        known: dict[int, Entry] = {}
        for index in bad[: max(few, 1)]:
            self.learn(known, index)
        gradient, asked = self.ask(known)
        if len(bad) > max(few, 1):
            return Located(asked, tuple(known.values()))
        unsearched = Located(asked, (), False, False)
        off = any(comparison.excess for comparison in asked)
        if not few and off and verdict_of(unsearched, self.line.centre, self.allowed.tolerance).ok:
            few = 1  # an entry may show an error that the line does not
        holding, explained = self.search(known, gradient, asked, lead, len(known) + few)
        entries = [entry for i, entry in known.items() if i in bad or _is_known(entry)]
        asked = tuple(asked[i] for i in holding or (0, 1))
        return Located(asked, tuple(entries), explained, bool(few))

    def learn(self, known: dict[int, Entry], index: int) -> bool:
        """Add an entry, and its pair, to those that are known; whether it is off."""
        for i in _with_pairs([index], self.allowed.paired):
            known[i] = self.entry(i, self.allowed.tolerance)
        return _is_off(known[index])

    def search(
        self,
        known: dict[int, Entry],
        gradient: list[Any],
        rest: tuple[Comparison, ...],
        lead: list[int],
        most: int,
    ) -> tuple[list[int], bool]:
        """Add entries to those that are known, first those in `lead`, until there are `most` or
        they explain the lines.

        Returns:
          The lines that did not lead to a correct entry, and whether the entries explain them.
        """
        holding = [0, 1]
        while len(known) < most and (off := [i for i in holding if rest[i].excess]):
            which = max(off, key=lambda i: rest[i].excess)
            lead = [index for index in lead if index not in known]
            index = lead[0] if lead else _bisect(self.line, gradient, rest[which])
            shows = index not in known and self.learn(known, index)
            if not (lead or shows):
                holding.remove(which)
            gradient, rest = self.ask(known)
        return holding, not any(comparison.excess for comparison in rest)

    def ask(self, known: dict[int, Entry]) -> tuple[list[Any], tuple[Comparison, ...]]:
        """The gradient with the known entries that are off replaced by their measured derivatives,
        and its comparisons along two lines through the leaf.
        """
        mended = self.claims.copy()
        for index, entry in known.items():
            if np.isfinite(entry.numerical) and _is_off(entry):
                mended.ravel()[index] = entry.numerical
        gradient = self.with_claims(mended)
        (part,), pair = _ask_wider(self.line, gradient, [self.line.whole(self.number)])
        return gradient, tuple(comparison.share(part) for comparison in pair)

    def entry(self, index: int, tolerance: float, right: np.ndarray | None = None) -> Entry:
        """The derivative with respect to one entry from values, compared with its claim. If a few
        values confirm the reference gradient `right`, no others are computed.
        """
        line, claims, part = self.line, self.claims, Part(self.number, index, index + 1)
        claim = float(claims.ravel()[index])
        expected = None if right is None else self.with_claims(right.reshape(claims.shape))
        coarse = line.compare(self.gradient, Direction((part,)), TIGHT, expected=expected)
        finest = ladder()[-1] * abs(float(coarse.along.moves[self.number]))
        if _is_unclear(coarse):
            ways = (Direction((part._replace(weight=factor),)) for factor in WIDER)
            wider = (line.compare(self.gradient, direction, TIGHT) for direction in ways)
            shown = (w for w, factor in zip(wider, WIDER, strict=True) if _shows(w, coarse, factor))
            coarse = next(shown, coarse)
        long = float(coarse.along.moves[self.number])
        best = Evidence(claim, np.nan, np.nan, np.inf)
        if long:  # an entry that is not finite cannot be moved
            best = coarse.slope.evidence(claim, long)
        if long and (
            finest > line.scales(self.number)[index] or not coarse.slope.known_to(FORETOLD)
        ):
            fine = line.compare(self.gradient, Direction((part,), relative=True), TIGHT)
            short = float(fine.along.moves[self.number])
            evidence = best, fine.slope.evidence(claim, short)
            best = min(evidence, key=lambda one: one.bound)
            apart = abs(coarse.slope.value / long - fine.slope.value / short)
            if apart > evidence[0].bound + evidence[1].bound:
                # If the coarse steps were all longer, the function may have looked flat to them, so
                # the fine slope holds; if the ranges overlap, the bound must cover both slopes.
                unseen = coarse.slope.steps[-1] * abs(long) > fine.slope.step * abs(short)
                best = evidence[1]._replace(bound=evidence[1].bound + (0.0 if unseen else apart))
            if finest > line.scales(self.number)[index] and not coarse.slope.known_to(CLEAR):
                best = evidence[1]  # all coarse steps were longer than the entry is large
        return Entry.of(index, claims.shape, best, judge(best, tolerance))


def _is_known(entry: Entry) -> bool:
    """Whether the values say anything on an entry: not if any claim of its size would agree."""
    is_blind = entry.bound > max(abs(entry.autodiff), abs(entry.numerical)) > 0
    agrees = entry.verdict is Verdict.AGREES
    return not (agrees and is_blind) and entry.verdict is not Verdict.UNRESOLVED


def _is_off(entry: Entry) -> bool:
    """Whether an entry explains that a line is off."""
    return entry.verdict.wrong or entry.verdict is Verdict.KINK


def verdict_of(located: Located, centre: float, tolerance: float) -> Verdict:
    """The verdict on a leaf: the worst among its line and its entries."""
    best = located.best
    line = best.slope.evidence(best.claim)
    if not math.isfinite(centre):
        line = line._replace(claim=centre)  # without a value there is no slope to claim
    elif located.explained and math.isfinite(line.bound):
        # An error that the entries explain must not count against the line, too.
        middle = best.slope.value
        line = line._replace(claim=middle, left=middle, right=middle)
    whole = judge(line, tolerance, best.scale, _counts(best, centre))
    worst = max([whole, *(entry.verdict for entry in located.entries)])
    hidden = worst is Verdict.AGREES and located.any_wrong  # the values are too coarse to show it
    return Verdict.UNRESOLVED if hidden else worst


def _counts(best: Comparison, centre: float) -> float:
    """The size relative to which an unseen error matters: at least what is negligible beside the
    function's value, unless the value hides the claim.
    """
    slope = best.slope
    if HIDDEN * slope.noise < best.size and slope.noise <= HIDDEN * slope.rounding * abs(centre):
        return best.scale
    return max(best.scale, NOTHING * max(abs(centre), slope.size))


def _parts(line: Line, sizes: dict[int, float]) -> list[Part]:
    """The parts of a direction in which the claims of all leaves in one class are of similar size.

    A random factor for each leaf keeps errors in two leaves from cancelling.
    """
    if len(sizes) == 1:
        return [line.whole(leaf) for leaf in sizes]
    factors = np.random.default_rng(len(sizes)).uniform(0.5, 1, len(sizes))
    some = [size for size in sizes.values() if size]
    least = max(min(some), max(some) / CLASS) if some else 0.0
    factors *= [min(1.0, least / size) if size else 1.0 for size in sizes.values()]
    pairs = zip(sizes, factors.tolist(), strict=True)
    return [line.whole(leaf, factor) for leaf, factor in pairs]


def _nothing(line: Line, pair: Sequence[Comparison], most: float) -> float:
    """The slope that is negligible next to the function's value; 0 if `most`, the largest claim, is
    not negligible itself.
    """
    value = max(abs(line.centre), *(c.slope.size for c in pair))
    return BLIND * NOTHING * value if most <= NOTHING * value else 0.0


def _confirms(pair: Sequence[Comparison], part: Part, nothing: float) -> bool:
    """Whether the lines would have shown any error that matters in this leaf."""
    least = nothing * part.weight
    return all(c.slope.bound <= max(SHARP * c.size_of(part.leaf), least) for c in pair)


def _with_claims(line: Line, claims: Sequence[Any], comparison: Comparison) -> Comparison:
    """The line through one leaf compared with other claims; its slope does not change."""
    (part,) = comparison.direction.parts
    _, along = line.draw(claims, comparison.direction)
    claim, size = float(along.terms[part.leaf]), float(along.sizes[part.leaf])
    return comparison._replace(claim=claim, size=size, along=along)


def _classes(sizes: dict[int, float]) -> list[dict[int, float]]:
    """The leaves grouped by the size of their claims, largest first, zeros last."""
    groups: list[dict[int, float]] = []
    most = math.nan
    for leaf, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
        if not groups or size < most / CLASS:
            groups.append({})
            most = size
        groups[-1][leaf] = size
    return groups


def _with_pairs(indices: Any, paired: bool) -> list[int]:
    """The flat positions; for complex leaves, also the position of each number's other part."""
    found = [int(i) for i in indices]
    return list(dict.fromkeys(j for i in found for j in ((i, i ^ 1) if paired else (i,))))


def _ask(line: Line, claims: Sequence[Any], parts: Sequence[Part]) -> tuple[Comparison, ...]:
    """The comparisons along two lines. Along the first, each entry moves by at least its leaf's
    usual size; along the second, by its own size.

    If the function has no values along either line through a single leaf, all entries move upwards:
    they may lie on the lower border of the domain.
    """
    quick = TIGHT if len(parts) > 1 else 0.0
    for up in (False, True):
        ways = (Direction(tuple(parts), seed, seed == 2, up) for seed in (1, 2))
        pair = tuple(line.compare(claims, direction, quick) for direction in ways)
        if len(parts) > 1 or any(math.isfinite(c.slope.bound) for c in pair):
            break
    return pair


def _ask_wider(
    line: Line, claims: Sequence[Any], parts: list[Part]
) -> tuple[list[Part], tuple[Comparison, ...]]:
    """The parts and the comparisons along two lines; with wider moves if these show more."""
    pair = _ask(line, claims, parts)
    if not all(map(_is_unseen, pair)):
        return parts, pair
    for factor in WIDER:
        wider = [part._replace(weight=part.weight * factor) for part in parts]
        again = _ask(line, claims, wider)
        if any(_shows(w, narrow, factor) for w, narrow in zip(again, pair, strict=True)):
            return wider, again
    return parts, pair


def _shows(wider: Comparison, narrow: Comparison, factor: float) -> bool:
    """Whether moves that are wider by a factor show a slope, and it is the one at the point as far
    as narrower moves can tell: it is not where the function curves in between.
    """
    there, here = wider.slope, narrow.slope
    clear = there.known_to(CLEAR) and not there.constant
    return clear and abs(there.value / factor - here.value) <= here.bound + there.bound / factor


def _is_unseen(comparison: Comparison) -> bool:
    """Whether a slope is claimed that the values are too coarse to show. Moving further from a jump
    would show the mean slope across it.
    """
    return bool(comparison.size) and not comparison.slope.jumps and _is_unclear(comparison)


def _is_unclear(comparison: Comparison) -> bool:
    """Whether the values are too coarse to show a slope of the size of the claim."""
    slope = comparison.slope
    unclear = slope.constant or slope.bound > CLEAR * comparison.scale
    return math.isfinite(slope.bound) and not slope.kink and unclear


def _bisect(line: Line, claims: Sequence[Any], comparison: Comparison) -> int:
    """The flat index of an entry that causes the difference along a line through one leaf.

    The difference between claim and slope is linear in the movement, so bisecting towards the
    larger difference takes log2(entries) slopes.
    """
    (part,), difference = comparison.direction.parts, comparison.difference
    while part.high - part.low > 1:
        half = part._replace(high=(part.low + part.high) // 2)
        direction = comparison.direction._replace(parts=(half,))
        first = line.compare(claims, direction, enough=abs(difference) / ENOUGH).difference
        first = first if math.isfinite(first) else 0.0
        if abs(first) >= abs(difference - first):
            part, difference = half, first
        else:
            part, difference = part._replace(low=half.high), difference - first
    return part.low
