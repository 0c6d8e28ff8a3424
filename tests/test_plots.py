"""Pictures: what is drawn is what was handed in, labelled, in the Axes asked for; and
`figures.draw` writes all of them.
"""

import functools
import json
import os
import re

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from flat import fit
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from jaxnn import (
    DescentPath,
    Verdict,
    accuracy,
    check_gradient,
    cross_entropy_error,
    descent_path,
    figures,
    init_network,
    loss,
    mean_squared_error,
    numerical_diff,
    numerical_grad,
    plots,
    predict,
)
from jaxnn.cli import main
from jaxnn.surfaces import bowl, parabola, saddle

matplotlib.use("agg")
X = jnp.linspace(0, 20, 41)
GRID = jnp.stack(jnp.meshgrid(jnp.arange(-2, 2.5, 0.25), jnp.arange(-2, 2.5, 0.25)), axis=-1)
DATA = jnp.eye(4), jnp.arange(4)
PATHS = {
    f"lr = {lr}": descent_path(bowl, jnp.array([-3.0, 4.0]), lr, 10) for lr in (0.01, 0.1, 1.1)
}


@pytest.fixture(autouse=True)
def _no_figures_left_over():
    matplotlib.pyplot.close("all")  # of other tests in this process
    yield
    matplotlib.pyplot.close("all")


def history(epochs=3, **options):
    options = {"key": jax.random.key(0), "epochs": epochs, "batch_size": 2, **options}
    return fit(loss, {"W1": jnp.zeros((4, 4))}, DATA, optax.sgd(1.0), **options).history


def measured(params, x, t):
    return {"accuracy": accuracy(predict(params, x), t), "other": jnp.sum(params["W1"])}


def labels(ax):
    if ax.get_legend() is None:  # curves have their names beside them
        return [text.get_text() for text in ax.texts]
    return [text.get_text() for text in ax.get_legend().get_texts()]


def curves(ax):
    """The data of the lines that the legend names."""
    return {
        line.get_label(): np.stack(line.get_data())
        for line in ax.lines
        if not line.get_label().startswith("_")
    }


def test_the_losses_are_those_of_the_library():
    p = jnp.linspace(0.01, 1, 50)
    answers = jnp.stack([p, 1 - p], axis=-1)
    entropy, error = (
        jax.vmap(f, (0, None))(answers, jnp.array(0))
        for f in (cross_entropy_error, mean_squared_error)
    )
    logarithm, two = plots.losses(p, entropy, error)
    assert logarithm.get_xscale() == "log" and logarithm.get_ylabel() == "loss (nats)"
    np.testing.assert_allclose(curves(logarithm)["-log x"][1], -np.log(p), rtol=1e-6)
    np.testing.assert_array_equal(curves(two)["cross-entropy (nats)"], [p, entropy])
    np.testing.assert_array_equal(curves(two)["squared error"], [p, error])


def test_the_accuracy_is_drawn_as_stairs_below_the_loss():
    along = jnp.linspace(0, 1, 9)
    upper, lower = plots.loss_and_accuracy(along, along**2, jnp.round(along))
    assert upper.get_shared_x_axes().joined(upper, lower)
    assert (
        lower.lines[0].get_drawstyle() == "steps-mid"
        and upper.lines[0].get_drawstyle() == "default"
    )
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), np.round(along))


def test_activations_stand_beside_their_derivatives():
    values = {"sigmoid": jax.nn.sigmoid(X), "ReLU": jax.nn.relu(X)}
    derivatives = {
        "sigmoid": numerical_diff(jax.nn.sigmoid, X),
        "ReLU": numerical_diff(jax.nn.relu, X),
    }
    left, right = plots.activations(X, values, derivatives)
    assert (
        left.get_title() == "Value"
        and right.get_title() == "Derivative"
        and right.get_ylabel() == "dy/dx"
    )
    for name in values:
        np.testing.assert_array_equal(curves(left)[name], [X, values[name]])
        np.testing.assert_array_equal(curves(right)[name], [X, derivatives[name]])


