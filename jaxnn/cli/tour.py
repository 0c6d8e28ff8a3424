"""The chapter, section by section: each number it prints, computed here, beside the printed one."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.data import load_digits, one_hot, sample_batch
from jaxnn.descent import gradient_descent
from jaxnn.losses import cross_entropy_error, mean_squared_error
from jaxnn.network import init_network, loss, predict
from jaxnn.numerical.differences import (
    numerical_diff,
    numerical_grad,
    numerical_gradient,
    partial_derivative,
)
from jaxnn.surfaces import bowl, parabola

# The chapter's example: ten outputs for a picture of a 2, once confident that it is a 2, once that
# it is a 7.
SAYS_TWO = (0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0)
SAYS_SEVEN = (0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0)
# The chapter's smallest network: two inputs, three scores, fixed weights.
WEIGHTS = ((0.47355232, 0.9977393, 0.84668094), (0.85557411, 0.03563661, 0.69422093))
INPUT = (0.6, 0.9)
TARGET = (0, 0, 1)


class Row(NamedTuple):
    """One number of the chapter."""

    section: str
    quantity: str
    here: str
    chapter: str


def walk() -> Iterator[Row]:
    """All rows, in the chapter's order, computed in float64 as the chapter does."""
    with jax.enable_x64(True):
        yield from _losses()
        yield from _derivatives()
        yield from _gradients()
        yield from _learning()


def _losses() -> Iterator[Row]:
    section = "4.2 Loss functions"
    two = one_hot(jnp.array(2), 10, jnp.float64)
    for says, y, mse, cee in (
        ("2", SAYS_TWO, "0.0975", "0.510825457"),
        ("7", SAYS_SEVEN, "0.5975", "2.302584093"),
    ):
        y = jnp.array(y)
        yield Row(
            section,
            f"squared error of a 2, network says {says}",
            f"{mean_squared_error(y, two):.4f}",
            mse,
        )
        yield Row(
            section,
            f"cross-entropy of a 2, network says {says}",
            f"{cross_entropy_error(y, two):.9f}",
            cee,
        )
    digits = load_digits()
    x, t = sample_batch(jax.random.key(0), (digits.x_train, digits.t_train), 10)
    yield Row(
        section, "a mini-batch of 10 (there: MNIST)", f"{x.shape} {t.shape}", "(10, 784) (10, 10)"
    )


def _derivatives() -> Iterator[Row]:
    section = "4.3 Numerical differentiation"
    yield Row(section, "1e-50 as float32", str(jnp.float32(1e-50)), "0.0")
    for x, printed in ((5.0, "0.1999999999990898"), (10.0, "0.2999999999986347")):
        yield Row(
            section,
            f"d/dx 0.01x^2 + 0.1x at {x:g}, h = 1e-4",
            str(numerical_diff(parabola, x, 1e-4)),
            printed,
        )
    at = jnp.array([3.0, 4.0])
    for i, printed in ((0, "6.00000000000378"), (1, "7.999999999999119")):
        yield Row(
            section,
            f"d/dx{i} of x0^2 + x1^2 at (3, 4)",
            str(partial_derivative(bowl, at, i, 1e-4)),
            printed,
        )


def _gradients() -> Iterator[Row]:
    section = "4.4 The gradient"
    for at, printed in (((3.0, 4.0), "(6, 8)"), ((0.0, 2.0), "(0, 4)"), ((3.0, 0.0), "(6, 0)")):
        gradient = numerical_gradient(bowl, jnp.array(at), h=1e-4)
        yield Row(
            section,
            f"gradient of x0^2 + x1^2 at ({at[0]:g}, {at[1]:g})",
            _vector(gradient, 6),
            printed,
        )
    start = jnp.array([-3.0, 4.0])
    for name, grad in (("numerical", numerical_grad), ("jax.grad", jax.grad)):
        end = gradient_descent(bowl, start, lr=0.1, step_num=100, grad=grad)
        yield Row(
            section,
            f"descent, lr 0.1, 100 steps, {name}",
            _vector(end, 9),
            "(-6.11110793e-10, 8.14814391e-10)",
        )
    # The chapter's end point of a divergence is its rounding error; that it is far away is what can
    # be compared.
    far = jnp.linalg.norm(descend_quietly(start, 10.0)) > 1e10
    yield Row(section, "lr = 10: further away than 1e10", str(bool(far)), "True (2.59e+13)")
    end = gradient_descent(bowl, start, lr=1e-10, step_num=100)
    yield Row(section, "lr = 1e-10, 100 steps", _vector(end, 9), "(-2.99999994, 3.99999992)")
    params = {"W1": jnp.array(WEIGHTS)}
    x, t = jnp.array(INPUT), jnp.array(TARGET)
    yield Row(
        section,
        "scores of the 2x3 network",
        _vector(predict(params, x), 9),
        "(1.05414809, 0.63071653, 1.1328074)",
    )
    yield Row(
        section,
        "its loss (weights rounded to 8 digits)",
        f"{loss(params, x, t):.10f}",
        "0.92806853663411326",
    )
    printed = ("(0.21924763, 0.14356247, -0.36281009)", "(0.32887144, 0.2153437, -0.54421514)")
    for name, grad in (("numerical", numerical_grad), ("jax.grad", jax.grad)):
        for row, (line, there) in enumerate(
            zip(grad(loss)(params, x, t)["W1"], printed, strict=True)
        ):
            yield Row(section, f"dW, row {row}, {name}", _vector(line, 8), there)


def descend_quietly(start: jax.Array, lr: float) -> jax.Array:
    """A descent that is meant to diverge: under `jit` no warning is given."""
    return jax.jit(lambda x: gradient_descent(bowl, x, lr=lr, step_num=100))(start)


def _learning() -> Iterator[Row]:
    section = "4.5 The learning algorithm"
    params = init_network(jax.random.key(0), (784, 100, 10))
    for name, printed in (
        ("W1", "(784, 100)"),
        ("b1", "(100,)"),
        ("W2", "(100, 10)"),
        ("b2", "(10,)"),
    ):
        yield Row(
            section, f"shape of {name} in the 784-100-10 network", str(params[name].shape), printed
        )


def _vector(values: Iterable[Any], digits: int) -> str:
    return "(" + ", ".join(f"{float(v):.{digits}g}" for v in values) + ")"
