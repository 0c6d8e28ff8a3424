"""Steps of a run: which optimisers and gradients they take, and what happens where they fail."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit

from jaxnn import DivergenceWarning, Status

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 12).reshape(12, 1)
PAIRS = (X, 2 * X + 1)
START = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}


def linear(params, x, t):
    return jnp.mean((x @ params["w"] + params["b"] - t) ** 2)


# ---------------------------------------------------------------- steps that are not finite


def root(p, x, t):
    return jnp.mean(jnp.sqrt(x @ p["w"]) - t) ** 2


SOME = (jnp.abs(PAIRS[0]) + 1).at[jnp.array([2, 7])].set(0.0), PAIRS[1]


@pytest.mark.parametrize("data", [SOME, lambda epoch: [SOME]], ids=["arrays", "function"])
@pytest.mark.parametrize("batch_size", [12, 4])
def test_the_examples_to_blame_are_named(data, batch_size):
    start = {"w": jnp.ones((1, 1))}
    size = {"batch_size": batch_size} if data is SOME else {}
    status = fit(root, start, data, optax.sgd(0.1), key=KEY, epochs=2, **size).status
    assert status.reason == "not finite" and "`sqrt`" in status.cause
    assert set(status.examples) <= {2, 7} and status.examples
    assert f"examples={status.examples}" in repr(status)


def test_steps_that_are_not_finite_are_left_out_if_asked():
    start = {"w": jnp.ones((1, 1))}
    run = {"key": KEY, "epochs": 3, "batch_size": 4}
    result = fit(root, start, SOME, optax.adam(0.01), skip_not_finite=True, **run)
    good = np.isfinite(result.history.step_loss)
    assert result.status == Status("finished", 9)
    assert jnp.isfinite(result.params["w"]).all() and result.params["w"] != 1
    assert result.opt_state[0].count < 9 and np.isfinite(good).all()


def test_if_all_steps_are_left_out_or_the_first_is_that_is_said():
    run = {"key": KEY, "epochs": 3, "batch_size": 4, "skip_not_finite": True}
    never = lambda p, x, t: linear(p, x, t) * jnp.nan  # noqa: E731
    with pytest.warns(RuntimeWarning, match="no step was finite, so all were skipped"):
        fit(never, START, PAIRS, optax.sgd(0.1), **run)
    late = lambda epoch: [(jnp.nan * X, X), *[PAIRS] * 3]  # noqa: E731
    del run["batch_size"]
    with pytest.warns(DivergenceWarning):
        fit(linear, START, late, optax.sgd(6.0), **run)


def test_what_is_not_finite_from_the_start_is_not_watched():
    start = START | {"mask": jnp.array([0.0, -jnp.inf])}
    run = {"key": KEY, "epochs": 2, "batch_size": 4}
    result = fit(linear, start, PAIRS, optax.sgd(0.1), **run)
    assert result.status == Status("finished", 6)
    nan = START | {"w": jnp.full((1, 1), jnp.nan)}
    result = fit(linear, nan, PAIRS, optax.sgd(0.1), **run)
    assert result.status[:3] == ("not finite", 0, "loss")


class Count(NamedTuple):
    count: jax.Array


def broken_state(after):
    """An optimiser whose state becomes NaN, though no parameter does."""
    init = lambda params: Count(jnp.zeros(()))  # noqa: E731

    def update(gradient, state, params=None):
        count = state.count + 1
        return gradient, Count(jnp.where(count > after, jnp.nan, count))

    return optax.GradientTransformation(init, update)


def test_the_state_is_watched_too():
    run = {"key": KEY, "epochs": 3, "batch_size": 4}
    result = fit(linear, START, PAIRS, broken_state(4), **run)
    assert result.status[:3] == ("not finite", 4, "opt_state.count")

    def stateful(p, state, x, t):
        return linear(p, x, t), jnp.where(state > 1, jnp.nan, state + 1)

    run |= {"model_state": jnp.zeros(())}
    result = fit(stateful, START, PAIRS, optax.sgd(0.1), **run)
    assert result.status[:3] == ("not finite", 2, "model_state")


# ---------------------------------------------------------------- every optimiser, every gradient

WRAPPED = {
    "sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
    "sam, opaque": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
    "sophia": lambda: optax.contrib.sophia(0.1),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "accumulated": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
    "accumulated, with the loss": lambda: optax.MultiSteps(optax.polyak_sgd(), 2),
}
# Aliases and contributions that take a learning rate alone.
NAMED = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars
    lbfgs lion nadam nadamw novograd optimistic_gradient_descent polyak_sgd radam rmsprop
    rprop sgd sign_sgd sm3 yogi
"""
CONTRIBUTED = "acprop ademamix dadapt_adamw dowg momo momo_adam muon prodigy"
OPTIMIZERS = (
    WRAPPED
    | {name: lambda name=name: getattr(optax, name)(0.1) for name in NAMED.split()}
    | {name: lambda name=name: getattr(optax.contrib, name)(0.1) for name in CONTRIBUTED.split()}
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_optax_runs(name):
    optimizer = OPTIMIZERS[name]()
    result = fit(linear, START, PAIRS, optimizer, key=KEY, epochs=2, batch_size=4)
    assert result.status == Status("finished", 6)
    assert any((result.params[k] != START[k]).any() for k in START)


def test_a_gradient_of_the_users_has_the_arguments_of_the_loss():
    seen = []

    def clipped(loss):
        def gradient(params, x, t, *, key):
            seen.append((loss.__name__, tuple(sorted(params)), x.shape, t.shape))
            g = jax.grad(loss)(params, x, t, key=key)
            return jax.tree.map(lambda g: jnp.clip(g, -1, 1), g)

        return gradient

    def with_noise(p, x, t, *, key):
        return linear(p, x, t) + 0 * jax.random.normal(key)

    params = {**START, "n": jnp.arange(3)}
    result = fit(
        with_noise, params, PAIRS, optax.sgd(0.1), key=KEY, epochs=1, batch_size=4, grad=clipped
    )
    assert result.status.reason == "finished"
    assert set(seen) == {("with_noise", ("b", "n", "w"), (4, 1), (4, 1))}
