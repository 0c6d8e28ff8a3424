"""Data of a run that are not arrays in memory: loaders, dictionaries, files read in slices."""

import re
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit

import jaxnn

pytestmark = pytest.mark.promotes

KEY = jax.random.key(0)
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(12, 1)
PAIRS = (X, 2 * X + 1)
START = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
BATCHES = [tuple(a[i : i + 4] for a in PAIRS) for i in range(0, 12, 4)]
RUN = {"key": KEY, "epochs": 2}


def linear(params, x, t):
    return jnp.mean((x @ params["w"] + params["b"] - t) ** 2)


def by_name(params, batch):
    return linear(params, batch["x"], batch["t"])


def same(one, other):
    np.testing.assert_array_equal(one.history.step_loss, other.history.step_loss)
    np.testing.assert_array_equal(one.params["w"], other.params["w"])


class Tensor:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, "float32 of another library"

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class Loader:
    """Batches of tensors, anew in each epoch."""

    def __iter__(self):
        return iter([tuple(map(Tensor, batch)) for batch in BATCHES])


LOADERS = {"a class": Loader(), "a list of batches in a function": lambda epoch: BATCHES}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_a_loader_is_gone_through_in_each_epoch(loader):
    result = fit(linear, START, loader, optax.sgd(0.1), test=Loader(), **RUN)
    same(result, fit(linear, START, lambda epoch: iter(BATCHES), optax.sgd(0.1), **RUN))
    assert result.status.step == 6 and len(result.history.metrics["test_loss"]) == 2


def test_a_loader_may_fill_its_buffers_again():
    def batches(epoch):
        buffers = tuple(np.zeros_like(a) for a in BATCHES[0])
        for batch in BATCHES:
            for buffer, a in zip(buffers, batch, strict=True):
                buffer[:] = a
            yield buffers

    for test in (None, batches):
        same(
            fit(linear, START, batches, optax.sgd(0.1), test=test, **RUN),
            fit(linear, START, lambda epoch: BATCHES, optax.sgd(0.1), test=test, **RUN),
        )


def test_an_iterator_is_used_up_after_one_epoch_and_refused(own_errors):
    with pytest.raises(TypeError, match="or a function of the epoch that makes its batches"):
        fit(linear, START, iter(BATCHES), optax.sgd(0.1), **RUN)


class Column(NamedTuple):
    values: np.ndarray

    def to_numpy(self):
        return self.values


class Frame(NamedTuple):
    """What data frames of pandas and Polars have in common."""

    content: dict

    @property
    def columns(self):
        return list(self.content)

    def __getitem__(self, name):
        return Column(self.content[name])

    def to_numpy(self):
        return np.stack(list(self.content.values()), 1)


def test_a_data_frame_is_the_dictionary_of_its_columns():
    columns = {"x": X[:, 0], "t": 2 * X[:, 0] + 1}
    of_line = lambda p, d: jnp.mean((p["w"][0] * d["x"] + p["b"] - d["t"]) ** 2)  # noqa: E731
    options = {"batch_size": 4, **RUN}
    named = fit(of_line, START, columns, optax.sgd(0.1), test=columns, **options)
    same(named, fit(of_line, START, Frame(columns), optax.sgd(0.1), test=Frame(columns), **options))
    beside = lambda p, d, t: of_line(p, {**d, "t": t})  # noqa: E731
    given = (Frame(columns), columns["t"])
    same(named, fit(beside, START, given, optax.sgd(0.1), test=given, **options))


def test_a_dictionary_is_one_argument_of_the_loss():
    named = dict(zip("xt", PAIRS, strict=True))
    tuples = fit(linear, START, PAIRS, optax.sgd(0.1), batch_size=4, test=PAIRS, **RUN)
    dictionary = {"batch_size": 4, "test": named, **RUN}
    same(tuples, fit(by_name, START, named, optax.sgd(0.1), **dictionary))
    loader = dictionary | {"test": named, "batch_size": None}
    loader["metrics"] = lambda p, batch: {"error": by_name(p, batch)}
    once = fit(by_name, START, lambda epoch: [named], optax.sgd(0.1), **loader)
    assert list(once.history.metrics) == ["test_loss", "test_error"]
    several = dictionary | {"test": {"one": named, "other": named}}
    metrics = fit(by_name, START, named, optax.sgd(0.1), **several).history.metrics
    assert list(metrics) == ["train_loss", "one_loss", "other_loss"]
    batches = [dict(zip("xt", batch, strict=True)) for batch in BATCHES]
    same(
        fit(by_name, START, lambda epoch: batches, optax.sgd(0.1), **RUN),
        fit(linear, START, lambda epoch: BATCHES, optax.sgd(0.1), **RUN),
    )


