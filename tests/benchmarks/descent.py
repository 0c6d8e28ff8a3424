"""What a step of gradient descent costs beside the gradient itself: `python
tests/benchmarks/descent.py`.

The chapter's loop in NumPy, a Python loop of jitted steps, a hand-written jitted `lax.fori_loop`,
and `jaxnn.gradient_descent`, on x0^2 + x1^2. Per step: a long descent less one of no steps. Per
call: the one of no steps."""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxnn


def bowl(x):
    return x[0] ** 2 + x[1] ** 2


def chapter_gradient(f, x):
    h, grad = 1e-4, np.zeros_like(x)
    for i in range(x.size):
        value = x[i]
        x[i] = value + h
        above = f(x)
        x[i] = value - h
        below = f(x)
        grad[i] = (above - below) / (2 * h)
        x[i] = value
    return grad


def chapter(x, lr, steps):
    x = np.array(x, np.float64)
    for _ in range(steps):
        x -= lr * chapter_gradient(bowl, x)
    return x


@jax.jit
def step(x, lr):
    return x - lr * jax.grad(bowl)(x)


def python_loop(x, lr, steps):
    for _ in range(steps):
        x = step(x, lr)
    return x


@jax.jit
def _by_hand(x, lr, steps):
    return lax.fori_loop(0, steps, lambda _, x: x - lr * jax.grad(bowl)(x), x)


def by_hand(x, lr, steps):
    return _by_hand(x, jnp.float32(lr), jnp.int32(steps))


def ours(x, lr, steps):
    return jaxnn.gradient_descent(bowl, x, lr=lr, step_num=steps)


def ours_numerical(x, lr, steps):
    return jaxnn.gradient_descent(bowl, x, lr=lr, step_num=steps, grad=jaxnn.numerical_grad)


ROWS = [
    ("chapter's loop, NumPy", chapter, 5_000),
    ("Python loop of jitted steps", python_loop, 5_000),
    ("hand-written fori_loop", by_hand, 1_000_000),
    ("gradient_descent", ours, 1_000_000),
    ("  with numerical_grad", ours_numerical, 100_000),
]


def seconds(descend, x, steps, repeats):
    jax.block_until_ready(descend(x, 1e-3, steps))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(descend(x, 1e-3, steps))
        times.append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    quick = parser.parse_args().quick
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__} on {device.device_kind} ({device.platform}); medians, ± half the "
        f"range of the runs"
    )
    print(f"{'':28}{'per step':>18}{'ratio':>10}{'per call':>18}")
    x, base = jnp.array([-3.0, 4.0]), None
    for name, descend, steps in ROWS:
        steps //= 10 if quick else 1
        calls = seconds(descend, x, 0, 200)
        call = statistics.median(calls)
        each = [(t - call) / steps for t in seconds(descend, x, steps, 5)]
        middle = statistics.median(each)
        base = base or middle
        spread = (max(each) - min(each)) / 2 / middle
        cells = [
            f"{middle * 1e6:.3g} us ±{spread:.0%}",
            f"{base / middle:.3g}x",
            f"{call * 1e6:.3g} us",
        ]
        print(f"{name:28}{cells[0]:>18}{cells[1]:>10}{cells[2]:>18}", flush=True)


if __name__ == "__main__":
    main()
