"""Gradient descent on a function, as one compiled loop on the device.

Callers choose the gradient (`grad=jax.grad` or `grad=numerical_grad`). The point is any pytree: its
floating and complex leaves move, its other leaves are constant. `lr` and `step_num` are traced, so
new values do not recompile. A function is traced at each call, but functions that trace to the same
program are compiled only once.
"""

import enum
import functools
import inspect
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxnn._arguments import Skeleton, take_apart
from jaxnn._notebook import paragraph
from jaxnn._programs import Jitted, programs_of
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
    tracing,
)

Loss = Callable[[Any], Float[Array, ""]]


def is_automatic(grad: Callable) -> bool:
    """Whether it is `jax.grad`, which is wrapped while gradients are watched."""
    return grad in (jax.grad, getattr(jax.grad, "__wrapped__", None))


class DivergenceWarning(RuntimeWarning):
    """The loss rose in a descent, more than doubled in a run of `fit`, or is not finite.

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
    """Take `step_num` steps x <- x - lr df/dx from `init_x`, in one jitted `lax.fori_loop`.

    Args:
      f: a scalar function of a pytree like `init_x`.
      init_x: the starting point; any pytree. It is not overwritten.
      lr: learning rate, in units of x^2 per unit of f.
      step_num: number of steps.
      grad: maps `f` to its gradient function: `jax.grad`, `numerical_grad`, or anything with their
        signature.

    Returns:
      The last point, in the structure of `init_x`.

    Raises:
      TypeError: `init_x` has no floating-point leaf, or `step_num` is not an integer.
      ValueError: `lr` is not finite, or `step_num` is negative.

    Warns:
      DivergenceWarning: the last loss is above the first or not finite. There is no warning under
        `jit` or `vmap`, where values are unknown; there, compare f at both ends or use
        `descent_path`.

    Source:
      the chapter, 4.4.1.

    Example:
      >>> f, start = lambda x: jnp.sum(x**2), jnp.array([-3.0, 4.0])
      >>> end = gradient_descent(f, start, lr=0.1, step_num=100)
      >>> [f"{x:.4e}" for x in end]
      ['-6.1111e-10', '8.1481e-10']
    """
    problem, points, dynamic = _require_descent(f, init_x, lr, grad)
    require_count("step_num", step_num, most=2**31 - 1)
    steps = step_num if not is_concrete(step_num) else np.int32(step_num)
    descend = functools.partial(_descend, problem)
    given = points, dynamic, _typed(lr, points), steps
    end, before, after, lower = Jitted(descend, programs=problem.programs(f, "descend"))(*given)
    if is_concrete(lower) and not bool(lower):
        warnings.warn(
            f"gradient_descent diverged: the loss went from {float(before):.6g} to "
            f"{float(after):.6g} by step {int(step_num)} "
            f"with lr={float(lr):g}; "
            + ("a smaller `lr` may help." if lr > 0 else "a negative `lr` goes uphill."),
            DivergenceWarning,
            stacklevel=2,
        )
    return problem.skeleton.join(end, dynamic)


def _is_plain(x: Any, ndim: int) -> bool:
    """Whether a result's array is neither traced nor batched."""
    return isinstance(x, jax.Array | np.ndarray) and is_concrete(x) and x.ndim == ndim


class DescentPath(NamedTuple):
    """Every point of a descent and its loss.

    Attributes:
      points: like `init_x`, with a leading axis of step_num + 1, from the first point to the last.
      losses: f at each point, an array of length step_num + 1.

    Example:
      >>> path = descent_path(lambda x: jnp.sum(x**2), jnp.array([1.0]), 0.25, 2)
      >>> path.points[:, 0], path.losses
      (Array([1.  , 0.5 , 0.25], dtype=float32), Array([1.    , 0.25  , 0.0625], dtype=float32))
    """

    points: PyTree
    losses: Float[Array, "points"]  # noqa: F821

    def __repr__(self) -> str:
        if not _is_plain(self.losses, 1):
            return tuple.__repr__(self)
        first, last = map(float, (self.losses[0], self.losses[-1]))
        return f"<DescentPath: steps {len(self.losses) - 1}; loss {first:.4g} to {last:.4g}>"

    _repr_html_ = paragraph


