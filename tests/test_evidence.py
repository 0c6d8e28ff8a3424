"""The one judgement: what evidence says of a claim, as a table of facts, and the laws it obeys."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from jaxnn.checking.evidence import (
    ALL_DIGITS,
    Evidence,
    Verdict,
    digits_shared,
    excess,
    judge,
    judge_all,
    reach,
    same_value,
)

NAN, INF = math.nan, math.inf
HALF = reach(jnp.float32)
TABLE = [
    # claim, left, right, bound, tolerance, size, counts, verdict
    (1.0, 1.0, 1.0, 0.0, HALF, 0.0, INF, "agrees"),
    (1.0, 1.0, 1.0, 1e-9, HALF, 0.0, 1.0, "agrees"),
    (0.0, 0.0, 0.0, 0.0, HALF, 0.0, 0.0, "agrees"),
    (1.01, 1.0, 1.0, 1e-9, HALF, 0.0, 1.0, "differs"),
    (1.01, 1.0, 1.0, 0.02, HALF, 0.0, INF, "agrees"),  # the bound covers it
    (1.01, 1.0, 1.0, 0.02, HALF, 0.0, 0.1, "unresolved"),  # and too much else
    (1.0001, 1.0, 1.0, 1e-9, HALF, 0.0, 1.0, "agrees"),  # below half of float32's digits
    (1.0001, 1.0, 1.0, 1e-9, reach(jnp.float64), 0.0, 1.0, "differs"),
    (1e-5, 0.0, 0.0, 1e-9, HALF, 0.0, 1.0, "differs"),  # no size that it could be nothing beside
    (1e-5, 0.0, 0.0, 1e-9, HALF, 1.0, 1.0, "agrees"),  # terms of size 1 that cancel
    (0.5, 0.0, 1.0, 1e-9, HALF, 0.0, 1.0, "kink"),
    (0.5, 1.0, 0.0, 1e-9, HALF, 0.0, 1.0, "kink"),
    (0.0, 0.0, 1.0, 1e-9, HALF, 0.0, 1.0, "kink"),
    (1.5, 0.0, 1.0, 1e-9, HALF, 0.0, 1.0, "differs"),  # outside both slopes
    (-0.5, 0.0, 1.0, 1e-9, HALF, 0.0, 1.0, "differs"),
    (0.5, 0.5, 0.6, 0.2, HALF, 0.0, INF, "agrees"),  # a kink that the bound covers is none
    (NAN, 1.0, 1.0, 1e-9, HALF, 0.0, 1.0, "not finite"),
    (INF, 1.0, 1.0, 1e-9, HALF, 0.0, 1.0, "not finite"),
    (NAN, NAN, NAN, INF, HALF, 0.0, 1.0, "not finite"),
    (1.0, 0.0, 0.0, INF, HALF, 0.0, 1.0, "unresolved"),
    (1.0, NAN, NAN, INF, HALF, 0.0, INF, "unresolved"),
]


@pytest.mark.parametrize("claim, left, right, bound, tolerance, size, counts, verdict", TABLE)
def test_a_claim_held_against_an_interval(
    claim, left, right, bound, tolerance, size, counts, verdict
):
    assert judge(Evidence(claim, left, right, bound), tolerance, size, counts) is Verdict(verdict)


@pytest.mark.parametrize(
    "claims, values, bound, verdict, which",
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, "agrees", []),
        ([1.0, 2.0, 9.0], [1.0, 3.0, 7.0], 0.0, "differs", [2, 1]),  # the largest error first
        ([1.0, 2.0, 9.0], [1.0, 3.0, 7.0], 1.5, "differs", [2]),
        ([1.0, 2.0], [1.0, 3.0], INF, "agrees", []),
        ([NAN, 2.0], [1.0, 3.0], INF, "not finite", [0]),
        ([1.0, NAN], [9.0, 3.0], 0.0, "not finite", [1]),  # the worse verdict
        ([1.0, INF], [1.0, INF], 0.0, "unresolved", [1]),
        ([1.0, 5.0], [2.0, NAN], 0.0, "differs", [0]),
        ([], [], 0.0, "agrees", []),
    ],
)
def test_claims_held_against_values_one_by_one(claims, values, bound, verdict, which):
    judged, positions = judge_all(np.array(claims), np.array(values), np.array(bound), HALF)
    assert judged is Verdict(verdict)
    assert positions.tolist() == which


@pytest.mark.parametrize(
    "difference, bound, beyond",
    [
        (0.5, 1.0, 0.0),
        (-3.0, 1.0, 2.0),
        (NAN, 1.0, INF),  # no claim
        (3.0, INF, 0.0),  # no evidence
        (NAN, INF, 0.0),
    ],
)
def test_how_many_bounds_a_difference_lies_beyond_the_first(difference, bound, beyond):
    assert excess(difference, bound) == beyond


# Of ordinary size, so that no product of two underflows.
NUMBERS = st.floats(-1e6, 1e6).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
BOUNDS = st.floats(0, 1e6).map(lambda x: 0.0 if x < 1e-12 else x)
EVIDENCE = st.builds(Evidence, NUMBERS, NUMBERS, NUMBERS, BOUNDS)
TOLERANCES = st.sampled_from([reach(kind) for kind in (jnp.float64, jnp.float32, jnp.bfloat16)])


@given(EVIDENCE, TOLERANCES, BOUNDS, BOUNDS, st.integers(-20, 20))
def test_units_change_nothing(evidence, tolerance, size, counts, power):
    unit = 2.0**power
    scaled = Evidence(*(unit * number for number in evidence))
    expected = judge(evidence, tolerance, size, counts)
    assert judge(scaled, tolerance, unit * size, unit * counts) is expected


@given(EVIDENCE, TOLERANCES, BOUNDS, BOUNDS)
def test_neither_the_sign_nor_the_side_changes_anything(evidence, tolerance, size, counts):
    claim, left, right, bound = evidence
    expected = judge(evidence, tolerance, size, counts)
    for mirrored in (Evidence(-claim, -left, -right, bound), Evidence(claim, right, left, bound)):
        assert judge(mirrored, tolerance, size, counts) is expected


@given(EVIDENCE, TOLERANCES, BOUNDS)
def test_nothing_within_the_bound_is_accused(evidence, tolerance, size):
    low, high = sorted((evidence.left, evidence.right))
    assume(low - evidence.bound <= evidence.claim <= high + evidence.bound)
    assert judge(evidence, tolerance, size) is not Verdict.DIFFERS


@given(EVIDENCE, TOLERANCES, st.floats(1, 1e6))
def test_less_evidence_accuses_nobody_else(evidence, tolerance, factor):
    assume(judge(evidence, tolerance) is not Verdict.DIFFERS)
    looser = evidence._replace(bound=factor * evidence.bound)
    assert judge(looser, tolerance) is not Verdict.DIFFERS


@given(EVIDENCE, TOLERANCES, BOUNDS)
def test_a_claim_further_off_is_no_better(evidence, tolerance, distance):
    middle = (evidence.left + evidence.right) / 2
    further = evidence.claim + math.copysign(distance, evidence.claim - middle)
    if judge(evidence, tolerance) is Verdict.DIFFERS:
        assert judge(evidence._replace(claim=further), tolerance) is Verdict.DIFFERS


@given(st.permutations(list(Verdict)))
def test_verdicts_are_ordered_from_best_to_worst(verdicts):
    best = ["agrees", "kink", "imprecise", "detached", "unresolved"]
    ordered = [*best, "differs", "not finite", "not deterministic"]
    assert sorted(verdicts) == ordered and max(verdicts) == "not deterministic"
    assert [v for v in ordered if Verdict(v).ok] == ["agrees", "kink", "imprecise"]
    assert [v for v in ordered if Verdict(v).wrong] == ["detached", "differs", "not finite"]
    assert [Verdict(v).exit_code for v in ordered] == [0, 0, 0, 1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "dtype, digits",
    [("float64", 1.5e-8), ("float32", 3.5e-4), ("float16", 3.9e-3), ("bfloat16", 3.1e-2)],
)
def test_how_far_a_dtype_reaches(dtype, digits):
    assert reach(dtype) == pytest.approx(digits, rel=0.02)


@pytest.mark.parametrize(
    "difference, size, digits",
    [
        (0.0, 1.0, ALL_DIGITS),
        (0.0, 0.0, ALL_DIGITS),
        (1e-3, 1.0, 3.0),
        (1e-300, 1.0, ALL_DIGITS),
        (2.0, 1.0, 0.0),
        (1.0, 0.0, 0.0),
        (NAN, 1.0, 0.0),
        (1.0, INF, 0.0),
    ],
)
def test_digits_shared(difference, size, digits):
    assert digits_shared(difference, size) == pytest.approx(digits)


@pytest.mark.parametrize(
    "first, second, same",
    [(1.0, 1.0, True), (1.0, 1 + 1e-13, True), (1.0, 1 + 1e-12, False), (NAN, NAN, True)],
)
def test_two_evaluations_of_one_function(first, second, same):
    assert same_value(first, second, float(np.finfo(float).eps)) is same
