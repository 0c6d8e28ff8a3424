"""From all leaves to the ones whose slope is wrong, and from those to the entries that are.

Leaves are asked together, moved so that their claims are alike and none hides behind another: one
question vouches for every leaf whose claim along it is large beside what the question could have
missed, and who is too small for that is asked again without the others. The difference between
claim and values is linear in what moves, so halving a group, or a range of entries, and following
the half with the larger difference leads to a wrong leaf in log2(leaves) questions, and to a wrong
entry in log2(entries) more. What is found is put right in a copy of the claims, and the search goes
on, until nothing is left to explain or a handful is found; then a sample tells whether there is a
pattern.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnn.checking.evidence import BLIND, NOTHING, Evidence, Verdict, judge
from jaxnn.checking.findings import Entry
from jaxnn.checking.line import Comparison, Direction, Line, Part
from jaxnn.checking.packed import count_not_finite
from jaxnn.checking.slope import RUNGS, TIGHT

# So many entries are named one by one; a pattern says more about a larger number of them.
HANDFUL = 6
# Enough to tell a row, a column or a ratio from chance.
SAMPLE = 24
# Leaves whose claims are this far apart are not asked together: moved so that the claims are
# alike, one of them would move too little or too much for the others' steps.
CLASS = 1e3
# A group vouches for a leaf whose claim it knows to this part: 5 % of one entry of a hundred
# million that are alike would still be seen.
SHARP = 1e-6
# Wrong leaves are followed to their entries until so many values were asked for; the others are
# then judged by one line each, as long as these many are not spent; REST are left for them anyway.
FOLLOWED, BUDGET, REST = 900, 3000, 600
# Which half has the larger difference is known well enough from bounds of this part of it.
ENOUGH = 8
# One of two bounds is closer only if it is less than this part of the other.
MUCH_CLOSER = 0.5
# How close two ratios are that are the same but for rounding (`causes.ALIKE` is coarser, as it has
# less to go by).
SAME_RATIO = 1e-5


class Findings(NamedTuple):
    """What is known of one leaf's claims.

    Attributes:
      asked: lines through all entries, held against the claims; those that are not finite count as
        right.
      rest: the same lines, held against the claims once the entries found are put right.
      entries: judged one by one: those found, and a sample where they do not explain everything.
      explained: whether the entries found are all that is wrong.
      ratio: autodiff / numerical, if the whole leaf is off by that.
      searched: whether its entries were looked for, if anything was wrong.
    """

    asked: tuple[Comparison, ...]
    rest: tuple[Comparison, ...]
    entries: tuple[Entry, ...] = ()
    explained: bool = True
    ratio: float | None = None
    searched: bool = True

    @property
    def best(self) -> Comparison:
        """The line that tells most."""
        return _closest(self.asked)


class Claimed(NamedTuple):
    """The claims that are looked into.

    Attributes:
      gradient: of each leaf.
      tolerances: the largest relative error of an entry that is no mistake, for each leaf.
      paired: whether a leaf's entries come in pairs, real and imaginary part.
    """

    gradient: Sequence[Any]
    tolerances: Sequence[float]
    paired: Sequence[bool]

    def without(self, leaf: int, claims: np.ndarray) -> "Claimed":
        """Other claims for one leaf."""
        gradient = [claims if k == leaf else g for k, g in enumerate(self.gradient)]
        return self._replace(gradient=gradient)


def examine(line: Line, claimed: Claimed, together: bool) -> Iterator[tuple[int, Findings]]:
    """What is known of each leaf that has entries, as it becomes known.

    Args:
      line: what is asked.
      claimed: what is looked into.
      together: whether leaves may be asked together.
    """
    leaves = [k for k, size in enumerate(line.sizes) if size]
    finite = [k for k in leaves if together and not count_not_finite(claimed.gradient[k])]
    grouped = set(finite) if len(finite) > 1 else set()
    for k in leaves:
        if k not in grouped:
            yield k, examine_leaf(line, k, claimed)
    if grouped:
        sizes = line.claimed_sizes(claimed.gradient, finite)
        yield from _Groups(line, claimed).examine(sizes, mixed=True)


class _Groups:
    """Leaves that are asked together; once one was wrong, little is spent on the others."""

    def __init__(self, line: Line, claimed: Claimed):
        self.line, self.claimed, self.wrong = line, claimed, False
        self.spent: int | None = None  # on entries, once that was enough

    @property
    def brief(self) -> bool:
        """Whether enough was spent on entries."""
        if self.spent is None and self.wrong and self.line.evaluations > FOLLOWED:
            self.spent = self.line.evaluations
        return self.spent is not None

    def examine(
        self, sizes: dict[int, float], mixed: bool = False
    ) -> Iterator[tuple[int, Findings]]:
        """What is known of the leaves of a group.

        Args:
          sizes: of their claims.
          mixed: whether these may be of more than one class.
        """
        if len(sizes) == 1 or self.brief:
            for k in sizes:
                yield k, self._alone(k)
            return
        parts = self._parts(sizes)
        pair = _ask_pair(self.line, self.claimed.gradient, parts)
        nothing = self._nothing(pair, max(sizes.values()))
        off = any(c.excess or c.slope.kink for c in pair)
        vouched, rest = [], []
        for part in parts:
            (vouched if not off and _knows(pair, part, nothing) else rest).append(part)
        for part in vouched:
            yield part.leaf, _share(pair, part)
        left = {part.leaf: sizes[part.leaf] for part in rest}
        classes = _classes(left)
        if off:
            yield from self._follow(pair, rest, left)
        elif mixed and (vouched or len(classes) > 1):
            for group in classes:
                yield from self.examine(group)
        else:
            yield from self._halves(left)

    def _follow(
        self, pair: Sequence[Comparison], parts: Sequence[Part], sizes: dict[int, float]
    ) -> Iterator[tuple[int, Findings]]:
        """A leaf that the difference comes from; and then the others."""
        which = max(pair, key=lambda c: (c.excess, c.slope.kink))
        leaf = self._descend(which, parts)
        found = self._alone(leaf)
        yield leaf, found
        others = [part for part in parts if part.leaf != leaf]
        if found.ratio and self._all_off_by(found.ratio, pair, parts, leaf):
            for part in others:
                yield part.leaf, _scaled_share(pair, part, found.ratio)
            return
        rest = {part.leaf: sizes[part.leaf] for part in others}
        wrong = not found.explained or any(e.verdict is not Verdict.AGREES for e in found.entries)
        if wrong and rest:
            yield from self.examine(rest)
        else:  # it led nowhere
            yield from self._halves(rest)

    def _halves(self, sizes: dict[int, float]) -> Iterator[tuple[int, Findings]]:
        pairs, middle = list(sizes.items()), (len(sizes) + 1) // 2
        for half in (pairs[:middle], pairs[middle:]):
            if half:
                yield from self.examine(dict(half))

    def _alone(self, leaf: int) -> Findings:
        """What is known of a leaf by itself: its entries too, if not too many are wrong."""
        claims = self.claimed.gradient
        if not self.brief:
            found = examine_leaf(self.line, leaf, self.claimed)
            self.wrong |= not found.explained or any(e.verdict.wrong for e in found.entries)
            return found
        if self.spent and self.line.evaluations > max(BUDGET, self.spent + REST) - 2 * RUNGS:
            return Findings((), (), explained=False, searched=False)
        quick = self.claimed.tolerances[leaf] / ENOUGH
        asked = (self.line.compare(claims, Direction((self.line.whole(leaf),)), quick),)
        fine = not (asked[0].excess or asked[0].slope.kink)
        return Findings(asked, asked, explained=fine, searched=False)

    def _parts(self, sizes: dict[int, float]) -> list[Part]:
        """The leaves, moved so that their claims are alike, as far as they are of one class; by a
        random factor each besides, so that no two errors cancel.
        """
        factors = np.random.default_rng(len(sizes)).uniform(0.5, 1, len(sizes))
        some = [size for size in sizes.values() if size]
        least = max(min(some), max(some) / CLASS) if some else 0.0
        factors *= [min(1.0, least / size) if size else 1.0 for size in sizes.values()]
        pairs = zip(sizes, factors.tolist(), strict=True)
        return [self.line.whole(leaf, factor) for leaf, factor in pairs]

    def _nothing(self, pair: Sequence[Comparison], most: float) -> float:
        """A slope that is nothing beside the function, where no claim, at most `most`, is more."""
        value = max(abs(self.line.centre), *(c.slope.size for c in pair))
        return BLIND * NOTHING * value if most <= NOTHING * value else 0.0

    def _all_off_by(
        self, ratio: float, pair: Sequence[Comparison], parts: Sequence[Part], leaf: int
    ) -> bool:
        """Whether all claims of a group are off by the ratio that one leaf's are: that explains the
        difference, and that leaf alone does not.
        """
        tolerance = min(self.claimed.tolerances[part.leaf] for part in parts)
        all_off = all(_explains(c, c.claim / ratio, tolerance) for c in pair)
        one = lambda c: c.claim - float(c.along.terms[leaf]) * (1 - 1 / ratio)  # noqa: E731
        return all_off and not all(_explains(c, one(c), tolerance) for c in pair)

    def _descend(self, comparison: Comparison, parts: Sequence[Part]) -> int:
        """A leaf that the difference along a line comes from."""
        difference = comparison.difference
        while len(parts) > 1:
            half = parts[: len(parts) // 2]
            direction = comparison.direction.only(half)
            first = _difference(self.line, self.claimed.gradient, direction, difference)
            if abs(first) >= abs(difference - first):
                parts, difference = half, first
            else:
                parts, difference = parts[len(half) :], difference - first
        return parts[0].leaf


def verdict_of(findings: Findings, centre: float, tolerance: float) -> tuple[Verdict, list[Entry]]:
    """The verdict on a leaf, the worst of its line's and its entries'; and those that count."""
    best, entries = findings.best, list(findings.entries)
    # Beside the slope over the coarsest step, which no noise makes larger, it can be nothing too.
    coarse = abs(float(best.slope.differences[0])) if len(best.slope.differences) else 0.0
    coarse = coarse if math.isfinite(coarse) else 0.0
    counts = max(best.scale, NOTHING * max(abs(centre), best.slope.size, coarse))
    line = best.slope.evidence(best.claim)
    if not math.isfinite(centre):
        line = line._replace(claim=centre)  # of no value there is no slope to claim
    elif findings.explained and math.isfinite(line.bound):
        # What the entries found explain is no evidence against the line as well.
        middle = best.slope.value
        line = line._replace(claim=middle, left=middle, right=middle)
    whole = judge(line, tolerance, best.scale, counts)
    return max([whole, *(e.verdict for e in entries)]), entries


def examine_leaf(line: Line, leaf: int, claimed: Claimed) -> Findings:
    """Which entries explain why a leaf's claims differ from its values."""
    claims, size = claimed.gradient[leaf], line.sizes[leaf]
    known: dict[int, Entry] = {}

    def examine_index(index, quick=TIGHT):
        if index not in known:
            known[index] = examine_entry(line, leaf, index, claimed, quick)
        if claimed.paired[leaf] and index ^ 1 not in known:
            known[index ^ 1] = examine_entry(line, leaf, index ^ 1, claimed, quick)
        return known[index]

    bad: list[int] = []
    if count_not_finite(claims):
        bad = np.flatnonzero(~np.isfinite(np.asarray(claims, np.float64))).tolist()
    for index in bad[:HANDFUL]:
        examine_index(index)
    asked = _ask_leaf(line, leaf, claimed, known)
    if len(bad) > HANDFUL:
        return Findings(asked, asked, tuple(known.values()), True)
    if not any(comparison.excess for comparison in asked):
        return Findings(asked, asked, _judged(known, bad))
    quick = claimed.tolerances[leaf] / ENOUGH
    sample = [examine_index(i, quick) for i in _sample(size, HANDFUL)]
    ratio = _common_ratio(asked)
    if ratio is not None and all(_off_by(entry, ratio) for entry in sample):
        return Findings(asked, asked, _judged(known, bad), len(known) == size, ratio)
    rest, following, everywhere = asked, {0, 1}, all(e.verdict.wrong for e in sample)
    if not everywhere:
        rest, following = _follow(line, leaf, claimed, examine_index, known, asked)
    explained = not any(comparison.excess for comparison in rest)
    if not explained:
        for index in _sample(size, SAMPLE):
            examine_index(index, quick)
    else:
        known = _telling(line, leaf, claimed, known)
    # A line that led to an entry which is right, or known, does not hold if the other one does.
    holds = tuple(sorted(following)) or (0, 1)
    return Findings(tuple(asked[i] for i in holds), rest, _judged(known, bad), explained)


