"""What is refused, as tables of facts: a call, and below it what it raises.

Every message names the argument or the leaf, says what it must be, and what came. Each requirement
stands once, at the validator that asks for it; each argument of each public function is tried with
something that nobody takes; the rest is what is particular to a function, a file, a command.
"""

import doctest
import gzip
import inspect
import json
import os
import re
import struct
import zipfile

import flat
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure  # noqa: F401  in a table

import jaxnn
from jaxnn import _files, _validate, data, surfaces
from jaxnn.cli import main

NAN, INF, KEY = float("nan"), float("inf"), jax.random.key(0)
KEYS, SGD = jax.random.split(KEY, 2), optax.sgd(0.1)
X, Y, T = jnp.array([3.0, 4.0]), jnp.full((2, 3), 0.3), jnp.array([0, 1])
BATCH, NETWORK = jnp.ones((4, 2)), {"W1": jnp.ones((2, 3)), "b1": jnp.zeros(3)}
DEEP = jaxnn.init_network(KEY, (2, 3, 3))
TEXT, OBJECTS = np.array(["a", "b"]), np.array([1.0, None], object)
GRID = jnp.stack(jnp.meshgrid(jnp.linspace(-2, 2, 5), jnp.linspace(-2, 2, 5)), axis=-1)
CURVE, HEIGHTS = jnp.linspace(0.1, 1, 9), surfaces.bowl(GRID)
WEIGHTS, DATA = {"w": jnp.ones(3)}, (jnp.ones((6, 3)), jnp.ones(6))
STATE = {"params": {"w": jnp.ones(2)}}
PROGRESS = jaxnn.Progress(1, 2, 3, 4, 0.5, None)


def two(x, y):
    return jnp.sum(x * y)


def linear(params, x, t):
    return jnp.mean((x @ params["w"] - t) ** 2)


RUN = {"loss": linear, "params": WEIGHTS, "data": DATA, "key": KEY, "epochs": 1, "batch_size": 4}


def fit(**change):
    return flat.fit(**{**RUN, "optimizer": SGD, **change})


def sweep(**change):
    return jaxnn.sweep(**{**RUN, "optimizer": optax.sgd, "values": X, **change})


def by_sgd(f, init_x, **options):
    return jaxnn.minimize(f, init_x, SGD, **options)


TRAINERS = fit, sweep
DESCENTS = jaxnn.gradient_descent, jaxnn.descent_path, by_sgd
LOSSES = jaxnn.mean_squared_error, jaxnn.cross_entropy_error, jaxnn.accuracy
LOSSES += (jaxnn.softmax_cross_entropy,)


def each(functions, /, *args, **options):
    """Raise what all of the functions raise, alike."""
    errors = [refusal(f, *args, **options) for f in functions]
    texts = {str(error).replace("`logits`", "`y`") for error in errors}
    assert len(texts) == 1, texts
    raise errors[0]


def refusal(f, /, *args, **options):
    """The error that a call raises."""
    with pytest.raises(Exception) as raised:
        f(*args, **options)
    plt.close("all")
    return raised.value


NAMES = {name: getattr(jaxnn, name) for name in jaxnn.__all__}
NAMES |= {"plots": jaxnn.plots, "figures": jaxnn.figures}
NAMES |= vars(_validate) | vars(_files) | vars(data) | vars(surfaces) | globals()


def table(text):
    """Pairs of a call and what it raises, out of a text where the latter is indented."""
    rows = []
    for line in text.splitlines():
        if line.startswith("    "):
            rows[-1][1] += [line.strip()]
        elif line and not line.startswith("#"):
            rows.append([line, []])
    return [pytest.param(call, " ".join(words), id=call) for call, words in rows]


def assert_says(error, expected):
    """An error's type and text; "..." stands for anything. It is of the one form, on one line."""
    said = f"{type(error).__name__}: {error}"
    assert doctest.OutputChecker().check_output(expected, said, doctest.ELLIPSIS), said
    assert re.search("must .* ?Got |says .* Got ", said) and "\n" not in said
    assert type(error).__module__ == "builtins"


VALIDATORS = r"""
require_arrays("a", {"b": "c"})
    TypeError: `a['b']` must be an array or a number. Got str 'c'.
require_arrays("a", [TEXT])
    TypeError: `a[0]` must be an array or a number. Got <U1[2].
require_arrays("a", OBJECTS)
    TypeError: `a` must be an array or a number. Got object[2].
require_arrays("a", {"b": [len]})
    TypeError: `a['b'][0]` must be an array or a number. Got builtin_function_or_method
    <built-in function len>.
require_arrays("a", np.array(["2020"], "M8[Y]"))
    TypeError: `a` must be an array or a number. Got datetime64[Y][1].
as_array("a", None)
    TypeError: `a` must be an array or a number. Got NoneType None.
as_array("a", [[0.1], [0.1, 0.2]])
    TypeError: `a` must be an array or a number. Got list [[0.1], [0.1, 0.2]].
as_array("a", 2**70)
    TypeError: `a` must be an array or a number. Got int 1180591620717411303424.
as_array("a", {"b": X})
    TypeError: `a` must be an array or a number. Got dict {'b': Array([3., 4.], dtype=float32)}.
as_mesh("mesh", "cpu")
    TypeError: `mesh` must be a jax.sharding.Mesh. Got str 'cpu'.
require_key("key", None)
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got NoneType None.
require_key("key", 0)
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got int 0.
require_key("key", X)
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got float32[2].
require_key("key", KEYS)
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got key<fry>[2].
require_key("key", jnp.zeros(3, jnp.uint32))
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got uint32[3].
require_differentiable("x", None)
    TypeError: `x` must hold at least one floating-point array. Got an empty NoneType.
require_differentiable("x", [])
    TypeError: `x` must hold at least one floating-point array. Got an empty list.
require_differentiable("x", {"a": T})
    TypeError: `x['a']` must be floating-point to be differentiated. Got int32[2]; `.astype(float)`
    converts it.
require_differentiable("x", X > 0)
    TypeError: `x` must be floating-point to be differentiated. Got bool[2].
require_differentiable("x", KEY)
    TypeError: `x` must be floating-point to be differentiated. Got key<fry>[].
require_callable("f", "relu")
    TypeError: `f` must be a function. Got str 'relu'.
require_arguments("f", 3)
    TypeError: `f` must be a function. Got int 3.
require_arguments("f", two, X)
    TypeError: `f` must accept the given arguments (1 positional). Got (x, y): missing a
    required argument: 'y'.
require_arguments("f", lambda: 3, X)
    TypeError: `f` must accept the given arguments (1 positional). Got (): too many
    positional arguments.
require_arguments("f", two, X, X, key=1)
    TypeError: `f` must accept the given arguments (2 positional, key). Got (x, y): got an
    unexpected keyword argument 'key'.
require_scalar("f", X)
    TypeError: `f` must return a real scalar. Got float32[2].
require_scalar("f", None)
    TypeError: `f` must return a real scalar. Got None.
require_scalar("f", 1)
    TypeError: `f` must return a real scalar. Got int 1.
require_scalar("f", (jnp.sum(X),))
    TypeError: `f` must return a real scalar. Got ('float32[]',).
require_scalar("f", jnp.sum(X) * 1j)
    TypeError: `f` must return a real scalar. Got complex64[].
require_scalar("f", "a")
    TypeError: `f` must return a real scalar. Got str 'a'.
require_choice("scheme", "centre", ("central", "forward", "backward"))
    ValueError: `scheme` must be 'central', 'forward' or 'backward'. Got 'centre'.
require_choice("scheme", ["central"], ("central", "forward"))
    ValueError: `scheme` must be 'central' or 'forward'. Got ['central'].
require_choice("order", "1", (1, 2))
    ValueError: `order` must be 1 or 2. Got '1'.
require_choice("order", X, (1, 2))
    ValueError: `order` must be 1 or 2. Got Array([3., 4.], dtype=float32).
require_floating_dtype("dtype", 3)
    TypeError: `dtype` must be floating-point. Got 3.
require_floating_dtype("dtype", "number")
    TypeError: `dtype` must be floating-point. Got 'number'.
require_floating_dtype("dtype", complex)
    TypeError: `dtype` must be floating-point. Got <class 'complex'>.
require_optimizer("optimizer", optax.sgd)
    TypeError: `optimizer` must be an optax.GradientTransformation; call it, as in optax.sgd(1e-3).
    Got function ...
require_optimizer("optimizer", optax.GradientTransformation(3, 4))
    TypeError: `optimizer` must be an optax.GradientTransformation, such as optax.sgd(0.1). Got
    GradientTransformation ...
require_count("n", None)
    TypeError: `n` must be an integer. Got NoneType None.
require_count("n", "1")
    TypeError: `n` must be an integer. Got str '1'.
require_count("n", 1.5)
    TypeError: `n` must be an integer. Got float 1.5.
require_count("n", NAN)
    TypeError: `n` must be an integer. Got float nan.
require_count("n", X)
    TypeError: `n` must be an integer. Got float32[2].
require_count("n", True)
    ValueError: `n` must be an integer of at least 0. Got True.
require_count("n", -1)
    ValueError: `n` must be an integer of at least 0. Got -1.
require_count("n", 0, least=1)
    ValueError: `n` must be an integer of at least 1. Got 0.
require_count("n", 2**70, most=2**31 - 1)
    ValueError: `n` must be an integer of at most 2147483647. Got 1180591620717411303424.
require_number("h", None)
    TypeError: `h` must be a number. Got NoneType None.
require_number("h", "1e-7")
    TypeError: `h` must be a number. Got str '1e-7'.
require_number("h", True)
    TypeError: `h` must be a number. Got bool True.
require_number("h", 1j)
    TypeError: `h` must be a number. Got complex 1j.
require_number("h", X)
    TypeError: `h` must be a number. Got float32[2].
require_number("h", jnp.array(1j))
    TypeError: `h` must be a number. Got complex64[].
require_number("h", NAN)
    ValueError: `h` must be finite. Got nan.
require_number("h", 10**400)
    ValueError: `h` must be finite. Got inf.
require_number("h", 0, positive=True)
    ValueError: `h` must be positive and finite. Got 0.0.
require_number("h", -1.0, positive=True)
    ValueError: `h` must be positive and finite. Got -1.0.
require_number("h", 1e300, dtype=jnp.float32)
    ValueError: `h` must be finite in float32. Got 1e+300.
require_classes("t", jnp.array([0, -1]), 3)
    ValueError: `t` must be class indices from 0 to 2. Got -1.
require_classes("t", np.array([0, 2**40]), 3)
    ValueError: `t` must be class indices from 0 to 2. Got 1099511627776.
require_classes("t", np.array([0, 2**32], np.uint64), 3)
    ValueError: `t` must be class indices from 0 to 2. Got 4294967296.
require_same_form("a", {"x": X}, "b", {"y": X})
    ValueError: `a` must have the structure of `b`, PyTreeDef({'y': *}). Got PyTreeDef({'x':
    *}).
require_same_form("a", None, "b", X)
    ValueError: `a` must have the structure of `b`, PyTreeDef(*). Got PyTreeDef(None).
require_same_form("a", {"x": X}, "b", {"x": X[:1]})
    ValueError: `a['x']` must have shape (1,), like `b['x']`. Got shape (2,).
require_same_form("a", {"x": "y"}, "b", {"x": X})
    TypeError: `a['x']` must be an array or a number. Got str 'y'.
as_path("path", None)
    TypeError: `path` must be a path. Got NoneType None.
as_path("path", 3)
    TypeError: `path` must be a path. Got int 3.
as_path("path", b"x")
    TypeError: `path` must be a path. Got bytes b'x'.
as_path("path", "a\0b")
    ValueError: `path` must be a path. Got 'a\x00b'.
"""


