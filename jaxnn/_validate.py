"""Checks of arguments to public functions, with error messages in one form: name, requirement,
actual value.

Shapes, dtypes and structure are checked under `jit` as well; values only if they are concrete.
"""

import contextlib
import inspect
import math
import operator
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh
from jax.tree_util import keystr, tree_flatten_with_path


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is a floating or complex array or number."""
    if is_array(leaf):
        return jnp.issubdtype(leaf.dtype, jnp.inexact)
    return isinstance(leaf, float | complex)


def is_concrete(*values: Any) -> bool:
    """Whether no leaf is traced, so that the values are known."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to quote in another."""
    return str(error).partition("\n")[0]


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line."""
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return (
            "a function, perhaps of a derivative rule, uses a traced value that is not one of its "
            "arguments"
        )
    return ": ".join(filter(None, (type(error).__name__, first_line(error))))


def describe(leaf: Any) -> str:
    """A leaf for an error message: dtype and shape of an array, the value of anything else."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    if isinstance(leaf, list | tuple) and not is_concrete(leaf):
        return f"a {type(leaf).__name__} of {len(leaf)}; jnp.array would convert it to one array"
    return f"{type(leaf).__name__} {reprlib.repr(leaf)}"


def require_arrays(name: str, tree: Any) -> None:
    """Refuse leaves that are not arrays or numbers, such as strings, string arrays, functions."""
    for path, leaf in tree_flatten_with_path(tree)[0]:
        if not is_array(leaf) and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(
                f"`{name}{keystr(path)}` must be an array or a number. Got {describe(leaf)}."
            )


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of a dtype that JAX has: numbers, booleans, keys."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        return False
    return dtype == jax.dtypes.float0 or any(
        jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_, jax.dtypes.extended)
    )


def as_array(name: str, value: Any, asarray: Callable = jnp.asarray) -> Any:
    """Convert an array, a number or lists of numbers to one array; refuse anything else."""
    require_arrays(name, value)
    try:
        array = asarray(value)
    except (TypeError, ValueError, OverflowError):
        array = None
    if not is_array(array):
        raise TypeError(f"`{name}` must be an array or a number. Got {describe(value)}.")
    return array


def as_mesh(name: str, mesh: Mesh | None) -> Mesh | None:
    """The mesh with axis types Auto, over which the compiler shares the work; `jax.make_mesh` uses
    another type by default.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`{name}` must be a jax.sharding.Mesh. Got {describe(mesh)}.")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def is_key(value: Any) -> bool:
    """Whether a value is a typed PRNG key or an array of them."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def require_key(name: str, key: Any) -> None:
    """Refuse anything but one PRNG key: typed, or from `jax.random.PRNGKey`."""
    shape = getattr(key, "shape", None)
    bits = (
        getattr(key, "dtype", None) == jnp.uint32
        and shape == jax.eval_shape(jax.random.PRNGKey, 0).shape
    )
    if not bits and not (is_key(key) and shape == ()):
        raise TypeError(
            f"`{name}` must be one PRNG key, such as `jax.random.key(0)`. Got {describe(key)}."
        )


def require_differentiable(name: str, tree: Any) -> None:
    """Refuse a tree without floating or complex leaves, naming its first leaf."""
    leaves = tree_flatten_with_path(tree)[0]
    if not leaves:
        raise TypeError(
            f"`{name}` must hold at least one floating-point array. Got an empty "
            f"{type(tree).__name__}."
        )
    if not any(is_inexact(leaf) for _, leaf in leaves):
        path, leaf = leaves[0]
        dtype: Any = getattr(leaf, "dtype", None)
        other = ""
        if isinstance(leaf, int) and not isinstance(leaf, bool):
            other = f"; write {float(leaf)}"
        elif is_array(leaf):
            other = "; `.astype(float)` converts it" if jnp.issubdtype(dtype, jnp.integer) else ""
        elif hasattr(leaf, "__dict__"):
            other = ", which is not a pytree"
        raise TypeError(
            f"`{name}{keystr(path)}` must be floating-point to be differentiated. "
            f"Got {describe(leaf)}{other}."
        )


def require_mapping(name: str, value: Any) -> None:
    """Refuse anything but a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"`{name}` must be a dictionary of names and values. Got {describe(value)}."
        )


def require_callable(name: str, f: Any) -> None:
    """Refuse anything that cannot be called."""
    if not callable(f):
        raise TypeError(f"`{name}` must be a function. Got {describe(f)}.")


def require_arguments(name: str, f: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse a function whose signature, if known, does not take these arguments."""
    require_callable(name, f)
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = ", ".join([f"{len(args)} positional", *kwargs])
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        signature = inspect.Signature(plain)
        raise TypeError(
            f"`{name}` must accept the given arguments ({given}). Got {signature}: {error}."
        ) from None


@contextlib.contextmanager
def tracing(name: str) -> Iterator[None]:
    """Add a note on how to write traceable code to the errors that JAX raises while tracing."""
    try:
        yield
    except jax.errors.JAXTypeError as error:
        error.add_note(how_to_be_traced(name))
        raise


def how_to_be_traced(name: str) -> str:
    """Advice for a function that JAX cannot trace."""
    return (
        f"JAX traces `{name}` without values, so Python's `if`, `float()` and NumPy functions "
        "cannot read them: use `jnp.where` or `jax.lax.cond`, and `jax.numpy`."
    )


