"""What each public function refuses, argument by argument, as a table of facts.

A row is a name, a call, the error, and what it says. Every message names the argument or the leaf,
says what it must be, and what came ("Got ..."). Nothing is changed on disk by a call that is
refused."""

import gzip
import json
import os
import re
import struct
import zipfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import jaxnn
from jaxnn import plots
from jaxnn.cli import main
from jaxnn.data import count_examples, read_idx, shuffled
from jaxnn.descent import descent_path, gradient_descent, minimize
from jaxnn.figures import draw
from jaxnn.network import init_network, loss, predict
from jaxnn.numerical.differences import (
    directional_derivative,
    numerical_diff,
    numerical_grad,
    numerical_gradient,
    numerical_hessian,
    numerical_jacobian,
    partial_derivative,
)
from jaxnn.surfaces import bowl, plateau, rosenbrock, saddle, two_valleys

HOUSE = re.compile(r"^(`[^`]+`|/\S+:|an example) .*(must|says|labels).* Got ", re.DOTALL)
NAN, INF, KEY = float("nan"), float("inf"), jax.random.key(0)
X, Y, T = jnp.array([3.0, 4.0]), jnp.full((2, 3), 0.3), jnp.array([0, 1])
BATCH, NETWORK = jnp.ones((4, 2)), {"W1": jnp.ones((2, 3)), "b1": jnp.zeros(3)}
TEXT, OBJECTS = np.array(["a", "b"]), np.array([1.0, None], object)
WIDE_INDEX = np.array([0, 2**40])  # JAX would cut it to 32 bits, to 0
SGD = optax.sgd(0.1)


def needs_two(x, y):
    return jnp.sum(x * y)


def table(function, name, *rows):
    """Rows of one argument: each a value, the error, and what it says of it."""
    return [
        (f"{name}, {i}", lambda value=value: function(value), error, text)
        for i, (value, error, text) in enumerate(rows)
    ]


LOSSES = (
    jaxnn.mean_squared_error,
    jaxnn.cross_entropy_error,
    jaxnn.softmax_cross_entropy,
    jaxnn.accuracy,
)
BAD = [
    row
    for f in LOSSES
    for row in (
        *table(
            lambda y, f=f: f(y, T),
            f"{f.__name__} y",
            (None, TypeError, r"`(y|logits)` must be an array or a number. Got NoneType None."),
            ({"a": Y}, TypeError, r"`(y|logits)` must be an array or a number. Got dict "),
            (TEXT, TypeError, r"`(y|logits)` must be an array or a number. Got <U1\[2\]."),
            (OBJECTS, TypeError, r"`(y|logits)` must be an array or a number. Got object\[2\]."),
            (
                len,
                TypeError,
                r"`(y|logits)` must be an array or a number. Got builtin_function_or_method",
            ),
            (
                [[0.1], [0.1, 0.2]],
                TypeError,
                r"`(y|logits)` must be an array or a number. Got list",
            ),
        ),
        *table(
            lambda t, f=f: f(Y, t),
            f"{f.__name__} t",
            (None, TypeError, r"`t` must be an array or a number. Got NoneType None."),
            (TEXT, TypeError, r"`t` must be an array or a number. Got <U1\[2\]."),
            (jnp.array([0, -1]), ValueError, r"`t` must be class indices from 0 to 2. Got -1."),
            (
                jnp.array([0, 2**30]),
                ValueError,
                r"`t` must be class indices from 0 to 2. Got 1073741824.",
            ),
            (WIDE_INDEX, ValueError, r"`t` must be class indices from 0 to 2. Got 1099511627776."),
            (
                np.array([0, 2**32], np.uint64),
                ValueError,
                r"`t` must be class indices from 0 to 2. Got 4294967296.",
            ),
            (
                np.array(["2020", "2021"], "M8[Y]"),
                TypeError,
                r"`t` must be an array or a number. Got datetime64\[Y\]\[2\].",
            ),
        ),
    )
]
BAD += table(
    lambda delta: jaxnn.cross_entropy_error(Y, T, delta),
    "cross_entropy_error delta",
    (None, TypeError, "`delta` must be a number. Got NoneType None."),
    ("1e-7", TypeError, "`delta` must be a number. Got str '1e-7'."),
    (1j, TypeError, "`delta` must be a number. Got complex 1j."),
    (True, TypeError, "`delta` must be a number. Got bool True."),
    (-1.0, ValueError, "`delta` must be at least 0. Got -1.0."),
    (NAN, ValueError, "`delta` must be finite. Got nan."),
    (10**400, ValueError, "`delta` must be finite. Got inf."),
    (1e300, ValueError, "`delta` must be finite in float32. Got 1e[+]300."),
)
ONE_KEY = "must be one PRNG key, from `jax.random.key`. Got"
for name, draw_from in (
    ("init_network", lambda key: init_network(key, (2, 3))),
    ("sample_batch", lambda key: jaxnn.sample_batch(key, BATCH, 2)),
    ("shuffled", lambda key: shuffled(key, 3)),
):
    BAD += table(
        draw_from,
        f"{name} key",
        (None, TypeError, f"`key` {ONE_KEY} NoneType None."),
        (0, TypeError, f"`key` {ONE_KEY} int 0."),
        ("key", TypeError, f"`key` {ONE_KEY} str 'key'."),
        (X, TypeError, rf"`key` {ONE_KEY} float32\[2\]."),
        (jax.random.split(KEY, 2), TypeError, rf"`key` {ONE_KEY} key<fry>\[2\]."),
        (jnp.zeros(3, jnp.uint32), TypeError, rf"`key` {ONE_KEY} uint32\[3\]."),
    )
BAD += table(
    lambda sizes: init_network(KEY, sizes),
    "init_network sizes",
    (None, TypeError, "`sizes` must be a sequence of integers. Got NoneType None."),
    (5, TypeError, "`sizes` must be a sequence of integers. Got int 5."),
    ("23", TypeError, "`sizes` must be a sequence of integers. Got str '23'."),
    ({2: 1, 3: 1}, TypeError, "`sizes` must be a sequence of integers. Got dict {2: 1, 3: 1}."),
    ((), ValueError, r"`sizes` must name at least an input and an output layer. Got \(\)."),
    ((2, None), TypeError, r"`sizes\[1\]` must be an integer. Got NoneType None."),
    ((2, True), ValueError, r"`sizes\[1\]` must be an integer of at least 1. Got True."),
    ((-2, 3), ValueError, r"`sizes\[0\]` must be an integer of at least 1. Got -2."),
)
BAD += table(
    lambda scale: init_network(KEY, (2, 3), scale),
    "init_network weight_scale",
    (None, TypeError, "`weight_scale` must be a number. Got NoneType None."),
    (INF, ValueError, "`weight_scale` must be finite. Got inf."),
    (X, TypeError, r"`weight_scale` must be a number. Got float32\[2\]."),
    (1e300, ValueError, "`weight_scale` must be finite in float32. Got 1e[+]300."),
)
for name, make in (
    ("init_network", lambda dtype: init_network(KEY, (2, 3), dtype=dtype)),
    ("one_hot", lambda dtype: jaxnn.one_hot(T, 3, dtype)),
):
    BAD += table(
        make,
        f"{name} dtype",
        (3, TypeError, "`dtype` must be floating-point. Got 3."),
        ("number", TypeError, "`dtype` must be floating-point. Got 'number'."),
        (complex, TypeError, "`dtype` must be floating-point. Got <class 'complex'>."),
    )