@pytest.mark.promotes
@pytest.mark.parametrize("call, expected", table(VALIDATORS))
def test_each_requirement_has_one_text(own_errors, call, expected):
    assert_says(refusal(eval, call, NAMES), expected)


# Shapes and dtypes are looked at under `jit` as well.
SHAPES = r"""
each(LOSSES, Y * 1j, T)
    TypeError: `y` must be floating-point. Got complex64[2, 3].
each(LOSSES, Y > 0, T)
    TypeError: `y` must be floating-point. Got bool[2, 3].
each(LOSSES, jnp.ones((2, 3), int), T)
    TypeError: `y` must be floating-point. Got int32[2, 3].
each(LOSSES, jnp.ones((2, 0)), T)
    ValueError: `y` must have at least one example and one class. Got shape (2, 0).
each(LOSSES, jnp.ones((0, 3)), T[:0])
    ValueError: `y` must have at least one example and one class. Got shape (0, 3).
each(LOSSES, jnp.ones(()), T[0])
    ValueError: `y` must have at least one example and one class. Got shape ().
each(LOSSES, Y, jnp.ones((4, 5)))
    ValueError: `t` must have shape (2, 3) (one-hot) or (2,) (class indices), to fit `y`. Got shape
    (4, 5).
each(LOSSES, Y, T[:, None])
    ValueError: `t` must have shape (2, 3) (one-hot) or (2,) (class indices), to fit `y`. Got shape
    (2, 1).
each(LOSSES, Y, T > 0)
    TypeError: `t` must be class indices (integers) if it has one axis fewer than `y`. Got
    bool[2].
each(LOSSES, Y, X)
    TypeError: `t` must be class indices (integers) if it has one axis fewer than `y`. Got
    float32[2].
each(LOSSES, Y, Y * 1j)
    TypeError: `t` must be real, or class indices (integers). Got complex64[2, 3].
each(LOSSES, Y, jax.random.split(KEY, (2, 3)))
    TypeError: `t` must be real, or class indices (integers). Got key<fry>[2, 3].
cross_entropy_error(Y, T, X)
    TypeError: `delta` must be a number. Got float32[2].
init_network(X, (2, 3))
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got float32[2].
predict({"W1": X}, BATCH)
    ValueError: `params['W1']` must have shape (2, outputs), to fit its input. Got float32[2].
predict({"W1": jnp.ones((2, 3)), "b1": X}, BATCH)
    ValueError: `params['b1']` must have shape (3,). Got float32[2].
predict(NETWORK, jnp.ones((4, 3)))
    ValueError: `params['W1']` must have shape (3, outputs), to fit its input. Got float32[2,
    3].
loss(NETWORK, BATCH, T)
    ValueError: `t` must have shape (4, 3) (one-hot) or (4,) (class indices), to fit `logits`. Got
    shape (2,).
one_hot(X, 3)
    TypeError: `t` must be class indices (integers). Got float32[2].
sample_batch(KEY, (X, Y[:1]), 2)
    ValueError: `data` must be arrays with the same number of examples, at least one, on the
    first axis. Got `data[0]` (2,), `data[1]` (1, 3).
shuffled(KEYS, 3)
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got key<fry>[2].
saddle(jnp.ones(3))
    ValueError: `x` must be an array with 2 variables on its last axis. Got float32[3].
rosenbrock(jnp.ones(1))
    ValueError: `x` must be an array with at least 2 variables on its last axis. Got float32[1].
numerical_grad(lambda x: x)(X)
    TypeError: `f` must return a real scalar. Got float32[2].
numerical_jacobian(lambda x: x > 0)(X)
    TypeError: `f` must return floating-point output. Got bool[2].
numerical_hessian(bowl)(X * 1j)
    TypeError: `x` must be real, for a second derivative. Got complex64[2].
directional_derivative(bowl, X, X[:1])
    ValueError: `v` must have shape (2,), like `x`. Got shape (1,).
partial_derivative(bowl, X, 2)
    IndexError: `index` must name one entry of `x`, which has shape (2,). Got 2.
numerical_diff(jnp.sum, X)
    TypeError: `f` must return one number for each entry of `x`, shape (2,). Got float32[].
each(DESCENTS, bowl, T)
    TypeError: `init_x` must be floating-point to be differentiated. Got int32[2]; `.astype(float)`
    converts it.
gradient_descent(jnp.sin, X)
    TypeError: `f` must return a real scalar. Got float32[2].
gradient_descent(bowl, X, X)
    TypeError: `lr` must be a number. Got float32[2].
minimize(bowl, X, SGD, max_steps=jnp.sum(X))
    TypeError: `max_steps` must be an integer. Got float32[].
"""
ARRAYS = {"X": X, "Y": Y, "T": T, "BATCH": BATCH, "NETWORK": NETWORK, "KEY": KEY, "KEYS": KEYS}


@pytest.mark.promotes
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("call, expected", table(SHAPES))
def test_shapes_and_dtypes_are_refused_while_tracing_too(own_errors, call, expected, jitted):
    evaluate = lambda arrays: eval(call, NAMES | arrays)  # noqa: E731
    assert_says(refusal(jax.jit(evaluate) if jitted else evaluate, ARRAYS), expected)


