"""Finite differences: derivatives of a function from its values alone.

Each public function mirrors one of JAX's: `numerical_grad` mirrors `jax.grad`,
`numerical_jacobian` `jax.jacobian`, `numerical_hessian` `jax.hessian`, and `directional_derivative`
`jax.jvp`. `numerical_diff`, `partial_derivative` and `numerical_gradient` follow the chapter's
signatures. A function is evaluated in one compiled program that perturbs one entry at a time, in
batches of bounded size, so memory does not grow with the number of entries. Only values that depend
on the perturbed entry are recomputed (`propagate.py`). `numerical_diff` and `partial_derivative`
are not compiled, so they reproduce the chapter's digits exactly. Values are computed in float64
(`float64.py`); results have the dtype of the input.

The default step of a central difference is 4 eps^(1/3) times the entry's scale. It balances
truncation against rounding error for functions that are large relative to their slope, as losses
are. Second derivatives use eps^(1/4), one-sided schemes eps^(1/2). Steps are rounded to a power of
two, so they are exact. The scale is the entry's magnitude, but at least 1; if all entries of the
array are small, the lower limit is 128 times their root mean square instead.

A function is traced at each call, but functions that trace to the same program are compiled only
once. Arguments and closed-over arrays are inputs of the compiled program, so new values for them
do not recompile it.
"""

import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxnn._arguments import Partition, Role, real_form, require_argnums
from jaxnn._programs import Traced, kept, outermost
from jaxnn._validate import (
    as_mesh,
    describe,
    is_concrete,
    require_arrays,
    require_callable,
    require_choice,
    require_count,
    require_number,
    require_same_shape,
    require_same_structure,
    require_scalar,
    tracing,
)
from jaxnn.numerical.float64 import wide_arithmetic, wide_dtype, widen_leaf, widened
from jaxnn.numerical.float64_call import float64_call
from jaxnn.numerical.loop import Ends, Leaves, by_entry, by_entry_dense

Scheme = Literal["central", "forward", "backward"]
Evaluation = Literal["float64", "own"]
Method = Literal["propagation", "dense"]


def numerical_grad(
    f: Callable,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    h: float | Float[Array, ""] | None = None,
    scheme: Scheme = "central",
    evaluation: Evaluation = "float64",
    batch_size: int | None = None,
    method: Method = "propagation",
    mesh: Mesh | None = None,
) -> Callable[..., Any]:
    """The gradient of a scalar function by finite differences; mirrors `jax.grad`.

    df/dx_i = (f(x + h e_i) - f(x - h e_i)) / 2h for each entry i of each floating-point leaf. For a
    complex entry it is df/dx - i df/dy, as in `jax.grad`. All other leaves are treated as constant:
    in the result, integers, booleans and keys become `float0` zeros, as in `jax.grad(...,
    allow_int=True)`, and functions and other objects become None. Unlike in `jax.grad`, Python
    floats in a module, such as a solver's tolerance, are constant, too: they are settings.

    Args:
      f: returns a scalar (with `has_aux`, a pair of a scalar and anything). Arrays and floats among
        its arguments are traced; integers, strings and functions are static.
      argnums: the argument or arguments to differentiate.
      has_aux: whether `f` returns `(value, aux)`; if so, the result is `(gradient, aux)`.
      h: step, in the unit of x. It is traced, so a new value does not recompile. By default it is
        derived from each entry, as `help(jaxnn.numerical.differences)` describes.
      scheme: "central" (error O(h^2)), or "forward" and "backward" (error O(h)).
      evaluation: "float64" evaluates functions of narrower dtypes in float64; "own" keeps the
        dtypes of the arguments.
      batch_size: number of entries evaluated at once, over all devices; by default chosen to fit
        the machine.
      method: "propagation" recomputes only the values that depend on the perturbed entry;
        "dense" evaluates all of `f` for each entry. The results agree up to
        rounding error.
      mesh: a mesh (axis types Auto) whose devices split the entries, possibly over several
        processes; the arguments must be replicated on it.

    Returns:
      A function of the arguments of `f` that returns what `jax.grad(f, argnums, has_aux)` would
      return, in the dtypes of the arguments.

    Raises:
      TypeError: an argument to differentiate has no floating-point leaf, or `f` does not return a
        real scalar.
      ValueError: `argnums` is out of range, `h` is not positive, or `h` is too small to change x
        (inside `jit` or a loop, the result is then NaN instead).

    Warns:
      RuntimeWarning: `f` does not use what it is differentiated with respect to.

    Source:
      the chapter, 4.4; Press et al., Numerical Recipes, 5.7, on steps.

    Example:
      >>> numerical_grad(lambda x: jnp.sum(x**2))(jnp.array([3.0, 4.0]))
      Array([6., 8.], dtype=float32)
    """
    require_argnums(argnums)
    options = _checked(_Options(scheme, evaluation, batch_size, method, mesh), f, h)

    def gradient(*args, **kwargs):
        call = Partition.of(f, argnums, args, kwargs, has_aux)
        derivatives = _run(call, _gradient, options, h)
        result = call.in_place_of_arguments(derivatives)
        return (result, f(*args, **kwargs)[1]) if has_aux else result

    return gradient