BAD += table(
    lambda params: predict(params, BATCH),
    "predict params",
    (None, TypeError, "`params` must be a dictionary of arrays by name. Got NoneType None."),
    (X, TypeError, r"`params` must be a dictionary of arrays by name. Got float32\[2\]."),
    ([X], TypeError, "`params` must be a dictionary of arrays by name. Got list"),
    ({1: X}, TypeError, "`params` must be a dictionary of arrays by name. Got dict"),
    ({"W1": "a"}, TypeError, r"`params\['W1'\]` must be an array or a number. Got str 'a'."),
    (
        {"W1": None},
        ValueError,
        r"`params\['W1'\]` must have shape \(2, outputs\), to fit its input. Got NoneType None.",
    ),
    (
        {"W1": [[1.0], [1.0]]},
        ValueError,
        r"`params\['W1'\]` must have shape \(2, outputs\).* Got list",
    ),
    (
        {"W1": np.array([["a"], ["b"]])},
        TypeError,
        r"`params\['W1'\]` must be an array or a number. Got <U1\[2, 1\].",
    ),
    (
        {"W1": jnp.ones((2, 3)), "W3": X},
        ValueError,
        r"`params` must hold W1 to W2. Got \['W1', 'W3'\].",
    ),
    (
        {"W1": jnp.ones((2, 3)), "b1": 1.0},
        ValueError,
        r"`params\['b1'\]` must have shape \(3,\). Got float 1.0.",
    ),
)
BAD += table(
    lambda activation: loss(init_network(KEY, (2, 3, 3)), BATCH, jnp.zeros(4, int), activation),
    "loss activation",
    (None, TypeError, "`activation` must be a function. Got NoneType None."),
    ("relu", TypeError, "`activation` must be a function. Got str 'relu'."),
    (
        lambda a: None,
        TypeError,
        r"`activation\(...\)` must be an array or a number. Got NoneType None.",
    ),
    (
        lambda a: a[:, :1],
        ValueError,
        r"`params\['W2'\]` must have shape \(1, outputs\), to fit its input. Got float32\[3, 3\].",
    ),
)
BAD += table(
    lambda x: predict(NETWORK, x),
    "predict x",
    (None, TypeError, "`x` must be an array or a number. Got NoneType None."),
    (np.array([["a", "b"]]), TypeError, r"`x` must be an array or a number. Got <U1\[1, 2\]."),
    (jax.random.split(KEY, 2), TypeError, r"`x` must be numbers. Got key<fry>\[2\]."),
    (1.0, ValueError, r"`params\['W1'\]` must have shape \(None, outputs\), to fit its input."),
)
for name, call in (
    ("seed", jaxnn.load_digits),
    ("test_size", lambda size: jaxnn.load_digits(0, size)),
):
    BAD += table(
        call,
        f"load_digits {name}",
        (None, TypeError, f"`{name}` must be an integer. Got NoneType None."),
        ("1", TypeError, f"`{name}` must be an integer. Got str '1'."),
        (1.5, TypeError, f"`{name}` must be an integer. Got float 1.5."),
        (True, ValueError, f"`{name}` must be an integer of at least [01]. Got True."),
        (X, TypeError, rf"`{name}` must be an integer. Got float32\[2\]."),
    )
for name, call in (
    ("classes", lambda value: jaxnn.one_hot(T, value)),
    ("batch_size", lambda value: jaxnn.sample_batch(KEY, BATCH, value)),
    ("count", lambda value: shuffled(KEY, value)),
):
    BAD += table(
        call,
        name,
        (None, TypeError, f"`{name}` must be an integer. Got NoneType None."),
        (NAN, TypeError, f"`{name}` must be an integer. Got float nan."),
        (-2, ValueError, f"`{name}` must be an integer of at least 1. Got -2."),
        (
            2**70,
            ValueError,
            f"`{name}` must be an integer of at most 2147483647. Got 1180591620717411303424.",
        ),
    )
BAD += table(
    lambda t: jaxnn.one_hot(t, 3),
    "one_hot t",
    (None, TypeError, "`t` must be an array or a number. Got NoneType None."),
    (2**70, TypeError, "`t` must be an array or a number. Got int 1180591620717411303424."),
    (WIDE_INDEX, ValueError, "`t` must be class indices from 0 to 2. Got 1099511627776."),
)
BAD += table(
    count_examples,
    "count_examples",
    (None, ValueError, "`data` must be arrays with the same number of examples, .* Got no arrays."),
    (1.0, ValueError, r"`data` must be arrays .* Got `data` \(\)."),
    ((X, "a"), TypeError, r"`data\[1\]` must be an array or a number. Got str 'a'."),
    (OBJECTS, TypeError, r"`data` must be an array or a number. Got object\[2\]."),
)
BAD += table(
    lambda f: f[0](f[1]),
    "surfaces",
    (
        (bowl, jnp.array(3.0)),
        ValueError,
        r"`x` must be an array with at least 1 variable on its last axis. Got float32\[\].",
    ),
    (
        (plateau, jnp.ones(0)),
        ValueError,
        r"`x` must be an array with at least 1 variable .* Got float32\[0\].",
    ),
    (
        (saddle, jnp.ones(1)),
        ValueError,
        r"`x` must be an array with 2 variables on its last axis. Got float32\[1\].",
    ),
    (
        (two_valleys, jnp.ones((5, 3))),
        ValueError,
        r"`x` must be an array with 2 variables .* Got float32\[5, 3\].",
    ),
    (
        (rosenbrock, jnp.ones(1)),
        ValueError,
        r"`x` must be an array with at least 2 variables .* Got float32\[1\].",
    ),
    ((bowl, [3.0, 4.0]), ValueError, r"`x` must be an array .* Got list \[3.0, 4.0\]."),
)
# Of a function, a point and options: what each of the numerical derivatives has to say.
DERIVATIVES = {
    "numerical_grad": lambda f, x, **options: numerical_grad(f, **options)(x),
    "numerical_gradient": lambda f, x, **options: numerical_gradient(f, x, **options),
    "numerical_jacobian": lambda f, x, **options: numerical_jacobian(f, **options)(x),
    "numerical_hessian": lambda f, x, **options: numerical_hessian(f, **options)(x),
    "directional_derivative": lambda f, x, **options: directional_derivative(f, x, x, **options),
    "numerical_diff": lambda f, x, **options: numerical_diff(f, x, **options),
    "partial_derivative": lambda f, x, **options: partial_derivative(f, x, 0, **options),
}
for name, call in DERIVATIVES.items():
    BAD += table(
        lambda x, call=call: call(jnp.sum, x),
        f"{name} x",
        (
            None,
            TypeError,
            "`x` must hold at least one floating-point array. Got an empty NoneType.",
        ),
        (TEXT, TypeError, r"`x` must be an array or a number. Got <U1\[2\]."),
        (
            X > 0,
            TypeError,
            r"`x` must be floating-point, for a derivative with respect to it. Got bool\[2\].",
        ),
        (
            X * 1j,
            TypeError,
            r"`x` must be real, for a derivative with respect to it. Got complex64\[2\].",
        ),
        (
            KEY,
            TypeError,
            r"`x` must be floating-point, for a derivative with respect to it. Got key<fry>\[\].",
        ),
    )
    BAD += table(
        lambda f, call=call: call(f, X),
        f"{name} f",
        (None, TypeError, "`f` must be a function. Got NoneType None."),
        (
            needs_two,
            TypeError,
            r"`f` must take the arguments it is given, 1 positional. Got \(x, y\): missing a "
            r"required",
        ),
        (lambda x: "a", TypeError, r"`f\(...\)` must be an array or a number. Got str 'a'."),
        (lambda x: x > 0, TypeError, r"`f` must return .* Got bool\[2\]."),
        (lambda x: x.astype(int), TypeError, r"`f` must return .* Got int32\[2\]."),
    )
    BAD += table(
        lambda h, call=call: call(bowl, X, h=h),
        f"{name} h",
        ("1", TypeError, "`h` must be a number. Got str '1'."),
        (X, TypeError, r"`h` must be a number. Got float32\[2\]."),
        (-1.0, ValueError, "`h` must be positive and finite. Got -1.0."),
        (jnp.array(1j), TypeError, r"`h` must be a number. Got complex64\[\]."),
    )
    BAD += table(
        lambda how, call=call: call(bowl, X, evaluation=how),
        f"{name} evaluation",
        (None, ValueError, "`evaluation` must be 'float64' or 'own'. Got None."),
        (TEXT, ValueError, "`evaluation` must be 'float64' or 'own'. Got array"),
    )
