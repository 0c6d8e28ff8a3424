"""The chapter's figures: this module computes their data with the library's own functions, and
`plots` draws them.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from jaxnn import plots
from jaxnn._chapter import INPUT, TARGET, WEIGHTS, braking
from jaxnn._files import made_directory
from jaxnn._jax import enable_x64
from jaxnn._validate import require_choice
from jaxnn.checking.check import check_gradient
from jaxnn.data import load_digits
from jaxnn.descent import descent_path
from jaxnn.losses import accuracy, cross_entropy_error, mean_squared_error
from jaxnn.network import init_network, loss, predict
from jaxnn.numerical.differences import numerical_diff, numerical_grad
from jaxnn.surfaces import bowl, parabola, plateau, saddle, two_valleys
from jaxnn.training.fit import fit
from jaxnn.training.history import Fit
from jaxnn.training.options import Measuring

# For light and dark pages; the dark colours are those of a GitHub page.
STYLES: dict[str, dict[Any, Any]] = {
    "light": {"axes.spines.top": False, "axes.spines.right": False},
}
_INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_PAPER = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
STYLES["dark"] = (
    STYLES["light"] | dict.fromkeys(_INK, plots.INK[1]) | dict.fromkeys(_PAPER, plots.PAPER[1])
)
# Twice the pixel density of a page that shows a figure at its own size.
DENSITY = 160


def draw(
    directory: str | Path,
    names: Sequence[str] | None = None,
    *,
    style: Literal["light", "dark"] = "light",
    on_picture: Callable[[Path], Any] | None = None,
) -> list[Path]:
    """Draw figures of the chapter, in its order, each as PNG and SVG; also `film`, an animation of
    descent as a GIF, and `slider`, an HTML page with a slider for the learning rate.

    Args:
      directory: where the files go; it is created if it does not exist.
      names: the figures to draw, from `figures.NAMES`; all by default.
      style: for a light or a dark page. Files for a dark page end in `_dark`, except the slider
        page, which serves both.
      on_picture: called with the path of each file before it is drawn; for a PNG and its SVG,
        once, with the path of the PNG.

    Returns:
      The paths.

    Raises:
      ValueError: there is no figure with such a name.

    Example:
      >>> [path.name for path in draw("figures", ["losses"])]  # doctest: +SKIP
      ['01_losses.png']
    """
    require_choice("style", style, tuple(STYLES))
    wanted = NAMES if names is None else tuple(names)
    for name in wanted:
        require_choice("names", name, NAMES)
    folder = made_directory("directory", directory)
    written, end = [], "_dark" if style == "dark" else ""
    with matplotlib.rc_context(STYLES[style]):
        for number, (picture, size) in enumerate(_PICTURES.items(), start=1):
            if picture.__name__[1:] not in wanted:
                continue
            written.append(folder / f"{number:02}{picture.__name__}{end}.png")
            if on_picture is not None:
                on_picture(written[-1])
            figure = Figure(size, layout="constrained")
            picture(figure)
            figure.savefig(written[-1], dpi=DENSITY)
            written[-1].with_suffix(".svg").write_text(plots.as_svg(figure), encoding="utf-8")
        for name, (make, file) in _MOVING.items():
            if name in wanted:
                written.append(folder / file.format(end))
                if on_picture is not None:
                    on_picture(written[-1])
                make(written[-1])
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
    panels[1].set_title("Higher probability, smaller loss")
    for x in (0.6, 0.1):  # the chapter's two answers
        panels[1].plot(x, -np.log(x), "o", color=panels[1].lines[0].get_color())
        panels[1].annotate(f" x = {x:g}: {-np.log(x):.2f}", (x, -np.log(x)), va="bottom")


def _loss_and_accuracy(figure: Figure) -> None:
    """Loss and accuracy on the line from the initial to the trained weights; few examples make the
    steps of the accuracy visible.
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
    panels[1].set_xlabel("fraction of the way from the initial weights to the trained ones")
    figure.suptitle("The loss says which way is down; the accuracy on 20 digits does not")


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
        )  # step and ReLU have no derivative at 0
    panels = plots.activations(
        x, {name: f(x) for name, f in functions.items()}, derivatives, axes=figure.subplots(1, 2)
    )
    panels[1].annotate(
        "step: slope 0, undefined at 0",
        (0, 0),
        (-3.8, 0.45),
        arrowprops={"arrowstyle": "->", "color": matplotlib.rcParams["text.color"]},
    )
    figure.suptitle("A step function has no slope to learn from; the sigmoid and ReLU have one")


