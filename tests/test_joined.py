"""Leaves that a function joins before anything else: its programs take them as one array."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_cases import draw
from jax.flatten_util import ravel_pytree

from jaxnn import check_gradient
from jaxnn._arguments import Partition
from jaxnn.checking import moves
from jaxnn.checking.joined import joined, on_joined
from jaxnn.checking.packed import Packing
from jaxnn.checking.programs import Point, Settings, prepare

columns = lambda p: jnp.concatenate(p, 1)  # noqa: E731
by_column = lambda x: x.ravel(order="F")  # noqa: E731
in_turn = lambda p: jax.lax.scan(lambda c, x: (c + x, c), 0.0, jnp.concatenate(p))  # noqa: E731
FEW = [(3,), (5,), (4,)]

# What a function makes of its leaves, their shapes, and which of them it takes as one array.
LAID_OUT = {
    "end to end": (jnp.concatenate, FEW, [(0, 1, 2)]),
    "the last first": (lambda p: jnp.concatenate(p[::-1]), FEW, [(2, 1, 0)]),
    "many": (jnp.concatenate, [(2,)] * 40, [tuple(range(40))]),
    "rows": (jnp.concatenate, [(2, 3), (1, 3)], [(0, 1)]),
    "one row each": (columns, [(1, 2), (1, 3)], [(0, 1)]),
    "stacked": (jnp.stack, [(2, 3)] * 3, [(0, 1, 2)]),
    "numbers": (jnp.stack, [()] * 3, [(0, 1, 2)]),
    "with an axis more": (lambda p: jnp.concatenate([x[None] for x in p]), [(2,)] * 2, [(0, 1)]),
    "raveled": (lambda p: ravel_pytree(p)[0], [(2, 3), (), (4,)], [(0, 1, 2)]),
    "under jit": (jax.jit(jnp.hstack), FEW, [(0, 1, 2)]),
    "by a loop": (in_turn, FEW, [(0, 1, 2)]),
    "several times": (lambda p: jnp.concatenate(p) * jnp.concatenate(p), FEW, [(0, 1, 2)]),
    "none of a leaf": (lambda p: jnp.concatenate(p[:2]), FEW, [(0, 1), (2,)]),
    "and one alone": (lambda p: jnp.concatenate(p[::2]) * p[1][0], FEW, [(0, 2), (1,)]),
    "two arrays": (lambda p: (jnp.stack(p[:2]), jnp.stack(p[2:])), [(2,)] * 4, [(0, 1), (2, 3)]),
    "as they are": (lambda p: p, FEW, [(0,), (1,), (2,)]),
    "columns": (columns, [(2, 3), (2, 1)], [(0,), (1,)]),
    "stacked behind": (lambda p: jnp.stack(p, -1), [(3,), (3,)], [(0,), (1,)]),
    "column by column": (lambda p: [*map(by_column, p)], [(2, 3), (3, 2)], [(0,), (1,)]),
    "repeated": (lambda p: jnp.concatenate([p[0], p[0]]), FEW[:1], [(0,)]),
    "spread": (lambda p: jnp.concatenate([jnp.zeros(3) + x for x in p]), [()] * 2, [(0,), (1,)]),
    "used besides": (lambda p: jnp.concatenate(p) * p[0][0], FEW, [(0,), (1,), (2,)]),
    "in two orders": (lambda p: jnp.stack(p) - jnp.stack(p[::-1]), [(3,)] * 2, [(0,), (1,)]),
    "beside a constant": (lambda p: jnp.concatenate([*p, jnp.ones(2)]), FEW[:2], [(0,), (1,)]),
    "rounded": (lambda p: jnp.stack(p).astype("bfloat16"), [(3,)] * 2, [(0, 1)]),
    "rounded before": (lambda p: jnp.stack([x.astype("bfloat16") for x in p]), FEW[:1], [(0,)]),
}


@pytest.mark.parametrize("function, shapes, groups", LAID_OUT.values(), ids=LAID_OUT)
def test_what_is_only_joined_is_taken_as_one_array(function, shapes, groups):
    leaves = [draw(k, *shape) for k, shape in enumerate(shapes)]
    program = jax.make_jaxpr(function)(leaves)
    packing = joined(program, Packing.of(leaves))
    assert packing.groups == tuple(groups)
    outputs = jax.jit(on_joined(program, packing))(packing.pack(leaves), [])
    for got, expected in zip(outputs, jax.tree.leaves(function(leaves)), strict=True):
        assert got.dtype == expected.dtype and np.array_equal(got, expected)


def test_leaves_of_two_dtypes_are_not():
    leaves = [draw(0, 3), draw(1, 3).astype("bfloat16")]
    program = jax.make_jaxpr(jnp.concatenate)(leaves)
    assert joined(program, Packing.of(leaves)).groups == ((0,), (1,))


@jax.custom_vjp
def squared(x):
    return jnp.sum(x**2)


squared.defvjp(lambda x: (squared(x), x), lambda x, ct: (ct * 2 * x.at[7].multiply(1.05),))


def test_the_leaf_and_the_entry_of_a_wrong_gradient_are_named():
    leaves = {"a": draw(0, 5), "b": draw(1, 2, 3), "c": draw(2, 4)}
    report = check_gradient(lambda p: squared(ravel_pytree(p)[0]), leaves)
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts == {"[0]['a']": "agrees", "[0]['b']": "differs", "[0]['c']": "agrees"}
    assert [entry.index for entry in report.leaves[0].entries] == [(0, 2)]


OPTIONS = {
    "order 2": ({"order": 2}, jnp.concatenate),
    "forward": ({"modes": "fwd"}, jnp.concatenate),
    "a cotangent": ({"cotangent": "random"}, lambda p: jnp.stack([jnp.sin(jnp.concatenate(p))])),
    "by hand": ({"gradient": lambda p: [2 * x for x in p]}, lambda p: jnp.concatenate(p)),
    "each by itself": ({"evidence": "leaf"}, jnp.concatenate),
}


@pytest.mark.parametrize("options, lay_out", OPTIONS.values(), ids=OPTIONS)
def test_whatever_is_asked_agrees(options, lay_out):
    def f(p):
        out = lay_out(p)
        return out if "cotangent" in options else jnp.sum(out**2)

    report = check_gradient(f, [draw(k, 3) for k in range(12)], **options)
    assert report.verdict == "agrees" and len(report.leaves) == 12


def test_what_is_stopped_is_held():
    def f(p):
        x = jnp.concatenate(p)
        return jnp.sum(x * jax.lax.stop_gradient(jnp.sin(x)))

    report = check_gradient(f, [draw(k, 3) for k in range(4)])
    assert {leaf.verdict for leaf in report.leaves} == {"detached"}


def test_the_programs_of_a_thousand_leaves_have_one_input():
    leaves = [jnp.full(3, 0.1 * k) for k in range(1000)]
    call = Partition.of(lambda p: jnp.sum(jnp.sin(jnp.concatenate(p))), 0, (leaves,), {})
    at = Point(call.points, (call.dynamic, None))
    programs = prepare(call, at, Settings(True, False, False, 0))
    assert programs.joined.packed == ((3000,),)
    value, gradient = jax.eval_shape(programs.own, [jnp.zeros(3000)], at.data)
    assert value.shape == () and [x.shape for x in gradient] == [(3000,)]


@pytest.mark.parametrize("on_host", [2**17, 4, 0])
def test_moves_of_joined_leaves_are_those_of_each_leaf(monkeypatch, on_host):
    monkeypatch.setattr(moves, "ON_HOST", on_host)
    points = [draw(k, *shape) for k, shape in enumerate([(3,), (2, 3), (), (4,)])]
    sizes = np.array([x.size for x in points])
    question = moves.Question(0 * sizes, sizes, np.ones(4), np.uint32(1), np.False_, np.False_)
    claims = [np.asarray(x, np.float64) for x in points]
    alone, sums = moves.drawer(points, jnp.float64)(claims, question)
    groups = [(2, 0), (1,), (3,)]
    together, same_sums = moves.drawer(points, jnp.float64, groups)(claims, question)
    assert np.array_equal(together[0], np.concatenate([alone[2], alone[0]], axis=None))
    assert np.array_equal(together[1], alone[1]) and np.array_equal(together[2], alone[3])
    np.testing.assert_allclose(sums, same_sums, rtol=1e-12)


@pytest.mark.slow
def test_a_thousand_leaves_take_hardly_more_time_than_ten():
    """The same arithmetic on a million parameters: from cold, and once it is compiled."""

    def wave(leaves):
        x = jnp.concatenate(leaves)
        return jnp.mean(jnp.tanh(x) * jnp.sin(3 * x))

    def seconds(points):
        began = time.perf_counter()
        assert check_gradient(wave, points).verdict == "agrees"
        return time.perf_counter() - began

    sizes = {10: 10**5, 1000: 10**3}
    points = {n: [0.1 + jnp.arange(size) / size for _ in range(n)] for n, size in sizes.items()}
    first, again = ({n: [] for n in sizes} for _ in range(2))
    for n in (10, 1000) * 4:
        jax.clear_caches()
        first[n].append(seconds(points[n]))
        again[n].append(seconds(points[n]))
    for took in (first, again):
        assert min(took[1000]) <= 1.3 * min(took[10]), took