BAD += table(
    lambda options: numerical_grad(bowl, **options)(X),
    "numerical_grad",
    ({"argnums": ()}, ValueError, r"`argnums` must name at least one argument. Got \(\)."),
    (
        {"argnums": None},
        ValueError,
        "`argnums` must name positional arguments, of which there are 1. Got None.",
    ),
    (
        {"argnums": True},
        ValueError,
        "`argnums` must name positional arguments, of which there are 1. Got True.",
    ),
    (
        {"argnums": (0, 5)},
        ValueError,
        r"`argnums` must name positional arguments, of which there are 1. Got \(0, 5\).",
    ),
    (
        {"scheme": ["central"]},
        ValueError,
        r"`scheme` must be 'central', 'forward' or 'backward'. Got \['central'\].",
    ),
    ({"method": X}, ValueError, "`method` must be 'propagation' or 'dense'. Got Array"),
    ({"batch_size": 1.5}, TypeError, "`batch_size` must be an integer. Got float 1.5."),
    ({"mesh": "cpu"}, TypeError, "`mesh` must be a jax.sharding.Mesh. Got str 'cpu'."),
    ({"has_aux": True}, TypeError, r"`f` must return a pair, with `has_aux`. Got float32\[\]."),
)
BAD += table(
    lambda f: numerical_grad(f, has_aux=True)(X),
    "numerical_grad has_aux",
    (lambda x: (bowl(x), 1, 2), TypeError, "`f` must return a pair, with `has_aux`. Got"),
    (lambda x: None, TypeError, "`f` must return a pair, with `has_aux`. Got None."),
    (lambda x: {"a": bowl(x), "b": 1}, TypeError, "`f` must return a pair, with `has_aux`. Got"),
)
BAD += table(
    lambda v: directional_derivative(bowl, X, v),
    "directional_derivative v",
    (None, ValueError, "`v` must have the structure of `x`, .* Got PyTreeDef"),
    (X[:1], ValueError, r"`v` must have shape \(2,\), like `x`. Got shape \(1,\)."),
    (OBJECTS, TypeError, r"`v` must be an array or a number. Got object\[2\]."),
    (X * 1j, TypeError, r"`v` must be real, as `x` is. Got complex64\[2\]."),
    (X > 0, TypeError, r"`v` must be real, as `x` is. Got bool\[2\]."),
)
BAD += table(
    lambda index: partial_derivative(bowl, X, index),
    "partial_derivative index",
    (None, TypeError, "`index` must be an integer or a tuple of them. Got NoneType None."),
    ("0", TypeError, "`index` must be an integer or a tuple of them. Got str '0'."),
    (1.0, TypeError, "`index` must be an integer or a tuple of them. Got float 1.0."),
    ([0], TypeError, r"`index` must be an integer or a tuple of them. Got list \[0\]."),
    (X, TypeError, r"`index` must be an integer or a tuple of them. Got float32\[2\]."),
    (True, IndexError, r"`index` must name one entry of `x`, which has shape \(2,\). Got True."),
    (
        (0, 0),
        IndexError,
        r"`index` must name one entry of `x`, which has shape \(2,\). Got \(0, 0\).",
    ),
    (2**70, IndexError, r"`index` must name one entry of `x`, .* Got 1180591620717411303424."),
)
BAD += [
    (
        "partial_derivative of a list",
        lambda: partial_derivative(lambda x: x[1] ** 2, [3.0, 4.0], 1),
        TypeError,
        r"`x` must be one number or array. Got a pytree, with leaves x\[0\], x\[1\].",
    ),
    (
        "numerical_diff of a dictionary",
        lambda: numerical_diff(lambda x: x["a"], {"a": 1.0}),
        TypeError,
        r"`x` must be one number or array. Got a pytree, with leaves x\['a'\].",
    ),
]
BAD += table(
    lambda options: jaxnn.check_gradient(bowl, X, **options),
    "check_gradient",
    ({"order": None}, ValueError, "`order` must be 1 or 2. Got None."),
    ({"order": "1"}, ValueError, "`order` must be 1 or 2. Got '1'."),
    ({"order": X}, ValueError, "`order` must be 1 or 2. Got Array"),
    (
        {"order": 2, "gradient": jax.grad(bowl)},
        ValueError,
        "`order` must be 1 where a hand-written `gradient` is given. Got 2.",
    ),
    ({"seed": None}, TypeError, "`seed` must be an integer. Got NoneType None."),
    ({"argnums": ()}, ValueError, r"`argnums` must name at least one argument. Got \(\)."),
    ({"has_aux": True}, TypeError, r"`f` must return a pair, with `has_aux`. Got float32\[\]."),
    ({"gradient": True}, TypeError, "`gradient` must be a function. Got bool True."),
    (
        {"gradient": needs_two},
        TypeError,
        r"`gradient` must take the arguments it is given, 1 positional. Got \(x, y\)",
    ),
    (
        {"gradient": lambda x: None},
        ValueError,
        r"`gradient\(...\)` must have the structure of `args\[0\]`, .* Got",
    ),
    (
        {"gradient": lambda x: "a"},
        TypeError,
        r"`gradient\(...\)` must be an array or a number. Got str 'a'.",
    ),
    (
        {"gradient": lambda x: x * 1j},
        TypeError,
        r"`gradient\(...\)` must be real. Got complex64\[2\].",
    ),
    (
        {"cotangent": [1.0, 2.0]},
        ValueError,
        "`cotangent` must have the structure of the output of `f`, .* Got PyTreeDef",
    ),
    (
        {"cotangent": ["a"]},
        TypeError,
        r"`cotangent\[0\]` must be an array or a number. Got str 'a'.",
    ),
    ({"cotangent": 1j}, TypeError, "`cotangent` must be real. Got complex 1j."),
    ({"cotangent": NAN}, ValueError, "`cotangent` must be finite. Got nan."),
)
BAD += [
    (
        "check_gradient f",
        lambda: jaxnn.check_gradient(needs_two, X),
        TypeError,
        "`f` must take .* 1 positional. Got",
    ),
    (
        "check_gradient str",
        lambda: jaxnn.check_gradient(lambda x: "a", X),
        TypeError,
        r"`f\(...\)` must be an array .* Got str",
    ),
    (
        "check_gradient of nothing",
        lambda: jaxnn.check_gradient(bowl),
        ValueError,
        "`argnums` must name .* there are 0. Got 0.",
    ),
    (
        "assert_gradient f",
        lambda: jaxnn.assert_gradient(3, X),
        TypeError,
        "`f` must be a function. Got int 3.",
    ),
    (
        "assert_gradient x",
        lambda: jaxnn.assert_gradient(bowl, X * INF),
        ValueError,
        r"`args\[0\]` must be finite. Got inf at",
    ),
    (
        "GradientReport.plot",
        lambda: jaxnn.check_gradient(bowl, X).plot("x"),
        ValueError,
        r"`path` must be one of \['\[0\]'\]. Got 'x'.",
    ),
]
DESCENTS = {
    "gradient_descent": lambda f, x, lr=0.1, steps=2, **options: gradient_descent(
        f, x, lr, steps, **options
    ),
    "descent_path": lambda f, x, lr=0.1, steps=2, **options: descent_path(
        f, x, lr, steps, **options
    ),
    "minimize": lambda f, x, lr=0.1, steps=2, **options: minimize(
        f, x, SGD, max_steps=steps, tolerance=lr, **options
    ),
}
for name, call in DESCENTS.items():
    rate, steps = ("tolerance", "max_steps") if name == "minimize" else ("lr", "step_num")
    BAD += table(
        lambda x, call=call: call(jnp.sum, x),
        f"{name} init_x",
        (
            None,
            TypeError,
            "`init_x` must hold at least one floating-point array. Got an empty NoneType.",
        ),
        (
            {"a": X, "b": "c"},
            TypeError,
            r"`init_x\['b'\]` must be an array or a number. Got str 'c'.",
        ),
        (OBJECTS, TypeError, r"`init_x` must be an array or a number. Got object\[2\]."),
        (X * 1j, TypeError, r"`init_x` must be floating-point, .* Got complex64\[2\]."),
    )
    BAD += table(
        lambda f, call=call: call(f, X),
        f"{name} f",
        (3, TypeError, "`f` must be a function. Got int 3."),
        (
            needs_two,
            TypeError,
            r"`f` must take the arguments it is given, 1 positional. Got \(x, y\)",
        ),
        (lambda x: x, TypeError, r"`f` must return a real scalar. Got float32\[2\]."),
        (lambda x: 1, TypeError, "`f` must return a real scalar. Got int 1."),
        (
            lambda x: (bowl(x),),
            TypeError,
            r"`f` must return a real scalar. Got \('float32\[\]',\).",
        ),
        (lambda x: bowl(x) * 1j, TypeError, r"`f` must return a real scalar. Got complex64\[\]."),
        (lambda x: "a", TypeError, "`f` must return a real scalar. Got str 'a'."),
        (lambda x: None, TypeError, "`f` must return a real scalar. Got None."),
    )
    BAD += table(
        lambda number, call=call: call(bowl, X, number),
        f"{name} {rate}",
        (None, TypeError, f"`{rate}` must be a number. Got NoneType None."),
        (True, TypeError, f"`{rate}` must be a number. Got bool True."),
        (NAN, ValueError, f"`{rate}` must be finite. Got nan."),
        (1e300, ValueError, rf"`{rate}` must be finite in float32. Got 1e\+300."),
    )
    BAD += table(
        lambda number, call=call: call(bowl, X, 0.1, number),
        f"{name} {steps}",
        (None, TypeError, f"`{steps}` must be an integer. Got NoneType None."),
        (True, ValueError, f"`{steps}` must be an integer of at least 0. Got True."),
        (
            2**31,
            ValueError,
            f"`{steps}` must be an integer of at most 214748364[67]. Got 2147483648.",
        ),
        (
            2**70,
            ValueError,
            f"`{steps}` must be an integer of at most 214748364[67]. Got 1180591620717411303424.",
        ),
    )
    BAD += table(
        lambda grad, call=call: call(bowl, X, grad=grad),
        f"{name} grad",
        ("grad", TypeError, "`grad` must be a function. Got str 'grad'."),
        (
            lambda: 3,
            TypeError,
            r"`grad` must take the arguments it is given, 1 positional. Got \(\)",
        ),
        (lambda f: 3, TypeError, r"`grad\(f\)` must be a function. Got int 3."),
        (
            lambda f: f,
            ValueError,
            r"`grad\(f\)\(...\)` must have the structure of `init_x`, PyTreeDef\(\[\*\]\). Got",
        ),
        (
            lambda f: lambda x: [jnp.ones(3)],
            ValueError,
            r"`grad\(f\)\(...\)\[0\]` must have shape \(2,\).* Got shape \(3,\).",
        ),
        (
            jax.value_and_grad,
            ValueError,
            r"`grad\(f\)\(...\)` must have the structure of `init_x`, .* Got",
        ),
    )