def _derivative(figure: Figure) -> None:
    """The chapter's two tangents, and secants of e^x, which curves more, approaching a tangent."""
    chapter, *closing = figure.subplots(1, 3)
    x = jnp.linspace(0, 20, 201)
    tangents = {
        f"tangent at {at:g}": ((at, at), float(numerical_diff(parabola, at))) for at in (5.0, 10.0)
    }
    plots.slopes(x, parabola(x), tangents, ax=chapter)
    chapter.set_title("The slope at a point: $f(x) = 0.01x^2 + 0.1x$")
    x, at = jnp.linspace(-1, 4, 501), 1.5
    for scheme, back, ax in zip(("forward", "central"), (0, 1), closing, strict=True):
        lines = {"tangent": ((at, at), float(jax.grad(jnp.exp)(at)))}
        for h in (2.0, 1.0, 0.5):
            lines[f"h = {h:g}"] = (
                (at - back * h, at + h),
                float(numerical_diff(jnp.exp, at, h, scheme=scheme)),
            )
        plots.slopes(x, jnp.exp(x), lines, ax=ax)
        ax.set_title(f"$e^x$ at {at:g}: {scheme} differences")
        ends = {at - back * 2: "x - h" if back else "x", at + 2: "x + h"}
        for place, name in ends.items():
            ax.annotate(
                name,
                (place, ax.get_ylim()[0]),
                (-3 if name == "x - h" else 3, 2),  # clear of the dotted line and the curve
                textcoords="offset points",
                ha="right" if name == "x - h" else "left",
                va="bottom",
                fontsize="small",
                bbox={"fc": matplotlib.rcParams["axes.facecolor"], "ec": "none", "pad": 0.5},
            )


def _step_errors(figure: Figure) -> None:
    def error(slopes, x):
        """The error of the derivative of e^x, averaged over points near 1, so that chance at one
        point does not show.
        """
        exact = np.exp(np.asarray(x, np.float64))
        return np.sqrt(np.mean((np.asarray(slopes, np.float64) / exact - 1) ** 2, -1))

    curves, defaults = {}, {}
    for dtype, finest in (("float32", -21), ("float64", -50)):
        with enable_x64(dtype == "float64"):
            x = jnp.linspace(0.9, 1.1, 41, dtype=dtype)
            for scheme in ("forward", "central"):
                own = functools.partial(numerical_diff, scheme=scheme, evaluation="own")
                diff = jax.jit(own, static_argnums=0)
                h = 2.0 ** jnp.arange(finest, 1, dtype=dtype)  # powers of two, like the default
                each = jax.vmap(lambda h, diff=diff, x=x: diff(jnp.exp, x, h))(h)
                name = f"{scheme}, in {dtype}"
                curves[name] = (h, error(each, x))
                step = _default_step(diff, x[20], scheme)
                defaults[name] = (step, float(error(diff(jnp.exp, x), x)))
    ax = plots.step_errors(curves, defaults, ax=figure.subplots())
    ax.set_title("Small steps drown in rounding error; large ones miss the curve")


def _default_step(diff: Callable, x: jax.Array, scheme: str) -> float:
    """The default step, inferred from powers: (h^2 - 0) / h is h, (h^3 - (-h)^3) / 2h is h^2."""
    if scheme == "forward":
        return float(diff(lambda z: (z - x) ** 2, x))
    return float(diff(lambda z: (z - x) ** 3, x)) ** 0.5


def _gradient(figure: Figure) -> None:
    points = _grid(-2, 2, 17)
    left = plots.surface(points, bowl(points), ax=figure.add_subplot(1, 2, 1, projection="3d"))
    gradient = numerical_grad(lambda x: jnp.sum(bowl(x)))(points)
    right = plots.gradient_field(points, gradient, ax=figure.add_subplot(1, 2, 2))
    left.set(title="$f(x_0, x_1) = x_0^2 + x_1^2$", xlim=(-2, 2), ylim=(-2, 2))
    left.set(xticks=(-2, 0, 2), yticks=(-2, 0, 2), zticks=(0, 4, 8))
    right.set(
        title="It points in the direction of steepest descent", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3)
    )
    figure.suptitle("The negative gradient: longer where f is steeper, 0 at the minimum")


def _descent(figure: Figure) -> None:
    """The chapter's path, and its loss at several learning rates."""
    left, right = figure.subplots(1, 2)
    start, points = jnp.array([-3.0, 4.0]), _grid(-5, 5, 101)
    paths = {f"lr = {lr}": descent_path(bowl, start, lr, 40) for lr in (0.01, 0.1, 0.95, 1.02)}
    figure.suptitle(
        "The learning rate decides: 40 steps on $f(x_0, x_1) = x_0^2 + x_1^2$ from (-3, 4)"
    )
    plots.descent_paths(
        points, bowl(points), {"lr = 0.1, from square to star": paths["lr = 0.1"]}, ax=left
    )
    left.set_aspect("equal")
    # Without this space, the colour bar's label would touch the next axis.
    figure.set_layout_engine("constrained", wspace=0.1)
    plots.path_losses(paths, ax=right)


