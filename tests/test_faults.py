"""What happens to real processes: killed at any moment, stopped, cut off from each other. Each has
a time limit.
"""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import TODAY

from jaxnn.training.checkpoint import checkpoints, load_checkpoint

RUN = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import jaxnn, flat

digits = jaxnn.load_digits()
params = jaxnn.init_network(jax.random.key(0), (64, 20, 10))
x, t = np.asarray(digits.x_train[:700]), np.asarray(digits.t_train[:700])
begun = []


def tell(progress):
    begun or print("begun", flush=True)
    begun.append(1)


def batches(epoch):
    order = np.random.default_rng(epoch).permutation(700)
    for first in range(0, 700, 32):
        yield x[order[first : first + 32]], t[order[first : first + 32]]


def stateful(params, state, x, t, *, key):
    noise = 0.1 * jax.random.normal(key, x.shape)
    state = {"mean": 0.9 * state["mean"] + 0.1 * jnp.mean(x + noise, 0)}
    return jaxnn.loss(params, x + noise - state["mean"], t), (state, {"mean": state["mean"][20]})


call = {"key": jax.random.key(1), "epochs": 20, "every": 1, "patience": 1000}
if sys.argv[3] == "arrays":
    loss, call = jaxnn.loss, {**call, "data": (x, t), "batch_size": 32}
else:
    loss, state = stateful, {"model_state": {"mean": jnp.zeros(64)}, "has_aux": True}
    call = {**call, "data": batches, "test": (x, t), **state, "record": ("gradient_norm",)}
saved = {"checkpoint": sys.argv[1] or None, "resume": bool(sys.argv[1])}
adam = optax.adam(0.01)
result = flat.fit(loss, params, optimizer=adam, on_progress=tell, **call, **saved)
np.savez(sys.argv[2], loss=result.history.step_loss, step=result.status.step, **result.params,
         **result.history.metrics, **result.history.aux)
"""
STEPS = 20 * 22


def begin(programs, *arguments):
    """A run in a process of its own, which keeps what it compiles among `programs`."""
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | kept, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrays", "batches, keys and state"])
def test_a_run_killed_six_times_ends_where_the_uninterrupted_one_ends(tmp_path, kind):
    start = functools.partial(begin, tmp_path / "programs")
    whole = start("", tmp_path / "whole.npz", kind)
    assert whole.communicate(timeout=120) and whole.returncode == 0
    directory, chance = tmp_path / "run", random.Random(TODAY)
    directory.mkdir()
    seen = []
    for _ in range(6):
        process = start(directory, tmp_path / "killed.npz", kind)
        process.stdout.readline()
        # Every step writes a checkpoint, so most kills meet one that is being written.
        time.sleep(chance.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        if checkpoints(directory):
            seen.append(load_checkpoint(directory).step)  # the newest is whole, always
    assert seen == sorted(seen) and len(set(seen)) > 2 and seen[-1] < STEPS
    last = start(directory, tmp_path / "killed.npz", kind)
    _, err = last.communicate(timeout=240)
    assert last.returncode == 0, err
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "killed.npz") as b:
        assert a["step"] == STEPS
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxnn", "train", "--json", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_an_error_and_the_checkpoints_before_it_are_whole(small_disk):
    options = ["--checkpoint", small_disk / "run", "--layers", "50", "--epochs", "20", "--every"]
    out, err = command(*options, 15).communicate(
        timeout=120
    )  # three checkpoints of 16 KB and their history fit
    assert json.loads(out)["status"] == "finished", err
    (small_disk / "ballast").write_bytes(
        bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize)
    )
    process = command("--resume", *options, 1, "--epochs", 21)
    _, err = process.communicate(timeout=120)
    warned, error = err.splitlines()
    assert warned.startswith("jaxnn train: warning: a checkpoint was not written: ")
    assert process.returncode == 2 and "No space left" in error, err
    assert load_checkpoint(small_disk / "run").step == 300
    assert not [path for path in (small_disk / "run").iterdir() if path.name.endswith(".tmp")]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    process = command("--resume", *options, 1, "--epochs", 21)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1 and "Read-only" in err, err


@pytest.mark.slow
def test_a_run_whose_reader_has_gone_is_saved(tmp_path):
    """As under `| head`."""
    options = ["--checkpoint", str(tmp_path / "run"), "--layers", "20", "--epochs", "2000"]
    command = [sys.executable, "-m", "jaxnn", "train", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        while "train loss" not in process.stdout.readline():
            pass
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141 and not err
    assert 0 < load_checkpoint(tmp_path / "run").step < 2000 * 15


MEASURING = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import jaxnn, flat
x = np.ones((4000, 300), np.float32)
def slow(params, x):
    return jnp.mean(jax.lax.fori_loop(0, 3000, lambda i, y: jnp.tanh(y @ params), x))
def tell(progress): print("begun", flush=True)
flat.fit(slow, jnp.eye(300), (x[:2],), optax.sgd(1e-9), key=jax.random.key(0), epochs=10,
          batch_size=2, test=(x,), checkpoint=sys.argv[1], on_progress=tell, measure=("test",))
"""