def test_tangents_and_secants_lie_on_the_curve():
    at, h = 5.0, 5.0
    tangent = float(numerical_diff(parabola, at))
    secant = float(numerical_diff(parabola, at, h, scheme="forward"))
    ax = plots.slopes(
        X, parabola(X), {"tangent": ((at, at), tangent), "h = 5": ((at, at + h), secant)}
    )
    assert labels(ax) == ["f(x)", "tangent: slope 0.200", "h = 5: slope 0.250"]
    for line, slope in zip((ax.lines[1], ax.lines[3]), (tangent, secant), strict=True):
        assert line.get_slope() == slope and line.get_xy1() == pytest.approx((at, parabola(at)))
    np.testing.assert_allclose(ax.lines[4].get_ydata(), [parabola(at), parabola(at + h)], rtol=1e-6)
    assert ax.get_xlim() == pytest.approx((-1, 21)) and ax.get_ylim() == pytest.approx(
        (-0.3, 6.3)
    ), "the lines move no limit"


def test_errors_against_the_step_have_logarithmic_axes_and_a_star_at_the_default():
    h = np.logspace(-8, 0, 5)
    ax = plots.step_errors({"forward": (h, h), "central": (h, h**2)}, {"central": (1e-5, 1e-10)})
    assert ax.get_xscale() == ax.get_yscale() == "log" and "units of x" in ax.get_xlabel()
    np.testing.assert_array_equal(curves(ax)["central"], [h, h**2])
    (star,) = [line for line in ax.lines if line.get_marker() == "*" and len(line.get_xdata())]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1e-5, 1e-10)
    assert (
        star.get_color()
        == [line for line in ax.lines if line.get_label() == "central"][0].get_color()
    )