def _telling(line: Line, leaf: int, claimed: Claimed, known: dict[int, Entry]) -> dict[int, Entry]:
    """Of entries that explain everything those that are not right, known as closely as can be: what
    was only looked at tells nothing.
    """
    telling = {i for i, entry in known.items() if entry.verdict is not Verdict.AGREES}
    telling |= {i ^ 1 for i in telling if claimed.paired[leaf]}
    looked_at = _sample(line.sizes[leaf], HANDFUL)
    closer = lambda i: examine_entry(line, leaf, i, claimed, TIGHT)  # noqa: E731
    return {i: closer(i) if i in looked_at else known[i] for i in known if i in telling}


def _judged(known: dict[int, Entry], bad: Sequence[int]) -> tuple[Entry, ...]:
    """The entries of which something is known."""
    pairs = known.items()
    return tuple(e for i, e in pairs if i in bad or e.verdict is not Verdict.UNRESOLVED)


def _ask_pair(
    line: Line, claims: Sequence[Any], parts: Sequence[Part], up: bool = False
) -> tuple[Comparison, ...]:
    """Two slopes: each entry moved by its own size, and by at least its leaf's mean."""
    kinds, quick = ((1, False), (2, True)), TIGHT if len(parts) > 1 else 0.0
    return tuple(line.compare(claims, Direction(tuple(parts), *kind, up), quick) for kind in kinds)


