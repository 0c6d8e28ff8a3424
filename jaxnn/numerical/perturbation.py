"""One-entry changes pushed through a jaxpr: only what changes is computed again.

A numerical gradient evaluates a function once or twice per entry, each time with that one entry changed, and most of every
evaluation repeats the last one. `perturbed` traces the function, walks it once with the unperturbed values, and keeps the
equations that depend on the leaf; per entry it runs only those, on slabs (`slab.py`), by the rules of `slab_rules.py`. Whatever
has no rule is made dense and evaluated as usual, so every function works. What comes back is the change of the function, not
its value: where the last operation is a sum, that is the sum of the changes, free of the rounding of the value itself.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from jaxnn.numerical.batch_last import Batched
from jaxnn.numerical.slab import Slab, any_index, base_of, cut, dense, unravel, write
from jaxnn.numerical.slab_rules import CALLS, RULES, carried_change, inner_jaxpr, one_result
from jaxnn.numerical.widen import scan_counts


class Perturbation(NamedTuple):
    """`f` with one entry of one leaf changed, for many entries at once.

    Attributes:
      change: `(indices, values) -> f(changed) - f(unchanged)`: both are vectors, of flat indices into the leaf and of values to
        put there; the outputs have the batch as their first axis.
      finite: scalar, whether `change` may be used. Differences need finite unperturbed values; where they are not, the
        function has to be evaluated as a whole.
      bytes_per_entry: what all intermediate values of one change take, in bytes: an upper bound, as many of them are fused.
    """

    change: Callable[[Any, Any], Any]
    finite: Any
    bytes_per_entry: int


def perturbed(f: Callable, leaves: Sequence[Any], which: int) -> Perturbation | None:
    """Prepare the evaluation of `f(leaves)` with one entry of one leaf changed.

    The unperturbed values are computed here, so call it outside the loop over entries.

    Args:
      f: takes a list of arrays, returns a pytree of arrays.
      leaves: the point, a list of arrays; they may be traced.
      which: the leaf whose entries are changed.

    Returns:
      The perturbation, or None where `f` has side effects, which have to happen in every evaluation.
    """
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    x = leaves[which]
    closed, out_shape = jax.make_jaxpr(f, return_shape=True)(leaves)
    if closed.effects:
        return None
    program = _Program(closed, leaves, [k == which for k in range(len(leaves))])
    finite = program.finite(program.outputs)

    def single(index, value):
        place = unravel(index, x.shape)
        value = value.reshape((1,) * x.ndim)
        slab = Slab.of(x, place, value, value - cut(x, place) if jnp.issubdtype(x.dtype, jnp.inexact) else None)
        outs = program([*leaves[:which], slab, *leaves[which + 1 :]])
        return [_whole_change(out) for out in outs]

    scalars = jax.ShapeDtypeStruct((), jnp.int32 if x.size < 2**31 else jnp.int64), jax.ShapeDtypeStruct((), x.dtype)
    batched = Batched(jax.make_jaxpr(single)(*scalars))
    tree = jax.tree.structure(out_shape)

    def change(indices, values):
        return jax.tree.unflatten(tree, batched(indices.astype(scalars[0].dtype), jnp.asarray(values, x.dtype)))

    return Perturbation(change, finite, batched.bytes_per_entry)


def _whole_change(x):
    if not isinstance(x, Slab):
        return jnp.zeros_like(x)
    difference = x.difference
    return write(difference.base, difference.index, difference.new)


class _Step(NamedTuple):
    bind: Callable
    name: str
    params: dict[str, Any]
    inputs: list[int]
    outputs: list[int]


class _Program:
    """The unperturbed values of a jaxpr, one per slot, and the steps from its perturbed inputs on.

    An input is fixed (0), a slab (1) or dense, all of it changed (2), and so is every slot: the level of a step is that of its
    highest input. At level 2 the unperturbed value is never used, so the new one may stand in for it.
    """

    def __init__(self, closed, args, levels):
        self.values, self.levels, self.steps = [], [], []
        self.loops_finite = []  # one flag for each loop whose body subtracts
        self.inputs = [self._add(x, level) for x, level in zip(args, levels, strict=True)]
        self.outputs = self._walk(closed.jaxpr, closed.consts, self.inputs)

    def __call__(self, args):
        """The outputs, as arrays or slabs, for the inputs `args`, some of them slabs."""
        changed = {slot: x for slot, x in zip(self.inputs, args, strict=True) if isinstance(x, Slab)}
        for step in self.steps:
            ins = [changed.get(s, self.values[s]) for s in step.inputs]
            outs = [self.values[s] for s in step.outputs]
            found = None
            if step.name in _RULES and all(jnp.size(base_of(x)) for x in ins + outs):
                found = _RULES[step.name](step.bind, ins, outs, **step.params)
            if found is None:
                found = [(None, x) for x in step.bind(*map(dense, ins), **step.params)]
            elif self._level(step.inputs) == 1 and len(found[0]) == 2:
                found = carried_change(step.name, step.bind, ins, outs, found, step.params)
            slabs = [Slab.of(o, *result) for o, result in zip(outs, found, strict=True)]
            if self._level(step.inputs) == 2:
                slabs = [slab._replace(change=None) for slab in slabs]
            changed |= dict(zip(step.outputs, slabs, strict=True))
        return [changed.get(s, self.values[s]) for s in self.outputs]

    def finite(self, also=()):
        """Whether the unperturbed values that differences are taken of, and those in the slots `also`, are finite."""
        slots = {s for step in self.steps if step.name in _SUBTRACT for s in step.inputs + step.outputs} | set(also)
        guarded = [self.values[s] for s in slots if self.levels[s] == 1]
        flags = [jnp.isfinite(x).all() for x in guarded if jnp.issubdtype(x.dtype, jnp.inexact)]
        return functools.reduce(operator.and_, [*flags, *self.loops_finite], jnp.array(True))

    def _level(self, slots):
        return max((self.levels[s] for s in slots), default=0)

    def _add(self, value, level):
        self.values.append(value)
        self.levels.append(int(level))
        return len(self.values) - 1

    def _walk(self, jaxpr, consts, inputs):
        slots = dict(zip(jaxpr.constvars, [self._add(c, 0) for c in consts], strict=True))
        slots |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(var):
            return self._add(var.val, 0) if isinstance(var, core.Literal) else slots[var]

        for eqn in jaxpr.eqns:
            with eqn.ctx.manager:
                outs = self._enter(eqn, [read(v) for v in eqn.invars])
            slots |= dict(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _enter(self, eqn, inputs):
        name, params = eqn.primitive.name, eqn.params
        level = self._level(inputs)
        if level and name in CALLS:
            return self._walk(*inner_jaxpr(eqn), inputs)
        if level and name == "cond" and not self.levels[inputs[0]] and not any(map(_loops, params["branches"])):
            # Small branches: all of them on slabs, then a choice, rather than one on dense arrays.
            results = [self._walk(b.jaxpr, b.consts, inputs[1:]) for b in params["branches"]]
            choice = self._add(jnp.clip(self.values[inputs[0]], 0, len(results) - 1), 0)
            select = one_result(lax.select_n)
            return [self._bind(select, "select_n", {}, [choice, *outs])[0] for outs in zip(*results, strict=True)]
        bind = eqn.primitive.bind if eqn.primitive.multiple_results else one_result(eqn.primitive.bind)
        if name == "scan":
            levels, args = [self.levels[s] for s in inputs], [self.values[s] for s in inputs]
            if 1 in levels[: scan_counts(params)[0]]:
                self.loops_finite.append(_scan_is_finite(args, levels, **params))
        return self._bind(bind, name, eqn.primitive.get_bind_params(params), inputs)

    def _bind(self, bind, name, params, inputs):
        level = self._level(inputs)
        outs = [self._add(x, level) for x in bind(*(self.values[s] for s in inputs), **params)]
        if level:
            self.steps.append(_Step(bind, name, params, inputs, outs))
        return outs


def _loops(closed):
    """Whether a jaxpr holds a loop: then computing a branch that was not chosen may cost a lot, or never end."""
    jaxpr = getattr(closed, "jaxpr", closed)
    return any(eqn.primitive.name in ("while", "scan") for eqn in jaxpr.eqns) or any(map(_loops, core.subjaxprs(jaxpr)))


# A scan: what the body closes over stays a slab, so a step multiplies by unperturbed weights; what it carries is dense.


def _scan(bind, ins, outs, **params):
    num_consts, num_carry = scan_counts(params)
    slabs = [isinstance(x, Slab) and any_index(x.index) for x in ins[:num_consts]]
    if not any(slabs):
        return None
    changed = [isinstance(x, Slab) for x in ins]
    levels = _scan_levels(
        [1 if slab else 2 * c for slab, c in zip(slabs, changed, strict=False)] + changed[num_consts:], **params
    )
    wholes = [dense(x) for x in ins]

    def body(carry, xs):
        values = [x.base if slab else whole for x, whole, slab in zip(ins, wholes, slabs, strict=False)] + [*carry, *xs]
        inside = [Slab.of(x, None, x) if level == 2 else x for x, level in zip(values, levels, strict=True)]
        inside = [x if slab else y for x, y, slab in zip(ins, inside, slabs, strict=False)] + inside[num_consts:]
        results = [dense(x) for x in _Program(params["jaxpr"], values, levels)(inside)]
        return results[:num_carry], results[num_carry:]

    return [(None, y) for y in _run_scan(body, wholes, **params)]


def _scan_is_finite(args, levels, **params):
    """The unperturbed scan once more, asking each step whether differences may be taken in it."""
    num_consts, num_carry = scan_counts(params)
    levels = _scan_levels(levels, **params)

    def body(carry, xs):
        program = _Program(params["jaxpr"], [*args[:num_consts], *carry, *xs], levels)
        outs = [program.values[s] for s in program.outputs]
        return outs[:num_carry], [program.finite()]

    return _run_scan(body, args, **params)[num_carry].all()


def _run_scan(body, args, **params):
    num_consts, num_carry = scan_counts(params)
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(body, args[num_consts : num_consts + num_carry], args[num_consts + num_carry :], **options)
    return [*carry, *ys]


def _scan_levels(levels, *, jaxpr, **params):
    """The level of each input of a scan's body: constants keep theirs, and all else that changes in any step is dense."""
    num_consts, num_carry = scan_counts(params)
    levels = [*levels[:num_consts], *(2 if level else 0 for level in levels[num_consts:])]
    for _ in range(num_carry):  # what is carried may change what else is carried in the next step
        reached = {v for v, level in zip(jaxpr.jaxpr.invars, levels, strict=True) if level}
        for eqn in jaxpr.jaxpr.eqns:
            if any(v in reached for v in eqn.invars if not isinstance(v, core.Literal)):
                reached |= set(eqn.outvars)
        for k, out in enumerate(jaxpr.jaxpr.outvars[:num_carry]):
            if not isinstance(out, core.Literal) and out in reached:
                levels[num_consts + k] = 2
    return levels


_RULES = RULES | {"scan": _scan}
_SUBTRACT = {"reduce_sum", "dot_general", "conv_general_dilated"}  # their rules add new - old, which needs a finite old