def numerical_gradient(
    f: Callable[[Any], Float[Array, ""]],
    x: PyTree,
    *,
    h: float | Float[Array, ""] | None = None,
    scheme: Scheme = "central",
    evaluation: Evaluation = "float64",
    batch_size: int | None = None,
    method: Method = "propagation",
    mesh: Mesh | None = None,
) -> PyTree:
    """The gradient of `f` at `x` by finite differences, called as in the chapter; the same as
    `numerical_grad(f)(x)`, with the same options.

    `f` must depend on its argument. The gradient of the chapter's `lambda W: net.loss(x, t)` is
    0, because this function ignores `W`: write `lambda W: loss({"W1": W}, x, t)`.

    Source:
      the chapter, 4.4.

    Example:
      >>> numerical_gradient(lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]))
      Array([6., 8.], dtype=float32)
    """
    how = {"scheme": scheme, "evaluation": evaluation, "batch_size": batch_size, "method": method}
    return numerical_grad(f, h=h, mesh=mesh, **how)(x)


def numerical_jacobian(
    f: Callable,
    argnums: int | tuple[int, ...] = 0,
    *,
    h: float | Float[Array, ""] | None = None,
    scheme: Scheme = "central",
    evaluation: Evaluation = "float64",
    batch_size: int | None = None,
    method: Method = "propagation",
    mesh: Mesh | None = None,
) -> Callable[..., Any]:
    """The Jacobian by finite differences; mirrors `jax.jacobian`.

    Args:
      f: returns a pytree of arrays.
      argnums: the argument or arguments to differentiate.
      h: step, as for `numerical_grad`.
      scheme: as for `numerical_grad`.
      evaluation: as for `numerical_grad`.
      batch_size: as for `numerical_grad`.
      method: as for `numerical_grad`.
      mesh: as for `numerical_grad`.

    Returns:
      A function of the arguments of `f`. For each leaf of the output, with shape (*out), it returns
      the structure of the differentiated argument with leaves of shape (*out, *in), in the dtype of
      the output.

    Raises:
      TypeError: as for `numerical_grad`; `f` may return arrays of any shape.
      ValueError: as for `numerical_grad`.

    Source:
      Press et al., Numerical Recipes, 5.7.

    Example:
      >>> numerical_jacobian(lambda x: x[0] * x)(jnp.array([3.0, 4.0]))
      Array([[6., 0.],
             [4., 3.]], dtype=float32)
    """
    require_argnums(argnums)
    options = _checked(_Options(scheme, evaluation, batch_size, method, mesh), f, h)

    def jacobian(*args, **kwargs):
        call = Partition.of(f, argnums, args, kwargs)
        columns = _run(call, _jacobian, options, h)  # for each input leaf, a tree like the output
        return jax.tree.map(lambda *leaves: call.in_place_of_arguments(leaves), *columns)

    return jacobian


