"""Descent: following the negative gradient of a function, as one compiled loop on the device.

The loss and the gradient come in as functions (`grad=jax.grad`, or `grad=numerical_grad`); the
point is any pytree, whose floating and complex leaves move and whose other leaves stay. `lr` and
`step_num` are traced, so other values compile nothing. As under `jax.jit`, a function is compiled
once per function object: pass data that changes by a new function.
"""

import enum
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxnn._arguments import Skeleton, take_apart
from jaxnn._programs import compiled
from jaxnn._validate import (
    is_concrete,
    require_arguments,
    require_callable,
    require_count,
    require_differentiable,
    require_number,
    require_optimizer,
    require_same_form,
    require_scalar,
)

Loss = Callable[[Any], Float[Array, ""]]


class DivergenceWarning(RuntimeWarning):
    """The loss ended above where it began, or is not finite.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     end = gradient_descent(lambda x: jnp.sum(x**2), jnp.array([-3.0, 4.0]), lr=10.0)
      >>> caught[0].category.__name__
      'DivergenceWarning'
    """


def gradient_descent(
    f: Loss,
    init_x: PyTree,
    lr: float | Float[Array, ""] = 0.01,
    step_num: int | Int[Array, ""] = 100,
    *,
    grad: Callable = jax.grad,
) -> PyTree:
    """`step_num` steps of x <- x - lr df/dx from `init_x`, in one jitted `lax.fori_loop`.

    Args:
      f: a scalar function of `init_x`'s structure.
      init_x: where to start; any pytree. It is not overwritten.
      lr: learning rate, in the unit of x^2 over that of f.
      step_num: number of steps.
      grad: makes the gradient out of `f`: `jax.grad`, `numerical_grad`, or anything with their
        calling form.

    Returns:
      Where the descent ends, like `init_x`.

    Raises:
      TypeError: `init_x` has no floating leaf, `step_num` is not an integer.
      ValueError: `lr` is not finite, `step_num` is negative.

    Warns:
      DivergenceWarning: the loss at the end is above that at the start, or not finite. Not seen
        under `jit` or `vmap`, where values cannot be looked at: there, compare f at both ends, or
        take `descent_path`.

    Source:
      the chapter, 4.4.1.

    Example:
      >>> f, start = lambda x: jnp.sum(x**2), jnp.array([-3.0, 4.0])
      >>> end = gradient_descent(f, start, lr=0.1, step_num=100)
      >>> [f"{x:.4e}" for x in end]
      ['-6.1111e-10', '8.1481e-10']
    """
    _require_descent(f, init_x, lr, grad)
    require_count("step_num", step_num, most=2**31 - 1)
    steps = step_num if not is_concrete(step_num) else np.int32(step_num)
    skeleton, points, dynamic = take_apart(init_x)
    descend = functools.partial(_descend, f, grad, skeleton)
    given = points, dynamic, _typed(lr, points), steps
    end, before, after, lower = compiled(descend, *given)
    if is_concrete(lower) and not bool(lower):
        warnings.warn(
            f"gradient_descent diverged: the loss went from {float(before):.6g} to "
            f"{float(after):.6g} in {int(step_num)} "
            f"steps with lr={float(lr):g}; a smaller `lr` may converge.",
            DivergenceWarning,
            stacklevel=2,
        )
    return skeleton.join(end, dynamic)


class DescentPath(NamedTuple):
    """Every point of a descent and the loss there.

    Attributes:
      points: like `init_x`, arrays with a first axis of step_num + 1: the start first, the end
        last.
      losses: f at each point; one axis of step_num + 1.

    Example:
      >>> path = descent_path(lambda x: jnp.sum(x**2), jnp.array([1.0]), 0.25, 2)
      >>> path.points[:, 0], path.losses
      (Array([1.  , 0.5 , 0.25], dtype=float32), Array([1.    , 0.25  , 0.0625], dtype=float32))
    """

    points: PyTree
    losses: Float[Array, "points"]  # noqa: F821


