"""Runs that are saved and gone on with: what may change, what may not, what a directory holds."""

import errno
import fcntl  # noqa: F401, for a test that replaces its functions
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit

from jaxnn import load_checkpoint, save_checkpoint
from jaxnn.training import together
from jaxnn.training.checkpoint import checkpoints
from jaxnn.training.history import Log
from jaxnn.training.optimizers import kind_of, program_of
from jaxnn.training.saves import checksum

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 12).reshape(12, 1)
PAIRS = (X, 2 * X + 1)
START = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
RUN = {"key": KEY, "batch_size": 4}


def linear(params, x, t):
    return jnp.mean((x @ params["w"] + params["b"] - t) ** 2)


def noisy(params, x, t, *, key):
    return linear(params, x + 0.1 * jax.random.normal(key, x.shape), t)


@pytest.fixture
def begun(tmp_path):
    """Two of four epochs."""
    fit(noisy, START, PAIRS, optax.adam(0.1), epochs=2, checkpoint=tmp_path, **RUN)
    return {"checkpoint": tmp_path, "resume": True, "epochs": 4}


# ---------------------------------------------------------------- what may change, and takes effect


def injected(rate):
    return optax.inject_hyperparams(optax.adam)(learning_rate=rate)


def test_another_learning_rate_that_the_state_keeps_takes_effect(tmp_path):
    saved = {"checkpoint": tmp_path, **RUN}
    fit(linear, START, PAIRS, injected(0.1), epochs=2, **saved)
    rest = fit(linear, START, PAIRS, injected(0.0), epochs=4, resume=True, **saved)
    assert rest.opt_state.hyperparams["learning_rate"] == 0.0
    half = fit(linear, START, PAIRS, injected(0.1), epochs=2, **RUN)
    np.testing.assert_array_equal(rest.params["w"], half.params["w"])


def test_another_learning_rate_in_the_function_takes_effect(begun):
    rest = fit(noisy, START, PAIRS, optax.adam(0.0), **begun, **RUN)
    half = fit(noisy, START, PAIRS, optax.adam(0.1), epochs=2, **RUN)
    np.testing.assert_array_equal(rest.params["w"], half.params["w"])


def test_a_test_set_and_patience_may_be_added_and_taken_away(begun):
    more = {"test": PAIRS, "patience": 9}
    rest = fit(noisy, START, PAIRS, optax.adam(0.1), **begun, **RUN, **more)
    whole = fit(noisy, START, PAIRS, optax.adam(0.1), epochs=4, **RUN, **more)
    np.testing.assert_array_equal(rest.history.step_loss, whole.history.step_loss)
    assert rest.history.evaluated.tolist() == [6, 9, 12]  # at the 6th it was due, too
    assert "<table>" in rest.history._repr_html_()
    again = fit(noisy, START, PAIRS, optax.adam(0.1), **begun | {"epochs": 5}, **RUN)
    assert len(again.history.step_loss) == 15 and len(again.history.metrics["test_loss"]) == 3


@pytest.mark.parametrize("first", [(), ("gradient_norm",)])
def test_what_was_not_recorded_is_nan_there(tmp_path, first):
    saved = {"checkpoint": tmp_path, **RUN}
    fit(linear, START, PAIRS, optax.adam(0.1), epochs=2, record=first, **saved)
    then = () if first else ("gradient_norm",)
    more = {"epochs": 3, "resume": True, "record": then}
    norms = fit(linear, START, PAIRS, optax.adam(0.1), **saved, **more).history.aux["gradient_norm"]
    assert np.isnan(norms).tolist() == [not first] * 6 + [not then] * 3


def test_the_norm_and_an_aux_of_its_name_are_not_mixed_up(own_errors):
    f = lambda p, x, t: (linear(p, x, t), {"gradient_norm": 0.0})  # noqa: E731
    with pytest.raises(ValueError, match="`record` must not name 'gradient_norm'"):
        run = {**RUN, "has_aux": True, "record": ("gradient_norm",)}
        fit(f, START, PAIRS, optax.adam(0.1), **run)