def _learning_rates(figure: Figure) -> None:
    figure.suptitle(
        "Too small, right, too large: 20 steps on $(0.35x_0)^2 + x_1^2$, from square to star"
    )
    start, points = jnp.array([-8.0, 1.3]), _grid(-10, 10, 101) * jnp.array([1, 0.5])
    rates = {
        0.01: "too small",
        0.6: "right",
        0.95: "large, overshoots",
        1.03: "too large, diverges",
    }
    for ax, (lr, verdict) in zip(figure.subplots(2, 2).flat, rates.items(), strict=True):
        path = {f"lr = {lr}: {verdict}": descent_path(_valley, start, lr, 20)}
        plots.descent_paths(points, _valley(points), path, levels=6, colorbar=False, ax=ax)
        ax.label_outer()


def _zero_gradients(figure: Figure) -> None:
    figure.suptitle(
        "A gradient of 0 does not always mean a minimum: 300 steps, from square to star"
    )
    lowest = "the minimum"
    cases = (
        ("$x_0^2 + x_1^2$", bowl, 3, 0.1, {(-2.5, 1.5): lowest, (2.0, 2.5): lowest + " as well"}),
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
            {
                (1.8, 0.0): "a saddle point, from $x_1 = 0$",
                (1.8, 0.01): "a minimum, from $x_1 = 0.01$",
            },
        ),
        (
            "$1 - e^{-(x_0^2 + x_1^2) / 2}$, a plateau",
            plateau,
            5,
            0.3,
            {(1.5, 1.5): lowest, (-3.5, 3.0): "almost nowhere"},
        ),
    )
    for ax, (name, f, reach, lr, starts) in zip(figure.subplots(2, 2).flat, cases, strict=True):
        paths = {}
        for start, end in starts.items():
            path = descent_path(f, jnp.array(start), lr, 300)
            slope = float(jnp.linalg.norm(jax.jit(jax.grad(f))(path.points[-1])))
            paths[f"to {end}; slope {slope:.0e}" if slope else f"to {end}; slope 0"] = path
        points = _grid(-reach, reach, 101)
        plots.descent_paths(points, f(points), paths, levels=12, colorbar=False, ax=ax)
        ax.legend(fontsize="small", framealpha=1, loc="lower center")
        ax.set_title(f"f = {name}")


def _training(figure: Figure) -> None:
    history = _trained().history
    ended = history.metrics["test_accuracy"][-1]
    figure.suptitle(f"Trained on 1,500 digits, the network reads {ended:.0%} of unseen ones")
    plots.training(history, axes=figure.subplots(1, 2))


def _overfitting(figure: Figure) -> None:
    digits = load_digits()
    few = digits.x_train[:100], digits.t_train[:100]
    figure.suptitle("100 digits are memorised: the test loss rises while the training loss falls")
    plots.training(_fit(few, epochs=400, batch_size=20).history, axes=figure.subplots(1, 2))