def descent_path(
    f: Loss,
    init_x: PyTree,
    lr: float | Float[Array, ""] = 0.01,
    step_num: int = 100,
    *,
    grad: Callable = jax.grad,
) -> DescentPath:
    """As `gradient_descent`, but every point and its loss are kept, through one jitted `lax.scan`.

    Args:
      f: a scalar function of `init_x`'s structure.
      init_x: where to start.
      lr: learning rate; traced.
      step_num: number of steps. It decides the shape of the result, so another one compiles again.
      grad: makes the gradient out of `f`.

    Returns:
      A `DescentPath`.

    Raises:
      TypeError: `init_x` has no floating leaf, `step_num` is not an integer.
      ValueError: `lr` is not finite, `step_num` is negative.

    Source:
      the chapter, 4.4.1.

    Example:
      >>> f, start = lambda x: jnp.sum(x**2), jnp.array([-3.0, 4.0])
      >>> descent_path(f, start, lr=0.1, step_num=2).losses.round(2)
      Array([25.  , 16.  , 10.24], dtype=float32)
    """
    _require_descent(f, init_x, lr, grad)
    require_count("step_num", step_num, most=2**31 - 2)
    skeleton, points, dynamic = take_apart(init_x)
    follow = functools.partial(_follow, f, grad, skeleton, int(step_num))
    points, losses = compiled(follow, points, dynamic, _typed(lr, points))
    fixed = [jnp.broadcast_to(x, (step_num + 1, *x.shape)) for x in dynamic]
    return DescentPath(skeleton.join(points, fixed), losses)


class Stop(enum.IntEnum):
    """Why `minimize` ended: a small gradient, max_steps, or values that are not finite.

    Example:
      >>> [stop.name for stop in Stop]
      ['SMALL_GRADIENT', 'MAX_STEPS', 'NOT_FINITE']
    """

    SMALL_GRADIENT = 0
    MAX_STEPS = 1
    NOT_FINITE = 2


class Minimum(NamedTuple):
    """Where `minimize` ended, and why.

    Attributes:
      x: the last point at which the loss and its gradient are finite (the start, if they never
        were).
      loss: f at that point.
      grad_norm: the Euclidean norm of its gradient there.
      steps: how many steps were taken.
      status: a `Stop`, as an integer array.
      opt_state: the optimiser's state, to go on with.

    Example:
      >>> minimize(lambda x: jnp.sum(x**2), jnp.array([1.0]), optax.sgd(0.1), max_steps=3).reason
      'max steps'
    """

    x: PyTree
    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    opt_state: PyTree

    def __repr__(self) -> str:
        known = isinstance(self.status, jax.Array | np.ndarray) and is_concrete(self)
        if not known or np.ndim(self.status):  # traced, or several of them
            return tuple.__repr__(self)
        told = f"loss {float(self.loss):.4g}, gradient norm {float(self.grad_norm):.2g}"
        return f"<Minimum: {self.reason} after {int(self.steps)} steps; {told}>"

    @property
    def reason(self) -> str:
        """The status in words."""
        return Stop(int(self.status)).name.lower().replace("_", " ")


def minimize(
    f: Loss,
    init_x: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    max_steps: int | Int[Array, ""] = 1000,
    tolerance: float | Float[Array, ""] = 1e-6,
    grad: Callable = jax.grad,
    opt_state: PyTree | None = None,
) -> Minimum:
    """Minimise with an optax optimiser in one jitted `lax.while_loop`, until there is a reason to
    stop.

    Args:
      f: a scalar function of `init_x`'s structure.
      init_x: where to start; any pytree. It is not overwritten.
      optimizer: from optax. Keep the object: a new one, though equal, compiles again.
      max_steps: stop after so many steps; traced.
      tolerance: stop when the Euclidean norm of the gradient is at most this; traced, in the unit
        of f over that of x. The default may be below what float32 can reach, where the
        gradient is large beside it all around the minimum: it ends with "max steps" then.
      grad: makes the gradient out of `f`.
      opt_state: a state to go on from; `optimizer.init` of the leaves that move by default.

    Returns:
      A `Minimum`; its `status` says which of small gradient, max_steps or not-finite values ended
      it.

    Raises:
      TypeError: `init_x` has no floating leaf, `max_steps` is not an integer.
      ValueError: `tolerance` is not finite, `max_steps` is negative.

    Example:
      >>> minimize(lambda x: jnp.sum(x**2), jnp.array([-3.0, 4.0]), optax.sgd(0.1)).reason
      'small gradient'
    """
    _require_descent(f, init_x, tolerance, grad, "tolerance")
    require_count("max_steps", max_steps, most=2**31 - 1)
    require_optimizer("optimizer", optimizer)
    skeleton, points, dynamic = take_apart(init_x)
    if opt_state is None:
        opt_state = optimizer.init(points)
    else:
        shapes = jax.eval_shape(optimizer.init, points)
        require_same_form("opt_state", opt_state, "optimizer.init(...)", shapes)
    most = np.int32(max_steps) if is_concrete(max_steps) else max_steps
    extra = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    minimise = functools.partial(_minimise, f, grad, optimizer.update, extra, skeleton)
    given = points, dynamic, opt_state, most, _typed(tolerance, points)
    found = compiled(minimise, *given)
    return found._replace(x=skeleton.join(found.x, dynamic))