def test_what_was_not_measured_before_is_nan_there(tmp_path):
    saved = {"checkpoint": tmp_path, **RUN}
    fit(linear, START, PAIRS, optax.adam(0.1), epochs=2, test=PAIRS, **saved)
    sets = {"test": PAIRS, "far": PAIRS}
    more = {"epochs": 3, "test": sets, "measure": ("test", "far"), "resume": True}
    metrics = fit(linear, START, PAIRS, optax.adam(0.1), **saved, **more).history.metrics
    assert {name: values.shape for name, values in metrics.items()} == dict.fromkeys(
        ("test_loss", "far_loss", "train_loss"), (3,)
    )
    assert np.isnan(metrics["far_loss"]).tolist() == [True, True, False]
    assert np.isnan(metrics["train_loss"]).tolist() == [False, False, True]


# ---------------------------------------------------------------- what may not


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": (X, 3 * X)}, "`data` must be .*, as in the checkpoint"),
        (
            {"data": (X[:8], X[:8])},
            "`data` must be 12 examples of .*, as in the checkpoint. Got 8 examples",
        ),
        (
            {"data": lambda epoch: iter([PAIRS]), "batch_size": None},
            "`batch_size` must be 4|`data` must be 12 examples",
        ),
        ({"batch_size": 6}, "`batch_size` must be 4, as in the checkpoint. Got 6."),
        ({"replacement": True}, "`replacement` must be False, as in the checkpoint. Got True."),
        ({"key": jax.random.key(1)}, "`key` must be"),
        (
            {"optimizer": optax.adamw(0.1)},
            "`optimizer` must be .*ScaleByAdam.*EmptyState EmptyState",
        ),
        ({"optimizer": optax.rmsprop(0.1)}, "`optimizer` must be .*ScaleByAdam.*ScaleByRms"),
    ],
)
def test_another_run_is_refused_by_name(own_errors, begun, change, message):
    call = {"data": PAIRS, "optimizer": optax.adam(0.1), **RUN, **begun, **change}
    with pytest.raises(ValueError, match=message):
        fit(noisy, START, **call)


@pytest.mark.parametrize(
    "one, other, same",
    [
        (optax.adam(0.1), optax.adam(0.2, b1=0.5), True),
        (optax.sgd(0.1), optax.sgd(optax.constant_schedule(0.1)), False),
        (optax.adam(0.1), optax.adamw(0.1), False),
        (optax.adam(0.1), optax.nadam(0.1), True),  # a number of the same parts
        (optax.chain(optax.clip(1.0), optax.sgd(0.1)), optax.sgd(0.1), False),
        (
            optax.chain(optax.clip(1.0), optax.sgd(0.1)),
            optax.chain(optax.clip(2.0), optax.sgd(1.0)),
            True,
        ),
        (injected(0.1), optax.inject_hyperparams(optax.adamw)(learning_rate=0.1), False),
    ],
)
def test_optimisers_are_told_apart_by_their_parts(one, other, same):
    kinds = [kind_of(optimizer.init(START)) for optimizer in (one, other)]
    assert (kinds[0] == kinds[1]) == same


# ---------------------------------------------------------------- what a directory holds


def test_notes_are_in_each_checkpoint(tmp_path):
    notes = {"flags": ["--lr", 0.1]}
    fit(linear, START, PAIRS, optax.sgd(0.1), epochs=2, checkpoint=tmp_path, notes=notes, **RUN)
    assert load_checkpoint(tmp_path).info["notes"] == notes


def test_a_checkpoint_stands_alone(tmp_path):
    """Any of them can be gone on from, moved to another place."""
    saved = {"checkpoint": tmp_path / "run", "every": 1, "keep": 9, **RUN}
    whole = fit(linear, START, PAIRS, optax.sgd(0.1), epochs=3, **saved)
    for path in sorted((tmp_path / "run").glob("*.npz")):
        other = tmp_path / path.stem
        other.mkdir()
        shutil.copy(path, other)
        again = saved | {"checkpoint": other, "resume": True}
        rest = fit(linear, START, PAIRS, optax.sgd(0.1), epochs=3, **again)
        np.testing.assert_array_equal(rest.history.step_loss, whole.history.step_loss)


