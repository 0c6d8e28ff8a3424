"""Small programs are run operation by operation: which ones, and that nothing else changes."""

import collections

import gradient_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.check_time import W, loss_of
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend import core
from jax.interpreters import ad, mlir

from jaxnn import check_gradient
from jaxnn.checking import small

UNITS = jnp.tanh, jnp.sin, jnp.cos, jnp.exp
NUMBER = jax.ShapeDtypeStruct((), W.dtype)


@custom_vmap
def _one_by_one(w):
    return 2 * w


@_one_by_one.def_vmap
def _wrong(size, batched, w):
    return 3 * w, batched[0]


_doubled = jax.custom_vjp(lambda w: _one_by_one(w))
_doubled.defvjp(lambda w: (2 * w, None), lambda _, ct: (2 * ct,))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test begins as a process does; programs of other tests are not reused."""
    monkeypatch.setattr(small, "_met", collections.Counter())
    monkeypatch.setattr(small, "_compiled", set())
    monkeypatch.setattr("jaxnn._programs._kept", collections.OrderedDict())


def test_functions_of_usual_operations_compile_nothing(monkeypatch, compilations):
    monkeypatch.setattr(small, "OFTEN", 2)
    for number, units in enumerate(UNITS[i:] + UNITS[:i] for i in range(4)):
        assert check_gradient(loss_of(units), W).verdict == "agrees"
        assert bool(small._compiled) == (number >= 2)  # the first programs are compiled as a whole
    before = compilations()
    for units in (UNITS[::-1], (UNITS[2], UNITS[0]), UNITS + UNITS):
        assert check_gradient(loss_of(units), W).verdict == "agrees"
    assert compilations() == before


@pytest.mark.promotes
@pytest.mark.parametrize("case", gradient_cases.CASES[::9], ids=lambda case: case.name)
def test_a_report_is_the_same_by_operation_and_compiled(monkeypatch, case):
    reports = []
    for most in (-1, 10**6):
        monkeypatch.setattr("jaxnn._programs._kept", collections.OrderedDict())
        monkeypatch.setattr(small, "MISSING", most)
        monkeypatch.setattr(small, "OFTEN", 0)
        f, args = case.make()
        reports.append(check_gradient(f, *args, order=case.order))
    here, there = reports
    assert [leaf.verdict for leaf in here.leaves] == [leaf.verdict for leaf in there.leaves]
    for one, other in zip(here.leaves, there.leaves, strict=True):
        assert [e.index for e in one.entries] == [e.index for e in other.entries]
        np.testing.assert_allclose(one.autodiff, other.autodiff, rtol=1e-10, atol=1e-15)
    assert [rule.name for rule in here.rules] == [rule.name for rule in there.rules]


@pytest.mark.parametrize(
    ("what", "f"),
    [
        ("a loop", lambda w: lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h), jnp.sum(w))),
        ("a branch", lambda w: lax.cond(w[0, 0] > 0, jnp.sum, jnp.mean, w)),
        ("a large array", lambda w: jnp.sum(jnp.outer(w, jnp.ones(500)))),
        ("many operations", lambda w: jnp.sum(sum(jnp.sin(k * w) for k in range(20)))),
        ("a batching rule of its own", lambda w: jnp.sum(_doubled(w))),
        ("sorting again and again", lambda w: jnp.sum(sum(jnp.sort(k * w) for k in range(5)))),
        ("host code", lambda w: jnp.sum(w) + jax.pure_callback(np.cos, NUMBER, np.float32(1))),
    ],
)
def test_what_is_compiled_as_a_whole(monkeypatch, what, f):
    monkeypatch.setattr(small, "MISSING", 10**6)
    monkeypatch.setattr(small, "OFTEN", 0)
    monkeypatch.setattr(small, "OPERATIONS", 50)
    assert check_gradient(f, W).ok and not small._compiled, what


@pytest.mark.parametrize(
    ("what", "f"),
    [
        ("labels", lambda w: jnp.sum(jax.nn.log_softmax(w)[jnp.arange(3), jnp.array([0, 2, 1])])),
        ("sorting", lambda w: jnp.sum(jnp.sort(w) * jnp.arange(12.0).reshape(3, 4))),
        ("sums so far", lambda w: jnp.sum(jnp.sin(jnp.cumsum(w)))),
    ],
)
def test_what_numpy_has_no_function_for_is_left_to_jax(monkeypatch, what, f):
    monkeypatch.setattr(small, "MISSING", 10**6)
    monkeypatch.setattr(small, "OFTEN", 0)
    (leaf,) = check_gradient(f, W).leaves
    assert leaf.verdict == "agrees" and leaf.digits > 9 and small._compiled, what
    assert not check_gradient(f, W, gradient=lambda w: 1.0001 * jax.grad(f)(w)).ok, what


def test_a_batching_rule_of_its_own_is_left_to_xla():
    f = lambda w: jnp.sum(_doubled(w))  # noqa: E731
    (leaf,) = check_gradient(f, W).leaves
    assert leaf.verdict == "agrees" and leaf.digits > 9
    assert not check_gradient(f, W, gradient=lambda w: 1.0001 * jax.grad(f)(w)).ok


def test_an_operation_without_a_batching_rule_is_run(monkeypatch):
    monkeypatch.setattr(small, "MISSING", 10**6)
    monkeypatch.setattr(small, "OFTEN", 0)
    doubled = core.Primitive("doubled")
    doubled.def_impl(lambda x: 2 * x)
    doubled.def_abstract_eval(lambda x: x)
    mlir.register_lowering(doubled, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))
    ad.deflinear2(doubled, lambda ct, x: [2 * ct])
    report = check_gradient(lambda w: jnp.sum(jnp.sin(doubled.bind(w))), W)
    assert report.ok and report.evaluations > 0


def test_no_more_operations_than_allowed_are_compiled(monkeypatch):
    monkeypatch.setattr(small, "MOST", 0)
    monkeypatch.setattr(small, "OFTEN", 0)
    for _ in range(2):
        assert check_gradient(loss_of(UNITS), W).ok
    assert not small._compiled