@pytest.mark.slow
def test_a_signal_is_heard_while_something_is_measured(tmp_path):
    command = [sys.executable, "-c", MEASURING, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(8)  # the first epoch is one step, and its measurement takes minutes
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (
        time.monotonic() - sent < 10
        and "interrupted after step 1; saved: pass `resume=True` to continue" in err
    )
    assert load_checkpoint(tmp_path / "run").step == 1


@pytest.mark.slow
def test_a_directory_in_use_is_refused_to_another_run(tmp_path):
    first = command("--checkpoint", tmp_path / "run", "--epochs", "100000", "--every", "50")
    try:
        wait_for(lambda: checkpoints(tmp_path / "run"))
        second = command("--checkpoint", tmp_path / "run", "--epochs", "100000", "--resume")
        _, err = second.communicate(timeout=120)
        assert second.returncode == 2 and "must be used by one run at a time" in err
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_saves_and_goes_on_later(tmp_path, number):
    options = [
        "--checkpoint",
        tmp_path / "run",
        "--layers",
        "20",
        "--epochs",
        "3000",
        "--log",
        tmp_path / "log",
    ]
    # What a shell runs in the background ignores SIGINT, and so does what that starts.
    before = signal.signal(number, signal.SIG_DFL)
    process = command(*options)
    signal.signal(number, before)
    wait_for(lambda: (tmp_path / "log").exists() and (tmp_path / "log").stat().st_size)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    told = json.loads(out)
    assert process.returncode == 130 and told["status"] == "interrupted" and not err
    assert load_checkpoint(tmp_path / "run").step == told["steps"] < 45000
    again = command(
        "--resume", *options, "--epochs", 3001 if told["steps"] > 44000 else told["steps"] // 15 + 3
    )
    out, err = again.communicate(timeout=120)
    rest = json.loads(out)
    assert again.returncode == 0, err
    assert (
        rest["train_loss"][: len(told["train_loss"])] == told["train_loss"]
        and rest["status"] == "finished"
    )
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    steps = [line["step"] for line in lines]  # some twice, where the run went on from before them
    assert steps[-1] == rest["steps"] == max(steps)


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def processes(*arguments):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PLATFORMS": "cpu",
    }
    return [
        command(
            *arguments,
            "--coordinator",
            f"127.0.0.1:{port}",
            "--num-processes",
            2,
            "--process-id",
            i,
            env=environment,
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_a_command_on_two_machines_trains_as_on_one_and_resumes(tmp_path):
    shape = ["--layers", "20", "--batch-size", "64"]
    one = command(*shape, "--epochs", "4")
    both = processes(*shape, "--epochs", "2", "--checkpoint", tmp_path / "run")
    told = [process.communicate(timeout=180) for process in [one, *both]]
    assert [process.returncode for process in [one, *both]] == [0, 0, 0], told
    assert not told[2][0]  # process 0 alone speaks
    both = processes(*shape, "--epochs", "4", "--checkpoint", tmp_path / "run", "--resume")
    resumed = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], resumed
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(
            json.loads(resumed[0][0])[name], json.loads(told[0][0])[name], rtol=1e-5
        )
