"""What `jaxnn.fit` costs beside a hand-written loop: `python tests/benchmarks/scan.py`.

Each row is one run both ways on the same examples, in turns, after one run that compiles: by hand a
jitted scan over the batches of all epochs, whose order is drawn from a key on the device. Then a
full-batch run of 5,000 epochs, beside a scan that does not shuffle; examples from a memory map,
beside a plain Python loop of jitted steps, with what gathering and arithmetic take alone; a cold
start, from the start of Python to the end of a run with measurements; and the most memory that a
process held for 25 million parameters with Adam."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxnn

TURNS = 5


def scan(loss, optimizer, epochs, batch_size):
    """By hand: all steps of all epochs in one program."""

    @jax.jit
    def run(params, x, t, key):
        count = len(x) // batch_size * batch_size

        def step(carry, rows):
            params, state = carry
            batch = (x, t) if rows is None else (x[rows], t[rows])
            value, gradient = jax.value_and_grad(loss)(params, *batch)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        def epoch(carry, number):
            if batch_size == len(x):  # all examples, whose order does not matter
                return lax.scan(step, carry, length=1)
            order = jax.random.permutation(jax.random.fold_in(key, number), len(x))[:count]
            return lax.scan(step, carry, order.reshape(-1, batch_size))

        return lax.scan(epoch, (params, optimizer.init(params)), jnp.arange(epochs))

    return run


def in_turns(*runs):
    """Median seconds of each, after one run of each."""
    times = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(TURNS):
        for run, seconds in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in times]


def examples(count, inputs):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(count, inputs)).astype(np.float32)
    return x, rng.integers(0, 10, count).astype(np.int32)


def mini_batches():
    print("network               optimiser  batch  steps   scan s    fit s   fit : scan")
    for sizes, steps in (
        ((64, 50, 10), 40_000),
        ((784, 100, 10), 8000),
        ((784, 1024, 1024, 10), 320),
    ):
        for batch_size in (32, 256, 1024):
            for name, optimizer in (("SGD", optax.sgd(0.1)), ("Adam", optax.adam(1e-3))):
                taken = max(20, steps * 32 // batch_size)
                per_epoch = min(taken, 8192 // batch_size)
                epochs = max(1, taken // per_epoch)
                x, t = map(jnp.asarray, examples(per_epoch * batch_size, sizes[0]))
                params = jaxnn.init_network(jax.random.key(0), sizes)
                by_hand = scan(jaxnn.loss, optimizer, epochs, batch_size)
                run = {"key": jax.random.key(1), "epochs": epochs, "batch_size": batch_size}
                hand, ours = in_turns(
                    lambda by_hand=by_hand, params=params, x=x, t=t: jax.block_until_ready(
                        by_hand(params, x, t, jax.random.key(1))
                    ),
                    lambda params=params, x=x, t=t, optimizer=optimizer, run=run: jaxnn.fit(
                        jaxnn.loss, params, (x, t), optimizer, **run
                    ),
                )
                print(
                    f"{'-'.join(map(str, sizes)):21} {name:9} {batch_size:6} "
                    f"{epochs * per_epoch:6} {hand:8.3f} {ours:8.3f}   {ours / hand:6.2f}",
                    flush=True,
                )


def curve(params, x, t):
    """The squared error of a network with one input, 20 units and one output."""
    hidden = jnp.tanh(x @ params["W1"] + params["b1"])
    return jnp.mean((hidden @ params["W2"] + params["b2"] - t) ** 2)


def full_batch():
    """The scan is compiled once; `fit` traces a loss again at each call unless it is jitted, so
    tracing the scan is timed as well.
    """
    epochs, key = 5000, jax.random.key(1)
    run = {"key": key, "epochs": epochs, "batch_size": 100}
    small = {"W1": jnp.ones((1, 20)), "b1": jnp.linspace(-1, 1, 20)}
    small |= {"W2": jnp.ones((20, 1)), "b2": jnp.zeros(1)}
    x = jnp.linspace(-1, 1, 100)[:, None]
    digits = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
    for name, loss, params, data, optimizer in (
        ("64-50-10, SGD", jaxnn.loss, digits, examples(100, 64), optax.sgd(0.1)),
        ("1-20-1, Adam", curve, small, (x, jnp.sin(3 * x)), optax.adam(0.01)),
    ):
        data, jitted = tuple(map(jnp.asarray, data)), jax.jit(loss)
        by_hand = scan(loss, optimizer, epochs, 100)
        given = params, data, optimizer
        runs = (
            lambda f=by_hand, params=params, data=data: jax.block_until_ready(
                f(params, *data, key)
            ),
            lambda loss=loss, given=given: jaxnn.fit(loss, *given, **run),
            lambda loss=jitted, given=given: jaxnn.fit(loss, *given, **run),
            lambda loss=loss, params=params, data=data, optimizer=optimizer: scan(
                lambda *args: loss(*args), optimizer, epochs, 100
            ).trace(params, *data, key),
        )
        hand, ours, warm, tracing = in_turns(*runs)
        print(
            f"full batch, {epochs} epochs of {name}: scan {hand:.3f} s, fit of a jitted loss "
            f"{warm:.3f} s: {warm / hand:.2f}; traced at each call, scan {hand + tracing:.3f} s, "
            f"fit {ours:.3f} s: {ours / (hand + tracing):.2f}"
        )


def memory_map():
    count, batch_size = 90_112, 128
    optimizer, params = optax.sgd(0.1), jaxnn.init_network(jax.random.key(0), (784, 100, 10))
    x, t = examples(count, 784)

    @jax.jit
    def step(params, state, x, t):
        value, gradient = jax.value_and_grad(jaxnn.loss)(params, x, t)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    with tempfile.TemporaryDirectory() as directory:
        np.save(f"{directory}/x.npy", x)
        x = np.load(f"{directory}/x.npy", mmap_mode="r")

        def of_epoch(number):
            order = np.random.default_rng(number).permutation(count).reshape(-1, batch_size)
            return ((x[rows], t[rows]) for rows in order)

        def plain():
            now, state, losses = params, optimizer.init(params), []
            for batch in of_epoch(1):
                now, state, value = step(now, state, *batch)
                losses.append(value)
            jax.block_until_ready(losses)

        def gathering():
            for _ in of_epoch(1):
                pass

        def arithmetic():
            now, state, batch = params, optimizer.init(params), (x[:batch_size], t[:batch_size])
            for _ in range(count // batch_size):
                now, state, value = step(now, state, *batch)
            jax.block_until_ready(value)

        run = {"key": jax.random.key(1), "epochs": 1}
        names = "a plain loop", "fit, memory map", "fit, function", "gathering", "arithmetic"
        seconds = in_turns(
            plain,
            lambda: jaxnn.fit(jaxnn.loss, params, (x, t), optimizer, batch_size=batch_size, **run),
            lambda: jaxnn.fit(jaxnn.loss, params, of_epoch, optimizer, **run),
            gathering,
            arithmetic,
        )
    print(f"{count // batch_size} steps on a memory map of {x.nbytes / 1e6:.0f} MB:")
    for name, value in zip(names, seconds, strict=True):
        print(f"  {name:18} {value:.3f} s   {value / seconds[0]:.2f}")


COLD = """
import sys, time
import jax, jax.numpy as jnp, numpy as np, optax
import jaxnn
digits = jaxnn.load_digits()
train, test = (digits.x_train, digits.t_train), (digits.x_test, digits.t_test)
params, optimizer = jaxnn.init_network(jax.random.key(0), (64, 50, 10)), optax.adam(0.01)
def metrics(params, x, t): return {"accuracy": jaxnn.accuracy(jaxnn.predict(params, x), t)}
if sys.argv[1] == "fit":
    jaxnn.fit(jaxnn.loss, params, train, optimizer, key=jax.random.key(1), epochs=20,
              measuring=jaxnn.Measuring(test=test, metrics=metrics))