def numerical_hessian(
    f: Callable,
    argnums: int | tuple[int, ...] = 0,
    *,
    h: float | Float[Array, ""] | None = None,
    evaluation: Evaluation = "float64",
    batch_size: int | None = None,
    method: Method = "propagation",
    mesh: Mesh | None = None,
) -> Callable[..., Any]:
    """The Hessian of a scalar function by central differences of central differences; mirrors
    `jax.hessian`.

    Args:
      f: returns a scalar.
      argnums: the argument or arguments to differentiate.
      h: step of both differences; by default derived from the fourth root of epsilon.
      evaluation: as for `numerical_grad`.
      batch_size: as for `numerical_grad`.
      method: for the inner difference, as for `numerical_grad`; the outer one is always dense.
      mesh: as for `numerical_grad`.

    Returns:
      A function of the arguments of `f`. It returns the structure of the differentiated argument,
      nested in itself, with leaves of shape (*outer, *inner) in the dtype of the inner argument.

    Raises:
      TypeError: as for `numerical_grad`.
      ValueError: as for `numerical_grad`.

    Source:
      Abramowitz and Stegun, Handbook of Mathematical Functions, 25.3.

    Example:
      >>> numerical_hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([3.0, 4.0]))
      Array([[8., 6.],
             [6., 0.]], dtype=float32)
    """
    options = _checked(_Options("central", evaluation, batch_size, method, mesh), f, h)
    options = options._replace(root=4)

    def hessian(*args, **kwargs):
        call = Partition.of(f, argnums, args, kwargs)
        call.require_real()
        rows = _run(call, _hessian, options, h)
        return call.in_place_of_arguments([call.in_place_of_arguments(row) for row in rows])

    return hessian


def directional_derivative(
    f: Callable[[Any], PyTree],
    x: PyTree,
    v: PyTree,
    *,
    h: float | Float[Array, ""] | None = None,
    scheme: Scheme = "central",
    evaluation: Evaluation = "float64",
) -> PyTree:
    """The derivative of `f` at `x` along `v`: (f(x + h v) - f(x - h v)) / 2h; mirrors `jax.jvp`.
    It takes two evaluations.

    Args:
      f: returns a pytree of arrays.
      x: point; any pytree with floating-point leaves.
      v: direction, with the structure and shapes of `x`; not normalised.
      h: step along `v`; by default the largest step that changes no entry by more than its own
        default step.
      scheme: as for `numerical_grad`.
      evaluation: as for `numerical_grad`.

    Returns:
      The output of `f` with each leaf replaced by its rate of change per unit of `v`.

    Raises:
      TypeError: as for `numerical_grad`.
      ValueError: the structure or shapes of `v` differ from those of `x`, or `h` is not positive.

    Source:
      Press et al., Numerical Recipes, 5.7.

    Example:
      >>> f, x, v = lambda x: jnp.sum(x**2), jnp.array([3.0, 4.0]), jnp.array([1.0, 1.0])
      >>> directional_derivative(f, x, v)
      Array(14., dtype=float32)
    """
    options = _checked(_Options(scheme, evaluation), f, h)
    call = Partition.of(f, 0, (x,), {})
    require_same_structure("v", v, "x", x)
    direction, roles = [], call.static.skeleton.roles
    for path, leaf, like, role in zip(
        call.paths, jax.tree.leaves(v), call.leaves, roles, strict=True
    ):
        if not role.moves:
            continue
        place, kinds = f"v{path[1:]}", (jnp.floating, jnp.integer)
        require_arrays(place, leaf)
        require_same_shape(place, leaf, path, like)
        if role is Role.COMPLEX:
            direction.append(real_form(leaf))
        elif any(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in kinds):
            direction.append(leaf)
        else:
            raise TypeError(f"`{place}` must be real, as `{path}` is. Got {describe(leaf)}.")
    return _run(call, _directional, options, h, direction)


def numerical_diff(
    f: Callable[[Any], Any],
    x: float | int | Float[Array, "*shape"],
    h: float | Float[Array, ""] | None = None,
    *,
    scheme: Scheme = "central",
    evaluation: Evaluation = "float64",
) -> Float[Array, "*shape"]:
    """The derivative of a function of one variable: (f(x + h) - f(x - h)) / 2h, as in the chapter.

    Args:
      f: a function of one number. If `x` is an array, `f` must be elementwise, and the derivative
        is taken for each entry.
      x: the point; a number or an array.
      h: step; by default derived from `x` and the dtype (the chapter uses 1e-4).
      scheme: "central", "forward" or "backward".
      evaluation: as for `numerical_grad`.

    Returns:
      df/dx with the shape of `x`.

    Raises:
      TypeError: `x` is an integer array, or the output of `f` differs in shape from `x`.
      ValueError: `h` is not positive, or too small to change x.

    Source:
      the chapter, 4.3.1.

    Example:
      >>> numerical_diff(lambda x: 0.01 * x**2 + 0.1 * x, 5)
      Array(0.2, dtype=float32)
    """
    # Two evaluations are not worth a compilation, and a compiler that fuses multiply-adds would
    # change the last digits.
    options = _checked(_Options(scheme, evaluation, compiled=False), f, h)
    if isinstance(x, int) and not isinstance(x, bool):
        x = float(x)  # the chapter writes numerical_diff(f, 5); integer arrays are refused
    call = Partition.of(f, 0, (x,), {})
    call.require_one_leaf("x")
    return _run(call, _diff, options, h)