CALLS = r"""
# Losses
each(LOSSES, Y, jnp.array([0, 7]))
    ValueError: `t` must be class indices from 0 to 2. Got 7.
cross_entropy_error(Y, T, -1.0)
    ValueError: `delta` must be at least 0. Got -1.0.
cross_entropy_error(Y, T, 1e300)
    ValueError: `delta` must be finite in float32. Got 1e+300.

# Network
init_network(KEY, "23")
    TypeError: `sizes` must be a sequence of integers. Got str '23'.
init_network(KEY, {2: 1, 3: 1})
    TypeError: `sizes` must be a sequence of integers. Got dict {2: 1, 3: 1}.
init_network(KEY, (3,))
    ValueError: `sizes` must name at least an input and an output layer. Got (3,).
init_network(KEY, (2, 0))
    ValueError: `sizes[1]` must be an integer of at least 1. Got 0.
init_network(KEY, (2, 3), 1e300)
    ValueError: `weight_scale` must be finite in float32. Got 1e+300.
predict(X, BATCH)
    TypeError: `params` must be a dictionary of arrays by name. Got float32[2].
predict({}, BATCH)
    ValueError: `params` must hold 'W1'. Got [].
predict({1: X}, BATCH)
    TypeError: `params` must be a dictionary of arrays by name. Got dict {1: Array([3., 4.],
    dtype=float32)}.
predict({"W2": jnp.ones((2, 2))}, BATCH)
    ValueError: `params` must hold 'W1'. Got ['W2'].
predict({"W1": jnp.ones((2, 3)), "W3": X}, BATCH)
    ValueError: `params` must hold 'W2'. Got ['W1', 'W3'].
predict({"W1": None}, BATCH)
    ValueError: `params['W1']` must have shape (2, outputs), to fit its input. Got NoneType
    None.
predict({"W1": jnp.ones((2, 3)), "b1": 1.0}, BATCH)
    ValueError: `params['b1']` must have shape (3,). Got float 1.0.
predict(NETWORK, 1.0)
    ValueError: `params['W1']` must have shape (None, outputs), to fit its input. Got float32[2,
    3].
predict(NETWORK, KEYS)
    TypeError: `x` must hold numbers. Got key<fry>[2].
loss(DEEP, BATCH, jnp.zeros(4, int), lambda a: None)
    TypeError: `activation(...)` must be an array or a number. Got NoneType None.
loss(DEEP, BATCH, jnp.zeros(4, int), lambda a: a[:, :1])
    ValueError: `params['W2']` must have shape (1, outputs), to fit its input. Got float32[3,
    3].

# Data
load_digits(0, 0)
    ValueError: `test_size` must be an integer of at least 1. Got 0.
load_digits(0, 1797)
    ValueError: `test_size` must be under 1797, the number of images. Got 1797.
one_hot(T, -2)
    ValueError: `classes` must be an integer of at least 1. Got -2.
one_hot(jnp.array([3]), 3)
    ValueError: `t` must be class indices from 0 to 2. Got 3.
sample_batch(KEY, jnp.ones((0, 2)), 3)
    ValueError: `data` must be arrays with the same number of examples, at least one, on the
    first axis. Got `data` (0, 2).
sample_batch(KEY, X, 0)
    ValueError: `batch_size` must be an integer of at least 1. Got 0.
shuffled(KEY, 2**70)
    ValueError: `count` must be an integer of at most 2147483647. Got 1180591620717411303424.
count_examples(1.0)
    ValueError: `data` must be arrays with the same number of examples, at least one, on the
    first axis. Got `data` ().
count_examples((jnp.ones(3), jnp.ones(2)))
    ValueError: `data` must be arrays with the same number of examples, at least one, on the
    first axis. Got `data[0]` (3,), `data[1]` (2,).

# Surfaces
bowl(jnp.array(3.0))
    ValueError: `x` must be an array with at least 1 variable on its last axis. Got float32[].
bowl([3.0, 4.0])
    ValueError: `x` must be an array with at least 1 variable on its last axis. Got list [3.0,
    4.0].
plateau(jnp.ones(0))
    ValueError: `x` must be an array with at least 1 variable on its last axis. Got float32[0].
two_valleys(jnp.ones((5, 3)))
    ValueError: `x` must be an array with 2 variables on its last axis. Got float32[5, 3].

# Numerical derivatives
numerical_gradient(bowl, [3, 4])
    TypeError: `x[0]` must be floating-point to be differentiated. Got int 3; write 3.0.
numerical_gradient(bowl, {"a": "b"})
    TypeError: `x['a']` must be floating-point to be differentiated. Got str 'b'.
numerical_gradient(bowl, X, batch_size=0)
    ValueError: `batch_size` must be an integer of at least 1. Got 0.
numerical_gradient(bowl, X, h=1e-50)
    ValueError: `h` must be large enough to change `x` in float64, where neighbouring values are
    8.9e-16 apart. Got 1e-50.
numerical_gradient(lambda p: bowl(p["w"]), {"w": jnp.full(2, 1e4)}, h=1e-5, evaluation="own")
    ValueError: `h` must be large enough to change `x['w']` in float32, where neighbouring values
    are 0.00098 apart. Got 1e-05.
numerical_gradient(lambda x: "a", X)
    TypeError: `f(...)` must be an array or a number. Got str 'a'.
numerical_grad(bowl, ())(X)
    ValueError: `argnums` must name at least one argument. Got ().
numerical_grad(bowl, 1)(X)
    ValueError: `argnums` must name positional arguments, of which there are 1. Got 1.
numerical_grad(bowl, (0, 5))(X)
    ValueError: `argnums` must name positional arguments, of which there are 1. Got (0, 5).
numerical_grad(bowl, has_aux=True)(X)
    TypeError: `f` must return a pair if `has_aux` is set. Got float32[].
numerical_grad(lambda x: {"a": bowl(x), "b": 1}, has_aux=True)(X)
    TypeError: `f` must return a pair if `has_aux` is set. Got {'a': 'float32[]', 'b': 'int 1'}.
numerical_jacobian(lambda x: x.astype(int))(X)
    TypeError: `f` must return floating-point output. Got int32[2].
directional_derivative(bowl, X, None)
    ValueError: `v` must have the structure of `x`, PyTreeDef(*). Got PyTreeDef(None).
directional_derivative(bowl, X, X * 1j)
    TypeError: `v` must be real, as `x` is. Got complex64[2].
directional_derivative(lambda p: 0.0, {"a": X}, {"b": X})
    ValueError: `v` must have the structure of `x`, PyTreeDef({'a': *}). Got PyTreeDef({'b':
    *}).
partial_derivative(bowl, X, [0])
    TypeError: `index` must be an integer or a tuple of integers. Got list [0].
partial_derivative(bowl, X, True)
    IndexError: `index` must name one entry of `x`, which has shape (2,). Got True.
partial_derivative(bowl, X, (0, 0))
    IndexError: `index` must name one entry of `x`, which has shape (2,). Got (0, 0).
partial_derivative(bowl, jnp.ones((2, 2)), 0)
    IndexError: `index` must name one entry of `x`, which has shape (2, 2). Got 0.
partial_derivative(lambda x: x[1] ** 2, [3.0, 4.0], 1)
    TypeError: `x` must be one number or array; `jnp.array` converts a list. Got a pytree with
    leaves x[0], x[1].
numerical_diff(lambda x: x["a"], {"a": 1.0})
    TypeError: `x` must be one number or array; `jnp.array` converts a list. Got a pytree with
    leaves x['a'].

# The check
each((check_gradient, explain), bowl)
    ValueError: `args[0]` must be given: the point to differentiate at. Got none.
explain(lambda x: float(x.sum()), X)
    TypeError: `f` must be a function that JAX can trace. Got one that it cannot.
explain(bowl, T)
    TypeError: `args[0]` must be floating-point to be differentiated. Got int32[2]; `.astype(float)`
    converts it.
explain(bowl, X, kwargs=[("a", 1)])
    TypeError: `kwargs` must be a dictionary of names and values. Got list [('a', 1)].
jax.jit(lambda x: explain(bowl, x))(X)
    TypeError: `explain` must be called outside `jax.jit`, `jax.grad` and `jax.vmap`, as it
    needs concrete values. Got traced arguments.
check_gradient(bowl, X, digits="many")
    TypeError: `digits` must be a number. Got str 'many'.
check_gradient(bowl, jax.eval_shape(lambda: X))
    TypeError: `args[0]` must have values. Got ShapeDtypeStruct(shape=(2,), dtype=float32).
jax.jit(lambda x: check_gradient(bowl, x))(X)
    TypeError: `check_gradient` must be called outside `jax.jit`, `jax.grad` and `jax.vmap`, as it
    needs concrete values. Got traced arguments.
check_gradient(lambda x: x, X, gradient=lambda x: x)
    TypeError: `f` must return a scalar, or `cotangent` must say how to project its output (a
    pytree like it, or 'random'). Got float32[2].
check_gradient(lambda x: 1, X)
    TypeError: `f` must return floating-point output. Got int32[].
check_gradient(bowl, X, where=lambda x: 1)
    TypeError: `where` must be a function that returns True or False for a leaf. Got int 1.
check_gradient(bowl, X, where=False)
    ValueError: `where` must select at least one floating-point leaf. Got none.
check_gradient(bowl, {"a": X}, where={"b": True})
    ValueError: `where` must be a function of a leaf, or a pytree like the argument that is
    differentiated, or a prefix of it (a tuple of them for several arguments). Got {'b': True}.
check_gradient(bowl, X, modes="back")
    ValueError: `modes` must be 'fwd', 'rev' or both. Got 'back'.
check_gradient(bowl, X, kwargs=[("a", 1)])
    TypeError: `kwargs` must be a dictionary of names and values. Got list [('a', 1)].
check_gradient(bowl, X, progress="yes")
    ValueError: `progress` must be True, False or None. Got 'yes'.
check_gradient(bowl, X, trust="rule")
    TypeError: `trust` must be names of functions, as in trust=('f',). Got str 'rule'.
check_gradient(bowl, X, stop_gradient="go")
    ValueError: `stop_gradient` must be 'report' or 'held'. Got 'go'.
check_gradient(bowl, X, evidence="all")
    ValueError: `evidence` must be 'together' or 'leaf'. Got 'all'.
check_gradient(bowl, X, order=5)
    ValueError: `order` must be 1, 2, 3 or 4. Got 5.
check_gradient(lambda x: float(x.sum()), X)
    TypeError: `f` must be differentiable by JAX (written in `jax.numpy`, not NumPy), or `gradient`
    must be given. Got ...
check_gradient(bowl, X, order=2, gradient=jax.grad(bowl))
    ValueError: `order` must be 1 with a hand-written `gradient`. Got 2.
check_gradient(bowl, X, gradient=lambda x: None)
    ValueError: `gradient(...)` must have the structure of `args[0]`, PyTreeDef(*). Got
    PyTreeDef(None).
check_gradient(jnp.dot, X, X, gradient=lambda a, b: (b, a))
    ValueError: `gradient(...)` must be the derivative with respect to `args[0]` alone; to check
    several arguments, pass `argnums`. Got a tuple of 2.
check_gradient(jnp.dot, X, X, argnums=(0, 1), gradient=lambda a, b: (b, a, a))
    ValueError: `gradient(...)` must have the structure of `args`, PyTreeDef((*, *)). Got
    PyTreeDef((*, *, *)).
check_gradient(jnp.dot, X, X, argnums=(1, 0), gradient=lambda a, b: jnp.stack([b, a]))
    ValueError: `gradient(...)` must have the structure of `args`, PyTreeDef((*, *)). Got
    PyTreeDef(*).
check_gradient(lambda p: p["w"] @ p["b"], {"w": X, "b": X}, gradient=lambda p: {"w": X, "a": X})
    ValueError: `gradient(...)` must have the structure of `args[0]`, PyTreeDef({'b': *, 'w': *}).
    Got PyTreeDef({'a': *, 'w': *}).
check_gradient(lambda x: np.asarray(x), X, gradient=lambda x: x)
    TypeError: `f` must return a real scalar, or `cotangent` must say how to project. Got
    float32[2].
check_gradient(lambda x: True if x[0] > 0 else x, X)
    TypeError: `f` must return a real scalar, or `cotangent` must say how to project. Got
    bool True.
check_gradient(bowl, X, gradient=lambda x: x * 1j)
    TypeError: `gradient(...)` must be real. Got complex64[2].
check_gradient(lambda p: p["a"].sum(), {"a": X}, gradient=lambda p: {"a": jnp.ones(3)})
    ValueError: `gradient(...)['a']` must have shape (2,), like `args[0]['a']`. Got shape (3,).
check_gradient(jnp.sin, X, cotangent="all")
    ValueError: `cotangent` must be a pytree like the output of `f`, or 'random'. Got 'all'.
check_gradient(jnp.sin, X, cotangent=[1.0, 2.0])
    ValueError: `cotangent` must have the structure of the output of `f`, PyTreeDef(*). Got
    PyTreeDef([*, *]).
check_gradient(jnp.sin, X, cotangent=jnp.ones(3))
    ValueError: `cotangent` must have the shapes of the output of `f`, [(2,)]. Got [(3,)].
check_gradient(jnp.sin, X, cotangent=jnp.ones(2, bool))
    TypeError: `cotangent` must hold numbers. Got bool[2].
check_gradient(jnp.sin, X, cotangent=["a"])
    TypeError: `cotangent[0]` must be an array or a number. Got str 'a'.
check_gradient(bowl, X, cotangent=1j)
    TypeError: `cotangent` must be real where the output of `f` is. Got complex64[].
check_gradient(bowl, X, cotangent=NAN)
    ValueError: `cotangent` must be finite. Got nan.
check_gradient(jnp.sin, X, cotangent=jnp.zeros(2))
    ValueError: `cotangent` must have an entry that is not 0. Got none.
check_gradient(bowl, X).plot("x")
    ValueError: `path` must be one of ['[0]']. Got 'x'.

# Descent
each(DESCENTS, bowl, {"b": "c"})
    TypeError: `init_x['b']` must be floating-point to be differentiated. Got str
    'c'.
each(DESCENTS, lambda x: x, X)
    TypeError: `f` must return a real scalar. Got float32[2].
each(DESCENTS, bowl, X, grad=lambda: 3)
    TypeError: `grad` must accept the given arguments (1 positional). Got (): too many
    positional arguments.
each(DESCENTS, bowl, X, grad=lambda f: 3)
    TypeError: `grad(f)` must be a function. Got int 3.
each(DESCENTS, bowl, X, grad=lambda f: f)
    ValueError: `grad(f)(...)` must have the structure of `init_x`, PyTreeDef([*]). Got
    PyTreeDef(*).
each(DESCENTS, bowl, X, grad=lambda f: lambda x: [jnp.ones(3)])
    ValueError: `grad(f)(...)[0]` must have shape (2,), like `init_x[0]`. Got shape (3,).
each(DESCENTS, bowl, X, grad=jax.value_and_grad)
    ValueError: `grad(f)(...)` must have the structure of `init_x`, PyTreeDef([*]). Got
    PyTreeDef([*, [*]]).
gradient_descent(bowl, X, 1e300)
    ValueError: `lr` must be finite in float32. Got 1e+300.
gradient_descent(bowl, X, 0.1, -1)
    ValueError: `step_num` must be an integer of at least 0. Got -1.
gradient_descent(bowl, X, 0.1, 2**31)
    ValueError: `step_num` must be an integer of at most 2147483647. Got 2147483648.
descent_path(bowl, X, 0.1, 2**70)
    ValueError: `step_num` must be an integer of at most 2147483646. Got 1180591620717411303424.
minimize(bowl, X, optax.adam(0.1), opt_state={})
    ValueError: `opt_state` must have the structure of `optimizer.init(...)`, ... Got
    PyTreeDef({}).
minimize(bowl, X, optax.adam(0.1), opt_state=optax.adam(0.1).init([jnp.ones(3)]))
    ValueError: `opt_state[0].mu[0]` must have shape (2,), like `optimizer.init(...)[0].mu[0]`.
    Got shape (3,).

# Training
each(TRAINERS, loss=two)
    TypeError: `loss` must accept the given arguments (3 positional). Got (x, y): too many
    positional arguments.
each(TRAINERS, loss=lambda p, x, t: "a")
    TypeError: `loss(...)` must be an array or a number. Got str 'a'.
each(TRAINERS, loss=lambda p, x, t: x)
    TypeError: `loss` must return a real scalar. Got float32[4, 3].
each(TRAINERS, params={"w": T})
    TypeError: `params['w']` must be floating-point to be differentiated. Got int32[2];
    `.astype(float)` converts it.
each(TRAINERS, data=DATA[0])
    TypeError: `data` must be a tuple of arrays, such as (x, t). Got float32[6, 3].
each(TRAINERS, data=DATA[:1])
    TypeError: `loss` must accept the given arguments (2 positional). Got (params, x, t):
    missing a required argument: 't'.
each(TRAINERS, data=(jnp.ones(3), jnp.ones(2)))
    ValueError: `data` must be arrays with the same number of examples, at least one, on the
    first axis. Got `data[0]` (3,), `data[1]` (2,).
each(TRAINERS, data=(jnp.ones((0, 3)), jnp.ones(0)))
    ValueError: `data` must be arrays with the same number of examples, at least one, on the
    first axis. Got `data[0]` (0, 3), `data[1]` (0,).
each(TRAINERS, test=DATA[0])
    TypeError: `test` must be a tuple of arrays, such as (x, t). Got float32[6, 3].
each(TRAINERS, test=(DATA[0],))
    ValueError: `an example of test` must have the structure of `data`, PyTreeDef((*, *)). Got
    PyTreeDef((*,)).
each(TRAINERS, test=(DATA[0][:, :2], DATA[1]))
    ValueError: `an example of test[0]` must have shape (3,), like `data[0]`. Got shape (2,).
each(TRAINERS, test=(jnp.ones((0, 3)), jnp.ones(0)))
    ValueError: `test` must be arrays with the same number of examples, at least one, on the
    first axis. Got `test[0]` (0, 3), `test[1]` (0,).
each(TRAINERS, epochs=0)
    ValueError: `epochs` must be an integer of at least 1. Got 0.
each(TRAINERS, batch_size=1.5)
    TypeError: `batch_size` must be an integer. Got float 1.5.
each(TRAINERS, grad=lambda f: 3)
    TypeError: `grad(loss)` must be a function. Got int 3.
each(TRAINERS, grad=jax.value_and_grad)
    ValueError: `grad(loss)(...)` must have the structure of `params`, PyTreeDef({'w': *}). Got
    PyTreeDef((*, {'w': *})).
each(TRAINERS, has_aux=True)
    TypeError: `loss` must return (value, aux), as requested. Got float32[].
each(TRAINERS, loss=lambda p, x, t: (jnp.mean(p["w"]), x), has_aux=True)
    TypeError: `the aux of loss(...)` must be a dictionary of scalars. Got float32[4, 3].
each(TRAINERS, loss=lambda p, s, x, t: jnp.mean(p["w"]), model_state=X)
    TypeError: `loss` must return (value, model_state), as requested. Got float32[].
each(TRAINERS, loss=lambda p, s, x, t: (jnp.mean(p["w"]), s[:1]), model_state=X)
    ValueError: `the model's state of loss(...)` must have shape (2,), like `model_state`. Got
    shape (1,).
fit(opt_state=(X,))
    ValueError: `opt_state` must have the structure of `optimizer.init(...)`, ... Got ...
fit(eval_params=lambda p, s: [p], test=DATA)
    ValueError: `eval_params(...)` must have the structure of `params`, ... Got ...
each(TRAINERS, metrics=lambda p, x, t: x)
    TypeError: `metrics` must return a dictionary of arrays. Got float32[4, 3].
each(TRAINERS, metrics=lambda p, x, t: {"a": "b"})
    TypeError: `metrics(...)['a']` must be an array or a number. Got str 'b'.
each(TRAINERS, metrics=lambda p, x, t: {1: jnp.sum(x)})
    TypeError: `metrics(...)` must have strings for its keys. Got [1].
each(TRAINERS, metrics=lambda p, x, t: {"a": jnp.sum(x) * 1j})
    TypeError: `metrics(...)['a']` must be real. Got complex64[].
each(TRAINERS, metrics=lambda p, x, t: {"loss": jnp.sum(x)})
    ValueError: `metrics` must not use the name 'loss'. Got ['loss'].
fit(key=KEYS)
    TypeError: `key` must be one PRNG key, such as `jax.random.key(0)`. Got key<fry>[2].
fit(patience=0)
    ValueError: `patience` must be an integer of at least 1. Got 0.
fit(every=-1)
    ValueError: `every` must be an integer of at least 1. Got -1.
fit(resume="newest")
    ValueError: `resume` must be True, False or 'previous'. Got 'newest'.
fit(resume=True)
    ValueError: `resume` must be used with `checkpoint`. Got True alone.
sweep(optimizer=lambda rate: 3)
    TypeError: `optimizer(...)` must be an optax.GradientTransformation, such as optax.sgd(0.1). Got
    int 3.
sweep(values=(X, jnp.ones(3)))
    ValueError: `values` must have one entry per run on the first axis, at least one. Got
    ('float32[2]', 'float32[3]').
sweep(values=jnp.float32(0.1))
    ValueError: `values` must have one entry per run on the first axis, at least one. Got float32[].
sweep(key=jax.random.split(KEY, 3))
    ValueError: `key` must be one key, or one for each of the 2 runs. Got 3.
sweep(key=jax.random.PRNGKey(0))
    TypeError: `key` must be one typed PRNG key, or an array of them, one per run. Got uint32[2].

# Plots
plots.losses(CURVE[:0], CURVE, CURVE)
    ValueError: `probability` must be a real array of shape (points). Got float32[0].
plots.losses(CURVE, CURVE[1:], CURVE)
    ValueError: `cross_entropy` must have shape (9,), like `probability`. Got shape (8,).
plots.losses(2 * CURVE, CURVE, CURVE)
    ValueError: `probability` must be above 0 and at most 1. Got 1.1.
plots.losses(CURVE, CURVE, CURVE, axes=3.0)
    TypeError: `axes` must hold Matplotlib Axes. Got float 3.0.
plots.losses(CURVE, CURVE, CURVE, axes=["a", "b"])
    TypeError: `axes` must hold Matplotlib Axes. Got str 'a'.
plots.losses(CURVE, CURVE, CURVE, axes=[None])
    ValueError: `axes` must hold 2 Axes. Got 1.
plots.loss_and_accuracy(GRID, GRID, GRID)
    ValueError: `distance` must be a real array of shape (points). Got float32[5, 5, 2].
plots.activations(CURVE, {"f": CURVE}, {"g": CURVE})
    ValueError: `derivatives` must have the structure of `values`, PyTreeDef({'f': *}). Got
    PyTreeDef({'g': *}).
plots.activations(CURVE, {"f": CURVE[1:]}, {"f": CURVE[1:]})
    ValueError: `values['f']` must have shape (9,), like `x`. Got shape (8,).
plots.slopes(CURVE, CURVE[1:], {})
    ValueError: `y` must have shape (9,), like `x`. Got shape (8,).
plots.slopes(CURVE, CURVE, {}, ax="axes")
    TypeError: `ax` must be Matplotlib Axes. Got str 'axes'.
plots.slopes(CURVE, CURVE, "tangent")
    TypeError: `lines` must be a dictionary. Got str 'tangent'.
plots.slopes(CURVE, CURVE, {"f": 3.0})
    ValueError: `lines['f']` must have the structure of `((x0, x1), slope)`, PyTreeDef(((*, *),
    *)). Got PyTreeDef(*).
plots.step_errors([CURVE])
    TypeError: `curves` must be a dictionary. Got list ...
plots.step_errors({"f": CURVE})
    TypeError: `curves['f']` must be a pair of steps and errors. Got float32[9].
plots.step_errors({"f": (CURVE, CURVE[1:])})
    ValueError: `curves['f'][1]` must have shape (9,), like `curves['f'][0]`. Got shape (8,).
plots.surface(HEIGHTS, HEIGHTS)
    ValueError: `points` must be a real array of shape (rows, columns, 2). Got float32[5, 5].
plots.surface(GRID, HEIGHTS, ax=Figure().subplots())
    ValueError: `ax` must be made with projection='3d'. Got projection 'rectilinear'.
plots.gradient_field(GRID[..., :1], GRID)
    ValueError: `points` must have shape (rows, columns, 2), at least two of each. Got shape (5,
    5, 1).
plots.gradient_field(GRID, GRID[1:])
    ValueError: `gradient` must have shape (5, 5, 2), like `points`. Got shape (4, 5, 2).
plots.descent_paths(GRID, GRID, {})
    ValueError: `values` must have shape (5, 5), like `points[..., 0]`. Got shape (5, 5, 2).
plots.descent_paths(GRID, HEIGHTS, {"f": descent_path(bowl, jnp.ones(3), step_num=2)})
    ValueError: `paths['f'].points` must have shape (steps, 2). Got shape (3, 3).
plots.path_losses({"f": CURVE})
    TypeError: `paths['f']` must be a DescentPath, from `descent_path`. Got float32[9].
plots.training(None)
    TypeError: `history` must be a History, from `fit`. Got NoneType None.
plots.gradients(None, None)
    ValueError: `numerical` must hold arrays with at least one entry. Got NoneType None.
plots.gradients({"W": CURVE}, {"W": CURVE[1:]})
    ValueError: `numerical['W']` must have shape (8,), like `automatic['W']`. Got shape (9,).
plots.mistakes(BATCH, T, Y)
    ValueError: `t` must have shape (4,), like `x[:, 0]`. Got shape (2,).
plots.mistakes(jnp.ones((2, 3)), T, Y)
    ValueError: `x` must hold square images as rows. Got shape (2, 3).
plots.mistakes(jnp.ones((2, 4)), jnp.array([0, 7]), Y)
    ValueError: `t` must be class indices from 0 to 2. Got 7.
plots.gradient_evidence("leaf")
    TypeError: `leaf` must be a LeafReport, from `check_gradient(...).leaves`. Got str 'leaf'.

# Progress
"""