def require_scalar(name: str, value: Any) -> None:
    """Refuse a function's return value unless it is a real scalar."""
    if isinstance(value, float) or (
        getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating)
    ):
        return
    got = jax.tree.map(describe, value)
    hint = "; for several outputs, set `has_aux=True`, or `model_state` in `jaxnn.Start`"
    several = hint if name == "loss" and isinstance(value, tuple) else ""
    raise TypeError(f"`{name}` must return a real scalar{several}. Got {got}.")


def require_pair(name: str, value: Any, form: str) -> Any:
    """A function's return value, which must be a pair of the form that errors tell."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = jax.tree.map(describe, value)
        raise TypeError(f"`{name}` must return {form}. Got {got}.")
    return value


def require_names(name: str, value: Any) -> None:
    """Refuse anything but a sequence of strings."""
    names = isinstance(value, Sequence) and not isinstance(value, str)
    if not names or not all(isinstance(one, str) for one in value):
        raise TypeError(
            f"`{name}` must be names of functions, as in {name}=('f',). Got {describe(value)}."
        )


def require_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse anything but one of the choices."""
    if not isinstance(value, type(choices[0])) or value not in choices:
        *first, last = map(repr, choices)
        raise ValueError(
            f"`{name}` must be {', '.join(first)} or {last}. Got {reprlib.repr(value)}."
        )


def require_floating_dtype(name: str, dtype: Any) -> None:
    """Refuse anything but a floating dtype."""
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(f"`{name}` must be floating-point. Got {dtype!r}.")


def require_optimizer(name: str, optimizer: Any) -> None:
    """Refuse anything but an optax optimiser."""
    if not all(callable(getattr(optimizer, part, None)) for part in ("init", "update")):
        called, module = (getattr(optimizer, part, "") for part in ("__name__", "__module__"))
        uncalled = called and module.startswith("optax")
        hint = f"; call it, as in optax.{called}(1e-3)" if uncalled else ", such as optax.sgd(0.1)"
        raise TypeError(
            f"`{name}` must be an optax.GradientTransformation{hint}. Got {describe(optimizer)}."
        )


def require_count(name: str, value: Any, least: int = 0, most: int | None = None) -> None:
    """Refuse anything but an integer from `least` to `most`; for a traced one, check only dtype
    and shape.
    """
    if not is_concrete(value):
        if not jnp.issubdtype(value.dtype, jnp.integer) or value.shape != ():
            raise TypeError(f"`{name}` must be an integer. Got {describe(value)}.")
        return
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer. Got {describe(value)}.") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Got {value!r}.")
    if most is not None and number > most:
        raise ValueError(f"`{name}` must be an integer of at most {most}. Got {value!r}.")


def require_number(name: str, value: Any, *, positive: bool = False, dtype: Any = None) -> None:
    """Refuse anything but a real number; a concrete one must also be finite, in `dtype` too (and
    positive if asked).
    """
    own = getattr(value, "dtype", None)
    number = isinstance(value, int | float) or any(
        jnp.issubdtype(own, kind) for kind in (jnp.integer, jnp.floating) if own
    )
    if isinstance(value, bool) or not number or getattr(value, "shape", ()) != ():
        raise TypeError(f"`{name}` must be a number. Got {describe(value)}.")
    if is_concrete(value):
        try:
            size = float(value)
        except OverflowError:
            size = math.inf
        if not math.isfinite(size) or (positive and size <= 0):
            raise ValueError(
                f"`{name}` must be {'positive and finite' if positive else 'finite'}. Got {size!r}."
            )
        if dtype is not None and abs(size) > float(jnp.finfo(dtype).max):
            raise ValueError(f"`{name}` must be finite in {jnp.dtype(dtype)}. Got {size!r}.")


def require_classes(name: str, t: Any, classes: int) -> None:
    """Refuse class indices out of range, if their values are known."""
    if not is_concrete(t):
        return
    t = np.asarray(t)
    wrong = t[(t < 0) | (t >= classes)]
    if wrong.size:
        raise ValueError(f"`{name}` must be class indices from 0 to {classes - 1}. Got {wrong[0]}.")


def require_same_form(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Refuse a tree whose structure or shapes differ from those of `like`, naming the leaf."""
    require_arrays(name, tree)
    require_arrays(like_name, like)
    require_same_structure(name, tree, like_name, like)
    pairs = zip(tree_flatten_with_path(tree)[0], jax.tree.leaves(like), strict=True)
    for (path, leaf), other in pairs:
        require_same_shape(f"{name}{keystr(path)}", leaf, f"{like_name}{keystr(path)}", other)


def require_same_structure(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Refuse a tree whose structure differs from that of `like`."""
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise ValueError(
            f"`{name}` must have the structure of `{like_name}`, {jax.tree.structure(like)}. Got "
            f"{jax.tree.structure(tree)}."
        )


def require_same_shape(name: str, leaf: Any, like_name: str, like: Any) -> None:
    """Refuse an array whose shape differs from that of `like`."""
    if jnp.shape(leaf) != jnp.shape(like):
        raise ValueError(
            f"`{name}` must have shape {jnp.shape(like)}, like `{like_name}`. Got shape "
            f"{jnp.shape(leaf)}."
        )