def test_the_surface_and_the_field_show_the_bowl():
    ax = plots.surface(GRID, bowl(GRID))
    assert ax.name == "3d" and (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == (
        "x0",
        "x1",
        "f(x0, x1)",
    )
    gradient = numerical_grad(lambda x: jnp.sum(bowl(x)))(GRID)
    ax = plots.gradient_field(GRID, gradient)
    (arrows,) = [c for c in ax.collections if isinstance(c, matplotlib.quiver.Quiver)]
    np.testing.assert_allclose(arrows.U, -2 * GRID[..., 0].ravel(), atol=1e-6)
    np.testing.assert_allclose(
        arrows.get_array(), 2 * jnp.linalg.norm(GRID, axis=-1).ravel(), rtol=1e-6
    )
    assert "length of the gradient" in ax.figure.axes[-1].get_ylabel()


def test_a_field_without_slopes_has_arrows_of_no_length():
    (ax := plots.gradient_field(GRID, 0 * GRID)).figure.canvas.draw()
    (arrows,) = [c for c in ax.collections if isinstance(c, Quiver)]
    assert arrows.N == GRID[..., 0].size and not arrows.U.any() and not arrows.V.any()


def test_paths_start_at_a_square_and_end_at_a_star_and_the_view_stays():
    ax = plots.descent_paths(GRID, bowl(GRID), PATHS)
    assert labels(ax) == list(PATHS) and ax.get_xlim() == (-2, 2.25)
    for name, path in PATHS.items():
        np.testing.assert_array_equal(curves(ax)[name], path.points.T)
    squares, stars = (
        [line.get_xydata()[0] for line in ax.lines if line.get_marker() == m] for m in "s*"
    )
    np.testing.assert_array_equal(squares, [path.points[0] for path in PATHS.values()])
    np.testing.assert_array_equal(stars, [path.points[-1] for path in PATHS.values()])


def test_the_ends_of_paths_that_meet_can_be_told_apart_and_one_alone_gives_the_title():
    path = PATHS["lr = 0.1"]
    ax = plots.descent_paths(GRID, bowl(GRID), {"first": path, "second": path})
    for marker in "s*":
        first, second = (line.get_markersize() for line in ax.lines if line.get_marker() == marker)
        assert first > second
    alone = plots.descent_paths(GRID, bowl(GRID), {"lr = 0.1": path})
    assert alone.get_title() == "lr = 0.1" and alone.get_legend() is None


def test_losses_of_paths_are_logarithmic_where_they_are_positive():
    ax = plots.path_losses(PATHS)
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(curves(ax)["lr = 0.1"][1], PATHS["lr = 0.1"].losses)
    below = descent_path(saddle, jnp.array([1.0, 0.1]), 0.1)
    assert plots.path_losses({"saddle": below}).get_yscale() == "linear"
    there = descent_path(bowl, jnp.array([1.0, 1.0]), 0.5)  # at 0 after one step
    assert plots.path_losses({"lr = 0.5": there}).get_yscale() == "log"


def test_a_training_run_shows_what_was_measured_where_it_was_measured():
    run = history(3, metrics=measured, test=DATA)
    left, right_panel = plots.training(run)
    of_steps = np.arange(1, 7) / 2
    np.testing.assert_array_equal(curves(left)["mini-batch"], [of_steps, run.step_loss])
    np.testing.assert_array_equal(curves(left)["test loss"], [[1, 2, 3], run.metrics["test_loss"]])
    np.testing.assert_array_equal(
        curves(right_panel)["test accuracy"], [[1, 2, 3], run.metrics["test_accuracy"]]
    )
    assert (left.get_xlabel(), left.get_ylabel(), right_panel.get_xlabel()) == (
        "epoch",
        "loss (nats)",
        "epoch",
    )
    assert sorted(labels(left)) == ["mini-batch", "test loss", "train loss"], (
        "the loss falls to the end: no minimum is marked"
    )


def test_the_minimum_of_the_test_loss_is_marked_where_it_rises_again():
    losses, right = np.array([3.0, np.nan, 2.0, 2.5]), np.array([0.1, 0.2, 0.3, 0.3])
    run = history(4, metrics=measured)
    run = run._replace(metrics={"test_loss": losses, "test_accuracy": right})
    for panel in plots.training(run):
        assert labels(panel)[0] == " lowest test loss: epoch 3"
        assert panel.lines[-1].get_xdata()[0] == 3


def test_a_run_without_metrics_has_its_loss_alone():
    left, right = plots.training(history())
    assert labels(left) == ["mini-batch"] and not right.get_visible()


def test_gradients_are_images_on_one_scale_and_their_difference_on_its_own():
    params = init_network(jax.random.key(0), (4, 3), weight_scale=1.0)
    batch = DATA[0], DATA[1] % 3
    numerical, automatic = (
        numerical_grad(loss)(params, *batch),
        jax.jit(jax.grad(loss))(params, *batch),
    )
    panels = plots.gradients(numerical, automatic).reshape(2, 3)
    for triple, name in zip(panels, sorted(params), strict=True):
        a, b, difference = (panel.images[0] for panel in triple)
        assert name in triple[0].get_ylabel()
        np.testing.assert_array_equal(a.get_array(), np.atleast_2d(numerical[name]).astype(float))
        np.testing.assert_array_equal(difference.get_array(), a.get_array() - b.get_array())
        limit = float(abs(automatic[name]).max())
        assert a.get_clim() == b.get_clim() == (-limit, limit)
        assert difference.get_clim()[1] < 1e-5
    assert [panel.get_title() for panel in panels[0]] == ["numerical", "automatic", "difference"]


def test_gradients_that_are_equal_or_not_finite_can_be_drawn():
    gradient = {"kernel": jnp.ones((2, 2, 3)), "scale": jnp.array(jnp.nan)}
    panels = plots.gradients(gradient, gradient)
    assert panels[0].images[0].get_array().shape == (4, 3)
    panels[0].figure.canvas.draw()


def test_only_the_mistakes_are_shown_with_what_was_said():
    x, t = jnp.arange(12.0).reshape(3, 4), jnp.array([0, 1, 1])
    y = jnp.array([[0.9, 0.1], [0.75, 0.25], [0.2, 0.8]])
    panels = plots.mistakes(x, t, y)
    assert (
        panels[0].get_title() == "1, read as 0"
        and panels[0].get_xlabel() == "P(0) = 75%, P(1) = 25%"
    )
    np.testing.assert_array_equal(panels[0].images[0].get_array(), x[1].reshape(2, 2))
    assert len(panels) == 6 and not any(panel.images or panel.axison for panel in panels[1:])


def test_the_evidence_of_a_check_has_the_gradient_as_a_line():
    leaf = check_gradient(lambda x: jnp.sum(x**3), jnp.arange(3.0)).leaves[0]
    below = plots.gradient_evidence(leaf)
    above = below.figure.axes[0]
    np.testing.assert_array_equal(curves(above)["of the values"], [leaf.steps, leaf.differences])
    assert curves(above)["of the gradient"][1] == pytest.approx(leaf.autodiff)
    assert below.get_xscale() == below.get_yscale() == "log" and below.get_title() == "[0]: agrees"


def test_the_evidence_of_a_leaf_without_a_slope_is_drawn(tmp_path):
    report = check_gradient(lambda p: jnp.sum(p["a"] ** 2), {"a": X, "idle": X})
    report.save(tmp_path / "page.html")  # a warning would be an error
    idle = next(leaf for leaf in report.leaves if "idle" in leaf.path)
    low, high = plots.gradient_evidence(idle).get_ylim()
    assert 0 < low < high < 1e3


CALLS = {
    "losses": (plots.losses, (X / 40 + 0.1, X, X), 2),
    "loss_and_accuracy": (plots.loss_and_accuracy, (X, X, X), 2),
    "activations": (plots.activations, (X, {"f": X}, {"f": X}), 2),
    "slopes": (plots.slopes, (X, X, {"f": ((5.0, 5.0), 1.0)}), None),
    "step_errors": (plots.step_errors, ({"f": (X + 1, X + 1)},), None),
    "gradient_field": (plots.gradient_field, (GRID, GRID), None),
    "descent_paths": (plots.descent_paths, (GRID, bowl(GRID), PATHS), None),
    "path_losses": (plots.path_losses, (PATHS,), None),
    "gradients": (plots.gradients, ({"b": X}, {"b": X}), 3),
    "mistakes": (plots.mistakes, (jnp.ones((2, 4)), jnp.zeros(2, int), jnp.eye(2)), 2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_axes_handed_in_are_drawn_into_and_no_figure_is_made(call):
    function, arguments, count = call
    figure = Figure()
    given = figure.subplots() if count is None else figure.subplots(1, count)
    drawn = function(*arguments, **({"ax": given} if count is None else {"axes": given}))
    assert drawn is given if count is None else list(drawn) == list(given)
    assert np.ravel(given)[0].has_data() and not matplotlib.pyplot.get_fignums()


def lightness(color):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)]
    return 116 * np.cbrt(np.dot(linear, [0.2126, 0.7152, 0.0722])) - 16


def contrast(color, ground):
    a, b = sorted((((lightness(c) + 16) / 116) ** 3 for c in (color, ground)), reverse=True)
    return (a + 0.05) / (b + 0.05)


@pytest.mark.parametrize("style", figures.STYLES)
def test_lines_can_be_told_apart_in_grey_and_are_seen_on_their_ground(style):
    with matplotlib.rc_context(figures.STYLES[style]):
        ground = matplotlib.rcParams["axes.facecolor"]
        lines = [plots._line(i) for i in range(10)]
        points = [plots._point(i) for i in range(5)]
    shades = sorted(lightness(line["color"]) for line in lines[:5])
    assert min(np.diff(shades)) > 3.5
    assert min(contrast(line["color"], ground) for line in lines) > 3
    assert len({str(line["ls"]) for line in lines[:5]}) == len({p["marker"] for p in points}) == 5
    assert len({(line["color"], str(line["ls"])) for line in lines}) == 10


def test_the_valley_of_a_steep_function_can_be_seen():
    x = jnp.stack(jnp.meshgrid(jnp.linspace(-2, 2, 41), jnp.linspace(-1, 3, 41)), -1)
    rosenbrock = (1 - x[..., 0]) ** 2 + 100 * (x[..., 1] - x[..., 0] ** 2) ** 2
    path = DescentPath(jnp.zeros((2, 2)), jnp.ones(2))
    ax = plots.descent_paths(x, rosenbrock, {"": path})
    levels = ax.collections[0].levels
    assert levels[1] < 1e-3 * levels[-1]


@pytest.mark.parametrize(
    "f, point, said",
    [
        (lambda x: jnp.sum(jnp.abs(x)), [0.0, 1.0], "[0][0] is at a kink: slopes -1 and 1 meet"),
        (lambda x: jnp.sqrt(jnp.sum(x**2)), [0.0, 0.0], "gradient not finite, unlike the values"),
    ],
)
def test_a_kink_and_a_missing_gradient_have_pictures_of_their_own(f, point, said):
    ax = check_gradient(f, jnp.array(point)).plot()
    assert said in ax.get_title() and ax.get_xscale() == "linear"
    assert {"slope -1", "slope 1"} <= set(labels(ax))


def test_lost_digits_have_a_picture_of_their_own():
    leaf = check_gradient(lambda x: jnp.sum(x**2), X).leaves[0]
    imprecise = leaf._replace(verdict=Verdict.IMPRECISE, own_dtype_digits=2.4)
    ax = plots.gradient_evidence(imprecise)
    assert "only 2.4 of 7 digits are left" in ax.get_title() and len(ax.patches) == 3


def test_a_descent_is_animated_and_a_page_has_a_slider(tmp_path):
    path = descent_path(bowl, jnp.array([-3.0, 4.0]), 0.1, 5)
    film = plots.animate_descent(GRID, bowl(GRID), path)
    film.save(tmp_path / "descent.gif", "pillow")
    assert (tmp_path / "descent.gif").read_bytes().startswith(b"GIF8")
    page = plots.learning_rate_page(GRID, bowl(GRID), {0.1: path, 0.2: path})
    data = json.loads(page.split("const data = ")[1].split(";\n")[0])
    assert [p["lr"] for p in data["paths"]] == [0.1, 0.2] and len(data["paths"][0]["points"]) == 6
    assert not re.findall('(?:src|href)="http', page)


def test_the_default_step_is_told_without_looking_inside():
    for scheme, h in (("forward", 2**-26), ("central", 2**-15)):  # sqrt(eps), and near 4 cbrt(eps)
        diff = functools.partial(numerical_diff, scheme=scheme)
        assert figures._default_step(diff, jnp.array(1.0), scheme) == h


def assert_it_says_what_is_on_its_axes(figure):
    figure.canvas.draw()
    for text in (figure._suptitle, *(ax.title for ax in figure.axes)):
        drawn = text and text.get_window_extent()
        assert text is None or 0 <= drawn.x0 <= drawn.x1 <= figure.bbox.width, text.get_text()
    for ax in figure.axes:
        if not ax.axison or ax.images:  # of a matrix the entries are named
            continue
        named = ax.get_title() and (ax.get_xlabel() or not ax.get_subplotspec().is_last_row())
        assert ax.get_label() == "<colorbar>" or named, ax.get_title()


@pytest.mark.slow
def test_the_command_writes_every_picture_of_the_chapter(tmp_path, monkeypatch, capsys):
    drawn, save = [], Figure.savefig
    noted = lambda figure, *to, **how: (save(figure, *to, **how), drawn.append(figure))  # noqa: E731
    monkeypatch.setattr(Figure, "savefig", noted)
    moving = {
        name: (lambda path: path.touch(), file) for name, (_, file) in figures._MOVING.items()
    }
    monkeypatch.setattr(figures, "_MOVING", moving)  # see below
    assert main(["figures", "--out", str(tmp_path / "new")]) == 0
    pictures = sorted(tmp_path.glob("new/*.png"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-2] == list(map(str, pictures)) and len(printed) == len(figures.NAMES)
    assert all(map(os.path.exists, printed))
    assert len(pictures) == len(figures._PICTURES) == 17
    assert [path.name[:2] for path in pictures] == [f"{n:02}" for n in range(1, 18)]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG"), path
        assert 5_000 < path.stat().st_size < 500_000, path
        assert path.with_suffix(".svg").stat().st_size < 1_000_000, path
    assert not matplotlib.pyplot.get_fignums() and len(set(drawn)) == 17
    for figure in drawn:
        assert_it_says_what_is_on_its_axes(figure)


@pytest.mark.promotes
def test_a_picture_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_PICTURES", {figures._learning_rates: (9, 6)})
    monkeypatch.setattr(figures, "_MOVING", {})
    for style, end in (("light", ""), ("dark", "_dark")):
        (path,) = figures.draw(tmp_path, ["learning_rates"], style=style)
        assert path.name == f"01_learning_rates{end}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="`names` must be 'losses', .* Got 'loses'."):
        figures.draw(tmp_path, ["loses"])


@pytest.mark.slow
def test_what_moves_is_written(tmp_path):
    told = []
    film, slider = figures.draw(tmp_path, ["film", "slider"], on_picture=told.append)
    assert film.read_bytes().startswith(b"GIF8") and "<svg id='path'" in slider.read_text()
    assert told == [film, slider]
    (dark,) = figures.draw(tmp_path, ["film"], style="dark")
    assert dark.name == "descent_dark.gif" and dark.read_bytes() != film.read_bytes()