@pytest.mark.promotes
@pytest.mark.parametrize("call, expected", table(CALLS))
def test_a_bad_argument_is_named(own_errors, call, expected):
    assert_says(refusal(eval, call, NAMES), expected)


class Nothing:
    """What nobody takes."""

    def __repr__(self):
        return "nothing"


# A call of each public function that takes arguments; switches are left out.
GOOD = {
    "accuracy": {"y": Y, "t": T},
    "mean_squared_error": {"y": Y, "t": T},
    "cross_entropy_error": {"y": Y, "t": T, "delta": 1e-7},
    "softmax_cross_entropy": {"logits": Y, "t": T},
    "init_network": {"key": KEY, "sizes": (2, 3), "weight_scale": 1.0, "dtype": jnp.float32},
    "predict": {"params": DEEP, "x": BATCH, "activation": jnp.tanh},
    "loss": {"params": DEEP, "x": BATCH, "t": jnp.zeros(4, int), "activation": jnp.tanh},
    "load_digits": {"seed": 0, "test_size": 297},
    "load_mnist": {"directory": "nowhere"},
    "one_hot": {"t": T, "classes": 3, "dtype": jnp.float32},
    "sample_batch": {"key": KEY, "data": BATCH, "batch_size": 2},
    "numerical_diff": {"f": surfaces.parabola, "x": 2.0, "h": 1e-3},
    "partial_derivative": {"f": surfaces.bowl, "x": X, "index": 0, "h": 1e-3},
    "directional_derivative": {"f": surfaces.bowl, "x": X, "v": X, "h": 1e-3},
    "numerical_gradient": {"f": surfaces.bowl, "x": X, "h": 1e-3},
    "numerical_grad": {"f": surfaces.bowl, "argnums": 0, "h": 1e-3},
    "numerical_jacobian": {"f": surfaces.bowl, "argnums": 0, "h": 1e-3},
    "numerical_hessian": {"f": surfaces.bowl, "argnums": 0, "h": 1e-3},
    "check_gradient": {"f": surfaces.bowl},
    "explain": {"f": surfaces.bowl},
    "watching": {"points": 1, "budget": 1.0},
    "gradient_descent": {"f": surfaces.bowl, "init_x": X, "lr": 0.1, "step_num": 2},
    "descent_path": {"f": surfaces.bowl, "init_x": X, "lr": 0.1, "step_num": 2},
    "minimize": {"f": surfaces.bowl, "init_x": X, "optimizer": SGD, "max_steps": 2},
    "fit": RUN | {"optimizer": SGD},
    "train": {
        "step": lambda state, batch, key: (state, {"loss": 0.0}),
        "state": X,
        "data": (BATCH,),
        "key": KEY,
    },
    "sweep": RUN | {"optimizer": optax.sgd, "values": X},
    "save_checkpoint": {"directory": "nowhere", "step": 1, "state": STATE},
    "load_checkpoint": {"source": "nowhere"},
    "progress_log": {"path": "nowhere"},
    "show_progress": {},
}
SWITCHES = {"has_aux", "replacement", "previous", "stream", "donate", "finite"}
ARGUMENTS = [
    (name, argument)
    for name in GOOD
    for argument, parameter in inspect.signature(getattr(jaxnn, name)).parameters.items()
    if argument not in SWITCHES
    and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
]


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_an_argument_that_is_nothing_is_named(own_errors, tmp_path, monkeypatch, name, argument):
    monkeypatch.chdir(tmp_path)
    arguments = GOOD[name] | {argument: Nothing()}
    if name in ("check_gradient", "explain"):
        error = refusal(getattr(jaxnn, name), arguments.pop("f"), X, **arguments)
    else:
        call = getattr(jaxnn, name)
        at_a_point = name in ("numerical_grad", "numerical_jacobian", "numerical_hessian")
        error = refusal((lambda **a: call(**a)(X)) if at_a_point else call, **arguments)
    assert re.match(rf"`{argument}` must .* Got .*[Nn]othing", str(error)), error
    assert isinstance(error, TypeError | ValueError) and not list(tmp_path.iterdir())


