"""Random programs whose gradient is known to be right, or wrong in one planted rule.

A program brings the leaves of a random pytree into the form of one matrix and applies random steps
to it. Programs with an odd seed have one fault, in the rule of a custom function.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SHAPES = ((3, 4), (4, 4))
DTYPES = ("float16", "bfloat16", "float32", "float32", "float32", "float64", "float64")
# A change of a gradient that a check of this dtype must notice.
EFFECTS = {"float16": 0.02, "bfloat16": 0.02, "float32": 2e-3, "complex64": 2e-3}
EFFECTS |= {"float64": 1e-5, "complex128": 1e-5}


class Program(NamedTuple):
    """A function, a point, and what is wrong with the gradient.

    Attributes:
      f: the function.
      args: its arguments; some are integers or a key.
      argnums: the arguments that are differentiated.
      fault: what is wrong, and where; empty if nothing is.
      line: the line of the wrong rule in this file; 0 if there is none.
      steps: names of the steps.
      wide: whether float64 must be enabled.
    """

    f: Any
    args: tuple[Any, ...]
    argnums: tuple[int, ...]
    fault: str
    line: int
    steps: tuple[str, ...]
    wide: bool


class Constants(NamedTuple):
    """What a step is given besides two matrices: constants, an integer argument and a key."""

    w: Any
    square: Any
    index: Any
    key: Any

    def like(self, x):
        return self._replace(w=self.w.astype(x.dtype), square=self.square.astype(x.dtype))


def single(x):
    """At least float32, for what has no half precision."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def positive(x):
    """A well-conditioned positive definite matrix."""
    return single(x @ x.T) / x.shape[1] + 2 * jnp.eye(len(x))


def tame(x):
    return x / jnp.sqrt(1 + jnp.mean(x**2))


def rows(x):
    return (x - x.mean(1, keepdims=True)) * lax.rsqrt(x.var(1, keepdims=True) + 0.1)


def like(x, value):
    return jnp.broadcast_to(value, x.shape)


def pooled(x, first, by, size=(2, 2)):
    return lax.reduce_window(x, np.asarray(first, x.dtype), by, size, (1, 1), "SAME")


def segment_max(x, index):
    """The first segment's; an empty one would be minus infinity."""
    return jnp.maximum(jax.ops.segment_max(x, index, 2)[0], -9)


def convolved(x, c):
    return lax.conv_general_dilated(x[None, None], c.w[None, None, :2, :2], (1, 1), "SAME")[0, 0]


def counted():
    return lax.while_loop(lambda k: k < 3, lambda k: k + 1, 0)


def dropped(x, c):
    return jnp.where(jax.random.bernoulli(c.key, 0.7, x.shape), x / 0.7, 0)