def test_rows_of_any_dtype_and_shape_come_back(tmp_path):
    rows = {
        "step_loss": np.ones(3, jnp.bfloat16),
        "metrics/hist": np.arange(12.0).reshape(3, 4),
        "evaluated": np.array([1, 2, 3]),
        "nothing": np.zeros(0),
    }
    save_checkpoint(tmp_path, 1, {"params": START}, records=rows)
    back = load_checkpoint(tmp_path).records
    assert back.keys() == rows.keys()
    for name, values in back.items():
        assert values.dtype == rows[name].dtype
        np.testing.assert_array_equal(values, rows[name])


def test_every_so_many_steps_there_is_a_checkpoint_however_fast_they_are(tmp_path):
    run = {"epochs": 30, "checkpoint": tmp_path, "every": 7, "keep": 99, **RUN}
    fit(linear, START, PAIRS, optax.sgd(0.1), **run)
    saved = [int(path.stem.removeprefix("step_")) for path in checkpoints(tmp_path)]
    assert saved == [*range(7, 90, 7), 90]


def test_a_checksum_sees_each_of_a_thousand_examples():
    x = np.arange(1000.0)
    for k in (0, 501, 999):
        other = np.where(np.arange(1000) == k, -1, x)
        assert checksum((x,)) != checksum((other,))
    assert checksum((x,)) == checksum((x.copy(),)) != checksum((x.astype(np.float32),))


def test_the_mean_loss_of_an_epoch_goes_on_where_it_was_saved():
    log = Log()
    log.add(np.array([1.0, 3.0]), {}, np.array([10, 10]), 2, [], 0.5)
    again = Log.of(log.step, log.records_to_save)
    assert again.mean_loss == log.mean_loss == 2.0
    again.add(np.array([7.0]), {}, np.array([5]), 1, [3], 0.5)
    assert again.mean_loss == 3.0 and again.seconds == [1.0]
    again.add(np.array([1.0]), {}, np.array([25]), 1, [4], 0.25)
    assert again.mean_loss == 1.0 and again.seconds == [1.0, 0.25]


def test_what_killed_saves_left_goes_at_the_next_save(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".step_000000000001.npz.{dead.pid}.tmp"
    mine = tmp_path / f".step_000000000001.npz.{os.getpid()}.tmp"
    left.touch()
    mine.touch()
    save_checkpoint(tmp_path, 2, {"params": START})
    assert not left.exists() and mine.exists()


def test_a_renamed_checkpoint_does_not_shadow_later_ones(own_errors, begun):
    newest = sorted(begun["checkpoint"].glob("*.npz"))[-1]
    newest.rename(newest.with_name("step_000000999999.npz"))
    with pytest.raises(ValueError, match="Got a file renamed from step 6"):
        fit(noisy, START, PAIRS, optax.adam(0.1), **begun, **RUN)


def test_a_long_epoch_is_saved_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxnn.training.run.ANYWHERE", 0.0)
    steps = []
    watch = lambda progress: steps.append(  # noqa: E731
        load_checkpoint(tmp_path).step if list(tmp_path.glob("*.npz")) else 0
    )
    run = {"key": KEY, "batch_size": 1, "epochs": 1, "test": PAIRS, "on_progress": watch}
    fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=tmp_path, **run)
    assert any(0 < step < 12 for step in steps)


def test_a_save_does_not_hold_up_the_run(tmp_path, monkeypatch):
    """While a slow disk writes, steps are taken."""
    save = save_checkpoint
    began, told = [], []

    def slow(*args, **options):
        began.append(time.perf_counter())
        time.sleep(0.5)
        return save(*args, **options)

    monkeypatch.setattr("jaxnn.training.saves.save_checkpoint", slow)
    run = {**RUN, "epochs": 20, "checkpoint": tmp_path, "every": 30, "test": PAIRS}
    fit(
        linear,
        START,
        PAIRS,
        optax.sgd(0.1),
        on_progress=lambda p: told.append(time.perf_counter()),
        **run,
    )
    assert sum(began[0] < at < began[0] + 0.5 for at in told) > 3
    assert load_checkpoint(tmp_path).step == 60