def partial_derivative(
    f: Callable[[Any], Float[Array, ""]],
    x: Float[Array, "*shape"],
    index: int | tuple[int, ...],
    h: float | Float[Array, ""] | None = None,
    *,
    scheme: Scheme = "central",
    evaluation: Evaluation = "float64",
) -> Float[Array, ""]:
    """The partial derivative of `f` with respect to one entry of `x`; the rest are constant.

    Args:
      f: a scalar function of one array.
      x: the point.
      index: the entry: an integer for a vector, a tuple for more axes; negative indices count from
        the end.
      h: step; by default derived from the entry.
      scheme: as for `numerical_grad`.
      evaluation: as for `numerical_grad`.

    Returns:
      Scalar: df/dx[index].

    Raises:
      IndexError: `index` is out of range.
      TypeError: as for `numerical_grad`.
      ValueError: `h` is not positive, or too small to change x.

    Source:
      the chapter, 4.3.3.

    Example:
      >>> partial_derivative(lambda x: x[0] ** 2 + x[1] ** 2, jnp.array([3.0, 4.0]), 0)
      Array(6., dtype=float32)
    """
    options = _checked(_Options(scheme, evaluation, compiled=False), f, h)
    call = Partition.of(f, 0, (x,), {})
    call.require_one_leaf("x")
    try:
        place = tuple(
            operator.index(i)
            for i in (index if isinstance(index, tuple) else (index,))
            if not isinstance(i, bool)
        )
    except TypeError:
        raise TypeError(
            f"`index` must be an integer or a tuple of integers. Got {describe(index)}."
        ) from None
    shape = np.shape(x)
    if len(place) != len(shape) or not all(-n <= i < n for i, n in zip(place, shape, strict=True)):
        raise IndexError(
            f"`index` must name one entry of `x`, which has shape {shape}. Got {index!r}."
        )
    flat = np.ravel_multi_index(tuple(np.mod(place, shape)), shape) if shape else 0
    return _run(call, _partial, options, h, jnp.asarray(flat, jnp.int32))


# A result, and a function from the points to its dtypes.
Measured = tuple[Any, Callable[[Leaves], Any]]


class _Options(NamedTuple):
    """Options that a program is compiled for; numbers that change between calls are not among
    them.
    """

    scheme: str
    evaluation: str
    batch_size: int | None = None
    method: str = "propagation"
    mesh: Mesh | None = None
    root: int = 2
    given_step: bool = False
    compiled: bool = True


def _checked(options: _Options, f: Callable, h: Any) -> _Options:
    """The options with what follows from them, after refusing invalid values."""
    require_callable("f", f)
    require_choice("scheme", options.scheme, ("central", "forward", "backward"))
    require_choice("evaluation", options.evaluation, ("float64", "own"))
    if options.batch_size is not None:
        require_count("batch_size", options.batch_size, least=1)
    if h is not None:
        require_number("h", h, positive=True)
    require_choice("method", options.method, ("propagation", "dense"))
    mesh, root = as_mesh("mesh", options.mesh), 3 if options.scheme == "central" else 2
    return options._replace(mesh=mesh, root=root, given_step=h is not None)


def _run(call: Partition, measure: Callable, options: _Options, h: Any, *extra: Any) -> Any:
    """The result of `measure`, in one program compiled once per traced program."""
    points, dynamic = call.points, call.dynamic
    if h is not None and is_concrete(h, points):
        _require_steps_that_move(call, points, h, options)
    with tracing("f"):
        f = Traced.of(call.static.value, points, dynamic)
    _warn_if_unused(call, f)
    dtype = None if options.evaluation == "own" else wide_dtype()
    key = None if f.key is None else (measure, options, f.key, dtype)
    program = kept(key, lambda: _program(measure, options, f.bare, dtype))
    given = f.consts, points, dynamic, h, *extra
    x64 = jnp.result_type(float) == jnp.float64
    if dtype == jnp.float64 and not x64 and not outermost(given[:3]):
        return float64_call(program, dtype, *given)
    # Lowering happens after tracing and must see the wide dtype too.
    with wide_arithmetic(dtype):
        return program(*given)


