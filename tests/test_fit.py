"""Training: whole epochs, what the history says, and that the network learns."""

import inspect
import itertools
import re
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit
from slow import slow_but

import jaxnn
from jaxnn import (
    DivergenceWarning,
    History,
    Status,
    accuracy,
    init_network,
    load_checkpoint,
    load_digits,
    loss,
    minimize,
    numerical_grad,
    predict,
    sweep,
)
from jaxnn.data import shuffled
from jaxnn.training import cause
from jaxnn.training.measuring import compensated, paced
from jaxnn.training.steps import Chunk, Plan, run_chunk
from jaxnn.training.task import State

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(0)


def linear(params, x, t):
    return jnp.mean((x @ params["w"] - t) ** 2)


def linear_case(count=25):
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(count, 3)), jnp.float32)
    return {"w": jnp.zeros(3)}, (x, x @ jnp.array([1.0, -2.0, 0.5]))


def test_the_digits_are_learned():
    digits = load_digits()
    metrics = lambda p, x, t: {"accuracy": accuracy(predict(p, x), t)}  # noqa: E731
    result = fit(
        loss,
        init_network(KEY, (64, 50, 10)),
        (digits.x_train, digits.t_train),
        optax.sgd(0.5),
        key=KEY,
        epochs=100,
        metrics=metrics,
        test=(digits.x_test, digits.t_test),
    )
    assert list(result.history.metrics) == [
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
    ]
    assert result.status == Status("finished", 1500)
    history = result.history
    assert history.step_loss.shape == (1500,) and history.metrics["test_accuracy"].shape == (100,)
    assert (
        history.step_loss[0] == pytest.approx(np.log(10), rel=0.01)
        and history.metrics["test_accuracy"][-1] > 0.95
    )


@pytest.mark.parametrize("batch_size, steps", [(10, 3), (25, 1), (100, 1), (1, 25)])
def test_an_epoch_uses_every_example_once(batch_size, steps):
    params, (x, t) = linear_case()

    def seen(params, rows, _):
        return jnp.sum(params["w"] * jnp.sum(rows, 0))  # its gradient is the rows that it saw

    result = fit(seen, params, (x, t), optax.sgd(1.0), key=KEY, epochs=1, batch_size=batch_size)
    assert result.history.step_loss.shape == (steps,)
    np.testing.assert_allclose(result.params["w"], -np.sum(np.asarray(x), 0), rtol=1e-4)


def test_the_step_loss_is_measured_before_the_update():
    params, data = linear_case()
    result = fit(linear, params, data, optax.sgd(0.1), key=KEY, epochs=2, batch_size=25)
    assert result.history.step_loss[0] == pytest.approx(float(linear(params, *data)), rel=1e-5)
    by_hand = params["w"] - 0.1 * jax.grad(linear)(params, *data)["w"]
    assert result.history.step_loss[1] == pytest.approx(
        float(linear({"w": by_hand}, *data)), rel=1e-5
    )


def test_numerical_and_automatic_gradients_train_alike():
    params, data = linear_case()
    ends = [
        fit(
            linear, params, data, optax.adam(0.1), key=KEY, epochs=5, batch_size=10, grad=grad
        ).params["w"]
        for grad in (jax.grad, numerical_grad)
    ]
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_progress_reports_the_mean_loss_of_all_examples():
    params, data = linear_case()
    seen = []
    result = fit(
        linear,
        params,
        data,
        optax.sgd(0.1),
        key=KEY,
        epochs=3,
        batch_size=10,
        metrics=lambda p, x, t: {"size": jnp.sum(p["w"] ** 2)},
        on_progress=seen.append,
    )
    ends = [p for p in seen if p.record is not None]
    losses = result.history.step_loss.reshape(3, 3)
    assert [(p.epoch, p.epochs, p.step, p.steps) for p in ends] == [
        (1, 3, 3, 9),
        (2, 3, 6, 9),
        (3, 3, 9, 9),
    ]
    assert [p.step for p in seen] == sorted({p.step for p in seen})
    np.testing.assert_allclose(
        [p.loss for p in ends], losses @ np.array([10, 10, 5]) / 25, rtol=1e-6
    )
    np.testing.assert_allclose(
        [p.record["train_size"] for p in ends], result.history.metrics["train_size"]
    )


@pytest.mark.parametrize("count", slow_but([25, 2345], [25, 999, 1000, 2345]))
def test_measurements_are_means_over_all_examples(count):
    params, (x, t) = linear_case(count)
    params = {"w": jnp.array([1.0, 2.0, 3.0])}
    result = fit(linear, params, (x, t), optax.sgd(0.0), key=KEY, epochs=1, test=(x[:7], t[:7]))
    assert result.history.metrics["train_loss"][0] == pytest.approx(
        float(linear(params, x, t)), rel=1e-5
    )
    assert result.history.metrics["test_loss"][0] == pytest.approx(
        float(linear(params, x[:7], t[:7])), rel=1e-5
    )


def test_small_terms_are_added_to_a_large_one():
    total = np.float32(2**24), np.float32(0)  # to which float32 can add no 1
    for _ in range(100):
        total = compensated(total, np.float32(1))
    assert total[0] == 2**24 + 100


@pytest.mark.parametrize(
    "pace, taken, seconds, following",
    [(10, 10, 1.0, 5), (10, 10, 0.25, 20), (1, 1, 1e-9, 10), (4, 4, 100.0, 1), (7, 7, 0.0, 70)],
)
def test_the_next_chunk_takes_half_a_second_and_is_at_most_ten_times_as_long(
    pace, taken, seconds, following
):
    assert paced(pace, taken, seconds) == following


def test_every_example_may_be_drawn():
    drawn = Plan(5, 100, 1, replacement=True).order(KEY, 1)
    assert set(drawn.tolist()) == set(range(5)) and drawn.shape == (100,)