def test_every_public_function_is_in_the_tables():
    functions = {name for name in jaxnn.__all__ if inspect.isfunction(getattr(jaxnn, name))}
    assert functions - set(GOOD) == {"assert_gradient"}  # takes what `check_gradient` takes


GOOD_IDX = struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(8)
RUN_OF = {
    "data": None,
    "layers": [5],
    "activation": "relu",
    "dropout": 0.0,
    "optimizer": "sgd",
    "lr": [0.5],
    "weight_scale": 0.01,
    "seed": 0,
}
CODE = """
import sys, jax.numpy as jnp
def right(x=jnp.ones(2)): return jnp.sum(x**2)
def text(x="a"): return 1.0
def integers(x=jnp.ones(2, int)): return jnp.sum(x)
def raises(x=1.0): raise RuntimeError("two\\nlines")
def key(x=1.0): return {}["a"]
def leaves(x=1.0): sys.exit(0)
def pair(): return 3, 4
def none(): return None
def quits(): sys.exit(0)
def keyword(*, x=1.0): return x
"""


def forged(source, **changes):
    """A checkpoint like another one, whose header says something else."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["header.json"]) | changes
    path = source.with_name(f"forged_{'_'.join(changes)}.npz")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"header.json": json.dumps(header)}).items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A directory of files that are broken, foreign or hostile."""
    folder = tmp_path_factory.mktemp("files")
    contents = {
        "text": b"hello\n",
        "empty": b"",
        "idx": GOOD_IDX,
        "idx.long": GOOD_IDX + b"x",
        "idx.cut": GOOD_IDX[:-1],
        "idx.huge": struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "idx.none": struct.pack(">HBB3I", 0, 8, 3, 0, 2**32 - 1, 2**32 - 1),
        "gz.magic": b"\x1f\x8b",
        "gz.bomb": gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(10**7)),
        "gz.crc": gzip.compress(GOOD_IDX)[:-8] + bytes(8),
        "gz.twice": gzip.compress(gzip.compress(GOOD_IDX)),
        "gz.more": gzip.compress(GOOD_IDX) + b"garbage",
        "code.py": CODE.encode(),
        "syntax.py": b"def f(:\n",
        "exit.py": b"raise SystemExit(0)\n",
        "nul.py": b"x = 1\0",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe")
    for part, labels in (("train", 0), ("t10k", 0)):
        (folder / "mnist").mkdir(exist_ok=True)
        (folder / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBB3I", 0, 8, 3, 0, 2, 2)
        )
        (folder / "mnist" / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, labels)
        )
    np.savez(folder / "foreign.npz", a=np.ones(2))
    np.savez_compressed(folder / "packed.npz", a=np.ones(2))
    good = jaxnn.save_checkpoint(folder / "good", 1, {"params": {"w": jnp.ones(2)}})
    leaf = {"part": "params", "path": "['w']", "dtype": "float64", "key": None}
    for changes in (
        {"step": -5},
        {"version": 3},
        {"leaves": [leaf]},
        {"info": 3},
        {"parts": 3},
        {"format": "other"},
    ):
        forged(good, **changes)
    encrypted = good.read_bytes().replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    )
    (folder / "encrypted.npz").write_bytes(encrypted)
    runs = {
        "nothing": None,
        "list": {"run": []},
        "other": {"run": {"a": 1}},
        "none": {},
        "layers": {"run": RUN_OF | {"layers": [-5]}},
        "number": {"run": RUN_OF | {"layers": 5}},
        "evil": {"run": RUN_OF | {"activation": "__class__"}},
        "data": {"run": RUN_OF | {"data": 5}},
        "fine": {"run": RUN_OF},
    }
    small = {"params": jaxnn.init_network(KEY, (64, 5, 10))}
    for name, notes in runs.items():
        jaxnn.save_checkpoint(folder / "run" / name, 1, small, info={"notes": notes})
    (folder / "run" / "empty").mkdir()
    renamed = jaxnn.save_checkpoint(folder / "renamed", 1, small)
    renamed.rename(renamed.with_name("step_000000000009.npz"))
    return folder


