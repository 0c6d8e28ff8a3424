"""NumPy computes small programs as XLA does, with every function in its table."""

import inspect
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

from jaxnn import check_gradient
from jaxnn._programs import Traced
from jaxnn.checking import small
from jaxnn.numerical.float64 import wide_arithmetic
from jaxnn.numerical.in_numpy import FUNCTIONS, in_numpy
from jaxnn.numerical.interpret import called, equations

FLOATS = np.array([-np.inf, -700.5, -3.0, -1.0, -0.3, -0.0, 0.0, 1e-9, 0.7, 1.0, 2.5, 800.0])
FLOATS = np.concatenate([FLOATS, [np.inf, np.nan]])
NUMBERS = np.array([-3, 0, 2, 7, 2**31 - 1], np.int32)
MATRIX = np.random.default_rng(0).normal(size=(3, 4))
CUBE = np.random.default_rng(1).normal(size=(2, 3, 4))
IS_BIG = MATRIX > 0

OF_ONE = """abs acos acosh asin asinh atan atanh cbrt ceil cos cosh erf erfc exp exp2 expm1 floor
is_finite log log1p logistic neg rsqrt sign sin sinh sqrt square stop_gradient tan tanh""".split()
OF_TWO = "add atan2 div eq ge gt le lt max min mul ne pow sub".split()
OF_NUMBERS = "abs add bitwise_and bitwise_or bitwise_xor eq max min mul neg sign sub".split()
EITHER = np.repeat(FLOATS, FLOATS.size), np.tile(FLOATS, FLOATS.size)

CASES = {
    **{name: (getattr(lax, name), FLOATS) for name in OF_ONE},
    **{f"{name} of two": (getattr(lax, name), *EITHER) for name in OF_TWO},
    **{
        f"{name} of integers": (
            getattr(lax, name),
            *([NUMBERS] * (1 + (name not in "abs neg sign"))),
        )
        for name in OF_NUMBERS
    },
    "not": (lambda x: ~(x > 0), MATRIX),
    "not an integer": (lambda x: ~x, NUMBERS),
    "clamp": (lambda x: lax.clamp(-1.0, x, 2.0), FLOATS),
    "copy": (jnp.copy, MATRIX),
    "a sum of cotangents": (jax.grad(lambda x: jnp.sum(x * jnp.sin(x))), MATRIX),
    "choose": (lambda x: lax.select(x > 0, x, 2 * x), MATRIX),
    "broadcast": (lambda x: lax.broadcast_in_dim(x, (5, 3, 2, 4), (1, 3)), MATRIX),
    "broadcast a number": (lambda x: jnp.broadcast_to(jnp.sum(x), (2, 2)), MATRIX),
    "concatenate": (lambda x: jnp.concatenate([x, 2 * x], 1), MATRIX),
    "convert integers": (lambda x: x.astype(float) / 3, NUMBERS),
    "convert truth": (lambda x: (x > 0).astype(float) + (x > 1).astype(jnp.int32), MATRIX),
    "convert to truth": (lambda x: x.astype(bool), FLOATS),
    "product": (lambda x: x @ x.T, MATRIX),
    "product of batches": (lambda x: jnp.einsum("bij,kbj->bik", x, x.transpose(1, 0, 2)), CUBE),
    "product over two axes": (lambda x: jnp.einsum("bij,bik->jk", x, jnp.sin(x)), CUBE),
    "powers": (lambda x: (x**3, x**0, x**-2), FLOATS),
    "iota": (lambda x: lax.broadcasted_iota(jnp.float64, (3, 4), 1) + x, MATRIX),
    "iota of integers": (lambda x: lax.broadcasted_iota(jnp.int32, (3, 4), 0), MATRIX),
    "all and any": (lambda x: (jnp.all(x > 0, 0), jnp.any(x > 0, 1)), MATRIX),
    "sums": (lambda x: (jnp.sum(x, (0, 2)), jnp.max(x, 1), jnp.min(x), jnp.prod(x, 2)), CUBE),
    "sum of integers": (lambda x: (jnp.sum(x, dtype=x.dtype), jnp.prod(x, dtype=x.dtype)), NUMBERS),
    "largest with NaN": (lambda x: (jnp.max(x), jnp.min(x)), FLOATS),
    "reshape": (lambda x: x.reshape(4, 6), CUBE),
    "reshape another order of axes": (lambda x: lax.reshape(x, (4, 6), (2, 0, 1)), CUBE),
    "reverse": (lambda x: jnp.flip(x, (0, 2)), CUBE),
    "slice": (
        lambda x: (lax.slice(x, (0, 1), (3, 4), (2, 2)), lax.slice(x, (1, 1), (2, 3))),
        MATRIX,
    ),
    "split": (lambda x: lax.split(x, (1, 2, 1), 1), MATRIX),
    "squeeze": (lambda x: jnp.squeeze(x[:, None, :, None], 1), MATRIX),
    "transpose": (lambda x: jnp.transpose(x, (2, 0, 1)), CUBE),
    "calls": (jax.jit(lambda x: jax.nn.relu(x) + jax.checkpoint(jnp.sin)(x)), MATRIX),
    "division of integers": (lambda n: lax.div(n, jnp.full(5, 2, jnp.int32)), NUMBERS),
    "truncation": (lambda x: x.astype(jnp.int32), FLOATS),
    "a choice of three": (lambda n: lax.select_n(jnp.clip(n, 0, 2), n, 2 * n, 3 * n), NUMBERS),
    "sort": (lambda x: lax.sort((x, -x), num_keys=1), MATRIX),
    "indices": (lambda x: x[jnp.array([2, 0]), jnp.array([1, 3])], MATRIX),
    "constants": (lambda x: MATRIX * x + np.float32(0.1), MATRIX),
}


