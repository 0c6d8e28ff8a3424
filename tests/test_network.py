"""The network: the chapter's 2x3 one with its printed numbers, and deeper ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import float32_quickly

from jaxnn import (
    cross_entropy_error,
    init_network,
    loss,
    numerical_grad,
    numerical_gradient,
    predict,
)
from jaxnn.cli.tour import INPUT, TARGET, WEIGHTS

pytestmark = pytest.mark.promotes

DW = [[0.21924763, 0.14356247, -0.36281009], [0.32887144, 0.2153437, -0.54421514]]


def chapters_network(dtype):
    return {"W1": jnp.array(WEIGHTS, dtype)}, jnp.array(INPUT, dtype), jnp.array(TARGET, dtype)


def test_the_chapters_scores_and_loss(dtype):
    params, x, t = chapters_network(dtype)
    rel = 1e-8 if dtype == jnp.float64 else 1e-6
    np.testing.assert_allclose(predict(params, x), (1.05414809, 0.63071653, 1.1328074), rtol=rel)
    assert float(loss(params, x, t)) == pytest.approx(0.9280685387, rel=rel)
    # The chapter's printed loss comes from weights with more digits than it prints.
    without_delta = cross_entropy_error(jax.nn.softmax(predict(params, x)), t, delta=0.0)
    assert float(without_delta) == pytest.approx(0.92806853663411326, rel=max(rel, 3e-9))


@pytest.mark.parametrize(
    "route", ["jax.grad", "numerical_grad", "numerical_gradient", "closed form"]
)
def test_the_chapters_dw_by_every_route(dtype, route):
    params, x, t = chapters_network(dtype)
    dw = {
        "jax.grad": lambda: jax.grad(loss)(params, x, t)["W1"],
        "numerical_grad": lambda: numerical_grad(loss)(params, x, t)["W1"],
        "numerical_gradient": lambda: numerical_gradient(lambda p: loss(p, x, t), params)["W1"],
        "closed form": lambda: jnp.outer(x, jax.nn.softmax(predict(params, x)) - t),
    }[route]()
    np.testing.assert_allclose(dw, DW, rtol=2e-7 if dtype == jnp.float64 else 2e-6)


@float32_quickly
def test_parameters_have_the_chapters_names_shapes_and_scale(dtype):
    params = init_network(jax.random.key(0), (784, 100, 10), dtype=dtype)
    assert {name: p.shape for name, p in params.items()} == {
        "W1": (784, 100),
        "b1": (100,),
        "W2": (100, 10),
        "b2": (10,),
    }
    assert {p.dtype for p in params.values()} == {dtype}
    assert float(params["W1"].std()) == pytest.approx(0.01, rel=0.02) and not bool(
        params["b1"].any()
    )


def test_each_layer_is_drawn_by_a_key_of_its_own():
    params = init_network(jax.random.key(0), (3, 3, 3))
    assert not np.any(params["W1"] == params["W2"])


def test_the_draw_does_not_depend_on_x64():
    plain = init_network(jax.random.key(0), (4, 3))
    with jax.enable_x64(True):
        wide = init_network(jax.random.key(0), (4, 3))
    assert np.array_equal(plain["W1"], wide["W1"])


@float32_quickly
@pytest.mark.parametrize("activation", [jax.nn.sigmoid, jax.nn.relu, jnp.tanh])
def test_any_depth_and_activation_by_hand(dtype, activation):
    params = init_network(jax.random.key(1), (4, 3, 5, 2), 0.5, dtype)
    x = jnp.linspace(-1, 1, 8, dtype=dtype).reshape(2, 4)
    by_hand = (
        activation(activation(x @ params["W1"] + params["b1"]) @ params["W2"] + params["b2"])
        @ params["W3"]
        + params["b3"]
    )
    np.testing.assert_allclose(predict(params, x, activation), by_hand, rtol=1e-6)
    np.testing.assert_allclose(predict(params, x[0], activation), by_hand[0], rtol=1e-6)
