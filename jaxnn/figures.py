"""The chapter in pictures: everything they show is computed here, by the library's own functions;
`plots` draws it.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxnn import plots
from jaxnn._files import made_directory
from jaxnn.checking.check import check_gradient
from jaxnn.data import load_digits
from jaxnn.descent import descent_path
from jaxnn.losses import accuracy, cross_entropy_error, mean_squared_error
from jaxnn.network import init_network, loss, predict
from jaxnn.numerical.differences import numerical_diff, numerical_grad
from jaxnn.surfaces import bowl, parabola, plateau, saddle, two_valleys
from jaxnn.training.fit import fit
from jaxnn.training.history import Fit


def draw(directory: str | Path) -> list[Path]:
    """Draw every picture of the chapter, in its order.

    Args:
      directory: where the PNG files go; it is made if it is not there.

    Returns:
      Their paths.

    Example:
      >>> [path.name for path in draw("pictures")][:2]  # doctest: +SKIP
      ['01_losses.png', '02_loss_and_accuracy.png']
    """
    folder = made_directory("directory", directory)
    written = []
    for number, (picture, size) in enumerate(_PICTURES.items(), start=1):
        figure = Figure(size, layout="constrained")
        picture(figure)
        written.append(folder / f"{number:02}{picture.__name__}.png")
        figure.savefig(written[-1], dpi=80)
    return written


def _losses(figure: Figure) -> None:
    p = jnp.concatenate([jnp.logspace(-10, -2, 81), jnp.linspace(0.02, 1, 99)])
    rest = jnp.broadcast_to((1 - p[:, None]) / 9, (len(p), 9))
    answers, truth = jnp.concatenate([p[:, None], rest], axis=1), jnp.array(0)
    entropy, error = (
        jax.jit(jax.vmap(f, (0, None)))(answers, truth)
        for f in (cross_entropy_error, mean_squared_error)
    )
    panels = plots.losses(p, entropy, error, axes=figure.subplots(1, 2))
    panels[0].set_title("Cross-entropy is -log(x + delta), delta = 1e-7")
    panels[1].set_title("Two losses, the rest spread over nine classes")


def _loss_and_accuracy(figure: Figure) -> None:
    """From the initial weights to the trained ones, on few examples, so that the stairs can be
    seen.
    """
    digits, start, end = load_digits(), _start(), _trained().params
    x, t = digits.x_test[:20], digits.t_test[:20]
    along = jnp.linspace(0, 0.5, 501)

    @jax.jit
    @jax.vmap
    def measure(s):
        params = jax.tree.map(lambda a, b: a + s * (b - a), start, end)
        return loss(params, x, t), accuracy(predict(params, x), t)

    panels = plots.loss_and_accuracy(
        along, *measure(along), axes=figure.subplots(2, 1, sharex=True)
    )
    panels[1].set_xlabel("part of the way from the initial weights to the trained ones")
    figure.suptitle("Loss and accuracy of 20 test digits")


def _activations(figure: Figure) -> None:
    x = jnp.arange(-200, 201) / 50
    functions = {
        "step": lambda x: jnp.where(x > 0, 1.0, 0.0),
        "sigmoid": jax.nn.sigmoid,
        "ReLU": jax.nn.relu,
    }
    derivatives = {}
    diff = jax.jit(numerical_diff, static_argnums=0, static_argnames="scheme")
    for name, f in functions.items():
        left, right = (diff(f, x, scheme=scheme) for scheme in ("backward", "forward"))
        derivatives[name] = jnp.where(
            abs(left - right) < 1e-3, (left + right) / 2, jnp.nan
        )  # step and ReLU have none at 0
    plots.activations(
        x, {name: f(x) for name, f in functions.items()}, derivatives, axes=figure.subplots(1, 2)
    )


def _derivative(figure: Figure) -> None:
    """The chapter's two tangents; and on e^x, which bends more, how secants close in on one."""
    chapter, *closing = figure.subplots(1, 3)
    x = jnp.linspace(0, 20, 201)
    tangents = {
        f"tangent at {at:g}": ((at, at), float(numerical_diff(parabola, at))) for at in (5.0, 10.0)
    }
    plots.slopes(x, parabola(x), tangents, ax=chapter).set_title("$f(x) = 0.01x^2 + 0.1x$")
    x, at = jnp.linspace(-1, 4, 501), 1.5
    for scheme, back, ax in zip(("forward", "central"), (0, 1), closing, strict=True):
        lines = {"tangent": ((at, at), float(jax.grad(jnp.exp)(at)))}
        for h in (2.0, 1.0, 0.5):
            lines[f"h = {h:g}"] = (
                (at - back * h, at + h),
                float(numerical_diff(jnp.exp, at, h, scheme=scheme)),
            )
        plots.slopes(x, jnp.exp(x), lines, ax=ax).set_title(f"$f(x) = e^x$, {scheme} difference")


