"""Several devices: eight virtual ones, and two real processes; each run in a process of its own,
with a time limit.
"""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jaxnn, flat

if len(sys.argv) > 1:
    address, number = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(address, 2, number)
mesh = jax.make_mesh((jax.device_count(),), ("entries",), axis_types=(AxisType.Auto,))
params = jaxnn.init_network(jax.random.key(0), (12, 7, 5), 0.1)
rng = np.random.default_rng(0)
x, t = rng.uniform(size=(9, 12)).astype(np.float32), rng.integers(0, 5, 9).astype(np.int32)
alone = jaxnn.numerical_grad(jaxnn.loss)(params, jnp.asarray(x), jnp.asarray(t))
alone = jax.tree.map(np.asarray, alone)
everywhere = NamedSharding(mesh, PartitionSpec())
place = lambda a: jax.make_array_from_process_local_data(everywhere, np.asarray(a))
args = jax.tree.map(place, (params, x, t))
shared = jaxnn.numerical_grad(jaxnn.loss, mesh=mesh)(*args)
for name in params:
    here = np.asarray(shared[name].addressable_data(0))
    np.testing.assert_allclose(here, alone[name], rtol=1e-6, atol=1e-9)
spec = PartitionSpec("entries")
total = lambda x: jax.lax.psum(jnp.sum(jnp.sin(x) ** 2), "entries")
mapped = jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
if jax.process_count() == 1:  # a function mapped over all devices is differentiated on them
    point = jnp.linspace(0.1, 1, 2 * jax.device_count())
    np.testing.assert_allclose(jaxnn.numerical_grad(mapped)(point), jax.grad(mapped)(point), 1e-5)
    assert jaxnn.check_gradient(mapped, point).ok
print("same on", jax.device_count(), "devices of", jax.process_count(), "processes")
"""


def environment(devices):
    return os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }


def require_printed(text, program, *arguments):
    """Run a program on eight virtual devices, which prints this at its end."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True, timeout=300)
    assert text in done.stdout, done.stderr[-3000:]


@pytest.mark.slow
def test_the_entries_are_shared_by_eight_devices_with_the_same_numbers():
    require_printed("same on 8 devices of 1 processes", PROGRAM)


TRAINING = """
import importlib, pathlib, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
import jaxnn, flat

if len(sys.argv) > 3:
    jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]))
mesh = None
if jax.device_count() > 1:
    mesh = jax.make_mesh((jax.device_count(),), ("devices",))
rng = np.random.default_rng(0)
x, t = rng.uniform(size=(230, 12)).astype(np.float32), rng.integers(0, 5, 230).astype(np.int32)
params = jaxnn.init_network(jax.random.key(0), (12, 7, 5), 0.1)
batch_size = int(sys.argv[2])
epochs = -(-100 // -(-230 // batch_size))
call = {"key": jax.random.key(1), "batch_size": batch_size, "mesh": mesh}
train, adam = (x, t), optax.adam(0.01)
result = flat.fit(jaxnn.loss, params, train, adam, epochs=epochs, test=(x[:23], t[:23]), **call)
assert len(result.history.step_loss) >= 100
def falls(params, x, t):  # below 0 its slope is not finite
    return jnp.sqrt(jnp.maximum(params["b"][0], 0.0)) + jnp.mean(0 * x)
fallen = flat.fit(falls, {"b": jnp.array([2.0])}, train, optax.sgd(0.25), epochs=9, **call)
assert fallen.status[:3] == ("not finite", len(fallen.history.step_loss) - 1, "params['b']")
assert fallen.params["b"] <= 0
saves = importlib.import_module("jaxnn.training.saves")
save = saves.save_checkpoint
def late(*args, **options):  # the other processes are ahead
    time.sleep(1)
    return save(*args, **options)
saves.save_checkpoint = late
directory = pathlib.Path(sys.argv[1]).parent / f"on {jax.device_count()}"
for epochs in (1, 2):
    saved = {"checkpoint": directory, "resume": True}
    resumed = flat.fit(jaxnn.loss, params, train, adam, epochs=epochs, **saved, **call)
    assert jaxnn.load_checkpoint(directory).step == resumed.status.step
whole = flat.fit(jaxnn.loss, params, train, adam, epochs=2, **call)
assert np.array_equal(resumed.history.step_loss, whole.history.step_loss)
np.savez(sys.argv[1], loss=result.history.step_loss, test=result.history.metrics["test_loss"],
         fallen=fallen.history.step_loss, kept=np.asarray(fallen.params["b"]),
         **{name: np.asarray(leaf) for name, leaf in result.params.items()})
"""


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [24, 33, 50])
def test_eight_devices_train_as_one_does_whatever_the_batch(tmp_path, batch_size):
    for devices in (1, 8):
        command = [
            sys.executable,
            "-c",
            TRAINING,
            str(tmp_path / f"{devices}.npz"),
            str(batch_size),
        ]
        subprocess.run(command, env=environment(devices), check=True, timeout=300)
    agree(tmp_path / "1.npz", tmp_path / "8.npz")


