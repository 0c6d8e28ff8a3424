"""Functions whose gradient goes bad on one line, marked `# HERE`: twenty and more for each of the
three questions. `# ALSO` marks a line that is as good an answer.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.extend import core
from jax.interpreters import ad, batching, mlir


class Case(NamedTuple):
    """A function, its arguments, and the lines that are right answers."""

    name: str
    question: str
    make: Callable[[], tuple[Callable, tuple[Any, ...]]]
    lines: tuple[int, ...]


CASES: list[Case] = []


def asks(question):
    def register(make):
        text, first = inspect.getsourcelines(make)
        marked = [first + i for i, line in enumerate(text) if "# HERE" in line or "# ALSO" in line]
        CASES.append(Case(make.__name__, question, make, tuple(marked)))
        return make

    return register


born, wrong, lost = asks("nan"), asks("rule"), asks("digits")


def draw(seed, *shape, scale=1.0):
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return jnp.asarray(values, jnp.float32)


def ruled(value, slope):
    """A function of one argument with a slope written by hand."""
    f = jax.custom_jvp(value)
    f.defjvp(lambda xs, ts: (value(*xs), slope(*xs) * ts[0]))
    return f


def backward_ruled(value, backward):
    f = jax.custom_vjp(value)
    f.defvjp(lambda *xs: (value(*xs), xs), backward)
    return f


# ---------------------------------------------------------------- where is NaN born?


@born
def root_of_a_variance_that_is_0():
    def f(x):
        mean = jnp.mean(x, 0)
        spread = jnp.sqrt(jnp.mean((x - mean) ** 2, 0))  # HERE
        return jnp.sum(spread)

    return f, (jnp.ones((4, 3)),)


@born
def norm_at_the_origin():
    def f(x):
        y = 2 * x
        length = jnp.linalg.norm(y)  # HERE
        return jnp.tanh(length)

    return f, (jnp.zeros(3),)


@born
def entropy_of_a_sure_thing():
    def f(p):
        q = p / jnp.sum(p)
        terms = q * jnp.log(q)  # HERE
        return -jnp.sum(terms)

    return f, (jnp.array([1.0, 0.0, 0.0]),)


@born
def overflowing_softmax():
    def f(x):
        e = jnp.exp(x)  # HERE
        total = jnp.sum(e)
        return jnp.sum((e / total) ** 2)

    return f, (jnp.array([100.0, 1.0]),)


@born
def square_root_of_a_negative_number():
    def f(x):
        inside = x**2 - 1
        return jnp.sum(jnp.sqrt(inside))  # HERE

    return f, (jnp.array([0.5, 2.0]),)


@born
def division_in_the_branch_not_taken():
    def f(x):
        ratio = jnp.sin(x) / x  # HERE
        y = jnp.where(x == 0, 1.0, ratio)
        return jnp.sum(y)

    return f, (jnp.array([0.0, 1.0]),)


@born
def a_row_that_is_masked_throughout():
    def f(x):
        mask = jnp.array([[True, True], [False, False]])
        scores = jnp.where(mask, x, -jnp.inf)
        weights = jax.nn.softmax(scores, -1)  # HERE
        return jnp.sum(weights * x)

    return f, (draw(0, 2, 2),)


@born
def exponential_in_the_branch_not_taken():
    def f(x):
        y = jnp.where(x > 50, x, jnp.log(1 + jnp.exp(x)))  # HERE
        return jnp.sum(y)

    return f, (jnp.array([1.0, 100.0]),)


@born
def angle_between_equal_vectors():
    def f(a, b):
        unit = lambda v: v / jnp.sqrt(jnp.sum(v**2))  # noqa: E731
        cosine = jnp.sum(unit(a) * unit(b))
        return jnp.arccos(jnp.minimum(cosine, 1.0))  # HERE

    return f, (jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0]))


@born
def equal_eigenvalues():
    def f(a):
        s = (a + a.T) / 2
        _, u = jnp.linalg.eigh(s)  # HERE
        return jnp.sum(u[:, 0] * jnp.arange(3.0))

    return f, (jnp.eye(3),)


@born
def equal_singular_values():
    def f(a):
        u, _, v = jnp.linalg.svd(a)  # HERE
        return jnp.sum((u @ v) ** 3)

    return f, (jnp.eye(3),)


@born
def in_the_seventh_iteration():
    def f(x):
        def step(i, h):
            h = h - 1.0
            return h + 0 * jnp.sqrt(h)  # HERE

        return lax.fori_loop(0, 10, step, x)

    return f, (jnp.array(7.0),)


@born
def in_a_loop_within_a_loop():
    def f(x):
        def inner(h, v):
            return h * v, jnp.log(h * v)  # HERE

        def outer(h, row):
            h, logs = lax.scan(inner, h, row)
            return h, jnp.sum(logs)

        return jnp.sum(lax.scan(outer, 1.0, x)[1])

    return f, (jnp.ones((3, 4)).at[1, 2].set(0.0),)


@born
def in_the_branch_of_a_cond():
    def f(x):
        def small(x):
            y = x - 1
            return jnp.sum(jnp.sqrt(y))  # HERE

        return lax.cond(jnp.sum(x) < 10, small, jnp.sum, x)

    return f, (jnp.array([1.0, 2.0]),)


@born
def under_a_jitted_function():
    @jax.jit
    def distance(a, b):
        gap = a - b
        return jnp.sqrt(jnp.sum(gap**2))  # HERE

    def f(x):
        return distance(x, jnp.array([1.0, 2.0])) + distance(x, jnp.zeros(2))

    return f, (jnp.array([1.0, 2.0]),)


@born
def under_vmap():
    def one(v):
        return jnp.sqrt(jnp.sum(v**2))  # HERE

    def f(x):
        return jnp.sum(jax.vmap(one)(x) * jnp.arange(3.0))

    return f, (draw(1, 3, 2).at[1].set(0),)


@born
def under_checkpoint():
    @jax.checkpoint
    def layer(x):
        y = jnp.sin(x)
        return jnp.log(y)  # HERE

    def f(x):
        return jnp.sum(jnp.exp(layer(x)))

    return f, (jnp.array([0.0, 1.0]),)


@born
def in_a_rule_of_ones_own():
    sinc = backward_ruled(
        lambda x: jnp.where(x == 0, 1.0, jnp.sin(x) / jnp.where(x == 0, 1.0, x)),
        lambda xs, g: (g * (jnp.cos(xs[0]) / xs[0] - jnp.sin(xs[0]) / xs[0] ** 2),),
    )

    def f(x):
        y = x - 1
        z = sinc(y)  # HERE
        return jnp.sum(z**2)

    return f, (jnp.array([1.0, 2.0]),)


@born
def power_with_an_exponent_that_is_learned():
    def f(p):
        base = jnp.maximum(p["x"], 0.0)
        y = base ** p["k"]  # HERE
        return jnp.sum(y)

    return f, ({"x": jnp.array([-1.0, 2.0]), "k": jnp.array(0.5)},)


@born
def log_of_a_probability_that_underflows():
    def f(x):
        p = jax.nn.sigmoid(x)
        return -jnp.mean(jnp.log(1 - p))  # HERE

    return f, (jnp.array([1.0, 40.0]),)


@born
def arctanh_at_its_end():
    def f(x):
        c = jnp.clip(x, -1.0, 1.0)
        return jnp.sum(jnp.arctanh(c) * 0.0)  # HERE

    return f, (jnp.array([0.5, 3.0]),)


@born
def cholesky_of_what_is_not_positive():
    def f(a):
        k = a @ a.T - 2 * jnp.eye(2)
        c = jnp.linalg.cholesky(k)  # HERE
        return jnp.sum(jnp.log(jnp.diag(c)))

    return f, (draw(3, 2, 2, scale=0.3),)


@born
def harmless_infinity_before():
    def f(x):
        ceiling = jnp.where(x > 0, jnp.inf, 1.0)
        y = jnp.minimum(x, ceiling)
        z = jnp.sqrt(y - 1)  # HERE
        return jnp.sum(z)

    return f, (jnp.array([1.0, 2.0]),)


# ---------------------------------------------------------------- which rule is wrong?


@wrong
def a_sign():
    sine = ruled(jnp.sin, lambda x: -jnp.cos(x))

    def f(x):
        y = x * 2
        return jnp.sum(sine(y))  # HERE

    return f, (draw(10, 4),)


@wrong
def a_factor_in_a_backward_pass():
    square = backward_ruled(lambda x: x**2, lambda xs, g: (g * xs[0],))

    def f(x):
        y = jnp.tanh(x)
        z = square(y)  # HERE
        return jnp.mean(z)

    return f, (draw(11, 5),)


@wrong
def the_second_of_two_arguments():
    times = backward_ruled(lambda x, y: x * y, lambda xs, g: (g * xs[1], 1.02 * g * xs[0]))

    def f(x, y):
        u = jnp.exp(x)
        return jnp.sum(times(u, y))  # HERE

    return f, (draw(12, 3), draw(13, 3))


@wrong
def one_row_of_a_weight():
    hold = backward_ruled(lambda w: w, lambda _, g: (g.at[1].multiply(1.05),))

    def f(w, x):
        w = hold(w)  # HERE
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    return f, (draw(14, 4, 3), draw(15, 5, 4))


@wrong
def one_small_entry_in_ten_thousand():
    hold = backward_ruled(lambda w: w, lambda _, g: (g.at[1234].multiply(1.05),))

    def f(x):
        y = jnp.sin(x)
        z = hold(y)  # HERE
        return jnp.sum(z**2 * jnp.arange(10000.0).at[1234].set(0.5))

    return f, (draw(16, 10000),)


@wrong
def inside_a_scan():
    cube = ruled(lambda x: x**3, lambda x: 2 * x**2)

    def f(xs):
        def step(h, x):
            h = jnp.tanh(h + x)
            return cube(h), h  # HERE

        return lax.scan(step, jnp.float32(0.5), xs)[0]

    return f, (draw(17, 6),)


@wrong
def inside_a_scan_for_negative_numbers_alone():
    bent = ruled(lambda x: x**2, lambda x: jnp.where(x < 0, x, 2 * x))

    def f(xs):
        def step(h, x):
            return h + bent(x), None  # HERE

        return lax.scan(step, jnp.float32(0), xs)[0]

    return f, (jnp.array([1.0, 2.0, 3.0, -1.0, 2.0]),)


@wrong
def inside_a_fori_loop():
    root = ruled(jnp.sqrt, lambda x: 0.5 * jnp.sqrt(x))

    def f(x):
        def step(i, h):
            h = h + 1
            return root(h)  # HERE

        return jnp.sum(lax.fori_loop(0, 4, step, x))

    return f, (jnp.abs(draw(18, 3)) + 1,)


@wrong
def inside_a_while_loop():
    half = ruled(lambda x: x / 2, lambda x: jnp.full_like(x, 0.4))

    def f(x):
        return lax.while_loop(lambda h: h > 1, lambda h: half(h), x) ** 2  # HERE

    return f, (jnp.float32(9.0),)


@wrong
def inside_a_map():
    sine = ruled(jnp.sin, lambda x: 1.1 * jnp.cos(x))

    def f(x):
        def one(v):
            return sine(v) * v  # HERE

        return jnp.sum(lax.map(one, x))

    return f, (draw(19, 4),)


@wrong
def inside_another_rule():
    inner = ruled(jnp.exp, lambda x: 2 * jnp.exp(x))

    @jax.custom_jvp
    def outer(x):
        y = x / 2
        return inner(y)  # HERE

    outer.defjvp(lambda xs, ts: jax.jvp(lambda x: inner(x / 2), xs, ts))

    def f(x):
        return jnp.sum(outer(x))  # ALSO

    return f, (draw(20, 3),)


@wrong
def on_complex_numbers():
    turned = jax.custom_jvp(lambda z: z * z)
    turned.defjvp(lambda zs, ts: (zs[0] * zs[0], zs[0] * ts[0]))

    def f(z):
        w = turned(z + 1)  # HERE
        return jnp.sum(jnp.abs(w) ** 2)

    return f, (lax.complex(draw(21, 3), draw(22, 3)),)


@wrong
def around_a_function_of_jaxs():
    cholesky = jax.custom_jvp(jnp.linalg.cholesky)
    cholesky.defjvp(
        lambda xs, ts: (jnp.linalg.cholesky(xs[0]), jax.jvp(jnp.linalg.cholesky, xs, ts)[1] * 1.5)
    )

    def f(a):
        k = a @ a.T + jnp.eye(3)
        return jnp.sum(cholesky(k) ** 3)  # HERE

    return f, (draw(23, 3, 3),)


@wrong
def around_a_callback():
    def host(x):
        y = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda v: np.sin(np.asarray(v)), y, x, vmap_method="sequential")

    sine = ruled(host, lambda x: 2 * jnp.cos(x))

    def f(x):
        y = x + 1
        return jnp.sum(sine(y))  # HERE

    return f, (draw(24, 3),)


@wrong
def around_a_kernel():
    def kernel(x, y):
        y[...] = x[...] ** 2

    def squared(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x)

    square = backward_ruled(squared, lambda xs, g: (g * xs[0],))

    def f(x):
        y = jnp.sin(x)
        return jnp.sum(square(y))  # HERE

    return f, (draw(25, 4),)


@wrong
def a_primitive_of_ones_own():
    cubed = core.Primitive("cubed")
    cubed.def_impl(lambda x: x**3)
    cubed.def_abstract_eval(lambda x: x)
    ad.primitive_jvps[cubed] = lambda xs, ts: (cubed.bind(xs[0]), xs[0] ** 2 * ts[0])
    mlir.register_lowering(cubed, mlir.lower_fun(lambda x: x**3, multiple_results=False))
    batching.primitive_batchers[cubed] = lambda xs, axes: (cubed.bind(*xs), axes[0])

    def f(x):
        y = x + 2
        return jnp.sum(cubed.bind(y))  # HERE

    return f, (draw(26, 3),)


@wrong
def the_forward_pass_returns_another_value():
    shifted = jax.custom_vjp(lambda x: jnp.sum(x**2))
    shifted.defvjp(lambda x: (jnp.sum(x**2) + 0.5, x), lambda x, g: (2 * g * x,))

    def f(x):
        y = jnp.sin(x)
        return shifted(y)  # HERE

    return f, (draw(27, 4),)


@wrong
def the_third_of_four_layers():
    def layer(k, x, w):
        rule = {2: lambda h: 1.03 * (1 - jnp.tanh(h) ** 2)}
        act = ruled(jnp.tanh, rule.get(k, lambda h: 1 - jnp.tanh(h) ** 2))
        h = x @ w
        return act(h)  # HERE

    def f(ws, x):
        for k, w in enumerate(ws):
            x = layer(k, x, w)
        return jnp.mean(x**2)

    return f, ([draw(28 + k, 4, 4) for k in range(4)], draw(33, 6, 4))


@wrong
def under_vmap_and_jit():
    bad = backward_ruled(lambda v: jnp.sum(v**2), lambda xs, g: (g * xs[0],))

    @jax.jit
    def total(x):
        each = jax.vmap(bad)(x)  # HERE
        return jnp.sum(jnp.sqrt(1 + each))

    return total, (draw(34, 3, 2),)


@wrong
def under_checkpoint_in_a_scan():
    bad = ruled(jnp.sin, lambda x: jnp.cos(x) ** 2)

    def f(x):
        @jax.checkpoint
        def step(h, _):
            y = h * 1.1
            return bad(y), None  # HERE

        return jnp.sum(lax.scan(step, x, None, length=3)[0])

    return f, (draw(35, 3),)


@wrong
def a_mean_that_forgets_its_number():
    mean = backward_ruled(lambda x: jnp.mean(x), lambda xs, g: (jnp.broadcast_to(g, xs[0].shape),))

    def f(x, w):
        y = (x @ w) ** 2
        return mean(y)  # HERE

    return f, (draw(36, 8, 3), draw(37, 3))


@wrong
def a_transpose_that_is_forgotten():
    times = backward_ruled(lambda a, b: a @ b, lambda xs, g: (g @ xs[1], xs[0].T @ g))

    def f(a, b):
        c = times(jnp.sin(a), b)  # HERE
        return jnp.sum(c**2)

    return f, (draw(38, 3, 3), draw(39, 3, 3))


# ---------------------------------------------------------------- where do the digits go?


@lost
def one_minus_cosine():
    def f(x):
        c = jnp.cos(x)
        y = 1 - c  # HERE
        return jnp.sum(jnp.sqrt(y))

    return f, (jnp.array([1e-3, 2e-3]),)


@lost
def exponential_less_one():
    def f(x):
        e = jnp.exp(x)
        y = (e - 1) / x  # HERE
        return jnp.sum(jnp.log(y) ** 2)

    return f, (jnp.array([1e-5, 2e-5]),)


@lost
def variance_as_the_difference_of_means():
    def f(x):
        square = jnp.mean(x**2, 0)
        v = square - jnp.mean(x, 0) ** 2  # HERE
        return jnp.sum(jnp.sqrt(jnp.abs(v) + 1e-3))

    return f, (500 + draw(50, 20, 2),)


@lost
def root_of_a_quadratic():
    def f(b):
        d = jnp.sqrt(b**2 - 4e-3)
        x = (d - b) / 2  # HERE
        return jnp.sum(jnp.log(-x))

    return f, (jnp.array([20.0, 30.0]),)


@lost
def a_cast_to_bfloat16():
    w = draw(51, 500)
    w = w - jnp.mean(w) + 1e-3

    def f(s):
        y = s * w
        z = y.astype(jnp.bfloat16)  # HERE
        return jnp.sum(z.astype(jnp.float32)) ** 2

    return f, (jnp.float32(0.1),)


@lost
def a_backward_pass_in_bfloat16():
    def rounded(xs, g):
        half = (g * jnp.cos(xs[0])).astype(jnp.bfloat16)
        return (half.astype(g.dtype),)

    sine = backward_ruled(jnp.sin, rounded)

    def f(x):
        y = sine(x)  # HERE
        return jnp.sum(y**3)

    return f, (draw(52, 6),)


@lost
def a_saturated_sigmoid():
    def f(x):
        p = jax.nn.sigmoid(x)  # ALSO
        q = 1 - p  # HERE
        return jnp.sum(jnp.sqrt(q))

    return f, (jnp.array([14.0, 14.5]),)


def distance_of_far_points():
    """No loss: rounding the arguments changes the gradient as much."""

    def f(x, y):
        d = jnp.sum(x**2) + jnp.sum(y**2) - 2 * jnp.sum(x * y)
        return jnp.sqrt(d + 4)

    return f, (1000 + draw(53, 3, scale=0.1), 1000 + draw(54, 3, scale=0.1))


@lost
def time_since_long_ago():
    def f(t, start):
        offset = start.astype(jnp.float32)
        later = t + offset  # HERE
        gap = later - offset  # ALSO
        return jnp.sum(jnp.sin(gap * 3))

    return f, (jnp.array([0.123, 0.456]), jnp.array(10**6))


@lost
def eigenvectors_nearly_equal():
    v = np.array([2.0, -1.0, 1.0]) / np.sqrt(6.0)
    m = jnp.asarray(np.eye(3) * 2 + np.outer(v, v), jnp.float32)

    def f(a):
        s = a + a.T
        w, u = jnp.linalg.eigh(s)  # HERE
        return jnp.sum((u * jnp.sqrt(w)) @ u.T * jnp.arange(9.0).reshape(3, 3))

    return f, (m / 2,)


@lost
def in_the_body_of_a_scan():
    def f(x):
        def step(h, v):
            c = jnp.cos(v)
            return h + jnp.sqrt(1 - c), None  # HERE

        return lax.scan(step, jnp.float32(0), x)[0]

    return f, (jnp.array([1e-3, 2e-3, 3e-3]),)


@lost
def tail_of_the_error_function():
    def f(x):
        e = lax.erf(x)  # ALSO (itself right to a few roundings only)
        tail = 1 - e  # HERE
        return jnp.sum(jnp.sqrt(tail))

    return f, (jnp.array([3.3, 3.4]),)


@lost
def finite_difference_inside():
    def f(x):
        h = 1e-4
        slope = (jnp.sin(x + h) - jnp.sin(x)) / h  # HERE
        return jnp.sum(slope**2)

    return f, (draw(55, 3),)


@lost
def second_difference_inside():
    def f(x):
        h = 1e-2
        curve = jnp.exp(x + h) - 2 * jnp.exp(x) + jnp.exp(x - h)  # HERE
        return jnp.sum(jnp.sqrt(curve) / h)

    return f, (jnp.array([0.3, 0.7]),)


@lost
def heron_of_a_needle():
    def f(s):
        a, b, c = s
        p = (a + b + c) / 2
        area = p * (p - a) * (p - b) * (p - c)  # HERE
        return jnp.log(jnp.abs(area))

    return f, (jnp.array([100.0, 100.0, 0.001]),)


@lost
def rounded_halfway_to_float16():
    def f(x):
        y = jnp.exp(x)
        z = y.astype(jnp.float16)  # HERE
        return jnp.log(z.astype(jnp.float32)[0] - z.astype(jnp.float32)[1])

    return f, (jnp.array([1.01, 1.0]),)


@lost
def centred_after_a_large_shift():
    def f(x):
        y = x + 3e4  # HERE
        z = y - jnp.mean(y)  # ALSO
        return jnp.sum(z**4)

    return f, (draw(56, 10, scale=0.1),)


@lost
def tangent_near_a_right_angle():
    def f(x):
        c = jnp.cos(x)
        s = jnp.sqrt(1 - c**2)  # HERE
        return jnp.sum(jnp.log(s))

    return f, (jnp.array([2e-3, 3e-3]),)


@lost
def log_of_a_number_near_one():
    def f(x):
        y = 1 + x  # HERE
        return jnp.sum(jnp.sqrt(jnp.log(y)))  # ALSO

    return f, (jnp.array([3e-6, 5e-6]),)


@lost
def hyperbolic_cosine_less_one():
    def f(x):
        c = jnp.cosh(x)
        return jnp.sum(jnp.log(c - 1))  # HERE

    return f, (jnp.array([1e-3, 3e-3]),)


@lost
def normalisation_of_a_large_offset():
    def f(x):
        m = functools.reduce(jnp.add, [x[i] for i in range(6)]) / 6
        s = jnp.sum(x**2) / 6 - m**2  # HERE
        return jnp.sum((x - m) ** 3) / jnp.sqrt(s) ** 3

    return f, (2000 + draw(57, 6, scale=1.0),)
