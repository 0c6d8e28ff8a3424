"""What a run is fed: memory maps, functions that give batches, and what a thread gathers ahead."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit
from slow import slow_but

from jaxnn import Status
from jaxnn.training.examples import Examples

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3)).astype(np.float32)
T = (X @ np.array([1.0, -2.0, 0.5])).astype(np.float32)
START = {"w": jnp.zeros(3)}


def linear(params, x, t):
    return jnp.mean((x @ params["w"] - t) ** 2)


def noisy(params, x, t, *, key):
    return linear(params, x + 0.01 * jax.random.normal(key, x.shape), t)


def batches(epoch, size=8):
    """An epoch's batches in an order of its own; the last has two examples."""
    order = np.random.default_rng(epoch).permutation(50)
    for first in range(0, 50, size):
        rows = order[first : first + size]
        yield X[rows], T[rows]


def by_hand(loss, optimizer, epochs, keyed=False):
    """The same steps, one after the other."""
    params, losses = START, []
    state = optimizer.init(params)
    for epoch in range(1, epochs + 1):
        for step, batch in enumerate(batches(epoch)):
            key = jax.random.fold_in(jax.random.fold_in(KEY, epoch), step)
            more = {"key": key} if keyed else {}
            value, gradient = jax.value_and_grad(loss)(params, *batch, **more)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            losses.append(float(value))
    return params, losses


@pytest.mark.parametrize("loss, keyed", [(linear, False), (noisy, True)])
def test_a_function_gives_the_batches_of_each_epoch(loss, keyed):
    optimizer = optax.adam(0.1)
    params, losses = by_hand(loss, optimizer, 3, keyed)
    result = fit(loss, START, batches, optimizer, key=KEY, epochs=3)
    assert result.status == Status("finished", 21) and len(result.history.seconds) == 3
    np.testing.assert_allclose(result.history.step_loss, losses, rtol=1e-4)
    np.testing.assert_allclose(result.params["w"], params["w"], rtol=1e-4)


@pytest.mark.parametrize("every", slow_but([1], [1, 3, 10]))
def test_a_run_fed_by_a_function_is_resumed_to_the_bit(tmp_path, every):
    run = {"key": KEY, "test": (X, T)}
    whole = fit(noisy, START, batches, optax.adam(0.1), epochs=3, **run)
    saved = {"checkpoint": tmp_path, "every": every, "keep": 50}
    fit(noisy, START, batches, optax.adam(0.1), epochs=3, max_steps=11, **run, **saved)
    rest = fit(noisy, START, batches, optax.adam(0.1), epochs=3, resume=True, **run, **saved)
    np.testing.assert_array_equal(rest.params["w"], whole.params["w"])
    np.testing.assert_array_equal(rest.history.step_loss, whole.history.step_loss)
    assert rest.history.metrics["test_loss"][-1] == whole.history.metrics["test_loss"][-1]


def test_a_run_fed_by_a_function_may_have_steps_alone_and_then_says_so():
    told = []
    run = {"key": KEY, "max_steps": 10, "on_progress": told.append}
    result = fit(linear, START, batches, optax.sgd(0.1), **run)
    assert result.status == Status("finished", 10)
    assert (told[-1].step, told[-1].steps, told[-1].epochs, told[-1].epoch) == (10, 10, None, 2)


@pytest.mark.slow
def test_sets_to_measure_may_be_functions_too_and_give_the_same_means():
    run = {"key": KEY, "epochs": 2}
    of_arrays = fit(linear, START, batches, optax.sgd(0.1), test=(X, T), **run)
    calls = []

    def sets(epoch):
        calls.append(epoch)
        return batches(epoch)

    of_batches = fit(linear, START, batches, optax.sgd(0.1), test=sets, **run)
    assert list(of_batches.history.metrics) == ["test_loss"] and set(calls) == {1}
    np.testing.assert_allclose(
        of_batches.history.metrics["test_loss"], of_arrays.history.metrics["test_loss"], rtol=1e-5
    )
    mixed = fit(linear, START, (X, T), optax.sgd(0.1), test=batches, batch_size=8, **run)
    assert list(mixed.history.metrics) == ["train_loss", "test_loss"]


def test_the_function_is_called_once_an_epoch():
    calls = []

    def counted(epoch):
        calls.append(epoch)
        return list(batches(epoch))

    fit(linear, START, counted, optax.sgd(0.1), key=KEY, epochs=3)
    assert calls == [1, 2, 3]


def test_what_the_function_raises_goes_on_up_once_the_run_is_saved(tmp_path):
    def failing(epoch):
        yield from batches(epoch)
        if epoch == 2:
            raise OSError("the server is gone")

    run = {"key": KEY, "epochs": 3, "checkpoint": tmp_path, "every": 1000}
    with pytest.raises(OSError, match="the server is gone"):
        fit(linear, START, failing, optax.sgd(0.1), **run)
    rest = fit(linear, START, batches, optax.sgd(0.1), resume=True, **run)
    whole = fit(linear, START, batches, optax.sgd(0.1), key=KEY, epochs=3)
    np.testing.assert_array_equal(rest.history.step_loss, whole.history.step_loss)


def of(*batches):
    return lambda epoch: iter(batches)


