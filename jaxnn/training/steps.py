"""Training steps on the device: one compiled program that runs any chunk of an epoch's steps.

The bounds of a chunk are traced, so control can return to the host after one step or a million
without recompiling. The loop stops after a step that makes the loss or a parameter non-finite.
Keeping the state before each step would cost up to a quarter of the time, so a chunk that fails is
rerun from its start, up to the step before the failure. For a large state no copy is kept; instead
each step is checked before it is taken.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxnn._validate import is_inexact, is_key
from jaxnn.data import count_examples, shuffled


class Plan(NamedTuple):
    """How the epochs of a run are divided into steps.

    Attributes:
      count: number of examples; None if batches come from a function, which alone determines the
        length of an epoch.
      batch_size: examples per step.
      epochs: number of epochs; None for as many as `most` steps take.
      replacement: whether each batch is drawn from all examples.
      most: maximum number of steps, if the epochs do not end the run earlier.
    """

    count: int | None
    batch_size: int
    epochs: int | None
    replacement: bool = False
    most: int | None = None

    @property
    def per_epoch(self) -> int:
        """Steps per epoch; 1 if the number of examples is unknown."""
        return 1 if self.count is None else -(-self.count // self.batch_size)

    @property
    def rest(self) -> int:
        """Examples of the smaller step at the end of an epoch; 0 if there is none."""
        return 0 if self.replacement or self.count is None else self.count % self.batch_size

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, if known."""
        if self.count is None or self.epochs is None:
            return self.most
        steps = self.per_epoch * self.epochs
        return steps if self.most is None else min(steps, self.most)

    @property
    def whole(self) -> bool:
        """Whether a step takes all examples, each once, so that their order does not matter."""
        return self.batch_size == self.count and not self.replacement

    def order(self, key: Key[Array, ""], epoch: Any) -> Int[Array, "examples"]:  # noqa: F821
        """The indices of an epoch's examples in order, determined by the key and epoch alone."""
        count = self.count or 0
        if self.whole:
            return jnp.arange(count, dtype=jnp.int32)
        size = self.per_epoch * self.batch_size
        return _order_of_epoch(key, epoch, count, size, self.replacement)


class Way(NamedTuple):
    """Options that steps are compiled for, besides the functions and the forms of their arguments.

    Attributes:
      batch_size: examples per step.
      rest: examples of the smaller step at the end of an epoch; 0 if there is none.
      whole: whether a step takes all examples as they are.
      guarded: whether a step is checked before it is taken. Then no earlier state is kept, but the
        end of a step is computed twice.
      skips: whether a step that is not finite is left out instead of ending the run.
      sharding: how a batch is sharded over a mesh of devices.
      unwatched: the names of the leaves that are not finite from the start.
    """

    batch_size: int
    rest: int = 0
    whole: bool = False
    guarded: bool = False
    skips: bool = False
    sharding: NamedSharding | None = None
    unwatched: frozenset[str] = frozenset()

    @classmethod
    def of(cls, plan: Plan, **more: Any) -> "Way":
        """The options for a plan."""
        return cls(plan.batch_size, plan.rest, plan.whole, **more)


class Chunk(NamedTuple):
    """The result of a chunk of steps.

    Attributes:
      reached: the number of the next step.
      state: after the last step.
      finite: whether the loss and each floating-point leaf of the state are finite there.
      losses: entry i is the loss before step i.
      aux: the auxiliary outputs of the loss at each step, by name.
    """

    reached: Int[Array, ""]
    state: Any
    finite: Bool[Array, "1+leaves"]  # noqa: F821
    losses: Float[Array, "steps"]  # noqa: F821
    aux: dict[str, Any]

    def not_finite(self) -> str | None:
        """The name of the first non-finite value, or None."""
        names = ["loss", *(path for path, _ in _watched(self.state))]
        pairs = zip(names, np.asarray(self.finite), strict=True)
        return next((name for name, fine in pairs if not fine), None)


