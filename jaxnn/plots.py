"""Plots: results in, Matplotlib Axes out. This module computes nothing that another function of the
library could provide.

Each function draws into the Axes that it is passed (`ax` for one, `axes` for several), or into
those of a new figure, and returns them. Arrays of mismatched shapes raise a ValueError that names
them. Curves differ in lightness, dash and marker, and colour maps of a quantity are uniform in
lightness, so the plots can be read in grey and by colour-blind readers.
"""

import html
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PyTree
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxnn._validate import as_array, describe, require_classes, require_same_form
from jaxnn.checking.evidence import Verdict
from jaxnn.checking.findings import Entry, LeafReport
from jaxnn.descent import DescentPath
from jaxnn.training.history import Fit, History

Panels = Iterable[Axes] | None
Curve = Float[ArrayLike, " points"]
Grid = Float[ArrayLike, "rows columns 2"]
Heights = Float[ArrayLike, "rows columns"]

# Colours that colour-blind readers can tell apart, with a contrast of at least 3 to 1 to the
# background; each curve also has its own dash and marker.
_ON_LIGHT = ("#08306b", "#b03a06", "#87155f", "#0d8f66", "#b08400")
_ON_DARK = ("#6aa9f7", "#e8793a", "#f4e4f4", "#5cc8a0", "#e9cf62")
INK, PAPER, _SOFT = ("#000000", "#e6edf3"), ("#ffffff", "#0d1117"), ("#b3b3b3", "#737373")
_DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), ":")
_MARKERS = ("o", "s", "^", "D", "v")
_MAP = "cividis"
_SIGNED = "RdBu_r"  # for signed quantities, with 0 in the middle
_SMALLEST = 1e-17  # stands for a difference of zero on a logarithmic axis


def losses(
    probability: Curve, cross_entropy: Curve, squared_error: Curve, *, axes: Panels = None
) -> np.ndarray:
    """Two losses against the probability of the true class; the first panel draws the
    cross-entropy on top of -log x.

    The first panel extends to the smallest probability, where delta makes it deviate from
    the logarithm.

    Args:
      probability: of the true class, ascending, in (0, 1].
      cross_entropy: the loss at each probability, in nats.
      squared_error: the other loss, half the sum of squared differences.
      axes: two Axes to draw into.

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
    left = panels[0].semilogx(p, -np.log(p), color=_soft(), lw=4, label="-log x")
    left += panels[0].semilogx(p, cross_entropy, **_line(0), label="cross-entropy")
    panels[0].set(ylabel="loss (nats)", title="-log(x + 1e-7) is finite at 0")
    right = panels[1].plot(p, cross_entropy, **_line(0), label="cross-entropy\n(nats)")
    right += panels[1].plot(p, squared_error, **_line(1), label="squared error")
    panels[1].set(ylabel="loss of one example", ylim=(-0.2, 5), title="Two losses for one answer")
    for panel in panels:
        panel.set_xlabel("x, the probability given to the true class")
    _name_lines(panels[0], left)
    _name_lines(panels[1], right, 0.15)
    return panels


def loss_and_accuracy(
    distance: Curve, loss: Curve, accuracy: Curve, *, axes: Panels = None
) -> np.ndarray:
    """Loss and accuracy along a line in weight space: the loss has a slope to follow, the accuracy
    is a staircase without one.

    Args:
      distance: position on the line, ascending.
      loss: at each position, in nats.
      accuracy: at each position, a fraction.
      axes: two Axes to draw into.

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
      x: the points, ascending.
      values: of each function, by its name.
      derivatives: of the same functions.
      axes: two Axes to draw into.

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
        lines = []
        for i, (name, y) in enumerate(curves.items()):
            require_same_form(f"values[{name!r}]", y, "x", x)
            # Earlier curves are on top and thinner, so that curves beneath them stay visible.
            over = {"lw": 1.5 + 1.5 * i, "zorder": 3 - i / len(curves)}
            lines += panel.plot(x, y, **_line(i), **over, label=name)
        panel.set(xlabel="x", ylabel=("y", "dy/dx")[panel is panels[1]], title=title)
        _name_lines(panel, lines)
    return panels