def _warn_if_unused(call: Partition, f: Traced) -> None:
    """Warn if the function does not use what it is differentiated with respect to, as one that
    reads an array that is changed in place.
    """
    moving = f.jaxpr.invars[: len(call.points)]
    used = (v for vs in (f.jaxpr.outvars, *(eqn.invars for eqn in f.jaxpr.eqns)) for v in vs)
    if moving and not any(v is point for v in used for point in moving):
        text = f"`f` does not use `{call.point_paths[0]}`, so its derivative is 0"
        warnings.warn(text, RuntimeWarning, stacklevel=4)


def _require_steps_that_move(call: Partition, points: Leaves, h: Any, options: _Options) -> None:
    for path, leaf in zip(call.point_paths, points, strict=True):
        own = options.evaluation == "own" or wide_dtype() != jnp.float64
        x = np.asarray(leaf, leaf.dtype if own else np.float64)
        step = np.asarray(h, x.dtype)
        if np.any((x + step == x) | (x - step == x)):
            raise ValueError(
                f"`h` must be large enough to change `{path}` in {x.dtype}, where neighbouring "
                f"values are {np.spacing(np.max(np.abs(x))):.2g} apart. Got {float(h)!r}."
            )


def _program(measure: Callable, options: _Options, f: Traced, dtype: Any) -> Callable:
    """A function of the traced function's constants and of (points, dynamic, h), for `measure`."""
    value = f if dtype is None else widened(f, dtype)

    def program(consts, points, dynamic, h, *extra):
        with wide_arithmetic(dtype):
            wide_points = points if dtype is None else [widen_leaf(p, dtype) for p in points]
            of_points = lambda leaves: value(consts, leaves, dynamic)  # noqa: E731
            result, dtypes = measure(of_points, wide_points, h, options, f.shapes, *extra)
            like = dtypes(points)
            return jax.tree.map(lambda out, x: lax.convert_element_type(out, x.dtype), result, like)

    return jax.jit(program) if options.compiled else program


def _gradient(f: Callable, leaves: Leaves, h: Any, options: _Options, shapes: PyTree) -> Measured:
    require_scalar("f", shapes)
    return _by_entry(f, leaves, _steps(leaves, h, options), options), lambda points: points


def _jacobian(f: Callable, leaves: Leaves, h: Any, options: _Options, shapes: PyTree) -> Measured:
    _require_rates(shapes)
    last = lambda c, n: jnp.moveaxis(c, range(n), range(-n, 0))  # noqa: E731
    found = zip(_by_entry(f, leaves, _steps(leaves, h, options), options), leaves, strict=True)
    columns = [jax.tree.map(functools.partial(last, n=x.ndim), column) for column, x in found]
    return columns, lambda points: [shapes] * len(points)


def _hessian(f: Callable, leaves: Leaves, h: Any, options: _Options, shapes: PyTree) -> Measured:
    require_scalar("f", shapes)
    # Computed once: moving the outer point must not change the inner step.
    steps = _steps(leaves, h, options)
    outer = options._replace(method="dense")  # propagation applies to the inner difference
    rows = _by_entry(lambda leaves: _by_entry(f, leaves, steps, options), leaves, steps, outer)
    return rows, lambda points: [points] * len(points)


def _directional(
    f: Callable, leaves: Leaves, h: Any, options: _Options, shapes: PyTree, direction: Leaves
) -> Measured:
    _require_rates(shapes)
    direction = [jnp.asarray(v, x.dtype) for v, x in zip(direction, leaves, strict=True)]
    if h is None:
        # Each candidate changes one entry by its own default step; the smallest one is used.
        steps = [
            jnp.min(jnp.where(v == 0, jnp.inf, step / jnp.abs(v)), initial=jnp.inf)
            for v, step in zip(direction, _steps(leaves, None, options), strict=True)
        ]
        h = functools.reduce(jnp.minimum, steps)
        h = jnp.where(jnp.isfinite(h), h, 1)

    def along(t):
        return f([x + t.astype(x.dtype) * v for x, v in zip(leaves, direction, strict=True)])

    origin = jnp.zeros((), jnp.result_type(*leaves))
    return _quotient(along, origin, jnp.asarray(h, origin.dtype), options), lambda points: shapes


