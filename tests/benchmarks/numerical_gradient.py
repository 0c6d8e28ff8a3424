"""The numerical gradient beside what a user would pick instead: `python
tests/benchmarks/numerical_gradient.py`.

A two-layer network with a batch of 100, at four sizes. Each cell: seconds (median), spread of the
runs, how many times as fast as the chapter's NumPy loop in this run, and the error against
`jax.grad` in float64, relative in norm. `~` marks what was timed on a part of the entries and
scaled up. Then networks of other kinds: propagation against evaluation of the whole. `--quick` runs
the small sizes only."""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxnn

SIZES = {510: (39, 10, 10), 3_760: (64, 50, 10), 39_760: (784, 50, 10), 200_350: (784, 252, 10)}
BATCH = 100


# The chapter's network and its gradient, in NumPy.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = x - np.max(x, axis=-1, keepdims=True)
    return np.exp(x) / np.sum(np.exp(x), axis=-1, keepdims=True)


def chapter_loss(params, x, t):
    y = softmax(sigmoid(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"])
    return -np.sum(np.log(y[np.arange(len(y)), t] + 1e-7)) / len(y)


def chapter_gradient(f, x, limit):
    """Central differences by changing each entry in place, h = 1e-4; only the first `limit`
    entries.
    """
    h, grad = 1e-4, np.zeros_like(x)
    entries = np.nditer(x, flags=["multi_index"], op_flags=["readwrite"])
    for _, index in zip(range(limit), (entries.multi_index for _ in entries), strict=False):
        value = x[index]
        x[index] = value + h
        above = f()
        x[index] = value - h
        below = f()
        x[index] = value
        grad[index] = (above - below) / (2 * h)
    return grad


# One function for each row: (params, x, t, limit) -> gradients of the first entries, in the order
# W1, b1, W2, b2, and the time.


def flat(params):
    return np.concatenate(
        [np.ravel(np.asarray(params[name], np.float64)) for name in ("W1", "b1", "W2", "b2")]
    )


def unflat(theta, params):
    ends = np.cumsum([params[name].size for name in params])[:-1]
    return {
        name: part.reshape(params[name].shape)
        for name, part in zip(params, np.split(theta, ends), strict=True)
    }


def run_chapter(params, x, t, limit):
    start, found = time.perf_counter(), []
    for name in params:
        found.append(
            chapter_gradient(
                lambda: chapter_loss(params, x, t), params[name], limit - sum(map(len, found))
            ).ravel()
        )
    return time.perf_counter() - start, np.concatenate(found)[:limit]


def run_on_vector(differentiate):
    """A method that takes f(vector) and the vector: it is given the first entries, and f puts them
    in their places.
    """

    def run(params, x, t, limit):
        theta = flat(params)

        def f(first):
            whole = theta.copy()
            whole[:limit] = first
            return chapter_loss(unflat(whole, params), x, t)

        start = time.perf_counter()
        found = differentiate(f, theta[:limit])
        return time.perf_counter() - start, np.ravel(found)

    return run


def fprime(f, x):
    from scipy.optimize import approx_fprime

    return approx_fprime(x, f)


def three_point(f, x):
    from scipy.optimize._numdiff import approx_derivative

    return approx_derivative(f, x, method="3-point")


def numdiff(f, x):
    import numdifftools

    return numdifftools.Gradient(f)(x)


def run_jax(dtype, method):
    """Ours in one dtype, arguments and evaluation; for the first rows of W1 alone where not all
    entries are asked for.
    """
    compiled = {}

    def run(params, x, t, limit):
        rows = limit // params["W1"].shape[1] if limit < flat(params).size else None
        key = (params["W1"].shape, rows)
        with jax.enable_x64(dtype == "float64"):
            asked = {name: jnp.asarray(p, dtype) for name, p in params.items()}
            rest, x, t = asked, jnp.asarray(x, dtype), jnp.asarray(t)
            if rows is not None:
                asked = {"W1": asked["W1"][:rows]}
            if key not in compiled:

                def f(asked, rest, x, t):
                    w = (
                        asked["W1"]
                        if rows is None
                        else jnp.concatenate([asked["W1"], rest["W1"][rows:]])
                    )
                    return jaxnn.loss({**rest, **asked, "W1": w}, x, t)

                gradient = jaxnn.numerical_grad(
                    lambda asked, x, t: f(asked, rest, x, t), evaluation="own", method=method
                )
                jax.block_until_ready(gradient(asked, x, t))
                compiled[key] = gradient
            start = time.perf_counter()
            found = jax.block_until_ready(compiled[key](asked, x, t))
            seconds = time.perf_counter() - start
            return seconds, flat(found) if rows is None else np.ravel(
                np.asarray(found["W1"], np.float64)
            )

    return run


# Rows: name, how to run it, the loss it differentiates, the most entries that are timed, the
# largest size it is asked for.

ROWS = [
    ("chapter's NumPy loop", run_chapter, 1e-7, 3_760, 10**9),
    ("scipy approx_fprime", run_on_vector(fprime), 1e-7, 3_760, 10**9),
    ("scipy 3-point", run_on_vector(three_point), 1e-7, 1_000, 10**9),
    ("numdifftools", run_on_vector(numdiff), 1e-7, 510, 510),
    ("dense, float32", run_jax("float32", "dense"), 0, 3_760, 10**9),
    ("dense, float64", run_jax("float64", "dense"), 0, 3_760, 10**9),
    ("jaxnn, float32", run_jax("float32", "propagation"), 0, 10**9, 10**9),
    ("jaxnn, float64", run_jax("float64", "propagation"), 0, 10**9, 10**9),
]


def problem(sizes):
    rng = np.random.default_rng(0)
    inputs, hidden, classes = sizes
    params = {"W1": rng.normal(size=(inputs, hidden)) * 0.1, "b1": np.zeros(hidden)}
    params |= {"W2": rng.normal(size=(hidden, classes)) * 0.1, "b2": np.zeros(classes)}
    return params, rng.uniform(size=(BATCH, inputs)), rng.integers(0, classes, BATCH)


def reference(params, x, t, delta):
    def loss(params):
        logits = jax.nn.sigmoid(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"]
        return -jnp.mean(jnp.log(jax.nn.softmax(logits)[jnp.arange(len(x)), t] + delta))

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        return flat(jax.grad(loss)({name: jnp.asarray(p) for name, p in params.items()}))


def measured(run, delta, most, params, x, t, repeats):
    """Seconds of each run scaled to all entries, whether they were scaled, and the error."""
    size = flat(params).size
    limit = min(most, size)
    if limit < size:
        limit -= limit % params["W1"].shape[1]  # whole rows of W1, for the methods that take arrays
    runs = [run(params, x, t, limit) for _ in range(repeats)]
    exact = reference(params, x, t, delta)[:limit]
    error = np.linalg.norm(runs[0][1] - exact) / np.linalg.norm(exact)
    return [seconds * size / limit for seconds, _ in runs], limit < size, error


def first_table(sizes):
    lines, base = [[f"{'':22}", *(f"{f'D = {d:,}':>32}" for d in sizes)]], {}
    for name, run, delta, most, largest in ROWS:
        cells = [f"{name:22}"]
        for d in sizes:
            if d > largest:
                cells.append(f"{'-':>32}")
                continue
            try:
                times, scaled, error = measured(
                    run, delta, most, *problem(SIZES[d]), repeats=5 if "jaxnn" in name else 3
                )
            except ImportError as missing:
                cells.append(f"{f'no {missing.name}':>32}")
                continue
            middle = statistics.median(times)
            base.setdefault(d, middle)
            spread = (max(times) - min(times)) / 2 / middle
            seconds = f"{'~' if scaled else ''}{middle:.3g} s ±{spread:.0%}"
            cells.append(f"{seconds:>14}{base[d] / middle:8.3g}x {error:8.0e}")
        lines.append(cells)
        print(
            "  ".join(cells) if len(lines) > 2 else "\n".join("  ".join(line) for line in lines),
            flush=True,
        )


# Networks of other kinds.


def convolve(x, k):
    return lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def cross_entropy(z, t):
    return -jnp.mean(jnp.sum(t * jax.nn.log_softmax(z), 1))


def conv_net(p, x, t):
    # Not relu: of its hundred thousand kinks here some are within any step, and no difference
    # quotient is right there.
    h = jax.nn.sigmoid(convolve(x, p["k1"]) + p["c1"])
    h = jax.nn.sigmoid(convolve(h, p["k2"]) + p["c2"])
    return cross_entropy(h.reshape(x.shape[0], -1) @ p["w"] + p["b"], t)


def attention_block(p, x, t):
    q, k, v = x @ p["wq"], x @ p["wk"], x @ p["wv"]
    s = jnp.einsum("bqd,bkd->bqk", q, k) / np.sqrt(q.shape[-1]).astype(x.dtype)
    s = jnp.where(np.tril(np.ones(s.shape[-2:], bool)), s, -1e9)
    h = x + jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(s), v) @ p["wo"]
    return jnp.mean((h + jax.nn.gelu(h @ p["w1"]) @ p["w2"] - t) ** 2)


def recurrent_net(p, x, t):
    start = jnp.zeros((x.shape[1], p["w"].shape[0]), x.dtype)
    h, _ = lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x @ p["u"] + p["b"]), None), start, x)
    return cross_entropy(h @ p["v"], t)