def slopes(
    x: Curve,
    y: Curve,
    lines: Mapping[str, tuple[tuple[float, float], float]],
    *,
    ax: Axes | None = None,
) -> Axes:
    """A curve with straight lines on it: secants through two of its points, or tangents, whose two
    points coincide.

    Args:
      x: of the curve, ascending.
      y: of the curve.
      lines: by name, the two x values at which a line meets the curve, and the line's slope.
      ax: Axes to draw into; the limits are those of the curve, even if the lines extend further.

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
    ax.plot(x, y, color=_soft(), lw=4, label="f(x)")
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
            (places[0], heights[0]),
            slope=slope,
            **_line(i),
            label=f"{name}: slope {f'{slope:#.3g}'.rstrip('.')}",
        )
        # The first line's points are on top; each is drawn above its position on the x axis.
        ax.plot(places, heights, **_point(i), zorder=4 - i / len(lines))
        ax.vlines(places, ax.get_ylim()[0], heights, color=_color(i), lw=0.6, ls=":")
    ax.legend(fontsize="small")
    return ax


def step_errors(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    defaults: Mapping[str, tuple[float, float]] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """The error of numerical derivatives against their step: rounding error to the left,
    truncation to the right.

    Args:
      curves: pairs of steps and errors, by the name of the method.
      defaults: by the same names, the default step and its error, marked by a star.
      ax: Axes to draw into.

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
        ax.plot([], [], "*", color="gray", ms=10, label="default step")
    ax.set(xlabel="step h, in units of x", ylabel="relative error of the derivative")
    ax.set_title("Rounding error dominates at small steps, truncation error at large ones")
    ax.legend()
    return ax


def surface(points: Grid, values: Heights, *, ax: Axes | None = None) -> Axes:
    """A function of two variables as a surface.

    Args:
      points: a grid of (x0, x1).
      values: of the function at each point.
      ax: Axes to draw into, made with `projection="3d"`.

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
    """The negative gradient of a function of two variables, as arrows whose length is the slope.

    Args:
      points: a grid of (x0, x1).
      gradient: of the function at each point.
      ax: Axes to draw into.

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
    # The longest arrow spans one and a half cells of the grid.
    scale = float(lengths.max()) / (1.5 * np.ptp(x0) / max(1, x0.shape[1] - 1)) or 1
    arrows = ax.quiver(
        *(x0, x1, d0, d1, lengths),
        cmap=_MAP,
        angles="xy",
        scale_units="xy",
        scale=scale,
        width=0.005,
        minlength=0,
    )
    arrows.set(edgecolor="0.3", linewidth=0.3)  # keeps the lightest arrows visible on white
    ax.figure.colorbar(arrows, ax=ax, label="length of the gradient (units of f / units of x)")
    ax.set(xlabel="x0", ylabel="x1", title="The negative gradient", aspect="equal")
    return ax