@pytest.fixture
def unchanged(files, monkeypatch):
    """That a call leaves the files, and the directory that it is called from, as they were.

    But for what Python keeps of a module that it imports.
    """
    monkeypatch.chdir(files)

    def contents():
        return {
            str(p): p.read_bytes() if p.is_file() else None
            for p in files.rglob("*")
            if p.name != ".jaxnn.lock" and "__pycache__" not in p.parts
        }

    before = contents()
    yield
    assert contents() == before


FILES = r"""
# IDX files
read_idx("nowhere", 3)
    FileNotFoundError: `path` must be a file. Got 'nowhere'.
read_idx("good", 3)
    FileNotFoundError: `path` must be a file. Got 'good'.
read_idx("empty", 3)
    ValueError: empty: an IDX header of 16 bytes must come first. Got 0 bytes in all.
read_idx("text", 3)
    ValueError: text: an IDX header of 16 bytes must come first. Got 6 bytes in all.
read_idx("png", 3)
    ValueError: png: the magic number must be 0x00000803 (unsigned bytes, 3 axes). Got
    0x89504e47.
read_idx("idx.long", 3)
    ValueError: idx.long: the header says (2, 2, 2), so 8 bytes must follow it. Got more.
read_idx("idx.cut", 3)
    ValueError: idx.cut: the header says (2, 2, 2), so 8 bytes must follow it. Got 7 bytes.
read_idx("idx.huge", 3)
    ValueError: idx.huge: must hold at most 2147483648 bytes of data. Got a header that says ...
read_idx("idx.none", 3)
    ValueError: idx.none: must hold at most 2147483648 bytes of data. Got a header that says (0,
    4294967295, 4294967295), 0 bytes.
read_idx("gz.magic", 3)
    ValueError: gz.magic: must be a valid gzip file. Got one that cannot be unpacked: ...
read_idx("gz.bomb", 3)
    ValueError: gz.bomb: the header says (2, 2, 2), so 8 bytes must follow it. Got more.
read_idx("gz.crc", 3)
    ValueError: gz.crc: must be a valid gzip file. Got one that cannot be unpacked: ...
read_idx("gz.twice", 3)
    ValueError: gz.twice: the magic number must be 0x00000803 (unsigned bytes, 3 axes). Got
    0x1f8b0800.
read_idx("gz.more", 3)
    ValueError: gz.more: must be a valid gzip file. Got one that cannot be unpacked: ...
read_idx("idx", 1)
    ValueError: idx: the magic number must be 0x00000801 (unsigned bytes, 1 axis). Got
    0x00000803.
read_idx("idx", 3, limit=7)
    ValueError: idx: must hold at most 7 bytes of data. Got a header that says (2, 2, 2), 8
    bytes.
load_mnist("text")
    FileNotFoundError: `directory` must be a directory with MNIST's IDX files. Got 'text'.
load_mnist("mnist")
    ValueError: mnist/train-images-idx3-ubyte: must hold at least one image and one pixel. Got
    shape (0, 2, 2).

# Checkpoints
save_checkpoint("text", 1, STATE)
    FileExistsError: `directory` must be a usable directory. Got 'text': File
    exists.
save_checkpoint("text/x", 1, STATE)
    NotADirectoryError: `directory` must be a usable directory. Got 'text/x': Not a
    directory.
save_checkpoint("new", -1, STATE)
    ValueError: `step` must be an integer of at least 0. Got -1.
save_checkpoint("new", 10**12, STATE)
    ValueError: `step` must be an integer of at most 999999999999. Got 1000000000000.
save_checkpoint("new", 1, STATE, keep=0)
    ValueError: `keep` must be an integer of at least 1. Got 0.
save_checkpoint("new", 1, {1: X})
    TypeError: `state` must be a dictionary with strings for its keys. Got dict {1: Array([3.,
    4.], dtype=float32)}.
save_checkpoint("new", 1, {"p": [TEXT]})
    TypeError: `p[0]` must be an array or a number. Got <U1[2].
save_checkpoint("new", 1, STATE, records=[1])
    TypeError: `records` must be a dictionary with strings for its keys. Got list [1].
save_checkpoint("new", 1, STATE, records={"a": [[1], [1, 2]]})
    TypeError: `records['a']` must be an array or a number. Got list [[1], [1, 2]].
save_checkpoint("new", 1, STATE, info="a")
    TypeError: `info` must be a dictionary with strings for its keys. Got str 'a'.
save_checkpoint("new", 1, STATE, info={"a": {1}})
    TypeError: `info` must be JSON-compatible. Got something else: Object of type set is not
    JSON serializable.
load_checkpoint("nowhere")
    FileNotFoundError: `source` must be a checkpoint or a directory of them. Got 'nowhere'.
load_checkpoint("pipe")
    FileNotFoundError: `source` must be a checkpoint or a directory of them. Got 'pipe'.
load_checkpoint("run")
    FileNotFoundError: `source` must hold a checkpoint. Got 'run', which has none.
load_checkpoint("empty")
    ValueError: empty: must be an intact checkpoint. Got a file that is empty or
    not a ZIP file.
load_checkpoint("foreign.npz")
    ValueError: foreign.npz: must be an intact checkpoint. Got one with an invalid header: ...
load_checkpoint("packed.npz")
    ValueError: packed.npz: must be an intact checkpoint. Got a ZIP with compressed members.
load_checkpoint("encrypted.npz")
    ValueError: encrypted.npz: must be an intact checkpoint. Got one with an invalid header: ...
load_checkpoint("good/forged_step.npz")
    ValueError: good/forged_step.npz: must be an intact checkpoint. Got a header without step or
    info.
load_checkpoint("good/forged_info.npz")
    ValueError: good/forged_info.npz: must be an intact checkpoint. Got a header without step or
    info.
load_checkpoint("good/forged_version.npz")
    ValueError: good/forged_version.npz: must be an intact checkpoint. Got version 3 of the
    format, where this package reads version 2.
load_checkpoint("good/forged_format.npz")
    ValueError: good/forged_format.npz: must be an intact checkpoint. Got a file of another kind.
load_checkpoint("good/forged_parts.npz")
    ValueError: good/forged_parts.npz: must be an intact checkpoint. Got one with an invalid header:
    ...
load_checkpoint("good/forged_leaves.npz")
    ValueError: good/forged_leaves.npz: must be an intact checkpoint. Got an array of float32
    where its header says float64.
load_checkpoint("good").restore(["params"], {})
    ValueError: `part` must be one of ['params'], which the checkpoint holds. Got ['params'].
load_checkpoint("good").restore("params", {})
    ValueError: `params['w']` must be as in the checkpoint, which holds float32[2]. Got nothing.
load_checkpoint("good").restore("params", {"w": "a"})
    ValueError: `params['w']` must be as in the checkpoint, which holds float32[2]. Got str 'a'.
fit(checkpoint="text")
    FileExistsError: `checkpoint` must be a usable directory. Got 'text': File
    exists.
fit(checkpoint="good")
    FileExistsError: `checkpoint` must be an empty directory unless `resume` is set. Got 'good',
    with step_000000000001.npz.
load_checkpoint("renamed")
    ValueError: renamed/step_000000000009.npz: must be an intact checkpoint. Got a file
    renamed from step 1.
fit(checkpoint="renamed", resume=True)
    ValueError: renamed/step_000000000009.npz: must be an intact checkpoint. Got a file
    renamed from step 1.
fit(checkpoint="good", resume=True)
    ValueError: `checkpoint` must hold a run of `fit` or `train`. Got 'good', which
    holds something else.

# Logs and figures
progress_log("good")(PROGRESS)
    IsADirectoryError: `path` must be a file in an existing directory. Got 'good': Is a
    directory.
progress_log("a/b")(PROGRESS)
    FileNotFoundError: `path` must be a file in an existing directory. Got 'a/b': No such
    file or directory.
figures.draw("text")
    FileExistsError: `directory` must be a usable directory. Got 'text': File
    exists.
"""


