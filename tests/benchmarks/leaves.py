"""What a check costs that finds nothing wrong, by the number of leaves and of parameters.

A function that joins so many leaves, one that uses each apart, and a transformer of 12 layers, with
leaves as it has them beside JAX's own check, and in pieces of all its parameters. At the end what
JAX takes to compile and compute one gradient of the former two, which grows with the number of
leaves. Sizes that the machine has no memory for are left out. Run it:
    python tests/benchmarks/leaves.py [--quick]"""

import argparse
import itertools
import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from jaxnn import check_gradient

BYTES_PER_PARAMETER = 100  # of memory, at most
WIDTH, HEADS, VOCABULARY, LENGTH, BATCH = 128, 4, 256, 32, 4

compilations: list[float] = []


def note(event, seconds, **_):
    if "backend_compile" in event:
        compilations.append(seconds)


def wave(x):
    return jnp.mean(jnp.tanh(x) * jnp.sin(3 * x))


def joined(points):
    return wave(jnp.concatenate(points))


def apart(points):
    return sum(map(wave, points)) / len(points)


def split(leaves, parameters):
    """A point of so many leaves: the arithmetic depends on their sum alone."""
    size = parameters // leaves
    return [0.1 + jnp.arange(size, dtype=jnp.float32) / size for _ in range(leaves)]


def transformer(key, layers=12):
    """A language model and its parameters: 148 leaves with 12 layers."""
    keys = iter(jax.random.split(key, 8 * layers + 2))
    draw = lambda *shape: jax.random.normal(next(keys), shape) / np.sqrt(shape[0])  # noqa: E731
    norm = lambda: {"scale": jnp.ones(WIDTH), "shift": jnp.full(WIDTH, 0.01)}  # noqa: E731

    def layer():
        square = {name: draw(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
        wide = {"up": draw(WIDTH, 4 * WIDTH), "down": draw(4 * WIDTH, WIDTH)}
        shifts = {"up_shift": draw(4 * WIDTH), "down_shift": draw(WIDTH)}
        return {"before": norm(), "after": norm(), **square, **wide, **shifts}

    embedding, places = draw(VOCABULARY, WIDTH), draw(LENGTH, WIDTH)
    blocks = [layer() for _ in range(layers)]
    return {"embedding": embedding, "places": places, "layers": blocks, "last": norm()}


def normalised(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["shift"]


def attended(p, x):
    heads = [(x @ p[name]).reshape(BATCH, LENGTH, HEADS, -1) for name in ("query", "key", "value")]
    query, key, value = heads
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / np.sqrt(WIDTH // HEADS)
    scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), scores, -1e9)
    mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)
    return mixed.reshape(BATCH, LENGTH, WIDTH) @ p["out"]


def language_loss(params, tokens):
    x = params["embedding"][tokens[:, :-1]] + params["places"]
    for p in params["layers"]:
        x = x + attended(p, normalised(p["before"], x))
        wide = jax.nn.gelu(normalised(p["after"], x) @ p["up"] + p["up_shift"])
        x = x + wide @ p["down"] + p["down_shift"]
    logits = normalised(params["last"], x) @ params["embedding"].T
    of_next = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
    return -of_next.mean()


def in_pieces(params, leaves):
    """The model's loss as a function of so many leaves of its parameters, and those."""
    flat, unravel = ravel_pytree(params)
    cuts = np.linspace(0, flat.size, leaves + 1).astype(int)
    points = [flat[low:high] for low, high in itertools.pairwise(cuts)]
    return lambda points, tokens: language_loss(unravel(jnp.concatenate(points)), tokens), points


def timed(f, *args):
    """A check from cold, and again: report, seconds, seconds again, compilations, their seconds."""
    jax.clear_caches()
    compilations.clear()
    start = time.perf_counter()
    report = check_gradient(f, *args)
    first = time.perf_counter() - start
    compiled = len(compilations), sum(compilations)
    start = time.perf_counter()
    check_gradient(f, *args)
    return report, first, time.perf_counter() - start, *compiled


def row(name, leaves, parameters, f, *args):
    report, first, again, programs, compiling = timed(f, *args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:12} {leaves:6} {parameters:11,} {report.verdict!s:8} {report.evaluations:7} "
        f"{first:7.2f} {again:7.2f} {programs:9} {compiling / first:10.0%} {peak:9.1f}",
        flush=True,
    )
    return first, again


def rows(name, parameters, made, counts=(10, 100, 1000)):
    """A row for each number of leaves, and how the last compares with the first; `made` gives a
    function and its arguments."""
    took = [row(name, leaves, parameters, *made(leaves)) for leaves in counts]
    first, again = (most / least for least, most in zip(took[0], took[-1], strict=True))
    print(f"{name}, {counts[-1]} leaves for {counts[0]}: {first:.2f} times, again {again:.2f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100,000 parameters in one function")
    quick = parser.parse_args().quick
    monitoring.register_event_duration_secs_listener(note)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print(
        "function     leaves  parameters verdict   values seconds   again  programs  compiling   "
        "peak GB"
    )
    check_gradient(jnp.sum, jnp.ones(3))
    for parameters in [10**5] + [10**6, 10**7, 10**8] * (not quick):
        if parameters * BYTES_PER_PARAMETER > memory:
            print(f"joined       {parameters:18,} left out: {memory / 2**30:.0f} GB of memory")
            continue
        rows("joined", parameters, lambda n, size=parameters: (joined, split(n, size)))
    if quick:
        return
    rows("apart", 10**5, lambda n: (apart, split(n, 10**5)))
    params = transformer(jax.random.key(0))
    sizes = [x.size for x in jax.tree.leaves(params)]
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH + 1), 0, VOCABULARY)
    first, _ = row("transformer", len(sizes), sum(sizes), language_loss, params, tokens)
    jax.clear_caches()
    start = time.perf_counter()
    loose = {"order": 1, "modes": ["rev"], "atol": 1.0, "rtol": 1.0}  # so that it ends
    check_grads(lambda p: language_loss(p, tokens), (params,), **loose)
    seconds = time.perf_counter() - start
    print(f"jax.test_util.check_grads of the last: {seconds:.1f} s, {seconds / first:.2f} times")
    rows("in pieces", sum(sizes), lambda n: (*in_pieces(params, n), tokens), (10, 1000))
    for f in (joined, apart):
        for leaves in (10, 100, 1000):
            points, start = split(leaves, 10**5), time.perf_counter()
            jax.block_until_ready(jax.jit(jax.value_and_grad(f))(points))
            seconds = time.perf_counter() - start
            called = f"jax.jit(jax.value_and_grad({f.__name__}))"
            print(f"{called} of {leaves} leaves, first call: {seconds:.1f} s")


if __name__ == "__main__":
    main()