def descent_paths(
    points: Grid,
    values: Heights,
    paths: Mapping[str, DescentPath],
    *,
    levels: int | Float[ArrayLike, " levels"] = 10,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Descent paths of a function of two variables, over its contours. A square marks
    the start of each, a star its end.

    Args:
      points: a grid of (x0, x1).
      values: of the function at each point.
      paths: from `descent_path`, by their names in the legend; the name of a single path is the
        title.
      levels: boundaries between the shades of the contours, or their number. A number gives even
        spacing, or logarithmic if even spacing would put over 40% of the grid in the lowest shade.
      colorbar: whether to draw a colour bar.
      ax: Axes to draw into; the limits are those of the grid, even if a path leaves it.

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
    z, norm = np.asarray(values), None
    # If even spacing gives most of the grid one shade, valleys are invisible.
    crowded = isinstance(levels, int) and np.mean(z < z.max() / levels) > 0.4
    if isinstance(levels, int) and crowded and z.min() >= 0 and z.max() > 0:
        low = max(z.max() * 1e-5, z[z > 0].min())
        z, norm = np.maximum(z, low), LogNorm(low, z.max())
        levels = np.geomspace(low, z.max(), levels + 1)
    heights = ax.contourf(x0, x1, z, levels, cmap=_ground(), norm=norm)
    if colorbar:
        ax.figure.colorbar(heights, ax=ax, label="f(x0, x1)")
    for i, (name, path) in enumerate(paths.items()):
        along = np.asarray(path.points)
        if along.ndim != 2 or along.shape[1] != 2:
            raise ValueError(
                f"`paths[{name!r}].points` must have shape (steps, 2). Got shape {along.shape}."
            )
        # Later paths are thinner and smaller, so that overlapping ones can be told apart.
        size = 0.6 ** min(i, 2)
        over: dict[str, Any] = {"lw": 3 * size, "zorder": 2 + i / 10}
        x, y = along.T
        ax.plot(x, y, **_line(i), marker=".", ms=7 * size, label=name, **over)
        ax.plot(*along[0], **_point(i, "s"), mfc="none", ms=11 * size, zorder=3)
        ax.plot(*along[-1], **_point(i, "*"), mfc="none", ms=12 * size, zorder=3)
    title = next(iter(paths)) if len(paths) == 1 else "Descents, from square to star"
    ax.set(
        xlabel="x0", ylabel="x1", xlim=(x0.min(), x0.max()), ylim=(x1.min(), x1.max()), title=title
    )
    if len(paths) > 1:
        ax.legend(fontsize="small", framealpha=1)
    return ax


def animate_descent(
    points: Grid,
    values: Heights,
    path: DescentPath,
    *,
    title: str = "",
    interval: int = 150,
    ax: Axes | None = None,
) -> FuncAnimation:
    """A descent on a function of two variables, step by step, over its contours.

    Args:
      points: a grid of (x0, x1).
      values: of the function at each point.
      path: from `descent_path`.
      title: text before the step and its value, such as "lr = 0.1".
      interval: milliseconds between steps.
      ax: Axes to draw into.

    Returns:
      A Matplotlib animation: `.save("descent.gif", "pillow")` writes it, `.to_jshtml()` returns a
      page with buttons. Keep a reference to it while it plays.

    Example:
      >>> points = jnp.stack(jnp.meshgrid(jnp.linspace(-4, 4, 9), jnp.linspace(-4, 4, 9)), axis=-1)
      >>> path = jaxnn.descent_path(jaxnn.surfaces.bowl, jnp.array([-3.0, 4.0]), lr=0.1)
      >>> film = animate_descent(points, jaxnn.surfaces.bowl(points), path)
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     film.save(f"{folder}/descent.gif", "pillow")
    """
    _require_paths({"path": path})
    ax = descent_paths(points, values, {"": path}, colorbar=False, ax=ax)
    line, start, star = ax.lines
    along, losses = np.asarray(path.points), np.asarray(path.losses)

    def show(step):
        line.set_data(*along[: step + 1].T)
        star.set_data(*along[step : step + 1].T)
        ax.set_title(
            f"{title}{', ' if title else ''}step {step}: f = {losses[step]:.3g}", loc="left"
        )
        return line, star

    figure: Any = ax.figure
    show(0)
    return FuncAnimation(figure, show, frames=len(along), interval=interval)


def learning_rate_page(
    points: Grid, values: Heights, paths: Mapping[float, DescentPath], *, title: str = "Descent"
) -> str:
    """A self-contained HTML page with a slider for the learning rate; the browser draws the path of
    each.

    Args:
      points: a grid of (x0, x1).
      values: of the function at each point.
      paths: from `descent_path`, by learning rate, ascending.
      title: of the page.

    Returns:
      HTML that needs no network access.

    Example:
      >>> points = jnp.stack(jnp.meshgrid(jnp.linspace(-4, 4, 9), jnp.linspace(-4, 4, 9)), axis=-1)
      >>> f, start = jaxnn.surfaces.bowl, jnp.array([-3.0, 4.0])
      >>> paths = {lr: jaxnn.descent_path(f, start, lr, 20) for lr in (0.1, 0.5)}
      >>> learning_rate_page(points, f(points), paths)[:15]
      '<!doctype html>'
    """
    x0, x1 = _require_grid(points)
    require_same_form("values", values, "points[..., 0]", x0)
    _require_paths(paths)
    size, room = (8.0, 6.2), (0.09, 0.1, 0.89, 0.88)
    ground = Figure(size)
    ax = ground.add_axes(room)
    ax.contour(x0, x1, np.asarray(values), 12, colors=_SOFT[0], linewidths=1)
    ax.set(xlabel="x0", ylabel="x1")
    # The position of the axes in the picture, in points from its upper left corner.
    width, height = (72 * length for length in size)
    left, low, wide, high = room
    box = [left * width, (1 - low - high) * height, wide * width, high * height]
    # Clip points to a distance that browsers can draw.
    far = 1e6
    data = {
        "range": [*map(float, (x0.min(), x0.max(), x1.min(), x1.max()))],
        "paths": [
            {
                "lr": float(lr),
                "points": np.clip(np.nan_to_num(np.asarray(p.points)), -far, far).tolist(),
                "loss": f"{float(p.losses[-1]):.3g}",
            }
            for lr, p in paths.items()
        ],
    }
    place = "<svg id='path' x='{:g}' y='{:g}' width='{:g}' height='{:g}'></svg></svg>".format(*box)
    parts = {
        "TITLE": html.escape(title),
        "PICTURE": place.join(svg_for_page(ground).rsplit("</svg>", 1)),
        "COLOR": f"light-dark({_ON_LIGHT[0]}, {_ON_DARK[0]})",
        "PAPER": f"light-dark({', '.join(PAPER)})",
        "DATA": json.dumps(data),
    }
    return re.sub("|".join(parts), lambda found: parts[found[0]], _PAGE)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46em; margin: 1em auto; padding: 0 1em;
  background: PAPER; }