BAD += table(
    lambda optimizer: minimize(bowl, X, optimizer),
    "minimize optimizer",
    (None, TypeError, "`optimizer` must be an optax.GradientTransformation. Got NoneType None."),
    (optax.sgd, TypeError, "`optimizer` must be an optax.GradientTransformation. Got function"),
    (
        optax.GradientTransformation(3, 4),
        TypeError,
        "`optimizer` must be .* Got GradientTransformation",
    ),  # pyright: ignore
)
BAD += table(
    lambda state: minimize(bowl, X, optax.adam(0.1), opt_state=state),
    "minimize opt_state",
    ("a", TypeError, "`opt_state` must be an array or a number. Got str 'a'."),
    ({}, ValueError, r"`opt_state` must have the structure of `optimizer.init\(...\)`, .* Got"),
    (
        optax.adam(0.1).init([jnp.ones(3)]),
        ValueError,
        r"`opt_state.*mu.*` must have shape \(2,\).* Got shape \(3,\).",
    ),
)


def linear(params, x, t):
    return jnp.mean((x @ params["w"] - t) ** 2)


WEIGHTS, DATA = {"w": jnp.ones(3)}, (jnp.ones((6, 3)), jnp.ones(6))
RUN = {"loss": linear, "params": WEIGHTS, "data": DATA, "key": KEY, "epochs": 1, "batch_size": 4}
TRAINERS = {
    "fit": lambda change: jaxnn.fit(**{**RUN, "optimizer": SGD, **change}),
    "sweep": lambda change: jaxnn.sweep(**{**RUN, "optimizer": optax.sgd, "values": X, **change}),
}
for name, call in TRAINERS.items():
    BAD += table(
        call,
        name,
        ({"loss": "mse"}, TypeError, "`loss` must be a function. Got str 'mse'."),
        (
            {"loss": needs_two},
            TypeError,
            r"`loss` must take the arguments it is given, 3 positional. Got \(x, y\)",
        ),
        (
            {"loss": lambda p, x, t: "a"},
            TypeError,
            r"`loss\(...\)` must be an array or a number. Got str 'a'.",
        ),
        ({"loss": lambda p, x, t: None}, TypeError, "`loss` must return a real scalar. Got None."),
        (
            {"loss": lambda p, x, t: jnp.sum(p["w"]) * 1j},
            TypeError,
            r"`loss` must return a real scalar. Got complex64\[\].",
        ),
        (
            {"params": {"w": "a"}},
            TypeError,
            r"`params\['w'\]` must be an array or a number. Got str 'a'.",
        ),
        (
            {"params": {}},
            TypeError,
            "`params` must hold at least one floating-point array. Got an empty dict.",
        ),
        (
            {"params": {"w": jnp.ones(3), "n": T}},
            TypeError,
            r"`params\['n'\]` must be floating-point, for `jax.grad`. Got int32",
        ),
        (
            {"data": None},
            TypeError,
            r"`data` must be a tuple of arrays, such as \(x, t\). Got NoneType None.",
        ),
        (
            {"data": DATA[0]},
            TypeError,
            r"`data` must be a tuple of arrays, such as \(x, t\). Got float32\[6, 3\].",
        ),
        (
            {"data": {"x": DATA[0]}},
            TypeError,
            r"`data` must be a tuple of arrays, such as \(x, t\). Got dict",
        ),
        (
            {"data": DATA[:1]},
            TypeError,
            r"`loss` must take the arguments it is given, 2 positional. Got \(params, x, t\)",
        ),
        (
            {"data": (np.array(["a"] * 6), DATA[1])},
            TypeError,
            r"`data\[0\]` must be an array or a number. Got <U1\[6\].",
        ),
        (
            {"test": DATA[0]},
            TypeError,
            r"`test` must be a tuple of arrays, such as \(x, t\). Got float32\[6, 3\].",
        ),
        (
            {"test": (DATA[0],)},
            ValueError,
            "`an example of test` must have the structure of `data`, .* Got",
        ),
        (
            {"test": (DATA[0][:, :2], DATA[1])},
            ValueError,
            r"`an example of test\[0\]` must have shape \(3,\).* Got shape \(2,\).",
        ),
        (
            {"test": (jnp.ones((0, 3)), jnp.ones(0))},
            ValueError,
            "`test` must be arrays with the same number of examples.* Got",
        ),
        ({"key": None}, TypeError, "`key` must be one .*PRNG key.* Got NoneType None."),
        ({"key": 0}, TypeError, "`key` must be one .*PRNG key.* Got int 0."),
        (
            {"key": jax.random.split(KEY, (2, 2))},
            TypeError,
            r"`key` must be one .*PRNG key.* Got key<fry>\[2, 2\].",
        ),
        ({"epochs": NAN}, TypeError, "`epochs` must be an integer. Got float nan."),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer of at least 1. Got 0."),
        ({"grad": None}, TypeError, "`grad` must be a function. Got NoneType None."),
        ({"grad": lambda f: 3}, TypeError, r"`grad\(loss\)` must be a function. Got int 3."),
        (
            {"grad": lambda: 3},
            TypeError,
            r"`grad` must take the arguments it is given, 1 positional. Got \(\)",
        ),
        (
            {"grad": jax.value_and_grad},
            ValueError,
            r"`grad\(loss\)\(...\)` must have the structure of `params`, .* Got",
        ),
        ({"metrics": "accuracy"}, TypeError, "`metrics` must be a function. Got str 'accuracy'."),
        (
            {"metrics": needs_two},
            TypeError,
            r"`metrics` must take the arguments it is given, 3 positional. Got \(x, y\)",
        ),
        (
            {"metrics": lambda p, x, t: {"a": "b"}},
            TypeError,
            r"`metrics\(...\)\['a'\]` must be an array or a number. Got str 'b'.",
        ),
        (
            {"metrics": lambda p, x, t: {1: jnp.sum(x)}},
            TypeError,
            r"`metrics\(...\)` must have strings for its keys. Got \[1\].",
        ),
        (
            {"metrics": lambda p, x, t: {"a": jnp.sum(x) * 1j}},
            TypeError,
            r"`metrics\(...\)\['a'\]` must be real. Got complex64",
        ),
        (
            {"metrics": lambda p, x, t: {"loss": jnp.sum(x)}},
            ValueError,
            "`metrics` must leave the name 'loss' to the loss. Got",
        ),
        ({"on_progress": "bar"}, TypeError, "`on_progress` must be a function. Got str 'bar'."),
    )