# Each takes two matrices and constants, and returns a matrix of the first's shape.
SMOOTH = {
    "tanh": lambda x, y, c: jnp.tanh(x),
    "sin": lambda x, y, c: jnp.sin(2 * x),
    "bell": lambda x, y, c: jnp.exp(-(x**2)),
    "softplus": lambda x, y, c: jax.nn.softplus(x),
    "gelu": lambda x, y, c: jax.nn.gelu(x),
    "silu": lambda x, y, c: jax.nn.silu(x),
    "erf": lambda x, y, c: lax.erf(x),
    "log1p": lambda x, y, c: jnp.log1p(x**2),
    "power": lambda x, y, c: (1 + x**2) ** (0.3 + y**2),
    "rsqrt": lambda x, y, c: x * lax.rsqrt(1 + y**2),
    "atan2": lambda x, y, c: jnp.arctan2(x, 1 + y**2),
    "lgamma": lambda x, y, c: lax.lgamma(1 + x**2),
    "bessel": lambda x, y, c: jax.scipy.special.i0e(x),
    "logaddexp": lambda x, y, c: jnp.logaddexp(x, y),
    "product": lambda x, y, c: x * y,
    "affine": lambda x, y, c: x @ c.square + c.w[0],
    "matmul": lambda x, y, c: x @ y.T @ x / x.size,
    "einsum": lambda x, y, c: jnp.einsum("ij,ij,kj->ij", x, y, c.w),
    "convolution": lambda x, y, c: convolved(x, c),
    "softmax": lambda x, y, c: jax.nn.softmax(3 * x),
    "log softmax": lambda x, y, c: jax.nn.log_softmax(x, axis=0),
    "logsumexp": lambda x, y, c: y * jax.nn.logsumexp(x, 1, keepdims=True),
    "layer norm": lambda x, y, c: rows(x),
    "norm": lambda x, y, c: x / jnp.linalg.norm(jnp.concatenate([x, 1 + 0 * x]), axis=0),
    "cumsum": lambda x, y, c: jnp.cumsum(x, 1),
    "cumprod": lambda x, y, c: jnp.cumprod(jnp.cos(x), 0),
    "cumlogsumexp": lambda x, y, c: lax.cumlogsumexp(x),
    "gather": lambda x, y, c: x[c.index[: len(x)]] + y[:, c.index[0]][:, None],
    "scatter-add": lambda x, y, c: y.at[c.index[:3]].add(x[:3]),
    "slice": lambda x, y, c: lax.dynamic_update_slice(x, y[1:3] ** 2, (c.index[0], c.index[0] * 0)),
    "pad": lambda x, y, c: jnp.pad(x[1:], ((0, 1), (0, 0))) + y[::-1],
    "segment sum": lambda x, y, c: jax.ops.segment_sum(x, c.index[: len(x)], len(x)),
    "dropout": lambda x, y, c: dropped(x, c),
    "where": lambda x, y, c: jnp.where(x > 0.2, jnp.log(jnp.where(x > 0.2, 0.8 + x, 1)), x - 0.2),
    "scan": lambda x, y, c: lax.scan(lambda s, r: ((s + r) / 2, s * r), x[0], y + x)[1],
    "fori loop": lambda x, y, c: lax.fori_loop(0, 3, lambda i, s: jnp.sin(s) + y / 2, x),
    "while loop": lambda x, y, c: x * counted() / 3 + y,
    "cond": lambda x, y, c: lax.cond(c.index[0] > 1, lambda: jnp.cos(x), lambda: jnp.sin(y)),
    "switch": lambda x, y, c: lax.switch(c.index[1] % 2, [jnp.tanh, jnp.arctan], x),
    "vmap": lambda x, y, c: jax.vmap(lambda a, b: a * jnp.dot(a, b))(x, y),
    "map": lambda x, y, c: lax.map(lambda a: jnp.tanh(a + a[::-1] ** 2), x),
    "remat": lambda x, y, c: jax.checkpoint(lambda x: jnp.sin(x) * jnp.exp(-(x**2)))(x),
    "associative scan": lambda x, y, c: lax.associative_scan(lambda a, b: a * b + b, x) / 2,
    "solve": lambda x, y, c: jnp.linalg.solve(positive(x), single(y)),
    "cholesky": lambda x, y, c: jnp.linalg.cholesky(positive(x)) @ single(y),
    "slogdet": lambda x, y, c: x * jnp.linalg.slogdet(positive(y))[1],
    "triangular": lambda x, y, c: lax.linalg.triangular_solve(
        positive(x), single(y), left_side=True, lower=True
    ),
    "fft": lambda x, y, c: jnp.abs(jnp.fft.fft(single(x), axis=1) + 3),
    "complex": lambda x, y, c: jnp.real(jnp.exp(lax.complex(single(y), single(x))) ** 2) / 4,
    "inner gradient": lambda x, y, c: jax.grad(lambda a: jnp.sum(jnp.sin(a) * y + a**3))(x),
    "bfloat16": lambda x, y, c: x.astype(jnp.bfloat16).astype(x.dtype) + y,
}
CORNERS = {
    "relu": lambda x, y, c: jax.nn.relu(x),
    "abs": lambda x, y, c: jnp.abs(x),
    "both relus": lambda x, y, c: jax.nn.relu(x) - jax.nn.relu(-x) * y,
    "leaky relu": lambda x, y, c: jax.nn.leaky_relu(x) + y,
    "maximum": lambda x, y, c: jnp.maximum(x, y),
    "minimum": lambda x, y, c: jnp.minimum(x, 0.5) * y,
    "clip": lambda x, y, c: jnp.clip(x, -0.5, 0.5),
    "greatest": lambda x, y, c: y * x.max(1, keepdims=True),
    "sort": lambda x, y, c: jnp.sort(x, axis=1),
    "argsort": lambda x, y, c: jnp.take_along_axis(x, jnp.argsort(x, 0), 0),
    "top k": lambda x, y, c: like(x, lax.top_k(x, 2)[0].sum(1, keepdims=True)) * y,
    "max pooling": lambda x, y, c: pooled(x, -jnp.inf, lax.max),
    "cummax": lambda x, y, c: lax.cummax(x, 1),
    "segment max": lambda x, y, c: segment_max(x, c.index[: len(x)] % 2) + y,
}
STEPS = SMOOTH | CORNERS
WRAPS = {
    "jit": lambda f: jax.jit(f),
    "remat": lambda f: jax.checkpoint(f),
    "cond": lambda f: lambda x, y: lax.cond(x[0, 0] < 99, f, lambda x, y: x, x, y),
    "vmap": lambda f: lambda x, y: jax.vmap(f)(jnp.stack([x, y]), jnp.stack([y, x])).sum(0),
    "scan": lambda f: lambda x, y: lax.scan(lambda s, _: (tame(f(s, y)), None), x, None, 2)[0],
    "fori": lambda f: lambda x, y: lax.fori_loop(0, 2, lambda _, s: tame(f(s, y)), x),
}