def same(a, b):
    return all(
        np.array_equal(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    "batch_size, replacement",
    slow_but([(7, False), (10, True)], itertools.product([10, 7, 25], [False, True])),
)
def test_streamed_examples_train_to_the_same_bits(monkeypatch, batch_size, replacement):
    params, data = linear_case()
    data = jax.tree.map(np.asarray, data)
    call = dict(key=KEY, epochs=3, batch_size=batch_size, replacement=replacement, test=data)
    whole = fit(linear, params, data, optax.adam(0.1), **call)
    monkeypatch.setattr("jaxnn.training.examples.PIECE", 2 * batch_size * 16)  # two steps a piece
    pieces = fit(linear, params, data, optax.adam(0.1), stream=True, **call)
    assert same(whole.params, pieces.params) and same(
        whole.history.step_loss, pieces.history.step_loss
    )
    np.testing.assert_allclose(
        whole.history.metrics["test_loss"], pieces.history.metrics["test_loss"], rtol=1e-6
    )


def test_the_callers_arrays_survive_and_a_second_or_resumed_run_compiles_nothing(
    tmp_path, compilations
):
    params, data = linear_case()
    counted = lambda params, x, t: linear(params, x, t)  # noqa: E731
    optimizer = optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.linear_schedule(0.1, 0.0, 100)
    )
    first = fit(counted, params, data, optimizer, key=KEY, epochs=2, batch_size=10, test=data)
    compiled = compilations()
    second = fit(counted, params, data, optimizer, key=KEY, epochs=5, batch_size=10, test=data)
    assert compilations() == compiled
    call = dict(key=KEY, batch_size=10, test=data, checkpoint=tmp_path, every=1)
    fit(counted, params, data, optimizer, epochs=1, **call)
    resumed = fit(counted, params, data, optimizer, epochs=5, resume=True, **call)
    np.testing.assert_array_equal(resumed.history.step_loss, second.history.step_loss)
    assert np.array_equal(first.history.step_loss, second.history.step_loss[:6])
    assert params["w"].tolist() == [0, 0, 0] and data[0].shape == (25, 3)


def test_a_notebook_shows_the_history_as_a_table():
    params, data = linear_case()
    html = fit(
        linear, params, data, optax.sgd(0.1), key=KEY, epochs=20, test=data
    ).history._repr_html_()
    assert (
        html.count("<tr>") == 11
        and "<td>train loss</td><td>test loss</td>" in html
        and "<p>steps: 20</p>" in html
    )


def test_each_row_of_the_table_is_that_of_its_epoch():
    metrics = {"train_loss": np.array([0.5, 0.25]), "grid": np.zeros((2, 3))}
    html = History(np.ones(4), metrics, np.array([1.0, 2.0]))._repr_html_()
    assert "<td>1</td><td>0.5000</td><td>1.00</td>" in html
    assert "<td>2</td><td>0.2500</td><td>2.00</td>" in html


def test_patience_gives_back_the_best_parameters():
    params, data = linear_case()
    watched = iter([5.0, 3.0, 4.0, 2.0, 3.0, 2.5, 2.0, 1.0])
    seen = []
    result = fit(
        linear,
        params,
        data,
        optax.sgd(0.01),
        key=KEY,
        epochs=50,
        batch_size=25,
        patience=3,
        watch=lambda record: seen.append(record["train_loss"]) or next(watched),
    )
    assert result.status == Status("no improvement", 7)
    assert float(linear(result.params, *data)) == pytest.approx(
        seen[3], rel=1e-5
    )  # 2.0 was the lowest
    assert len(result.history.metrics["train_loss"]) == 7


