"""Training: whole epochs, what the history says, and that the network learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import accuracy, fit, init_network, load_digits, loss, numerical_grad, predict

KEY = jax.random.key(0)


def linear(params, x, t):
    return jnp.mean((x @ params["w"] - t) ** 2)


def linear_case(count=25):
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(count, 3)), jnp.float32)
    return {"w": jnp.zeros(3)}, (x, x @ jnp.array([1.0, -2.0, 0.5]))


def test_the_digits_are_learned():
    digits = load_digits()
    metrics = lambda p: {"test_accuracy": accuracy(predict(p, digits.x_test), digits.t_test)}  # noqa: E731
    result = fit(
        loss, init_network(KEY, (64, 50, 10)), (digits.x_train, digits.t_train), optax.sgd(0.5),
        key=KEY, epochs=100, metrics=metrics,
    )  # fmt: skip
    history = result.history
    assert history.step_loss.shape == (1500,) and history.metrics["test_accuracy"].shape == (100,)
    assert history.step_loss[0] == pytest.approx(np.log(10), rel=0.01) and history.metrics["test_accuracy"][-1] > 0.95


@pytest.mark.parametrize("batch_size, steps", [(10, 3), (25, 1), (100, 1), (1, 25)])
def test_an_epoch_uses_every_example_once(batch_size, steps):
    params, (x, t) = linear_case()
    seen = lambda params, rows, _: jnp.sum(params["w"] * jnp.sum(rows, 0))  # its gradient is the rows that it saw  # noqa: E731
    result = fit(seen, params, (x, t), optax.sgd(1.0), key=KEY, epochs=1, batch_size=batch_size)
    assert result.history.step_loss.shape == (steps,)
    np.testing.assert_allclose(result.params["w"], -np.sum(np.asarray(x), 0), rtol=1e-4)


def test_the_step_loss_is_measured_before_the_update():
    params, data = linear_case()
    result = fit(linear, params, data, optax.sgd(0.1), key=KEY, epochs=2, batch_size=25)
    assert result.history.step_loss[0] == pytest.approx(float(linear(params, *data)), rel=1e-5)
    by_hand = params["w"] - 0.1 * jax.grad(linear)(params, *data)["w"]
    assert result.history.step_loss[1] == pytest.approx(float(linear({"w": by_hand}, *data)), rel=1e-5)


def test_numerical_and_automatic_gradients_train_alike():
    params, data = linear_case()
    ends = [
        fit(linear, params, data, optax.adam(0.1), key=KEY, epochs=5, batch_size=10, grad=grad).params["w"]
        for grad in (jax.grad, numerical_grad)
    ]
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_progress_reports_the_mean_loss_of_all_examples():
    params, data = linear_case()
    seen = []
    result = fit(
        linear, params, data, optax.sgd(0.1), key=KEY, epochs=3, batch_size=10,
        metrics=lambda p: {"size": jnp.sum(p["w"] ** 2)}, on_progress=lambda epoch, record: seen.append((epoch, record)),
    )  # fmt: skip
    losses = result.history.step_loss.reshape(3, 3)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    np.testing.assert_allclose([r["loss"] for _, r in seen], losses @ np.array([10, 10, 5]) / 25, rtol=1e-6)
    np.testing.assert_allclose([r["size"] for _, r in seen], result.history.metrics["size"])


def test_drawing_with_replacement_trains_too():
    params, data = linear_case()
    result = fit(linear, params, data, optax.sgd(0.1), key=KEY, epochs=40, batch_size=10, replacement=True)
    assert result.history.step_loss.shape == (120,) and result.history.step_loss[-1] < 1e-3


BAD = [
    ({"epochs": 0}, ValueError, "`epochs` must be an integer of at least 1. Got 0."),
    ({"batch_size": 1.5}, TypeError, "`batch_size` must be an integer. Got float 1.5."),
    ({"data": (jnp.ones(3), jnp.ones(2))}, ValueError, "`data` must be arrays with the same number of examples"),
    ({"data": (jnp.ones((0, 3)), jnp.ones(0))}, ValueError, "`data` must be arrays with the same number of examples"),
    ({"params": {"w": jnp.ones(3, int)}}, TypeError, r"`params\['w'\]` must be floating-point"),
    ({"loss": None}, TypeError, "`loss` must be a function. Got NoneType None."),
]


@pytest.mark.parametrize("change, error, message", BAD)
def test_bad_input_is_refused(own_errors, change, error, message):
    params, data = linear_case()
    call = {"loss": linear, "params": params, "data": data, "optimizer": optax.sgd(0.1), "key": KEY, **change}
    with pytest.raises(error, match=message):
        fit(**call)