h1 { font-size: 1.3em; } input { width: 100%; } body > svg { max-width: 100%; height: auto; }
output { font-weight: 600; font-variant-numeric: tabular-nums; }
#path { fill: COLOR; stroke: COLOR; stroke-width: 2; }
</style></head><body>
<h1>TITLE</h1>
<label>learning rate <output id="lr"></output>: the last value of f is <output id="loss"></output>
<input id="slider" type="range" min="0" step="1"></label>
PICTURE
<script>
const data = DATA;
const drawn = document.getElementById("path"), slider = document.getElementById("slider");
const [left, right, low, high] = data.range;
const across = x => (x - left) / (right - left) * drawn.width.baseVal.value;
const down = y => (high - y) / (high - low) * drawn.height.baseVal.value;
function draw() {
  const path = data.paths[slider.value];
  const points = path.points.map(([x, y]) => [across(x), down(y)]);
  drawn.innerHTML = `<polyline fill="none" points="${points.join(" ")}"/>` +
    points.map(([x, y], i) => `<circle cx="${x}" cy="${y}" r="${i ? 3 : 6}"/>`).join("");
  document.getElementById("lr").value = path.lr.toPrecision(3);
  document.getElementById("loss").value = path.loss;
}
slider.max = data.paths.length - 1;
slider.value = Math.floor(data.paths.length / 2);
slider.oninput = draw;
draw();
</script></body></html>
"""


def matrix(
    values: Float[ArrayLike, "rows columns"],
    *,
    name: str = "w",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A small matrix, such as the gradient with respect to a layer's weights, with its numbers in
    the cells.

    Args:
      values: of the matrix.
      name: of its entries: `w` gives w11, w12, ...
      title: of the plot.
      ax: Axes to draw into.

    Example:
      >>> matrix(jnp.array([[0.2, -0.4]]), title="dL/dW").get_title()
      'dL/dW'
    """
    _require_axes("values", values, "rows", "columns")
    ax, z = _one(ax), np.asarray(values, float)
    limit = float(np.max(abs(z), where=np.isfinite(z), initial=0)) or 1.0
    ax.imshow(z, cmap=_SIGNED, vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(z):
        ink = "white" if abs(value) > 0.6 * limit else "black"
        text = f"{name}{i + 1}{j + 1}\n{value:+.4f}"
        ax.text(j, i, text, ha="center", va="center", color=ink)
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
    return ax


def path_losses(paths: Mapping[str, DescentPath], *, ax: Axes | None = None) -> Axes:
    """The loss at each step of descents; the axis is logarithmic if no loss is negative.

    Args:
      paths: from `descent_path`, by their names in the legend.
      ax: Axes to draw into.

    Example:
      >>> path = jaxnn.descent_path(jaxnn.surfaces.bowl, jnp.array([-3.0, 4.0]), lr=0.1)
      >>> path_losses({"lr = 0.1": path}).get_xlabel()
      'step'
    """
    _require_paths(paths)
    ax = _one(ax)
    lines = []
    for i, (name, path) in enumerate(paths.items()):
        lines += ax.plot(np.asarray(path.losses), **_line(i), label=name)
    values = [np.asarray(path.losses) for path in paths.values()]
    positive = all(np.all(v >= 0) for v in values) and any(np.any(v > 0) for v in values)
    ax.set(xlabel="step", ylabel="loss: the value of f", title="Loss by step")
    ax.set_yscale("log" if positive else "linear")  # a logarithmic axis omits losses of 0
    _name_lines(ax, lines)
    return ax


def training(history: History, *, axes: Panels = None) -> np.ndarray:
    """A training run: losses and accuracies by epoch, side by side.

    The loss panel includes the loss of each step's mini-batch. Metrics are drawn if their names end
    in "loss" or "accuracy". If `test_loss` is among them and rises again, its minimum is marked:
    later epochs overfit.

    Args:
      history: from `fit`.
      axes: two Axes to draw into.

    Example:
      >>> data = jnp.eye(3), jnp.arange(3)
      >>> start = {"W1": jnp.zeros((3, 3))}
      >>> run = jaxnn.fit(jaxnn.loss, start, data, optax.sgd(0.1), key=jax.random.key(0), epochs=2)
      >>> training(run.history)[0].get_xlabel()
      'epoch'
    """
    if not isinstance(history, History):
        hint = "; that of a Fit is its `history`" if isinstance(history, Fit) else ""
        got = "a Fit" if isinstance(history, Fit) else describe(history)
        raise TypeError(f"`history` must be a History, from `fit`{hint}. Got {got}.")
    panels = _panels(axes, 1, 2)
    step_loss = np.asarray(history.step_loss)
    metrics = {
        name: np.asarray(values) for name, values in history.metrics.items() if values.ndim == 1
    }
    epochs = max(1, len(history.seconds))
    of_steps = np.arange(1, len(step_loss) + 1) * epochs / max(1, len(step_loss))
    batches = panels[0].plot(of_steps, step_loss, color=_soft(), lw=0.8, label="mini-batch")
    when = _when_measured(history, max(map(len, metrics.values()), default=0))
    kinds = ("loss", "accuracy")
    for panel, kind in zip(panels, kinds, strict=True):
        lines = [*batches] if kind == "loss" else []
        chosen = {name: values for name, values in metrics.items() if name.endswith(kind)}
        for i, (name, values) in enumerate(chosen.items()):
            lines += panel.plot(when, values, **_line(i), label=name.replace("_", " "))
        test = np.nan_to_num(metrics.get("test_loss", np.zeros(0)), nan=np.inf)
        if chosen and len(test) and test[-1] > RISEN * test.min():
            best = when[test.argmin()]
            panel.axvline(best, color=_soft(), lw=1, ls=(0, (1, 3)))
            # Put the text clear of the curves: a loss falls, an accuracy rises.
            height, va = (0.98, "top") if kind == "loss" else (0.02, "bottom")
            at = {"transform": panel.get_xaxis_transform(), "va": va}
            panel.text(best, height, f" lowest test loss: epoch {best:g}", **at)
        panel.set(xlabel="epoch", title=kind.capitalize(), visible=bool(lines))
        if kind == "accuracy":
            panel.set(ylabel="fraction correct", ylim=(0, 1.03))
        _name_lines(panel, lines)
    panels[0].set(ylabel="loss (nats)")
    return panels


def _when_measured(history: History, count: int) -> np.ndarray:
    """The epochs of a run's measurements; evenly spaced if their steps are unknown."""
    epochs, steps = max(1, len(history.seconds)), len(history.step_loss)
    if len(history.evaluated) == count and steps:
        return np.asarray(history.evaluated) * epochs / steps
    return np.arange(1, count + 1) * epochs / max(1, count)


# A test loss that ends above this multiple of its minimum indicates overfitting.
RISEN = 1.05


def gradients(numerical: PyTree, automatic: PyTree, *, axes: Panels = None) -> np.ndarray:
    """A numerical and an automatic gradient as images, and their difference: a row for each array,
    a pixel for each entry.

    Args:
      numerical: a pytree of arrays; all axes but the last become rows of the image.
      automatic: the same, from `jax.grad`.
      axes: three Axes for each array, to draw into.

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
        shape = "x".join(map(str, np.shape(a)))
        level = {"rotation": 0, "ha": "right", "va": "center", "fontsize": "small"}
        triple[0].set_ylabel(f"{name}\n{shape}", **level)
        a, b = (
            np.reshape(np.asarray(leaf, float), (-1, (1, *np.shape(leaf))[-1])) for leaf in (a, b)
        )
        for panel, image, scale in zip(triple, (a, b, a - b), (b, b, a - b), strict=True):
            limit = float(np.max(abs(scale), where=np.isfinite(scale), initial=0)) or 1.0
            drawn = panel.imshow(
                image, cmap=_SIGNED, aspect="auto", vmin=-limit, vmax=limit, interpolation="nearest"
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
    """The misclassified images, each with its true and its predicted class.

    Args:
      x: square images as rows.
      t: their classes.
      y: the network's probabilities of the classes.
      axes: Axes to draw into, one for each image; surplus ones stay empty. By default as many as
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
        panel.spines[:].set_visible(False)
    for panel in panels[len(wrong) :]:
        panel.set_axis_off()
    return panels


def gradient_evidence(leaf: LeafReport, ax: Axes | None = None) -> Axes:
    """The evidence of a gradient check for one leaf: numerical slopes by step, and their distance
    from the gradient's slope.

    The upper panel shows the slopes, the gradient's slope as a line, and the best numerical slope
    with its bound. The lower panel shows the differences: truncation dominates at coarse steps, the
    noise of the function's values at fine ones. For a correct gradient the differences fall towards
    the bound (dashed); a wrong one leaves a floor that no step goes below. For a kink, and for a
    gradient that is not finite, the plot shows the slopes on both sides instead; for an imprecise
    gradient, the number of digits.

    Args:
      leaf: from `GradientReport.leaves`.
      ax: Axes to draw only the differences into; by default a new figure shows both panels.

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
    told = [entry for entry in leaf.entries if entry.verdict in (Verdict.KINK, Verdict.NOT_FINITE)]
    told = [entry for entry in told if np.isreal(entry.numerical) and np.isfinite(entry.numerical)]
    if told and leaf.verdict in (Verdict.KINK, Verdict.NOT_FINITE):
        return _slopes_of(leaf, told[0], _one(ax))
    if leaf.verdict is Verdict.IMPRECISE:
        return _digits_of(leaf, _one(ax))
    panels = (
        [_one(ax)] if ax is not None else _panels(None, 2, 1, sharex=True, height_ratios=(1, 2))
    )
    for above in panels[:-1]:
        _slopes_by_step(leaf, above)
    return _differences_by_step(leaf, panels[-1])


def _slopes_by_step(leaf: LeafReport, above: Axes) -> None:
    """The slopes that the values show, the gradient's, and the best, with its bound."""
    steps = np.array(leaf.steps)
    lines = above.semilogx(
        steps, leaf.differences, **_line(0), marker="o", ms=4, label="of the values"
    )
    lines += above.plot(steps[[0, -1]], [leaf.autodiff] * 2, **_line(2), label="of the gradient")
    bar = leaf.bound if np.isfinite(leaf.bound) else None
    best = above.errorbar(leaf.step, leaf.numerical, bar, **_point(1), capsize=4)
    best[0].set_label("best, with bound")
    above.set(ylabel="slope")
    _name_lines(above, [*lines, best[0]], 0.16)


def _differences_by_step(leaf: LeafReport, below: Axes) -> Axes:
    """How far these slopes are from the gradient's, the bound, and the noise of the values."""
    steps, slopes = np.array(leaf.steps), np.array(leaf.differences)
    size = max(abs(leaf.autodiff), abs(leaf.numerical)) or 1.0
    differences = np.maximum(abs(slopes - leaf.autodiff) / size, _SMALLEST)
    lines = below.loglog(steps, differences, **_line(0), marker="o", ms=4, label="difference")
    if np.isfinite(leaf.bound):
        bound, name = max(leaf.bound / size, _SMALLEST), "bound on the ex-\ntrapolated slope"
        lines += below.plot(steps[[0, -1]], [bound] * 2, **_line(1), label=name)
    if np.isfinite(leaf.noise) and leaf.noise > 0:
        noise, name = leaf.noise / steps / size, "noise of the\nvalues / step"
        lines += below.loglog(steps, noise, **_line(3), lw=2, label=name)
    if np.isfinite(leaf.step):
        below.axvline(leaf.step, color=_soft(), lw=1, zorder=1)
        is_coarse = np.log(leaf.step / steps.min()) > 0.7 * np.log(steps.max() / steps.min())
        below.annotate(
            "step used",
            (leaf.step, 0),
            xycoords=below.get_xaxis_transform(),
            xytext=(-3 if is_coarse else 3, 3),
            textcoords="offset points",
            ha="right" if is_coarse else "left",
            fontsize="small",
        )
    below.set(xlabel="step, in units of the entries' scale", title=f"{leaf.path}: {leaf.verdict}")
    below.set_ylabel("|numerical slope - gradient's slope|\n/ |the larger of the two|")
    _name_lines(below, lines, 0.11)
    return below


def _slopes_of(leaf: LeafReport, entry: Entry, ax: Axes) -> Axes:
    """The function on both sides of an entry's value, and the gradient there if it is finite."""
    left, right = float(entry.left), float(entry.right)
    claim = float(np.real(entry.autodiff))
    ax.plot([-1, 0], [-left, 0], **_line(0), lw=2.5)
    ax.plot([0, 1], [0, right], **_line(0), lw=2.5)
    ax.plot(0, 0, **_point(0), ms=7)
    reach = max(abs(left), abs(right), abs(claim) if np.isfinite(claim) else 0, 1e-30)
    for x, y, slope in ((-0.55, -0.55 * left, left), (0.55, 0.55 * right, right)):
        ax.annotate(
            f"slope {slope:z.4g}", (x, y), (x, y + 0.3 * reach), ha="center", color=_color(0)
        )
    where = f"{leaf.path}{list(entry.index) if entry.index else ''}"
    if np.isfinite(claim):
        ax.plot([-0.8, 0.8], [-0.8 * claim, 0.8 * claim], **_line(1))
        said = f"the gradient says {claim:z.4g}"
        ax.annotate(said, (-0.78, -0.8 * claim - 0.12 * reach), color=_color(1), va="top")
        title = f"{where} is at a kink: slopes {left:z.4g} and {right:z.4g} meet"
    else:
        said = f"the gradient is {claim} here"
        ax.annotate(
            said,
            (0, 0),
            (0, -0.35 * reach),
            color=_color(1),
            ha="center",
            va="top",
            arrowprops={"arrowstyle": "->", "color": _color(1)},
        )
        two = f", whose slopes are {left:z.4g} and {right:z.4g}" if left != right else ""
        title = f"{where}: gradient not finite, unlike the values{two}"
    ax.set(
        xlabel="change in the entry (arbitrary units)", ylabel="change in the function", title=title
    )
    ax.set(ylim=(-1.5 * reach, 1.7 * reach))
    return ax


def _digits_of(leaf: LeafReport, ax: Axes) -> Axes:
    """Three numbers of digits: of the dtype, of rule and values agreeing, and of the gradient."""
    has = -np.log10(float(jnp.finfo(leaf.dtype).eps))
    bars = {
        f"{leaf.dtype} has": has,
        "the rule and the values agree to": leaf.digits,
        f"the gradient in {leaf.dtype} keeps": leaf.own_dtype_digits,
    }
    for i, (name, digits) in enumerate(bars.items()):
        ax.barh(i, digits, color=_color(i), height=0.55)
        ax.annotate(f"{name} {digits:.1f}", (0, i - 0.42), fontsize="small", va="bottom")
    ax.set(yticks=[], xlabel="decimal digits", ylim=(len(bars) - 0.4, -0.6))
    ax.set_title(
        f"{leaf.path}: correct, but only {leaf.own_dtype_digits:.1f} of {has:.0f} digits are left"
    )
    return ax


def as_svg(figure: Figure) -> str:
    """A figure as SVG, identical each time it is drawn.

    Example:
      >>> as_svg(Figure())[:5]
      '<?xml'
    """
    file, nothing = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "jaxnn"}):
        figure.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()