else:
    state = optimizer.init(params)
    def step(carry, rows):
        params, state = carry
        value, gradient = jax.value_and_grad(jaxnn.loss)(params, train[0][rows], train[1][rows])
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value
    @jax.jit
    def epoch(params, state, key):
        order = jax.random.permutation(key, 1500).reshape(-1, 100)
        return jax.lax.scan(step, (params, state), order)
    @jax.jit
    def measure(params, x, t): return jaxnn.loss(params, x, t), metrics(params, x, t)
    for number in range(20):
        (params, state), losses = epoch(params, state, jax.random.key(number))
        jax.tree.map(float, [measure(params, *train), measure(params, *test)])
        np.asarray(losses)
"""


def cold_start():
    seconds = in_turns(
        *(
            lambda kind=kind: subprocess.run([sys.executable, "-c", COLD, kind], check=True)
            for kind in ("hand", "fit")
        )
    )
    print(
        f"cold start, 20 epochs of the digits with measurements: by hand {seconds[0]:.2f} s, fit "
        f"{seconds[1]:.2f} s: {seconds[1] / seconds[0]:.2f}"
    )


MEMORY = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import jaxnn
def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e6 for line in status if line.startswith("VmHWM"))
params, optimizer = {"W": jnp.zeros((5000, 5000)), "b": jnp.zeros(5000)}, optax.adam(1e-3)
x = np.random.default_rng(0).normal(size=(64, 5000)).astype(np.float32)
def loss(p, x): return jnp.mean((jnp.tanh(x @ p["W"] + p["b"]) - 1) ** 2)
jax.block_until_ready(params)
before = most()
if sys.argv[1] == "hand":
    def step(p, s, x):
        gradient = jax.grad(loss)(p, x)
        updates, s = optimizer.update(gradient, s, p)
        return optax.apply_updates(p, updates), s
    step, state = jax.jit(step, donate_argnums=(0, 1)), optimizer.init(params)
    for i in range(12): params, state = step(params, state, x[i % 4 * 16 : i % 4 * 16 + 16])
    jax.block_until_ready(params)
else:
    jaxnn.fit(loss, params, (x,), optimizer, key=jax.random.key(0), epochs=3, batch_size=16,
              start=jaxnn.Start(donate=sys.argv[1] == "donated"))
print(most() - before)
"""


def memory():
    got = {}
    for kind in ("hand", "fit", "donated"):
        command = [sys.executable, "-W", "ignore", "-c", MEMORY, kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        got[kind] = float(done.stdout)
    print(
        f"memory beside the parameters, 25 M with Adam: by hand {got['hand']:.2f} GB (they are "
        f"overwritten), fit {got['fit']:.2f} GB, fit with donate=True {got['donated']:.2f} GB: "
        f"{got['donated'] / got['hand']:.2f}"
    )


def main():
    parts = {f.__name__: f for f in (mini_batches, full_batch, memory_map, cold_start, memory)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all")
    chosen = parser.parse_args().parts or list(parts)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; medians of {TURNS}")
    for name in chosen:
        parts[name]()


if __name__ == "__main__":
    main()
