"""The device's part of training: one compiled program that takes any stretch of an epoch's steps.

Where a stretch begins and ends is traced, so the host can come back after one step or a million without a compilation. The
loop stops by itself behind a step that made the loss or a parameter not finite. To keep the state before each step, in case
that step is the one, would cost up to a quarter of the time; so a stretch that went wrong is taken again, from its beginning
to the step before.
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

from jaxnn._door import (
    describe,
    is_differentiable,
    require_arguments,
    require_arrays,
    require_callable,
    require_same_form,
    require_scalar,
)
from jaxnn.data import shuffled

# Examples that are measured at once.
MEASURED_AT_ONCE = 1000


class State(NamedTuple):
    """What a step changes."""

    params: PyTree
    opt_state: PyTree


class Stretch(NamedTuple):
    """What came of some steps.

    Attributes:
      reached: the number behind the last step that was taken.
      state: after that step.
      finite: whether the loss and each floating leaf of the parameters are finite there.
      losses: entry i is the loss before step i.
    """

    reached: Int[Array, ""]
    state: State
    finite: Bool[Array, "1+leaves"]  # noqa: F821
    losses: Float[Array, "steps"]  # noqa: F821

    def not_finite(self) -> str | None:
        """The name of what was not finite first, if anything was."""
        paths = [keystr(path) for path, leaf in tree_flatten_with_path(self.state.params)[0] if is_differentiable(leaf)]
        names = ["loss", *(f"params{path}" for path in paths)]
        return next((name for name, fine in zip(names, np.asarray(self.finite), strict=True) if not fine), None)


def stepper(loss: Callable, grad: Callable, batch_size: int, rest: int, mesh: Mesh | None) -> Callable:
    """A function that takes a stretch of steps.

    Args:
      loss: `loss(params, *batch)`.
      grad: makes the gradient out of it.
      batch_size: examples a step.
      rest: examples of the smaller step at the end of an epoch; 0 if there is none.
      mesh: devices that share each batch.

    Returns:
      `run(optimizer, state, data, order, start, stop, short)`: a `Stretch` of the steps `start` to `stop` of an order of
      examples, where step i takes the i-th `batch_size` of them; if `short`, the last takes `rest`. It ends behind the first
      step that was not finite.
    """
    require_arguments("grad", grad, loss)
    gradient = grad(loss)
    require_callable("grad(loss)", gradient)
    # Separately, the two would share their forward pass only as far as the compiler sees that they are alike.
    both = jax.value_and_grad(loss) if grad is jax.grad else lambda *args: (loss(*args), gradient(*args))

    def run(optimizer, state, data, order, start, stop, short):
        def step(reached, size):
            i, state, _, losses = reached
            rows = lax.dynamic_slice(order, (i * batch_size,), (size,))
            batch = shared(jax.tree.map(lambda a: a[rows], data), mesh)
            value, slope = both(state.params, *batch)
            require_same_form("grad(loss)(...)", slope, "params", state.params)
            updates, opt_state = optimizer.update(slope, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return Stretch(
                i + 1, State(params, opt_state), jnp.stack([jnp.isfinite(value), *finite(params)]), losses.at[i].set(value)
            )

        def finite(params):
            return [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params) if is_differentiable(leaf)]

        dtype = jax.eval_shape(loss, state.params, *jax.tree.map(lambda a: a[:1], data)).dtype
        fine = jnp.ones(1 + len(finite(state.params)), bool)
        reached = Stretch(start, state, fine, jnp.zeros(-(-order.size // batch_size), dtype))
        last = stop - jnp.astype(short, jnp.int32)
        reached = lax.while_loop(lambda r: (r.reached < last) & jnp.all(r.finite), lambda r: step(r, batch_size), reached)
        if rest:
            reached = lax.cond(short & jnp.all(reached.finite), lambda r: step(r, rest), lambda r: r, reached)
        return reached

    return run


def taken(run: Callable, state: State, *examples: Any, start: Any, stop: Any, short: Any) -> Stretch:
    """A stretch of steps by `run`, with the state after its last good step.

    Under `vmap`, `start`, `stop` and `short` are arrays with one entry a run.
    """

    def latest(told, again):
        """Of a run that was fine again, what was told of it before."""
        return jnp.where(fine.reshape(fine.shape + (1,) * (told.ndim - fine.ndim)), told, again)

    told = None
    while True:  # twice at most, unless the arithmetic differs from time to time, as sums by atomics on a GPU do
        stretch = run(jax.tree.map(jnp.copy, state), *examples, start, stop, short)  # which overwrites its state
        fine = np.asarray(stretch.finite).all(-1)
        now = stretch._replace(state=None)
        told = now if told is None else jax.tree.map(latest, told, now)
        if fine.all():
            return told._replace(state=stretch.state)
        stop, short = np.asarray(stretch.reached) - ~fine, short & fine


def measurer(loss: Callable, metrics: Callable | None, mesh: Mesh | None) -> Callable[[PyTree, PyTree], dict[str, Any]]:
    """A function `(params, data)` of the loss and the metrics on all of `data`: means over the examples."""

    def part(params, batch):
        batch = shared(batch, mesh)
        return {"loss": loss(params, *batch), **(metrics(params, *batch) if metrics else {})}

    def measure(params, data):
        count = jax.tree.leaves(data)[0].shape[0]
        size = min(count, MEASURED_AT_ONCE)
        full, rest = divmod(count, size)

        def at(start):
            return part(params, jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), data))

        means = jax.tree.map(lambda a: jnp.sum(a) * size, lax.map(at, jnp.arange(full) * size))
        if rest:
            last = part(params, jax.tree.map(lambda a: a[full * size :], data))
            means = jax.tree.map(lambda total, a: total + a * rest, means, last)
        return jax.tree.map(lambda total: total / count, means)

    return measure


def loss_first(record: dict[str, Any]) -> dict[str, Any]:
    """A record in the order of a table: compilation sorts the names of a dictionary."""
    return {name: record[name] for name in sorted(record, key=lambda name: name != "loss")}


@functools.lru_cache(maxsize=32)
def compiled(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    grad: Callable,
    metrics: Callable | None,
    batch_size: int,
    rest: int,
    mesh: Mesh | None,
) -> tuple[Callable, Callable]:
    """`run` for one optimiser and `measure`, compiled once for the same functions; `run` takes the place of its state."""
    run = functools.partial(stepper(loss, grad, batch_size, rest, mesh), optimizer)
    return jax.jit(run, donate_argnums=0), jax.jit(measurer(loss, metrics, mesh))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def order_of_epoch(key: Key[Array, ""], epoch: Any, count: int, size: int, replacement: bool) -> Int[Array, "examples"]:  # noqa: F821
    """Which examples an epoch uses, in which order: a function of the key and the epoch's number alone."""
    key = jax.random.fold_in(key, epoch)
    return jax.random.randint(key, (size,), 0, count, jnp.int32) if replacement else shuffled(key, count)