def _step_errors(figure: Figure) -> None:
    def error(slope):
        return abs(np.asarray(slope, np.float64) / np.e - 1)  # of the derivative of e^x at 1

    curves, defaults = {}, {}
    for dtype, finest in (("float32", -21), ("float64", -50)):
        with jax.enable_x64(dtype == "float64"):
            x = jnp.ones((), dtype)
            for scheme in ("forward", "central"):
                diff = jax.jit(
                    functools.partial(numerical_diff, scheme=scheme, evaluation="own"),
                    static_argnums=0,
                )
                h = 2.0 ** jnp.arange(finest, 1, dtype=dtype)  # as the default is a power of two
                curves[f"{scheme}, {dtype}"] = (
                    h,
                    error(jax.vmap(lambda h, diff=diff, x=x: diff(jnp.exp, x, h))(h)),
                )
                defaults[f"{scheme}, {dtype}"] = (
                    _default_step(diff, x, scheme),
                    float(error(diff(jnp.exp, x))),
                )
    ax = plots.step_errors(curves, defaults, ax=figure.subplots())
    ax.set_title(
        "The derivative of $e^x$ at 1:\nround-off makes small steps wrong, truncation large ones"
    )


def _default_step(diff: Callable, x: jax.Array, scheme: str) -> float:
    """Told by powers of the distance from x: (h^2 - 0) / h is h, and (h^3 - (-h)^3) / 2h is h^2."""
    if scheme == "forward":
        return float(diff(lambda z: (z - x) ** 2, x))
    return float(diff(lambda z: (z - x) ** 3, x)) ** 0.5


def _gradient(figure: Figure) -> None:
    points = _grid(-2, 2.25, 18)
    left = plots.surface(points, bowl(points), ax=figure.add_subplot(1, 2, 1, projection="3d"))
    gradient = numerical_grad(lambda x: jnp.sum(bowl(x)))(points)
    right = plots.gradient_field(points, gradient, ax=figure.add_subplot(1, 2, 2))
    left.set(title="$f(x_0, x_1) = x_0^2 + x_1^2$", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    right.set(title="The negative gradient of f", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))


def _descent(figure: Figure) -> None:
    """The chapter's path, and its loss at several learning rates."""
    left, right = figure.subplots(1, 2)
    start, points = jnp.array([-3.0, 4.0]), _grid(-5, 5, 101)
    paths = {f"lr = {lr}": descent_path(bowl, start, lr, 40) for lr in (0.01, 0.1, 0.95, 1.02)}
    figure.suptitle("$f(x_0, x_1) = x_0^2 + x_1^2$: 40 steps from (-3, 4)")
    plots.descent_paths(
        points, bowl(points), {"lr = 0.1, from square to star": paths["lr = 0.1"]}, ax=left
    )
    left.set_aspect("equal")
    # Else the colour bar's label would touch the next axis's.
    figure.set_layout_engine("constrained", wspace=0.1)
    plots.path_losses(paths, ax=right)


def _learning_rates(figure: Figure) -> None:
    def valley(x):
        return bowl(x * jnp.array([0.35, 1.0]))

    figure.suptitle("20 steps on $f(x_0, x_1) = (0.35x_0)^2 + x_1^2$, from square to star")
    start, points = jnp.array([-8.0, 1.3]), _grid(-10, 10, 101) * jnp.array([1, 0.5])
    rates = {
        0.01: "too small",
        0.6: "right",
        0.95: "large, overshoots",
        1.03: "too large, diverges",
    }
    for ax, (lr, verdict) in zip(figure.subplots(2, 2).flat, rates.items(), strict=True):
        path = {f"lr = {lr}: {verdict}": descent_path(valley, start, lr, 20)}
        plots.descent_paths(points, valley(points), path, levels=6, ax=ax)


def _zero_gradients(figure: Figure) -> None:
    figure.suptitle(
        "300 steps on $f(x_0, x_1)$, from square to star: where they end, and the gradient's "
        "length there"
    )
    lowest = "the minimum"
    cases = (
        ("$x_0^2 + x_1^2$", bowl, 3, 0.1, {(-2.5, 1.5): lowest, (2.0, 2.5): lowest}),
        (
            "$(x_0^2 - 1)^2 + 0.3x_0 + x_1^2$",
            two_valleys,
            2,
            0.05,
            {(-0.3, 1.5): lowest, (0.5, 1.5): "a local minimum"},
        ),
        (
            "$x_0^2 - x_1^2 + x_1^4 / 4$",
            saddle,
            2,
            0.1,
            {(1.8, 0.0): "a saddle point", (1.8, 0.01): "a minimum"},
        ),
        (
            "$1 - e^{-(x_0^2 + x_1^2) / 2}$, a plateau",
            plateau,
            5,
            0.3,
            {(1.5, 1.5): lowest, (-3.5, 3.0): "it hardly moves"},
        ),
    )
    for ax, (name, f, reach, lr, starts) in zip(figure.subplots(2, 2).flat, cases, strict=True):
        paths = {}
        for start, end in starts.items():
            path = descent_path(f, jnp.array(start), lr, 300)
            slope = float(jnp.linalg.norm(jax.jit(jax.grad(f))(path.points[-1])))
            paths[f"{start}: {end}, {slope:.1g}"] = path
        points = _grid(-reach, reach, 101)
        plots.descent_paths(points, f(points), paths, levels=12, ax=ax).set_title(f"f = {name}")


