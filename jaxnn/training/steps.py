"""The device's part of training: one compiled program that takes any chunk of an epoch's steps.

Where a chunk begins and ends is traced, so the host can come back after one step or a million
without a compilation. The loop stops by itself behind a step that made the loss or a parameter not
finite. To keep the state before each step, in case that step is the one, would cost up to a quarter
of the time; so a chunk that went wrong is taken again, from its beginning to the step before. A
large state is not kept for that: there a step is looked at before it is taken.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxnn._programs import Jitted
from jaxnn._validate import is_differentiable, is_key
from jaxnn.data import count_examples, shuffled
from jaxnn.training.objective import Objective


class State(NamedTuple):
    """What a step changes: parameters, the optimiser's state, and the model's own if it has one."""

    params: PyTree
    opt_state: PyTree
    model_state: PyTree = None


class Plan(NamedTuple):
    """How the epochs of a run are cut into steps.

    Attributes:
      count: how many examples there are; None where batches come from a function, which alone knows
        how many are in an epoch.
      batch_size: of a step.
      epochs: how many there are; None for as many as `most` steps take.
      replacement: whether each batch is drawn from all examples.
      most: the number of steps after which the run ends, if epochs do not end it before.
    """

    count: int | None
    batch_size: int
    epochs: int | None
    replacement: bool = False
    most: int | None = None

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch; at least 1, where no more is known."""
        return 1 if self.count is None else -(-self.count // self.batch_size)

    @property
    def rest(self) -> int:
        """Examples of the smaller step at the end of an epoch; 0 if there is none."""
        return 0 if self.replacement or self.count is None else self.count % self.batch_size

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, if that is known."""
        if self.count is None or self.epochs is None:
            return self.most
        steps = self.per_epoch * self.epochs
        return steps if self.most is None else min(steps, self.most)

    @property
    def whole(self) -> bool:
        """Whether a step takes all examples, each once, so that their order means nothing."""
        return self.batch_size == self.count and not self.replacement

    def key_of(self, key: Key[Array, ""], epoch: Any) -> Key[Array, ""]:
        """An epoch's key, of which its order is drawn, and the keys of its steps; 0 is that of what
        is measured.
        """
        return jax.random.fold_in(key, epoch)

    def order(self, key: Key[Array, ""], epoch: Any) -> Int[Array, "examples"]:  # noqa: F821
        """Which examples an epoch uses, in which order: from the key and its number alone."""
        count = self.count or 0
        if self.whole:
            return jnp.arange(count, dtype=jnp.int32)
        size = self.per_epoch * self.batch_size
        return _order_of_epoch(key, epoch, count, size, self.replacement)


class Way(NamedTuple):
    """What steps are compiled for, besides the functions and the forms of what they take.

    Attributes:
      batch_size: examples a step.
      rest: examples of the smaller step at the end of an epoch; 0 if there is none.
      whole: whether a step takes all examples as they are.
      extra: whether the optimiser takes the loss, its gradient and its function besides.
      guarded: whether a step is looked at before it is taken: no earlier state is kept then,
        but the update is computed twice.
      norm: whether the norm of the gradient is recorded.
      mesh: devices that share each batch.
    """

    batch_size: int
    rest: int = 0
    whole: bool = False
    extra: bool = False
    guarded: bool = False
    norm: bool = False
    mesh: Mesh | None = None

    @classmethod
    def of(cls, plan: Plan, optimizer: Any, **more: Any) -> "Way":
        """That of a plan and an optimiser."""
        extra = isinstance(optimizer, optax.GradientTransformationExtraArgs)
        return cls(plan.batch_size, plan.rest, plan.whole, extra, **more)


class Chunk(NamedTuple):
    """What came of some steps.

    Attributes:
      reached: the number behind the last step that was taken.
      state: after that step.
      finite: whether the loss and each floating leaf of the parameters are finite there.
      losses: entry i is the loss before step i.
      aux: and what else it returned there, by name.
    """

    reached: Int[Array, ""]
    state: State
    finite: Bool[Array, "1+leaves"]  # noqa: F821
    losses: Float[Array, "steps"]  # noqa: F821
    aux: dict[str, Any]

    def not_finite(self) -> str | None:
        """The name of what was not finite first, if anything was."""
        leaves = tree_flatten_with_path(self.state.params)[0]
        paths = [keystr(path) for path, leaf in leaves if is_differentiable(leaf)]
        names = ["loss", *(f"params{path}" for path in paths)]
        pairs = zip(names, np.asarray(self.finite), strict=True)
        return next((name for name, fine in pairs if not fine), None)


# What the norm of the gradient is called among what is recorded of each step.
NORM = "gradient_norm"


def make_chunk(objective: Objective, way: Way) -> Callable[..., Chunk]:
    """A function that takes a chunk of steps.

    Args:
      objective: what is minimised.
      way: how.

    Returns:
      `take(update, state, data, order, key, first, start, stop, short)`: a `Chunk` of the steps
      `start` to `stop` of an order of examples, or, where that is None, of examples as they stand;
      step i takes the i-th `batch_size` of them; if `short`, the last takes `rest`. The key of step
      i is number `first` + i of the epoch's `key`. It ends behind the first step whose loss was not
      finite, or, if it is guarded, whose parameters were not. `update` is the optimiser's.
    """
    skeleton, batch_size = objective.skeleton, way.batch_size

    def take(update, state, data, order, key, first, start, stop, short):
        key_of = lambda i: jax.random.fold_in(key, first + i) if objective.form.keyed else None  # noqa: E731

        def step(chunk, size):
            i, state = chunk.reached, chunk.state
            batch = data
            if not way.whole and order is None:
                of = lambda a: lax.dynamic_slice_in_dim(a, i * batch_size, size)  # noqa: E731
                batch = jax.tree.map(of, data)
            elif not way.whole:
                rows = lax.dynamic_slice(order, (i * batch_size,), (size,))
                batch = jax.tree.map(lambda a: a[rows], data)
            batch = tuple(shard_batch(batch, way.mesh))
            given = state.model_state, key_of(i), batch
            value, gradient, model_state, aux = objective.value_and_gradient(state.params, *given)

            asked = []  # whether the optimiser evaluates the function itself, as a line search does

            def of_moving(moving, held):
                asked.append(True)
                return objective.value(skeleton.merge(moving, held), *given)[0]

            def after(state):
                moving, held = skeleton.split(state.params)
                more = {}
                if way.extra:
                    value_fn = functools.partial(of_moving, held=held)
                    more = {"value": value, "grad": gradient, "value_fn": value_fn}
                updates, opt_state = update(gradient, state.opt_state, moving, **more)
                params = skeleton.merge(optax.apply_updates(moving, updates), held)
                return State(params, opt_state, model_state)

            new = after(state)
            finite = chunk.finite.at[0].set(jnp.isfinite(value))
            if way.guarded:
                finite = finite.at[1:].set(_finite(new.params))
            if way.guarded and not asked:
                new = lax.cond(jnp.all(finite), after, lambda state: state, state)
            elif way.guarded:
                new = jax.tree.map(functools.partial(jnp.where, jnp.all(finite)), new, state)
            if way.norm:
                _require_free(aux)
                aux = {**aux, NORM: optax.tree.norm(gradient)}
            losses = chunk.losses.at[i].set(value)
            aux = {name: chunk.aux[name].at[i].set(x) for name, x in aux.items()}
            return Chunk(i + 1, new, finite, losses, aux)

        some = batch_form(data, min(batch_size, count_examples(data)))
        value, aux = jax.eval_shape(
            functools.partial(_noted, objective, way.norm),
            state.params,
            state.model_state,
            key_of(np.int32(0)),
            tuple(some),
        )
        fine = jnp.ones(1 + len(_floating(state.params)), bool)
        steps = -(-(count_examples(data) if order is None else order.size) // batch_size)
        losses, *_ = noted = [jnp.zeros(steps, x.dtype) for x in (value, *aux.values())]
        chunk = Chunk(start, state, fine, losses, dict(zip(aux, noted[1:], strict=True)))
        last = stop - jnp.astype(short, jnp.int32)
        going = lambda c: (c.reached < last) & jnp.all(c.finite)  # noqa: E731
        chunk = lax.while_loop(going, lambda c: step(c, batch_size), chunk)
        if way.rest:
            due = short & jnp.all(chunk.finite)
            chunk = lax.cond(due, lambda c: step(c, way.rest), lambda c: c, chunk)
        if way.guarded:
            return chunk
        # An update is added, so that what is not finite once is not finite here.
        return chunk._replace(finite=chunk.finite.at[1:].set(_finite(chunk.state.params)))

    return take


def batch_form(data: PyTree, size: int) -> PyTree:
    """The form of so many examples, without their values, as they are on the device."""

    def form(a):
        dtype = a.dtype if isinstance(a, jax.Array) else jax.dtypes.canonicalize_dtype(a.dtype)
        return jax.ShapeDtypeStruct((size, *a.shape[1:]), dtype)

    return jax.tree.map(form, data)


def _require_free(aux: dict[str, Any]) -> None:
    """Refuse a loss that records something else by the name of the gradient's norm."""
    if NORM in aux:
        raise ValueError(
            f"`record` must leave {NORM!r} out where the aux of the loss has that name. Got both."
        )


def _noted(
    objective: Objective, norm: bool, params: PyTree, model_state: PyTree, key: Any, batch: Any
) -> tuple[Any, dict[str, Any]]:
    """The loss of a step, and what is recorded beside it."""
    value, (_, aux) = objective.value(params, model_state, key, batch)
    if norm:
        gradient = objective.skeleton.split(params)[0]
        aux = {**aux, NORM: optax.tree.norm(gradient)}
    return value, aux


def make_stretch(take: Callable[..., Chunk], plan: Plan) -> Callable[..., Chunk]:
    """A function that takes steps across epochs, in which nothing has to be measured.

    Args:
      take: takes a chunk of one epoch's steps.
      plan: of epochs without a smaller step at their end.

    Returns:
      `across(update, state, data, key, start, stop, short)`: a `Chunk` of the steps `start` to
      `stop` of the run, which touch at most `rows_of` epochs; its losses have one row an epoch.
      `short` is False.
    """
    size = plan.per_epoch

    def across(update, state, data, key, start, stop, short):
        def epoch(chunk):
            number, first = jnp.divmod(chunk.reached, size)
            order, epoch_key = (of(key, number + 1) for of in (plan.order, plan.key_of))
            last = jnp.minimum(stop - number * size, size)
            given = data, order, epoch_key, np.int32(0), first, last, short
            part = take(update, chunk.state, *given)
            row = number - start // size
            noted = jax.tree.map(
                lambda rows, x: rows.at[row].set(x),
                (chunk.losses, chunk.aux),
                (part.losses, part.aux),
            )
            return Chunk(number * size + part.reached, part.state, part.finite, *noted)

        given = data, jnp.zeros(size * plan.batch_size, jnp.int32), key, *[np.int32(0)] * 3, short
        nothing = jax.eval_shape(functools.partial(take, update), state, *given)
        rows = jax.tree.map(
            lambda x: jnp.zeros((rows_of(plan), *x.shape), x.dtype), (nothing.losses, nothing.aux)
        )
        chunk = Chunk(start, state, jnp.ones(nothing.finite.shape, bool), *rows)
        return lax.while_loop(lambda c: (c.reached < stop) & jnp.all(c.finite), epoch, chunk)

    return across


# Losses that come back from one stretch.
STRETCH = 8192


def rows_of(plan: Plan) -> int:
    """So many epochs a stretch may touch."""
    return max(2, STRETCH // plan.per_epoch)


def run_chunk(
    take: Callable[..., Chunk],
    state: State,
    *examples: Any,
    start: Any,
    stop: Any,
    short: Any,
    guarded: bool = False,
) -> Chunk:
    """A chunk of steps by `take`, with the state after its last good step.

    A guarded `take` has that state already, and may have the memory of `state`. Under `vmap`,
    `start`, `stop` and `short` are arrays with one entry a run.
    """
    if guarded:
        return take(state, *examples, start, stop, short)
    # Good after `good` steps, not so after `bad`, as far as is known. What was not finite stays so:
    # the last good step is looked for from the end, back by steps that double, then halved.
    known, good, bad, probe, back = None, start, stop + 1, stop, 1
    while True:
        chunk = take(state, *examples, start, probe, short & (probe == stop))
        fine = np.all(np.asarray(chunk.finite), axis=-1)
        outcome = chunk._replace(state=None)
        known = outcome if known is None else _of_the_broken(fine, known, outcome)
        bad = np.where(fine, bad, np.asarray(chunk.reached))
        good = np.minimum(np.where(fine, probe, good), bad - 1)  # a GPU's arithmetic may differ
        if fine.all() and np.all(good == bad - 1):
            return known._replace(state=chunk.state)
        probe, back = np.maximum(bad - back, (good + bad) // 2), 2 * back


@jax.jit
def copied(state: State) -> State:
    """A copy, in one program: it is compiled faster than one for each shape."""
    return jax.tree.map(jnp.copy, state)


# A state of so many bytes is guarded: a second one would be felt, and a step takes so long that
# computing the update twice is not.
LARGE = 2**26


def is_large(state: State) -> bool:
    """Whether a state is too large for an earlier one to be kept beside it."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if not is_key(leaf)) >= LARGE


def compiled(
    objective: Objective, optimizer: Any, way: Way, across: Plan | None = None
) -> Callable[..., Chunk]:
    """`take` for one optimiser, or one that takes steps `across` the epochs of a plan, compiled."""
    take = make_chunk(objective, way)
    take = make_stretch(take, across) if across else take
    donated = (0,) if way.guarded else ()  # a small state may be needed again
    return Jitted(functools.partial(take, optimizer.update), donated)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays of our own, on the default device or whole on each device of a mesh; what comes cut
    into parts for the devices of the mesh stays so.
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
    """Arrays that are only read, on the devices: as they are where they are there already, and
    where the host's are `ours`, without a copy if that can be.
    """

    def there(leaf):
        if mesh is None and isinstance(leaf, jax.Array):
            return leaf
        return jax.device_put(leaf) if mesh is None and ours else replicate(leaf, mesh)

    return jax.tree.map(there, tree)


def is_sharded(leaf: Any) -> bool:
    """Whether an array is cut into parts, by a mesh."""
    sharding = getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated


def in_parts(leaf: Any, mesh: Mesh) -> jax.Array:
    """An array that comes cut into parts, as the mesh's: the same memory where that can be."""
    return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))


def shard_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """A batch cut into as many parts as there are devices.

    The compiler fills up uneven ones, and leaves the filling out.
    """
    if mesh is None:
        return batch
    parts = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, parts), batch)


def _floating(params: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(params) if is_differentiable(leaf)]


def _finite(params: PyTree) -> Bool[Array, "leaves"]:  # noqa: F821
    return jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in _floating(params)], bool)


def _of_the_broken(fine: Any, known: Chunk, again: Chunk) -> Chunk:
    """What was known of runs that are fine now, and what came again of those that are not."""

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