def product(spoil, fault):
    @jax.custom_vjp
    def product(x, y):
        return jnp.sin(x) * y

    def backward(saved, g):
        x, y = saved
        g = jnp.ones_like(g) if fault == "g forgotten" else g
        dx, dy = spoil(g * jnp.cos(x) * y), g * jnp.sin(x)
        dy = 0 * dy if fault == "an argument dropped" else dy
        return (dy, dx) if fault == "arguments swapped" else (dx, dy)

    product.defvjp(lambda x, y: (product(x, y), (x, y)), backward)
    return product, backward


def matmul(spoil, fault):
    @jax.custom_vjp
    def matmul(x, w):
        return x @ w

    def backward(saved, g):
        x, w = saved
        return spoil(g @ (w if fault == "not transposed" else w.T)), x.T @ g

    matmul.defvjp(lambda x, w: (matmul(x, w), (x, w)), backward)
    return (lambda x, y: matmul(x, y.T @ x / len(x))), backward


def softmax(spoil, fault):
    @jax.custom_vjp
    def softmax(x):
        return jax.nn.softmax(2 * x)

    def backward(p, g):
        axis = None if fault == "an axis forgotten" else 1
        mean = 0 if fault == "the sum forgotten" else jnp.sum(g * p, axis, keepdims=True)
        return (spoil(2 * p * (g - mean)),)

    softmax.defvjp(lambda x: (softmax(x), softmax(x)), backward)
    return (lambda x, y: softmax(x) + y), backward


def normalise(spoil, fault):
    @jax.custom_vjp
    def normalise(x):
        return rows(x)

    def backward(saved, g):
        z, scale = saved
        mean = 0 if fault == "the mean forgotten" else g.mean(1, keepdims=True)
        spread = 0 if fault == "the variance forgotten" else z * (g * z).mean(1, keepdims=True)
        return (spoil(scale * (g - mean - spread)),)

    scale = lambda x: lax.rsqrt(x.var(1, keepdims=True) + 0.1)  # noqa: E731
    normalise.defvjp(lambda x: (rows(x), (rows(x), scale(x))), backward)
    return (lambda x, y: normalise(x) * y), backward


def running(spoil, fault):
    @jax.custom_vjp
    def running(x):
        return jnp.cumsum(x, 0)

    def backward(_, g):
        return (spoil(lax.cumsum(g, 0, reverse=fault != "not reversed")),)

    running.defvjp(lambda x: (running(x), None), backward)
    return (lambda x, y: running(x) - y), backward


