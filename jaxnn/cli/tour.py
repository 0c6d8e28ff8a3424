"""The chapter's numbers, section by section, each computed here beside the printed one."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn._chapter import INPUT, SAYS_SEVEN, SAYS_TWO, TARGET, WEIGHTS
from jaxnn._jax import enable_x64
from jaxnn.data import load_digits, one_hot, sample_batch
from jaxnn.descent import gradient_descent
from jaxnn.losses import accuracy, cross_entropy_error, mean_squared_error
from jaxnn.network import init_network, loss, predict
from jaxnn.numerical.differences import (
    numerical_diff,
    numerical_grad,
    numerical_gradient,
    partial_derivative,
)
from jaxnn.surfaces import bowl, parabola


class Row(NamedTuple):
    """One number of the chapter."""

    section: str
    quantity: str
    here: str
    chapter: str


def walk() -> Iterator[Row]:
    """All rows, in the chapter's order, computed in float64 as the chapter does."""
    sections = {
        "4.2 Loss functions": _losses,
        "4.3 Numerical differentiation": _derivatives,
        "4.4 The gradient": _gradients,
        "4.5 The learning algorithm": _learning,
    }
    with enable_x64(True):
        for section, rows in sections.items():
            yield from (Row(section, *row) for row in rows())


def _losses() -> Iterator[tuple[str, str, str]]:
    two = one_hot(jnp.array(2), 10, jnp.float64)
    for says, y, mse, cee in (
        ("2", SAYS_TWO, "0.0975", "0.510825457"),
        ("7", SAYS_SEVEN, "0.5975", "2.302584093"),
    ):
        y = jnp.array(y)
        yield (
            f"squared error of a 2, network says {says}",
            f"{mean_squared_error(y, two):.4f}",
            mse,
        )
        yield (
            f"cross-entropy of a 2, network says {says}",
            f"{cross_entropy_error(y, two):.9f}",
            cee,
        )
    digits = load_digits()
    train = digits.x_train, digits.t_train
    yield ("the training set, x (chapter: MNIST)", str(train[0].shape), "(60000, 784)")
    yield ("the training set, t (chapter: one-hot)", str(train[1].shape), "(60000, 10)")
    x, t = sample_batch(jax.random.key(0), train, 10)
    yield ("a mini-batch of 10, x", str(x.shape), "(10, 784)")
    yield ("a mini-batch of 10, t", str(t.shape), "(10, 10)")
    params = init_network(jax.random.key(0), (64, 20, 10))
    batch = sample_batch(jax.random.key(1), train, 100)
    # The chapter's example: with 32 of 100 right, a small change of a weight changes nothing.
    right = jnp.where(jnp.arange(100) < 32, batch[1], (batch[1] + 1) % 10)
    of_100 = accuracy(one_hot(right, 10, jnp.float64), batch[1])
    yield ("accuracy with 32 of 100 right", f"{of_100:.0%}", "32%")
    by_bias = lambda b: accuracy(predict({**params, "b2": b}, batch[0]), batch[1])  # noqa: E731
    steepest = float(jnp.max(abs(numerical_grad(by_bias)(params["b2"]))))
    yield ("largest slope of the accuracy", f"{steepest:g}", "0")


def _derivatives() -> Iterator[tuple[str, str, str]]:
    yield ("1e-50 as float32", str(jnp.float32(1e-50)), "0.0")
    for x, printed in ((5.0, "0.1999999999990898"), (10.0, "0.2999999999986347")):
        yield (
            f"d/dx of 0.01x^2 + 0.1x at {x:g}, h = 1e-4",
            str(numerical_diff(parabola, x, 1e-4)),
            printed,
        )
    at = jnp.array([3.0, 4.0])
    for i, printed in ((0, "6.00000000000378"), (1, "7.999999999999119")):
        yield (
            f"d/dx{i} of x0^2 + x1^2 at (3, 4)",
            str(partial_derivative(bowl, at, i, 1e-4)),
            printed,
        )


def _gradients() -> Iterator[tuple[str, str, str]]:
    for at, printed in (((3.0, 4.0), "(6, 8)"), ((0.0, 2.0), "(0, 4)"), ((3.0, 0.0), "(6, 0)")):
        gradient = numerical_gradient(bowl, jnp.array(at), h=1e-4)
        yield (f"gradient of x0^2 + x1^2 at ({at[0]:g}, {at[1]:g})", _vector(gradient, 6), printed)
    start = jnp.array([-3.0, 4.0])
    for name, grad in (("numerical", numerical_grad), ("jax.grad", jax.grad)):
        end = gradient_descent(bowl, start, lr=0.1, step_num=100, grad=grad)
        yield (
            f"descent, lr 0.1, 100 steps, {name}",
            _vector(end, 9),
            "(-6.11110793e-10, 8.14814391e-10)",
        )
    # The chapter's slopes round to 0 from 1e13 on, where its run therefore stops; these do not.
    far = f"{jnp.linalg.norm(descend_quietly(start, 10.0)):.3g}"
    yield ("lr = 10, 100 steps: distance from (0, 0)", far, "2.59e+13: its slopes round to 0")
    end = gradient_descent(bowl, start, lr=1e-10, step_num=100)
    yield ("lr = 1e-10, 100 steps", _vector(end, 9), "(-2.99999994, 3.99999992)")
    params = {"W1": jnp.array(WEIGHTS)}
    x, t = jnp.array(INPUT), jnp.array(TARGET)
    scores = predict(params, x)
    yield ("scores of the 2x3 network", _vector(scores, 9), "(1.05414809, 0.63071653, 1.1328074)")
    yield ("position of the largest of them", str(jnp.argmax(scores)), "2")
    yield (
        "its loss (the weights are rounded to 8 digits)",
        f"{loss(params, x, t):.10f}",
        "0.92806853663411326",
    )
    printed = ("(0.21924763, 0.14356247, -0.36281009)", "(0.32887144, 0.2153437, -0.54421514)")
    for name, grad in (("numerical", numerical_grad), ("jax.grad", jax.grad)):
        for row, (line, there) in enumerate(
            zip(grad(loss)(params, x, t)["W1"], printed, strict=True)
        ):
            yield (f"dW, row {row}, {name}", _vector(line, 8), there)
    moved = {"W1": params["W1"].at[0, 0].add(0.01)}
    change = float(loss(moved, x, t) - loss(params, x, t))
    yield ("change in the loss if w11 grows by h", f"{change / 0.01:.4g} h", "about 0.2 h")


def descend_quietly(start: jax.Array, lr: float) -> jax.Array:
    """The end of a descent that is meant to diverge; under `jit` it gives no warning."""
    return jax.jit(lambda x: gradient_descent(bowl, x, lr=lr, step_num=100))(start)


def _learning() -> Iterator[tuple[str, str, str]]:
    params = init_network(jax.random.key(0), (784, 100, 10))
    x, t = jnp.zeros((100, 784)), jnp.zeros(100, int)
    gradient = jax.eval_shape(jax.grad(loss), params, x, t)
    printed = {"W1": "(784, 100)", "b1": "(100,)", "W2": "(100, 10)", "b2": "(10,)"}
    for kind, arrays in (("", params), ("d", gradient)):
        for name, there in printed.items():
            quantity = f"shape of {kind}{name} in the 784-100-10 network"
            yield (quantity, str(arrays[name].shape), there)
    scores = jax.eval_shape(predict, params, x)
    yield ("shape of the scores of 100 images", str(scores.shape), "(100, 10)")


def _vector(values: Iterable[Any], digits: int) -> str:
    return "(" + ", ".join(f"{float(v):.{digits}g}" for v in values) + ")"