def _gradients(figure: Figure) -> None:
    digits, params = load_digits(), _start(weight_scale=0.1)
    batch = digits.x_train[:20], digits.t_train[:20]
    numerical = numerical_grad(loss)(params, *batch)
    automatic = jax.jit(jax.grad(loss))(params, *batch)
    figure.suptitle(
        "Two ways, one gradient: nats per unit of weight; rows are a layer's inputs, columns its "
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
    wrong = int(jnp.sum(jnp.argmax(y, -1) != digits.t_test))
    figure.suptitle(
        f"{min(10, wrong)} of the {wrong} digits that the network misreads, out of {len(y)}"
    )
    plots.mistakes(digits.x_test, digits.t_test, y, axes=figure.subplots(2, 5).flat)


def _evidence(figure: Figure) -> None:
    """A correct gradient, and the same one with one entry of its first layer 1% too large."""
    digits, params = load_digits(), _start(weight_scale=0.1)
    x, t = digits.x_train[:20], digits.t_train[:20]

    def wrong(params):
        gradient = jax.grad(loss)(params, x, t)
        return gradient | {"W1": gradient["W1"].at[20, 3].multiply(1.01)}

    titles = ("A correct gradient: differences fall with the step", "One wrong entry: they do not")
    floor = 0.0
    for ax, gradient, title in zip(
        figure.subplots(1, 2, sharey=True), (None, wrong), titles, strict=True
    ):
        report = check_gradient(lambda params: loss(params, x, t), params, gradient=gradient)
        (leaf,) = [leaf for leaf in report.leaves if leaf.path == "[0]['W1']"]
        report.plot(leaf.path, ax=ax).set_title(title)
        ax.label_outer()
        floor = np.log10(abs(leaf.autodiff - leaf.numerical) / leaf.bound)
    figure.suptitle(
        f"One entry of 1,280, off by 1%, stands {floor:.1f} orders of magnitude above the bound"
    )


def _speed(figure: Figure) -> None:
    """The chapter's car: average speed and speed at one moment."""
    t, axes = jnp.linspace(0, 3, 61), figure.subplots()
    lines = {"on average, in 3 hours": ((0.0, 3.0), float(braking(3.0) - braking(0.0)) / 3)}
    for at in (0.0, 3.0):
        lines[f"at that moment, after {at:g} h"] = ((at, at), float(numerical_diff(braking, at)))
    ax = plots.slopes(t, braking(t), lines, ax=axes)
    ax.set(xlabel="hours", ylabel="km", title="300 km in 3 hours: 100 km/h only on average")
    ax.lines[0].set_label("distance")
    ax.legend(fontsize="small")


def _flat_places(figure: Figure) -> None:
    """Points at which the slope of a function of one variable is 0."""

    def f(x):
        local = jnp.exp(-4 * (x + 1) ** 2)
        lowest, rise = 1.8 * jnp.exp(-3 * (x - 1.5) ** 2), 0.8 * jax.nn.sigmoid(10 * (x - 2.6))
        return 2 - local - lowest + rise + 0.5 * jnp.maximum(-x - 2, 0) ** 2

    x = jnp.linspace(-4, 5, 901)
    lines = {}
    places = {"a local minimum": -1.0, "a local maximum": 0.1, "the minimum": 1.5, "a plateau": 4.0}
    for name, at in places.items():
        near = jnp.linspace(at - 0.4, at + 0.4, 40_001)
        slopes = jax.vmap(lambda x: numerical_diff(f, x))(near)
        best = float(near[jnp.argmin(abs(slopes))])
        lines[name] = ((best, best), abs(round(float(numerical_diff(f, best)), 3)))  # no "-0.00"
    ax = plots.slopes(x, f(x), lines, ax=figure.subplots())
    ax.set_title("Four places where the slope is 0; only one of them is the minimum")


def _weight_gradient(figure: Figure) -> None:
    """The chapter's 2x3 network: how the loss depends on each weight."""
    weights, x, t = jnp.array(WEIGHTS), jnp.array(INPUT), jnp.array(TARGET)
    gradient = numerical_grad(loss)({"W1": weights}, x, t)["W1"]
    left, right = figure.subplots(1, 2)
    plots.matrix(weights, title="The weights W", ax=left)
    plots.matrix(gradient, title="The gradient dL/dW, numerically", ax=right)
    figure.suptitle(
        f"Change w11 by h, and the loss changes by {gradient[0, 0]:.2f} h: one number per weight"
    )


def _film(path: Path) -> None:
    """Descent in a long valley, step by step."""
    figure = Figure((6, 3.4), layout="constrained")
    points = _grid(-10, 10, 101) * jnp.array([1, 0.5])
    descent = descent_path(_valley, jnp.array([-8.0, 1.3]), 0.9, 30)
    film = plots.animate_descent(
        points, _valley(points), descent, title="lr = 0.9", ax=figure.subplots()
    )
    film.save(path, PillowWriter(fps=6), dpi=100)


def _slider(path: Path) -> None:
    """The same valley, with a slider for the learning rate."""
    points, rates = _grid(-10, 10, 61) * jnp.array([1, 0.5]), np.geomspace(0.01, 1.1, 60)
    paths = {float(lr): descent_path(_valley, jnp.array([-8.0, 1.3]), lr, 30) for lr in rates}
    title = "30 steps in a valley: what the learning rate does"
    path.write_text(plots.learning_rate_page(points, _valley(points), paths, title=title))


def _valley(x: jax.Array) -> jax.Array:
    return bowl(x * jnp.array([0.35, 1.0]))


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
        measuring=Measuring(test=(digits.x_test, digits.t_test), metrics=metrics),
    )


@functools.cache
def _trained() -> Fit:
    digits = load_digits()
    return _fit((digits.x_train, digits.t_train), epochs=60, batch_size=100)


# The figures in the chapter's order, with their sizes in inches.
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
    _speed: (6.5, 4.2),
    _flat_places: (7, 4),
    _weight_gradient: (9, 3),
}
# Files other than figures: an animation and a page.
_MOVING = {"film": (_film, "descent{}.gif"), "slider": (_slider, "learning_rate.html")}
# Names that `draw` accepts.
NAMES = (*(picture.__name__[1:] for picture in _PICTURES), *_MOVING)