def square_roots(params, x):
    """Finite everywhere; its slope in `b`, which descends, is not where `b` is under 0. `a` has
    nothing to do with it.
    """
    return jnp.mean(jnp.sqrt(jnp.maximum(params["b"], 0.0)) + x) + 0 * jnp.sum(params["a"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("optimizer", [optax.sgd(0.25), optax.adam(0.25)], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    "batch_size", [10, 4]
)  # the step that goes wrong is within an epoch, or is a last one of 2 examples
def test_a_run_ends_with_the_state_before_the_step_that_is_not_finite(
    stream, optimizer, batch_size
):
    params = {"a": jnp.zeros(2), "b": jnp.array([2.0])}
    x = np.zeros((10, 1), np.float32)
    step, state, losses = params, optimizer.init(params), []
    while True:  # by hand, one step after the other
        value, gradient = jax.value_and_grad(square_roots)(step, x)
        losses.append(value)
        updates, after = optimizer.update(gradient, state, step)
        if not np.isfinite(updates["b"]).all():
            break
        step, state = optax.apply_updates(step, updates), after
    result = fit(
        square_roots,
        params,
        (x,),
        optimizer,
        key=KEY,
        epochs=99,
        batch_size=batch_size,
        stream=stream,
    )
    assert result.status[:3] == ("not finite", len(losses) - 1, "params['b']")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result[:2], (step, state)
    )
    np.testing.assert_allclose(result.history.step_loss, losses, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_a_run_before_its_step():
    def falling(params, x):
        return jnp.mean(jnp.log(params["w"]) + 0 * x)  # w = 1, 0.5, -0.5: no logarithm

    result = fit(falling, {"w": jnp.ones(())}, (jnp.ones(4),), optax.sgd(0.5), key=KEY, epochs=9)
    assert result.status[:3] == ("not finite", 2, "loss") and float(result.params["w"]) == -0.5
    assert re.match(r"born at .*test_fit.py:\d+ \(falling\): `log`", result.status.cause)
    one = fit(
        lambda p, x: jnp.sum(p["a"]) * jnp.mean(x),
        {"a": jnp.ones(2)},
        (jnp.ones(3),),
        optax.sgd(np.inf),
        key=KEY,
    )
    assert one.status[:3] == ("not finite", 0, "params['a']")
    assert one.status.cause == "the loss and its gradient are finite; the optimiser's update is not"
    assert same(one.params, {"a": jnp.ones(2)})


@pytest.mark.parametrize("fed", ["array", "streamed", "replacement", "whole", "function", "keyed"])
def test_the_step_that_is_not_finite_is_explained_with_its_batch(fed):
    x = np.arange(1.0, 48.0).astype("float32")
    x[29] = -1

    def loss(w, x, **options):
        slip = 0 * jax.random.normal(options["key"]) if options else 0
        return w * jnp.mean(jnp.sqrt(x)) + slip

    def keyed(w, x, *, key):
        return loss(w, x, key=key)

    def batches(epoch):
        return ((part,) for part in np.split(x[:40], 10))

    data = batches if fed == "function" else (x,)
    feeding = jaxnn.Feeding(stream=fed == "streamed", replacement=fed == "replacement")
    size = {"whole": len(x), "function": None}.get(fed, 4)
    result = jaxnn.fit(
        keyed if fed == "keyed" else loss,
        jnp.float32(1),
        data,
        optax.sgd(1e-3),
        key=KEY,
        batch_size=size,
        epochs=9,
        feeding=feeding if fed != "function" else jaxnn.Feeding(),
    )
    assert result.status.reason == "not finite"
    assert re.match(r"born at .*test_fit.py:\d+ \(loss\): `sqrt`", result.status.cause)
    (batch,) = result.status.batch
    assert -1 in batch and len(batch) == {"whole": 47}.get(fed, 4 if -1 not in x[44:] else 3)
    assert repr(result.status).startswith("Status(reason='not finite', step=")


def test_the_step_that_is_not_finite_is_repeated_with_its_own_key():
    def loss(w, x, *, key):
        return w * jnp.mean(jnp.sqrt(jax.random.uniform(key) - 0.1) + 0 * x)

    run = {"key": KEY, "batch_size": 1, "epochs": 9}
    status = jaxnn.fit(loss, jnp.float32(1), (jnp.ones(40),), optax.sgd(1e-3), **run).status
    assert status.reason == "not finite" and "`sqrt`" in status.cause


def test_a_loss_that_refuses_to_be_called_again_does_not_end_the_call(monkeypatch):
    def refuse(loss, params):
        raise RuntimeError("once only")

    monkeypatch.setattr(cause, "origins", refuse)
    loss = lambda w, x: jnp.mean(jnp.log(w) + 0 * x)  # noqa: E731
    status = jaxnn.fit(loss, jnp.float32(-1), (jnp.ones(4),), optax.sgd(1.0), key=KEY).status
    assert status.cause == "unknown: repeating the step raised RuntimeError"


def test_what_a_run_ends_with_can_be_gone_on_with():
    params, data = linear_case()
    result = fit(linear, params, data, optax.adam(0.1), key=KEY, epochs=2)
    assert result.opt_state[0].count == 2 and not result.params["w"].is_deleted()


@pytest.fixture(params=slow_but(["SIGINT"], ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"]))
def caught(request):
    """A signal, with a handler as at a terminal: in the background some are ignored."""
    number = getattr(signal, request.param)
    before = signal.signal(number, signal.default_int_handler)
    yield number
    signal.signal(number, before)


@pytest.mark.parametrize("on_interrupt", ["raise", pytest.param("return", marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_rest_follows_later(
    tmp_path, caught, on_interrupt
):
    number = caught
    params, data = linear_case()
    call = dict(key=KEY, epochs=400, batch_size=10)
    before = signal.getsignal(number)
    saved = {"checkpoint": tmp_path, "on_interrupt": on_interrupt}

    def stop(progress):
        if progress.step > 600:
            signal.raise_signal(number)

    try:
        stopped = fit(linear, params, data, optax.adam(0.1), on_progress=stop, **saved, **call)
        assert on_interrupt == "return"
    except KeyboardInterrupt as interrupted:
        assert on_interrupt == "raise" and "after step" in str(interrupted)
        stopped = interrupted.fit
    assert stopped.status.reason == "interrupted" and 600 < stopped.status.step < 1200
    assert signal.getsignal(number) is before
    rest = fit(linear, params, data, optax.adam(0.1), checkpoint=tmp_path, resume=True, **call)
    whole = fit(linear, params, data, optax.adam(0.1), **call)
    assert same(rest.params, whole.params) and same(rest.history.step_loss, whole.history.step_loss)
    assert rest.status == Status("finished", 1200) and len(rest.history.seconds) == 400


@pytest.mark.parametrize("every", [1, 4, 5, 1000])
def test_a_resumed_run_is_the_uninterrupted_one_wherever_it_was_cut(tmp_path, every):
    params, data = linear_case()
    call = dict(
        key=KEY,
        batch_size=10,
        patience=50,
        test=data,
        optimizer=optax.adam(0.1),
        loss=linear,
        params=params,
        data=data,
    )
    whole = fit(epochs=9, **call)

    def crash(progress):
        if progress.step >= 11:
            raise RuntimeError("the machine went away")

    with pytest.raises(RuntimeError):
        fit(epochs=9, checkpoint=tmp_path, every=every, on_progress=crash, **call)
    rest = fit(epochs=9, checkpoint=tmp_path, every=every, resume=True, **call)
    assert (
        same(rest.params, whole.params)
        and same(rest.history[:2], whole.history[:2])
        and rest.status == whole.status
    )
    assert len(list(tmp_path.glob("*.npz"))) <= 3


def test_a_checkpoint_of_another_run_is_refused(tmp_path, own_errors):
    params, data = linear_case()
    call = dict(key=KEY, epochs=2, batch_size=10, checkpoint=tmp_path, resume=True)
    fit(linear, params, data, optax.adam(0.1), **call)
    for change, message in [
        ({"batch_size": 5}, "`batch_size` must be 10, as in the checkpoint. Got 5."),
        ({"key": jax.random.key(9)}, "`key` must be .*, as in the checkpoint"),
        (
            {"resume": False},
            "`checkpoint` must be an empty directory unless `resume` is set. Got .* with "
            "step_000000000006.npz.",
        ),
        ({"resume": "yes"}, "`resume` must be True, False or 'previous'. Got 'yes'."),
    ]:
        with pytest.raises((ValueError, FileExistsError), match=message):
            fit(linear, params, data, optax.adam(0.1), **{**call, **change})
    with pytest.raises(
        ValueError,
        match=r"`params\['w'\]` must be as in the checkpoint.* float32\[3\]. Got float32\[2\].",
    ):
        fit(lambda p, x, t: jnp.sum(p["w"]), {"w": jnp.ones(2)}, data, optax.adam(0.1), **call)
    with pytest.raises(ValueError, match="`optimizer` must be ScaleByAdam.* Got Trace"):
        fit(linear, params, data, optax.sgd(0.1, momentum=0.9), **call)


def test_a_sweep_trains_as_each_run_would_alone():
    params, data = linear_case()
    rates = jnp.array([0.01, 0.1, 1e30])
    runs = sweep(
        linear, params, data, optax.sgd, rates, key=KEY, epochs=4, batch_size=10, test=data
    )
    for rate, run in zip(rates, runs, strict=True):
        alone = fit(
            linear, params, data, optax.sgd(rate), key=KEY, epochs=4, batch_size=10, test=data
        )
        assert run.status[:3] == alone.status[:3]
        np.testing.assert_allclose(run.params["w"], alone.params["w"], rtol=1e-5)
        np.testing.assert_allclose(run.history.step_loss, alone.history.step_loss, rtol=1e-5)
        for epoch, value in enumerate(alone.history.metrics.get("test_loss", [])):
            assert run.history.metrics["test_loss"][epoch] == pytest.approx(value, rel=1e-4)
    assert [run.status.reason for run in runs] == ["finished", "finished", "not finite"]


def test_what_is_not_finite_from_the_start_of_a_sweep_is_not_watched():
    start = START | {"unused": jnp.array([jnp.nan, 1.0])}
    loss = lambda params, x, t: linear_by_name({n: params[n] for n in START}, x, t)  # noqa: E731
    call = {"key": KEY, "epochs": 2}
    (run,) = sweep(loss, start, PAIRS, optax.sgd, jnp.array([0.1]), **call)
    alone = fit(loss, start, PAIRS, optax.sgd(0.1), **call)
    assert run.status == alone.status and run.status.reason == "finished"


@pytest.mark.slow
def test_a_sweep_over_seeds_starts_each_run_from_its_own_key():
    digits = load_digits()
    data = (digits.x_train[:100], digits.t_train[:100])
    keys = jax.random.split(KEY, 3)
    start = lambda key: init_network(key, (64, 5, 10))  # noqa: E731
    runs = sweep(
        loss, start, data, optax.adam, jnp.full(3, 0.01), key=keys, epochs=2, batch_size=30
    )
    for key, run in zip(keys, runs, strict=True):
        alone = fit(loss, start(key), data, optax.adam(0.01), key=key, epochs=2, batch_size=30)
        np.testing.assert_allclose(run.history.step_loss, alone.history.step_loss, rtol=1e-5)


@pytest.mark.parametrize(
    "keys", [jax.random.key(0, impl="rbg"), jax.random.split(jax.random.key(0, impl="rbg"), 3)]
)
@pytest.mark.parametrize("replacement", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_of_a_sweep_see_the_batches_of_their_key_whatever_its_generator(keys, replacement):
    params, data = linear_case()
    options = {"epochs": 2, "batch_size": 10, "replacement": replacement}
    runs = sweep(linear, params, data, optax.sgd, jnp.full(3, 0.1), key=keys, **options)
    for run, key in zip(runs, keys if keys.ndim else [keys] * 3, strict=True):
        alone = fit(linear, params, data, optax.sgd(0.1), key=key, **options)
        np.testing.assert_allclose(run.history.step_loss, alone.history.step_loss, rtol=1e-5)


@pytest.mark.slow
def test_a_sweep_takes_optimisers_whose_state_is_the_parameters_or_the_values():
    params, data = linear_case()
    for optimizer in (
        optax.contrib.dog,  # keeps where it started
        lambda rate: optax.chain(
            optax.add_decayed_weights(rate), optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
        ),
    ):
        for rate, run in zip(
            (0.1, 0.2),
            sweep(linear, params, data, optimizer, jnp.array([0.1, 0.2]), key=KEY),
            strict=True,
        ):
            alone = fit(linear, params, data, optimizer(rate), key=KEY)
            np.testing.assert_allclose(run.history.step_loss, alone.history.step_loss, rtol=1e-5)


def test_steps_that_break_earlier_when_they_are_taken_again_end_before_that():
    # As where sums differ from one time to the next.
    breaks = itertools.chain([4, 2], itertools.repeat(None))

    def run(state, start, stop, short):
        broken = next(breaks)
        end = int(stop) if broken is None else broken + 1
        losses = jnp.where(jnp.arange(9) < end, 1.0, 0.0)
        return Chunk(
            jnp.int32(end),
            State(state.params + end, ()),
            jnp.array([True, broken is None]),
            losses,
            {},
        )

    chunk = run_chunk(
        run, State(jnp.zeros(()), ()), (), (np.int32(0), np.int32(9), np.bool_(False))
    )
    assert (int(chunk.reached), chunk.finite.tolist(), float(chunk.state.params)) == (
        3,
        [True, False],
        2,
    )
    assert float(jnp.sum(chunk.losses)) == 3


@pytest.mark.parametrize("step", [0, 2, 36])
def test_a_leaf_that_the_loss_does_not_see_ends_the_run_at_its_step(step):
    def update(updates, state, params):
        grown = jnp.where(state == step, jnp.inf, 1.0)
        return {"w": -0.1 * updates["w"], "idle": grown}, state + 1

    strange = optax.GradientTransformation(lambda params: jnp.int32(0), update)
    x = jnp.linspace(-1, 1, 60).reshape(20, 3)
    loss = lambda p, x: jnp.mean((x @ p["w"] - 1) ** 2)  # noqa: E731
    params = {"w": jnp.ones(3), "idle": jnp.zeros(())}
    run = {"key": KEY, "batch_size": 1}
    result = fit(loss, params, (x,), strange, epochs=5, **run)
    assert result.status[:3] == ("not finite", step, "params['idle']")
    assert len(result.history.step_loss) == step + 1  # the loss of the step that was not taken, too
    assert float(result.params["idle"]) == step
    whole = fit(loss, params, (x,), optax.sgd(0.1), max_steps=max(step, 1), **run)
    if step:
        np.testing.assert_array_equal(whole.params["w"], result.params["w"])


def test_a_resumed_run_remembers_losses_of_any_dtype(tmp_path):
    data = (jnp.ones((20, 3), jnp.bfloat16),)
    loss = lambda p, x: jnp.mean((x @ p["w"]) ** 2)  # noqa: E731
    call = {"key": KEY, "batch_size": 5, "checkpoint": tmp_path}
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    first = fit(loss, params, data, optax.sgd(0.01), epochs=1, **call).history.step_loss
    whole = fit(
        loss, params, data, optax.sgd(0.01), epochs=2, resume=True, **call
    ).history.step_loss
    assert (
        whole.dtype == jnp.bfloat16 and whole[:4].tolist() == first.tolist() and whole.shape == (8,)
    )


def test_drawing_with_replacement_trains_too():
    params, data = linear_case()
    result = fit(
        linear, params, data, optax.sgd(0.1), key=KEY, epochs=40, batch_size=10, replacement=True
    )
    assert result.history.step_loss.shape == (120,) and result.history.step_loss[-1] < 1e-3


def odd(bias=1.0):
    """Parameters with leaves of every kind."""
    return {
        "w": jnp.ones(3),
        "z": jnp.array([1 + 1j]),
        "bias": bias,
        "width": 3,
        "count": jnp.array(2),
        "key": jax.random.key(1),
        "activation": jnp.tanh,
        "name": "odd",
        "none": None,
    }


def odd_loss(p, x):
    noise = jax.random.normal(p["key"], (p["width"],))
    real = p["activation"](x * p["w"]) + p["bias"] + 0.01 * noise * p["count"]
    return jnp.mean(real**2) + jnp.mean(jnp.abs(p["z"] - 2j) ** 2)


@pytest.mark.parametrize(
    "train", slow_but(["fit", "sweep"], ["fit", "sweep", "resumed", "sweep over keys"])
)
def test_leaves_that_do_not_float_are_held_fixed(train, tmp_path):
    data, options = (jnp.ones((8, 3)),), {"key": KEY, "batch_size": 4}
    if train == "sweep":
        (result,) = sweep(odd_loss, odd(), data, optax.sgd, jnp.array([0.1]), epochs=30, **options)
    elif train == "sweep over keys":
        start = lambda key: odd(jax.random.normal(key))  # noqa: E731
        (result,) = sweep(odd_loss, start, data, optax.sgd, jnp.array([0.1]), epochs=30, **options)
    else:
        optimizer = optax.sgd(0.1)
        for epochs in (15, 30) if train == "resumed" else (30,):
            where = {"checkpoint": tmp_path, "resume": epochs == 30} if train == "resumed" else {}
            run = {**options, **where, "epochs": epochs}
            result = fit(odd_loss, odd(), data, optimizer, **run)
    end, start = result.params, odd()
    assert jax.tree.structure(end) == jax.tree.structure(start)
    assert (end["width"], end["activation"], end["name"]) == (3, jnp.tanh, "odd")
    assert end["count"] == 2 and end["key"] == start["key"]
    assert odd_loss(end, *data) < 0.01
    np.testing.assert_allclose(end["z"], [2j], atol=1e-4)  # along the conjugate of the gradient


@pytest.mark.slow
def test_numerical_and_automatic_gradients_train_complex_leaves_alike():
    ends = [
        fit(odd_loss, odd(), (jnp.ones((8, 3)),), optax.sgd(0.1), key=KEY, epochs=3, grad=grad)
        for grad in (jax.grad, numerical_grad)
    ]
    for name in ("w", "z", "bias"):
        np.testing.assert_allclose(*(end.params[name] for end in ends), rtol=1e-5)


def test_what_measures_is_compiled_once_while_the_steps_are(compilations, compiled_apart):
    params, (x, t) = linear_case()
    measured = {"one": (x, t), "other": (x[:7], t[:7])}
    call = dict(key=KEY, epochs=2, batch_size=10, test=measured)
    new = lambda params, x, t: 1.25 * linear(params, x, t)  # noqa: E731
    fit(linear, params, (x, t), optax.sgd(0.1), **call)  # so that the order's program is there
    before, apart = compilations(), compiled_apart()
    optimizer = optax.sgd(0.1)
    fit(new, params, (x, t), optimizer, **call)
    assert compiled_apart() - apart == 2  # three sets, of two forms
    assert compilations() - before == 2 + 1
    fit(new, params, (x, t), optimizer, **call)
    assert compilations() - before == 2 + 1


def test_what_is_treated_as_constant_may_change_without_a_compilation(compilations):
    def loss(p, x):
        return jnp.mean((p["w"] * p["count"] - x) ** 2)

    optimizer, data = optax.sgd(0.1), (jnp.ones((8, 3)),)
    run = {"key": KEY, "epochs": 100}
    first = fit(loss, {"w": jnp.ones(3), "count": jnp.array(2)}, data, optimizer, **run)
    before = compilations()
    second = fit(loss, {"w": jnp.ones(3), "count": jnp.array(4)}, data, optimizer, **run)
    assert compilations() == before
    np.testing.assert_allclose(first.params["w"], 2 * second.params["w"], rtol=1e-3)


OLD = {
    "test": ((jnp.ones((4, 3)),), "measuring=jaxnn.Measuring"),
    "patience": (3, "measuring=jaxnn.Measuring"),
    "checkpoint": ("run", "saving=jaxnn.Saving"),
    "replacement": (True, "feeding=jaxnn.Feeding"),
    "donate": (False, "start=jaxnn.Start"),
    "on_interrupt": ("return", "reporting=jaxnn.Reporting"),
}


@pytest.mark.parametrize("field", OLD)
def test_an_option_by_itself_still_counts_and_warns_where_it_has_moved(field, tmp_path):
    value, place = OLD[field]
    value = tmp_path / value if field == "checkpoint" else value
    call = (lambda w, x: jnp.mean((x - w) ** 2)), jnp.zeros(3), (jnp.ones((8, 3)),), optax.sgd(0.1)
    with pytest.warns(DeprecationWarning, match=f"`{field}` of `fit` has moved: {place}.{field}="):
        old = jaxnn.fit(*call, key=KEY, epochs=2, **{field: value})
    if field == "checkpoint":
        assert list((tmp_path / "run").glob("*.npz"))
        return
    new = fit(*call, key=KEY, epochs=2, **{field: value})
    np.testing.assert_array_equal(old.params, new.params)
    assert old.history.metrics.keys() == new.history.metrics.keys()


def test_a_name_that_is_no_option_is_refused(own_errors):
    call = (lambda w, x: jnp.mean((x - w) ** 2)), jnp.zeros(3), (jnp.ones((8, 3)),), optax.sgd(0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'patients'"):
        jaxnn.fit(*call, key=KEY, patients=3)
    with pytest.raises(TypeError, match="`saving` must be a Saving. Got "):
        jaxnn.fit(*call, key=KEY, saving="runs/first")


def test_fit_takes_no_more_than_fifteen_arguments():
    parameters = inspect.signature(jaxnn.fit).parameters
    assert len([name for name in parameters if name != "old"]) <= 15


# ---------------------------------------------------------------- what a loss may take and return

PAIRS = (jnp.linspace(-1, 1, 12).reshape(12, 1), jnp.linspace(1, 3, 12).reshape(12, 1))
START = {"w": jnp.zeros((1, 1))}


def noisy(params, x, t, *, key):
    return jnp.mean((x @ params["w"] + 0.1 * jax.random.normal(key, t.shape) - t) ** 2)


def maybe_noisy(params, x, t, key=None):
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, t.shape)
    return jnp.mean((x @ params["w"] + noise - t) ** 2)


@pytest.mark.parametrize("loss_of", [noisy, maybe_noisy])
def test_each_step_has_a_key_of_its_own(loss_of):
    run = {"key": KEY, "batch_size": 4, "epochs": 2}
    result = fit(loss_of, START, PAIRS, optax.sgd(0.0), test=PAIRS, **run)
    losses = []
    for epoch in (1, 2):
        of_epoch = jax.random.fold_in(KEY, epoch)
        order = shuffled(of_epoch, 12)
        for step in range(3):
            rows = order[4 * step : 4 * step + 4]
            key = jax.random.fold_in(of_epoch, step)
            losses.append(loss_of(START, PAIRS[0][rows], PAIRS[1][rows], key=key))
    np.testing.assert_allclose(result.history.step_loss, losses, rtol=1e-5)
    measured = result.history.metrics["test_loss"]
    assert measured[0] == measured[1]
    if loss_of is maybe_noisy:
        assert measured[0] == pytest.approx(float(maybe_noisy(START, *PAIRS)), rel=1e-6)


@pytest.mark.parametrize("every", slow_but([2], [1, 2, 5]))
def test_a_resumed_run_draws_the_same_keys(tmp_path, every):
    run = {"key": KEY, "batch_size": 4}
    whole = fit(noisy, START, PAIRS, optax.adam(0.1), epochs=4, **run)
    saved = {"checkpoint": tmp_path, "every": every, "keep": 20}
    fit(noisy, START, PAIRS, optax.adam(0.1), epochs=2, **run, **saved)
    again = fit(noisy, START, PAIRS, optax.adam(0.1), epochs=4, resume=True, **run, **saved)
    assert again.params["w"] == whole.params["w"]
    np.testing.assert_array_equal(again.history.step_loss, whole.history.step_loss)


def normed(params, state, x, t):
    """A running mean, as of batch normalisation, and what else is to be recorded."""
    mean = 0.9 * state["mean"] + 0.1 * jnp.mean(x)
    value = jnp.mean(((x - mean) @ params["w"] - t) ** 2)
    return value, ({"mean": mean}, {"mean": mean, "size": jnp.sum(params["w"] ** 2)})


def test_a_model_has_a_state_and_the_loss_an_auxiliary_output(tmp_path):
    run = {"key": KEY, "batch_size": 4, "model_state": {"mean": jnp.zeros(())}, "has_aux": True}
    data = (PAIRS[0] + 2, PAIRS[1])
    metrics = lambda p, s, x, t: {"mean": s["mean"], "hist": jnp.ones(3)}  # noqa: E731
    whole = fit(normed, START, data, optax.sgd(0.1), epochs=4, metrics=metrics, **run)
    means = whole.history.aux["mean"]
    assert means.shape == (12,) and whole.model_state["mean"] == means[-1]
    assert means.dtype == np.float32
    np.testing.assert_allclose(whole.history.metrics["train_mean"], means[2::3], rtol=1e-6)
    assert whole.history.metrics["train_hist"].shape == (4, 3)
    saved = {**run, "checkpoint": tmp_path, "metrics": metrics}
    fit(normed, START, data, optax.sgd(0.1), epochs=2, **saved)
    again = fit(normed, START, data, optax.sgd(0.1), epochs=4, resume=True, **saved)
    np.testing.assert_array_equal(again.history.aux["mean"], means)
    assert again.model_state["mean"] == whole.model_state["mean"]
    (swept,) = sweep(normed, START, data, optax.sgd, jnp.array([0.1]), epochs=4, **run)
    np.testing.assert_allclose(swept.history.aux["mean"], means, rtol=1e-6)
    np.testing.assert_allclose(swept.params["w"], whole.params["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
        optax.polyak_sgd(),
        pytest.param(optax.lbfgs(), marks=pytest.mark.slow),
    ],
    ids=["reduce_on_plateau", "polyak_sgd", "lbfgs"],
)
def test_optimisers_that_ask_for_the_loss_get_it(optimizer):
    result = fit(linear_by_name, START, PAIRS, optimizer, key=KEY, epochs=15, batch_size=12)
    best = np.linalg.lstsq(*map(np.asarray, PAIRS), rcond=None)[0]
    start = float(linear_by_name(START, *PAIRS))
    assert result.history.step_loss[-1] < start and result.status.reason == "finished"
    assert abs(result.params["w"] - best) < abs(best)
    found = minimize(lambda p: linear_by_name(p, *PAIRS), START, optimizer, max_steps=50)
    assert found.loss < start


def linear_by_name(params, x, t):
    return jnp.mean((x @ params["w"] - t) ** 2)


def test_an_average_of_the_parameters_is_measured_and_kept_as_best():
    optimizer = optax.chain(optax.sgd(0.3), optax.ema(0.9))
    halved = lambda params, opt_state: jax.tree.map(lambda x: x / 2, params)  # noqa: E731
    run = {"key": KEY, "epochs": 6, "batch_size": 4, "test": PAIRS, "patience": 6}
    result = fit(linear_by_name, START, PAIRS, optimizer, eval_params=halved, **run)
    best = int(np.argmin(result.history.metrics["test_loss"]))
    measured = float(linear_by_name(result.params, *PAIRS))
    assert measured == pytest.approx(result.history.metrics["test_loss"][best], rel=1e-5)


def test_the_best_parameters_come_with_the_optimisers_state_of_the_same_step():
    rates = optax.piecewise_constant_schedule(0.1, {6: 100.0})
    run = {"key": KEY, "epochs": 8, "batch_size": 4, "patience": 3, "test": PAIRS}
    result = fit(linear_by_name, START, PAIRS, optax.sgd(rates), **run)
    best = int(np.argmin(result.history.metrics["test_loss"])) + 1
    (count,) = [x for x in jax.tree.leaves(result.opt_state) if jnp.ndim(x) == 0]
    assert count == 3 * best < len(result.history.step_loss)


def test_what_is_watched_and_is_nan_is_told():
    run = {"key": KEY, "epochs": 3, "batch_size": 4, "patience": 3, "test": PAIRS}
    with pytest.warns(RuntimeWarning, match="NaN after epoch"):
        fit(linear_by_name, START, PAIRS, optax.sgd(0.1), watch=lambda _: jnp.nan, **run)


def test_a_run_goes_on_with_an_optimisers_state_without_files():
    optimizer, run = optax.adam(0.1), {"key": KEY, "batch_size": 12}
    whole = fit(linear_by_name, START, PAIRS, optimizer, epochs=4, **run)
    half = fit(linear_by_name, START, PAIRS, optimizer, epochs=2, **run)
    rest = fit(
        linear_by_name, half.params, PAIRS, optimizer, epochs=2, opt_state=half.opt_state, **run
    )
    np.testing.assert_allclose(rest.params["w"], whole.params["w"], rtol=1e-5)


def test_what_is_measured_fits_where_a_step_does():
    """At most `batch_size` examples at once."""
    sizes = set()

    def seen(params, x, t):
        sizes.add(x.shape[0])
        return linear_by_name(params, x, t)

    fit(seen, START, PAIRS, optax.sgd(0.1), key=KEY, epochs=1, batch_size=4, test=PAIRS)
    assert max(sizes) == 4


# ---------------------------------------------------------------- how long, and when measured


@pytest.mark.parametrize(
    "batch_size, replacement",
    slow_but([(3, False), (4, True)], itertools.product([3, 4, 12], [False, True])),
)
def test_chunks_across_epochs_are_those_epochs(batch_size, replacement):
    """Where something is measured each epoch comes back by itself."""
    run = {"key": KEY, "epochs": 30, "batch_size": batch_size, "replacement": replacement}
    across = fit(noisy, START, PAIRS, optax.adam(0.1), **run)
    apart = fit(noisy, START, PAIRS, optax.adam(0.1), test=PAIRS, **run)
    np.testing.assert_allclose(across.params["w"], apart.params["w"], rtol=1e-6)
    np.testing.assert_allclose(across.history.step_loss, apart.history.step_loss, rtol=1e-5)
    assert len(across.history.seconds) == len(apart.history.seconds) == 30


@pytest.mark.parametrize("every", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 100))])
def test_a_run_across_epochs_is_resumed_to_the_bit(tmp_path, every):
    run = {"key": KEY, "batch_size": 4}
    whole = fit(noisy, START, PAIRS, optax.adam(0.1), epochs=40, **run)
    saved = {"checkpoint": tmp_path, "every": every}
    fit(noisy, START, PAIRS, optax.adam(0.1), max_steps=50, **run, **saved)
    again = fit(noisy, START, PAIRS, optax.adam(0.1), epochs=40, resume=True, **run, **saved)
    assert same(again.params, whole.params)
    assert same(again.history.step_loss, whole.history.step_loss)


def test_a_step_across_epochs_that_is_not_finite_ends_the_run_before_it():
    hot = optax.sgd(optax.piecewise_constant_schedule(0.1, {20: 1e30}))
    result = fit(linear_by_name, START, PAIRS, hot, key=KEY, epochs=30, batch_size=4)
    assert result.status.reason == "not finite" and 20 < result.status.step < 30
    assert np.isfinite(result.params["w"]).all()


@pytest.mark.parametrize("measured", [False, True])
def test_a_run_has_as_many_steps_as_it_is_given(measured):
    test = {"test": PAIRS} if measured else {}
    run = {"key": KEY, "batch_size": 5, "max_steps": 7, **test}
    result = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), **run)
    assert result.status == Status("finished", 7) and len(result.history.step_loss) == 7
    assert len(fit(linear_by_name, START, PAIRS, optax.sgd(0.1), epochs=2, **run).history[0]) == 6


@pytest.mark.parametrize(
    "how, steps",
    [
        ({}, [3, 6, 9, 12, 15]),
        ({"evaluate_every": 2}, [6, 12, 15]),
        ({"evaluate_steps": 4}, [4, 8, 12, 15]),
    ],
)
def test_it_is_measured_when_that_is_asked_for(how, steps):
    run = {"key": KEY, "batch_size": 4, "epochs": 5, "test": PAIRS}
    history = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), **how, **run).history
    assert history.evaluated.tolist() == steps
    assert len(history.metrics["test_loss"]) == len(steps)
    assert "<table>" in history._repr_html_()
    last = history.metrics["test_loss"][-1]
    assert "<History: steps 15, train_loss " in repr(history)
    assert f", test_loss {last:.4g}>" in repr(history)


def test_a_fit_is_one_line():
    result = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), key=KEY, epochs=2, batch_size=4)
    assert repr(result) == "<Fit: finished; History: steps 6>"
    assert "reason=&#x27;finished&#x27;" in result._repr_html_()
    assert result.history._repr_html_() in result._repr_html_()


