"""Leaves that are asked together: what it costs, and that none hides behind another."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_cases import draw

from jaxnn import check_gradient
from jaxnn._arguments import Partition
from jaxnn.checking import locate, moves
from jaxnn.checking.moves import Direction, Part
from jaxnn.checking.packed import Packing
from jaxnn.checking.programs import prepare
from jaxnn.checking.questions import births, finer, kinks, phases, rules, solvers
from jaxnn.checking.settings import Point, Settings

LEAVES, WIDTH = 30, 8


def chain(params):
    """A deep network of one leaf a layer, and a shift beside each."""
    x = jnp.ones((4, WIDTH))
    for w, b in zip(params["w"], params["b"], strict=True):
        x = x + 0.3 * jnp.tanh(x @ w + b[None])
    return jnp.mean(x**2)


def point(dtype="float32"):
    weights = [draw(k, WIDTH, WIDTH).astype(dtype) / 4 for k in range(LEAVES)]
    return {"w": weights, "b": [draw(100 + k, WIDTH).astype(dtype) / 4 for k in range(LEAVES)]}


def changed(change):
    """JAX's gradient with something done to it."""

    def gradient(params):
        found = jax.grad(chain)(params)
        change(found)
        return found

    return gradient


def scaled(name, k, factor):
    def change(found):
        found[name][k] = found[name][k] * factor

    return change


def test_a_right_gradient_costs_no_more_for_many_leaves():
    report = check_gradient(chain, point())
    assert report.verdict == "agrees" and report.evaluations <= 150
    assert len(report.leaves) == 2 * LEAVES and min(leaf.digits for leaf in report.leaves) > 5.5
    few = check_gradient(lambda w: chain({"w": w[:1], "b": [jnp.zeros(WIDTH)]}), point()["w"][:2])
    assert report.evaluations <= 2 * few.evaluations


def test_leaves_whose_claims_are_far_apart_are_asked_at_once():
    def f(leaves):
        return sum(jnp.sum(jnp.sin(x)) * 10 ** (-2.5 * k / 29) for k, x in enumerate(leaves))

    report = check_gradient(f, [draw(k, 3) for k in range(30)])
    assert report.verdict == "agrees" and min(leaf.digits for leaf in report.leaves) > 6
    assert report.evaluations <= 44  # two lots of steps along each of two lines


def test_leaves_whose_claims_are_too_far_apart_are_not_asked_together():
    def f(leaves):
        return sum(jnp.sum(jnp.sin(x)) * (1, 1e-7)[k % 2] for k, x in enumerate(leaves))

    report = check_gradient(f, [draw(k, 3) for k in range(10)])
    assert report.verdict == "agrees" and report.evaluations <= 150


def lines(*bounds):
    """Lines on which every leaf claims 1."""
    slopes = [SimpleNamespace(bound=bound) for bound in bounds]
    return tuple(SimpleNamespace(slope=slope, size_of=lambda leaf: 1.0) for slope in slopes)


@pytest.mark.parametrize(
    "bounds, nothing, confirmed",
    [
        ((1e-7, 1e-7), 0.0, True),
        ((1e-7, 1e-5), 0.0, False),
        ((1e-5, 1e-7), 0.0, False),
        ((1e-7, 1e-5), 1e-4, True),  # of half of the weight, 5e-5
        ((1e-7, 6e-5), 1e-4, False),
    ],
)
def test_a_leaf_is_confirmed_by_both_lines(bounds, nothing, confirmed):
    assert locate._confirms(lines(*bounds), Part(0, 0, 3, 0.5), nothing) is confirmed


@pytest.mark.parametrize("bounds, best", [((1.0, 0.6), 0), ((1.0, 0.4), 1), ((0.4, 1.0), 0)])
def test_the_first_line_is_reported_unless_the_second_is_known_much_closer(bounds, best):
    asked = lines(*bounds)
    assert locate.Located(asked).best is asked[best]