def picked(spoil, fault):
    index = np.array([0, 0, 2, 1])

    @jax.custom_vjp
    def picked(x):
        return x[index[: len(x)]]

    def backward(_, g):
        zeros, at = jnp.zeros_like(g), index[: len(g)]
        back = zeros.at[at].set(g) if fault == "set for add" else zeros.at[at].add(g)
        return (spoil(back),)

    picked.defvjp(lambda x: (picked(x), None), backward)
    return (lambda x, y: picked(x) * y), backward


def averaged(spoil, fault):
    @jax.custom_vjp
    def averaged(p):
        return p["x"] * jnp.mean(p["y"], 1, keepdims=True)

    def backward(p, g):
        size = 1 if fault == "sum for mean" else g.shape[1]
        inner = jnp.sum(g * p["x"], 1, keepdims=True) / size
        inner = 0 * inner if fault == "a leaf dropped" else inner
        mean = p["y"].mean(1, keepdims=True)
        return ({"x": spoil(g * mean), "y": inner + jnp.zeros_like(g)},)

    averaged.defvjp(lambda p: (averaged(p), p), backward)
    return (lambda x, y: averaged({"x": x, "y": y})), backward


def solved(spoil, fault):
    @jax.custom_vjp
    def solved(a, b):
        return jnp.linalg.solve(a, b)

    def backward(saved, g):
        a, out = saved
        b = jnp.linalg.solve(a if fault == "not transposed" else a.T, g)
        return (b if fault == "sign of a" else -b) @ out.T, spoil(b)

    solved.defvjp(lambda a, b: (solved(a, b), (a, solved(a, b))), backward)
    return (lambda x, y: solved(positive(x) + jnp.triu(positive(y)), single(y))), backward


def squared(spoil, fault):
    @jax.custom_vjp
    def squared(z):
        return z**2

    def backward(z, g):
        return (spoil(g * 2 * (jnp.conj(z) if fault == "conjugated" else z)),)

    squared.defvjp(lambda z: (squared(z), z), backward)
    return (lambda x, y: jnp.real(squared(lax.complex(single(x), single(y))) * (1 + 1j))), backward


def power(spoil, fault):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def power(x, n):
        return x**n

    def backward(n, x, g):
        return (spoil(g * (1 if fault == "exponent forgotten" else n) * x ** (n - 1)),)

    power.defvjp(lambda x, n: (power(x, n), x), backward)
    return (lambda x, y: power(x, 3) + y), backward