def _ask_leaf(
    line: Line, leaf: int, claimed: Claimed, known: dict[int, Entry]
) -> tuple[Comparison, ...]:
    """Two slopes through all entries of a leaf, known ones put right.

    If the function has no values that way, all entries are moved up: they may lie on the lower
    border of its domain.
    """
    claims, part = claimed.gradient, line.whole(leaf)
    if known:
        right = put_right(np.asarray(claims[leaf], np.float64), known)
        claims = claimed.without(leaf, right).gradient
    pair = _ask_pair(line, claims, [part])
    if any(np.isfinite(comparison.slope.bound) for comparison in pair):
        return pair
    return _ask_pair(line, claims, [part], up=True)


def _follow(
    line: Line,
    leaf: int,
    claimed: Claimed,
    examine_index: Callable[[int], Entry],
    known: dict[int, Entry],
    asked: tuple[Comparison, ...],
) -> tuple[tuple[Comparison, ...], set[int]]:
    """Add to `known` the entries that the lines `asked` lead to, a handful at most.

    Returns:
      The same lines once those entries are put right, and the numbers of those that led to wrong
      ones.
    """
    believed = {i: e for i, e in known.items() if e.verdict is not Verdict.UNRESOLVED}
    found = any(e.verdict is not Verdict.AGREES for e in believed.values())
    rest = _ask_leaf(line, leaf, claimed, believed) if found else asked
    following, most = {0, 1}, len(known) + HANDFUL
    while following and len(known) < most:
        which = max(following, key=lambda i: rest[i].excess)
        if not rest[which].excess:
            break
        right = put_right(np.asarray(claimed.gradient[leaf], np.float64), believed)
        index = _descend(line, claimed.without(leaf, right).gradient, rest[which])
        entry = None if index in known else examine_index(index)
        if entry is None or not (entry.verdict.wrong or entry.verdict is Verdict.KINK):
            following.remove(which)  # it leads nowhere
        if entry is not None and entry.verdict is not Verdict.UNRESOLVED:
            believed[index] = entry
            rest = _ask_leaf(line, leaf, claimed, believed)
    return rest, following


