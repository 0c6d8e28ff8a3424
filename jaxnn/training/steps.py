"""The device's part of training: one compiled program that takes any chunk of an epoch's steps.

Where a chunk begins and ends is traced, so the host can come back after one step or a million
without a compilation. The loop stops by itself behind a step that made the loss or a parameter not
finite. To keep the state before each step, in case that step is the one, would cost up to a quarter
of the time; so a chunk that went wrong is taken again, from its beginning to the step before.
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

from jaxnn._programs import kept
from jaxnn._validate import is_differentiable, is_key
from jaxnn.data import shuffled
from jaxnn.training.objective import Objective


class State(NamedTuple):
    """What a step changes: parameters, the optimiser's state, and the model's own if it has one."""

    params: PyTree
    opt_state: PyTree
    model_state: PyTree = None


class Plan(NamedTuple):
    """How the epochs of a run are cut into steps.

    Attributes:
      count: how many examples there are.
      batch_size: of a step.
      epochs: how many there are.
      replacement: whether each batch is drawn from all examples.
      most: the number of steps after which the run ends, if epochs do not end it before.
    """

    count: int
    batch_size: int
    epochs: int
    replacement: bool
    most: int | None = None

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return -(-self.count // self.batch_size)

    @property
    def rest(self) -> int:
        """Examples of the smaller step at the end of an epoch; 0 if there is none."""
        return 0 if self.replacement else self.count % self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        steps = self.per_epoch * self.epochs
        return steps if self.most is None else min(steps, self.most)

    @property
    def whole(self) -> bool:
        """Whether a step takes all examples, each once, so that their order means nothing."""
        return self.per_epoch == 1 and not self.replacement

    def key_of(self, key: Key[Array, ""], epoch: Any) -> Key[Array, ""]:
        """An epoch's key, of which its order is drawn, and the keys of its steps; 0 is that of what
        is measured.
        """
        return jax.random.fold_in(key, epoch)

    def order(self, key: Key[Array, ""], epoch: Any) -> Int[Array, "examples"]:  # noqa: F821
        """Which examples an epoch uses, in which order: from the key and its number alone."""
        if self.whole:
            return jnp.arange(self.count, dtype=jnp.int32)
        size = self.per_epoch * self.batch_size
        return _order_of_epoch(key, epoch, self.count, size, self.replacement)


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


def make_chunk(
    objective: Objective,
    extra: bool,
    batch_size: int,
    rest: int,
    mesh: Mesh | None,
    whole: bool = False,
) -> Callable[..., Chunk]:
    """A function that takes a chunk of steps.

    Args:
      objective: what is minimised.
      extra: whether the optimiser takes the loss, its gradient and its function besides.
      batch_size: examples a step.
      rest: examples of the smaller step at the end of an epoch; 0 if there is none.
      mesh: devices that share each batch.
      whole: whether a step takes all examples as they are.

    Returns:
      `take(update, state, data, order, key, first, start, stop, short)`: a `Chunk` of the steps
      `start` to `stop` of an order of examples, where step i takes the i-th `batch_size` of them;
      if `short`, the last takes `rest`. The key of step i is number `first` + i of the epoch's
      `key`. It ends behind the first step that was not finite. `update` is the optimiser's.
    """
    skeleton = objective.skeleton

    def take(update, state, data, order, key, first, start, stop, short):
        key_of = lambda i: jax.random.fold_in(key, first + i) if objective.form.keyed else None  # noqa: E731

        def step(chunk, size):
            i, state = chunk.reached, chunk.state
            batch = data
            if not whole:
                rows = lax.dynamic_slice(order, (i * batch_size,), (size,))
                batch = jax.tree.map(lambda a: a[rows], data)
            batch = tuple(shard_batch(batch, mesh))
            given = state.model_state, key_of(i), batch
            value, gradient, model_state, aux = objective.value_and_gradient(state.params, *given)
            moving, held = skeleton.split(state.params)
            more = {}
            if extra:
                of_moving = lambda p: objective.value(skeleton.merge(p, held), *given)[0]  # noqa: E731
                more = {"value": value, "grad": gradient, "value_fn": of_moving}
            updates, opt_state = update(gradient, state.opt_state, moving, **more)
            params = skeleton.merge(optax.apply_updates(moving, updates), held)
            finite = jnp.stack([jnp.isfinite(value), *_finite(params)])
            losses = chunk.losses.at[i].set(value)
            aux = {name: chunk.aux[name].at[i].set(x) for name, x in aux.items()}
            return Chunk(i + 1, State(params, opt_state, model_state), finite, losses, aux)

        one = jax.tree.map(lambda a: a[:1], data)
        value, (_, aux) = jax.eval_shape(
            lambda p, s, i, batch: objective.value(p, s, key_of(i), batch),
            state.params,
            state.model_state,
            np.int32(0),
            tuple(one),
        )
        fine = jnp.ones(1 + len(_finite(state.params)), bool)
        steps = -(-order.size // batch_size)
        losses, *_ = noted = [jnp.zeros(steps, x.dtype) for x in (value, *aux.values())]
        chunk = Chunk(start, state, fine, losses, dict(zip(aux, noted[1:], strict=True)))
        last = stop - jnp.astype(short, jnp.int32)
        going = lambda c: (c.reached < last) & jnp.all(c.finite)  # noqa: E731
        chunk = lax.while_loop(going, lambda c: step(c, batch_size), chunk)
        if rest:
            due = short & jnp.all(chunk.finite)
            chunk = lax.cond(due, lambda c: step(c, rest), lambda c: c, chunk)
        return chunk

    return take


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
    take: Callable[..., Chunk], state: State, *examples: Any, start: Any, stop: Any, short: Any
) -> Chunk:
    """A chunk of steps by `take`, with the state after its last good step.

    Under `vmap`, `start`, `stop` and `short` are arrays with one entry a run.
    """
    known = None
    while True:  # twice at most, unless the arithmetic differs from time to time, as on a GPU
        chunk = take(jax.tree.map(jnp.copy, state), *examples, start, stop, short)
        fine = np.all(np.asarray(chunk.finite), axis=-1)
        outcome = chunk._replace(state=None)
        known = outcome if known is None else _of_the_broken(fine, known, outcome)
        if fine.all():
            return known._replace(state=chunk.state)
        stop, short = np.asarray(chunk.reached) - ~fine, short & fine


def make_evaluate(
    objective: Objective, batch_size: int, mesh: Mesh | None
) -> Callable[..., dict[str, Any]]:
    """A function `(params, model_state, key, data)` of the loss and the metrics on all of `data`,
    as means, taken `batch_size` examples at a time.
    """

    def evaluate(params, model_state, key, data):
        count = jax.tree.leaves(data)[0].shape[0]
        size = min(count, batch_size)
        full, rest = divmod(count, size)

        def of(data):
            batch = tuple(shard_batch(data, mesh))
            return objective.measured(params, model_state, key, batch)

        def at(start):
            return of(jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), data))

        starts = jnp.arange(full) * size
        sums = jax.tree.map(lambda a: jnp.sum(a, 0) * size, lax.map(at, starts))
        if rest:
            last = of(jax.tree.map(lambda a: a[full * size :], data))
            sums = jax.tree.map(lambda total, a: total + a * rest, sums, last)
        return jax.tree.map(lambda total: total / count, sums)

    return evaluate


def loss_first(record: dict[str, Any]) -> dict[str, Any]:
    """A record in the order of a table: compilation sorts the names of a dictionary."""
    return {name: record[name] for name in sorted(record, key=lambda name: name != "loss")}


def compiled(
    objective: Objective, optimizer: Any, plan: Plan, mesh: Mesh | None, across: bool
) -> tuple[Callable[..., Chunk], Callable]:
    """`take` for one optimiser, which takes the place of its state, or takes steps `across` epochs;
    and `evaluate`; kept.
    """
    extra = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    shape = plan._replace(epochs=0, most=None)
    return kept(_compiled, objective, optimizer.update, extra, shape, mesh, across)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays of our own, on the default device or whole on each device of a mesh."""

    def place(leaf):
        if is_key(leaf):
            data = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if mesh is None:
            return jnp.array(leaf, getattr(leaf, "dtype", None))  # with a dtype, no weak type
        leaf, everywhere = np.asarray(leaf), NamedSharding(mesh, PartitionSpec())
        return jax.make_array_from_process_local_data(everywhere, leaf, leaf.shape)

    return jax.tree.map(place, tree)


def shard_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """A batch cut into as many parts as there are devices.

    The compiler fills up uneven ones, and leaves the filling out.
    """
    if mesh is None:
        return batch
    parts = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, parts), batch)


def _compiled(
    objective: Objective,
    update: Callable,
    extra: bool,
    plan: Plan,
    mesh: Mesh | None,
    across: bool,
) -> tuple[Callable[..., Chunk], Callable]:
    take = make_chunk(objective, extra, plan.batch_size, plan.rest, mesh, plan.whole)
    take = functools.partial(make_stretch(take, plan) if across else take, update)
    evaluate = make_evaluate(objective, plan.batch_size, mesh)
    return jax.jit(take, donate_argnums=0), jax.jit(evaluate)


def _finite(params: PyTree) -> list[Bool[Array, ""]]:
    leaves = [leaf for leaf in jax.tree.leaves(params) if is_differentiable(leaf)]
    return [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]


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
