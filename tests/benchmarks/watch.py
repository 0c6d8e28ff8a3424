"""What it costs to be watched: `python tests/benchmarks/watch.py`.

The time of a training step watched and unwatched, once each gradient's first point is there: each
step a call, and the steps as a scan. Rounds alternate; the shortest of each is compared."""

import argparse
import contextlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxnn
from jaxnn.checking.noting import noting
from jaxnn.checking.watch import Watcher


def weights(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)


def mlp(rng):
    """0.4 million parameters, a batch of 100."""
    sizes = (784, 400, 200, 10)
    params = [weights(rng, a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    x, t = weights(rng, 100, 784), jnp.asarray(rng.integers(0, 10, 100))

    def loss(params):
        h = x
        for w in params[:-1]:
            h = jnp.tanh(h @ w)
        return jaxnn.softmax_cross_entropy(h @ params[-1], t)

    return loss, params


def transformer(rng, layers=12, width=128, length=32):
    """2.4 million parameters in twelve layers, a batch of 4."""
    names = {"q": width, "k": width, "v": width, "o": width, "up": 4 * width}
    params = [
        {name: weights(rng, width, n) for name, n in names.items()}
        | {"down": weights(rng, 4 * width, width)}
        for _ in range(layers)
    ]
    x = jnp.asarray(rng.normal(size=(4, length, width)), jnp.float32)

    def normed(h):
        return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)

    def loss(params):
        h = x
        for p in params:
            n = normed(h)
            scores = (n @ p["q"]) @ jnp.swapaxes(n @ p["k"], -1, -2) / width**0.5
            h = h + jax.nn.softmax(scores) @ (n @ p["v"]) @ p["o"]
            h = h + jax.nn.gelu(normed(h) @ p["up"]) @ p["down"]
        return jnp.mean((h - x) ** 2)

    return loss, params


def runner(loss, params, steps, as_scan):
    """A function that takes some steps, compiled anew."""

    def step(params):
        gradient = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    if as_scan:
        scan = jax.jit(lambda p: lax.scan(lambda p, _: (step(p), None), p, length=steps)[0])
        return lambda: jax.block_until_ready(scan(params))
    one = jax.jit(lambda params: step(params))

    def run():
        now = params
        for _ in range(steps):
            now = one(now)
        return jax.block_until_ready(now)

    return run


def ratio(make, steps, as_scan, rounds, **options):
    """The time watched relative to the time unwatched, and the latter per step in ms."""
    loss, params = make(np.random.default_rng(0))
    plain, best = runner(loss, params, steps, as_scan), {}
    plain()
    with contextlib.ExitStack() as stack:
        stack.enter_context(noting(Watcher(**options)))
        watched = runner(loss, params, steps, as_scan)
        for _ in range(3):
            watched()
        for _ in range(rounds):
            for name, run in (("plain", plain), ("watched", watched)):
                began = time.perf_counter()
                run()
                best[name] = min(best.get(name, np.inf), time.perf_counter() - began)
    return best["watched"] / best["plain"], 1e3 * best["plain"] / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a few rounds of the smaller model")
    args = parser.parse_args()
    models = {"MLP, 0.4 M": (mlp, 100), "transformer, 2.4 M": (transformer, 10)}
    if args.quick:
        models, args.rounds = {"MLP, 0.4 M": (mlp, 20)}, 2
    print(f"{'model':20} {'steps':12} {'ms a step':>9} {'watched':>8} {'--no-nan':>9}")
    for name, (make, steps) in models.items():
        for as_scan in (False, True):
            watched, each = ratio(make, steps, as_scan, args.rounds)
            without, _ = ratio(make, steps, as_scan, args.rounds, finite=False)
            how = "as a scan" if as_scan else "each a call"
            print(f"{name:20} {how:12} {each:9.2f} {watched:8.2f} {without:9.2f}")


if __name__ == "__main__":
    main()
