"""Propagation of one-entry changes through a program, recomputing only values that change.

A numerical gradient evaluates a function once or twice per entry, each time with that one entry
changed, so most of each evaluation repeats the previous one. `perturbations` traces the function
and evaluates it once at the unperturbed point. For each leaf it keeps the equations that depend on
that leaf, and for each entry it runs only those, on slabs (`slab.py`), by the rules in
`slab_rules.py`. An operation without a rule is evaluated on dense arrays, so every function works.
The result is the change of the function, not its value: if the last operation is a sum, it is the
sum of the changes, free of the rounding error of the value.
"""

import enum
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

from jaxnn.numerical.interpret import (
    LOOPS,
    Equation,
    Program,
    bind,
    branches,
    called,
    equations,
    evaluate,
    make_jaxpr,
    named,
    outputs_that_change,
    scan_parts,
    scan_sizes,
)
from jaxnn.numerical.slab import Slab, any_index, base_of, cut, dense, unravel, write
from jaxnn.numerical.slab_rules import RULES
from jaxnn.numerical.vmap_last import Batched


class Perturbation(NamedTuple):
    """`f` with one entry of one leaf changed, for many entries at once.

    Attributes:
      change: `(indices, values) -> f(changed) - f(unchanged)`: vectors of flat indices into the
        leaf and of the values to put there; the batch is the first axis of the outputs.
      finite: scalar, whether `change` may be used. Differences need finite unperturbed values;
        without them the function must be evaluated as a whole.
      bytes_per_entry: upper bound on the bytes of all intermediate values of one change; many are
        fused away.
    """

    change: Callable[[Any, Any], Any]
    finite: Any
    bytes_per_entry: int


def perturbations(f: Callable, leaves: Sequence[Any]) -> list[Perturbation] | None:
    """Prepare the evaluation of `f(leaves)` with one entry of a leaf changed, for each leaf.

    This computes the unperturbed values, so call it outside the loop over entries.

    Args:
      f: takes a list of arrays, returns a pytree of arrays.
      leaves: the point, a list of arrays; they may be traced.

    Returns:
      The perturbations, or None if `f` has side effects, which must happen at each evaluation.
    """
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    traced, out_shape = make_jaxpr(f, return_shape=True)(leaves)
    if traced.effects:
        return None
    tree, known = jax.tree.structure(out_shape), {}
    return [_perturbed(traced, tree, leaves, k, known) for k in range(len(leaves))]


def _perturbed(
    traced: Program, tree: Any, leaves: Sequence[jax.Array], which: int, known: "_Known"
) -> Perturbation:
    """The program with one entry of one leaf changed; its output has the structure `tree`."""
    x = leaves[which]
    levels = [Level.SLAB if k == which else Level.FIXED for k in range(len(leaves))]
    walked = _Walked(traced, leaves, levels, known)
    finite = walked.finite(walked.outputs)

    def single(index, value):
        place = unravel(index, x.shape)
        value = value.reshape((1,) * x.ndim)
        known = jnp.issubdtype(x.dtype, jnp.inexact)
        slab = Slab.of(x, place, value, value - cut(x, place) if known else None)
        outs = walked([*leaves[:which], slab, *leaves[which + 1 :]])
        return [_whole_change(out) for out in outs]

    index_dtype = jnp.int32 if x.size < 2**31 else jnp.int64
    scalars = jax.ShapeDtypeStruct((), index_dtype), jax.ShapeDtypeStruct((), x.dtype)
    batched = Batched(make_jaxpr(single)(*scalars))

    def change(indices, values):
        outs = batched(indices.astype(index_dtype), jnp.asarray(values, x.dtype))
        return jax.tree.unflatten(tree, outs)

    return Perturbation(change, finite, batched.bytes_per_entry)


def _whole_change(x: Any) -> Any:
    if not isinstance(x, Slab):
        return jnp.zeros_like(x)
    difference = x.difference
    return write(difference.base, difference.index, difference.new)


class Level(enum.IntEnum):
    """How much of a value changes; a step has the highest level of its inputs.

    The unperturbed part of a DENSE value is never used, so the new value may stand in for it.
    """

    FIXED = 0
    SLAB = 1
    DENSE = 2