def cast(params, like):
    return {name: jnp.asarray(p, like.dtype) for name, p in params.items()}


def networks(quick):
    rng = np.random.default_rng(0)
    a = lambda *shape: rng.normal(size=shape) * 0.2  # noqa: E731
    classes = np.eye(10)[rng.integers(0, 10, 16)]
    side = 8 if quick else 28
    conv = {
        "k1": a(3, 3, 1, 8),
        "c1": a(8),
        "k2": a(3, 3, 8, 8),
        "c2": a(8),
        "w": a(side * side * 8, 10) * 0.05,
        "b": a(10),
    }
    wide = {
        "wq": a(32, 32),
        "wk": a(32, 32),
        "wv": a(32, 32),
        "wo": a(32, 32),
        "w1": a(32, 64),
        "w2": a(64, 32),
    }
    loop = {"w": a(32, 32), "u": a(16, 32), "b": a(32), "v": a(32, 10)}
    images = a(16, side, side, 1)
    # The dense layer has 62,720 weights at 28 x 28; evaluating the whole for each takes minutes: a
    # part stands for all.
    part = {"w": conv.pop("w"), "b": conv.pop("b")}
    rest = {"w": part["w"][64:], "b": part["b"]}
    yield (
        "conv, 2 layers",
        lambda p, x, t: conv_net({**p, **cast(part, x)}, x, t),
        conv,
        images,
        classes,
    )
    yield (
        "conv, dense layer",
        lambda p, x, t: conv_net(
            {**cast(conv, x), **cast(rest, x), "w": jnp.concatenate([p["w"], cast(rest, x)["w"]])},
            x,
            t,
        ),
        {"w": part["w"][:64]},
        images,
        classes,
    )
    yield "attention", attention_block, wide, a(8, 16, 32), a(8, 16, 32)
    yield "scan", recurrent_net, loop, a(20, 16, 16), classes