def agree(one, many):
    with np.load(one) as a, np.load(many) as b:
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [24, 33])
def test_two_processes_train_as_one_does(tmp_path, batch_size):
    subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path / "one.npz"), str(batch_size)],
        env=environment(1),
        check=True,
        timeout=300,
    )
    in_two_processes([TRAINING], lambda number: [str(tmp_path / f"{number}.npz"), str(batch_size)])
    agree(tmp_path / "one.npz", tmp_path / "0.npz")
    agree(tmp_path / "one.npz", tmp_path / "1.npz")


def in_two_processes(program, arguments):
    """Run a program twice, as processes 0 and 1 of one run; what each printed."""
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", *program, *arguments(number), address, str(number)],
            env=environment(1),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        printed = []
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err[-2000:]
            printed.append(out)
        return printed
    finally:
        for process in processes:
            process.kill()


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.slow
def test_the_entries_are_shared_by_two_processes_with_the_same_numbers():
    for out in in_two_processes([PROGRAM], lambda number: []):
        assert "same on 2 devices of 2 processes" in out


WHERE_THEY_LIE = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jaxnn, flat
mesh = jax.make_mesh((8,), ("parts",), (AxisType.Auto,))
w = jax.device_put(jnp.linspace(0.1, 1, 8 * 20_000), NamedSharding(mesh, PartitionSpec("parts")))
brought, array = [], type(w).__array__
def noted(self, *args, **options):
    brought.append(self.size)
    return array(self, *args, **options)
type(w).__array__ = noted
f = lambda p: jnp.mean(jnp.sin(p["w"]) ** 2) + jnp.sum(p["b"] ** 2)
params = {"w": w, "b": jnp.ones(8)}
report = jaxnn.check_gradient(f, params)
assert report.ok and report.leaves[0].own_dtype_digits > 6
assert max(brought) < 1000, brought
bad = lambda p: (g := jax.grad(f)(p)) | {"w": g["w"].at[77].multiply(1.5)}
(leaf, _) = jaxnn.check_gradient(f, params, gradient=bad).leaves
assert leaf.verdict == "differs" and leaf.entries[0].index == (77,)
print("where they lie")
"""


@pytest.mark.slow
def test_a_check_brings_no_leaf_to_the_host_that_lies_in_parts():
    require_printed("where they lie", WHERE_THEY_LIE)


CUT = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import jaxnn, flat
mesh = jax.make_mesh((2, 4), ("data", "model"))
lying = lambda spec: lambda a: jax.device_put(a, NamedSharding(mesh, spec))
start = {"w": jnp.zeros((8, 16)), "v": jnp.ones((16, 1))}
cut = {"w": lying(P(None, "model"))(start["w"]), "v": lying(P("model", None))(start["v"])}
x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
seen = set()
def loss(p, x):
    jax.debug.inspect_array_sharding(x, callback=lambda s: seen.add(s.shard_shape((32, 8))))
    return jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - 1) ** 2)
run = {"key": jax.random.key(0), "batch_size": 32, "epochs": 2}
one = flat.fit(loss, start, (x,), optax.sgd(0.01), **run)
seen.clear()
many = flat.fit(loss, cut, (x,), optax.sgd(0.01), mesh=mesh, **run)
print(seen)
seen.clear()
flat.fit(loss, cut, (x,), optax.sgd(0.01), mesh=mesh, batch_spec=P(("data", "model")), **run)
print(seen)
np.testing.assert_allclose(one.params["w"], many.params["w"], rtol=1e-4, atol=1e-6)
"""


