"""`train`: the loop of `fit` with any step."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from versions import since

import jaxnn
from jaxnn import Feeding, Measuring, Reporting, Saving, Status, train
from jaxnn.training.steps import across_epochs

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 12).reshape(12, 1)
PAIRS = (X, 2 * X + 1)
START = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
ADAM = optax.adam(0.1)
RUN = {"key": KEY, "batch_size": 4}


def linear(params, x, t):
    return jnp.mean((x @ params["w"] + params["b"] - t) ** 2)


def noisy(params, x, t, *, key):
    return linear(params, x + 0.1 * jax.random.normal(key, x.shape), t)


def descend(state, batch, key):
    """The step that `fit` takes."""
    params, opt_state = state
    loss, gradient = jax.value_and_grad(noisy)(params, *batch, key=key)
    updates, opt_state = ADAM.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": loss, "double": 2 * loss}


def measured(state, batch):
    return {"loss": linear(state[0], *batch)}


def begin():
    return START, ADAM.init(START)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("batch_size", [4, 12])
def test_step_s_of_epoch_e_has_the_documented_key(batch_size):
    step = lambda state, batch, key: (state, {"loss": jax.random.uniform(key)})  # noqa: E731
    drawn = train(step, begin(), PAIRS, key=KEY, batch_size=batch_size, epochs=2).history.step_loss
    places = itertools.product((1, 2), range(12 // batch_size))
    key_of = lambda e, s: jax.random.fold_in(jax.random.fold_in(KEY, e), s)  # noqa: E731
    wanted = [jax.random.uniform(key_of(*place)) for place in places]
    np.testing.assert_array_equal(drawn, np.array(wanted))


@pytest.mark.parametrize("batch_size", [4, 12])
def test_many_examples_are_shuffled_once_an_epoch_and_train_to_the_same_bits(
    monkeypatch, batch_size
):
    run = {"key": KEY, "batch_size": batch_size, "epochs": 4}
    one = train(descend, begin(), PAIRS, **run)
    monkeypatch.setattr("jaxnn.training.train.SHUFFLED_AGAIN", 11)
    monkeypatch.setattr(
        "jaxnn.training.run.across_epochs", {4: None, 12: across_epochs}[batch_size]
    )
    other = train(descend, begin(), PAIRS, **run)
    same((one.state, one.history.step_loss), (other.state, other.history.step_loss))


@pytest.mark.parametrize("batch_size", [4, 5, 12])
@pytest.mark.parametrize("large", [False, pytest.param(True, marks=since(0, 10))])
def test_it_is_the_loop_of_fit_to_the_bit(monkeypatch, batch_size, large):
    if large:
        monkeypatch.setattr("jaxnn.training.steps.LARGE", 1)
    run = {"key": KEY, "batch_size": batch_size, "epochs": 4}
    fitted = jaxnn.fit(noisy, START, PAIRS, ADAM, **run)
    trained = train(descend, begin(), PAIRS, **run)
    same(trained.state, (fitted.params, fitted.opt_state))
    same(trained.history.step_loss, fitted.history.step_loss)
    same(dict(trained.history.aux), {"double": 2 * fitted.history.step_loss})
    assert trained.status == Status("finished", 4 * -(-12 // batch_size))
    assert repr(trained) == f"<Trained: finished; History: steps {trained.status.step}>"


def test_a_resumed_run_takes_the_same_steps(tmp_path):
    whole = train(descend, begin(), PAIRS, epochs=4, **RUN)
    train(descend, begin(), PAIRS, epochs=2, saving=Saving(tmp_path), **RUN)
    resumed = Saving(tmp_path, resume=True)
    rest = train(descend, begin(), PAIRS, epochs=4, saving=resumed, **RUN)
    same(rest.state, whole.state)
    same(rest.history.step_loss, whole.history.step_loss)
    with pytest.raises(ValueError, match="`state` must be .*, as in the checkpoint"):
        train(lambda s, b, k: (s, {"loss": 0.0}), 1.0 * X, PAIRS, saving=resumed, **RUN)


def batches_of(count):
    """The first `count` of three batches, in each epoch."""
    split = [x.reshape(3, 4, 1)[:count] for x in PAIRS]
    return lambda epoch: zip(*split, strict=True)


@pytest.mark.parametrize("steps, count", [(2, 3), (3, 3), (4, 3), (2, 2)])
def test_a_run_of_batches_goes_on_after_its_last_step(tmp_path, steps, count):
    whole = train(descend, begin(), batches_of(count), key=KEY, epochs=3)
    train(descend, begin(), batches_of(3), key=KEY, max_steps=steps, saving=Saving(tmp_path))
    resumed = Saving(tmp_path, resume=True)
    rest = train(descend, begin(), batches_of(count), key=KEY, epochs=3, saving=resumed)
    same(rest.history.step_loss, whole.history.step_loss)


def test_what_is_measured_and_told_is_of_the_state():
    told = []
    measuring = Measuring(test={"far": (10 * X, PAIRS[1])}, metrics=measured, patience=2)
    reporting = Reporting(told.append, record="state")
    run = {"epochs": 100, "measuring": measuring, "reporting": reporting, **RUN}
    result = train(descend, begin(), PAIRS, **run)
    assert list(result.history.metrics) == ["train_loss", "far_loss"]
    assert result.status.reason == "no improvement"
    best = result.history.metrics["far_loss"].min()
    np.testing.assert_allclose(measured(result.state, (10 * X, PAIRS[1]))["loss"], best, rtol=1e-5)
    assert told[-1].state[1][0].count == told[-1].step and told[-1].params is None


def test_batches_have_the_form_of_the_data():
    def mean(state, batch, key):
        return state + jnp.mean(batch["x"]), {"loss": jnp.mean(batch["t"])}

    named = dict(zip("xt", PAIRS, strict=True))
    one = train(mean, jnp.zeros(()), named, epochs=2, **RUN)
    loader = [{name: array[i : i + 4] for name, array in named.items()} for i in (0, 4, 8)]
    other = train(mean, jnp.zeros(()), lambda epoch: loader, key=KEY, epochs=2)
    np.testing.assert_allclose(one.state, other.state, atol=1e-6)


def test_what_is_not_an_array_stays_as_it_is():
    def step(state, batch, key):
        assert state["name"] == "mine"
        return state | {"n": state["n"] + 1}, {"loss": 1.0 * state["n"]}

    state = {"n": jnp.int32(0), "name": "mine", "key": jax.random.key(7)}
    result = train(step, state, PAIRS, epochs=2, **RUN)
    assert result.state["n"] == 6 and result.state["name"] == "mine"
    same(result.history.step_loss, np.arange(6.0))
    counts = lambda state, batch, key: (state | {"k": state["k"] + 1}, {"loss": 0.0})  # noqa: E731
    with pytest.raises(TypeError, match="to change one, make it an array. Got 1 for 0"):
        train(counts, {"w": X, "k": 0}, PAIRS, epochs=1, **RUN)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Held:
    w: jax.Array
    unit: object = dataclasses.field(metadata={"static": True})


def test_a_state_that_holds_a_function_may_be_resumed_with_another(tmp_path):
    step = lambda s, b, k: (Held(s.w + 1, s.unit), {"loss": s.w})  # noqa: E731
    for epochs in (1, 2):
        begun, saving = Held(jnp.zeros(()), lambda x: x), Saving(tmp_path, resume=True)
        result = train(step, begun, PAIRS, epochs=epochs, saving=saving, **RUN)
    assert result.state.w == 6


def test_a_state_may_not_become_infinite():
    step = lambda s, b, k: (s / jnp.where(s == 3, 0, 1) + 1, {"loss": 0.0})  # noqa: E731
    result = train(step, jnp.zeros(()), PAIRS, epochs=2, **RUN)
    assert result.status == Status("not finite", 3, "state") and result.state == 3


@pytest.mark.parametrize("skip, reason, steps", [(False, "not finite", 2), (True, "finished", 6)])
def test_a_state_that_is_not_finite_ends_the_run_or_is_left_out(skip, reason, steps):
    def step(state, batch, key):
        grown = jnp.where(state["n"] == 2, jnp.nan, state["w"] + 1)
        return {"w": grown, "n": state["n"] + 1}, {"loss": 0.0}

    run = {"epochs": 2, "feeding": Feeding(skip_not_finite=skip), **RUN}
    result = train(step, {"w": jnp.zeros(()), "n": jnp.int32(0)}, PAIRS, **run)
    assert result.status[:2] == (reason, steps) and result.state["w"] == 2
    assert result.status.leaf == (None if skip else "state['w']")


REFUSED = {
    "no pair": (lambda s, b, k: s, "`step` must return (state, record). Got"),
    "another state": (
        lambda s, b, k: ({"w": s["w"][0], "b": s["b"]}, {"loss": 0.0}),
        "`the state of step(...)['w']` must have shape (1, 1), like `state['w']`. Got",
    ),
    "no loss": (
        lambda s, b, k: (s, {"cost": 0.0}),
        "a record with a 'loss'. Got one with ['cost']",
    ),
    "no scalar": (
        lambda s, b, k: (s, {"loss": s["b"]}),
        "`the record of step(...)` must be a dictionary of scalars. Got",
    ),
    "another dtype": (
        lambda s, b, k: (jax.tree.map(lambda x: x.astype("float16"), s), {"loss": 0.0}),
        "`step` must keep the dtypes of the state. Got float16",
    ),
    "None": (
        lambda s, b, k: (s, {"loss": 0.0, "x": None}),
        "`the record of step(...)` must be a dictionary of scalars. Got",
    ),
    "two arguments": (
        lambda s, b: (s, {"loss": 0.0}),
        "`step` must accept the given arguments (3 positional). Got (s, b)",
    ),
}


@pytest.mark.parametrize("step, message", REFUSED.values(), ids=REFUSED)
def test_a_step_that_does_not_fit_is_refused(own_errors, step, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        train(step, START, PAIRS, epochs=1, **RUN)


OPTIONS = {
    "patience alone": (
        Measuring(patience=2),
        "`metrics` must be given if `test` or `patience` is used",
    ),
    "no loss": (
        Measuring(metrics=lambda s, b: {"mse": linear(s[0], *b)}, patience=2),
        "`watch` must be given with `patience` if `metrics` returns no 'loss'. Got",
    ),
    "parameters": (Measuring(eval_params=max), "`eval_params` must be left out of `train`"),
}


@pytest.mark.parametrize("measuring, message", OPTIONS.values(), ids=OPTIONS)
def test_options_that_mean_nothing_here_are_refused(own_errors, measuring, message):
    with pytest.raises(ValueError, match=message):
        train(descend, begin(), PAIRS, epochs=1, measuring=measuring, **RUN)
    with pytest.raises(ValueError, match=r"`record` must name some of \('state',\)"):
        train(descend, begin(), PAIRS, epochs=1, reporting=Reporting(record="params"), **RUN)


def test_a_second_run_compiles_nothing():
    traces = []

    def step(state, batch, key):
        traces.append(None)
        return descend(state, batch, key)

    train(step, begin(), PAIRS, epochs=2, **RUN)
    with jax.log_compiles(False):
        before = len(traces)
        train(step, begin(), PAIRS, epochs=3, **RUN)
    assert len(traces) > before  # traced anew, as what it reads may have changed