def placed(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays of our own, on the default device or whole on each device of a mesh."""

    def place(leaf):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if mesh is None:
            return jnp.array(leaf, getattr(leaf, "dtype", None))  # with a dtype said, it is not a weak type
        leaf = np.asarray(leaf)
        return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), leaf, leaf.shape)

    return jax.tree.map(place, tree)


def shared(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """A batch cut into as many parts as there are devices; the compiler fills up uneven ones and leaves the filling out."""
    if mesh is None:
        return batch
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, NamedSharding(mesh, PartitionSpec(mesh.axis_names))), batch)


def require_scalars(loss: Callable, metrics: Callable | None, params: PyTree, data: PyTree) -> None:
    """Refuse a loss or metrics that do not return scalars."""
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)[1:]), a.dtype), data)
    require_arguments("loss", loss, params, *batch)
    require_scalar("loss", jax.eval_shape(_of_arrays("loss", loss), params, *batch))
    if metrics is not None:
        require_arguments("metrics", metrics, params, *batch)
        record = jax.eval_shape(_of_arrays("metrics", metrics), params, *batch)
        if not isinstance(record, dict) or any(getattr(v, "shape", None) != () for v in record.values()):
            raise TypeError(f"`metrics` must return a dictionary of scalars. Got {jax.tree.map(describe, record)}.")
        if "loss" in record:
            raise ValueError(f"`metrics` must leave the name 'loss' to the loss. Got {sorted(record)}.")
        for name, value in record.items():
            if jnp.issubdtype(value.dtype, jnp.complexfloating):
                raise TypeError(f"`metrics(...)[{name!r}]` must be real. Got {describe(value)}.")


def _of_arrays(name, function):
    """The function, which refuses to return anything but arrays, and dictionaries by anything but names."""

    def call(*args):
        value = function(*args)
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise TypeError(f"`{name}(...)` must have strings for its keys. Got {list(value)}.")
        require_arrays(f"{name}(...)", value)
        return value

    return call