def test_patience_waits_for_a_set_that_is_measured():
    run = {"key": KEY, "batch_size": 4, "epochs": 2, "test": PAIRS, "patience": 2}
    result = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), measure=("train",), **run)
    assert list(result.history.metrics) == ["train_loss"]


def test_any_number_of_sets_is_measured_by_name():
    sets = {"valid": PAIRS, "far": (PAIRS[0] + 10, PAIRS[1])}
    run = {"key": KEY, "batch_size": 4, "epochs": 2, "test": sets}
    metrics = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), **run).history.metrics
    assert list(metrics) == ["train_loss", "valid_loss", "far_loss"]
    some = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), measure=("far",), **run)
    assert list(some.history.metrics) == ["far_loss"]
    np.testing.assert_allclose(some.history.metrics["far_loss"], metrics["far_loss"], rtol=1e-6)


@pytest.mark.parametrize("true", [bool, np.bool_])
def test_a_callback_ends_the_run(tmp_path, true):
    run = {"key": KEY, "batch_size": 4, "epochs": 50, "test": PAIRS, "checkpoint": tmp_path}
    stop = lambda progress: true(progress.epoch == 3)  # noqa: E731
    result = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), on_progress=stop, **run)
    assert result.status == Status("stopped", 9)
    rest = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), resume=True, **run)
    assert rest.status == Status("finished", 150)