def make_chunk(step: Any, way: Way, whole: bool = True) -> Callable[..., Chunk]:
    """A function that runs a chunk of steps.

    Args:
      step: what each of them does, in two parts, the second of which is evaluated again where
        memory is short: a `Descent` or a `UserStep`.
      way: the options that the steps are compiled for.
      whole: whether the state is looked at after the last step; not for a part of a chunk.

    Returns:
      `take(state, data, order, key, first, start, stop, short)`, a `Chunk`. It takes the steps
      `start` to `stop` over `order`, or over `data` in order if that is None. Step i uses the i-th
      `batch_size` examples; if `short`, the last step uses `rest`. Step i folds `first` + i into
      the epoch's `key`. The loop ends after the first step whose loss is not finite or, if guarded,
      whose state is not.
    """
    batch_size = way.batch_size

    def take(state, data, order, key, first, start, stop, short):
        key_of = lambda i: jax.random.fold_in(key, first + i)  # noqa: E731

        def advance(chunk, size):
            i, batch = chunk.reached, data
            if not way.whole and order is None:
                of = lambda a: lax.dynamic_slice_in_dim(a, i * batch_size, size)  # noqa: E731
                batch = jax.tree.map(of, data)
            elif not way.whole:
                rows = lax.dynamic_slice(order, (i * batch_size,), (size,))
                batch = jax.tree.map(lambda a: a[rows], data)
            return _advanced(step, way, chunk, batch, key_of, i)

        some = batch_form(data, min(batch_size, count_examples(data)))
        steps = -(-(count_examples(data) if order is None else order.size) // batch_size)
        chunk = _begun(step, state, some, key_of, start, steps)
        last = stop - jnp.astype(short, jnp.int32)
        chunk = lax.while_loop(_goes_on(last), lambda c: advance(c, batch_size), chunk)
        if way.rest:
            due = short & jnp.all(chunk.finite)
            chunk = lax.cond(due, lambda c: advance(c, way.rest), lambda c: c, chunk)
        return _looked_at(chunk, way) if whole else chunk

    return take


def _begun(step: Any, state: Any, some: PyTree, key_of: Callable, start: Any, rows: int) -> Chunk:
    """A chunk before its first step, with room for the results of `rows` steps."""
    key = key_of(np.int32(0)) if step.keyed else None
    value, aux = jax.eval_shape(step.noted, state, tuple(some), key)
    losses, *noted = [jnp.zeros(rows, x.dtype) for x in (value, *aux.values())]
    fine = jnp.ones(1 + len(_watched(state)), bool)
    return Chunk(start, state, fine, losses, dict(zip(aux, noted, strict=True)))


def _goes_on(stop: Any) -> Callable[[Chunk], Bool[Array, ""]]:
    """Whether a chunk has another step to take before `stop`."""
    return lambda chunk: (chunk.reached < stop) & jnp.all(chunk.finite)


def _advanced(
    step: Any, way: Way, chunk: Chunk, batch: PyTree, key_of: Callable, row: Any
) -> Chunk:
    """A chunk after its next step, whose results are entry `row`."""
    i, state = chunk.reached, chunk.state
    batch = tuple(shard_batch(batch, way.sharding))
    work, value, aux = step.begin(state, batch, key_of(i) if step.keyed else None)
    new = step.end(state, work)
    finite = chunk.finite.at[0].set(jnp.isfinite(value))
    if way.guarded or way.skips:
        finite = finite.at[1:].set(_finite(new, way))
    if way.skips:
        new = jax.tree.map(functools.partial(jnp.where, jnp.all(finite)), new, state)
        finite = chunk.finite
    elif way.guarded:
        again = lambda state: step.end(state, work)  # noqa: E731
        new = lax.cond(jnp.all(finite), again, lambda state: state, state)
    losses = chunk.losses.at[row].set(value)
    aux = {name: chunk.aux[name].at[row].set(x) for name, x in aux.items()}
    return Chunk(i + 1, new, finite, losses, aux)


def _looked_at(chunk: Chunk, way: Way) -> Chunk:
    """A chunk that says whether its state is finite: a leaf that is not stays so until the end, as
    steps add to it. A guarded step has looked itself.
    """
    if way.guarded:
        return chunk
    return chunk._replace(finite=chunk.finite.at[1:].set(_finite(chunk.state, way)))


def batch_form(data: PyTree, size: int) -> PyTree:
    """The shapes and dtypes of `size` examples on the device."""

    def form(a):
        dtype = a.dtype if isinstance(a, jax.Array) else jax.dtypes.canonicalize_dtype(a.dtype)
        return jax.ShapeDtypeStruct((size, *a.shape[1:]), dtype)

    return jax.tree.map(form, data)


def across_epochs(step: Any, way: Way, plan: Plan) -> Callable[..., Chunk]:
    """A function that takes steps across epochs, without measurements in between.

    Args:
      step: what each of them does.
      way: the options that the steps are compiled for.
      plan: of epochs without a smaller step at their end.

    Returns:
      `across(state, data, key, start, stop, short)`, a `Chunk` of the steps `start` to
      `stop` of the run. They touch at most `rows_of` epochs; the losses are those of whole epochs.
      `short` is False.
    """
    if plan.whole:
        return _each_an_epoch(step, way, plan)
    size, take = plan.per_epoch, make_chunk(step, way, whole=False)

    def across(state, data, key, start, stop, short):
        def epoch(chunk):
            number, first = jnp.divmod(chunk.reached, size)
            order, epoch_key = (of(key, number + 1) for of in (plan.order, jax.random.fold_in))
            last = jnp.minimum(stop - number * size, size)
            given = data, order, epoch_key, np.int32(0), first, last, short
            part = take(chunk.state, *given)
            row = (number - start // size) * size
            noted = jax.tree.map(
                lambda rows, x: lax.dynamic_update_slice(rows, x, (row,)),
                (chunk.losses, chunk.aux),
                (part.losses, part.aux),
            )
            return Chunk(number * size + part.reached, part.state, part.finite, *noted)

        some = batch_form(data, plan.batch_size)
        chunk = _begun(step, state, some, lambda _: key, start, rows_of(plan) * size)
        return _looked_at(lax.while_loop(_goes_on(stop), epoch, chunk), way)

    return across


def _each_an_epoch(step: Any, way: Way, plan: Plan) -> Callable[..., Chunk]:
    """`across_epochs` where a step takes all examples: one loop is twice as fast as a loop of
    loops of one step.
    """

    def across(state, data, key, start, stop, short):
        key_of = lambda i: jax.random.fold_in(jax.random.fold_in(key, i + 1), 0)  # noqa: E731
        chunk = _begun(step, state, batch_form(data, plan.batch_size), key_of, start, rows_of(plan))
        advance = lambda c: _advanced(step, way, c, data, key_of, c.reached - start)  # noqa: E731
        return _looked_at(lax.while_loop(_goes_on(stop), advance, chunk), way)

    return across


# The target number of losses returned by one chunk.
LOSSES = 8192


def rows_of(plan: Plan) -> int:
    """The maximum number of epochs that a chunk may touch."""
    return max(2, LOSSES // plan.per_epoch)


def run_chunk(
    take: Callable[..., Chunk], state: Any, examples: Any, limits: Any, guarded: bool = False
) -> Chunk:
    """Run a chunk of steps by `take`, and return the state after its last good step.

    A guarded `take` returns that state itself, and `state` is donated to it. The limits are
    `start`, `stop` and `short`; under `vmap`, they are arrays with one entry per run.
    """
    if guarded:
        return take(state, *examples, *limits)
    # The state is known to be finite after `good` steps and non-finite after `bad`. Non-finite
    # states stay so: search back from the end by doubling steps, then bisect.
    start, stop, short = limits
    known, good, bad, probe, back = None, start, stop + 1, stop, 1
    while True:
        chunk = take(state, *examples, start, probe, short & (probe == stop))
        fine = np.all(np.asarray(chunk.finite), axis=-1)
        outcome = chunk._replace(state=None)
        known = outcome if known is None else _of_the_broken(fine, known, outcome)
        bad = np.where(fine, bad, np.asarray(chunk.reached))
        good = np.minimum(np.where(fine, probe, good), bad - 1)  # GPU reruns may round differently
        if fine.all() and np.all(good == bad - 1):
            return known._replace(state=chunk.state)
        probe, back = np.maximum(bad - back, (good + bad) // 2), 2 * back


@jax.jit
def copied(state: PyTree) -> PyTree:
    """Copy a state in one program, which compiles faster than one program per shape."""
    return jax.tree.map(jnp.copy, state)


# Bytes from which a state is guarded: a second copy would cost too much memory, and a step takes so
# long that computing the update twice is cheap in comparison.
LARGE = 2**26


def is_large(state: PyTree) -> bool:
    """Whether a state is too large to keep an earlier one beside it."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if not is_key(leaf)) >= LARGE


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copies of arrays, on the default device or replicated over a mesh; arrays that are already
    sharded over a mesh stay sharded.
    """

    def place(leaf):
        if is_key(leaf):
            data = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if mesh is None:
            if not hasattr(leaf, "dtype"):
                return jnp.array(leaf)
            kind = jax.dtypes.canonicalize_dtype(leaf.dtype)
            return jnp.array(leaf, kind)  # with a dtype, no weak type
        if is_sharded(leaf):
            return jnp.copy(in_parts(leaf, mesh))
        leaf, everywhere = np.asarray(leaf), NamedSharding(mesh, PartitionSpec())
        return jax.make_array_from_process_local_data(everywhere, leaf, leaf.shape)

    return jax.tree.map(place, tree)


def send(tree: PyTree, mesh: Mesh | None, ours: bool = False) -> PyTree:
    """Read-only arrays on the devices, copied only if they are not there yet. If the host's arrays
    are `ours`, the device may share their memory.
    """

    def there(leaf):
        if mesh is None and isinstance(leaf, jax.Array):
            return leaf
        return jax.device_put(leaf) if mesh is None and ours else replicate(leaf, mesh)

    return jax.tree.map(there, tree)


def is_sharded(leaf: Any) -> bool:
    """Whether an array is sharded over a mesh."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated


def in_parts(leaf: Any, mesh: Mesh) -> jax.Array:
    """A sharded array on the given mesh, sharing memory if possible."""
    return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))


def shard_batch(batch: PyTree, sharding: NamedSharding | None) -> PyTree:
    """A batch, sharded over the devices of a mesh.

    The compiler pads uneven shards and ignores the padding.
    """
    if sharding is None:
        return batch
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, sharding), batch)


def _watched(state: Any) -> list[tuple[str, Any]]:
    """The floating and complex leaves of a state and their names; `params['w']` is one."""
    return [
        (f"{part}{keystr(path)}", leaf)
        for part, tree in state._asdict().items()
        for path, leaf in tree_flatten_with_path(tree)[0]
        if is_inexact(leaf)
    ]


def not_finite(state: Any) -> frozenset[str]:
    """The names of the floating-point leaves of a state that are not finite."""

    def is_finite(leaf):
        here = not isinstance(leaf, jax.Array) or leaf.devices() == {jax.devices("cpu")[0]}
        xp = np if here else jnp  # NumPy compiles nothing
        return bool(xp.all(xp.isfinite(np.asarray(leaf) if here else leaf)))

    return frozenset(name for name, leaf in _watched(state) if not is_finite(leaf))


def _finite(state: Any, way: Way) -> Bool[Array, "leaves"]:  # noqa: F821
    """Whether each watched leaf is finite; those that are not from the start count as finite."""
    fine = [name in way.unwatched or jnp.all(jnp.isfinite(leaf)) for name, leaf in _watched(state)]
    return jnp.array(fine, bool)


def _of_the_broken(fine: Any, known: Chunk, again: Chunk) -> Chunk:
    """Old results for runs that are finite now, new results for the others."""

    def latest(old, new):
        return jnp.where(fine.reshape(fine.shape + (1,) * (old.ndim - fine.ndim)), old, new)

    return jax.tree.map(latest, known, again)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _order_of_epoch(
    key: jax.Array, epoch: Any, count: int, size: int, replacement: bool
) -> jax.Array:
    key = jax.random.fold_in(key, epoch)
    if replacement:
        return jax.random.randint(key, (size,), 0, count, jnp.int32)
    return shuffled(key, count)