def svg_for_page(figure: Figure) -> str:
    """A figure in the light palette as part of an HTML page, adapting to the page's colour scheme.

    Example:
      >>> svg_for_page(Figure())[:4]
      '<svg'
    """
    schemes = dict([INK, PAPER, _SOFT, *zip(_ON_LIGHT, _ON_DARK, strict=True)])
    drawn = as_svg(figure)
    drawn = re.sub(
        "#[0-9a-f]{6}",
        lambda color: f"light-dark({color[0]}, {schemes.get(color[0], color[0])})",
        drawn[drawn.index("<svg") :],
    )
    # Text has no colour of its own, so it takes the fill.
    return drawn.replace("<svg", f"<svg fill='light-dark({', '.join(INK)})'", 1)


def _panels(axes: Panels, rows: int, columns: int, exact: bool = True, **layout: Any) -> np.ndarray:
    """The Axes passed in, checked to be (exactly) as many as the plot has panels, or those of a new
    figure, as a flat array.
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
    """Refuse anything but a non-empty real array with these axes."""
    array = as_array(name, x, np.asarray)
    if array.ndim != len(axes) or not array.size or np.iscomplexobj(array):
        raise ValueError(
            f"`{name}` must be a real array of shape ({', '.join(axes)}). Got {describe(array)}."
        )


def _require_curves(curves: Mapping[str, Any]) -> None:
    """Refuse anything but real arrays of points, all as long as the first."""
    first = next(iter(curves))
    _require_axes(first, curves[first], "points")
    for name, curve in curves.items():
        require_same_form(name, curve, first, curves[first])


def _require_grid(points: Any) -> np.ndarray:
    """Refuse anything but a grid of (x0, x1); return x0 and x1 separately."""
    _require_axes("points", points, "rows", "columns", "2")
    if min(np.shape(points)) < 2 or np.shape(points)[2] != 2:
        raise ValueError(
            f"`points` must have shape (rows, columns, 2), at least two of each. Got shape "
            f"{np.shape(points)}."
        )
    return np.moveaxis(np.asarray(points), -1, 0)


def _require_names(name: str, curves: Any) -> None:
    """Refuse anything but a dictionary."""
    if not isinstance(curves, Mapping):
        raise TypeError(f"`{name}` must be a dictionary. Got {describe(curves)}.")


def _require_paths(paths: Any) -> None:
    """Refuse anything but a dictionary of descents."""
    if isinstance(paths, DescentPath):
        raise TypeError(
            "`paths` must be a dictionary of descents by name, as in {'lr = 0.1': path}. Got one "
            "DescentPath."
        )
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


def _is_dark() -> bool:
    """Whether plots are currently drawn on a dark background."""
    return float(np.mean(to_rgb(plt.rcParams["axes.facecolor"]))) < 0.5


def _color(i: int) -> str:
    colors = _ON_DARK if _is_dark() else _ON_LIGHT
    return colors[i % len(colors)]


def _soft() -> str:
    """The colour of lines behind the curves."""
    return _SOFT[_is_dark()]


def _ground() -> LinearSegmentedColormap:
    """The colour map of contours, pale enough to draw paths on."""
    ends = ["0.12", "0.35"] if _is_dark() else ["1.0", "0.72"]
    return LinearSegmentedColormap.from_list("ground", ends)


def _line(i: int) -> dict[str, Any]:
    turn = i // len(_ON_LIGHT)  # once the colours repeat, the dashes differ
    return {"color": _color(i), "ls": _DASHES[(i + turn) % len(_DASHES)]}


def _point(i: int, marker: str | None = None) -> dict[str, Any]:
    return {"color": _color(i), "ls": "", "marker": marker or _MARKERS[i % len(_MARKERS)]}


def _name_lines(ax: Axes, lines: Iterable[Line2D], apart: float = 0.075) -> None:
    """Write the names of curves at their right ends, in their colours, without overlap."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # fix the limits before adding text
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = []
    for line in lines:
        name = str(line.get_label())
        line.set_label(name.replace("\n", " "))
        x, y = (np.asarray(values, float) for values in line.get_data())
        places = to_axes.transform(np.stack([x, y], 1))
        inside = np.isfinite(places).all(1) & (places >= -0.01).all(1) & (places <= 1.01).all(1)
        if inside.any():
            ends.append([*places[inside][np.argmax(places[inside][:, 0])], line, name])
    ends.sort(key=lambda end: end[1])
    heights, low = [], -np.inf
    for _, height, *_ in ends:
        low = max(height, low + apart)
        heights.append(low)
    high = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], high)
        high = heights[i] - apart
    for (_, _, line, name), height in zip(ends, heights, strict=True):
        ax.annotate(
            name,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            fontsize="small",
            annotation_clip=False,
        )
