"""Descent: the chapter's end points, what is traced, what is reported, and what is refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import (
    DivergenceWarning,
    Stop,
    descent_path,
    gradient_descent,
    minimize,
    numerical_grad,
    surfaces,
)
from jaxnn.surfaces import bowl, rosenbrock

GRADS = [jax.grad, numerical_grad]


def start(dtype=jnp.float32):
    return jnp.array([-3.0, 4.0], dtype)


@pytest.mark.parametrize("grad", GRADS)
def test_the_chapters_descent(dtype, grad):
    end = gradient_descent(bowl, start(dtype), lr=0.1, step_num=100, grad=grad)
    expected = (-6.11110793e-10, 8.14814391e-10)
    np.testing.assert_allclose(end, expected, rtol=1e-8 if dtype == jnp.float64 else 2e-6)


@pytest.mark.parametrize("grad", GRADS)
def test_lr_10_diverges_and_says_so(dtype, grad):
    with pytest.warns(
        DivergenceWarning, match="diverged: the loss went from 25 to .* by step 100 with lr=10"
    ):
        end = gradient_descent(bowl, start(dtype), lr=10.0, step_num=100, grad=grad)
    assert not float(jnp.linalg.norm(end)) < 1e10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient_descent(bowl, start(dtype), lr=0.1, step_num=100, grad=grad)


def test_a_negative_rate_goes_uphill():
    with pytest.warns(DivergenceWarning, match="lr=-0.1; a negative `lr` goes uphill."):
        gradient_descent(bowl, start(), lr=-0.1, step_num=3)


@pytest.mark.parametrize(
    "f", [lambda x: np.linalg.norm(np.asarray(x)), lambda x: x[0] if x[0] > 0 else x[1]]
)
@pytest.mark.parametrize("descend", [gradient_descent, descent_path])
def test_an_error_says_how_a_function_can_be_traced(descend, f):
    with pytest.raises(jax.errors.JAXTypeError) as raised:
        descend(f, start())
    assert any("JAX traces `f` without values" in note for note in raised.value.__notes__)


def test_lr_1e_minus_10_hardly_moves(x64):
    end = gradient_descent(bowl, start("float64"), lr=1e-10, step_num=100)
    np.testing.assert_allclose(end, (-2.99999994, 3.99999992), rtol=1e-8)


@pytest.mark.promotes
@pytest.mark.parametrize("grad", GRADS)
def test_many_learning_rates_in_one_vmap(grad):
    rates = jnp.array([0.01, 0.1, 0.5, 10.0])
    ends = jax.vmap(lambda lr: gradient_descent(bowl, start(), lr, 20, grad=grad))(rates)
    np.testing.assert_allclose(ends, start() * (1 - 2 * rates[:, None]) ** 20, rtol=1e-4, atol=1e-6)


def test_lr_and_step_num_are_traced(compilations):
    f = lambda x: bowl(x)  # noqa: E731
    gradient_descent(f, start(), 0.1, 10)
    gradient_descent(f, start(), jnp.array(0.05), jnp.array(7))
    minimize(f, start(), OPTIMIZER, max_steps=3)
    count = compilations()
    gradient_descent(f, start(), 0.2, 20)
    gradient_descent(f, start(), jnp.array(0.05), jnp.array(7))
    gradient_descent(f, start(), 1.0)
    minimize(f, start(), OPTIMIZER, max_steps=5, tolerance=1e-2)
    assert compilations() == count


OPTIMIZER = optax.sgd(0.1)


def test_any_pytree_descends_and_the_start_is_not_overwritten():
    x = {"a": start(), "b": [jnp.array(2.0)], "steps": jnp.array(3)}
    kept = jax.tree.map(np.array, x)
    f = lambda x: bowl(x["a"]) + (x["b"][0] - 1) ** 2  # noqa: E731
    for grad in GRADS:
        end = gradient_descent(f, x, 0.1, 200, grad=grad)
        np.testing.assert_allclose(end["a"], 0, atol=1e-6)
        np.testing.assert_allclose(end["b"][0], 1, rtol=1e-6)
        assert int(end["steps"]) == 3
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), x, kept))


def test_no_steps_is_the_start():
    assert gradient_descent(bowl, start(), 0.1, 0).tolist() == [-3, 4]
    assert descent_path(bowl, start(), 0.1, 0).points.tolist() == [[-3, 4]]


def test_the_path_holds_every_point_and_its_loss(dtype):
    path = descent_path(bowl, start(dtype), lr=0.1, step_num=20)
    expected = np.array([-3.0, 4.0]) * 0.8 ** np.arange(21)[:, None]
    np.testing.assert_allclose(path.points, expected, rtol=1e-5)
    np.testing.assert_allclose(path.losses, np.sum(expected**2, 1), rtol=1e-5)
    np.testing.assert_allclose(
        path.points[-1], gradient_descent(bowl, start(dtype), 0.1, 20), rtol=1e-6
    )
    tree = descent_path(lambda x: bowl(x["a"]), {"a": start(dtype), "n": jnp.array(1)}, 0.1, 3)
    assert tree.points["n"].tolist() == [1, 1, 1, 1]


@pytest.mark.promotes
@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize(
    "optimizer, options, reason",
    [
        (optax.sgd(0.1), {}, "small gradient"),
        (optax.adam(0.01), {"max_steps": 7}, "max steps"),
        (optax.sgd(1e3), {}, "not finite"),
    ],
)
def test_minimize_says_why_it_stopped(grad, optimizer, options, reason):
    result = minimize(bowl, start(), optimizer, grad=grad, **options)
    assert result.reason == reason
    assert bool(jnp.all(jnp.isfinite(result.x))) and bool(jnp.isfinite(result.loss))
    if reason == "small gradient":
        assert float(result.grad_norm) <= 1e-6 and int(result.steps) < 1000
    if reason == "max steps":
        assert int(result.steps) == 7


def test_a_gradient_as_large_as_the_tolerance_is_small_enough():
    found = minimize(bowl, start(), OPTIMIZER, tolerance=10.0)  # 2 * (-3, 4)
    assert (found.reason, int(found.steps), float(found.grad_norm)) == ("small gradient", 0, 10.0)


@pytest.mark.parametrize(
    "surface, point, value",
    [
        (surfaces.parabola, 5.0, 0.75),
        (surfaces.bowl, (3.0, 4.0), 25.0),
        (surfaces.saddle, (1.0, 2.0), 1.0),
        (surfaces.plateau, (1.0, 1.0), 1 - np.exp(-1.0)),
        (surfaces.two_valleys, (1.0, 2.0), 4.3),
        (surfaces.rosenbrock, (0.0, 1.0), 101.0),
    ],
)
def test_the_surfaces_have_their_values(surface, point, value):
    assert float(surface(jnp.array(point))) == pytest.approx(value, rel=1e-6)


@pytest.mark.promotes
def test_minimize_goes_on_where_it_stopped():
    whole = minimize(rosenbrock, start(), OPTIMIZER_ADAM, max_steps=60)
    half = minimize(rosenbrock, start(), OPTIMIZER_ADAM, max_steps=30)
    rest = minimize(rosenbrock, half.x, OPTIMIZER_ADAM, max_steps=30, opt_state=half.opt_state)
    np.testing.assert_allclose(rest.x, whole.x, rtol=1e-6)


OPTIMIZER_ADAM = optax.adam(0.1)


def test_a_start_that_is_not_finite_is_reported():
    result = minimize(lambda x: jnp.sum(jnp.log(x)), jnp.array([-1.0]), OPTIMIZER)
    assert result.status == Stop.NOT_FINITE and int(result.steps) == 0


def test_a_minimum_is_one_line():
    found = minimize(bowl, jnp.array([-3.0, 4.0]), optax.sgd(0.5))
    assert repr(found) == "<Minimum: small gradient at step 1; loss 0, gradient norm 0>"
    assert found._repr_html_() == f"<p>{repr(found)[1:-1]}</p>"
    assert repr(jax.eval_shape(lambda: found)).startswith("(ShapeDtypeStruct(")
    several = jax.vmap(lambda x: minimize(bowl, x, optax.sgd(0.5)))(jnp.ones((2, 2)))
    assert repr(several).startswith("(Array(")


def test_a_path_is_one_line():
    path = descent_path(lambda x: jnp.sum(x**2), jnp.array([1.0]), 0.25, 2)
    assert repr(path) == "<DescentPath: steps 2; loss 1 to 0.0625>"
    several = jax.vmap(lambda x: descent_path(jnp.sum, x, 0.25, 2))(jnp.ones((2, 2)))
    assert repr(several).startswith("(Array(")