BAD += table(
    TRAINERS["fit"],
    "fit alone",
    (
        {"optimizer": None},
        TypeError,
        "`optimizer` must be an optax.GradientTransformation. Got NoneType None.",
    ),
    (
        {"optimizer": optax.sgd},
        TypeError,
        "`optimizer` must be an optax.GradientTransformation. Got function",
    ),
    (
        {"key": jax.random.split(KEY, 2)},
        TypeError,
        r"`key` must be one PRNG key, from `jax.random.key`. Got key<fry>\[2\].",
    ),
    ({"watch": "loss"}, TypeError, "`watch` must be a function. Got str 'loss'."),
    (
        {"watch": lambda: 1.0},
        TypeError,
        r"`watch` must take the arguments it is given, 1 positional. Got \(\)",
    ),
    ({"resume": "newest"}, ValueError, "`resume` must be True, False or 'previous'. Got 'newest'."),
    ({"resume": X}, ValueError, "`resume` must be True, False or 'previous'. Got Array"),
    (
        {"resume": True},
        ValueError,
        "`resume` must come with `checkpoint`, a directory. Got True alone.",
    ),
    ({"checkpoint": 3}, TypeError, "`checkpoint` must be a path. Got int 3."),
    ({"checkpoint": b"x"}, TypeError, "`checkpoint` must be a path. Got bytes b'x'."),
    ({"checkpoint": "a\0b"}, ValueError, "`checkpoint` must be a path. Got 'a.x00b'."),
)
BAD += table(
    TRAINERS["sweep"],
    "sweep alone",
    ({"optimizer": SGD}, TypeError, "`optimizer` must be a function. Got GradientTransformation"),
    (
        {"optimizer": lambda: SGD},
        TypeError,
        "`optimizer` must take the arguments it is given, 1 positional. Got",
    ),
    (
        {"optimizer": lambda rate: 3},
        TypeError,
        r"`optimizer\(...\)` must be an optax.GradientTransformation. Got int 3.",
    ),
    (
        {"values": None},
        ValueError,
        "`values` must be arrays with the same number of examples, .* Got no arrays.",
    ),
    ({"values": ["a"]}, TypeError, r"`values\[0\]` must be an array or a number. Got str 'a'."),
    (
        {"values": (X, jnp.ones(3))},
        ValueError,
        r"`values` must be arrays .* Got `values\[0\]` \(2,\), `values\[1\]` \(3,\).",
    ),
    (
        {"key": jax.random.split(KEY, 3)},
        ValueError,
        "`key` must be one key, or one for each of the 2 runs. Got 3.",
    ),
    (
        {"key": jax.random.PRNGKey(0)},
        TypeError,
        r"`key` must be one typed PRNG key, .* Got uint32\[2\].",
    ),
    (
        {"params": lambda: WEIGHTS},
        TypeError,
        "`params` must take the arguments it is given, 1 positional. Got",
    ),
)
GRID = jnp.stack(jnp.meshgrid(jnp.linspace(-2, 2, 5), jnp.linspace(-2, 2, 5)), axis=-1)
CURVE, HEIGHTS = jnp.linspace(0.1, 1, 9), bowl(GRID)
BAD += table(
    lambda call: call[0](*call[1:]),
    "plots",
    (
        (plots.losses, None, None, None),
        TypeError,
        "`probability` must be an array or a number. Got NoneType None.",
    ),
    (
        (plots.losses, CURVE[:0], CURVE, CURVE),
        ValueError,
        r"`probability` must be a real array of shape \(points\). Got",
    ),
    (
        (plots.losses, CURVE, TEXT, CURVE),
        TypeError,
        r"`cross_entropy` must be an array or a number. Got <U1\[2\].",
    ),
    (
        (plots.loss_and_accuracy, GRID, GRID, GRID),
        ValueError,
        r"`distance` must be a real array .* Got float32\[5, 5, 2\].",
    ),
    (
        (plots.activations, CURVE, None, None),
        TypeError,
        "`values` must be a dictionary. Got NoneType None.",
    ),
    (
        (plots.slopes, CURVE, CURVE, "tangent"),
        TypeError,
        "`lines` must be a dictionary. Got str 'tangent'.",
    ),
    (
        (plots.slopes, CURVE, CURVE, {"f": 3.0}),
        ValueError,
        r"`lines\['f'\]` must have the structure of `\(\(x0, x1\), slope\)`",
    ),
    ((plots.step_errors, [CURVE]), TypeError, "`curves` must be a dictionary. Got list"),
    (
        (plots.step_errors, {"f": CURVE}),
        TypeError,
        r"`curves\['f'\]` must be a pair of steps and errors. Got float32\[9\].",
    ),
    (
        (plots.step_errors, {}, CURVE),
        TypeError,
        r"`defaults` must be a dictionary. Got float32\[9\].",
    ),
    (
        (plots.surface, None, HEIGHTS),
        TypeError,
        "`points` must be an array or a number. Got NoneType None.",
    ),
    (
        (plots.surface, HEIGHTS, HEIGHTS),
        ValueError,
        r"`points` must be a real array of shape \(rows, columns, 2\). Got",
    ),
    (
        (plots.gradient_field, GRID[..., :1], GRID),
        ValueError,
        r"`points` must have shape \(rows, columns, 2\).* Got shape",
    ),
    (
        (plots.descent_paths, GRID, HEIGHTS, None),
        TypeError,
        "`paths` must be a dictionary. Got NoneType None.",
    ),
    (
        (plots.path_losses, {"f": CURVE}),
        TypeError,
        r"`paths\['f'\]` must be a DescentPath, .* Got float32\[9\].",
    ),
    (
        (plots.training, None),
        TypeError,
        "`history` must be a History, from `fit`. Got NoneType None.",
    ),
    (
        (plots.gradients, None, None),
        ValueError,
        "`numerical` must hold arrays with at least one entry. Got NoneType None.",
    ),
    ((plots.mistakes, BATCH, T, Y), ValueError, r"`t` must have shape \(2,\).*|`t` must .* Got"),
    (
        (plots.mistakes, jnp.ones((2, 4)), jnp.array([0, 7]), Y),
        ValueError,
        "`t` must be class indices from 0 to 2. Got 7.",
    ),
    (
        (plots.mistakes, jnp.ones((2, 4)), X, Y),
        TypeError,
        r"`t` must be class indices \(integers\). Got float32\[2\].",
    ),
    (
        (plots.gradient_evidence, "leaf"),
        TypeError,
        "`leaf` must be a LeafReport, .* Got str 'leaf'.",
    ),
)
BAD += table(
    lambda options: plots.losses(CURVE, CURVE, CURVE, **options),
    "plots axes",
    ({"axes": 3.0}, TypeError, "`axes` must hold Matplotlib Axes. Got float 3.0."),
    ({"axes": ["a", "b"]}, TypeError, "`axes` must hold Matplotlib Axes. Got str 'a'."),
)
BAD += table(
    lambda options: plots.slopes(CURVE, CURVE, {}, **options),
    "plots ax",
    ({"ax": "axes"}, TypeError, "`ax` must be Matplotlib Axes. Got str 'axes'."),
)
BAD += table(
    lambda options: jaxnn.show_progress(**options),
    "show_progress",
    ({"lines": 3}, TypeError, "`lines` must be a text stream. Got int 3."),
    ({"bar": "tqdm"}, TypeError, "`bar` must be a text stream. Got str 'tqdm'."),
)
PATHS = {
    "load_mnist": ("directory", jaxnn.load_mnist),
    "load_checkpoint": ("source", jaxnn.load_checkpoint),
    "save_checkpoint": ("directory", lambda path: jaxnn.save_checkpoint(path, 1, {})),
    "progress_log": ("path", jaxnn.progress_log),
    "read_idx": ("path", lambda path: read_idx(path, 3)),
    "draw": ("directory", draw),
}
for name, (argument, call) in PATHS.items():
    BAD += table(
        call,
        f"{name} {argument}",
        (None, TypeError, f"`{argument}` must be a path. Got NoneType None."),
        (3, TypeError, f"`{argument}` must be a path. Got int 3."),
        ("a\0b", ValueError, f"`{argument}` must be a path. Got 'a.x00b'."),
    )