def _training(figure: Figure) -> None:
    figure.suptitle("Learning from 1,500 digits")
    plots.training(_trained().history, axes=figure.subplots(1, 2))


def _overfitting(figure: Figure) -> None:
    digits = load_digits()
    few = digits.x_train[:100], digits.t_train[:100]
    figure.suptitle("Learning 100 digits by heart: overfitting")
    plots.training(_fit(few, epochs=400, batch_size=20).history, axes=figure.subplots(1, 2))


def _gradients(figure: Figure) -> None:
    digits, params = load_digits(), _start(weight_scale=0.1)
    batch = digits.x_train[:20], digits.t_train[:20]
    numerical, automatic = (
        numerical_grad(loss)(params, *batch),
        jax.jit(jax.grad(loss))(params, *batch),
    )
    figure.suptitle(
        "Gradient of the loss, in nats per unit of weight; rows are a layer's inputs, columns its "
        "units"
    )
    plots.gradients(
        numerical, automatic, axes=figure.subplots(4, 3, height_ratios=(4, 4, 1, 1)).flat
    )


def _mistakes(figure: Figure) -> None:
    digits = load_digits()
    y = jax.jit(lambda params, x: jax.nn.softmax(predict(params, x)))(
        _trained().params, digits.x_test
    )
    figure.suptitle(
        f"Test digits that the network reads wrongly; accuracy {accuracy(y, digits.t_test):.1%}"
    )
    plots.mistakes(digits.x_test, digits.t_test, y, axes=figure.subplots(2, 5).flat)


def _evidence(figure: Figure) -> None:
    """The gradient of a network that is right, and the same with 1 % more in one entry of its first
    layer.
    """
    digits, params = load_digits(), _start(weight_scale=0.1)
    x, t = digits.x_train[:20], digits.t_train[:20]

    def wrong(params):
        gradient = jax.grad(loss)(params, x, t)
        return gradient | {"W1": gradient["W1"].at[20, 3].multiply(1.01)}

    figure.suptitle(
        "A network's gradient, right (left), and with one entry of 1,280 off by 1 % (right)"
    )
    for ax, gradient in zip(figure.subplots(1, 2, sharey=True), (None, wrong), strict=True):
        report = check_gradient(lambda params: loss(params, x, t), params, gradient=gradient)
        report.plot("[0]['W1']", ax=ax).set_title(f"leaf {ax.get_title()}")
        ax.label_outer()


def _grid(low: int | float, high: int | float, count: int) -> jax.Array:
    along = jnp.linspace(low, high, count)
    return jnp.stack(jnp.meshgrid(along, along), axis=-1)


def _start(weight_scale: float = 0.01) -> dict[str, jax.Array]:
    return init_network(jax.random.key(0), (64, 20, 10), weight_scale)


def _fit(data: tuple[jax.Array, jax.Array], epochs: int, batch_size: int) -> Fit:
    digits = load_digits()

    def metrics(params, x, t):
        return {"accuracy": accuracy(predict(params, x), t)}

    return fit(
        loss,
        _start(),
        data,
        optax.sgd(0.5),
        key=jax.random.key(1),
        epochs=epochs,
        batch_size=batch_size,
        test=(digits.x_test, digits.t_test),
        metrics=metrics,
    )


@functools.cache
def _trained() -> Fit:
    digits = load_digits()
    return _fit((digits.x_train, digits.t_train), epochs=60, batch_size=100)


# The pictures in the chapter's order, with their sizes in inches.
_PICTURES = {
    _losses: (9, 3.6),
    _loss_and_accuracy: (6, 5),
    _activations: (9, 3.4),
    _derivative: (12, 3.8),
    _step_errors: (6.5, 4.5),
    _gradient: (10, 4.4),
    _descent: (10, 4.4),
    _learning_rates: (9, 6),
    _zero_gradients: (9, 8),
    _training: (9, 3.6),
    _overfitting: (9, 3.6),
    _gradients: (9, 7),
    _mistakes: (8, 4.4),
    _evidence: (11, 4.5),
}