def refusing(monkeypatch, refused):
    """A file system that refuses to write `refused(step, attempt)`."""
    attempts = {}

    def save(directory, step, *args, **options):
        attempts[step] = attempts.get(step, 0) + 1
        if refused(step, attempts[step]):
            raise OSError(28, "No space left on device")
        return save_checkpoint(directory, step, *args, **options)

    monkeypatch.setattr("jaxnn.training.saves.save_checkpoint", save)
    monkeypatch.setattr("jaxnn.training.saves.PAUSES", (0.01,))
    return attempts


SAVING = {"every": 3, "epochs": 3, **RUN}


def test_a_save_that_fails_once_is_tried_again(tmp_path, monkeypatch):
    attempts = refusing(monkeypatch, lambda step, attempt: attempt == 1)
    fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=tmp_path, **SAVING)
    assert attempts == {3: 2, 6: 2, 9: 2} and load_checkpoint(tmp_path).step == 9


def test_the_run_goes_on_if_a_save_fails_and_its_result_comes_with_the_last_error(
    tmp_path, monkeypatch
):
    refusing(monkeypatch, lambda step, attempt: step == 6)
    with pytest.warns(RuntimeWarning, match="a checkpoint was not written: .*No space left"):
        result = fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=tmp_path, **SAVING)
    assert result.status.step == 9
    assert [path.name for path in checkpoints(tmp_path)] == [
        f"step_{step:012d}.npz" for step in (3, 9)
    ]
    shutil.rmtree(tmp_path)
    refusing(monkeypatch, lambda step, attempt: step == 9)
    with pytest.raises(OSError, match="No space left") as raised:
        fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=tmp_path, **SAVING)
    np.testing.assert_array_equal(raised.value.fit.params["w"], result.params["w"])


@pytest.mark.parametrize("call", ["fcntl.lockf", "os.fsync"])
def test_a_file_system_without_locks_or_synced_directories_will_do(tmp_path, monkeypatch, call):
    module, name = call.split(".")
    real = getattr(sys.modules[module], name)

    def cannot(file, *flags):
        number = file if isinstance(file, int) else file.fileno()
        if name == "lockf" or stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, *flags)

    monkeypatch.setattr(sys.modules[module], name, cannot)
    told = pytest.warns(RuntimeWarning, match="without locks") if name == "lockf" else nullcontext()
    with told:
        fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=tmp_path, **SAVING)
    assert load_checkpoint(tmp_path).step == 9


def test_no_file_of_the_users_is_written_to_not_even_through_a_link(tmp_path):
    theirs = {name: tmp_path / name for name in (".lock", "history", "log")}
    for path in theirs.values():
        path.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "history"):
        (run / name).write_text("mine")
    fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=run, **SAVING)
    files = [*theirs.values(), run / ".lock", run / "history"]
    assert {path.read_text() for path in files} == {"mine"}
    other = tmp_path / "other"
    other.mkdir()
    (other / ".jaxnn.lock").symlink_to(theirs["log"])
    with pytest.raises(OSError, match=".jaxnn.lock"):
        fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=other, **SAVING)
    assert theirs["log"].read_text() == "mine"


def test_a_remote_place_is_for_orbax(own_errors):
    with pytest.raises(ValueError, match="`checkpoint` must be a local directory or, for remote"):
        fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint="gs://bucket/run", **SAVING)


CHILDREN = """
import sys, time, multiprocessing
import jax, jax.numpy as jnp, optax, jaxnn, flat
def sleep(): time.sleep(60)
def watch(progress):
    if not hasattr(watch, "child"):
        watch.child = multiprocessing.get_context("fork").Process(target=sleep)
        watch.child.start()
        print(watch.child.pid, flush=True)
x = jnp.ones((8, 1))
run = {"key": jax.random.key(0), "epochs": 10**6, "batch_size": 1, "every": 1000}
flat.fit(lambda p, x: jnp.mean((p - x) ** 2), jnp.zeros(()), (x,), optax.sgd(1e-9),
          checkpoint=sys.argv[1], on_progress=watch, **run)
"""


