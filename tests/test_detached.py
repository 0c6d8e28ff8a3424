"""Gradients that stop by intent: what is stopped is held at the point, and the line is named."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from versions import since

from jaxnn import GradientError, assert_gradient, check_gradient
from jaxnn.checking.questions import detached

stop = lax.stop_gradient
X = jnp.linspace(0.3, 1.7, 5)


def two_networks(p):
    return jnp.sum((jnp.tanh(p["a"] * X) - stop(jnp.sin(p["a"] * p["b"] * X))) ** 2)


def straight_through(x):
    return jnp.sum(jnp.sin(x + stop(jnp.round(4 * x) / 4 - x)))


def in_a_scan(x):
    def step(carry, y):
        return jnp.tanh(carry + y * stop(carry)), carry * y

    return jnp.sum(lax.scan(step, jnp.float32(0.5), x)[1])


def in_a_loop(x):
    return lax.fori_loop(0, 3, lambda _, c: c + jnp.sin(x) * stop(c), x).sum()


def in_a_branch(x):
    return lax.cond(x[0] > 0, lambda x: jnp.sum(x * stop(x)), jnp.sum, x)


def score_function(logits):
    actions = jax.random.categorical(jax.random.key(0), logits, shape=(20,))
    chosen = jax.nn.log_softmax(logits)[actions]
    return jnp.sum(chosen * stop(jnp.sin(actions * 1.0) - chosen))


def residual(x):
    """JAX itself stops it, though the values depend on it."""
    query = x.reshape(1, 5, 1, 1)
    return jnp.sum(jax.nn.dot_product_attention(query, query, query, return_residual=True)[1])


CASES = [
    (two_networks, {"a": jnp.float32(0.7), "b": jnp.float32(0.4)}),
    (straight_through, X),
    (in_a_scan, X),
    (in_a_loop, X),
    (in_a_branch, X),
    (score_function, X),
    pytest.param(residual, X, marks=since(0, 10)),
]


@pytest.mark.promotes
@pytest.mark.parametrize("f, point", CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_what_is_stopped_by_intent_is_detached_and_its_line_is_named(f, point):
    report = check_gradient(f, point)
    assert report.verdict == "detached" and not report.ok
    for leaf in report.leaves:
        assert leaf.verdict == "detached" and "test_detached.py:" in leaf.hint
    with pytest.raises(GradientError, match="detached"):
        assert_gradient(f, point)


def test_a_long_hint_is_written_once():
    point = {"a": jnp.float32(0.7), "b": jnp.float32(0.4)}
    first, second = check_gradient(two_networks, point).leaves
    assert first.hint == second.hint
    text = str(check_gradient(two_networks, point))
    assert text.count(first.hint) == 1 and f"hint: as for {first.path}" in text


@pytest.mark.promotes
@pytest.mark.parametrize("f, point", CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_held_at_the_point_the_gradient_is_right(f, point):
    report = check_gradient(f, point, stop_gradient="held")
    assert report.verdict == "agrees" and min(leaf.digits for leaf in report.leaves) > 8
    assert any("test_detached.py:" in note for note in report.notes)
    assert_gradient(f, point, stop_gradient="held")


def test_a_wrong_gradient_beside_something_stopped_is_wrong():
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (3 * x * g,))
    for how in ("report", "held"):
        f = lambda x: jnp.sum(square(x) * stop(jnp.sin(x)))  # noqa: E731
        report = check_gradient(f, X, stop_gradient=how)
        assert report.verdict == "differs" and "detached" not in report.leaves[0].hint


@pytest.mark.parametrize("factor, verdict", [(1, "agrees"), (1.1, "differs")])
def test_a_rule_may_differentiate_what_is_stopped(factor, verdict):
    """As in solvers: a factorisation of the operator is stopped, and the rule uses the operator."""

    @jax.custom_jvp
    def solve(_, state, b):
        return b / state

    @solve.defjvp
    def _(primals, tangents):
        (a, state, b), (ta, _, tb) = primals, tangents
        y = solve(a, state, b)
        return y, factor * solve(a, state, tb - ta * y)

    f = lambda a: jnp.sum(solve(a, stop(a), X))  # noqa: E731
    for how in ("report", "held"):
        report = check_gradient(f, X + 1, stop_gradient=how)
        assert report.verdict == verdict
        assert ("a custom rule differentiates" in str(report)) == ((how, factor) == ("held", 1))


def quantised_vjp(x):
    return jnp.round(4 * x) / 4


quantised_jvp = jax.custom_jvp(lambda x: quantised_vjp(x))
quantised_jvp.defjvp(lambda x, t: (quantised_jvp(*x), t[0]))
backward = jax.custom_vjp(quantised_vjp)
backward.defvjp(lambda x: (backward(x), None), lambda _, g: (g,))


@pytest.mark.parametrize("rule, name", [(backward, "quantised_vjp"), (quantised_jvp, "<lambda>")])
def test_a_rule_that_is_meant_to_differ_can_be_trusted(rule, name):
    f = lambda x: jnp.sum(jnp.sin(rule(x) * x))  # noqa: E731
    assert check_gradient(f, X).verdict == "differs"
    assert check_gradient(f, X, trust=[name]).verdict == "agrees"
    with pytest.raises(ValueError, match=f"`trust` must name .*: .*{name}.*Got 'another'"):
        check_gradient(f, X, trust=["another"])
    with pytest.raises(ValueError, match=r"calls \(here: none\). Got 'f'; for `stop_gradient`"):
        check_gradient(jnp.sum, X, trust=["f"])


def test_a_trusted_rule_is_not_accused_beside_a_wrong_one():
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (square(x), x), lambda x, g: (2.1 * x * g,))
    f = lambda x: jnp.sum(backward(x)) + jnp.sum(square(x))  # noqa: E731
    (rule,) = check_gradient(f, X, trust=["quantised_vjp"]).rules
    assert rule.name == "<lambda>"


@pytest.mark.parametrize("calls", [1, 3])
def test_a_trusted_rule_may_refuse_what_does_not_move_and_return_whole_numbers(calls):
    @jax.custom_vjp
    def scaled(x, k):
        return x * k, jnp.int32(x[0])

    def forward(x, k):
        assert x.perturbed and not k.perturbed
        return scaled(x.value, k.value), k.value

    scaled.defvjp(forward, lambda k, g: (2 * k * g[0], None), symbolic_zeros=True)

    def f(x):
        again = lambda _, x: scaled(jnp.sin(x), X)[0]  # noqa: E731
        y, whole = scaled(lax.fori_loop(1, calls, again, x), X)
        return jnp.sum(jnp.cos(y)) * jnp.float32(whole + 1)

    assert check_gradient(f, X).verdict == "differs"
    assert check_gradient(f, X, trust=["scaled"]).verdict == "agrees"


def test_a_rule_that_is_not_linear_cannot_be_trusted():
    clipped = jax.custom_vjp(lambda x: x)
    clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))
    message = "`trust` must name rules that are linear in the cotangent.* Got '<lambda>'"
    with pytest.raises(TypeError, match=message):
        check_gradient(lambda x: jnp.sum(clipped(x) ** 2), X, trust=["<lambda>"])


def test_stops_are_not_held_where_the_values_support_the_gradient_with_them(monkeypatch):
    @jax.custom_vjp
    def scaled(x):
        return x * 1

    scaled.defvjp(lambda x: (x * 1, None), lambda _, g: (1.1 * g,))

    def f(x):
        x = scaled(x)
        return jnp.log(jnp.sum(jnp.exp(x - stop(jnp.max(x))))) + stop(jnp.max(x))

    monkeypatch.setattr(detached, "ask", None)  # a note would say that it failed
    report = check_gradient(f, X)
    assert report.verdict == "differs" and not report.notes
    assert [rule.name for rule in report.rules] == ["scaled"]


@pytest.mark.parametrize("x", [1.2, 2.7, [0.3, 1.2], [0.3, 1.2, 2.2]])
def test_where_the_values_do_not_change_a_passed_gradient_is_not_right(x):
    """Far from the point, `round` has the slope that is claimed."""
    x, f = jnp.asarray(x), lambda x: jnp.sum(x + stop(jnp.round(x) - x))
    assert check_gradient(f, x).verdict == "detached"
    report = check_gradient(lambda x: jnp.sum(rounded(x)), x)
    assert report.verdict == "differs" and [rule.name for rule in report.rules] == ["<lambda>"]


rounded = jax.custom_jvp(lambda x: jnp.round(x))
rounded.defjvp(lambda x, t: (rounded(*x), t[0]))


def test_a_detached_report_says_how_to_hold_the_operands():
    hint = check_gradient(lambda x: jnp.sum(x * lax.stop_gradient(x)), X).leaves[0].hint
    assert hint.endswith('if `stop_gradient` is intended, set `stop_gradient="held"`')


def test_a_leaf_that_is_wrong_for_another_reason_is_not_detached():
    double = jax.custom_vjp(lambda x: 2 * x)
    double.defvjp(lambda x: (2 * x, None), lambda _, g: (3 * g,))

    def f(a, b):
        return jnp.sum(a * jax.lax.stop_gradient(a)) + jnp.sum(double(b))

    x = jnp.array([0.3, -0.7])
    report = check_gradient(f, x, x + 1, argnums=(0, 1))
    verdicts = {leaf.path: str(leaf.verdict) for leaf in report.leaves}
    assert verdicts == {"[0]": "detached", "[1]": "differs"}