def second_table(quick):
    print(f"\n{'':26}{'entries':>9}{'dense':>12}{'jaxnn':>12}{'ratio':>9}{'error':>10}")
    for dtype in ("float32", "float64"):
        for name, f, params, x, t in networks(quick):
            with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
                params, x, t = jax.tree.map(lambda y, d=dtype: jnp.asarray(y, d), (params, x, t))
                times, found = {}, None
                for method in ("dense", "propagation"):
                    gradient = jaxnn.numerical_grad(f, evaluation="own", method=method)
                    found = jax.block_until_ready(gradient(params, x, t))
                    runs = []
                    for _ in range(3):
                        start = time.perf_counter()
                        jax.block_until_ready(gradient(params, x, t))
                        runs.append(time.perf_counter() - start)
                    times[method] = statistics.median(runs)
                exact = jax.grad(f)(params, x, t)
                exact, found = (
                    np.concatenate([np.ravel(y) for y in jax.tree.leaves(g)])
                    for g in (exact, found)
                )
                error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
                ratio = times["dense"] / times["propagation"]
                cells = (
                    f"{exact.size:9,}{times['dense']:10.3g} s{times['propagation']:10.3g} "
                    f"s{ratio:8.3g}x{error:10.0e}"
                )
                print(f"{f'{name}, {dtype}':26}{cells}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the small sizes only")
    quick = parser.parse_args().quick
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__} on {device.device_kind} ({device.platform}); seconds, ratio to the "
        f"chapter's loop, error"
    )
    first_table(list(SIZES)[: 2 if quick else None])
    second_table(quick)


if __name__ == "__main__":
    main()