def swish(spoil, fault):
    @jax.custom_jvp
    def swish(x, y):
        return x * jax.nn.sigmoid(y)

    def tangent(primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        s = jax.nn.sigmoid(y)
        slope = s if fault == "a factor forgotten" else s * (1 - s)
        second = 0 * dy if fault == "an argument dropped" else x * slope * dy
        return swish(x, y), spoil(s * dx) + second

    swish.defjvp(tangent)
    return swish, tangent


def total(spoil, fault):
    @jax.custom_jvp
    def total(x):
        return jax.nn.logsumexp(x, 1, keepdims=True)

    def tangent(primals, tangents):
        (x,), (dx,) = primals, tangents
        axis = 0 if fault == "another axis" else 1
        return total(x), jnp.sum(spoil(jax.nn.softmax(x, axis) * dx), 1, keepdims=True)

    total.defjvp(tangent)
    return (lambda x, y: total(x) * y), tangent


def root(spoil, fault):
    @jax.custom_jvp
    def root(x):
        step = lambda s: (s[0] + 1, (s[1] + x / s[1]) / 2)  # noqa: E731
        return lax.while_loop(lambda s: s[0] < 9, step, (0, jnp.ones_like(x)))[1]

    def tangent(primals, tangents):
        value = root(*primals)
        return value, spoil(tangents[0] / ((1 if fault == "a half forgotten" else 2) * value))

    root.defjvp(tangent)
    return (lambda x, y: root(1 + x**2) * y), tangent


def clipped(spoil, fault):
    @jax.custom_jvp
    def clipped(x):
        return jnp.clip(x, -0.4, 0.6)

    def tangent(primals, tangents):
        (x,), (dx,) = primals, tangents
        inside = True if fault == "not masked" else (x > -0.4) & (x < 0.6)
        return clipped(x), spoil(jnp.where(inside, dx, 0))

    clipped.defjvp(tangent)
    return (lambda x, y: clipped(x) + y), tangent


def scaled(spoil, fault):
    def rule(x):
        def backward(g):
            return spoil(g * (-jnp.sin(x) if fault == "derivative of cos" else jnp.cos(x)))

        return backward

    @jax.custom_gradient
    def scaled(x):
        return jnp.sin(x), rule(x)

    return (lambda x, y: scaled(x) + y), rule(None)


# The rules, and the faults that only they can have.
RULES = {
    product: ("g forgotten", "an argument dropped", "arguments swapped"),
    matmul: ("not transposed",),
    softmax: ("an axis forgotten", "the sum forgotten"),
    normalise: ("the mean forgotten", "the variance forgotten"),
    running: ("not reversed",),
    picked: ("set for add",),
    averaged: ("sum for mean", "a leaf dropped"),
    solved: ("not transposed", "sign of a"),
    squared: ("conjugated",),
    power: ("exponent forgotten",),
    swish: ("a factor forgotten", "an argument dropped"),
    total: ("another axis",),
    root: ("a half forgotten",),
    clipped: ("not masked",),
    scaled: ("derivative of cos",),
}
# Faults of any rule; each is linear.
FAULTS = {
    "sign": lambda d, by: -d,
    "factor": lambda d, by: d * by,
    "one entry": lambda d, by: d.at[1, 2].multiply(by),
    "one row": lambda d, by: d.at[1].multiply(by),
    "reversed": lambda d, by: d[::-1],
    "transposed": lambda d, by: d.T.reshape(d.shape),
    "an axis summed": lambda d, by: like(d, d.sum(1, keepdims=True)),
    "mean for sum": lambda d, by: d / d.shape[1],
    "dropped": lambda d, by: 0 * d,
}


def rule_step(rng, wrong, planted):
    """A custom function with its rule: name, function, line of the rule."""
    rule = list(RULES)[rng.integers(len(RULES))]
    general = list(FAULTS)[rng.integers(len(FAULTS))]
    own = RULES[rule][rng.integers(len(RULES[rule]))]
    by = float(1 + 10 ** rng.uniform(-3, 0.3) * rng.choice([-1, 1]))
    special = rng.random() < 0.5
    spoil, fault = (lambda d: d), ""
    if wrong and planted:
        spoil = spoil if special else lambda d: FAULTS[general](d, by)
        fault = own if special else ""
    made, rule_of = rule(spoil, fault)
    name = f"{rule.__name__}: {own if special else f'{general} (by {by:.5g})'}" if wrong else ""
    return name or rule.__name__, (lambda x, y, c: made(x, y)), rule_of.__code__.co_firstlineno


def leaf_of(rng, dtype, rounded):
    """A random leaf; a rounded one has ties and zeros."""
    shape = tuple(rng.integers(1, 4, rng.integers(0, 4)))
    draw = lambda: rng.normal(size=shape)  # noqa: E731
    value = draw() + (1j * draw() if dtype.startswith("complex") else 0)
    value = np.round(2 * value) / 2 if rounded else value
    return jnp.asarray(value + (rng.random() < 0.3) * rounded * 1e-6, dtype)


def spread(leaf, shape, project):
    """A leaf as a matrix of a shape."""
    parts = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    flat, size = jnp.concatenate([part.ravel() for part in parts]), shape[0] * shape[1]
    if project is None and flat.size <= size:
        return flat[np.arange(size) % flat.size].reshape(shape)
    draw = np.random.default_rng(project or 0).normal(size=(flat.size, size))
    return (flat @ jnp.asarray(draw / np.sqrt(flat.size), flat.dtype)).reshape(shape)


def program(seed: int, planted: bool = True) -> Program:
    """The program of a seed; with `planted=False`, the same program with right rules."""
    rng = np.random.default_rng(seed)
    dtype, wrong = str(rng.choice(DTYPES)), bool(seed % 2)
    wide = dtype == "float64"
    with jax.enable_x64(wide):
        return _program(rng, dtype, wide, wrong, seed % 4 == 0, planted)


def _program(rng, dtype, wide, wrong, custom, planted):
    rounded, shape = rng.random() < 0.35, SHAPES[rng.integers(len(SHAPES))]
    some = {"float64": ("float64", "float32", "complex128")}.get(dtype, (dtype, "float32"))
    some += ("complex64",) if dtype == "float32" else ()
    dtypes = [dtype, *(str(rng.choice([dtype, dtype, *some])) for _ in range(rng.integers(4)))]
    leaves = [leaf_of(rng, kind, rounded) for kind in dtypes]
    ways = [None if rounded or rng.random() < 0.3 else int(rng.integers(99)) for _ in leaves]
    chosen = []
    for _ in range(min(2 + rng.geometric(0.5), 9)):
        steps = CORNERS if rounded and rng.random() < 0.3 else STEPS
        name = list(steps)[rng.integers(len(steps))]
        chosen.append((name, steps[name], 0))
    for bad in [False] * (custom or (wrong and rng.random() < 0.4)) + [True] * wrong:
        chosen.insert(rng.integers(len(chosen) + 1), rule_step(rng, bad, planted))
    plan, fault, line = [], "", 0
    for name, step, at in chosen:
        wrap = list(WRAPS)[rng.integers(len(WRAPS))] if rng.random() < 0.12 else ""
        given = rng.normal(size=shape), rng.normal(size=(shape[1], shape[1])) / 2
        plan.append((step, wrap, int(rng.integers(9)), *given))
        if ":" in name:
            fault, line = f"{name} {wrap and 'in ' + wrap}".strip(), at
    weights, unused = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape), rng.random() < 0.1
    index = jnp.asarray(rng.integers(0, 3, 4))
    key = jax.random.key(int(rng.integers(99)))

    def f(tree, index, more, key):
        parts = [*map(spread, jax.tree.leaves((tree, more)), [shape] * len(ways), ways)]
        values = [x.astype(jnp.result_type(*parts)) for x in parts]
        x = values[0]
        for step, wrap, other, w, square in plan:
            c = Constants(jnp.asarray(w), jnp.asarray(square), index, key).like(x)
            call = lambda x, y, step=step, c=c: step(x, y, c).astype(x.dtype)  # noqa: E731
            call = WRAPS[wrap](call) if wrap else call
            x = tame(call(x, values[-1 - other % len(values)]))
            values.append(x)
        if not unused:
            x = x + sum(tame(value * x) for value in values[: len(parts)])
        return jnp.sum(x * jnp.asarray(weights, x.dtype))

    cut = rng.integers(1, len(leaves) + 1)
    tree = {f"w{i}": leaf for i, leaf in enumerate(leaves[:cut])}
    args = ({"a": tree} if rng.random() < 0.5 else tree, index, tuple(leaves[cut:]), key)
    argnums = (0, 2) if len(leaves) > cut else (0,)
    names = tuple(f"{name} {plan[i][1]}".strip() for i, (name, *_) in enumerate(chosen))
    return Program(f, args, argnums, fault if planted else "", line, names, wide)


def effect(seed: int) -> float:
    """How much the fault changes a leaf's gradient, in units of what must be noticed."""
    wrong, right = program(seed), program(seed, planted=False)
    with jax.enable_x64(True):
        widen = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float64))  # noqa: E731
        args = list(wrong.args)
        for number in wrong.argnums:
            args[number] = jax.tree.map(widen, args[number])
        first, second = (jax.jit(jax.grad(p.f, p.argnums))(*args) for p in (wrong, right))
    least = [EFFECTS[str(x.dtype)] for n in wrong.argnums for x in jax.tree.leaves(wrong.args[n])]
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), least, strict=True)
    return max(_change(a, b) / size for a, b, size in pairs)


def _change(a, b):
    size = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / size) if size else float(np.linalg.norm(a) > 0) * 1e9
