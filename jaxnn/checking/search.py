"""From a leaf whose slope is wrong to the entries that are, and what they have in common.

The difference between claim and values is linear in the entries, so halving a range and following the half with the larger
difference leads to a wrong entry in log2(D) questions. What is found is put right in the claims, and the search goes on, until
nothing is left to explain or a handful is found; then a sample of entries tells whether they follow a pattern.
"""

import math

import numpy as np

from jaxnn.checking.probe import Answer, Probe, Question
from jaxnn.checking.report import Entry

HANDFUL = 6
SAMPLE = 24


def ask_leaf(probe: Probe, leaf: int) -> list[Answer]:
    """Two slopes through all entries of a leaf: each entry moved by its own size, and by at least the leaf's mean size.

    If the function has no values that way, all entries are moved up: they may lie on the lower border of its domain.
    """
    size = probe.leaves[leaf].size
    for sign in (1, -1):
        answers = [probe.ask(Question(leaf, 0, size, sign * seed, relative)) for seed, relative in ((1, False), (2, True))]
        if any(np.isfinite(answer.slope.bound) for answer in answers):
            break
    return answers


def find_entries(probe: Probe, leaf: int, answers: list[Answer], half_digits: float) -> tuple[list[Entry], bool, list[Answer]]:
    """The entries that explain why a leaf's claims differ from its values; whether that is all of them; and which answers hold.

    Claims of the entries found are replaced by what the values say, so that the next search finds the next one. An answer
    that leads to an entry which is right, or known, is not followed any more, and does not hold if the other one does.
    """
    first = answers
    found: dict[int, Entry] = {}
    told = {0, 1}
    while told and len(found) < HANDFUL:
        which = max(told, key=lambda i: _conspicuous(answers[i]))
        if not _conspicuous(answers[which]):
            break
        index = _descend(probe, answers[which])
        entry = None if index in found else judge_entry(probe, leaf, index, half_digits)
        if entry is None or entry.verdict == "agrees":
            told.remove(which)
        if entry is not None:
            found[index] = entry
            probe.claims[leaf].ravel()[index] = entry.numerical
            answers = ask_leaf(probe, leaf)
    return list(found.values()), not any(map(_conspicuous, answers)), [first[i] for i in told or (0, 1)]


def judge_entry(probe: Probe, leaf: int, index: int, half_digits: float) -> Entry | None:
    """The derivative by one entry, held against its claim; None if there is no evidence."""
    questions = [Question(leaf, index, index + 1, 1, relative) for relative in (False, True)]
    (coarse, long), (fine, short) = [(probe.ask(q).slope, float(probe.moves(q)[0])) for q in questions]
    slope, scale = min((coarse, long), (fine, short), key=lambda pair: pair[0].bound / abs(pair[1]))
    if abs(coarse.value / long - fine.value / short) > coarse.bound / abs(long) + fine.bound / abs(short):
        slope, scale = fine, short  # on steps that are too long a function can look flat, on short ones it cannot
    place = np.unravel_index(index, probe.leaves[leaf].shape)
    claim = float(probe.claims[leaf].ravel()[index])
    if not np.isfinite(slope.bound):
        return None
    numerical, bound = slope.value / scale, slope.bound / abs(scale)
    # Along a direction that points down, the entry's left is on the right.
    left, right = (side / scale for side in ((slope.right, slope.left) if scale < 0 else (slope.left, slope.right)))
    slack, gap = bound + half_digits * max(abs(left), abs(right)), abs(right - left)
    if not np.isfinite(claim):
        verdict = "not finite"
    elif slope.kink and gap > slack and min(left, right) - slack <= claim <= max(left, right) + slack:
        verdict = "kink"
    elif abs(claim - numerical) > bound and abs(claim - numerical) > half_digits * max(abs(claim), abs(numerical)):
        verdict = "differs"
    else:
        verdict = "agrees"
    return Entry(tuple(map(int, place)), claim, numerical, bound, verdict, left, right)