@pytest.mark.slow
def test_children_of_a_killed_run_do_not_hold_its_directory(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", CHILDREN, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        end = time.monotonic() + 60
        while not list((tmp_path / "run").glob("*.npz")):
            assert time.monotonic() < end
            time.sleep(0.05)
        held = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert f"in use by process {process.pid} on" in held.stderr
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives on
        step = load_checkpoint(tmp_path / "run").step
        loss = lambda p, x: jnp.mean((p - x) ** 2)  # noqa: E731
        run = {"key": jax.random.key(0), "batch_size": 1, "max_steps": step + 10}
        saved = {"checkpoint": tmp_path / "run", "resume": True}
        rest = fit(loss, jnp.zeros(()), (jnp.ones((8, 1)),), optax.sgd(1e-9), **run, **saved)
        assert rest.status.step == step + 10
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_the_directory_of_a_run_is_held_against_another_of_the_same_process(tmp_path):
    def again(progress):
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()}"):
            fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=tmp_path, **RUN)

    fit(linear, START, PAIRS, optax.sgd(0.1), checkpoint=tmp_path, on_progress=again, **RUN)


# ---------------------------------------------------------------- what else a callback is told


def test_a_callback_is_told_what_it_asks_for():
    told = []

    def watch(progress):
        told.append(progress)
        assert linear(progress.params, *PAIRS) >= 0 and progress.opt_state is not None

    record = ("params", "opt_state", "learning_rate", "gradient_norm")
    optimizer = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 12))
    run = {**RUN, "epochs": 4, "record": record, "on_progress": watch, "test": PAIRS}
    result = fit(linear, START, PAIRS, optimizer, **run)
    norms = result.history.aux["gradient_norm"]
    assert norms.shape == (12,) and told[-1].gradient_norm == norms[-1]
    assert told[-1].learning_rate == pytest.approx(0.1 / 12, rel=1e-5)
    told.clear()
    alone = {"record": "learning_rate", "on_progress": told.append}
    fit(linear, START, PAIRS, optimizer, **run | alone)
    assert told[-1].learning_rate is not None and told[-1].params is None
    first = optax.tree.norm(jax.grad(linear)(START, *PAIRS))
    whole = fit(linear, START, PAIRS, optimizer, **run | {"batch_size": 12})
    assert whole.history.aux["gradient_norm"][0] == pytest.approx(float(first), rel=1e-6)


@pytest.mark.parametrize("record", ["loss", ("params", "x"), 3])
def test_what_a_callback_cannot_be_told_is_refused(own_errors, record):
    with pytest.raises(ValueError, match="`record` must name some of .*gradient_norm"):
        fit(linear, START, PAIRS, optax.sgd(0.1), record=record, **RUN)


def test_a_learning_rate_that_nobody_keeps_cannot_be_told(own_errors):
    with pytest.raises(ValueError, match="only with `optax.inject_hyperparams`"):
        fit(linear, START, PAIRS, optax.sgd(0.1), record=("learning_rate",), **RUN)


# ---------------------------------------------------------------- large states


@pytest.mark.parametrize("batch_size", [12, 5])
@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(0.1), pytest.param(optax.lbfgs(), marks=pytest.mark.slow)],
    ids=["adam", "lbfgs"],
)
def test_a_large_state_takes_the_same_steps_without_a_copy(
    monkeypatch, tmp_path, batch_size, optimizer
):
    run = {"key": KEY, "batch_size": batch_size, "test": PAIRS, "patience": 50}
    small = fit(linear, START, PAIRS, optimizer, epochs=6, **run)
    monkeypatch.setattr("jaxnn.training.steps.LARGE", 1)
    large = fit(linear, START, PAIRS, optimizer, epochs=6, **run)
    np.testing.assert_allclose(large.params["w"], small.params["w"], rtol=1e-5)
    fit(linear, START, PAIRS, optimizer, epochs=3, checkpoint=tmp_path, **run)
    rest = fit(linear, START, PAIRS, optimizer, epochs=6, checkpoint=tmp_path, resume=True, **run)
    np.testing.assert_array_equal(rest.params["w"], large.params["w"])


