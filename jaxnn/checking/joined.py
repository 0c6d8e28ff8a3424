"""Leaves that a function lays end to end before it computes with them: its programs take them so.

After `jnp.concatenate(leaves)`, `jnp.stack(leaves)` or `ravel_pytree(params)` there is one array,
whatever the number of leaves. Where nothing else is done with them, that array may as well be what
a program is given, and the gradient by it what it gives: a compiler takes seconds over a thousand
inputs.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.checking.packed import Packing
from jaxnn.numerical.interpret import (
    Equation,
    Program,
    bind,
    evaluate,
    is_end_to_end,
    opened,
)


class _Joint(NamedTuple):
    """What holds the entries of these leaves, end to end, and nothing else; and its shape."""

    leaves: tuple[int, ...]
    shape: tuple[int, ...]


def joined(program: Program, together: Packing) -> Packing:
    """How a program can take its leaves, its first inputs: those in one array that it only joins.

    Args:
      program: of the leaves, and of other inputs.
      together: leaves that may be in one array.
    """
    used: set[tuple[int, ...]] = set()

    def use(values):
        used.update(x.leaves for x in values if isinstance(x, _Joint))

    def step(eqn, inputs):
        outputs = _laid_out(eqn, inputs, step)
        if outputs is None:
            use(inputs)
            return [None] * len(eqn.outvars)
        return outputs

    others = [None] * (len(opened(program)[0].invars) - len(together.shapes))
    use(evaluate(program, [*_leaves(together), *others], step))
    uses = Counter(itertools.chain.from_iterable(used))
    place = {k: i for i, group in enumerate(together.groups) for k in group}
    groups = [
        group for group in used if all(uses[k] == 1 and place[k] == place[group[0]] for k in group)
    ]
    inside = set(itertools.chain.from_iterable(groups))
    alone = [(k,) for k in place if k not in inside]
    return Packing(tuple(sorted([*groups, *alone])), together.shapes)


def on_joined(program: Program, packing: Packing) -> Callable[..., list[Any]]:
    """The program as a function of its leaves, packed, and of its other inputs."""
    if not packing.packs:
        return lambda leaves, others: core.jaxpr_as_fun(program)(*leaves, *others)

    def call(arrays, others):
        given = dict(zip(packing.groups, arrays, strict=True))

        def read(x):
            if not isinstance(x, _Joint):
                return x
            if x.leaves in given:
                return given[x.leaves].reshape(x.shape)
            return jnp.concatenate([given[k,].ravel() for k in x.leaves]).reshape(x.shape)

        def step(eqn, inputs):
            outputs = _laid_out(eqn, inputs, step)
            return bind(eqn, list(map(read, inputs))) if outputs is None else outputs

        return list(map(read, evaluate(program, [*_leaves(packing), *others], step)))

    return call


def _leaves(packing: Packing) -> list[_Joint]:
    return [_Joint((k,), shape) for k, shape in enumerate(packing.shapes)]


def _laid_out(eqn: Equation, inputs: Sequence[Any], step: Callable) -> list[Any] | None:
    """The outputs of an equation that only lays leaves out anew, or calls a program that may."""
    joints = [x for x in inputs if isinstance(x, _Joint)]
    if not joints:
        return None
    if eqn.primitive is primitives.jit_p:
        return evaluate(eqn.params["jaxpr"], inputs, step)
    if len(joints) < len(inputs) or not is_end_to_end(eqn):
        return None
    leaves = itertools.chain.from_iterable(x.leaves for x in joints)
    return [_Joint(tuple(leaves), eqn.outvars[0].aval.shape)]