def test_a_batch_is_cut_where_no_parameter_is_or_as_is_said():
    require_printed("{(16, 8)}\n{(4, 8)}", CUT)


EXPLICIT = """
import jax, jax.numpy as jnp, jaxnn
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("d",))
with jax.set_mesh(mesh):
    x = jax.device_put(jnp.arange(1.0, 9), NamedSharding(mesh, P("d")))
    square = jax.shard_map(lambda x: x**2, in_specs=P("d"), out_specs=P("d"))
    right = jaxnn.check_gradient(lambda x: jnp.sum(square(x)), x)
    wrong = jaxnn.check_gradient(lambda x: jnp.sum(square(x)), x, gradient=lambda x: 2.1 * x)
    f = lambda w, x: jnp.sum(jnp.tanh(jnp.einsum("ij,i->j", w, x, out_sharding=P())))
    w = jax.device_put(jnp.linspace(-1, 1, 24).reshape(8, 3), NamedSharding(mesh, P("d", None)))
    numerical = jaxnn.numerical_grad(f, (0, 1))(w, x)
    for one, other in zip(numerical, jax.grad(f, (0, 1))(w, x)):
        assert jnp.allclose(one, other, rtol=1e-5, atol=1e-6)
        assert jax.typeof(one) == jax.typeof(other)
    slope = jax.jit(jaxnn.numerical_grad(lambda x: jnp.sum(square(x)), method="dense"))(x)
    assert jnp.allclose(slope, 2 * x)
    table = jax.device_put(jnp.ones((3, 8)), NamedSharding(mesh, P(None, "d")))
    assert jaxnn.check_gradient(lambda w: jnp.sum(jnp.sin(w)), table, modes=("rev", "fwd")).ok
    cubed = jax.custom_vjp(lambda x: x**3)
    cubed.defvjp(lambda x: (x**3, x), lambda x, ct: (2 * x**2 * ct,))
    with jaxnn.watching() as watched:
        for _ in range(2):
            jax.jit(lambda x: jax.grad(lambda x: jnp.sum(cubed(x)))(x))(x)
with jaxnn.watching() as mapped:
    jax.pmap(jax.grad(lambda w: jnp.sum(jnp.sin(w))))(jnp.ones((8, 3)))
    jax.set_mesh(mesh)  # and it stays set
assert mapped.report.ok, mapped.report
(report,) = watched.report.reports
print(right.verdict, wrong.verdict, report.verdict, report.rules[0].where)
"""


def test_gradients_on_a_mesh_with_explicit_axes_are_checked_and_measured():
    require_printed("agrees differs differs <string>:21 (<lambda>)", EXPLICIT)


NAMED_BY_TYPES = """
import jax, jax.numpy as jnp, jaxnn
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("d",))
x = jax.device_put(jnp.arange(1.0, 9), NamedSharding(mesh, P("d")))
cube = jax.shard_map(lambda x: x**3, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
with jaxnn.watching() as watched:
    jax.jit(jax.grad(lambda x: jnp.sum(cube(x))))(x)
print(watched.report.reports[0].verdict)
"""


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11),
    reason="a program evaluated in float64 loses such shardings in JAX 0.12, watched or not",
)
def test_a_mesh_with_explicit_axes_may_be_named_by_the_types_of_arrays_alone():
    require_printed("agrees", NAMED_BY_TYPES)
