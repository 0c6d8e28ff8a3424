"""One equation of a tape as a function of its active inputs, projected onto its cotangents."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from jaxnn._arguments import as_complex, real_form
from jaxnn.checking.moves import Question
from jaxnn.checking.tape import Record, Site, evaluated, is_inexact, of_active
from jaxnn.numerical.float64 import RULES, widen_leaf
from jaxnn.numerical.interpret import bind

# Primitives that read half of a symmetric matrix, which must therefore move symmetrically.
SYMMETRIC = frozenset([primitives.cholesky_p, primitives.eigh_p])


class SiteQuestion(NamedTuple):
    """A site as a function of its active inputs, in their real form.

    Attributes:
      points: the active inputs.
      claims: the cotangent of each active input, from the site's pullback.
      paired: whether each active input is complex.
      rest: all inputs.
      cts: the cotangents of the outputs that have one.
    """

    points: list[Any]
    claims: list[Any]
    paired: list[bool]
    rest: list[Any]
    cts: list[Any]

    @classmethod
    def of(cls, site: Site, record: Record, number: int, dtype: Any) -> "SiteQuestion | None":
        """The question on a site; None if a cotangent or a claim is not finite, or if all
        cotangents are 0. Entries of inputs that are not finite, such as masks, do not move.
        """
        rest = [widen_leaf(record.values[s], dtype) for s in site.inputs]
        cts = [record.cotangents[site.outputs[j]] for j in site.asked]
        back = record.pulled[number]
        points, claims, paired = [], [], []
        for i, claim in zip(site.active, back, strict=True):
            x = rest[i]
            if site.eqn.primitive in SYMMETRIC:
                x, claim = symmetric(x), symmetric(claim)
            paired.append(jnp.iscomplexobj(x))
            points.append(real_form(x) if paired[-1] else x)
            claims.append(real_form(jnp.conj(claim)) if paired[-1] else claim)
        # NumPy avoids a compilation for each shape.
        fine = all(np.isfinite(np.asarray(x)).all() for x in (*cts, *claims) if is_inexact(x))
        some = any(np.asarray(ct).any() for ct in cts)
        return cls(points, claims, paired, rest, cts) if fine and some else None


def projected(
    site: Site,
    given: Any,
    points: Sequence[Any],
    dtype: Any,
    rules: Mapping[core.Primitive, Callable] = RULES,
) -> Any:
    """The real part of the sum of the products of a site's cotangents and outputs, evaluated by
    `rules`. What has the cotangent 0 counts as 0, even if it is infinite.
    """
    rest, cts = given
    full = list(rest)
    for i, x in zip(site.active, points, strict=True):
        full[i] = as_complex(x) if jnp.iscomplexobj(rest[i]) else x
        if site.eqn.primitive in SYMMETRIC:
            full[i] = symmetric(full[i])
    outputs = evaluated(site.eqn, full, dtype, rules)
    pairs = [(ct, outputs[j]) for j, ct in zip(site.asked, cts, strict=True)]
    terms = [jnp.sum(jnp.real(ct * jnp.where(ct == 0, 0, y))) for ct, y in pairs]
    return functools.reduce(jnp.add, terms).astype(dtype)


def of_site(site: Site, full: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """A site's outputs that have cotangents, as a function of its active inputs."""
    return of_active(functools.partial(bind, site.eqn), site.active, site.asked, full)


def differentiated(site: Site, full: Sequence[Any]) -> tuple[list[Any], Any]:
    """The outputs of a site under differentiation by its rule, and their pullback of ones."""
    outputs, back = jax.vjp(of_site(site, full), [full[i] for i in site.active])
    return outputs, back([jnp.ones_like(y) for y in outputs])


def symmetric(x: Any) -> Any:
    """The symmetric part of a matrix."""
    return (x + jnp.conj(jnp.swapaxes(x, -1, -2))) / 2


def whole(sizes: Sequence[int]) -> Question:
    """A direction through all entries."""
    many = len(sizes)
    bounds = np.zeros(many, np.int64), np.asarray(sizes, np.int64)
    return Question(*bounds, np.ones(many), np.uint32(1), np.bool_(False), np.bool_(False))