@pytest.mark.parametrize("call, error, message", [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_a_bad_argument_is_named(own_errors, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert HOUSE.match(str(raised.value)) and "\n" not in str(raised.value)
    assert type(raised.value).__module__ == "builtins"
    plt.close("all")


SHAPES = [
    *(
        (f"{f.__name__} {i}", f, (y, t), e, m)
        for f in LOSSES
        for i, (y, t, e, m) in enumerate(
            [
                (
                    Y * 1j,
                    T,
                    TypeError,
                    r"`(y|logits)` must be floating-point. Got complex64\[2, 3\].",
                ),
                (Y > 0, T, TypeError, r"`(y|logits)` must be floating-point. Got bool\[2, 3\]."),
                (
                    jnp.ones((2, 0)),
                    T,
                    ValueError,
                    r"`(y|logits)` must have at least one example and one class. Got shape \(2, "
                    r"0\).",
                ),
                (
                    Y,
                    T[:, None],
                    ValueError,
                    r"`t` must have shape \(2, 3\) or \(2,\), to fit `\w+`. Got shape \(2, 1\).",
                ),
                (Y, T > 0, TypeError, r"`t` must be class indices \(integers\) .* Got bool\[2\]."),
                (
                    Y,
                    Y * 1j,
                    TypeError,
                    r"`t` must be real, or class indices \(integers\). Got complex64\[2, 3\].",
                ),
                (
                    Y,
                    jax.random.split(KEY, (2, 3)),
                    TypeError,
                    r"`t` must be real, or class indices .* Got key<fry>\[2, 3\].",
                ),
            ]
        )
    ),
    (
        "delta",
        jaxnn.cross_entropy_error,
        (Y, T, X),
        TypeError,
        r"`delta` must be a number. Got float32\[2\].",
    ),
    (
        "init_network key",
        lambda k: init_network(k, (2, 3)),
        (X,),
        TypeError,
        r"`key` must be one PRNG key.* Got float32\[2\].",
    ),
    (
        "predict W1",
        predict,
        ({"W1": X}, BATCH),
        ValueError,
        r"`params\['W1'\]` must have shape \(2, outputs\).* Got float32\[2\].",
    ),
    (
        "predict x",
        predict,
        (NETWORK, jnp.ones((4, 3))),
        ValueError,
        r"`params\['W1'\]` must have shape \(3, outputs\).* Got",
    ),
    (
        "loss t",
        loss,
        (NETWORK, BATCH, T),
        ValueError,
        r"`t` must have shape \(4, 3\) or \(4,\), to fit `logits`. Got shape \(2,\).",
    ),
    (
        "one_hot t",
        lambda t: jaxnn.one_hot(t, 3),
        (X,),
        TypeError,
        r"`t` must be class indices \(integers\). Got float32\[2\].",
    ),
    (
        "sample_batch",
        lambda *d: jaxnn.sample_batch(KEY, d, 2),
        (X, Y[:1]),
        ValueError,
        r"`data` must be arrays .* Got `data\[0\]`",
    ),
    (
        "shuffled",
        lambda k: shuffled(k, 3),
        (jax.random.split(KEY, 2),),
        TypeError,
        "`key` must be one PRNG key.* Got key<fry>",
    ),
    (
        "saddle",
        saddle,
        (jnp.ones(3),),
        ValueError,
        r"`x` must be an array with 2 variables .* Got float32\[3\].",
    ),
    (
        "rosenbrock",
        rosenbrock,
        (jnp.ones(1),),
        ValueError,
        "`x` must be an array with at least 2 variables .* Got",
    ),
    (
        "numerical_grad",
        numerical_grad(lambda x: x),
        (X,),
        TypeError,
        r"`f` must return a real scalar. Got float32\[2\].",
    ),
    (
        "numerical_jacobian",
        numerical_jacobian(lambda x: x > 0),
        (X,),
        TypeError,
        r"`f` must return floating-point output. Got",
    ),
    (
        "numerical_hessian",
        numerical_hessian(bowl),
        (X * 1j,),
        TypeError,
        r"`x` must be real, .* Got complex64\[2\].",
    ),
    (
        "directional",
        lambda x, v: directional_derivative(bowl, x, v),
        (X, Y),
        ValueError,
        r"`v` must have shape \(2,\).* Got shape",
    ),
    (
        "numerical_diff",
        lambda x: numerical_diff(jnp.sum, x),
        (X,),
        TypeError,
        "`f` must return one number for each entry .* Got",
    ),
    (
        "partial",
        lambda x: partial_derivative(bowl, x, 2),
        (X,),
        IndexError,
        "`index` must name one entry of `x`.* Got 2.",
    ),
    (
        "gradient_descent",
        lambda x: gradient_descent(jnp.sin, x),
        (X,),
        TypeError,
        "`f` must return a real scalar. Got float32",
    ),
    (
        "gradient_descent lr",
        lambda x, lr: gradient_descent(bowl, x, lr),
        (X, X),
        TypeError,
        "`lr` must be a number. Got float32",
    ),
    (
        "descent_path",
        lambda x: descent_path(bowl, x),
        (T,),
        TypeError,
        "`init_x` must be floating-point.* Got int32",
    ),
    (
        "minimize",
        lambda x, n: minimize(bowl, x, SGD, max_steps=n),
        (X, 1.5),
        TypeError,
        "`max_steps` must be an integer. Got float",
    ),
]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "call, arguments, error, message", [pytest.param(*row[1:], id=row[0]) for row in SHAPES]
)
def test_bad_shapes_and_dtypes_are_refused_at_trace_time_too(
    own_errors, call, arguments, error, message, jitted
):
    with pytest.raises(error, match=message) as raised:
        (jax.jit(call) if jitted else call)(*arguments)
    assert HOUSE.match(str(raised.value)) and type(raised.value).__module__ == "builtins"


GOOD_IDX = struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(8)
RUN_OF = {
    "data": None,
    "layers": [5],
    "activation": "relu",
    "optimizer": "sgd",
    "lr": [0.5],
    "weight_scale": 0.01,
    "seed": 0,
}
CODE = """
import sys, jax.numpy as jnp
def right(x=jnp.ones(2)): return jnp.sum(x**2)
def vector(x=jnp.ones(2)): return x
def nan(x=jnp.full(2, jnp.nan)): return jnp.sum(x)
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
        "bits.log": b"\xff\xfe\n",
        "list.log": b"[1]\n",
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
        "nothing": "",
        "list": "[]",
        "other": '{"a": 1}',
        "deep": "[" * 100_000,
        "digits": "9" * 5000,
        "layers": json.dumps(RUN_OF | {"layers": [-5]}),
        "number": json.dumps(RUN_OF | {"layers": 5}),
        "evil": json.dumps(RUN_OF | {"activation": "__class__"}),
        "data": json.dumps(RUN_OF | {"data": 5}),
        "fine": json.dumps(RUN_OF),
    }
    for name, content in runs.items():
        (folder / "run" / name).mkdir(parents=True)
        (folder / "run" / name / "run.json").write_text(content)
    return folder


@pytest.fixture
def unchanged(files, monkeypatch):
    """That a call leaves the files, and the directory that it is called from, as they were."""
    monkeypatch.chdir(files)

    def contents():
        return {
            str(p): p.read_bytes() if p.is_file() else None
            for p in files.rglob("*")
            if p.name != ".lock"
        }

    before = contents()
    yield
    assert contents() == before


def state_of(path):
    return jaxnn.load_checkpoint(path)


PROGRESS = jaxnn.Progress(1, 2, 3, 4, 0.5, None)
NEW, STATE = "new", {"params": {"w": jnp.ones(2)}}
FILES = [
    *table(
        lambda path: read_idx(path, 3),
        "read_idx",
        ("nowhere", FileNotFoundError, "`path` must be a file. Got 'nowhere'."),
        ("good", FileNotFoundError, "`path` must be a file. Got 'good'."),
        ("pipe", FileNotFoundError, "`path` must be a file. Got 'pipe'."),
        (
            "empty",
            ValueError,
            "empty: an IDX header of 16 bytes must come first. Got 0 bytes in all.",
        ),
        (
            "text",
            ValueError,
            "text: an IDX header of 16 bytes must come first. Got 6 bytes in all.",
        ),
        ("png", ValueError, "png: the magic number must be 0x00000803 .* Got 0x89504e47."),
        (
            "idx.long",
            ValueError,
            r"idx.long: the header says \(2, 2, 2\), so 8 bytes must follow it. Got more.",
        ),
        (
            "idx.cut",
            ValueError,
            r"idx.cut: the header says \(2, 2, 2\), so 8 bytes must follow it. Got 7 bytes.",
        ),
        (
            "idx.huge",
            ValueError,
            "idx.huge: must hold at most 2147483648 bytes of data. Got a header that says",
        ),
        (
            "idx.none",
            ValueError,
            "idx.none: must hold at most 2147483648 bytes of data. Got a header that says",
        ),
        (
            "gz.magic",
            ValueError,
            "gz.magic: must be a whole gzip file. Got one that cannot be unpacked",
        ),
        ("gz.bomb", ValueError, "gz.bomb: the header says .* 8 bytes must follow it. Got more."),
        (
            "gz.crc",
            ValueError,
            "gz.crc: must be a whole gzip file. Got one that cannot be unpacked",
        ),
        ("gz.twice", ValueError, "gz.twice: the magic number must be .* Got 0x1f8b"),
        (
            "gz.more",
            ValueError,
            "gz.more: must be a whole gzip file. Got one that cannot be unpacked",
        ),
    ),
    *table(
        lambda options: read_idx("idx", **{"axes": 3, **options}),
        "read_idx options",
        ({"axes": None}, TypeError, "`axes` must be an integer. Got NoneType None."),
        (
            {"axes": 2**70},
            ValueError,
            "`axes` must be an integer of at most 255. Got 1180591620717411303424.",
        ),
        ({"axes": 1}, ValueError, "idx: the magic number must be 0x00000801 .* Got 0x00000803."),
        ({"limit": 0}, ValueError, "`limit` must be an integer of at least 1. Got 0."),
        (
            {"limit": 7},
            ValueError,
            "idx: must hold at most 7 bytes of data. Got a header that says",
        ),
    ),
    *table(
        jaxnn.load_mnist,
        "load_mnist",
        (
            "text",
            FileNotFoundError,
            "`directory` must be a directory with MNIST's IDX files. Got 'text'.",
        ),
        (
            "mnist",
            ValueError,
            r"mnist/train-images-idx3-ubyte: must hold at least one image and one pixel. Got "
            r"shape \(0, 2, 2\).",
        ),
    ),
    *table(
        lambda options: jaxnn.save_checkpoint(
            **{"directory": NEW, "step": 1, "state": STATE, **options}
        ),
        "save_checkpoint",
        (
            {"directory": "text"},
            FileExistsError,
            "`directory` must be a directory, or a place for one. Got 'text': File exists.",
        ),
        (
            {"directory": "text/x"},
            NotADirectoryError,
            "`directory` must be a directory, .* Got 'text/x': Not a directory.",
        ),
        ({"step": None}, TypeError, "`step` must be an integer. Got NoneType None."),
        (
            {"step": 10**12},
            ValueError,
            "`step` must be an integer of at most 999999999999. Got 1000000000000.",
        ),
        ({"keep": "1"}, TypeError, "`keep` must be an integer. Got str '1'."),
        (
            {"state": None},
            TypeError,
            "`state` must be a dictionary of the parts of the state. Got NoneType None.",
        ),
        (
            {"state": [1]},
            TypeError,
            r"`state` must be a dictionary with strings for its keys. Got list \[1\].",
        ),
        (
            {"state": {1: X}},
            TypeError,
            "`state` must be a dictionary with strings for its keys. Got dict",
        ),
        (
            {"state": {"p": OBJECTS}},
            TypeError,
            r"`p` must be an array or a number. Got object\[2\].",
        ),
        (
            {"state": {"p": [TEXT]}},
            TypeError,
            r"`p\[0\]` must be an array or a number. Got <U1\[2\].",
        ),
        (
            {"records": [1]},
            TypeError,
            r"`records` must be a dictionary with strings for its keys. Got list \[1\].",
        ),
        (
            {"records": {"a": None}},
            TypeError,
            r"`records\['a'\]` must be an array or a number. Got NoneType None.",
        ),
        (
            {"records": {"a": [[1], [1, 2]]}},
            TypeError,
            r"`records\['a'\]` must be an array or a number. Got list",
        ),
        (
            {"info": "a"},
            TypeError,
            "`info` must be a dictionary with strings for its keys. Got str 'a'.",
        ),
        (
            {"info": {"a": X}},
            TypeError,
            "`info` must be what JSON can hold. Got what it cannot: Object of type",
        ),
        (
            {"info": {"a": {1}}},
            TypeError,
            "`info` must be what JSON can hold. Got what it cannot: Object of type set",
        ),
    ),
    *table(
        state_of,
        "load_checkpoint",
        (
            "nowhere",
            FileNotFoundError,
            "`source` must be a checkpoint or a directory of them. Got 'nowhere'.",
        ),
        (
            "pipe",
            FileNotFoundError,
            "`source` must be a checkpoint or a directory of them. Got 'pipe'.",
        ),
        ("run", FileNotFoundError, "`source` must hold a checkpoint. Got 'run', which has none."),
        (
            "empty",
            ValueError,
            "empty: must be a whole checkpoint. Got a file that is empty or begins with something "
            "else",
        ),
        (
            "foreign.npz",
            ValueError,
            "foreign.npz: must be a whole checkpoint. Got one with another header",
        ),
        (
            "packed.npz",
            ValueError,
            "packed.npz: must be a whole checkpoint. Got a ZIP whose members are packed",
        ),
        (
            "encrypted.npz",
            ValueError,
            "encrypted.npz: must be a whole checkpoint. Got .* encrypted",
        ),
        (
            "good/forged_step.npz",
            ValueError,
            "must be a whole checkpoint. Got a header without step or info",
        ),
        (
            "good/forged_info.npz",
            ValueError,
            "must be a whole checkpoint. Got a header without step or info",
        ),
        (
            "good/forged_version.npz",
            ValueError,
            "must be a whole checkpoint. Got version 3 of the format",
        ),
        (
            "good/forged_format.npz",
            ValueError,
            "must be a whole checkpoint. Got a file of another kind",
        ),
        (
            "good/forged_parts.npz",
            ValueError,
            "must be a whole checkpoint. Got one with another header",
        ),
        (
            "good/forged_leaves.npz",
            ValueError,
            "must be a whole checkpoint. Got an array of float32 where its header says float64",
        ),
    ),
    *table(
        lambda ask: state_of("good").restore(*ask),
        "Checkpoint.restore",
        (
            (None, {}),
            ValueError,
            r"`part` must be one of \['params'\], which the checkpoint holds. Got None.",
        ),
        (
            (["params"], {}),
            ValueError,
            r"`part` must be one of \['params'\], which the checkpoint holds. Got \['params'\].",
        ),
        (
            ("params", {}),
            ValueError,
            r"`params\['w'\]` must be as in the checkpoint, which holds float32\[2\]. Got nothing.",
        ),
        (
            ("params", {"w": "a"}),
            ValueError,
            r"`params\['w'\]` must be as in the checkpoint, .* Got str 'a'.",
        ),
    ),
    *table(
        lambda path: jaxnn.progress_log(path)(PROGRESS),
        "progress_log",
        (
            "good",
            IsADirectoryError,
            "`path` must be a file in a directory that is there. Got 'good': Is a directory.",
        ),
        (
            "a/b",
            FileNotFoundError,
            "`path` must be a file in a directory that is there. Got 'a/b': No such file",
        ),
        (
            "text",
            ValueError,
            "`log` must be a log of steps, or a new file. Got 'text', with a line",
        ),
        (
            "bits.log",
            ValueError,
            "`log` must be a log of steps, or a new file. Got 'bits.log', with a line",
        ),
        (
            "list.log",
            ValueError,
            "`log` must be a log of steps, or a new file. Got 'list.log', with a line",
        ),
    ),
    *table(
        TRAINERS["fit"],
        "fit checkpoint",
        (
            {"checkpoint": "text"},
            FileExistsError,
            "`checkpoint` must be a directory, .* Got 'text': File exists.",
        ),
        (
            {"checkpoint": "good"},
            FileExistsError,
            "`checkpoint` must be empty unless `resume` is set. Got 'good'",
        ),
        (
            {"checkpoint": "good", "resume": True},
            ValueError,
            "`checkpoint` must hold a run of `fit`. Got 'good', with something",
        ),
        (
            {"checkpoint": NEW, "epochs": 0},
            ValueError,
            "`epochs` must be an integer of at least 1. Got 0.",
        ),
    ),
    *table(
        draw,
        "draw",
        (
            "text",
            FileExistsError,
            "`directory` must be a directory, or a place for one. Got 'text'",
        ),
    ),
]


@pytest.mark.parametrize(
    "call, error, message", [pytest.param(*row[1:], id=row[0]) for row in FILES]
)
def test_a_bad_file_is_named_and_nothing_is_changed(own_errors, unchanged, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert re.search(r"(`[^`]+`|^[\w./-]+:).* must .*Got ", str(raised.value)) and "\n" not in str(
        raised.value
    )


ARGV = [
    ("", "required: COMMAND"),
    ("TRAIN", "argument COMMAND: invalid choice: 'TRAIN'"),
    ("train --epochs", "argument --epochs: expected one argument"),
    ("train --epochs 1.5", "argument --epochs: must be a whole number of at least 1. Got '1.5'"),
    (
        "train --batch-size 1e3",
        "argument --batch-size: must be a whole number of at least 1. Got '1e3'",
    ),
    ("train --layers 5,,5", "argument --layers: must be a whole number of at least 1. Got ''"),
    ("train --lr -1", "argument --lr: must be a finite number of at least 0. Got '-1'"),
    ("train --lr 1e300", "argument --lr: must be finite in float32. Got '1e300'"),
    (
        "train --weight-scale inf",
        "argument --weight-scale: must be a finite number of at least 0. Got 'inf'",
    ),
    (
        "train --seed 99999999999999999999",
        "argument --seed: must be below 2**63. Got '99999999999999999999'",
    ),
    ("train --optimizer lbfgs", "argument --optimizer: invalid choice: 'lbfgs'"),
    ("train --activation step", "argument --activation: invalid choice: 'step'"),
    ("train --every 0", "argument --every: must be a whole number of at least 1. Got '0'"),
    ("train --frob", "unrecognized arguments: --frob"),
    ("train --resume", "`--resume` must come with --checkpoint DIR. Got no directory."),
    ("train --resume oldest --checkpoint new", "argument --resume: invalid choice: 'oldest'"),
    (
        "train --lr 0.1,0.2 --checkpoint new",
        "`--lr` must be one number with --checkpoint or --patience. Got 2 numbers.",
    ),
    (
        "train --data nowhere --checkpoint new",
        "`--data` must be a directory with MNIST's IDX files. Got 'nowhere'.",
    ),
    (
        "train --data mnist --checkpoint new",
        "mnist/train-images-idx3-ubyte: must hold at least one image and one pixel. Got",
    ),
    (
        "train --log good --checkpoint new",
        "`--log` must be a file in a directory that is there. Got 'good'.",
    ),
    (
        "train --log no/where",
        "`--log` must be a file in a directory that is there. Got 'no/where'.",
    ),
    (
        "train --checkpoint text",
        "`--checkpoint` must be a directory, or a place for one. Got 'text': File exists.",
    ),
    (
        "train --checkpoint run/deep --resume",
        "`DIR` must be what `jaxnn train --checkpoint` was given. Got 'run/deep'",
    ),
    (
        "train --checkpoint run/fine --resume",
        "`--layers` must be 5, as in run/fine/run.json. Got 50.",
    ),
    (
        "train --coordinator x:1",
        "`--num-processes` must be given with the other two. Got --coordinator.",
    ),
    ("eval", "the following arguments are required: DIR"),
    ("eval nowhere", "`DIR` must be what `jaxnn train --checkpoint` was given. Got 'nowhere'"),
    ("eval text", "`DIR` must be what `jaxnn train --checkpoint` was given. Got 'text'"),
    *(
        (
            f"eval run/{name}",
            f"`DIR` must be what `jaxnn train --checkpoint` was given. Got 'run/{name}'",
        )
        for name in (
            "nothing",
            "list",
            "other",
            "deep",
            "digits",
            "layers",
            "number",
            "evil",
            "data",
        )
    ),
    ("eval run/fine", "`DIR` must hold a checkpoint. Got 'run/fine', which has none."),
    (
        "eval run/fine --data nowhere",
        "`--data` must be a directory with MNIST's IDX files. Got 'nowhere'.",
    ),
    ("check", "the following arguments are required: TARGET"),
    ("check :f", "`TARGET` must be FILE.py:NAME or MODULE:NAME. Got ':f'."),
    ("check code.py:right --order 3", "argument --order: invalid choice: 3"),
    (
        "check code.py:right --plot good",
        "`--plot` must be a file in a directory that is there. Got 'good'.",
    ),
    (
        "check code.py:right --plot no/x.png",
        "`--plot` must be a file in a directory that is there. Got 'no/x.png'.",
    ),
    (
        "check code.py:missing",
        "`TARGET` must name a function of code.py. Got 'missing', which it does not define.",
    ),
    (
        "check code.py:vector",
        "`f` must return a scalar, or `cotangent` must say how to project its output",
    ),
    ("check code.py:nan", "`args[0]` must be finite. Got nan at index [0]."),
    ("check code.py:text", "`args[0]` must be an array or a number. Got str 'a'."),
    (
        "check code.py:integers",
        "`args[0]` must be floating-point, for a derivative with respect to it. Got int32[2].",
    ),
    ("check code.py:raises", "`TARGET` must be a function that runs. Got RuntimeError: two lines"),
    ("check code.py:key", "`TARGET` must be a function that runs. Got KeyError: 'a'"),
    ("check code.py:leaves", "`TARGET` must be a function that runs. Got SystemExit: 0"),
    (
        "check code.py:pair",
        "`pair` must return (function, arguments) where it takes no arguments itself. Got (3, 4).",
    ),
    (
        "check code.py:none",
        "`none` must return (function, arguments) where it takes no arguments itself. Got None.",
    ),
    ("check code.py:quits", "`quits` must be a function that runs. Got SystemExit: 0"),
    (
        "check code.py:keyword",
        "`f` must take the arguments it is given, 1 positional. Got (*, x=1.0)",
    ),
    ("check syntax.py:f", "`TARGET` must be a file or module that runs. Got SyntaxError"),
    ("check exit.py:f", "`TARGET` must be a file or module that runs. Got SystemExit: 0"),
    ("check nul.py:f", "`TARGET` must be a file or module that runs. Got"),
    ("check good.py:f", "`TARGET` must be a file or module that runs. Got FileNotFoundError"),
    ("figures", "the following arguments are required: --out"),
    (
        "figures --out text",
        "`--out` must be a directory, or a place for one. Got 'text': File exists.",
    ),
    ("tour 3", "unrecognized arguments: 3"),
]


@pytest.mark.parametrize("line, message", ARGV, ids=[line for line, _ in ARGV])
def test_a_bad_command_is_one_line_and_exit_code_2(own_errors, unchanged, capsys, line, message):
    try:
        code = main(line.split())
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert (code, err.count("\n"), out) == (2, 1, "") and message in err


def test_empty_leaves_have_empty_derivatives():
    point = {"a": X, "b": jnp.ones((0, 3))}
    total = lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))  # noqa: E731
    gradient = numerical_grad(total)(point)
    assert gradient["a"].tolist() == pytest.approx([6, 8], rel=1e-5) and gradient["b"].shape == (
        0,
        3,
    )
    assert numerical_grad(total)({"b": jnp.ones(0)})["b"].shape == (0,)
    hessian = numerical_hessian(total)(point)
    assert hessian["a"]["b"].shape == (2, 0, 3) and hessian["b"]["b"].shape == (0, 3, 0, 3)
    assert numerical_jacobian(lambda x: 2 * x["a"])(point)["b"].shape == (2, 0, 3)


def test_every_public_name_is_in_the_table():
    told = " ".join([row[0] for row in (*BAD, *FILES, *SHAPES)])
    results = {
        "GradientError",
        "GradientReport",
        "Checkpoint",
        "Digits",
        "DescentPath",
        "DivergenceWarning",
        "Minimum",
        "Stop",
    }
    results |= {"Progress", "Fit", "History", "Status"}
    assert {name for name in jaxnn.__all__ if name not in told} - results == set()
