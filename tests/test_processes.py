"""Several processes and devices of one run: they begin alike, or say what differs; what one of them
meets ends all; and what comes in parts stays so.
"""

import ast
import subprocess
import sys
import time

import numpy as np
import pytest
from test_devices import environment, free_address, require_printed

from jaxnn.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

TOGETHER = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
import jaxnn, flat
import jaxnn.training.saves as saves
directory, case, address, number = sys.argv[1:]
patient = {"heartbeat_timeout_seconds": 10} if case == "death" else {}
jax.distributed.initialize(address, 2, int(number), **patient)
mesh, other = jax.make_mesh((2,), ("devices",)), int(number) == 1
x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
t, params = x @ np.ones(3, np.float32), {"w": jnp.zeros(3)}
def loss(params, x, t): return jnp.mean((x @ params["w"] - t) ** 2)
call = {"key": jax.random.key(0), "epochs": 3, "batch_size": 16, "mesh": mesh}
optimizer = optax.adam(0.1)
def fail(progress):
    if progress.step > 4: raise OSError("no space to draw")
def full(*args, **options): raise OSError(28, "No space left on device")
def batches(epoch):
    for i in range(0, 64, 16):
        if other and epoch == 20: os.kill(os.getpid(), 9)
        if other and epoch == 2 and case == "batches": raise OSError("the other disk is gone")
        if case == "different": yield x[i : i + 16] + number_of_mine, t[i : i + 16]
        elif case == "parts": yield tuple(a[i : i + 16][8 * other :][:8] for a in (x, t))
        elif case == "global": yield tuple(map(whole, (x[i : i + 16], t[i : i + 16])))
        else: yield x[i : i + 16], t[i : i + 16]
number_of_mine = float(number)
cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
def whole(array): return jax.make_array_from_callback(array.shape, cut, lambda rows: array[rows])
data = (x, t)
if case == "key" and other: call["key"] = jax.random.key(1)
if case == "epochs" and other: call["epochs"] = 4
if case == "patience": call |= {"test": (x, t), "patience": 4 if other else 3}
if case == "optimizer" and other: optimizer = optax.adam(0.2)
if case == "data" and other: data = (x[::-1], t[::-1])
if case == "params" and other: params = {"w": jnp.ones(3)}
if case == "callback": call |= {"on_progress": fail, "epochs": 10**6}
if case == "disk":
    saves.save_checkpoint = full
    call |= {"checkpoint": directory, "every": 10}
if case in ("batches", "death", "different", "parts", "global", "same"):
    data = batches
    del call["batch_size"]
def tested(epoch):
    yield x[:16], t[:16]
    if other: raise OSError("the other disk is gone")
    yield x[16:32], t[16:32]