def test_a_run_in_a_thread_is_stopped_and_saved_by_an_event(tmp_path):
    """Only the main thread receives signals."""
    stop, results = threading.Event(), []
    run = {"key": KEY, "batch_size": 4, "epochs": 10**6, "checkpoint": tmp_path}
    run["on_progress"] = lambda progress: stop.is_set()
    train = lambda: results.append(fit(linear_by_name, START, PAIRS, optax.sgd(0.1), **run))  # noqa: E731
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    thread = threading.Thread(target=train)
    thread.start()
    signal.raise_signal(signal.SIGTERM)
    thread.join(60)
    signal.signal(signal.SIGTERM, before)
    (result,) = results
    assert result.status.reason == "stopped"
    assert load_checkpoint(tmp_path).step == result.status.step


@pytest.mark.parametrize("returned", [7, "written", np.ones(3)], ids=str)
def test_a_callback_may_return_anything_else(returned):
    run = {"key": KEY, "batch_size": 4, "epochs": 2}
    tell = lambda progress: returned  # noqa: E731
    result = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), on_progress=tell, **run)
    assert result.status == Status("finished", 6)


def test_a_callback_is_told_the_loss_of_each_step():
    told = []
    tell = lambda progress: told.append((progress.step, progress.step_loss))  # noqa: E731
    run = {"key": KEY, "batch_size": 4, "epochs": 5, "test": PAIRS, "on_progress": tell}
    result = fit(linear_by_name, START, PAIRS, optax.sgd(0.1), **run)
    np.testing.assert_array_equal(np.concatenate([x for _, x in told]), result.history.step_loss)
    assert [len(x) for _, x in told] == np.diff([0, *(step for step, _ in told)]).tolist()


