"""What a check costs: `python tests/benchmarks/check_time.py`.

CPU seconds of checks of small functions: the first one in a process of its own, other functions of
the same operations as in a test suite, and the same function again; each beside the gradient or the
check of JAX's that it is compared with."""

import itertools
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jaxnn import check_gradient, explain

RNG = np.random.default_rng(0)
X, W = (jnp.asarray(RNG.normal(size=shape), "float32") for shape in ((5, 3), (3, 4)))
UNITS = jnp.tanh, jnp.sin, jnp.cos, jnp.exp, jax.nn.softplus, jnp.arctan
AGAIN = 10


def loss_of(units):
    def loss(w):
        h = X @ w
        for unit in units:
            h = unit(h)
        return jnp.sum(h)

    return loss


def wrong(factor):
    """tanh, with a rule that is off by a factor."""
    f = jax.custom_vjp(jnp.tanh)
    f.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (factor * g * (1 - jnp.tanh(x) ** 2),))
    return f


def seconds(run, *args):
    began = time.process_time()
    jax.block_until_ready(run(*args))
    return time.process_time() - began


def usual(run, functions):
    return statistics.median(seconds(run, f) for f in functions)


def ours(f):
    assert check_gradient(f, W).verdict == "agrees"


def jaxs(f):
    check_grads(f, (W,), 1, modes=["rev"], atol=0.1, rtol=0.1)


FIRST = {"check": ours, "gradient": lambda f: jax.jit(jax.value_and_grad(f))(W)}


def of_first(what):
    """The usual seconds of the first check, or gradient, in each of five processes."""
    command = [sys.executable, __file__, what]
    runs = [subprocess.run(command, check=True, capture_output=True) for _ in range(5)]
    return statistics.median(float(run.stdout) for run in runs)


def main():
    functions = [loss_of(units) for units in itertools.product(UNITS, repeat=3)]
    first, *rest = functions
    rows = [("the first function", of_first("check"), of_first("gradient"))]
    for f in rest[:60]:
        ours(f), jaxs(f)
    others = rest[60:90], rest[90:120]
    rows.append(("another one, after 60", usual(ours, others[0]), usual(jaxs, others[1])))
    again = [first] * AGAIN
    clean = usual(ours, again)
    rows.append(("the same again", clean, usual(jaxs, again)))
    off = loss_of([wrong(1.1)])
    check_gradient(off, W), explain(off, W)
    rows.append(("a wrong one again", usual(lambda f: check_gradient(f, W), [off] * AGAIN), clean))
    rows.append(("explain, again", usual(lambda f: explain(f, W), [off] * AGAIN), clean))
    beside = "its gradient", "check_grads", "check_grads", "the same again", "the same again"
    print(f"{'a check of':24}{'seconds':>10}   beside")
    for (name, time_of, other), what in zip(rows, beside, strict=True):
        print(f"{name:24}{time_of:10.3f}   {other:.3f} {what}")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(seconds(FIRST[sys.argv[1]], loss_of(UNITS[:1])))
    else:
        main()