@pytest.mark.parametrize("relative, up", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("low, high", [(0, 12), (3, 8), (5, 5)])
def test_entries_move_alike_wherever_they_are_drawn(monkeypatch, low, high, relative, up):
    points = [jnp.zeros(5), draw(0, 3, 4), draw(1, 7).at[2].set(jnp.nan), jnp.zeros((0, 2))]
    claims = [np.asarray(draw(10 + k, *x.shape), np.float64) for k, x in enumerate(points)]
    parts = Part(0, 0, 5), Part(1, low, high, 0.25), Part(2, 0, 7)
    direction = Direction(parts, 3, relative, up)
    drawn = []
    for on_host in (2**17, 0):
        monkeypatch.setattr(moves, "ON_HOST", on_host)
        drawn.append(moves.drawer(points, jnp.float64)(claims, direction))
    (first, sums), (moved, also) = drawn
    assert [v.shape for v in first] == [x.shape for x in points]
    for v, w in zip((*first, *sums), (*moved, *also), strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-13)
    flat, claim = np.ravel(first[1]), np.ravel(claims[1])
    assert np.flatnonzero(flat).tolist() == list(range(low, high)) and first[2][2] == 0
    assert not up or np.all(flat >= 0)
    assert sums.moves[1] == pytest.approx(np.sum(flat))
    assert sums.terms[1] == pytest.approx(claim @ flat)


def test_the_two_lines_through_a_leaf_have_directions_of_their_own():
    ones, part = np.ones(50), Part(0, 0, 50)
    draws = moves.drawer([ones], jnp.float64)
    first, second = (draws([ones], Direction((part,), seed))[0][0] for seed in (1, 2))
    assert abs(np.mean(np.sign(first * second))) < 0.5


def test_bits_are_mixed_as_the_finaliser_of_murmurhash_does():
    mixed = moves._hashed(np.array([0, 1], np.uint32), np)
    assert mixed.tolist() == [0, 0x514E28B7] and mixed.dtype == np.uint32


@pytest.mark.promotes
def test_a_large_leaf_of_a_short_dtype_moves_by_numbers(monkeypatch):
    monkeypatch.setattr(moves, "ON_HOST", 0)
    draws = moves.drawer([draw(0, 50).astype("float16")], jnp.float16)
    (moved,), _ = draws([np.ones(50)], Direction.through([50]))
    assert moved.dtype == jnp.float16 and np.all(np.isfinite(moved)) and np.all(moved != 0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_large_leaves_are_checked_under_strict_promotion(monkeypatch, dtype):
    monkeypatch.setattr(moves, "ON_HOST", 0)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        report = check_gradient(lambda x: jnp.sum(x**2), draw(0, 50).astype(dtype))
    assert report.ok, str(report)


def test_each_leafs_row_says_what_is_known_of_it():
    together = {leaf.path: leaf for leaf in check_gradient(chain, point()).leaves}
    alone = {leaf.path: leaf for leaf in check_gradient(chain, point(), evidence="leaf").leaves}
    truth = jax.grad(chain)(point())
    assert together.keys() == alone.keys()
    for k in (0, LEAVES - 1):
        for found in (together, alone):
            leaf = found[f"[0]['w'][{k}]"]
            assert abs(leaf.numerical - leaf.autodiff) <= leaf.bound
            assert abs(leaf.autodiff) < 3 * WIDTH * float(jnp.linalg.norm(truth["w"][k]))
        assert alone[f"[0]['w'][{k}]"].bound <= together[f"[0]['w'][{k}]"].bound


@pytest.mark.parametrize("name, k, factor", [("b", 3, 2.0), ("w", 29, -1.0), ("b", 20, 1.01)])
def test_one_wrong_leaf_among_many_is_named_with_its_pattern(name, k, factor):
    report = check_gradient(chain, point(), gradient=changed(scaled(name, k, factor)))
    worst, *others = report.leaves
    assert worst.path == f"[0]['{name}'][{k}]" and worst.verdict == "differs"
    assert f"autodiff / numerical = {factor:g}" in worst.pattern
    assert {leaf.verdict for leaf in others} == {"agrees"}
    assert report.evaluations <= 400


@pytest.mark.parametrize("factor", [0.9993, 1.0005, 1.001, 1.002])
@pytest.mark.parametrize("leaves", [2, 3, 10])
def test_right_leaves_beside_one_that_is_slightly_off_stay_right(leaves, factor):
    def f(params):
        return sum(jnp.sum(jnp.sin(x)) for x in params)

    def gradient(params):
        first, *others = map(jnp.cos, params)
        return [factor * first, *others]

    report = check_gradient(f, [draw(k, 3) for k in range(leaves)], gradient=gradient)
    assert [leaf.path for leaf in report.leaves if leaf.verdict == "differs"] == ["[0][0]"]


def test_one_wrong_entry_among_many_leaves_is_named():
    def change(found):
        found["w"][21] = found["w"][21].at[2, 5].multiply(1.05)

    report = check_gradient(chain, point(), gradient=changed(change))
    worst, *others = report.leaves
    assert worst.path == "[0]['w'][21]"
    assert [entry.index for entry in worst.entries if entry.verdict == "differs"] == [(2, 5)]
    assert {leaf.verdict for leaf in others} == {"agrees"}


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.25])
def test_where_every_leaf_is_wrong_by_one_factor_that_is_seen_at_once(factor):
    all_of_them = lambda params: jax.tree.map(lambda g: factor * g, jax.grad(chain)(params))  # noqa: E731
    report = check_gradient(chain, point(), gradient=all_of_them)
    assert {leaf.verdict for leaf in report.leaves} == {"differs"}
    assert all(f"autodiff / numerical = {factor:g}" in leaf.pattern for leaf in report.leaves)
    assert report.evaluations <= 600