def test_what_a_callback_raises_goes_on_up_once_the_run_is_saved(tmp_path):
    run = {"key": KEY, "batch_size": 4, "epochs": 50, "test": PAIRS, "checkpoint": tmp_path}

    def fail(progress):
        if progress.epoch == 3:
            raise OSError("no space to draw")

    with pytest.raises(OSError, match="no space") as raised:
        fit(linear_by_name, START, PAIRS, optax.sgd(0.1), on_progress=fail, **run)
    assert load_checkpoint(tmp_path).step == raised.value.fit.status.step == 9


def test_a_run_that_diverges_says_so():
    with pytest.warns(DivergenceWarning, match="the loss went from .* by step 30"):
        fit(linear_by_name, START, PAIRS, optax.sgd(6.0), key=KEY, epochs=10, batch_size=4)


def test_a_number_that_a_loss_closes_over_as_an_array_may_change(compilations):
    def clipped(clip):
        def loss(p, x, t):
            return jnp.mean(jnp.clip(x @ p["w"] - t, -clip, clip) ** 2)

        run = {"key": KEY, "epochs": 1, "batch_size": 4}
        return fit(loss, START, PAIRS, optax.sgd(0.1), **run).history.step_loss[0]

    first, before = clipped(jnp.asarray(0.3)), compilations()
    assert clipped(jnp.asarray(0.2)) < first and compilations() == before