@pytest.mark.parametrize(
    "data, error, message",
    [
        (of(), ValueError, r"`data\(1\)` must yield at least one batch. Got none."),
        (lambda epoch: 3, TypeError, r"`data\(1\)` must be an iterable of batches. Got int 3."),
        (of(X), TypeError, r"`a batch of data\(1\)` must be a tuple of arrays"),
        (of((X, T[:3])), ValueError, r"the same number of examples"),
        (
            of((X, T), (X[:, :2], T)),
            ValueError,
            r"`a batch of data\(1\)\[0\]` must have shape \(1, 3\), like `the first of data\(1\)",
        ),
        (
            of((X, T), (X.astype(np.float16), T)),
            TypeError,
            r"`a batch of data\(1\)` must have dtype float32. Got float16",
        ),
        (
            lambda epoch: batches(epoch) if epoch < 2 else iter(()),
            ValueError,
            r"`data\(2\)` must yield at least one batch, .* Got none.",
        ),
    ],
)
def test_a_function_that_gives_something_else_is_told(own_errors, data, error, message):
    with pytest.raises(error, match=message):
        fit(linear, START, data, optax.sgd(0.1), key=KEY, epochs=2)


@pytest.mark.parametrize("more", [{"batch_size": 5}, {"replacement": True}, {"stream": True}])
def test_what_the_function_decides_is_not_asked_for_beside_it(own_errors, more):
    with pytest.raises(ValueError, match="must be left out if `data` is a function"):
        fit(linear, START, batches, optax.sgd(0.1), key=KEY, **more)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"metrics": lambda p, x, t: {}}, "`test` must be given with `metrics`"),
        ({"measure": ("train",)}, "`test` must be given with `measure`"),
        (
            {"evaluate_steps": 3},
            "`test`, `metrics` or `patience` must be given with `evaluate_steps`",
        ),
        ({"data": lambda: [(X, T)]}, "`data` must accept the given arguments"),
        ({"on_progress": lambda: 1}, "`on_progress` must accept the given arguments"),
    ],
)
def test_what_would_never_happen_is_refused(own_errors, more, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call = {"data": batches, "key": KEY, **more}
        fit(linear, START, optimizer=optax.sgd(0.1), **call)


def test_float64_examples_of_numpy_are_taken_without_a_warning():
    wide = X.astype(np.float64), T.astype(np.float64)
    for stream in (False, True):
        fit(linear, START, wide, optax.sgd(0.1), key=KEY, epochs=1, stream=stream, test=wide)


def test_no_thread_is_left_when_a_run_ends_early():
    def endless(epoch):
        while True:
            yield X, T

    before = threading.active_count()
    fit(linear, START, endless, optax.sgd(0.1), key=KEY, max_steps=3)
    end = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    "batch_size, replacement", slow_but([(10, True)], [(8, False), (10, True), (50, False)])
)
def test_a_memory_map_trains_as_the_array_does(tmp_path, monkeypatch, batch_size, replacement):
    monkeypatch.setattr("jaxnn.training.examples.PIECE", 2 * batch_size * 16)  # two steps a piece
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    run = {"key": KEY, "batch_size": batch_size, "epochs": 3, "replacement": replacement}
    whole = fit(noisy, START, (X, T), optax.adam(0.1), stream=False, **run)
    pieces = fit(noisy, START, (mapped, T), optax.adam(0.1), test=(mapped, T), **run)
    np.testing.assert_array_equal(pieces.history.step_loss, whole.history.step_loss)
    expected = float(linear(whole.params, X, T))
    if not replacement:
        key = jax.random.fold_in(KEY, 0)
        sizes = [min(batch_size, 50 - i) for i in range(0, 50, batch_size)]
        parts = [
            noisy(whole.params, X[i : i + n], T[i : i + n], key=key) * n
            for i, n in zip(range(0, 50, batch_size), sizes, strict=True)
        ]
        expected = float(sum(parts)) / 50
        assert pieces.history.metrics["test_loss"][-1] == pytest.approx(expected, rel=1e-5)


def test_a_pace_of_one_step_does_not_gather_a_piece_anew(monkeypatch):
    """Each example is read once an epoch, however short the chunks are."""
    monkeypatch.setattr("jaxnn.training.run.paced", lambda *_: 1)
    read = []

    class Counted(np.ndarray):
        def __getitem__(self, rows):
            if isinstance(rows, np.ndarray):
                read.append(len(rows))
            return super().__getitem__(rows)

    monkeypatch.setattr("jaxnn.training.examples.PIECE", 2 * 10 * 16)
    made = Examples.of

    def counted(*args):
        examples = made(*args)
        return examples._replace(data=(examples.data[0].view(Counted), examples.data[1]))

    run = {"key": KEY, "batch_size": 10, "epochs": 2}
    monkeypatch.setattr("jaxnn.training.examples.Examples.of", counted)
    fit(linear, START, (X, T), optax.sgd(0.1), stream=True, **run)
    assert sum(read) == 2 * 60  # three pieces of two steps, of which the last is filled up


def test_examples_are_gathered_while_steps_are_taken():
    """A generator that takes as long as the steps does not double the time."""
    ready = [(X, T)] * 12
    slow = jax.jit(lambda w, x: jax.lax.fori_loop(0, 400, lambda i, y: jnp.tanh(y @ w), x))

    def heavy(params, x, t):
        return linear(params, x, t) + 0 * jnp.sum(slow(jnp.eye(3) * params["w"], x))

    def waiting(epoch):
        for batch in ready:
            time.sleep(0.05)
            yield batch

    def seconds(data):
        began = time.perf_counter()
        fit(heavy, START, data, optax.sgd(0.01), key=KEY, epochs=1)
        return time.perf_counter() - began

    seconds(lambda epoch: ready)
    assert seconds(waiting) < 12 * 0.05 + seconds(lambda epoch: ready) + 1.0