def examine_entry(line: Line, leaf: int, index: int, claimed: Claimed, quick: float) -> Entry:
    """The derivative by one entry, held against its claim; no closer than to the part `quick`."""
    part = Part(leaf, index, index + 1)
    claims, shape = claimed.gradient, np.shape(claimed.gradient[leaf])
    claim = float(np.asarray(claims[leaf]).ravel()[index])
    coarse = line.compare(claims, Direction((part,)), quick)
    long = float(coarse.along.moves[leaf])
    if not long:  # it cannot be moved: it is not finite
        best = Evidence(claim, np.nan, np.nan, np.inf)
        return Entry.of(index, shape, best, judge(best, claimed.tolerances[leaf]))
    evidence = [coarse.slope.evidence(claim, long)]
    best = evidence[0]
    if not coarse.slope.known_to(quick):
        fine = line.compare(claims, Direction((part,), relative=True), quick)
        short = float(fine.along.moves[leaf])
        evidence.append(fine.slope.evidence(claim, short))
        best = min(evidence, key=lambda one: one.bound)
        apart = abs(coarse.slope.value / long - fine.slope.value / short)
        if apart > evidence[0].bound + evidence[1].bound:
            # Beyond the reach of steps that are all too long, a function can look flat; where both
            # saw the same, neither is believed.
            unseen = coarse.slope.steps[-1] * abs(long) > fine.slope.step * abs(short)
            best = evidence[1]._replace(bound=evidence[1].bound + (0.0 if unseen else apart))
    return Entry.of(index, shape, best, judge(best, claimed.tolerances[leaf]))