def test_a_loss_that_is_annealed_and_an_easy_first_batch_do_not_diverge():
    """The warning would be an error."""
    weighted = lambda p, x, t, beta: beta[0] * linear_by_name(p, x, t)  # noqa: E731
    weights = lambda epoch: np.full(12, 10.0**epoch, np.float32)  # noqa: E731
    annealed = lambda epoch: [(*PAIRS, weights(epoch))]  # noqa: E731
    result = fit(weighted, START, annealed, optax.sgd(1e-6), key=KEY, epochs=4)
    assert result.history.step_loss[-1] > 2 * result.history.step_loss[0]
    easy = lambda epoch: [(PAIRS[0], 0.01 + 0 * PAIRS[1]), PAIRS, PAIRS]  # noqa: E731
    result = fit(linear_by_name, START, easy, optax.sgd(1e-6), key=KEY, epochs=2)
    assert result.history.step_loss[-1] > 2 * result.history.step_loss[0]


def test_of_a_sweep_the_best_run_is_told():
    params, data = linear_case()
    seen, rates = [], jnp.array([0.0, 0.1, 0.01])
    call = {"key": KEY, "epochs": 1, "on_progress": seen.append}
    runs = sweep(linear, params, data, optax.sgd, rates, **call)
    losses = [float(run.history.metrics["train_loss"][-1]) for run in runs]
    assert [p.loss for p in seen] == [losses[1]] == [min(losses)]