def test_a_large_state_is_that_before_the_step_that_is_not_finite(monkeypatch):
    monkeypatch.setattr("jaxnn.training.steps.LARGE", 1)
    hot = optax.adam(lambda count: jnp.where(count < 7, 0.1, jnp.inf))
    result = fit(linear, START, PAIRS, hot, epochs=9, **RUN)
    assert result.status.reason == "not finite" and result.status.step == 7
    by_hand = fit(linear, START, PAIRS, optax.adam(0.1), max_steps=7, **RUN)
    np.testing.assert_allclose(result.params["w"], by_hand.params["w"], rtol=1e-5)
    assert result.opt_state[0].count == 7


def test_the_memory_of_the_parameters_may_be_taken():
    params = jax.tree.map(jnp.copy, START)
    state = optax.adam(0.1).init(params)
    whole = fit(linear, START, PAIRS, optax.adam(0.1), epochs=2, **RUN)
    same = fit(
        linear, params, PAIRS, optax.adam(0.1), epochs=2, opt_state=state, donate=True, **RUN
    )
    np.testing.assert_array_equal(same.params["w"], whole.params["w"])
    shared = jnp.zeros((1, 1))
    tied = {"w": shared, "b": shared}
    fit(linear, tied, PAIRS, optax.adam(0.1), epochs=2, donate=True, **RUN)


# ---------------------------------------------------------------- objects that change


class Model:
    def __init__(self):
        self.scale = 1.0
        self.bias = jnp.zeros(())

    def loss(self, params, x, t):
        return self.scale * linear(params, x + self.bias, t)

    __call__ = loss


@pytest.mark.parametrize("of", [lambda m: m.loss, lambda m: m], ids=["method", "called"])
def test_an_attribute_that_was_set_since_the_last_call_is_seen(of):
    model, sgd, run = Model(), optax.sgd(0.1), {**RUN, "batch_size": 12, "epochs": 1}
    first = lambda: float(fit(of(model), START, PAIRS, sgd, **run).history.step_loss[0])  # noqa: E731
    start = first()
    model.scale = 3.0
    assert first() == pytest.approx(3 * start)
    model.scale, model.bias = 1.0, jnp.ones(())
    assert first() == pytest.approx(float(linear(START, X + 1, PAIRS[1])))


def test_the_options_of_a_run_are_json(tmp_path, own_errors):
    with pytest.raises(TypeError, match="`notes` must be JSON-compatible"):
        run = {**RUN, "checkpoint": tmp_path, "notes": {"a": object()}}
        fit(linear, START, PAIRS, optax.sgd(0.1), **run)


# ---------------------------------------------------------------- what processes tell each other


@pytest.fixture
def two(monkeypatch):
    """As if there were two processes, of which the other says what it is told to say."""
    said = {}

    def gathered(mine):
        return np.stack([mine, said.get("other", mine)])

    monkeypatch.setattr(together.jax, "process_count", lambda: 2)
    monkeypatch.setattr(together.multihost_utils, "process_allgather", gathered)
    return said


def test_processes_do_what_the_least_or_most_of_them_wants(two):
    two["other"] = np.array([False, True, False, False, 5, 3], np.int32)
    vote = together.Vote(False, False, False, True, 5, 7).agreed()
    assert vote == together.Vote(False, True, False, True, 5, 3)


def test_the_reason_of_the_process_that_failed_is_told_to_the_other(two):
    line = np.zeros(together.SAID, np.uint8)
    line[:9] = np.frombuffer(b"OSError: ", np.uint8)
    two["other"] = line
    assert str(together.failure_of_others(None)) == "process 1 ended the run: OSError: "
    two.clear()
    assert "process 0 ended the run: ValueError: no" in str(
        together.failure_of_others(ValueError("no"))
    )


def test_what_differs_between_processes_is_named(two):
    together.require_same({"key": 1, "epochs": 2})
    two["other"] = np.zeros((2, 2), np.uint32)
    with pytest.raises(ValueError, match="`key` must be the same in all processes. .* process 1"):
        together.require_same({"key": 1, "epochs": 2})


@pytest.mark.parametrize("one", [optax.adam(0.1), optax.sgd(0.1), optax.lbfgs()])
def test_the_program_of_an_optimiser_has_its_numbers(one):
    texts = [program_of(o, START, o.init(START)) for o in (one, optax.chain(one, optax.scale(2.0)))]
    assert texts[0] != texts[1] and texts[0] == program_of(one, START, one.init(START))