def test_where_every_leaf_is_wrong_by_itself_the_search_ends():
    rng = np.random.default_rng(0)
    noisy = lambda g: g * rng.uniform(0.5, 2, g.shape)  # noqa: E731
    wrong = lambda params: jax.tree.map(noisy, jax.grad(chain)(params))  # noqa: E731
    report = check_gradient(chain, point(), gradient=wrong)
    assert {leaf.verdict for leaf in report.leaves} <= {"differs", "unresolved"}
    assert report.verdict == "differs" and any(leaf.entries for leaf in report.leaves)
    assert report.evaluations <= 3100


def test_two_errors_that_would_cancel_do_not():
    def change(found):
        found["w"][5], found["w"][6] = 1.5 * found["w"][5], 0.5 * found["w"][6]

    report = check_gradient(chain, point(), gradient=changed(change))
    wrong = {leaf.path for leaf in report.leaves if leaf.verdict == "differs"}
    assert wrong == {"[0]['w'][5]", "[0]['w'][6]"}


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_a_leaf_of_little_weight_does_not_hide_behind_the_others(scale):
    def f(p):
        return jnp.sum(jnp.sin(p["large"])) + scale * jnp.sum(jnp.sin(p["small"]))

    def gradient(p):
        return {"large": jnp.cos(p["large"]), "small": scale * 1.01 * jnp.cos(p["small"])}

    report = check_gradient(f, {"large": draw(0, 50), "small": draw(1, 3)}, gradient=gradient)
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts["[0]['large']"] == "agrees"
    # Below a millionth of the value a slope is nothing, and is not vouched for.
    assert verdicts["[0]['small']"] == "differs"


def test_leaves_that_nothing_depends_on_are_said_to_be_so():
    f = lambda p: jnp.sum(p["used"] ** 2)  # noqa: E731
    report = check_gradient(f, {"used": draw(0, 4), "a": draw(1, 3), "b": draw(2, 5)})
    hints = {leaf.path: leaf.hint for leaf in report.leaves}
    assert report.ok
    assert "does not depend" in hints["[0]['a']"] and "does not depend" in hints["[0]['b']"]


def test_a_kink_of_one_leaf_is_that_leafs():
    f = lambda p: jnp.sum(jax.nn.relu(p["kinked"])) + jnp.sum(jnp.sin(p["smooth"]))  # noqa: E731
    report = check_gradient(f, {"kinked": jnp.array([0.0, 1.0]), "smooth": draw(0, 4)})
    assert {leaf.path: leaf.verdict for leaf in report.leaves} == {
        "[0]['kinked']": "kink",
        "[0]['smooth']": "agrees",
    }


