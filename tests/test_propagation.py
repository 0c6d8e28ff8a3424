"""A change pushed through a function against the function evaluated at the changed point, for every
rule.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax
from jax.sharding import AxisType

from jaxnn import numerical_grad, numerical_jacobian
from jaxnn.numerical.loop import entries_at_once
from jaxnn.numerical.propagate import perturbations

pytestmark = pytest.mark.promotes

# The programs here run once, on a few numbers: what counts is the time to compile them.
jit_quickly = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def changed(leaves, k, index, value):
    return [
        x.ravel().at[index].set(value).reshape(x.shape) if j == k else x
        for j, x in enumerate(leaves)
    ]


def both(f, leaves, step=0.25):
    """The finite flags, the changes, the same by evaluation, and the values, for four entries of
    each floating-point leaf.
    """

    def numbers(leaves):
        return jax.tree.map(lambda y: jnp.asarray(y, jnp.result_type(y, jnp.int32)), f(leaves))

    def program(leaves):
        moving = [
            k for k, x in enumerate(leaves) if x.size and jnp.issubdtype(x.dtype, jnp.inexact)
        ]

        def of_moving(some):
            return numbers([dict(zip(moving, some, strict=True)).get(k, x) for k, x in at])

        at, found = list(enumerate(leaves)), []
        for k, one in zip(
            moving, perturbations(of_moving, [leaves[k] for k in moving]), strict=True
        ):
            x = leaves[k]
            index = jnp.array([0, x.size // 3, x.size // 2, x.size - 1])
            values = (x.ravel()[index] + step).astype(x.dtype)
            ends = jax.vmap(lambda i, v, k=k: numbers(changed(leaves, k, i, v)))(index, values)
            found.append((one.finite, one.change(index, values), ends))
        return found, numbers(leaves)

    return jit_quickly(program)([jnp.asarray(x) for x in leaves])


def agree(f, leaves, finite=True, rtol=None):
    found, unchanged = both(f, leaves)
    assert found
    for is_finite, change, ends in found:
        assert is_finite == finite
        assert jax.tree.structure(change) == jax.tree.structure(ends)
        for got, end, start in zip(*map(jax.tree.leaves, (change, ends, unchanged)), strict=True):
            assert got.dtype == end.dtype and got.shape == end.shape
            eps = float(jnp.finfo(got.dtype).eps) if jnp.issubdtype(got.dtype, jnp.inexact) else 0
            wide = np.complex128 if jnp.iscomplexobj(got) else np.float64
            got, end, start = (np.asarray(y).astype(wide) for y in (got, end, start))
            if finite:
                tolerance = (rtol or 60 * eps) * max(1, np.abs(end).max(initial=0))
                np.testing.assert_allclose(got, end - start, rtol=0, atol=tolerance)


def a(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape) * 0.5


def conv(x, k, strides=(1, 1), padding="SAME", dn=("NCHW", "OIHW", "NCHW"), **kw):
    return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=dn, **kw)


def attention(p):
    x, wq, wk, wv, wo = p
    q, k, v = x @ wq, x @ wk, x @ wv
    s = q @ jnp.swapaxes(k, -1, -2) / 2.0
    s = jnp.where(jnp.tril(jnp.ones((x.shape[-2],) * 2, bool)), s, -jnp.inf)
    return jnp.sum((x + jax.nn.softmax(s) @ v @ wo) ** 2)


def recurrent(p):
    w, u, b, xs = p
    h, ys = lax.scan(
        lambda h, x: (jnp.tanh(h @ w + x @ u + b),) * 2, jnp.zeros((3, 4), w.dtype), xs
    )
    return h.sum(), ys


def log_scan(p):
    w, x = p
    return lax.scan(lambda c, _: (jnp.tanh(c @ jnp.log(w)), None), x, None, length=3)[0]


def nested_scan(p):
    w, x = p

    def outer(c, row):
        inner = lax.scan(
            lambda d, _: (jnp.tanh(d @ w @ (w * c[0])) + row, None), c, None, length=2
        )[0]
        return inner * jnp.sum(w * row[0]), None

    return lax.scan(outer, x[0], x)[0]


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
IDS = np.array([[0, 2, 2], [4, 1, 0]], np.int32)

CASES = {
    "unary": (
        lambda p: [
            g(p[0])
            for g in (
                jnp.sin,
                jnp.exp,
                jnp.tanh,
                jax.nn.relu,
                jax.nn.sigmoid,
                jax.nn.gelu,
                jnp.abs,
                lambda x: x**3,
                lax.erf,
                jnp.floor,
                jnp.isfinite,
                jnp.sign,
            )
        ],
        [a(3, 4)],
    ),
    "nary": (
        lambda p: [
            jnp.where(p[0] > p[1], p[0] * p[1], p[0] / p[1]),
            jnp.clip(p[0], -0.1, 0.2),
            p[0] < p[1],
        ],
        [a(3, 4), a(3, 4, seed=5)],
    ),
    "size one axes": (lambda p: (p[0] + p[1]) * p[2] - p[3], [a(3, 4), a(1, 4), a(3, 1), a(1, 1)]),
    "scalar leaf": (lambda p: jnp.sum(p[0] * p[1]) + p[0], [a(), a(2, 3)]),
    "casts": (
        lambda p: [
            p[0].astype(jnp.bfloat16) * 2,
            (p[0] * 10).astype(jnp.int32),
            p[0] + 1j,
            (p[0] > 0).sum(),
        ],
        [a(3, 4)],
    ),
    "transpose": (lambda p: p[0].transpose(2, 0, 1) * p[1], [a(2, 3, 4), a(4, 2, 3)]),
    "own transpose": (lambda p: p[0] + p[0].T, [a(3, 3)]),
    "broadcast": (
        lambda p: jnp.broadcast_to(p[0][:, None], (3, 4)) * p[1] + p[0][None].T,
        [a(3), a(3, 4)],
    ),
    "reshape": (
        lambda p: [
            p[0].reshape(6, 4) * 2,
            p[0].reshape(-1),
            p[0].reshape(2, 1, 12, 1),
            p[0].reshape(3, 8),
            p[0].reshape(4, 6).sum(0),
            p[0].mean(0).reshape(-1),
        ],
        [a(2, 3, 4)],
    ),
    "reshape after another order of axes": (
        lambda p: [
            lax.reshape(p[0], shape, order) * 2
            for shape, order in [((24,), (1, 2, 0)), ((2, 12), (0, 2, 1)), ((4, 3, 2), (2, 1, 0))]
        ],
        [a(2, 3, 4)],
    ),
    "reshape of a slab": (
        lambda p: (p[1] @ p[0]).reshape(-1) + (p[1] @ p[0]).T.reshape(2, -1).sum(),
        [a(3, 4), a(5, 3)],
    ),
    "theta": (
        lambda p: jnp.sum(
            (
                jnp.tanh(p[1] @ p[0][:12].reshape(3, 4) + p[0][12:16]) @ p[0][16:24].reshape(4, 2)
                + p[0][24:]
            )
            ** 2
        ),
        [a(26), a(5, 3)],
    ),
    "slices": (
        lambda p: [
            p[0][1:3],
            p[0][:, ::2],
            p[0][::-1, 1],
            p[0][::-2],
            jnp.split(p[0], [1, 3]),
            p[0][2:2],
        ],
        [a(4, 5)],
    ),
    "strides": (lambda p: [p[0][::2], p[0][1::3], p[0][2:11:4]], [a(13)]),
    "dynamic slice": (
        lambda p: [
            lax.dynamic_slice(p[0], (p[1].astype(int)[0], 1), (2, 5)),
            p[0][p[1].astype(int)[1]],
            lax.dynamic_slice(p[0], (9, 9), (2, 2)),
        ],
        [a(4, 5), np.array([1.2, 2.1])],
    ),
    "concatenate": (
        lambda p: [
            jnp.concatenate([p[0], p[1]]),
            jnp.concatenate([p[0], p[1], p[0]]),
            jnp.stack([p[0][0], p[1][0]]),
            jnp.concatenate([p[2], p[0]]),
            jnp.hstack([p[0], p[0] * 2]),
            jnp.tile(p[0], 2),
        ],
        [a(2, 3), a(2, 3, seed=3), a(1, 3)],
    ),
    "pad": (
        lambda p: [
            jnp.pad(p[0], ((1, 2), (0, 0))),
            lax.pad(p[0], p[1], ((1, 0, 2), (0, 1, 0))),
            lax.pad(p[0], jnp.zeros((), p[0].dtype), ((-1, 0, 0), (2, 1, 1))),
        ],
        [a(3, 4), a()],
    ),
    "reductions": (
        lambda p: (
            [
                g(p[0], ax)
                for g in (jnp.sum, jnp.mean, jnp.max, jnp.min, jnp.prod, jnp.var, jnp.argmax)
                for ax in (None, 0, 1)
            ]
            + [jnp.any(p[0] > 0, 0), jnp.all(p[0] > -1, 1)]
        ),
        [a(4, 5)],
    ),
    "reductions of a product": (
        lambda p: [
            g(p[0] @ p[1], ax)
            for g in (jnp.sum, jnp.max, jnp.argmin, jax.nn.logsumexp)
            for ax in (0, 1)
        ],
        [a(4, 3), a(3, 5)],
    ),
    "along axes": (
        lambda p: [
            g(p[0] @ p[1], axis=ax) for g in (jnp.cumsum, jnp.cumprod, jnp.sort) for ax in (0, 1)
        ],
        [a(4, 3), a(3, 5)],
    ),
    "changes carried on": (
        lambda p: [
            -jnp.sum(p[0]) / 3,
            (p[0].sum() * 2 + p[1].sum() - p[2].sum()) * p[2][0],
            p[0].sum() ** 2,
            p[0].sum(0)[None].T.reshape(-1) - p[0].sum() / p[1].sum(),
            (p[0] @ p[1].T).T[:, None],
            p[0].sum().astype(jnp.bfloat16),
            1 / p[1].sum(),
        ],
        [a(4, 3), a(2, 3), a(3)],
    ),
    "products": (
        lambda p: [
            p[0] @ p[1],
            p[0] @ p[0].T,
            p[0].T @ p[0],
            p[0] @ p[1] @ p[1].T,
            jnp.dot(p[0][0], p[1][:, 0]),
            jnp.outer(p[0][0], p[0][:, 0]),
            jnp.tensordot(p[0], p[0], 2),
        ],
        [a(4, 3), a(3, 5)],
    ),
    "batched products": (
        lambda p: [
            jnp.einsum("bij,bjk->bik", p[0], p[1]),
            jnp.einsum("bij,bij->b", p[0], p[0]),
            jnp.einsum("bij,kj->ibk", p[0], p[1][0].T),
            jnp.einsum("bij,cjk->ikbc", p[0], p[1]),
            jnp.einsum("bij,bjk->k", p[0], p[1]),
        ],
        [a(2, 3, 4), a(2, 4, 5)],
    ),
    "powers of a matrix": (lambda p: jnp.linalg.matrix_power(p[0], 5), [a(4, 4)]),
    "dense by slab": (
        lambda p: jnp.tanh(jnp.sort(p[0].ravel()).reshape(4, 3)) @ p[0].T @ p[0],
        [a(4, 3)],
    ),
    "bf16 product": (
        lambda p: p[0].astype(jnp.bfloat16) @ p[1].astype(jnp.bfloat16),
        [a(4, 3), a(3, 5)],
    ),
    "integer product": (
        lambda p: (p[0] * 9).astype(int) @ (p[1] * 9).astype(int),
        [a(4, 3), a(3, 5)],
    ),
    "complex product": (lambda p: (p[0] + 1j) @ (p[1] * 1j), [a(4, 3), a(3, 5)]),
    "conv": (lambda p: conv(p[0], p[1]), [a(2, 3, 6, 5), a(4, 3, 3, 2)]),
    "conv twice": (
        lambda p: conv(jax.nn.relu(conv(p[0], p[1])), p[2], (2, 1)),
        [a(2, 3, 6, 5), a(4, 3, 3, 3), a(2, 4, 3, 3)],
    ),
    "conv strided": (
        lambda p: conv(
            p[0], p[1], (2, 3), ((1, 2), (0, 1)), lhs_dilation=(2, 1), rhs_dilation=(1, 2)
        ),
        [a(2, 3, 6, 7), a(4, 3, 3, 2)],
    ),
    "conv dilated": (  # each weight meets a number, between those that dilation puts in
        lambda p: conv(p[0], p[1], (2, 3), ((2, 1), (0, 1)), rhs_dilation=(1, 2)),
        [a(2, 3, 6, 7), a(4, 3, 3, 2)],
    ),
    "conv crop": (
        lambda p: conv(p[0], p[1], (1, 1), ((-1, 2), (0, -2))),
        [a(2, 3, 6, 7), a(4, 3, 3, 2)],
    ),
    "conv nhwc": (
        lambda p: conv(p[0], p[1], dn=("NHWC", "HWIO", "NHWC")),
        [a(2, 6, 5, 3), a(3, 3, 3, 4)],
    ),
    "conv mixed": (
        lambda p: conv(p[0], p[1], dn=("HNWC", "IWOH", "CNHW")),
        [a(6, 2, 5, 3), a(3, 3, 4, 3)],
    ),
    "conv groups": (
        lambda p: conv(p[0], p[1], feature_group_count=3),
        [a(2, 6, 5, 5), a(6, 2, 3, 3)],
    ),
    "conv of scaled kernel": (
        lambda p: conv(p[0], p[1] / jnp.sqrt(jnp.sum(p[1] ** 2, (1, 2, 3), keepdims=True))),
        [a(2, 3, 6, 5), a(4, 3, 3, 3)],
    ),
    "conv 1d": (
        lambda p: lax.conv_general_dilated(p[0], p[1], (1,), "VALID"),
        [a(2, 3, 9), a(4, 3, 3)],
    ),
    "pool": (
        lambda p: lax.reduce_window(
            conv(p[0], p[1]), -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
        ),
        [a(2, 3, 6, 5), a(4, 3, 3, 2)],
    ),
    "gather": (
        lambda p: [
            p[0][IDS],
            p[0][IDS, 1],
            p[0][:, IDS[0]],
            jnp.take(p[0], IDS + 3, axis=0, mode="fill", fill_value=7),
            p[0][IDS[0], IDS[1]],
            jnp.take_along_axis(p[0], IDS[:1].repeat(5, 0), 1),
            p[0][jnp.argsort(p[1])],
        ],
        [a(5, 6), a(5)],
    ),
    "gather of a product": (lambda p: (p[0] @ p[1])[IDS] * p[2], [a(5, 3), a(3, 4), a(4)]),
    "scatter": (
        lambda p: [
            jax.ops.segment_sum(p[0], np.array([0, 2, 2, 5]), 4),
            p[1].at[np.array([0, 1, 0])].add(p[0][:3]),
            p[1].at[1].set(p[0][0]),
        ],
        [a(4, 5), a(3, 5)],
    ),
    "scatter of a slab": (
        lambda p: [
            jax.ops.segment_sum(p[0] @ p[1], np.array([0, 2, 2, 5]), 4),
            (p[0] @ p[1]).at[IDS[0]].set(p[2]),
            (p[0] @ p[1]).at[IDS[0]].multiply(p[2]),
            p[2].at[:, 1].max((p[0] @ p[1])[1, :3]),
            (p[0] @ p[1]).at[0, 1].min(p[0][0, 0]),
        ],
        [a(4, 3), a(3, 5), a(3, 5, seed=2)],
    ),
    "dynamic update": (
        lambda p: [
            lax.dynamic_update_slice(p[0], p[1], (1, 2)),
            lax.dynamic_update_slice(p[0] @ p[2], (p[0] @ p[2])[1:2] * 2, (2, 0)),
            lax.dynamic_update_slice(jnp.ones_like(p[0]), p[1][:, :1], (9, 3)),
            lax.dynamic_update_slice(jnp.ones_like(p[0]), p[0][:2], (1, 0)),
            p[0].at[1].set(p[0][0] * 3),
            p[2].at[0, 1].set(p[1][0, 0]),
        ],
        [a(4, 5), a(2, 3), a(5, 5)],
    ),
    "pad of a slab": (
        lambda p: [
            jnp.pad(p[0] @ p[1], ((1, 2), (0, 3))) * 2,
            lax.pad(p[0] @ p[1], jnp.zeros((), p[0].dtype), ((0, 0, 1), (2, -1, 0))),
            jnp.pad(p[0][:1], ((2, 1), (0, 0)), constant_values=3),
            jnp.sum(jnp.pad(p[0].sum(0), 2)),
        ],
        [a(4, 3), a(3, 5)],
    ),
    "windows": (
        lambda p: [
            lax.reduce_window(p[0], 0.0, lax.add, (1, 1, 3), (1, 1, 2), "SAME"),
            lax.reduce_window(p[0], jnp.inf, lax.min, (1, 2, 1), (1, 1, 1), "VALID"),
            lax.reduce_window(p[0], 0.0, lax.add, (1, 1, 1), (2, 1, 1), ((0, 0), (1, 0), (0, 0))),
        ],
        [a(4, 5, 6)],
    ),
    "sorts": (
        lambda p: [
            lax.sort((p[0] @ p[1], (p[0] @ p[1]) ** 2), dimension=0, num_keys=1),
            jnp.argsort(p[0] @ p[1], axis=1),
            lax.cumlogsumexp(p[0] @ p[1], 0),
            lax.cummax(p[0] @ p[1], 1, reverse=True),
        ],
        [a(4, 3), a(3, 5)],
    ),
    "jit": (
        lambda p: jax.jit(jnp.tanh)(p[0]) @ jax.jit(lambda x: (x, x.sum()))(p[1])[0],
        [a(4, 3), a(3, 2)],
    ),
    "custom": (lambda p: doubled(jax.nn.silu(p[0])) + jax.nn.softplus(p[1]), [a(4, 3), a(3)]),
    "remat": (lambda p: jax.checkpoint(lambda w: jnp.sin(w @ w.T))(p[0]), [a(4, 3)]),
    "cond": (
        lambda p: [
            lax.cond(p[1].sum() > 0, jnp.sin, lambda x: x @ x.T @ x, p[0]),
            lax.switch(2, [jnp.sin, jnp.cos], p[0]),
        ],
        [a(4, 3), a(3)],
    ),
    "cond with a loop": (
        lambda p: lax.cond(
            p[1].sum() > 0, jnp.sin, lambda x: lax.fori_loop(0, 3, lambda i, y: y * x, x), p[0]
        ),
        [a(4, 3), a(3)],
    ),
    "while": (
        lambda p: lax.while_loop(
            lambda c: c[1] < 50,
            lambda c: (c[0] * 1.5, c[1] + jnp.abs(c[0]).sum()),
            (p[0], p[0].sum()),
        ),
        [a(4, 3)],
    ),
    "recurrent": (recurrent, [a(4, 4), a(2, 4), a(4), a(5, 3, 2)]),
    "fori_loop": (
        lambda p: lax.fori_loop(0, 4, lambda i, c: c * p[0][i % 3] + jnp.sin(p[0]).sum(), p[0][0]),
        [a(3)],
    ),
    "scan with log": (log_scan, [np.abs(a(3, 3)) + 0.3, a(2, 3)]),
    "nested scan": (nested_scan, [a(3, 3), a(2, 3)]),
    "attention": (attention, [a(2, 5, 4), a(4, 3), a(4, 3, seed=1), a(4, 3, seed=2), a(3, 4)]),
    "joined attention": (
        lambda p: attention([p[0], *jnp.split(p[1], 3, 1), p[2]]),
        [a(5, 4), a(4, 9), a(3, 4)],
    ),
    "layer norm": (
        lambda p: (
            p[1]
            * (p[0] - p[0].mean(-1, keepdims=True))
            / jnp.sqrt(p[0].var(-1, keepdims=True) + 1e-3)
        ),
        [a(4, 5), a(5)],
    ),
    "softmax": (
        lambda p: (
            -jnp.mean(
                jnp.sum(np.eye(5)[:4].astype(p[0].dtype) * jax.nn.log_softmax(p[0] @ p[1]), 1)
            )
        ),
        [a(4, 3), a(3, 5)],
    ),
    "linalg": (
        lambda p: [
            jnp.linalg.solve(p[0] + 3 * jnp.eye(4, dtype=p[0].dtype), p[0]),
            jnp.linalg.det(p[0]),
        ],
        [a(4, 4)],
    ),
    "fft": (lambda p: jnp.abs(jnp.fft.fft(p[0])), [a(3, 4)]),
    "random": (
        lambda p: p[0] * jax.random.normal(jax.random.key(0), (3,)).astype(p[0].dtype),
        [a(3)],
    ),
    "keys": (
        lambda p: (
            jax.random.key_data(
                jnp.where(p[0] > 0, jax.random.split(jax.random.key(0), 3), jax.random.key(1))[::-1]
            ).astype(jnp.int32)
            % 1000
        ),
        [a(3)],
    ),
    "empty": (
        lambda p: [
            p[0][:0].sum(),
            p[0][:0] @ p[0][:0].T,
            jnp.concatenate([p[0][:0], p[0]]),
            p[0][:, :0] @ p[0][:0],
        ],
        [a(3, 3)],
    ),
    "not used": (lambda p: [p[1] * 2, 3.0], [a(3), a(2)]),
    "identity": (lambda p: p, [a(3), a(2)]),
}


DTYPE_MATTERS = (
    "unary casts reductions products conv gather recurrent attention softmax keys identity".split()
) + ["changes carried on", "bf16 product", "integer product", "complex product"]


@pytest.mark.parametrize(
    "name, dtype",
    [(n, "float64") for n in CASES]
    + [pytest.param(n, "float32", marks=pytest.mark.slow) for n in DTYPE_MATTERS],
)
def test_a_change_pushed_through_is_the_change(name, dtype):
    f, leaves = CASES[name]
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        agree(f, [jnp.asarray(x, dtype) for x in leaves])


def test_leaves_of_every_kind():
    f = lambda p: jax.random.uniform(p[2], (3,)) * p[0].astype(jnp.float32).sum() + p[1].sum()  # noqa: E731
    agree(f, [jnp.ones((2, 3), jnp.bfloat16), jnp.arange(3), jax.random.key(3)])


def test_the_change_of_a_sum_has_the_digits_that_the_sum_has_not():
    x, step = jnp.asarray(a(1000) + 1e4, jnp.float32), jnp.array([0.125])
    for mean_of in (
        lambda p: 5 - jnp.mean(p[0]) * 2,
        lambda p: -jnp.dot(p[0], jnp.full(1000, 2e-3)) + 5,
    ):
        change = jit_quickly(
            lambda x, f=mean_of: perturbations(f, [x])[0].change(jnp.array([17]), x[17] + step)
        )(x)
        np.testing.assert_allclose(change, -0.00025, rtol=1e-6)


def test_the_function_is_walked_through_once_whatever_the_number_of_leaves():
    def programs(count):
        traced = []

        def f(leaves):
            traced.append(1)
            return sum(jnp.sum(jnp.cbrt(x)) for x in leaves)

        leaves = [jnp.ones(3 + k) for k in range(count)]
        whole = str(jax.make_jaxpr(lambda leaves: perturbations(f, leaves)[0].finite)(leaves))
        return len(traced), whole.count("cbrt")

    (once, few), (again, many) = programs(2), programs(20)
    assert once == again and (few, many) == (2, 20)


# Where values are not finite, and the loop over entries.


def quotients(f, leaves, h=0.25, scheme="central", **options):
    """Difference quotients of all that f returns by every entry, in their own dtype."""
    every = tuple(range(len(leaves)))
    options |= {"h": h, "scheme": scheme, "evaluation": "own"}
    jacobian = numerical_jacobian(lambda *p: f(list(p)), every, **options)
    return jit_quickly(jacobian)(*map(jnp.asarray, leaves))


def assert_same(got, want, rtol):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol)


ONE_AND_0 = np.array([1.0, 0.0])


@pytest.mark.parametrize(
    "f, leaves",
    [
        (lambda p: jnp.sum(jnp.log(jnp.abs(p[0]))), [np.zeros((3, 3))]),
        (lambda p: [jnp.log(p[0]) @ p[1], jnp.sum(1 / p[0], 0)], [np.zeros((3, 3)), a(3, 2)]),
        (lambda p: 1 / p[0], [np.zeros(3)]),
        (lambda p: log_scan(p), [np.zeros((3, 3)), np.abs(a(2, 3))]),
        (lambda p: 1 / jnp.sum(1 / p[0]), [np.array([0.0, 1.0])]),
        (  # in the first step it is
            lambda p: lax.scan(lambda c, x: (c + 1 / jnp.sum(p[0] / x), None), 0.0, ONE_AND_0)[0],
            [np.abs(a(3)) + 0.5],
        ),
    ],
)
def test_what_is_not_finite_is_evaluated_as_a_whole(x64, f, leaves):
    assert not all(finite for finite, _, _ in both(f, leaves)[0])
    assert_same(quotients(f, leaves), quotients(f, leaves, method="dense"), 1e-12)


@pytest.mark.parametrize("name", ["unary", "recurrent", "conv", "scalar leaf", "identity", "casts"])
def test_propagation_gives_what_evaluation_as_a_whole_gives(x64, name):
    f, leaves = CASES[name]
    numbers = lambda p: [y.astype(jnp.result_type(y, jnp.float32)) for y in jax.tree.leaves(f(p))]  # noqa: E731
    found, want = quotients(numbers, leaves), quotients(numbers, leaves, method="dense")
    assert_same(found, want, 1e-12 if name != "casts" else 1e-2)


@pytest.mark.slow
def test_any_batch_size_gives_the_same(x64):
    f, leaves = CASES["joined attention"]
    want = quotients(f, leaves, method="dense")
    for batch_size in (1, 5, 1000):
        assert_same(quotients(f, leaves, batch_size=batch_size), want, 1e-12)


def test_a_batch_is_bounded_by_memory(monkeypatch):
    assert entries_at_once(8) == 64 and entries_at_once(2**22) == 2 and entries_at_once(2**40) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert entries_at_once(8) == 4096 and entries_at_once(2**22, most=8) == 128


@pytest.mark.slow
def test_a_mesh_gives_the_same(x64):
    f, leaves = CASES["joined attention"]
    mesh = jax.make_mesh((jax.device_count(),), ("entries",), axis_types=(AxisType.Auto,))
    f_of = lambda *p: f(list(p))  # noqa: E731
    every, points = tuple(range(len(leaves))), [jnp.asarray(x) for x in leaves]
    alone, shared, in_threes = (
        jit_quickly(numerical_grad(f_of, every, h=0.25, **options))(*points)
        for options in ({}, {"mesh": mesh}, {"mesh": mesh, "batch_size": 3})
    )
    assert_same(shared, alone, 1e-12)
    assert_same(in_threes, alone, 1e-12)


def test_side_effects_happen_in_every_evaluation(capfd):
    def f(p):
        jax.debug.print("seen {}", p[0].sum())
        return (p[0] ** 2).sum()

    (got,) = quotients(f, [jnp.ones(3)])
    jax.effects_barrier()
    np.testing.assert_allclose(got, 2.0)
    assert capfd.readouterr().out.count("seen") >= 6


@pytest.mark.slow
def test_under_vmap_and_twice(x64):
    x = jnp.asarray(a(5, 3))
    f = lambda w: jnp.sum(jnp.tanh(x @ w) ** 2)  # noqa: E731
    one = numerical_grad(f, h=1e-3)
    ws = jnp.asarray(a(6, 3, 4))
    vmapped, alone = jit_quickly(jax.vmap(one))(ws), jit_quickly(one)
    np.testing.assert_allclose(vmapped, jnp.stack([alone(w) for w in ws]), rtol=1e-10)
    # A batch of flags would turn the choice between propagation and evaluation as a whole into both
    # of them.
    assert "cond" in str(jax.make_jaxpr(jax.vmap(one))(ws))
    hessian = jit_quickly(numerical_jacobian(one, h=1e-3))(ws[0])
    np.testing.assert_allclose(hessian, jax.hessian(f)(ws[0]), atol=1e-4)


OPS = [
    lambda x, y: x + y,
    lambda x, y: x * y,
    lambda x, y: jnp.where(x > y, x, y * 0.5),
    lambda x, y: jnp.tanh(x),
    lambda x, y: x.T,
    lambda x, y: x @ y / 2,
    lambda x, y: x @ x.T / 2,
    lambda x, y: x - x.mean(0),
    lambda x, y: jax.nn.softmax(x),
    lambda x, y: x / (1 + jnp.abs(x).max(1, keepdims=True)),
    lambda x, y: jnp.concatenate([x[1:], y[:1]]),
    lambda x, y: x[::-1],
    lambda x, y: x.reshape(2, 2, 4).transpose(1, 0, 2).reshape(4, 4),
    lambda x, y: jnp.cumsum(x, 1) / 4,
    lambda x, y: x[np.array([2, 0, 0, 3])],
    lambda x, y: jnp.pad(x[1:3], ((1, 1), (0, 0))),
    lambda x, y: jnp.sort(x, 0),
    lambda x, y: jnp.broadcast_to(x.sum(0), (4, 4)) / 4,
    lambda x, y: x + y[0],
    lambda x, y: jax.nn.relu(x),
    lambda x, y: 1 - x,
    lambda x, y: jnp.stack(jnp.split(x, 4, 1)).reshape(4, 4),
    lambda x, y: jnp.einsum("ij,ij,kj->ik", x, y, x) / 4,
    lambda x, y: lax.cond(True, jnp.cos, jnp.sin, x),
    lambda x, y: lax.scan(lambda c, r: (jnp.tanh(c @ y), c[0] * r), x, x)[1],
]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.integers(0, len(OPS) - 1), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=8,
    )
)
def test_random_compositions(plan):
    def f(p):
        values = list(p)
        for op, i, j in plan:
            values.append(OPS[op](values[-1 - i % len(values)], values[-1 - j % len(values)]))
        return values[-1], values[-1].sum() * 2 - 1

    with jax.enable_x64(True):
        agree(f, [a(4, 4), a(4, 4, seed=7)], rtol=1e-11)


# What makes of a change of one weight, of 8 by 8, no more than a part of the 32 by 8 product.
STAYS_SMALL = {
    "pad": lambda y: jnp.pad(y, ((1, 2), (3, 4))),
    "cumsum": lambda y: jnp.cumsum(y, 0),
    "sort": lambda y: jnp.sort(y, 0),
    "update": lambda y: lax.dynamic_update_slice(jnp.zeros((32, 9), y.dtype), y, (0, 1)),
    "scatter": lambda y: jax.ops.segment_sum(y, jnp.arange(32) % 4, 4),
    "pool": lambda y: lax.reduce_window(y, 0.0, lax.add, (2, 1), (2, 1), "VALID"),
    "rev": lambda y: y[::-1],
}


@pytest.mark.parametrize("name", STAYS_SMALL)
def test_what_a_changed_column_leads_to_stays_a_column(name):
    """In bytes for each entry of the weights, beside the same without the operation."""
    x = jnp.asarray(a(32, 8), "float32")

    def size(operation):
        f = lambda leaves: jnp.sum(jnp.tanh(operation(x @ leaves[0])))  # noqa: E731
        (found,) = perturbations(f, [jnp.asarray(a(8, 8), "float32")])
        return found.bytes_per_entry

    assert size(STAYS_SMALL[name]) < size(lambda y: y) + 32 * 8 * 4
