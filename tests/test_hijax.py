"""Operations and values of the user's own kinds, which newer versions of JAX have."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxnn import check_gradient

if jax.__version_info__ < (0, 10):
    pytest.skip("of JAX since 0.10", allow_module_level=True)
from jax.experimental import hijax  # noqa: E402

X = jnp.linspace(0.3, 1.7, 8)


@pytest.mark.parametrize("factor, verdict", [(1.0, "agrees"), (2.0, "differs")])
def test_rules_are_checked_where_jax_writes_them_another_way(factor, verdict):
    sine = jax.custom_vjp(jnp.sin)
    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * g * jnp.cos(x),))
    jax.config.update("jax_custom_vjp3", True)
    try:
        assert check_gradient(lambda x: jnp.sum(sine(x)), X).verdict == verdict
    finally:
        jax.config.update("jax_custom_vjp3", False)


# JAX 0.12 has renamed it.
OPERATION = getattr(hijax, "VJPHiPrimitive", None) or hijax.HiPrim


class Sine(OPERATION):
    """An operation of the user's with a rule of its own, which is right if `factor` is 1."""

    def __init__(self, x, factor):
        self.in_avals, self.out_aval, self.params = (x,), x, {"factor": factor}
        super().__init__()

    def expand(self, x):
        return jnp.sin(x)

    def vjp_fwd(self, nonzero, x):
        return self(x), x

    def vjp_bwd_retval(self, x, g):
        return (self.factor * g * jnp.cos(x),)

    def batch_dim_rule(self, axis_data, dims):
        return dims[0]


class SineWithBatches(Sine):
    """The same with a rule for `vmap`."""

    def batch(self, axis_data, args, dims):
        return SineWithBatches(jax.typeof(args[0]), self.factor)(*args), dims[0]


MAPPED_BY_JAX = [(Sine, True)] if hasattr(OPERATION, "batch_dim_rule") else []


@pytest.mark.parametrize("factor, verdict", [(1.0, "agrees"), (1.01, "differs")])
@pytest.mark.parametrize(
    "kind, mapped", [(Sine, False), (SineWithBatches, True), *MAPPED_BY_JAX], ids=str
)
def test_an_operation_of_the_users_with_a_rule_of_its_own(kind, mapped, factor, verdict):
    sine = lambda x: kind(jax.typeof(x), factor)(x)  # noqa: E731
    f = lambda x: jnp.sum((jax.vmap(sine) if mapped else sine)(x) ** 2)  # noqa: E731
    report = check_gradient(f, X)
    wrong = [(rule.name, rule.rule.function) for rule in report.rules]
    assert report.verdict == verdict
    assert wrong == [(kind.__name__, "vjp_bwd_retval")] * (factor != 1)
    assert check_gradient(f, X, trust=(kind.__name__,)).ok


@dataclasses.dataclass
class Two:
    """A value of the user's own type."""

    parts: tuple


@dataclasses.dataclass(frozen=True)
class TwoType(hijax.HiType):
    kinds: tuple

    def lo_ty(self):
        return list(self.kinds)

    def lower_val(self, pair):
        return list(pair.parts)

    def raise_val(self, *parts):
        return Two(parts)

    def to_tangent_aval(self):
        return TwoType(tuple(kind.to_tangent_aval() for kind in self.kinds))

    to_ct_aval = to_tangent_aval

    def vspace_add(self, one, other):
        return paired(*(part_of(one, i) + part_of(other, i) for i in (0, 1)))


hijax.register_hitype(Two, lambda pair: TwoType(tuple(map(jax.typeof, pair.parts))))


class Paired(OPERATION):
    def __init__(self, x, y):
        self.in_avals, self.out_aval, self.params = (x, y), TwoType((x, y)), {}
        super().__init__()

    def expand(self, x, y):
        return Two((x, y))

    def vjp_fwd(self, nonzero, x, y):
        return self(x, y), None

    def vjp_bwd_retval(self, _, g):
        return part_of(g, 0), part_of(g, 1)


class PartOf(OPERATION):
    def __init__(self, pair, place, factor):
        self.in_avals, self.out_aval = (pair,), pair.kinds[place]
        self.params = {"place": place, "factor": factor}
        super().__init__()

    def expand(self, pair):
        return pair.parts[self.place]

    def vjp_fwd(self, nonzero, pair):
        return self(pair), None

    def vjp_bwd_retval(self, _, g):
        zeros, g = jnp.zeros(g.shape, g.dtype), self.factor * g
        return (paired(zeros, g) if self.place else paired(g, zeros),)


def paired(x, y):
    return Paired(jax.typeof(x), jax.typeof(y))(x, y)


def part_of(pair, place, factor=1.0):
    return PartOf(jax.typeof(pair), place, factor)(pair)


@pytest.mark.parametrize("factor, verdict", [(1.0, "agrees"), (1.01, "differs")])
def test_values_of_a_type_of_the_users(factor, verdict):
    def f(x):
        pair = paired(jnp.sin(x), jnp.cos(x))
        return jnp.sum(part_of(pair, 0, factor) * part_of(pair, 1) ** 2)

    assert check_gradient(f, X).verdict == verdict