@pytest.mark.parametrize("call, expected", table(FILES))
def test_a_bad_file_is_named_and_nothing_is_changed(own_errors, unchanged, call, expected):
    assert_says(refusal(eval, call, NAMES), expected)


COMMANDS = r"""
$
    the following arguments are required: COMMAND
$ TRAIN
    argument COMMAND: invalid choice: 'TRAIN'
$ train --epochs
    argument --epochs: expected one argument
$ train --epochs 0
    argument --epochs: must be a whole number of at least 1. Got '0'
$ train --batch-size 1e3
    argument --batch-size: must be a whole number of at least 1. Got '1e3'
$ train --layers 5,,5
    argument --layers: must be a whole number of at least 1. Got ''
$ train --lr -1
    argument --lr: must be a finite number of at least 0. Got '-1'
$ train --lr 1e300
    argument --lr: must be finite in float32. Got '1e300'
$ train --weight-scale inf
    argument --weight-scale: must be a finite number of at least 0. Got 'inf'
$ train --seed -1
    argument --seed: must be a whole number of at least 0. Got '-1'
$ train --seed 99999999999999999999
    argument --seed: must be below 2**63. Got '99999999999999999999'
$ train --grad none
    argument --grad: invalid choice: 'none'
$ train --every 0
    argument --every: must be a whole number of at least 1. Got '0'
$ train --frob
    unrecognized arguments: --frob; see jaxnn train --help
$ train --resume
    `--resume` must be used with --checkpoint DIR. Got no directory.
$ train --resume oldest --checkpoint new
    argument --resume: invalid choice: 'oldest'
$ train --lr 0.1,0.2 --checkpoint new
    `--lr` must be one number with --checkpoint. Got 2 numbers.
$ train --lr 0.1,0.2 --max-steps 3 --evaluate-every 2
    `--lr` must be one number with --max-steps or --evaluate-every. Got 2 numbers.
$ train --data nowhere --checkpoint new
    `--data` must be a directory with MNIST's IDX files. Got 'nowhere'.
$ train --data mnist --checkpoint new
    mnist/train-images-idx3-ubyte: must hold at least one image and one pixel. Got shape (0, 2,
    2).
$ train --log good --checkpoint new
    `--log` must be a file in an existing directory. Got 'good'.
$ train --log no/where
    `--log` must be a file in an existing directory. Got 'no/where'.
$ train --checkpoint text
    `--checkpoint` must be a usable directory. Got 'text': File exists.
$ train --checkpoint run/list --resume
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/list'
$ train --checkpoint run/fine --resume
    `--layers` must be 5, as in the checkpoint. Got 50.
$ train --dropout 1
    argument --dropout: must be at least 0, and below 1. Got '1'
$ train --max-steps 0
    argument --max-steps: must be a whole number of at least 1. Got '0'
$ train --evaluate-every x
    argument --evaluate-every: must be a whole number of at least 1. Got 'x'
$ train --coordinator x:1
    `--num-processes` must be given, as --coordinator, --num-processes and --process-id belong
    together. Got --coordinator.
$ eval
    the following arguments are required: DIR
$ eval nowhere
    `DIR` must be a checkpoint or a directory of them. Got 'nowhere'.
$ eval run/empty
    `DIR` must hold a checkpoint. Got 'run/empty', which has none.
$ eval run/nothing
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/nothing'
$ eval run/list
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/list'
$ eval run/other
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/other'
$ eval run/none
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/none'
$ eval run/layers
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/layers'
$ eval run/number
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/number'
$ eval run/evil
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/evil'
$ eval run/data
    `DIR` must be the DIR of `jaxnn train --checkpoint`. Got 'run/data'
$ eval run/fine --data nowhere
    `--data` must be a directory with MNIST's IDX files. Got 'nowhere'.
$ check
    the following arguments are required: TARGET
$ check :f
    `TARGET` must be FILE.py, FILE.py:NAME, FILE.py::TEST or MODULE:NAME. Got ':f'.
$ check code.py:right --order 5
    argument --order: invalid choice:
$ check code.py:right --plot good
    `--plot` must be a file in an existing directory. Got 'good'.
$ check code.py:right --plot no/x.png
    `--plot` must be a file in an existing directory. Got 'no/x.png'.
$ check code.py:missing
    `TARGET` must name a function in code.py. Got 'missing', which is not there. For a
$ check code.py:text
    `args[0]` must be floating-point to be differentiated. Got str 'a'.
$ check code.py:integers
    `args[0]` must be floating-point to be differentiated. Got int32[2]; `.astype(float)` converts
    it.
$ check code.py:raises
    `TARGET` must be a function that runs. Got RuntimeError: two lines
$ check code.py:pair
    `pair` must return (function, arguments) if it takes no arguments itself. Got (3, 4).
$ check code.py:quits
    `quits` must be a function that runs. Got SystemExit: 0
$ check code.py:keyword
    `args[0]` must be given: the point to differentiate at. Got none.
$ explain code.py::quits
    `TARGET` must be a function, not a test; for a test, `jaxnn check` names the lines.
    Got the test 'code.py::quits'.
$ check syntax.py:f
    `TARGET` must be a file or module that runs. Got SyntaxError
$ check exit.py:f
    `TARGET` must be a file or module that runs. Got SystemExit: 0
$ check nul.py:f
    `TARGET` must be a file or module that runs. Got
$ check good.py:f
    `TARGET` must be a file or module that runs. Got FileNotFoundError
$ figures
    the following arguments are required: --out
$ figures --out text
    `--out` must be a usable directory. Got 'text': File exists.
"""