def _descend(
    f: Callable, grad: Callable, skeleton: Skeleton, start: Any, dynamic: Any, lr: Any, steps: Any
) -> tuple[Any, Any, Any, Any]:
    """The end of a descent, the loss before and after, and whether it is lower."""
    value, gradient = _value_and_gradient(f, grad, skeleton, dynamic)
    step = lambda _, x: _step(x, gradient(x), lr)  # noqa: E731
    end = jax.lax.fori_loop(0, steps, step, start)
    before, after = value(start), value(end)
    return end, before, after, after <= before


def _follow(
    f: Callable, grad: Callable, skeleton: Skeleton, steps: int, start: Any, dynamic: Any, lr: Any
) -> tuple[Any, Any]:
    """Every point of a descent, and the losses there."""
    value, gradient = _value_and_gradient(f, grad, skeleton, dynamic)

    def body(x, _):
        new = _step(x, gradient(x), lr)
        return new, (new, value(new))

    _, (points, losses) = jax.lax.scan(body, start, length=steps)
    pairs = zip(start, points, strict=True)
    points = [jnp.concatenate([x[None], later]) for x, later in pairs]
    return points, jnp.concatenate([value(start)[None], losses])


class _Look(NamedTuple):
    """A point of a minimisation, and what is known there."""

    x: list[Any]
    loss: Any
    gradient: list[Any]
    norm: Any
    opt_state: Any


def _minimise(
    f: Callable,
    grad: Callable,
    update: Callable,
    extra: bool,
    skeleton: Skeleton,
    start: Any,
    dynamic: Any,
    opt_state: Any,
    max_steps: Any,
    tolerance: Any,
) -> Minimum:
    """Where an optimiser ends; `extra`: whether its `update` takes the loss and its gradient."""
    value, gradient = _value_and_gradient(f, grad, skeleton, dynamic)

    def look(x, opt_state):
        g = gradient(x)
        return _Look(x, value(x), g, optax.tree.norm(g), opt_state)

    def going(carry):
        at, steps, finite = carry
        return finite & (at.norm > tolerance) & (steps < max_steps)

    def step(carry):
        at, steps, _ = carry
        more = {"value": at.loss, "grad": at.gradient, "value_fn": value} if extra else {}
        updates, opt_state = update(at.gradient, at.opt_state, at.x, **more)
        new = look(optax.apply_updates(at.x, updates), opt_state)
        finite = jnp.isfinite(new.loss) & jnp.isfinite(new.norm) & _all_finite(new.x)
        last = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, at)
        return last, steps + 1, finite

    first = look(start, opt_state)
    finite = jnp.isfinite(first.loss) & jnp.isfinite(first.norm)
    carry = first, jnp.zeros((), jnp.int32), finite
    at, steps, finite = jax.lax.while_loop(going, step, carry)
    status = jnp.where(at.norm <= tolerance, Stop.SMALL_GRADIENT, Stop.MAX_STEPS)
    status = jnp.where(finite, status, Stop.NOT_FINITE).astype(jnp.int32)
    return Minimum(at.x, at.loss, at.norm, steps, status, at.opt_state)


def _value_and_gradient(
    f: Callable, grad: Callable, skeleton: Skeleton, dynamic: Sequence[Any]
) -> tuple[Callable, Callable]:
    """The loss and its gradient as functions of the leaves that move, their results checked."""

    def value(x):
        out = f(skeleton.join(x, dynamic))
        require_scalar("f", out)
        return jnp.asarray(out)

    gradient = grad(value)
    require_callable("grad(f)", gradient)

    def checked(x):
        g = gradient(x)
        g = list(g) if isinstance(g, tuple) else g
        require_same_form("grad(f)(...)", g, "init_x", x)
        return g

    return value, checked


def _step(x: Sequence[jax.Array], gradient: Sequence[jax.Array], lr: Any) -> list[jax.Array]:
    return [
        leaf - lr.astype(leaf.dtype) * g.astype(leaf.dtype)
        for leaf, g in zip(x, gradient, strict=True)
    ]


def _all_finite(leaves: Sequence[jax.Array]) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _typed(number: Any, points: Sequence[Any]) -> Any:
    """A number with the points' widest dtype: a Python float beside them would compile twice."""
    dtype = jnp.result_type(*points)
    return np.asarray(number, dtype) if is_concrete(number) else jnp.asarray(number, dtype)


def _require_descent(
    f: Callable, init_x: PyTree, number: Any, grad: Callable, name: str = "lr"
) -> None:
    require_callable("f", f)
    require_differentiable("init_x", init_x)
    require_arguments("f", f, init_x)
    require_arguments("grad", grad, f)
    require_number(name, number, dtype=jnp.result_type(*take_apart(init_x)[1]))