def _diff(f: Callable, leaves: Leaves, h: Any, options: _Options, shapes: PyTree) -> Measured:
    (x,) = leaves
    if not hasattr(shapes, "shape") or shapes.shape != x.shape:
        raise TypeError(
            f"`f` must return one number for each entry of `x`, shape {x.shape}. Got "
            f"{_forms(shapes)}."
        )
    _require_rates(shapes)
    (step,) = _steps(leaves, h, options)
    return _quotient(lambda x: f([x]), x, step, options), lambda points: shapes


def _partial(
    f: Callable, leaves: Leaves, h: Any, options: _Options, shapes: PyTree, index: Any
) -> Measured:
    require_scalar("f", shapes)
    (x,), (steps,) = leaves, _steps(leaves, h, options)
    flat = x.ravel()
    at = lambda value: f([flat.at[index].set(value).reshape(x.shape)])  # noqa: E731
    quotient = _quotient(at, flat[index], steps.ravel()[index], options)
    return quotient, lambda points: points[0]


def _by_entry(f: Callable, leaves: Leaves, steps: Leaves, options: _Options) -> list[PyTree]:
    """For each leaf, the derivatives of the outputs of `f` with respect to its entries, of shape
    (*leaf, *out).
    """
    if not all(x.size for x in leaves):  # an empty leaf has no entry to perturb
        full = [x for x in leaves if x.size]

        def of_full(points):
            points = iter(points)
            return f([next(points) if x.size else x for x in leaves])

        kept = [step for step, x in zip(steps, leaves, strict=True) if x.size]
        found = iter(_by_entry(of_full, full, kept, options) if full else [])
        out = jax.eval_shape(f, leaves)

        def nothing(x):
            return jax.tree.map(lambda s: jnp.zeros((*x.shape, *s.shape), s.dtype), out)

        return [next(found) if x.size else nothing(x) for x in leaves]
    ends = [_ends(x, step, options) for x, step in zip(leaves, steps, strict=True)]
    loop = by_entry if options.method == "propagation" else by_entry_dense
    return loop(f, leaves, ends, options.batch_size, options.mesh)


def _quotient(f: Callable, x: jax.Array, h: jax.Array, options: _Options) -> PyTree:
    """(f(x + h) - f(x - h)) / 2h, or one-sided; elementwise if x is an array."""
    up, down, taken = _ends(x, h, options)
    # Both ends share one copy of f: two copies could be compiled to round differently.
    ends = jax.vmap(f)(jnp.stack([up, down]))
    return jax.tree.map(lambda a: (a[0] - a[1]) / taken.astype(jnp.result_type(a)), ends)


def _ends(x: jax.Array, h: jax.Array, options: _Options) -> Ends:
    """The two points at which f is evaluated, and the divisor of the difference of its values."""
    up = x + h if options.scheme != "backward" else x
    down = x - h if options.scheme != "forward" else x
    # A default step is divided by as it was taken, after rounding; a step from the user, as it was
    # passed. A traced step too small to change x gives NaN, since a zero would look like a
    # derivative.
    taken = up - down if not options.given_step else 2 * h if options.scheme == "central" else h
    return up, down, jnp.where(up == down, jnp.nan, taken)


def _steps(leaves: Leaves, h: Any, options: _Options) -> list[jax.Array]:
    """The step of each entry: `h`, or a power of two near its scale * eps^(1/root)."""
    if h is not None:
        return [jnp.full(x.shape, h, x.dtype) for x in leaves]
    return [_default_step(x, options.root) for x in leaves]


def _default_step(x: jax.Array, root: int) -> jax.Array:
    rms = jnp.sqrt(jnp.mean(x**2)) if x.size else jnp.asarray(0, x.dtype)
    floor = jnp.where(rms == 0, 1, jnp.minimum(1, 128 * rms)).astype(x.dtype)
    balanced = jnp.finfo(x.dtype).eps ** (1 / root) * (4 if root == 3 else 1)
    wanted = jnp.asarray(balanced, x.dtype) * jnp.maximum(jnp.abs(x), floor)
    # Dropping all mantissa bits rounds a number to the nearest power of two.
    return lax.reduce_precision(wanted, jnp.finfo(x.dtype).nexp, 0)


def _require_rates(shapes: PyTree) -> None:
    """Refuse integer outputs: a rate of change in their dtype would be truncated to an integer."""
    if not all(jnp.issubdtype(shape.dtype, jnp.inexact) for shape in jax.tree.leaves(shapes)):
        raise TypeError(f"`f` must return floating-point output. Got {_forms(shapes)}.")


def _forms(shapes: PyTree) -> PyTree:
    return jax.tree.map(describe, shapes)