class _Step(NamedTuple):
    """An equation that depends on the change, with the slots of its inputs and outputs."""

    primitive: core.Primitive
    bind: Callable
    params: dict[str, Any]
    inputs: list[int]
    outputs: Sequence[int] = ()


# The rules of these primitives add new - old, which needs a finite old value.
_SUBTRACT = named("reduce_sum dot_general conv_general_dilated")


# Outputs of equations on unperturbed inputs, shared by all leaves; the key is equation and inputs.
_Known = dict[tuple[int, ...], tuple[Equation, list[Any], list[Any]]]


class _Walked:
    """The unperturbed values of a program, one per slot, and the steps that a change affects."""

    def __init__(
        self, program: Program, args: Sequence[Any], levels: Sequence[Level], known: _Known
    ):
        self.known = known
        self.values, self.levels, self.steps = [], [], []
        self.loops_finite = []  # one flag for each loop whose body subtracts
        self.inputs = [self._add(x, level) for x, level in zip(args, levels, strict=True)]
        self.outputs = self._walk(program, self.inputs)

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        """The outputs, as arrays or slabs, for inputs `args`, some of them slabs."""
        pairs = zip(self.inputs, args, strict=True)
        changed = {slot: x for slot, x in pairs if isinstance(x, Slab)}
        for step in self.steps:
            ins = [changed.get(s, self.values[s]) for s in step.inputs]
            outs = [self.values[s] for s in step.outputs]
            changed |= dict(zip(step.outputs, self._push(step, ins, outs), strict=True))
        return [changed.get(s, self.values[s]) for s in self.outputs]

    def finite(self, also: Sequence[int] = ()) -> Any:
        """Whether all values that enter differences, and those in the slots `also`, are finite."""
        slots = set(also)
        for step in self.steps:
            if step.primitive in _SUBTRACT:
                slots |= {*step.inputs, *step.outputs}
        guarded = [self.values[s] for s in slots if self.levels[s] is Level.SLAB]
        flags = [jnp.isfinite(x).all() for x in guarded if jnp.issubdtype(x.dtype, jnp.inexact)]
        return functools.reduce(operator.and_, [*flags, *self.loops_finite], jnp.array(True))

    def _push(self, step: _Step, ins: list[Any], outs: list[Any]) -> list[Slab]:
        """The outputs of a step: by its rule if the rule covers the case, else dense."""
        level, results = self._level(step.inputs), None
        if step.primitive in _RULES and all(jnp.size(base_of(x)) for x in ins + outs):
            results = _RULES[step.primitive](step.bind, ins, outs, **step.params)
        if results is None:
            results = [(None, x) for x in step.bind(*map(dense, ins), **step.params)]
        slabs = [Slab.of(out, *result) for out, result in zip(outs, results, strict=True)]
        return slabs if level is Level.SLAB else [slab._replace(change=None) for slab in slabs]

    def _level(self, slots: Sequence[int]) -> Level:
        return max((self.levels[s] for s in slots), default=Level.FIXED)

    def _add(self, value: Any, level: Level) -> int:
        self.values.append(value)
        self.levels.append(level)
        return len(self.values) - 1

    def _fixed(self, value: Any) -> int:
        return self._add(value, Level.FIXED)

    def _walk(self, program: Program, inputs: Sequence[int]) -> list[int]:
        return evaluate(program, inputs, self._enter, self._fixed)

    def _enter(self, eqn: Equation, inputs: list[int]) -> list[int]:
        level = self._level(inputs)
        if level and (program := called(eqn)) is not None:
            return self._walk(program, inputs)
        if level and eqn.primitive is primitives.cond_p and not self.levels[inputs[0]]:
            programs = branches(eqn)
            if not any(e.primitive in LOOPS for program in programs for e in equations(program)):
                return self._choose(programs, inputs)
        if eqn.primitive is primitives.scan_p:
            levels, args = [self.levels[s] for s in inputs], [self.values[s] for s in inputs]
            if Level.SLAB in levels[: scan_sizes(eqn.params)[0]]:
                self.loops_finite.append(_scan_is_finite(eqn.params, args, levels))
        again = lambda *args, **params: bind(eqn, args, **params)  # noqa: E731
        step = _Step(eqn.primitive, again, eqn.params, inputs)
        return self._record(step, self._evaluated(eqn, inputs))

    def _evaluated(self, eqn: Equation, inputs: list[int]) -> list[Any]:
        values = [self.values[s] for s in inputs]
        key = id(eqn), *map(id, values)  # kept alive below, so the ids stay unique
        if key not in self.known:
            self.known[key] = eqn, values, bind(eqn, values)
        return self.known[key][-1]

    def _choose(self, branches: Sequence[Program], inputs: list[int]) -> list[int]:
        """Evaluate all branches on slabs and select: cheaper than one branch on dense arrays."""
        results = [self._walk(branch, inputs[1:]) for branch in branches]
        choice = self._fixed(jnp.clip(self.values[inputs[0]], 0, len(results) - 1))
        select = lambda *args: [lax.select_n(*args)]  # noqa: E731

        def chosen(inputs):
            values = select(*(self.values[s] for s in inputs))
            return self._record(_Step(primitives.select_n_p, select, {}, inputs), values)[0]

        return [chosen([choice, *outs]) for outs in zip(*results, strict=True)]

    def _record(self, step: _Step, values: Sequence[Any]) -> list[int]:
        """The slots of a step's outputs, given their unperturbed values."""
        level = self._level(step.inputs)
        outs = [self._add(x, level) for x in values]
        if level:
            self.steps.append(step._replace(outputs=outs))
        return outs


