"""From a leaf whose slope is wrong to the entries that are.

The difference between claim and values is linear in the entries, so halving a range and following
the half with the larger difference leads to a wrong entry in log2(D) questions. What is found is
put right in a copy of the claims, and the search goes on, until nothing is left to explain or a
handful is found; then a sample of entries tells whether they follow a pattern.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxnn.checking.evidence import Verdict, judge
from jaxnn.checking.findings import Entry
from jaxnn.checking.line import Comparison, Direction, Line

# So many entries are named one by one; a pattern says more about a larger number of them.
HANDFUL = 6
# Enough to tell a row, a column or a ratio from chance.
SAMPLE = 24


class Findings(NamedTuple):
    """What is known of one leaf's claims.

    Attributes:
      asked: lines through all entries, held against the claims; those that are not finite count as
        right.
      rest: the same lines, held against the claims once the entries found are put right.
      entries: judged one by one: those found, and a sample where they do not explain everything.
      explained: whether the entries found are all that is wrong.
    """

    asked: tuple[Comparison, ...]
    rest: tuple[Comparison, ...]
    entries: tuple[Entry, ...]
    explained: bool

    @property
    def best(self) -> Comparison:
        """The line with the closest bound."""
        return min(self.asked, key=lambda comparison: comparison.slope.bound)


def ask_leaf(line: Line, leaf: int, claims: np.ndarray) -> tuple[Comparison, ...]:
    """Two slopes through all entries: each moved by its own size, and by at least the leaf's mean.

    If the function has no values that way, all entries are moved up: they may lie on the lower
    border of its domain.
    """
    pair: tuple[Comparison, ...] = ()
    for sign in (1, -1):
        pair = tuple(
            line.compare(claims, Direction(leaf, 0, claims.size, sign * seed, relative))
            for seed, relative in ((1, False), (2, True))
        )
        if any(np.isfinite(comparison.slope.bound) for comparison in pair):
            break
    return pair


def examine_leaf(line: Line, leaf: int, claims: np.ndarray, tolerance: float) -> Findings:
    """Which entries explain why a leaf's claims differ from its values.

    Args:
      line: what is asked.
      leaf: its number.
      claims: its gradient.
      tolerance: the largest relative error of an entry that is no mistake.
    """
    bad = [int(i) for i in np.flatnonzero(~np.isfinite(claims.ravel()))]
    examine = lambda index: examine_entry(line, leaf, index, claims, tolerance)  # noqa: E731
    known = {index: examine(index) for index in bad[:HANDFUL]}
    asked = ask_leaf(line, leaf, put_right(claims, known))
    if len(bad) > HANDFUL:
        return Findings(asked, asked, tuple(known.values()), True)
    rest, following = _follow(line, leaf, claims, examine, known, asked)
    explained = not any(comparison.excess for comparison in rest)
    if not explained:
        known |= {index: examine(index) for index in _sample(claims.size) if index not in known}
    entries = [e for i, e in known.items() if i in bad or e.verdict is not Verdict.UNRESOLVED]
    # A line that led to an entry which is right, or known, does not hold if the other one does.
    holds = tuple(sorted(following)) or (0, 1)
    return Findings(tuple(asked[i] for i in holds), rest, tuple(entries), explained)


def _follow(
    line: Line,
    leaf: int,
    claims: np.ndarray,
    examine: Callable[[int], Entry],
    known: dict[int, Entry],
    asked: tuple[Comparison, ...],
) -> tuple[tuple[Comparison, ...], set[int]]:
    """Add to `known` the entries that the lines `asked` lead to, a handful at most.

    Returns:
      The same lines once those entries are put right, and the numbers of those that led to wrong
      ones.
    """
    rest, following, most = asked, {0, 1}, len(known) + HANDFUL
    while following and len(known) < most:
        which = max(following, key=lambda i: rest[i].excess)
        if not rest[which].excess:
            break
        index = _descend(line, put_right(claims, known), rest[which])
        entry = None if index in known else examine(index)
        if entry is None or not (entry.verdict.wrong or entry.verdict is Verdict.KINK):
            following.remove(which)  # it leads nowhere
        if entry is not None and entry.verdict is not Verdict.UNRESOLVED:
            known[index] = entry
            rest = ask_leaf(line, leaf, put_right(claims, known))
    return rest, following


def examine_entry(line: Line, leaf: int, index: int, claims: np.ndarray, tolerance: float) -> Entry:
    """The derivative by one entry, held against its claim."""
    directions = [Direction(leaf, index, index + 1, 1, relative) for relative in (False, True)]
    pairs = [(line.slope(d), float(line.moves(d)[0])) for d in directions]
    claim = float(claims.ravel()[index])
    (coarse, long), (fine, short) = pairs
    evidence = [slope.evidence(claim, scale) for slope, scale in pairs]
    best = min(evidence, key=lambda one: one.bound)
    apart = abs(coarse.value / long - fine.value / short)
    if apart > evidence[0].bound + evidence[1].bound:
        # Beyond the reach of steps that are all too long, a function can look flat; where both saw
        # the same, neither is believed.
        unseen = coarse.steps[-1] * abs(long) > fine.step * abs(short)
        best = evidence[1]._replace(bound=evidence[1].bound + (0.0 if unseen else apart))
    return Entry.of(index, claims.shape, best, judge(best, tolerance))


def put_right(claims: np.ndarray, known: dict[int, Entry]) -> np.ndarray:
    """The claims with the values of known entries, where there are any, in their place."""
    mended = claims.copy()
    for index, entry in known.items():
        if np.isfinite(entry.numerical):
            mended.ravel()[index] = entry.numerical
    return mended


def _sample(size: int) -> Sequence[int]:
    """Some entries, spread over a leaf."""
    return [int(i) for i in np.unique(np.random.default_rng(0).permutation(size)[:SAMPLE])]


def _descend(line: Line, claims: np.ndarray, comparison: Comparison) -> int:
    """An entry that the difference along a line comes from."""
    direction, difference = comparison.direction, comparison.difference
    while direction.high - direction.low > 1:
        middle = (direction.low + direction.high) // 2
        first = line.compare(claims, direction._replace(high=middle)).difference
        if not np.isfinite(first):
            first = 0.0
        if abs(first) >= abs(difference - first):
            direction, difference = direction._replace(high=middle), first
        else:
            direction, difference = direction._replace(low=middle), difference - first
    return direction.low