def test_an_interrupted_check_gives_what_it_knows():
    asked = []

    def gradient(p):
        return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), jax.grad(chain)(p))

    def interrupt(self, doing):
        asked.append(doing)
        if len(asked) > 3:
            raise KeyboardInterrupt

    from jaxnn.checking.status import Status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Status, "say", interrupt)
        report = check_gradient(chain, point(), gradient=gradient, evidence="leaf")
    assert report.interrupted and "(interrupted)" in str(report)
    assert any(
        leaf.hint == "interrupted" and leaf.verdict == "unresolved" for leaf in report.leaves
    )


@pytest.mark.parametrize(
    "question, verdict",
    [
        (rules, "differs"),
        (births, "differs"),
        (solvers, "unresolved"),
        (phases, "unresolved"),
        (kinks, "differs"),
    ],
)
def test_an_interrupted_question_leaves_what_no_further_answer_could_excuse(
    monkeypatch, question, verdict
):
    def interrupted(checked):
        raise KeyboardInterrupt

    rule = jax.custom_jvp(jnp.sin)
    rule.defjvp(lambda x, dx: (jnp.sin(*x), 1.5 * jnp.cos(*x) * dx[0]))
    monkeypatch.setattr(question, "applies", lambda checked: True)
    monkeypatch.setattr(question, "ask", interrupted)
    report = check_gradient(rule, 1.0)
    assert report.verdict == verdict and report.interrupted
    about = question.__doc__.partition("\n")[0]
    assert f'interrupted before "{about}" was answered' in str(report)
    assert bool(report.rules) == (question in (phases, kinks))
    monkeypatch.setattr(finer, "applies", lambda checked: True)
    monkeypatch.setattr(finer, "ask", interrupted)
    assert check_gradient(rule, 1.0).verdict == "unresolved"


def test_questions_that_fail_for_one_reason_say_it_once(monkeypatch):
    def refused(_):
        raise ValueError("no such place")

    for question in (finer, kinks):
        monkeypatch.setattr(question, "applies", lambda checked: True)
        monkeypatch.setattr(question, "ask", refused)
    report = check_gradient(lambda x: jnp.sum(x**2), draw(0, 8), gradient=lambda x: 2.1 * x)
    assert report.verdict == "differs" and str(report).count("no such place") == 1


@pytest.mark.parametrize("after", [0, 2])
def test_a_search_that_is_interrupted_keeps_what_it_has_found(monkeypatch, after):
    wrong = jax.custom_jvp(jnp.sin)
    wrong.defjvp(lambda x, dx: (jnp.sin(*x), 1.5 * jnp.cos(*x) * dx[0]))
    found, measured = [], locate._Leaf.entry

    def entry(*args):
        found.append(None)
        if len(found) == after + 1:
            raise KeyboardInterrupt
        return measured(*args)

    monkeypatch.setattr(locate._Leaf, "entry", entry)
    f = lambda a, b: jnp.sum(wrong(a)) + jnp.sum(wrong(b) ** 2)  # noqa: E731
    report = check_gradient(f, draw(0, 8), draw(1, 8), argnums=(0, 1))
    by_path = {leaf.path: leaf for leaf in report.leaves}
    assert report.interrupted and report.verdict == by_path["[0]"].verdict == "differs"
    assert len(by_path["[0]"].entries) == after and report.rules
    assert (by_path["[1]"].verdict, by_path["[1]"].hint) == ("unresolved", "interrupted")
    assert "\n1 more leaf not checked: interrupted" in str(report)


def test_an_entry_that_the_reference_foretells_takes_few_values():
    f = lambda w: jnp.sum(jnp.tanh(w @ w) ** 2)  # noqa: E731
    report = check_gradient(f, draw(0, 8, 8), gradient=lambda w: 1.01 * jax.grad(f)(w))
    (leaf,) = report.leaves
    lines = 66
    assert len(leaf.entries) == 6 and report.evaluations == lines + 6 * 11
    for entry in leaf.entries:
        assert abs(entry.autodiff / entry.numerical - 1.01) < 1e-6
        assert entry.bound < 1e-6 * abs(entry.numerical)


