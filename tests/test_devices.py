"""Several devices: eight virtual ones, and two real processes; each run in a process of its own, with a time limit."""

import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jaxnn

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
    np.testing.assert_allclose(np.asarray(shared[name].addressable_data(0)), alone[name], rtol=1e-6, atol=1e-9)
print("same on", jax.device_count(), "devices of", jax.process_count(), "processes")
"""


def environment(devices):
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}


def test_the_entries_are_shared_by_eight_devices_with_the_same_numbers():
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment(8), capture_output=True, text=True, timeout=300)
    assert "same on 8 devices of 1 processes" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_the_entries_are_shared_by_two_processes_with_the_same_numbers():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number)],
            env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert "same on 2 devices of 2 processes" in out, err[-2000:]
    finally:
        for process in processes:
            process.kill()