# In a scan, values that the body closes over stay slabs, so a step multiplies by unperturbed
# weights; the carry is dense.


def _scan(bind: Callable, ins: list[Any], outs: list[Any], **params: Any) -> list | None:
    parts = scan_parts(params, ins)
    level_of = lambda x: Level.SLAB if any_index(x.index) else Level.DENSE  # noqa: E731
    levels = [level_of(x) if isinstance(x, Slab) else Level.FIXED for x in ins]
    levels = _scan_levels(params, levels)
    if Level.SLAB not in levels:
        return None
    pairs = zip(parts.consts, levels, strict=False)
    bases = [x.base if level is Level.SLAB else dense(x) for x, level in pairs]

    def body(carry, xs):
        values = [*bases, *carry, *xs]
        inside = [
            const if level is Level.SLAB else Slab.of(x, None, x) if level is Level.DENSE else x
            for const, x, level in zip(ins, values, levels, strict=True)
        ]
        results = [dense(x) for x in _Walked(parts.body, values, levels, {})(inside)]
        return results[: len(carry)], results[len(carry) :]

    start, xs = ([dense(x) for x in part] for part in (parts.carry, parts.xs))
    carry, ys = lax.scan(body, start, xs, **parts.options)
    return [(None, y) for y in (*carry, *ys)]


def _scan_is_finite(params: dict[str, Any], args: list[Any], levels: list[Level]) -> Any:
    """Run the unperturbed scan again, checking that differences are finite at each step."""
    parts = scan_parts(params, args)
    levels = _scan_levels(params, levels)

    def body(carry, xs):
        walked = _Walked(parts.body, [*parts.consts, *carry, *xs], levels, {})
        return [walked.values[s] for s in walked.outputs[: len(carry)]], walked.finite()

    return lax.scan(body, parts.carry, parts.xs, **parts.options)[1].all()


def _scan_levels(params: dict[str, Any], levels: list[Level]) -> list[Level]:
    """The level of each input of a scan's body.

    Constants keep theirs; every other input that changes in any step is dense.
    """
    n, m = scan_sizes(params)
    levels = [*levels[:n], *(Level.DENSE if level else Level.FIXED for level in levels[n:])]
    for _ in range(m):  # a changed carry may change other carries in the next step
        changing = outputs_that_change(params["jaxpr"], [bool(level) for level in levels])
        for k in range(m):
            if changing[k]:
                levels[n + k] = Level.DENSE
    return levels


_RULES = RULES | {primitives.scan_p: _scan}