class Sliced:
    """An array that is read in slices and, as in HDF5 files, wants each index once, in order."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim
        self.most = 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        assert isinstance(rows, slice) or (np.diff(rows) > 0).all()
        if isinstance(rows, np.ndarray):
            self.most = max(self.most, len(rows))
        return self.array[rows]


def test_an_array_in_a_file_is_read_in_slices(monkeypatch):
    monkeypatch.setattr("jaxnn.training.examples.PIECE", 32)  # four examples
    sliced = tuple(map(Sliced, PAIRS))
    run = {"batch_size": 4, **RUN}
    result = fit(linear, START, sliced, optax.sgd(0.1), test=sliced, **run)
    same(result, fit(linear, START, PAIRS, optax.sgd(0.1), **run))
    assert sliced[0].most == 4


def test_an_error_of_a_loader_comes_after_the_steps_before_it(tmp_path):
    def batches(epoch):
        yield from BATCHES[:2]
        if epoch == 2:
            raise OSError("a broken file")
        yield BATCHES[2]

    with pytest.raises(OSError, match="a broken file") as raised:
        fit(linear, START, batches, optax.sgd(0.1), checkpoint=tmp_path, **RUN)
    assert raised.value.fit.status.step == 5
    assert jaxnn.load_checkpoint(tmp_path).step == 5
    good = [BATCHES, BATCHES[:2]]
    whole = fit(linear, START, lambda epoch: good[epoch - 1], optax.sgd(0.1), **RUN)
    np.testing.assert_array_equal(raised.value.fit.params["w"], whole.params["w"])


def test_a_signal_is_heard_while_a_loader_is_waited_for(tmp_path):
    waits = threading.Event()

    def batches(epoch):
        yield BATCHES[0]
        if epoch == 2:
            threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGTERM)).start()
            waits.wait(30)
        yield BATCHES[1]

    main = threading.main_thread().ident
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(linear, START, batches, optax.sgd(0.1), checkpoint=tmp_path, **RUN)
    assert time.monotonic() - began < 15
    waits.set()
    assert raised.value.fit.status.step in (2, 3)
    assert jaxnn.load_checkpoint(tmp_path).step == raised.value.fit.status.step


def failing(epoch, calls):
    """A test set whose second measurement fails."""
    calls.append(epoch)
    yield BATCHES[0]
    if len(calls) > 1:
        raise OSError("the disk is gone")


def test_an_error_in_a_measurement_saves_the_run_and_carries_its_result(tmp_path):
    calls = []
    run = {"test": lambda epoch: failing(epoch, calls), "checkpoint": tmp_path, "batch_size": 4}
    with pytest.raises(OSError, match="the disk is gone") as raised:
        fit(linear, START, PAIRS, optax.sgd(0.1), **run, **RUN)
    assert raised.value.fit.status == jaxnn.Status("failed", 6)
    assert jaxnn.load_checkpoint(tmp_path).step == 6


def test_an_error_of_watch_carries_the_result():
    watch = lambda record: 1 / 0  # noqa: E731
    run = {"test": PAIRS, "watch": watch, "patience": 3, "batch_size": 4}
    with pytest.raises(ZeroDivisionError) as raised:
        fit(linear, START, PAIRS, optax.sgd(0.1), **run, **RUN)
    assert raised.value.fit.status == jaxnn.Status("failed", 3)


def test_a_test_loader_of_another_form_is_refused_first(own_errors):
    other = lambda epoch: [(X[:4], X[:4, 0])]  # noqa: E731
    for test, label in ((other, "test"), ({"held out": other}, "test['held out']")):
        message = re.escape(f"`an example of {label}[1]` must have shape")
        with pytest.raises(ValueError, match=message):
            fit(linear, START, PAIRS, optax.sgd(0.1), test=test, **RUN)


def test_epochs_of_different_lengths_share_a_program():
    def traces(epochs):
        traced = []

        def step(state, batch, key):
            traced.append(True)
            return state + 1, {"loss": jnp.sum(batch[0])}

        state = jnp.zeros(())
        jaxnn.train(step, state, lambda epoch: BATCHES[:epoch], key=KEY, epochs=epochs)
        return len(traced)

    assert traces(1) == traces(3)


def test_python_exits_while_a_loader_computes():
    program = """if True:
        import threading, time
        import jax, jax.numpy as jnp, jaxnn

        ones, over = jnp.ones((300, 300)), threading.Event()

        def batches(epoch):
            yield (ones,)
            yield (ones[:1],)  # of another size, so that the run gets the first
            until = float("inf")
            while time.monotonic() < until:  # it computes for a second after the run
                (ones @ ones).block_until_ready()
                until = min(until, time.monotonic() + 1) if over.is_set() else until

        def step(state, batch, key):
            return state + 1, {"loss": jnp.sum(batch[0])}

        jaxnn.train(step, jnp.zeros(()), batches, key=jax.random.key(0), max_steps=1)
        over.set()
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_signal_is_heard_while_a_test_loader_is_waited_for():
    waits, calls, main = threading.Event(), [], threading.main_thread().ident

    def blocking(epoch):
        calls.append(epoch)
        yield BATCHES[0]
        if len(calls) > 1:
            threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGTERM)).start()
            waits.wait(30)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(linear, START, PAIRS, optax.sgd(0.1), test=blocking, batch_size=4, **RUN)
    assert time.monotonic() - began < 15 and raised.value.fit.status.reason == "interrupted"
    # A process ends even if the loader still blocks.
    assert all(t.daemon for t in threading.enumerate() if t.name == "jaxnn examples")
    waits.set()


def test_a_resumed_epoch_that_has_become_shorter_is_an_error(tmp_path):
    saved = {"checkpoint": tmp_path, "max_steps": 2, "key": KEY}
    fit(linear, START, lambda epoch: BATCHES, optax.sgd(0.1), **saved)
    shorter = lambda epoch: BATCHES[:1]  # noqa: E731
    with pytest.raises(
        ValueError, match=r"`data\(1\)` must yield at least the 2 batches already taken"
    ):
        fit(linear, START, shorter, optax.sgd(0.1), resume=True, **saved | {"max_steps": 9})


def test_metrics_have_a_shape_that_does_not_depend_on_the_batch(own_errors):
    errors = lambda p, x, t: {"error": jnp.abs(x @ p["w"] + p["b"] - t)[:, 0]}  # noqa: E731
    message = r"`metrics\(...\)\['error'\]` must be a mean over the examples, of a shape that"
    with pytest.raises(TypeError, match=message):
        fit(linear, START, PAIRS, optax.sgd(0.1), metrics=errors, batch_size=4, **RUN)