def descent_path(
    f: Loss,
    init_x: PyTree,
    lr: float | Float[Array, ""] = 0.01,
    step_num: int = 100,
    *,
    grad: Callable = jax.grad,
) -> DescentPath:
    """Run `gradient_descent` and keep every point and its loss, in one jitted `lax.scan`.

    Args:
      f: a scalar function of a pytree like `init_x`.
      init_x: the starting point.
      lr: learning rate; traced.
      step_num: number of steps. It sets the shape of the result, so a new value recompiles.
      grad: maps `f` to its gradient function.

    Returns:
      A `DescentPath`.

    Raises:
      TypeError: `init_x` has no floating-point leaf, or `step_num` is not an integer.
      ValueError: `lr` is not finite, or `step_num` is negative.

    Source:
      the chapter, 4.4.1.

    Example:
      >>> f, start = lambda x: jnp.sum(x**2), jnp.array([-3.0, 4.0])
      >>> descent_path(f, start, lr=0.1, step_num=2).losses.round(2)
      Array([25.  , 16.  , 10.24], dtype=float32)
    """
    problem, points, dynamic = _require_descent(f, init_x, lr, grad)
    require_count("step_num", step_num, most=2**31 - 2)
    follow = functools.partial(_follow, problem, int(step_num))
    programs = problem.programs(f, "follow", int(step_num))
    given = points, dynamic, _typed(lr, points)
    points, losses = Jitted(follow, programs=programs)(*given)
    fixed = [jnp.broadcast_to(x, (step_num + 1, *x.shape)) for x in dynamic]
    return DescentPath(problem.skeleton.join(points, fixed), losses)


class Stop(enum.IntEnum):
    """Why `minimize` stopped: a small gradient, max_steps, or values that are not finite.

    Example:
      >>> [stop.name for stop in Stop]
      ['SMALL_GRADIENT', 'MAX_STEPS', 'NOT_FINITE']
    """

    SMALL_GRADIENT = 0
    MAX_STEPS = 1
    NOT_FINITE = 2


