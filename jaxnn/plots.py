"""Pictures: results in, Matplotlib Axes out. Nothing is computed here that a function of the
library could give.

Each function draws into the Axes that it is handed (`ax` for one, `axes` for several), or into
those of a new figure, and returns them; arrays that do not fit each other are a ValueError that
names them. Curves differ in lightness, dash and marker, and maps of a quantity run evenly in
lightness, so that the pictures can be read in grey and by the colour-blind.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PyTree
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from jaxnn._validate import as_array, describe, require_classes, require_same_form
from jaxnn.checking.findings import LeafReport
from jaxnn.descent import DescentPath
from jaxnn.training.history import History

Panels = Iterable[Axes] | None
Curve = Float[ArrayLike, " points"]
Grid = Float[ArrayLike, "rows columns 2"]
Heights = Float[ArrayLike, "rows columns"]

# From dark to light, each with a dash and a marker of its own.
_STYLES = (
    ("#000000", "-", "o"),
    ("#2b3f8f", "--", "s"),
    ("#c4472b", "-.", "^"),
    ("#35a887", (0, (5, 1, 1, 1, 1, 1)), "D"),
    ("#e6a92e", ":", "v"),
)
_MAP = "cividis"
_GROUND = LinearSegmentedColormap.from_list(
    "ground", ["1.0", "0.6"]
)  # light enough to draw paths on
_SMALLEST = 1e-17  # what is drawn of a difference of zero on a logarithmic axis


def losses(
    probability: Curve, cross_entropy: Curve, squared_error: Curve, *, axes: Panels = None
) -> np.ndarray:
    """Two losses against the probability that an answer gives to the true class and, before that,
    cross-entropy over -log x.

    The first panel goes down to the smallest probability: where the cross-entropy leaves the
    logarithm, its delta shows.

    Args:
      probability: given to the true class, ascending, in (0, 1].
      cross_entropy: of such an answer, in nats.
      squared_error: half the sum of squares of the same answer.
      axes: two, to draw into.

    Example:
      >>> p = jnp.linspace(0.01, 1, 100)
      >>> losses(p, -jnp.log(p), (1 - p) ** 2)[1].get_ylabel()
      'loss of one example'
    """
    _require_curves(
        {"probability": probability, "cross_entropy": cross_entropy, "squared_error": squared_error}
    )
    panels, p = _panels(axes, 1, 2), np.asarray(probability)
    if not np.all((p > 0) & (p <= 1)):
        raise ValueError(
            f"`probability` must be above 0 and at most 1. Got {p[~((p > 0) & (p <= 1))][0]:g}."
        )
    panels[0].semilogx(p, -np.log(p), color="0.75", lw=4, label="-log x")
    panels[0].semilogx(p, cross_entropy, **_line(0), label="cross-entropy")
    panels[0].set(ylabel="loss (nats)", title="Cross-entropy is -log x")
    panels[1].plot(p, cross_entropy, **_line(0), label="cross-entropy (nats)")
    panels[1].plot(p, squared_error, **_line(1), label="squared error (no unit)")
    panels[1].set(ylabel="loss of one example", ylim=(-0.2, 5), title="Two losses of one answer")
    for panel in panels:
        panel.set_xlabel("x, the probability given to the true class")
        panel.legend()
    return panels


def loss_and_accuracy(
    distance: Curve, loss: Curve, accuracy: Curve, *, axes: Panels = None
) -> np.ndarray:
    """Loss and accuracy along a line in weight space: one has a slope to follow, the other is a
    staircase that has none.

    Args:
      distance: position on the line, ascending.
      loss: there, in nats.
      accuracy: there, a fraction.
      axes: two, to draw into.

    Example:
      >>> s = jnp.linspace(0, 1, 50)
      >>> loss_and_accuracy(s, (1 - s) ** 2, jnp.round(5 * s) / 5)[1].get_ylabel()
      'accuracy'
    """
    _require_curves({"distance": distance, "loss": loss, "accuracy": accuracy})
    panels = _panels(axes, 2, 1, sharex=True)
    panels[0].plot(distance, loss, **_line(0))
    panels[0].set(ylabel="loss (nats)", title="The loss has a slope to follow")
    panels[1].step(distance, accuracy, **_line(0), where="mid")
    panels[1].set(
        ylabel="accuracy", title="The accuracy has none: its derivative is 0 between the jumps"
    )
    panels[1].set_xlabel("position on a line in weight space")
    return panels


def activations(
    x: Curve, values: Mapping[str, Curve], derivatives: Mapping[str, Curve], *, axes: Panels = None
) -> np.ndarray:
    """Functions of one variable and, beside them, their derivatives.

    Args:
      x: where, ascending.
      values: of each function, by its name.
      derivatives: of the same functions.
      axes: two, to draw into.

    Example:
      >>> x = jnp.linspace(-3, 3, 61)
      >>> activations(x, {"tanh": jnp.tanh(x)}, {"tanh": 1 - jnp.tanh(x) ** 2})[1].get_title()
      'Derivative'
    """
    _require_axes("x", x, "points")
    _require_names("values", values)
    _require_names("derivatives", derivatives)
    require_same_form("derivatives", dict(derivatives), "values", dict(values))
    panels = _panels(axes, 1, 2)
    for panel, curves, title in zip(
        panels, (values, derivatives), ("Value", "Derivative"), strict=True
    ):
        for i, (name, y) in enumerate(curves.items()):
            require_same_form(f"values[{name!r}]", y, "x", x)
            panel.plot(x, y, **_line(i), lw=2, label=name)
        panel.set(xlabel="x", ylabel=("y", "dy/dx")[panel is panels[1]], title=title)
        panel.legend()
    return panels


def slopes(
    x: Curve,
    y: Curve,
    lines: Mapping[str, tuple[tuple[float, float], float]],
    *,
    ax: Axes | None = None,
) -> Axes:
    """A curve with straight lines laid on it: secants, each through two of its points, or tangents,
    where the two are one.

    Args:
      x: of the curve, ascending.
      y: of the curve.
      lines: by their names, the two places on the x axis where a line meets the curve, and its
        slope.
      ax: to draw into; it keeps to the curve, though the lines go on.

    Example:
      >>> x = jnp.linspace(0, 20, 50)
      >>> lines = {"tangent": ((5.0, 5.0), 0.2), "h = 5": ((5.0, 10.0), 0.25)}
      >>> ax = slopes(x, 0.01 * x**2 + 0.1 * x, lines)
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['f(x)', 'tangent: slope 0.200', 'h = 5: slope 0.250']
    """
    _require_curves({"x": x, "y": y})
    _require_names("lines", lines)
    ax = _one(ax)
    ax.plot(x, y, color="0.75", lw=4, label="f(x)")
    ax.set(
        xlabel="x",
        ylabel="f(x)",
        title="Slopes of lines on a curve",
        xlim=ax.get_xlim(),
        ylim=ax.get_ylim(),
    )
    for i, (name, line) in enumerate(lines.items()):
        require_same_form(f"lines[{name!r}]", line, "((x0, x1), slope)", ((0.0, 0.0), 0.0))
        places, slope = line
        heights = np.interp(places, np.asarray(x), np.asarray(y))
        ax.axline(
            (places[0], heights[0]), slope=slope, **_line(i), label=f"{name}: slope {slope:#.3g}"
        )
        ax.plot(
            places, heights, **_point(i), zorder=4 - i / len(lines)
        )  # the first line's lie on top
    ax.legend()
    return ax


def step_errors(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    defaults: Mapping[str, tuple[float, float]] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """The error of numerical derivatives against their step: round-off to the left, truncation to
    the right.

    Args:
      curves: steps and errors, by a name of how they were computed.
      defaults: by the same names, the step that is taken if none is given and its error; marked by
        a star.
      ax: to draw into.

    Example:
      >>> h = jnp.logspace(-8, 0, 9)
      >>> step_errors({"forward": (h, h / 2 + 1e-8 / h)}).get_xscale()
      'log'
    """
    defaults = {} if defaults is None else defaults
    _require_names("curves", curves)
    _require_names("defaults", defaults)
    ax = _one(ax)
    for i, (name, curve) in enumerate(curves.items()):
        if not isinstance(curve, tuple | list) or len(curve) != 2:
            raise TypeError(
                f"`curves[{name!r}]` must be a pair of steps and errors. Got {describe(curve)}."
            )
        _require_curves({f"curves[{name!r}][{part}]": curve[part] for part in (0, 1)})
        ax.loglog(*curve, **_line(i), label=name)
        if name in defaults:
            require_same_form(
                f"defaults[{name!r}]", tuple(defaults[name]), "(step, error)", (0.0, 0.0)
            )
            ax.plot(*defaults[name], **_point(i, "*"), ms=13, mec="white", zorder=3)
    if defaults:
        # Round-off grows with the values: where they are large beside the slope, as a loss's are,
        # the best step is longer.
        ax.plot(
            [],
            [],
            "*",
            color="gray",
            ms=10,
            label="default step, for values\nlarge beside the slope",
        )
    ax.set(xlabel="step h, in units of x", ylabel="error of the derivative, relative")
    ax.set_title("Round-off makes small steps wrong, truncation large ones")
    ax.legend()
    return ax


def surface(points: Grid, values: Heights, *, ax: Axes | None = None) -> Axes:
    """A function of two variables as a surface.

    Args:
      points: a grid of (x0, x1).
      values: of the function there.
      ax: to draw into; made with `projection="3d"`.

    Example:
      >>> points = jnp.stack(jnp.meshgrid(jnp.linspace(-2, 2, 9), jnp.linspace(-2, 2, 9)), axis=-1)
      >>> surface(points, jnp.sum(points**2, axis=-1)).get_zlabel()
      'f(x0, x1)'
    """
    x0, x1 = _require_grid(points)
    require_same_form("values", values, "points[..., 0]", x0)
    drawn: Any = _one(ax, projection="3d")
    if drawn.name != "3d":
        raise ValueError(f"`ax` must be made with projection='3d'. Got projection {drawn.name!r}.")
    drawn.plot_surface(
        x0,
        x1,
        np.asarray(values),
        cmap=_MAP,
        edgecolor="white",
        lw=0.3,
        rcount=len(x0),
        ccount=len(x0[0]),
    )
    drawn.set(xlabel="x0", ylabel="x1", zlabel="f(x0, x1)", title="The function")
    return drawn


def gradient_field(points: Grid, gradient: Grid, *, ax: Axes | None = None) -> Axes:
    """The negative gradient of a function of two variables: arrows downhill, as long as it is
    steep.

    Args:
      points: a grid of (x0, x1).
      gradient: of the function there.
      ax: to draw into.

    Example:
      >>> points = jnp.stack(jnp.meshgrid(jnp.linspace(-2, 2, 9), jnp.linspace(-2, 2, 9)), axis=-1)
      >>> gradient_field(points, 2 * points).get_title()
      'The negative gradient'
    """
    x0, x1 = _require_grid(points)
    require_same_form("gradient", gradient, "points", points)
    ax = _one(ax)
    d0, d1 = np.moveaxis(-np.asarray(gradient), -1, 0)
    lengths = np.hypot(d0, d1)
    # The longest arrow reaches over one and a half cells of the grid.
    scale = lengths.max() / (1.5 * np.ptp(x0) / max(1, x0.shape[1] - 1)) or 1
    arrows = ax.quiver(
        x0, x1, d0, d1, lengths, cmap=_MAP, angles="xy", scale_units="xy", scale=scale, width=0.005
    )
    arrows.set(edgecolor="0.3", linewidth=0.3)  # else the lightest would be lost on white
    ax.figure.colorbar(arrows, ax=ax, label="length of the gradient (units of f / units of x)")
    ax.set(xlabel="x0", ylabel="x1", title="The negative gradient", aspect="equal")
    return ax


def descent_paths(
    points: Grid,
    values: Heights,
    paths: Mapping[str, DescentPath],
    *,
    levels: int | Float[ArrayLike, " levels"] = 10,
    ax: Axes | None = None,
) -> Axes:
    """Paths of descents on a function of two variables, over its heights: from a square to a star.

    Args:
      points: a grid of (x0, x1).
      values: of the function there.
      paths: from `descent_path`, by the names that the legend gives them; one alone gives the
        title.
      levels: where the shades of the heights meet, or how many shades.
      ax: to draw into; it shows the grid, whatever leaves it.

    Example:
      >>> points = jnp.stack(jnp.meshgrid(jnp.linspace(-4, 4, 9), jnp.linspace(-4, 4, 9)), axis=-1)
      >>> path = jaxnn.descent_path(jaxnn.surfaces.bowl, jnp.array([-3.0, 4.0]), lr=0.1)
      >>> descent_paths(points, jaxnn.surfaces.bowl(points), {"lr = 0.1": path}).get_xlabel()
      'x0'
    """
    x0, x1 = _require_grid(points)
    require_same_form("values", values, "points[..., 0]", x0)
    _require_paths(paths)
    if not isinstance(levels, int):
        _require_axes("levels", levels, "levels")
    ax = _one(ax)
    heights = ax.contourf(x0, x1, np.asarray(values), levels, cmap=_GROUND)
    ax.figure.colorbar(heights, ax=ax, label="f(x0, x1)")
    for i, (name, path) in enumerate(paths.items()):
        along = np.asarray(path.points)
        if along.ndim != 2 or along.shape[1] != 2:
            raise ValueError(
                f"`paths[{name!r}].points` must have shape (steps, 2). Got shape {along.shape}."
            )
        ax.plot(*along.T, **_line(i), marker=".", label=name)
        size = 0.6 ** min(
            i, 2
        )  # ever smaller: paths that start or end in one place can be told apart
        ax.plot(*along[0], **_point(i, "s"), mfc="none", ms=11 * size, zorder=3)
        ax.plot(*along[-1], **_point(i, "*"), mfc="white", ms=16 * size, zorder=3)
    title = next(iter(paths)) if len(paths) == 1 else "Descents, from square to star"
    ax.set(
        xlabel="x0", ylabel="x1", xlim=(x0.min(), x0.max()), ylim=(x1.min(), x1.max()), title=title
    )
    if len(paths) > 1:
        ax.legend(fontsize="small", framealpha=1)
    return ax


def path_losses(paths: Mapping[str, DescentPath], *, ax: Axes | None = None) -> Axes:
    """The loss at each step of some descents; on a logarithmic axis, if all losses are positive.

    Args:
      paths: from `descent_path`, by the names that the legend gives them.
      ax: to draw into.

    Example:
      >>> path = jaxnn.descent_path(jaxnn.surfaces.bowl, jnp.array([-3.0, 4.0]), lr=0.1)
      >>> path_losses({"lr = 0.1": path}).get_xlabel()
      'step'
    """
    _require_paths(paths)
    ax = _one(ax)
    for i, (name, path) in enumerate(paths.items()):
        ax.plot(np.asarray(path.losses), **_line(i), label=name)
    positive = all(np.all(np.asarray(path.losses) > 0) for path in paths.values())
    ax.set(
        xlabel="step",
        ylabel="loss: the value of f",
        title="Loss by step",
        yscale="log" if positive else "linear",
    )
    if paths:
        ax.legend()
    return ax


def training(history: History, *, axes: Panels = None) -> np.ndarray:
    """A training run: losses by step and, beside them, accuracies by epoch.

    Drawn are the loss of each step's mini-batch, and those metrics whose names end in "loss" or
    "accuracy". Where `test_loss` is among them and rises again, its minimum is marked: what comes
    after it is overfitting.

    Args:
      history: from `fit`.
      axes: two, to draw into.

    Example:
      >>> data = jnp.eye(3), jnp.arange(3)
      >>> start = {"W1": jnp.zeros((3, 3))}
      >>> run = jaxnn.fit(jaxnn.loss, start, data, optax.sgd(0.1), key=jax.random.key(0), epochs=2)
      >>> training(run.history)[0].get_xlabel()
      'step'
    """
    if not isinstance(history, History):
        raise TypeError(f"`history` must be a History, from `fit`. Got {describe(history)}.")
    panels = _panels(axes, 1, 2)
    step_loss = np.asarray(history.step_loss)
    panels[0].plot(
        np.arange(1, len(step_loss) + 1), step_loss, color="0.75", lw=0.8, label="mini-batch"
    )
    metrics = {name: np.asarray(values) for name, values in history.metrics.items()}
    epochs = np.arange(1, 1 + max(map(len, metrics.values()), default=0))
    at_end = len(step_loss) / max(1, len(epochs)) * epochs  # the last step of each epoch
    for panel, kind, x in zip(panels, ("loss", "accuracy"), (at_end, epochs), strict=True):
        for i, (name, values) in enumerate((n, v) for n, v in metrics.items() if n.endswith(kind)):
            panel.plot(x, values, **_line(i), label=name.replace("_", " "))
        if (
            "test_loss" in metrics
            and (best := np.argmin(np.nan_to_num(metrics["test_loss"], nan=np.inf)))
            < len(epochs) - 1
        ):
            panel.axvline(
                x[best],
                color="0.4",
                lw=1,
                ls=(0, (1, 3)),
                label=f"lowest test loss: epoch {epochs[best]}",
            )
    panels[0].set(xlabel="step", ylabel="loss (nats)", title="Loss")
    panels[1].set(xlabel="epoch", ylabel="fraction that is right", title="Accuracy", ylim=(0, 1.03))
    for panel in panels:
        if panel.lines:
            panel.legend()
    return panels


def gradients(numerical: PyTree, automatic: PyTree, *, axes: Panels = None) -> np.ndarray:
    """A numerical and an automatic gradient as images, and their difference: a row for each array,
    one entry a pixel.

    Args:
      numerical: a pytree of arrays; all axes but the last are rows of the image.
      automatic: the same, from `jax.grad`.
      axes: three for each array, to draw into.

    Example:
      >>> gradient = {"W1": jnp.eye(3), "b1": jnp.ones(3)}
      >>> gradients(gradient, gradient)[2].get_title()
      'difference'
    """
    require_same_form("numerical", numerical, "automatic", automatic)
    rows = jax.tree_util.tree_flatten_with_path(numerical)[0]
    if not rows or not all(np.size(leaf) for _, leaf in rows):
        raise ValueError(
            f"`numerical` must hold arrays with at least one entry. Got {describe(numerical)}."
        )
    heights = [1 if np.ndim(leaf) < 2 else 4 for _, leaf in rows]
    panels = _panels(axes, len(rows), 3, height_ratios=heights)
    for triple, (path, a), b in zip(
        panels.reshape(-1, 3), rows, jax.tree.leaves(automatic), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        triple[0].set_ylabel(f"{name}, {'x'.join(map(str, np.shape(a)))}")
        a, b = (
            np.reshape(np.asarray(leaf, float), (-1, (1, *np.shape(leaf))[-1])) for leaf in (a, b)
        )
        for panel, image, scale in zip(triple, (a, b, a - b), (b, b, a - b), strict=True):
            limit = np.max(abs(scale), where=np.isfinite(scale), initial=0) or 1
            drawn = panel.imshow(
                image, cmap=_MAP, aspect="auto", vmin=-limit, vmax=limit, interpolation="nearest"
            )
            panel.set(xticks=[], yticks=[])
            if panel is not triple[0]:
                panel.figure.colorbar(drawn, ax=panel, ticks=[-limit, 0, limit], format="%#.2g")
    for panel, title in zip(panels, ("numerical", "automatic", "difference"), strict=False):
        panel.set_title(title)
    return panels


def mistakes(
    x: Float[ArrayLike, "examples pixels"],
    t: Int[ArrayLike, " examples"],
    y: Float[ArrayLike, "examples classes"],
    *,
    axes: Panels = None,
) -> np.ndarray:
    """The images whose largest output is not the true class, each with what it is and what it was
    taken for.

    Args:
      x: square images as rows.
      t: their classes.
      y: the probabilities that the network gives to each class.
      axes: one for each image, to draw into; those left over stay empty. By default as many as
        needed, up to 24.

    Example:
      >>> right = jnp.array([[0.9, 0.1], [0.2, 0.8]])
      >>> mistakes(jnp.ones((2, 64)), jnp.array([0, 0]), right)[0].get_title()
      '0, read as 1'
    """
    _require_axes("x", x, "examples", "pixels")
    _require_axes("y", y, "examples", "classes")
    require_same_form("t", t, "y[:, 0]", np.asarray(y)[:, 0])
    require_same_form("t", t, "x[:, 0]", np.asarray(x)[:, 0])
    x, t, y = np.asarray(x), np.asarray(t), np.asarray(y)
    side = round(x.shape[1] ** 0.5)
    if side**2 != x.shape[1]:
        raise ValueError(f"`x` must hold square images as rows. Got shape {x.shape}.")
    if not np.issubdtype(t.dtype, np.integer):
        raise TypeError(f"`t` must be class indices (integers). Got {describe(t)}.")
    require_classes("t", t, y.shape[1])
    said = y.argmax(axis=-1)
    wrong = np.flatnonzero(said != t)
    panels = _panels(axes, min(4, max(1, -(-len(wrong) // 6))), 6, exact=False)
    for panel, i in zip(panels, wrong, strict=False):
        panel.imshow(x[i].reshape(side, side), cmap="gray_r")
        panel.set_title(f"{t[i]}, read as {said[i]}", fontsize="medium")
        panel.set_xlabel(
            f"P({said[i]}) = {y[i, said[i]]:.0%}, P({t[i]}) = {y[i, t[i]]:.0%}", fontsize="small"
        )
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(wrong) :]:
        panel.set_axis_off()
    return panels


def gradient_evidence(leaf: LeafReport, ax: Axes | None = None) -> Axes:
    """What a gradient check saw of one leaf: numerical slopes against the step, and how far they
    are from the gradient's.

    Above, the slopes, with the gradient's as a line and the best one with its bound. Below, the
    differences: coarse steps are off by truncation, fine ones by the noise of the function's
    values. A right gradient is met by the steps in between, down to the bound (dashed); a wrong one
    leaves a floor that no step goes below.

    Args:
      leaf: from `GradientReport.leaves`.
      ax: to draw the differences into, alone; by default a new figure shows both.

    Returns:
      The Axes of the differences.

    Example:
      >>> report = jaxnn.check_gradient(lambda x: jnp.sum(x**3), jnp.arange(3.0))
      >>> gradient_evidence(report.leaves[0]).get_title()
      '[0]: agrees'
    """
    if not isinstance(leaf, LeafReport):
        raise TypeError(
            f"`leaf` must be a LeafReport, from `check_gradient(...).leaves`. Got {describe(leaf)}."
        )
    steps, slopes = np.array(leaf.steps), np.array(leaf.differences)
    panels = (
        [_one(ax)] if ax is not None else _panels(None, 2, 1, sharex=True, height_ratios=(1, 2))
    )
    for above in panels[:-1]:
        above.semilogx(steps, slopes, **_line(0), marker="o", ms=4, label="numerical slope")
        above.axhline(leaf.autodiff, **_line(2), label="the gradient's slope")
        bar = leaf.bound if np.isfinite(leaf.bound) else None
        above.errorbar(
            leaf.step, leaf.numerical, bar, **_point(1), capsize=4, label="best, with its bound"
        )
        above.set(ylabel="slope")
        above.legend(fontsize="small")
    below: Axes = panels[-1]
    size = max(abs(leaf.autodiff), abs(leaf.numerical), np.finfo(float).tiny)
    differences = np.maximum(abs(slopes - leaf.autodiff) / size, _SMALLEST)
    below.loglog(steps, differences, **_line(0), marker="o", ms=4, label="numerical slopes")
    if np.isfinite(leaf.bound):
        below.axhline(
            max(leaf.bound / size, _SMALLEST),
            **_line(1),
            label="bound on the error of the best slope",
        )
    if np.isfinite(leaf.noise) and leaf.noise > 0:
        below.loglog(
            steps, leaf.noise / steps / size, **_line(3), lw=2, label="noise of the values / step"
        )
    if np.isfinite(leaf.step):
        below.axvline(
            leaf.step, color="0.5", lw=1, label="step that the best slope is extrapolated from"
        )
    below.set(xlabel="step, in units of the entries' scale", title=f"{leaf.path}: {leaf.verdict}")
    below.set_ylabel("|numerical slope - gradient's slope|\n/ |the larger of the two|")
    below.legend(fontsize="small")
    return below


def _panels(axes: Panels, rows: int, columns: int, exact: bool = True, **layout: Any) -> np.ndarray:
    """The Axes given, if they are (exactly) as many as the picture has panels; or those of a new
    figure; in one row.
    """
    if axes is None:
        width = min(10, max(6, 4.6 * columns))
        size = width, min(9, rows * min(3.4, 1.2 * width / columns))
        axes = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **layout
        )[1].flat
    if not isinstance(axes, Iterable):
        raise TypeError(f"`axes` must hold Matplotlib Axes. Got {describe(axes)}.")
    panels = np.ravel(np.array([*axes], object))
    if exact and len(panels) != rows * columns:
        raise ValueError(f"`axes` must hold {rows * columns} Axes. Got {len(panels)}.")
    for panel in panels:
        if not isinstance(panel, Axes):
            raise TypeError(f"`axes` must hold Matplotlib Axes. Got {describe(panel)}.")
    return panels


def _require_axes(name: str, x: Any, *axes: str) -> None:
    """Refuse all but real arrays with these axes, none of them empty."""
    array = as_array(name, x, np.asarray)
    if array.ndim != len(axes) or not array.size or np.iscomplexobj(array):
        raise ValueError(
            f"`{name}` must be a real array of shape ({', '.join(axes)}). Got {describe(array)}."
        )


def _require_curves(curves: Mapping[str, Any]) -> None:
    """Refuse all but real arrays of points, as many in each as in the first."""
    first = next(iter(curves))
    _require_axes(first, curves[first], "points")
    for name, curve in curves.items():
        require_same_form(name, curve, first, curves[first])


def _require_grid(points: Any) -> np.ndarray:
    """Refuse all but a grid of (x0, x1); x0 and x1 by themselves."""
    _require_axes("points", points, "rows", "columns", "2")
    if min(np.shape(points)) < 2 or np.shape(points)[2] != 2:
        raise ValueError(
            f"`points` must have shape (rows, columns, 2), at least two of each. Got shape "
            f"{np.shape(points)}."
        )
    return np.moveaxis(np.asarray(points), -1, 0)


def _require_names(name: str, curves: Any) -> None:
    """Refuse all but dictionaries."""
    if not isinstance(curves, Mapping):
        raise TypeError(f"`{name}` must be a dictionary. Got {describe(curves)}.")


def _require_paths(paths: Any) -> None:
    """Refuse all but dictionaries of descents."""
    _require_names("paths", paths)
    for name, path in paths.items():
        if not isinstance(path, DescentPath):
            raise TypeError(
                f"`paths[{name!r}]` must be a DescentPath, from `descent_path`. Got "
                f"{describe(path)}."
            )


def _one(ax: Any, **options: Any) -> Axes:
    if ax is None:
        return plt.subplots(layout="constrained", subplot_kw=options)[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be Matplotlib Axes. Got {describe(ax)}.")
    return ax


def _line(i: int) -> dict[str, Any]:
    color, dash, _ = _STYLES[i % len(_STYLES)]
    return {"color": color, "ls": dash}


def _point(i: int, marker: str | None = None) -> dict[str, Any]:
    color, _, own = _STYLES[i % len(_STYLES)]
    return {"color": color, "ls": "", "marker": marker or own}