def test_a_long_check_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr("jaxnn.checking.status.SILENCE", 0.0)
    monkeypatch.setattr("jaxnn.checking.status.BETWEEN", 0.01)
    check_gradient(chain, point(), progress=True, evidence="leaf")
    said = capsys.readouterr().err
    assert "checking: tracing the function (" in said
    assert f" of {2 * LEAVES} leaves checked, " in said and "evaluations" in said
    check_gradient(chain, point(), progress=False)
    assert capsys.readouterr().err == ""


def test_packed_leaves_come_back():
    leaves = [draw(0, 2, 3), draw(1, 4).astype("bfloat16"), draw(2), jnp.asarray(1.0)]
    packing = Packing.of(leaves)
    arrays = jax.jit(packing.pack)(leaves)
    assert len(arrays) == 2
    for x, y in zip(leaves, packing.unpack(arrays), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


def test_compiled_programs_take_leaves_apart_and_give_them_packed():
    """The other way round a compiler takes ten times as long, of inputs as of outputs."""
    call = Partition.of(chain, 0, (point(),), {})
    at = Point(call.points, (call.dynamic, None))
    programs = prepare(call, at, Settings())
    own = functools.partial(programs.compiled.own, programs.both.consts)
    given = *at, np.float32(1)
    assert "slice" not in programs.compiled.own.lower(programs.both.consts, *given).as_text()
    value, gradient = jax.eval_shape(own, *given)
    size = LEAVES * (WIDTH * WIDTH + WIDTH)
    assert value.shape == () and [x.shape for x in gradient] == [(size,)]


def test_the_usual_size_of_leaves_is_their_root_mean_square():
    assert moves.usual_size(np.array([3.0, 4.0])) == pytest.approx(12.5**0.5)
    assert moves.usual_size(np.array([0.0, np.inf])) == 1


@pytest.mark.promotes
@pytest.mark.parametrize("wrong", [False, True])
def test_a_right_gradient_takes_few_values_and_a_wrong_entry_is_still_named(wrong):
    scaled = jax.custom_jvp(lambda x: x * 1)
    scaled.defjvp(lambda x, dx: (scaled(*x), dx[0].at[3, 4].multiply(1.01 if wrong else 1.0)))
    params = {"W": jnp.linspace(-1, 1, 300).reshape(20, 15), "b": jnp.full(15, 0.1)}
    x = jnp.linspace(-1, 1, 160).reshape(8, 20)
    f = lambda p: jnp.mean(jnp.tanh(x @ scaled(p["W"]) + p["b"]) ** 2)  # noqa: E731
    report = check_gradient(f, params)
    if not wrong:
        assert report.verdict == "agrees" and report.evaluations == 22
        return
    worst = report.leaves[0]
    assert worst.verdict == "differs" and [e.index for e in worst.entries] == [(3, 4)]


@pytest.mark.parametrize("wrong", [1.0, 1.1])
def test_an_entry_far_smaller_than_the_others_moves_by_its_own_size(wrong):
    """Over steps of the usual size of the leaf, the function of this entry is flat."""
    f = lambda x: 1e3 * jnp.tanh(1e9 * x[0]) + x[1] ** 2  # noqa: E731
    slopes = lambda x: jnp.array([1e12 / jnp.cosh(1e9 * x[0]) ** 2, wrong * 2 * x[1]])  # noqa: E731
    report = check_gradient(f, jnp.array([1e-10, 1e6]), gradient=slopes)
    assert report.verdict == ("agrees" if wrong == 1 else "differs")
    verdicts = {entry.index: str(entry.verdict) for entry in report.leaves[0].entries}
    assert verdicts[(0,)] == "agrees"


def test_entries_are_found_where_the_reference_is_nan_at_others():
    """The function without its rule has no slope at rows of zeros, as padding has."""

    @jax.custom_jvp
    def norm(x):
        return jnp.sqrt(jnp.sum(x * x, -1))

    @norm.defjvp
    def rule(x, dx):
        length = norm(*x)
        safe = jnp.where(length > 0, length, 1.0)
        slope = jnp.where(length > 0, jnp.sum(x[0] * dx[0], -1) / safe, 0.0)
        return length, slope.at[9].multiply(-1.0)

    x = draw(0, 12, 3).at[2:6].set(0.0)
    report = check_gradient(lambda x: jnp.sum(norm(x) ** 2), x)
    wrong = {entry.index for entry in report.leaves[0].entries if entry.verdict == "differs"}
    assert wrong == {(9, 0), (9, 1), (9, 2)}


def test_right_leaves_are_told_from_a_wrong_one_where_the_values_cannot_be_differentiated():
    @jax.custom_vjp
    def f(a, b, c):
        value = lambda a, b, c: np.float32(np.sin(a).sum() * (b**2).sum() * np.log(c).sum())  # noqa: E731
        return jax.pure_callback(value, jax.ShapeDtypeStruct((), "float32"), a, b, c)

    def backward(given, g):
        a, b, c = given
        sines, squares, logs = jnp.sin(a).sum(), (b**2).sum(), jnp.log(c).sum()
        of_b = (2 * b).at[1].multiply(1.01)
        return g * squares * logs * jnp.cos(a), g * sines * logs * of_b, g * sines * squares / c

    f.defvjp(lambda *given: (f(*given), given), backward)
    leaves = draw(1, 3), draw(2, 4), 1.5 + abs(draw(3, 5))
    leaves = [x.astype("float32") for x in leaves]
    report = check_gradient(f, *leaves, argnums=(0, 1, 2))
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts == {"[0]": "agrees", "[1]": "differs", "[2]": "agrees"}
    assert [entry.index for entry in report.leaves[0].entries] == [(1,)]


def ridge(w):
    """Logistic regression with a penalty."""
    a = np.random.default_rng(0).normal(size=(20, 3))
    signs = np.where(np.arange(20) % 3, 1.0, -1.0)
    return jnp.sum(jnp.logaddexp(0.0, -signs * (a @ w))) + jnp.sum(w**2) / 2


def at_its_minimum():
    w, slope, curvature = jnp.zeros(3), jax.grad(ridge), jax.hessian(ridge)
    for _ in range(8):
        w = w - jnp.linalg.solve(curvature(w), slope(w))
    return w


@pytest.mark.promotes
def test_where_the_slope_is_0_that_of_far_away_is_not_taken_for_it():
    with jax.enable_x64(True):
        report = check_gradient(ridge, at_its_minimum())
        assert report.verdict == "agrees" and report.leaves[0].bound < 1e-8
        heron = lambda x: (x + 2 / x) / 2  # noqa: E731
        assert check_gradient(heron, jnp.sqrt(2.0)).verdict == "agrees"
        twice = check_gradient(ridge, at_its_minimum() + 1.0, gradient=lambda w: 2 * w)
        assert twice.verdict == "differs"


def test_terms_that_cancel_but_for_their_rounding_are_right():
    """The derivative of a step of Newton's method for a square root is 0 at the root."""
    with jax.enable_x64(True):
        root = jnp.array(1.414213562373095)

        def f(u):
            _, back = jax.vjp(lambda x: 0.5 * (x + 2.0 / x), root)
            return 1.0 + back(u)[0]

        assert check_gradient(f, jnp.array(1.0)).verdict == "agrees"
        wrong = check_gradient(f, jnp.array(1.0), gradient=lambda u: 1e-3)
        assert wrong.verdict == "differs"


def test_the_reference_is_the_slope_of_the_values_though_stop_gradient_stops_it():
    x = jnp.arange(1.0, 4.0)
    call = Partition.of(lambda x: jnp.sum(x * jax.lax.stop_gradient(x)), 0, (x,), {})
    point = Point.of(call)
    programs = prepare(call, point, Settings())
    (through,), stopped = programs.reference(point), programs.stopped_reference(point)
    assert through.tolist() == (2 * x).tolist() and stopped[0].tolist() == x.tolist()
