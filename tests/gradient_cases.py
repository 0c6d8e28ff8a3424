"""Functions with right and with wrong gradients, for the check: each wrong one beside its corrected
twin, and hard right ones.

A case is a function of no arguments that returns `(f, args)`. A pair differs only in its derivative
rule: `wrong` says which leaf is wrong, and which of its entries (None: all of them). The right ones
are those on which checkers cry wolf."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    name: str
    make: Callable
    wrong: dict  # leaf path -> flat indices or None; empty for a right gradient
    kink: bool = False
    order: int = 1


CASES: list[Case] = []


def right(make=None, *, kink=False, order=1):
    def register(make):
        CASES.append(Case(make.__name__, make, {}, kink, order))
        return make

    return register(make) if make else register


def pair(wrong, order=1):
    """Register `make(correct)` twice: with its bug, and as the corrected twin."""

    def register(make):
        CASES.append(Case(make.__name__, lambda: make(False), wrong, order=order))
        CASES.append(Case(make.__name__ + "_right", lambda: make(True), {}, order=order))
        return make

    return register


def draw(seed, *shape, scale=1.0, dtype=np.float32):
    return jnp.asarray((scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype))


def rule(forward, backward):
    """A custom_vjp whose backward pass gets the arguments and the cotangent."""
    f = jax.custom_vjp(forward)
    f.defvjp(lambda *args: (forward(*args), args), backward)
    return f


# ---------------------------------------------------------------- wrong rules, each with its twin


@pair({"[0]": None})
def square_without_its_factor(correct):
    square = rule(lambda x: x**2, lambda args, g: ((2 if correct else 1) * g * args[0],))
    return lambda x: jnp.sum(jnp.sin(square(x))), (draw(0, 6),)


@pair({"[0]": None})
def sign_of_a_log(correct):
    log = rule(lambda x: -jnp.log(x), lambda args, g: ((-1 if correct else 1) * g / args[0],))
    return lambda x: jnp.sum(log(x)), (jnp.abs(draw(1, 5)) + 0.1,)


@pair({"[0]": None})
def sum_for_mean(correct):
    x = draw(2, 32, 4)
    loss = rule(
        lambda w: jnp.mean((x @ w) ** 2),
        lambda args, g: (g * 2 * x.T @ (x @ args[0]) / (32 if correct else 1),),
    )
    return loss, (draw(3, 4),)


@pair({"[0]": None})
def transposed_weight_gradient(correct):
    outer = lambda x, g: jnp.outer(g, x) if correct else jnp.outer(x, g)  # noqa: E731
    product = rule(lambda w, x: w @ x, lambda args, g: (outer(args[1], g), args[0].T @ g))
    x = draw(4, 5)
    return lambda w: jnp.sum(jnp.tanh(product(w, x))), (draw(5, 5, 5),)


@pair({"[0]['b']": None})
def bias_of_the_first_row_only(correct):
    dense = rule(
        lambda x, w, b: x @ w + b,
        lambda args, g: (g @ args[1].T, args[0].T @ g, g.sum(0) if correct else g[0]),
    )
    x = draw(6, 8, 3)
    return lambda p: jnp.mean(jnp.tanh(dense(x, p["w"], p["b"])) ** 2), (
        {"w": draw(7, 3, 4), "b": draw(8, 4)},
    )


@pair({"[0]": [3141]})
def one_percent_of_one_entry_in_40000(correct):
    factor = np.ones(40000, np.float32)
    if not correct:
        factor[3141] = 1.01
    f = rule(
        lambda x: jnp.mean(jnp.sin(x) + x**2),
        lambda args, g: (g * factor * (jnp.cos(args[0]) + 2 * args[0]) / 40000,),
    )
    return f, (draw(9, 40000),)


@pair({"[0]": [8, 9, 10, 11]})
def one_row_dropped(correct):
    mask = np.ones((6, 4), np.float32)
    if not correct:
        mask[2] = 0
    f = rule(lambda x: jnp.sum(jnp.exp(x)), lambda args, g: (g * mask * jnp.exp(args[0]),))
    return f, (draw(10, 6, 4),)


@pair({"[0]": [7, 70]})
def two_entries_that_cancel(correct):
    error = np.zeros(100, np.float32)
    if not correct:
        error[7], error[70] = 0.5, -0.5
    f = rule(lambda x: jnp.sum(jnp.cosh(x)), lambda args, g: (g * (jnp.sinh(args[0]) + error),))
    return f, (jnp.ones(100),)


@pair({"[0][1]['w']": None, "[0][0]['w']": None})
def detached_branch(correct):
    x, hold = draw(11, 7, 5), (lambda a: a) if correct else jax.lax.stop_gradient

    def f(layers):
        h = x
        for i, layer in enumerate(layers):
            branch = jnp.tanh(h @ layer["w"])
            h = h + (hold(branch) if i == 1 else branch)
        return jnp.mean(h**2)

    return f, ([{"w": draw(12 + i, 5, 5, scale=0.3)} for i in range(3)],)


@pair({"[0]": None})
def softmax_by_its_diagonal(correct):
    def backward(args, g):
        s = jax.nn.softmax(args[0])
        return (s * (g - (jnp.sum(s * g, -1, keepdims=True) if correct else s * g)),)

    softmax, v = rule(lambda z: jax.nn.softmax(z), backward), draw(15, 3, 6)
    return lambda z: jnp.sum(v * softmax(z)), (draw(16, 3, 6),)


@pair({"[0]['a']": None, "[0]['h']": None})
def recurrence_shifted_by_one(correct):
    def forward(a, h):
        return jax.lax.scan(lambda h, a: (a * h, a * h), h, a)[1]

    def backward(args, g):
        a, h = args
        after = jnp.append(a[1:], 0.0) if correct else a
        _, lam = jax.lax.scan(
            lambda lam, ag: (ag[1] + ag[0] * lam,) * 2, jnp.zeros_like(h), (after, g), reverse=True
        )
        before = jnp.concatenate([h[None], forward(a, h)[:-1]])
        return lam * before, a[0] * lam[0]

    f, w = rule(forward, backward), draw(17, 12)
    return lambda p: jnp.sum(w * f(p["a"], p["h"])), (
        {"a": 0.9 + 0.05 * draw(18, 12), "h": jnp.float32(0.7)},
    )


@pair({"[0]": None})
def fixed_point_without_its_inverse(correct):
    b = draw(19, 4)

    def solve(w):
        return jax.lax.scan(
            lambda z, _: (jnp.tanh(w @ z + b), None), jnp.zeros(4, w.dtype), None, length=80
        )[0]

    def backward(args, g):
        w, z = args[0], solve(args[0])
        jacobian = jax.jacobian(lambda z: jnp.tanh(w @ z + b))(z)
        u = jnp.linalg.solve((jnp.eye(4, dtype=w.dtype) - jacobian).T, g) if correct else g
        return jax.vjp(lambda w: jnp.tanh(w @ z + b), w)[1](u)

    f = rule(solve, backward)
    return lambda w: jnp.sum(f(w) ** 2), (draw(20, 4, 4, scale=0.3),)


@pair({"[0]": [2, 5]})
def norm_of_a_zero_row(correct):
    x = np.array(draw(21, 4, 2))
    x[[1, 2]] = 0
    x[2, 0], x[1, 1] = 1.0, 1.0

    def f(x):
        square = x**2
        safe = jnp.where(square > 0, square, 1.0) if correct else square
        return jnp.sum(jnp.where(square > 0, jnp.sqrt(safe), 0.0) * (x != 0)) + jnp.sum(x**2)

    return f, (jnp.asarray(x),)


@pair({"[0]": [1]})
def softplus_that_overflows_in_float32(correct):
    def f(x):
        small = jnp.minimum(x, 20.0) if correct else x
        return jnp.sum(jnp.where(x > 20, x, jnp.log1p(jnp.exp(small))))

    return f, (jnp.array([0.5, 100.0, -3.0]),)


@pair({"[0]": None})
def complex_product_without_conjugate(correct):
    c = jnp.asarray(np.array([1 + 2j, -0.5 + 1j], np.complex64))
    times = rule(
        lambda z: c * z,
        lambda args, g: ((g * (c if correct else jnp.conj(c))).astype(args[0].dtype),),
    )
    return lambda x: jnp.sum(jnp.imag(times(jax.lax.complex(x, 2 * x))) ** 2), (draw(22, 2),)


@pair({"[0]": None})
def rule_inside_a_taken_branch(correct):
    cube = rule(
        lambda x: jnp.sum(x**3), lambda args, g: (3 * g * args[0] ** (2 if correct else 1),)
    )
    return lambda x: jax.lax.cond(x.sum() > 0, cube, lambda x: jnp.sum(jnp.sin(x)), x), (
        draw(23, 6) + 1,
    )


@pair({"[0]": [0, 1, 2, 6, 7, 8]})
def repeated_rows_of_an_embedding(correct):
    ids = jnp.array([0, 2, 0, 1, 2, 2])

    def backward(args, g):
        empty = jnp.zeros_like(args[0])
        return (empty.at[ids].add(g) if correct else empty.at[ids].set(g),)

    take, w = rule(lambda t: t[ids], backward), draw(24, 6, 3)
    return lambda t: jnp.sum(w * jnp.tanh(take(t))), (draw(25, 4, 3),)


@pair({"[0]": None})
def a_tenth_of_a_percent_everywhere(correct):
    f = rule(
        lambda x: jnp.sum(jnp.sinh(x)),
        lambda args, g: (g * (1 if correct else 1.001) * jnp.cosh(args[0]),),
    )
    return f, (draw(26, 50),)


@pair({"[0]": None})
def wrong_in_a_tiny_loss(correct):
    f = rule(
        lambda x: 1e-9 * jnp.sum(jnp.tanh(x)),
        lambda args, g: (g * 1e-9 * (1 if correct else 3) / jnp.cosh(args[0]) ** 2,),
    )
    return f, (draw(27, 9),)


@pair({"[0]": None})
def wrong_for_tiny_parameters(correct):
    twice = rule(lambda x: x * 1e9, lambda args, g: (g * (1e9 if correct else 2e9),))
    return lambda x: jnp.sum(jnp.log1p(twice(x) ** 2)), (draw(28, 8, scale=1e-9),)


@pair({"[0]": None}, order=2)
def hessian_lost_in_the_rule(correct):
    hold = (lambda a: a) if correct else jax.lax.stop_gradient

    @jax.custom_jvp
    def f(x):
        return jnp.sum(jnp.sin(x))

    @f.defjvp
    def _(primals, tangents):
        return f(*primals), jnp.sum(jnp.cos(hold(primals[0])) * tangents[0])

    return lambda x: f(x) ** 1.0, (draw(29, 5),)


@pair({"[0]": None})
def callback_with_a_rule(correct):
    def host(x):
        return jax.pure_callback(
            lambda a: np.tanh(np.asarray(a)).astype(a.dtype),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            x,
        )

    tanh = rule(host, lambda args, g: (g * (1 - (jnp.tanh(args[0])) ** (2 if correct else 1)),))
    return lambda x: jnp.sum(tanh(x) ** 2), (draw(30, 4),)


@pair({"[0]": None})
def not_traceable(correct):
    square = rule(lambda x: x**2, lambda args, g: ((2 if correct else 1) * g * args[0],))

    def f(x):
        total = jnp.zeros((), x.dtype)
        for i in range(x.size):
            total = total + (square(x[i]) if float(jax.lax.stop_gradient(x[i])) > -10 else x[i])
        return total

    return f, (draw(31, 3),)


# ---------------------------------------------------------------- right, and hard


@right
def value_of_1e8():
    return lambda x: 1e8 + jnp.sum(jnp.sin(x)), (draw(40, 10),)


@right
def sine_of_1000_x():
    return lambda x: jnp.sum(jnp.sin(1000 * x)), (draw(41, 10),)


@right
def parameters_of_1e_minus_12():
    return lambda x: jnp.sum(jnp.sin(x * 1e12)), (draw(42, 5, scale=1e-12),)


@right
def logarithms_near_zero_beside_large_numbers():
    return lambda p: jnp.sum(jnp.log(p["a"])) + jnp.sum(p["b"] ** 2), (
        {"a": jnp.array([1e-6, 1e-3, 1.0]), "b": draw(43, 3, scale=1e3)},
    )


@right
def deep_relu_network():
    x, sizes = draw(44, 64, 6), [6, *[16] * 6, 3]

    def f(layers):
        h = x
        for w in layers[:-1]:
            h = jax.nn.relu(h @ w)
        return jnp.mean((h @ layers[-1]) ** 2)

    return f, (
        [
            draw(45 + i, a, b, scale=np.sqrt(2 / a))
            for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        ],
    )


@right
def bfloat16_inside():
    x = draw(52, 20, 5)

    def f(w):
        return jnp.mean(
            (jnp.tanh(x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32) - 1) ** 2
        )

    return f, (draw(53, 5, 3),)


@right
def loss_in_bfloat16():
    x = draw(54, 20, 5).astype(jnp.bfloat16)
    return lambda w: jnp.mean(jnp.tanh(x @ w) ** 2), (draw(55, 5).astype(jnp.bfloat16),)


@right
def float16_parameters():
    x = draw(56, 10, 4).astype(jnp.float16)
    return lambda w: jnp.mean((x @ w) ** 2).astype(jnp.float32), (draw(57, 4).astype(jnp.float16),)


@right
def scan_that_starts_in_float32():
    return lambda w: jnp.sum(
        jax.lax.scan(lambda h, _: (jnp.tanh(h @ w + 1), None), jnp.zeros(3), length=20)[0]
    ), (draw(58, 3, 3),)


@right
def dropout_with_a_fixed_key():
    key, x = jax.random.key(3), draw(59, 20, 6)
    return lambda w: jnp.mean(jnp.tanh((x * jax.random.bernoulli(key, 0.8, x.shape)) @ w) ** 2), (
        draw(60, 6),
    )


@right
def loop_in_forward_mode_only():
    return lambda x: jnp.sum(
        jax.lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]
    ), (draw(61, 4),)


@right
def loosely_solved_linear_system():
    q = np.array(draw(62, 12, 12), np.float64)
    a, b = jnp.asarray((q @ q.T / 12).astype(np.float32)), draw(63, 12)

    def f(d):
        return jnp.sum(
            jax.scipy.sparse.linalg.cg(lambda v: a @ v + jnp.exp(d) * v, b, tol=1e-3)[0] ** 2
        )

    return f, (draw(64, 12, scale=0.5),)


@right
def loosely_iterated_fixed_point():
    b = draw(65, 4)

    def solve(w):
        step = lambda c: (c[1], jnp.tanh(w @ c[1] + b))  # noqa: E731
        return jax.lax.while_loop(
            lambda c: jnp.max(jnp.abs(c[0] - c[1])) > 1e-3,
            step,
            (jnp.ones(4, w.dtype), jnp.zeros(4, w.dtype)),
        )[1]

    def backward(args, g):
        w, z = args[0], solve(args[0])
        jacobian = jax.jacobian(lambda z: jnp.tanh(w @ z + b))(z)
        return jax.vjp(lambda w: jnp.tanh(w @ z + b), w)[1](
            jnp.linalg.solve((jnp.eye(4, dtype=w.dtype) - jacobian).T, g)
        )

    f = rule(solve, backward)
    return lambda w: jnp.sum(f(w) ** 2), (draw(66, 4, 4, scale=0.3),)


@right
def accuracy_is_flat():
    x, t = draw(67, 40, 5), jnp.arange(40) % 3
    return lambda w: jnp.mean((jnp.argmax(x @ w, -1) == t).astype(jnp.float32)), (draw(68, 5, 3),)


@right
def bias_before_a_batch_norm():
    x = draw(69, 30, 4)

    def f(p):
        h = x @ p["w"] + p["b"]
        h = (h - h.mean(0)) * jax.lax.rsqrt(h.var(0) + 1e-5)
        return jnp.mean((jnp.tanh(h) - 0.3) ** 2)

    return f, ({"w": draw(70, 4, 3), "b": draw(71, 3)},)


@right
def sorting_with_near_ties():
    x = jnp.asarray(np.round(np.array(draw(72, 30)), 3) + 1e-6 * np.arange(30, dtype=np.float32))
    return lambda x: jnp.sum(jnp.sort(x) * jnp.arange(30.0)), (x,)


@right
def integers_and_keys_among_the_leaves():
    leaves = {
        "w": draw(73, 3),
        "step": jnp.array(3),
        "key": jax.random.key(0),
        "on": jnp.array(True),
    }
    return lambda p: jnp.sum(p["w"] ** 2) * p["step"] + jax.random.uniform(p["key"]) * p["on"], (
        leaves,
    )


@right
def rematerialised_and_jitted():
    x = draw(74, 9, 5)
    return jax.jit(lambda w: jnp.sum(jax.checkpoint(lambda w: jnp.tanh(x @ w) ** 2)(w))), (
        draw(75, 5, 2),
    )


@right(order=2)
def curved_valley_to_second_order():
    return lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), (draw(76, 5),)


@right(kink=True)
def relu_at_zero():
    x = np.array(draw(77, 8))
    x[[1, 5]] = 0
    return lambda x: jnp.sum(jax.nn.relu(x) * 2 + jnp.sin(x)), (jnp.asarray(x),)


@right(kink=True)
def weights_of_zero_under_an_l1_penalty():
    x, t = draw(78, 12, 5), draw(79, 12)
    return lambda w: jnp.mean((x @ w - t) ** 2) + jnp.sum(jnp.abs(w)), (jnp.zeros(5),)