def put_right(claims: np.ndarray, known: dict[int, Entry]) -> np.ndarray:
    """The claims with the values of known entries, where there are any, in their place."""
    mended = claims.copy()
    for index, entry in known.items():
        if np.isfinite(entry.numerical):
            mended.ravel()[index] = entry.numerical
    return mended


def _closest(asked: Sequence[Comparison]) -> Comparison:
    """The line with the closest bound; the first, if that is much the same, so that no rounding
    chooses.
    """
    closest = min(asked, key=lambda comparison: comparison.slope.bound)
    return closest if closest.slope.bound < MUCH_CLOSER * asked[0].slope.bound else asked[0]


def _knows(pair: Sequence[Comparison], part: Part, nothing: float) -> bool:
    """Whether no error of a leaf's that counts went unseen."""
    least = nothing * part.weight
    return all(c.slope.bound <= max(SHARP * c.size_of(part.leaf), least) for c in pair)


def _share(pair: Sequence[Comparison], part: Part) -> Findings:
    """What a group says of one of its leaves."""
    asked = (_closest(pair).share(part),)
    return Findings(asked, asked)


def _scaled_share(pair: Sequence[Comparison], part: Part, ratio: float) -> Findings:
    """What a group says of one of its leaves, if all of them are off by the same ratio."""
    best = _closest(pair)
    terms = best.along.terms / ratio
    right = best._replace(claim=best.claim / ratio, along=best.along._replace(terms=terms))
    share = right.share(part)
    asked = (share._replace(claim=share.claim * ratio),)
    return Findings(asked, asked, (), False, ratio, searched=False)


def _classes(sizes: dict[int, float]) -> list[dict[int, float]]:
    """Leaves in groups of similar size of their claims, the largest first, those of none last."""
    groups: list[dict[int, float]] = []
    most = math.nan
    for leaf, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
        if not groups or size < most / CLASS:
            groups.append({})
            most = size
        groups[-1][leaf] = size
    return groups


def _common_ratio(pair: Sequence[Comparison]) -> float | None:
    """autodiff / numerical, where the lines agree on one that is not 1."""
    if any(not c.excess or c.slope.kink or c.slope.value == 0 for c in pair):
        return None
    if not any(c.size for c in pair):
        return 0.0
    ratios = [c.claim / c.slope.value for c in pair]
    slack = SAME_RATIO * abs(ratios[0])
    slack += sum(
        abs(r) * c.slope.bound / abs(c.slope.value) for r, c in zip(ratios, pair, strict=True)
    )
    alike = np.isfinite(ratios[0]) and np.ptp(ratios) <= slack < abs(ratios[0] - 1)
    return float(ratios[0]) if alike else None


def _off_by(entry: Entry, ratio: float) -> bool:
    slack = SAME_RATIO * abs(entry.autodiff) + abs(ratio) * entry.bound
    return abs(entry.autodiff - ratio * entry.numerical) <= slack


def _explains(comparison: Comparison, right: float, tolerance: float) -> bool:
    """Whether the values show what the claims of a group come to once they are put right."""
    off = abs(right - comparison.slope.value)
    return off <= max(comparison.slope.bound, tolerance * comparison.size)


def _sample(size: int, count: int) -> Sequence[int]:
    """Some entries, spread over a leaf."""
    return [int(i) for i in np.unique(np.random.default_rng(0).permutation(size)[:count])]


def _difference(line: Line, claims: Sequence[Any], direction: Direction, whole: float) -> float:
    """Claim less slope along a part of a direction, well enough to say whether it is most of it."""
    enough = abs(whole) / ENOUGH
    difference = line.compare(claims, direction, enough=enough).difference
    return difference if np.isfinite(difference) else 0.0


def _descend(line: Line, claims: Sequence[Any], comparison: Comparison) -> int:
    """An entry that the difference along a line through one leaf comes from."""
    (part,), difference = comparison.direction.parts, comparison.difference
    while part.high - part.low > 1:
        half = part._replace(high=(part.low + part.high) // 2)
        direction = comparison.direction.only([half])
        first = _difference(line, claims, direction, difference)
        if abs(first) >= abs(difference - first):
            part, difference = half, first
        else:
            part, difference = part._replace(low=half.high), difference - first
    return part.low