if case == "measured": call["test"] = tested
if case == "parts": call["parts"] = True
if case == "death": call |= {"checkpoint": directory, "every": 1, "epochs": 10**6}
began = time.monotonic()
try:
    result = flat.fit(loss, params, data, optimizer, **call)
    print("ended well with", result.history.step_loss.tolist())
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    if case == "death": raise
print("after", time.monotonic() - began, "s")
"""


def together(case, directory):
    """What each of two processes printed, how long all took, and their exit codes."""
    address = free_address()
    command = [sys.executable, "-W", "ignore", "-c", TOGETHER, str(directory), case, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([*command, str(i)], env=environment(1), **pipes) for i in range(2)
    ]
    try:
        began = time.monotonic()
        said = [process.communicate(timeout=120)[0] for process in processes]
        return said, time.monotonic() - began, [process.returncode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("case", ["key", "epochs", "patience", "optimizer", "data", "params"])
def test_processes_that_begin_differently_are_told_what_differs(tmp_path, case):
    said, *_ = together(case, tmp_path)
    expected = f"ValueError: `{case}` must be the same in all processes. Got one value in"
    for text in said:
        assert expected in text and "in process 1, another in process 0." in text


def test_processes_whose_batches_differ_are_told_to_say_so(tmp_path):
    said, *_ = together("different", tmp_path)
    expected = (
        "ValueError: `data` must yield the same batches in all processes or, with `parts=True`"
    )
    assert all(expected in text for text in said)


def test_processes_may_give_their_parts_of_batches_or_global_arrays(tmp_path):
    losses = [
        ast.literal_eval(text.partition("ended well with ")[2].partition("\nafter")[0])
        for case in ("same", "parts", "global")
        for text in together(case, tmp_path)[0]
    ]
    assert len(losses) == 6 and len(losses[0]) == 12
    for other in losses:
        np.testing.assert_allclose(other, losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "case, who, reason",
    [
        ("callback", 0, "OSError: no space to draw"),
        ("disk", 0, "No space left on device"),
        ("batches", 1, "OSError: the other disk is gone"),
        ("measured", 1, "OSError: the other disk is gone"),
    ],
)
def test_what_one_process_meets_ends_all_with_its_reason(tmp_path, case, who, reason):
    said, seconds, _ = together(case, tmp_path)
    assert "\nOSError" in said[who] and reason in said[who]
    assert f"\nRuntimeError: process {who} ended the run: OSError" in said[1 - who]
    assert reason in said[1 - who]
    assert seconds < 60 and all(float(text.split()[-2]) < 30 for text in said)


def test_when_a_process_dies_the_other_ends_with_an_error(tmp_path):
    said, seconds, codes = together("death", tmp_path)
    assert "ended well" not in said[0] + said[1]
    assert 0 not in codes and seconds < 60
    assert load_checkpoint(tmp_path).step > 0


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec
import jaxnn, flat
mesh = jax.make_mesh((8,), ("fsdp",))
spec = NamedSharding(mesh, PartitionSpec("fsdp"))
rng = np.random.default_rng(0)
x, t = rng.uniform(size=(64, 16)).astype(np.float32), rng.integers(0, 8, 64).astype(np.int32)
start = jaxnn.init_network(jax.random.key(0), (16, 32, 8), 0.1)
parts = jax.tree.map(lambda a: jax.device_put(a, spec), start)
run = {"key": jax.random.key(1), "batch_size": 16, "epochs": 6, "test": (x, t), "patience": 9}
adam = optax.adam(0.01)
whole = flat.fit(jaxnn.loss, start, (x, t), adam, **run)
def is_in_parts(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
    return all(leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in leaves)
def watch(progress):
    assert is_in_parts(progress.params) and is_in_parts(progress.opt_state)
told = {"record": ("params", "opt_state"), "on_progress": watch}
for more in ({}, {"mesh": mesh}, {"mesh": mesh, "max_steps": 99}):
    result = flat.fit(jaxnn.loss, parts, (x, t), adam, **run, **told, **more)
    assert is_in_parts(result.params) and is_in_parts(result.opt_state)
    np.testing.assert_allclose(result.params["W1"], whole.params["W1"], rtol=1e-4, atol=1e-6)
half = {**run, "epochs": 3, "checkpoint": sys.argv[1]}
flat.fit(jaxnn.loss, parts, (x, t), adam, **half)
rest = flat.fit(jaxnn.loss, parts, (x, t), adam, **half | {"epochs": 6, "resume": True}, **told)
assert is_in_parts(rest.params)
np.testing.assert_array_equal(rest.params["W1"], result.params["W1"])
assert not parts["W1"].is_deleted()
print("in parts")
"""


def test_parameters_that_come_in_parts_stay_so_and_their_optimisers_state_too(tmp_path):
    require_printed("in parts", SHARDED, tmp_path / "run")


APART = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec
import jaxnn, flat
directory, address, number = sys.argv[1:]
jax.distributed.initialize(address, 2, int(number))
mesh = jax.make_mesh((2,), ("fsdp",))
x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
t = x @ np.ones(4, np.float32)
spec = NamedSharding(mesh, PartitionSpec("fsdp"))
w = jax.make_array_from_callback((4,), spec, lambda index: np.zeros(4, np.float32)[index])
def loss(params, x, t): return jnp.mean((x @ params["w"] - t) ** 2)
run = {"key": jax.random.key(0), "batch_size": 8, "mesh": mesh}
adam = optax.adam(0.1)
whole = flat.fit(loss, {"w": w}, (x, t), adam, epochs=4, **run)
saved = {"checkpoint": directory, **run}
flat.fit(loss, {"w": w}, (x, t), adam, epochs=2, **saved)
rest = flat.fit(loss, {"w": w}, (x, t), adam, epochs=4, resume=True, **saved)
one, other = (r.params["w"].addressable_data(0) for r in (rest, whole))
np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
assert one.shape == (2,)
assert jaxnn.load_checkpoint(directory).leaves["params"]["['w']"].shape == (4,)
print("gathered")
"""


def test_parameters_in_parts_of_two_processes_are_saved_whole(tmp_path):
    address = free_address()
    command = [sys.executable, "-c", APART, str(tmp_path / "run"), address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, str(i)], env=environment(1), **pipes) for i in range(2)]
    try:
        for process in both:
            out, err = process.communicate(timeout=120)
            assert "gathered" in out, err[-3000:]
    finally:
        for process in both:
            process.kill()
            process.communicate()