@pytest.mark.promotes
@pytest.mark.parametrize("name", CASES)
def test_numpy_computes_what_xla_does(name):
    with jax.enable_x64(True):
        f, *args = CASES[name]
        one = Traced.of(f, *args)
        run = in_numpy(one.bare)
        assert run is not None
        with wide_arithmetic(jnp.float64):
            found = run(one.consts, *args)
        expected = jax.jit(f)(*args)
    for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.shape(here) == there.shape and np.asarray(here).dtype == there.dtype
        # XLA's exponential functions lose digits where their argument is large.
        np.testing.assert_allclose(here, there, rtol=1e-13, atol=1e-300)


def operations_of_cases():
    with jax.enable_x64(True):
        programs = [Traced.of(*case).jaxpr for case in CASES.values()]
    return [eqn for one in programs for eqn in equations(one) if called(eqn) is None]


@pytest.mark.promotes
def test_every_function_has_a_case():
    assert {eqn.primitive for eqn in operations_of_cases()} >= FUNCTIONS.keys()


# Parameters that say how or where XLA computes, or the kind of a result, which float64 replaces.
OF_NO_EFFECT = {"accuracy", "out_sharding", "precision", "sharding"}
OF_NO_EFFECT |= {"out_dtype", "preferred_element_type", "weak_type"}


@pytest.mark.promotes
def test_every_parameter_that_has_an_effect_is_used():
    for eqn in (eqn for eqn in operations_of_cases() if eqn.primitive in FUNCTIONS):
        used = inspect.signature(FUNCTIONS[eqn.primitive]).parameters.keys()
        assert not eqn.params.keys() - used - OF_NO_EFFECT, eqn


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_a_narrow_program_is_computed_in_float64(kind):
    f = lambda x: jnp.sum(jnp.exp(x.astype(jnp.float32)) / jnp.full(3, 3, jnp.float32))  # noqa: E731
    x = jnp.array([0.1, 0.2, 0.3], kind)
    one = Traced.of(f, x)
    run = in_numpy(one.bare)
    assert run is not None
    exact = np.sum(np.exp(np.asarray(x, np.float64))) / 3
    np.testing.assert_allclose(run(one.consts, x), exact, rtol=1e-15)


def tripled(x):
    """An operation of a library's own, which calls methods of JAX's arrays."""
    triple = core.Primitive("triple")
    triple.def_impl(lambda x: x.at[:].multiply(3))
    triple.def_abstract_eval(lambda x: x)
    return triple.bind(x)


def times_reference(x):
    return jnp.sum(COUNTED[...] * x)


COUNTED = jax.new_ref(jnp.ones(3))
NOT_FOR_NUMPY = {
    "a reference": (times_reference, jnp.ones(3)),
    "an operation of a library": (tripled, jnp.ones(3)),
    "functions that it lacks": (lambda x: sum(jnp.sort(k * x) for k in range(5)), jnp.ones(3)),
    "complex numbers": (lambda x: jnp.abs(lax.complex(x, x)), jnp.ones(3)),
    "an empty array": (lambda x: jnp.sum(x, 1), jnp.ones((0, 2))),
    "a loop": (lambda x: lax.fori_loop(0, 3, lambda _, x: 2 * x, x), jnp.ones(3)),
    "random numbers": (lambda k: jax.random.uniform(k), jax.random.key(0)),
}


@pytest.mark.parametrize("what", NOT_FOR_NUMPY)
def test_what_is_left_to_xla(what):
    assert in_numpy(Traced.of(*NOT_FOR_NUMPY[what])) is None


@pytest.mark.parametrize("kind", ["add", "max", "set"])
def test_an_operation_that_takes_a_program_is_compiled_once(compilations, kind):
    f = lambda x: getattr(jnp.zeros(3).at[jnp.array([0, 2, 0])], kind)(x)  # noqa: E731
    x = jnp.array([1.0, 2.0, 3.0])
    one = Traced.of(f, x)
    run = in_numpy(one.bare)
    assert run is not None
    with wide_arithmetic(jnp.float64):
        first, before = run(one.consts, x), compilations()
        np.testing.assert_array_equal(run(one.consts, x), first)
    assert compilations() == before


def test_a_check_of_a_small_function_compiles_its_gradient_alone(compilations, monkeypatch):
    monkeypatch.setattr(small, "_met", Counter())  # whatever other tests have compiled
    monkeypatch.setattr(small, "_compiled", set())
    f = lambda x: jnp.sum(jnp.cos(x) ** 3)  # noqa: E731
    x = jnp.array([0.3, 0.4, 0.6])
    check_gradient(lambda x: jnp.sum(jnp.sin(x) ** 3), x)  # operations on arrays
    before = compilations()
    assert check_gradient(f, x).verdict == "agrees"
    assert compilations() == before + 1
    wrong = check_gradient(f, x, gradient=lambda x: 3 * jnp.cos(x) ** 2)
    assert wrong.verdict == "differs"