@pytest.mark.slow
def test_the_values_of_a_sweep_may_be_a_pytree():
    values = {"lr": jnp.array([0.1, 0.2]), "momentum": jnp.array([0.0, 0.9])}
    optimizer = lambda v: optax.sgd(v["lr"], v["momentum"])  # noqa: E731
    run = {"key": KEY, "epochs": 3, "batch_size": 4}
    for i, swept in enumerate(sweep(linear_by_name, START, PAIRS, optimizer, values, **run)):
        one = {name: value[i] for name, value in values.items()}
        alone = fit(linear_by_name, START, PAIRS, optimizer(one), **run)
        np.testing.assert_allclose(swept.params["w"], alone.params["w"], rtol=1e-5)


@pytest.mark.parametrize("train", [fit, sweep])
def test_a_loss_sees_batches_of_the_size_that_is_asked_for_and_no_others(train):
    seen = set()

    def loss(p, x, t):
        seen.add(x.shape)
        parts = (
            x.reshape(2, -1, 3),
            t.reshape(2, -1),
        )  # of one example there are no halves
        return jnp.mean(jax.vmap(lambda x, t: (x @ p - t) ** 2)(*parts))

    data = jnp.ones((20, 3)), jnp.ones(20)
    optimizers = {fit: [optax.sgd(0.1)], sweep: [optax.sgd, jnp.array([0.1, 0.2])]}[train]
    train(loss, jnp.zeros(3), data, *optimizers, key=KEY, epochs=2, batch_size=4)
    assert seen == {(4, 3)}
