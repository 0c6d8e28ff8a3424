"""Which programs of a check are compiled without optimisation."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax._src.interpreters import ad
from jax.extend.core import primitives

from jaxnn._jax import OPTIMISED, UNOPTIMISED
from jaxnn.checking.compiling import compiler_options
from jaxnn.checking.tape import walk
from jaxnn.checking.tape.walk import Tape

X = jax.ShapeDtypeStruct((100,), jnp.float32)
LARGE = jax.ShapeDtypeStruct((1_000_000,), jnp.float32)
IMAGE = jax.ShapeDtypeStruct((2, 1, 64, 64), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((8, 1, 5, 5), jnp.float32)


def units(x):
    return jnp.sum(jnp.tanh(x) * jnp.exp(x))


def looped(length):
    return lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=length)[0]


def until(x):
    return lax.while_loop(lambda c: jnp.sum(c) > 1, jnp.sin, x)


def convolved(x, kernel):
    return lax.conv(x, kernel, (1, 1), "SAME")


@pytest.mark.parametrize(
    "f, args, runs, optimised",
    [
        (units, (X,), 2, False),
        (units, (X,), 10_000, True),  # runs count
        (units, (LARGE,), 2, True),  # entries count
        (jax.jit(units), (LARGE,), 2, True),  # of programs inside, too
        (looped(1_000), (X,), 2, False),
        (looped(10_000), (X,), 2, True),  # iterations count
        (until, (X,), 2, False),
        (until, (jax.ShapeDtypeStruct((10_000,), jnp.float32),), 2, True),
        (convolved, (IMAGE, KERNEL), 1, True),  # each product of a convolution counts
        (lambda x, _: jnp.repeat(x, 8, 1), (IMAGE, KERNEL), 1, False),
    ],
)
def test_a_program_is_optimised_where_its_runs_take_longer_than_that(f, args, runs, optimised):
    expected = OPTIMISED if optimised else UNOPTIMISED
    assert compiler_options(jax.make_jaxpr(f)(*args), runs) == expected


def test_other_platforms_choose_for_themselves(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options(jax.make_jaxpr(units)(X)) == {}


def test_a_long_walk_is_one_program_unless_it_repeats_itself():
    x = jnp.arange(1.0, 4.0)
    different = lambda x: sum(jnp.sum(jnp.sin(x) ** n) for n in range(2, 42))  # noqa: E731
    same = lambda x: jnp.sum(lax.fori_loop(0, 60, lambda _, x: jnp.sin(1.1 * x), x))  # noqa: E731
    for f, together in ((different, True), (same, False)):
        tape = Tape(jax.make_jaxpr(f)(x), [True], unrolled=True)
        assert len(tape.sites) > 100 and tape.together == together


def test_a_cut_replaces_the_sums_of_cotangents_too():
    x = jnp.arange(1.0, 4.0)
    tape = Tape(jax.make_jaxpr(lambda x: jnp.sum(jnp.sin(x) + x**2))(x), [True])
    exact = tape.record([x], [jnp.float32(1)])
    (slot,) = tape.inputs
    other = exact._replace(cotangents=exact.cotangents | {slot: jnp.full(3, 7.0)})
    cut = walk.Cut(jnp.int32(len(tape.places)), other)
    assert (tape.record([x], [jnp.float32(1)], cut).cotangents[slot] == 7).all()


def test_pullbacks_of_jaxs_own_operations_are_made_once_for_the_same_rules(monkeypatch):
    made, vjp_of = [], walk.vjp_of

    def counted(call, form, *how):
        made.append(form.primitive.name)
        return vjp_of(call, form, *how)

    twice = jax.custom_vjp(lambda x: 2 * x)
    twice.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
    program = jax.make_jaxpr(lambda x: jnp.sin(twice(x)) ** 2)(jnp.float32(1))
    monkeypatch.setattr(walk, "vjp_of", counted)
    walk._shared.cache_clear()  # of other tests
    slope = lambda: Tape(program, [True]).record([jnp.float32(1)], [jnp.float32(1)]).pulled  # noqa: E731
    right = slope()
    assert {"sin", "integer_pow", "custom_vjp_call"} <= set(made)
    made.clear()
    assert slope() == right and made == ["custom_vjp_call"]
    monkeypatch.setitem(ad.primitive_jvps, primitives.sin_p, ad.primitive_jvps[primitives.cos_p])
    monkeypatch.delitem(ad.primitive_linearizations, primitives.sin_p, raising=False)
    assert slope() != right and "sin" in made


def test_digits_are_lost_in_the_program_as_the_user_compiles_it(monkeypatch, x64):
    def refused(program):
        raise RuntimeError("compiled otherwise")

    monkeypatch.setattr(walk, "compiler_options", refused)
    x = jnp.arange(1, 4, dtype=jnp.float32)
    program = jax.make_jaxpr(lambda x: jnp.sum(jnp.sin(x)))(x)
    assert Tape(program, [True], unrolled=True).record([x], [jnp.float32(1)]).pulled[-1]
    for how in ({"dtype": jnp.float64, "unrolled": True}, {}):
        with pytest.raises(RuntimeError, match="compiled otherwise"):
            Tape(program, [True], **how).record([x], [jnp.float32(1)])