def without_evidence(probe: Probe, leaf: int, index: int) -> Entry:
    """An entry whose claim is not finite, at a point near which the function is not either."""
    place = np.unravel_index(index, probe.leaves[leaf].shape)
    nan, claim = float("nan"), float(probe.claims[leaf].ravel()[index])
    return Entry(tuple(map(int, place)), claim, nan, float("inf"), "not finite", nan, nan)


def sample_entries(probe: Probe, leaf: int, half_digits: float) -> list[Entry]:
    """Some entries of a leaf, spread over it, each judged by itself."""
    size = probe.leaves[leaf].size
    chosen = np.unique(np.random.default_rng(0).permutation(size)[:SAMPLE])
    entries = [judge_entry(probe, leaf, int(i), half_digits) for i in chosen]
    return [entry for entry in entries if entry is not None]


def describe_pattern(
    entries: list[Entry], shape: tuple[int, ...], claims: np.ndarray, counts: set[int], sampled: bool
) -> tuple[str, str]:
    """What wrong entries have in common, and the cause that suggests: `(pattern, hint)`.

    Args:
      entries: judged entries of one leaf, right ones too.
      shape: of the leaf.
      claims: its gradient, as claimed.
      counts: numbers of examples that the function's data have.
      sampled: whether there are more wrong entries than these, so that a sample stands for the leaf.
    """
    wrong = [e for e in entries if e.verdict in ("differs", "not finite")]
    right = [e for e in entries if e.verdict not in ("differs", "not finite")]
    if not wrong:
        return "", ""
    pattern = []
    if len(wrong) > 1 and not right and (sampled or len(wrong) == math.prod(shape)):
        pattern.append(f"every entry of {len(wrong)} looked at")
    elif len(wrong) > 2:
        for axis in range(len(shape)):
            places = {e.index[axis] for e in wrong}
            if len(places) == 1 and shape[axis] > 1:
                pattern.append(f"all have index {places.pop()} on axis {axis}")
    hint = ""
    ratios = np.array([e.autodiff / e.numerical for e in wrong if e.numerical and np.isfinite(e.autodiff)])
    if all(e.autodiff == 0 for e in wrong):
        hint = "autodiff is 0: detached (stop_gradient, a rounded or integer step), or left out of a custom rule"
    elif len(ratios) and np.ptp(ratios) <= 1e-3 * np.max(np.abs(ratios)):
        ratio = float(np.median(ratios))
        if len(ratios) > 1:
            pattern.append(f"autodiff / numerical = {ratio:.6g} throughout")
        hint = _cause(ratio, counts)
    if not hint and len(shape) == 2 and shape[0] == shape[1] and len(wrong) > 2:
        off = [e for e in wrong if e.index[0] != e.index[1]]
        swapped = [abs(claims[e.index[::-1]] - e.numerical) <= 1e-3 * abs(e.numerical) + e.bound for e in off]
        if off and all(swapped):
            hint = "autodiff's entry (j, i) is right for (i, j): transposed"
    return "; ".join(pattern), hint


def _conspicuous(answer):
    """How far outside of its bound the difference is; 0 if it is inside."""
    return answer.excess / (answer.slope.bound + np.finfo(float).tiny) if answer.excess else 0.0


def _descend(probe, answer):
    question, difference = answer.question, answer.difference
    while question.high - question.low > 1:
        middle = (question.low + question.high) // 2
        first = probe.ask(question._replace(high=middle)).difference
        if not np.isfinite(first):
            first = 0.0
        if abs(first) >= abs(difference - first):
            question, difference = question._replace(high=middle), first
        else:
            question, difference = question._replace(low=middle), difference - first
    return question.low


def _cause(ratio, counts):
    near = {-1.0: "the sign", 2.0: "a factor of 2 too many", 0.5: "a factor of 2 lost"}
    for value, words in near.items():
        if abs(ratio - value) < 1e-3 * abs(value):
            return words
    for count in sorted(counts - {1, 2}):
        if abs(ratio - count) < 1e-3 * count:
            return f"{count} times too large, a number of examples: a sum where the function takes a mean"
        if abs(ratio * count - 1) < 1e-3:
            return f"{count} times too small, a number of examples: a mean where the function takes a sum"
    return ""