@pytest.mark.parametrize("line, expected", table(COMMANDS))
def test_a_bad_command_is_one_line_and_exit_code_2(own_errors, unchanged, capsys, line, expected):
    try:
        code = main(line.removeprefix("$").split())
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert (code, err.count("\n"), out) == (2, 1, "") and expected in err


PATH = jaxnn.descent_path(surfaces.bowl, X, 0.1, 2)
WAYS = r"""
numerical_gradient(surfaces.bowl, [3.0, 4.0])
    ValueError: `x` must be an array with at least 1 variable on its last axis. Got a list of 2;
    jnp.array would convert it to one array.
numerical_grad(surfaces.bowl, X)
    TypeError: `argnums` must be an integer or a tuple of integers; the point goes to the function
    that is returned, as in numerical_grad(f)(x). Got float32[2].
cross_entropy_error(jnp.array([2.0, -3.0]), jnp.array(0))
    ValueError: `y` must be probabilities, from 0 to 1; `softmax_cross_entropy` takes scores. Got
    -3.
fit(data=iter([(X,)]))
    TypeError: `data` must be a tuple of arrays, such as (x, t), or a function of the epoch that
    makes its batches, as in `lambda epoch: ...`. Got list_iterator ...
fit(data=optax.sgd(0.1))
    TypeError: `data` must be a tuple of arrays, such as (x, t), and come before `optimizer`. Got
    GradientTransformationExtraArgs ...
fit(loss=lambda w, x, t: (jnp.sum(x), {}))
    TypeError: `loss` must return a real scalar; for several outputs, set `has_aux=True`, or
    `model_state` in `jaxnn.Start`. Got ('float32[]', {}).
fit(loss=lambda w, s, x, t: (jnp.sum(x), ({"n": s}, {})), model_state=X)
    TypeError: `loss` must return (value, model_state), or with `has_aux=True` (value,
    (model_state, aux)). Got a state ({'n': 'float32[2]'}, {}).
fit(data=[(np.ones(3), 1)] * 100)
    TypeError: `data` must be a tuple of arrays, such as (x, t): stack the examples, or pass
    batches as a function of the epoch, as in `lambda epoch: batches`. Got a list of 100 tuples.
fit(data=tuple(np.ones(n) for n in range(1, 9)))
    ValueError: `data` must be arrays with the same number of examples, at least one, on the first
    axis. Got `data[0]` (1,), `data[1]` (2,), `data[2]` (3,), `data[3]` (4,) and 4 more.
jaxnn.assert_gradient(surfaces.bowl, X, y=1)
    TypeError: `kwargs` must hold the keyword arguments of `f`, as in kwargs={'y': ...}; a
    check has no step or tolerance to set. Got an unknown option, `y`.
fit(test={"train": (np.ones((6, 3)), np.ones(6, int))})
    ValueError: `test` must not contain a set named 'train': that name stands for `data`. Got one.
sweep(test={"a": (X,)})
    TypeError: `test` must be a tuple of arrays, such as (x, t). Got dict {'a': ...
check_gradient(surfaces.bowl, X).save("report.png")
    ValueError: `path` must end in .html. Got 'report.png'.
check_gradient(lambda x: np.sum(np.asarray(x)), X)
    TypeError: `f` must be differentiable by JAX (written in `jax.numpy`, not NumPy), or `gradient`
    must be given. Got TracerArrayConversionError: The numpy.ndarray conversion method __array__()
    was called on traced array with shape float32[2]
fit(optimizer=optax.adam)
    TypeError: `optimizer` must be an optax.GradientTransformation; call it, as in optax.adam(1e-3).
    Got function ...
sweep(optimizer=optax.sgd(0.1))
    TypeError: `optimizer` must be a function of one of `values`, such as optax.sgd itself. Got an
    already constructed optimiser.
sweep(values=[0.1, 0.2])
    TypeError: `values` must be an array, or a pytree of arrays with one entry per run, as
    from jnp.array(...). Got list [0.1, 0.2].
check_gradient(surfaces.bowl)
    ValueError: `args[0]` must be given: the point to differentiate at. Got none.
plots.path_losses(PATH)
    TypeError: `paths` must be a dictionary of descents by name, as in {'lr = 0.1': path}. Got one
    DescentPath.
plots.training(fit())
    TypeError: `history` must be a History, from `fit`; that of a Fit is its `history`. Got a Fit.
"""


@pytest.mark.parametrize("call, expected", table(WAYS))
def test_an_error_says_what_to_do(own_errors, call, expected):
    names = vars(jaxnn) | {name: getattr(jaxnn, name) for name in jaxnn.__all__} | NAMES
    assert_says(refusal(eval, call, names | {"PATH": PATH, "plots": jaxnn.plots}), expected)


LOOKS = {"if": lambda x: x[0] if x[0] > 0 else x[1], "numpy": lambda x: np.sum(np.asarray(x))}


@pytest.mark.parametrize("f", LOOKS.values(), ids=LOOKS.keys())
def test_of_a_function_that_looks_at_values_jaxs_error_says_what_to_do(f):
    batch = (jnp.ones((4, 2)),)
    calls = {
        "f": lambda: jaxnn.numerical_grad(f)(X),
        "loss": lambda: flat.fit(lambda w, x: f(w), X, batch, optax.sgd(0.1), key=KEY, epochs=1),
    }
    for name, call in calls.items():
        error = refusal(call)
        assert isinstance(error, jax.errors.JAXTypeError)
        note = " ".join(error.__notes__)
        assert f"`{name}`" in note and "`jnp.where` or `jax.lax.cond`" in note


@pytest.mark.parametrize("f", LOOKS.values(), ids=LOOKS.keys())
def test_explain_says_why_a_function_cannot_be_traced(f):
    error = refusal(jaxnn.explain, f, X)
    assert str(error) == "`f` must be a function that JAX can trace. Got one that it cannot."
    assert "`jnp.where`" in error.__notes__[0]
    assert isinstance(error.__cause__, jax.errors.JAXTypeError)