class Minimum(NamedTuple):
    """The result of `minimize`.

    Attributes:
      x: the last point at which the loss and its gradient are finite (the starting point if they
        never were).
      loss: f at that point.
      grad_norm: the Euclidean norm of the gradient at that point.
      steps: number of steps taken.
      status: a `Stop`, as an integer array.
      opt_state: the optimiser's state, from which a later call can continue.

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
        if not _is_plain(self.status, 0):
            return tuple.__repr__(self)
        told = f"loss {float(self.loss):.4g}, gradient norm {float(self.grad_norm):.2g}"
        return f"<Minimum: {self.reason} at step {int(self.steps)}; {told}>"

    _repr_html_ = paragraph

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
    """Minimise `f` with an optax optimiser, in one jitted `lax.while_loop`.

    Args:
      f: a scalar function of a pytree like `init_x`.
      init_x: the starting point; any pytree. It is not overwritten.
      optimizer: from optax.
      max_steps: maximum number of steps; traced.
      tolerance: stop once the Euclidean norm of the gradient is at most this; traced, in units of
        f per unit of x. Rounding error in float32 can keep the norm above the default
        everywhere near the minimum; the status is then "max steps".
      grad: maps `f` to its gradient function.
      opt_state: the state to continue from; by default `optimizer.init` of the leaves that move.

    Returns:
      A `Minimum`, whose `status` says why the loop stopped.

    Raises:
      TypeError: `init_x` has no floating-point leaf, or `max_steps` is not an integer.
      ValueError: `tolerance` is not finite, or `max_steps` is negative.

    Example:
      >>> minimize(lambda x: jnp.sum(x**2), jnp.array([-3.0, 4.0]), optax.sgd(0.1)).reason
      'small gradient'
    """
    problem, points, dynamic = _require_descent(f, init_x, tolerance, grad, "tolerance")
    require_count("max_steps", max_steps, most=2**31 - 1)
    require_optimizer("optimizer", optimizer)
    if opt_state is None:
        opt_state = optimizer.init(points)
    else:
        shapes = jax.eval_shape(optimizer.init, points)
        require_same_form("opt_state", opt_state, "optimizer.init(...)", shapes)
    most = np.int32(max_steps) if is_concrete(max_steps) else max_steps
    minimise = functools.partial(_minimise, problem, optimizer)
    given = points, dynamic, opt_state, (most, _typed(tolerance, points))
    programs = problem.programs(optimizer.update, "minimise")
    found = Jitted(minimise, programs=programs)(*given)
    return found._replace(x=problem.skeleton.join(found.x, dynamic))


class _Problem(NamedTuple):
    """A loss, what makes its gradient, and the skeleton of its argument."""

    f: Callable
    grad: Callable
    skeleton: Skeleton

    def programs(self, other: Callable, *key: Hashable) -> dict | None:
        """Where programs of a jitted loss and its automatic gradient are kept."""
        key = *key, self.skeleton.key
        return programs_of(self.f, other, *key) if is_automatic(self.grad) else None

    def functions(self, dynamic: Sequence[Any]) -> tuple[Callable, Callable]:
        """The loss and its gradient as functions of the leaves that move, with checked results."""

        def value(x):
            with tracing("f"):
                out = self.f(self.skeleton.join(x, dynamic))
            require_scalar("f", out)
            return jnp.asarray(out)

        value.__name__ = getattr(self.f, "__name__", "f")  # for reports
        # As bound now: a default was bound before `jax.grad` was watched.
        gradient = (jax.grad if is_automatic(self.grad) else self.grad)(value)
        require_callable("grad(f)", gradient)

        def checked(x):
            g = gradient(x)
            g = list(g) if isinstance(g, tuple) else g
            require_same_form("grad(f)(...)", g, "init_x", x)
            return g

        return value, checked


def _descend(
    problem: _Problem, start: Any, dynamic: Any, lr: Any, steps: Any
) -> tuple[Any, Any, Any, Any]:
    """The last point, the loss before and after, and whether it did not rise."""
    value, gradient = problem.functions(dynamic)
    step = lambda _, x: _step(x, gradient(x), lr)  # noqa: E731
    end = jax.lax.fori_loop(0, steps, step, start)
    before, after = value(start), value(end)
    return end, before, after, after <= before


def _follow(problem: _Problem, steps: int, start: Any, dynamic: Any, lr: Any) -> tuple[Any, Any]:
    """Every point of a descent, and its losses."""
    value, gradient = problem.functions(dynamic)

    def body(x, _):
        new = _step(x, gradient(x), lr)
        return new, (new, value(new))

    _, (points, losses) = jax.lax.scan(body, start, length=steps)
    pairs = zip(start, points, strict=True)
    points = [jnp.concatenate([x[None], later]) for x, later in pairs]
    return points, jnp.concatenate([value(start)[None], losses])


class _Look(NamedTuple):
    """A point of a minimisation, with its loss, gradient and optimiser state."""

    x: list[Any]
    loss: Any
    gradient: list[Any]
    norm: Any
    opt_state: Any


def _minimise(
    problem: _Problem, optimizer: Any, start: Any, dynamic: Any, opt_state: Any, limits: Any
) -> Minimum:
    """The `Minimum`; the limits are the most steps, and the tolerance."""
    (value, gradient), (max_steps, tolerance) = problem.functions(dynamic), limits

    def look(x, opt_state):
        g = gradient(x)
        return _Look(x, value(x), g, optax.tree.norm(g), opt_state)

    def going(carry):
        at, steps, finite = carry
        return finite & (at.norm > tolerance) & (steps < max_steps)

    def step(carry):
        at, steps, _ = carry
        updates, opt_state = updated(optimizer, at.opt_state, at.x, at.loss, at.gradient, value)
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


def updated(
    optimizer: Any,
    opt_state: PyTree,
    params: PyTree,
    value: Any,
    gradient: PyTree,
    value_fn: Callable[[PyTree], Any],
) -> tuple[PyTree, PyTree]:
    """The updates and the new state of an optimiser. It gets the loss and its gradient, as values
    and as functions, under optax's names for them, as far as it accepts these.
    """
    # A line search wants a function that takes each keyword that the optimiser gets.
    of_params = lambda params, obj_fn=None, grad_fn=None: value_fn(params)  # noqa: E731
    grad_fn = lambda params, *_: jax.grad(value_fn)(params)  # noqa: E731
    more = {"value": value, "grad": gradient, "value_fn": of_params}
    more |= {"obj_fn": value_fn, "grad_fn": grad_fn}
    taken = inspect.signature(optimizer.update).parameters.values()
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in taken):
        more = {p.name: more[p.name] for p in taken if p.name in more}
    return optimizer.update(gradient, opt_state, params, **more)


def _step(x: Sequence[jax.Array], gradient: Sequence[jax.Array], lr: Any) -> list[jax.Array]:
    return [
        leaf - lr.astype(leaf.dtype) * g.astype(leaf.dtype)
        for leaf, g in zip(x, gradient, strict=True)
    ]


def _all_finite(leaves: Sequence[jax.Array]) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _typed(number: Any, points: Sequence[Any]) -> Any:
    """A number in the widest dtype of the points; a Python float would compile a second time."""
    dtype = jnp.result_type(*points)
    return np.asarray(number, dtype) if is_concrete(number) else jnp.asarray(number, dtype)


def _require_descent(
    f: Callable, init_x: PyTree, number: Any, grad: Callable, name: str = "lr"
) -> tuple[_Problem, list[jax.Array], list[jax.Array]]:
    """The problem, and the starting point's leaves, after refusing invalid arguments."""
    require_callable("f", f)
    require_differentiable("init_x", init_x)
    require_arguments("f", f, init_x)
    require_arguments("grad", grad, f)
    skeleton, points, dynamic = take_apart(init_x)
    require_number(name, number, dtype=jnp.result_type(*points))
    return _Problem(f, grad, skeleton), points, dynamic
