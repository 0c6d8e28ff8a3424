"""Checkpoints: everything comes back as it was, what does not fit is named, and a file that is not
whole is never believed.
"""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from jaxnn import load_checkpoint, save_checkpoint
from jaxnn._files import locked, replacing
from jaxnn.training.checkpoint import checkpoints, delete_leftovers

STATE = {
    "params": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros((), jnp.bfloat16)},
    "opt_state": (jnp.int32(3), None),
}


def equal(a, b):
    a, b = (
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in (a, b)
    )
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.int8,
    np.int64,
    np.uint16,
    np.uint32,
    np.bool_,
    np.complex64,
    np.complex128,
]
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def arrays(draw):
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(SHAPES)
    size = int(np.prod(shape)) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    if dtype.kind == "b":
        content = bytes(byte % 2 for byte in content)
    return np.frombuffer(content, dtype).reshape(shape)


TREES = st.recursive(
    arrays() | st.integers(0, 99).map(jax.random.key) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    TREES,
    st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.floats(allow_nan=False)),
)
def test_any_tree_of_any_dtype_comes_back(tmp_path_factory, tree, info):
    directory = tmp_path_factory.mktemp("c")
    save_checkpoint(
        directory,
        3,
        {"tree": tree},
        records={"r": np.arange(4.0), "b": np.ones(3, jnp.bfloat16)},
        info=info,
    )
    found = load_checkpoint(directory)
    back = found.restore("tree", tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert all(map(equal, jax.tree.leaves(back), jax.tree.leaves(tree)))
    assert (found.step, found.info, found.records["r"].tolist()) == (3, info, [0, 1, 2, 3])
    assert repr(found) == f"<Checkpoint: step 3; {', '.join(['tree', 'r', 'b', *info])}>"
    assert found.records["b"].dtype == jnp.bfloat16 and found.records["b"].tolist() == [1, 1, 1]


@pytest.mark.promotes
def test_the_state_of_an_optimiser_comes_back(tmp_path):
    params = STATE["params"]
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)
    )
    state = optimizer.init(params)
    save_checkpoint(tmp_path, 1, {"params": params, "opt_state": state})
    back = load_checkpoint(tmp_path).restore("opt_state", state)
    assert jax.tree.structure(back) == jax.tree.structure(state) and all(
        map(equal, *map(jax.tree.leaves, (back, state)))
    )


def test_the_newest_are_kept(tmp_path):
    for step in (1, 5, 20, 100):
        save_checkpoint(tmp_path, step, STATE, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step_000000000020.npz",
        "step_000000000100.npz",
    ]
    assert (
        load_checkpoint(tmp_path).step == 100
        and load_checkpoint(checkpoints(tmp_path)[0]).step == 20
    )


def test_numpy_opens_it(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"params": {"w": jnp.arange(3.0)}})
    with np.load(path) as archive:
        assert archive["0"].tolist() == [0, 1, 2]


W, B = STATE["params"]["w"], STATE["params"]["b"]


@pytest.mark.parametrize(
    "part, like, message",
    [
        ("params", {"w": W.T, "b": B}, r"`params\['w'\]` .* float32\[2, 3\]. Got float32\[3, 2\]."),
        (
            "params",
            {"w": np.zeros((2, 3)), "b": B},
            r"`params\['w'\]` .* float32\[2, 3\]. Got float64\[2, 3\].",
        ),
        (
            "params",
            {"w": W, "b": jnp.zeros((), jnp.float16)},
            r"`params\['b'\]` .* bfloat16\[\]. Got float16\[\].",
        ),
        ("params", {"w": W}, r"`params\['b'\]` .* which holds bfloat16\[\]. Got nothing."),
        (
            "params",
            {"w": W, "b": B, "c": jnp.ones(2)},
            r"`params\['c'\]` .* which holds nothing. Got float32\[2\].",
        ),
        (
            "best",
            STATE["params"],
            r"`part` must be one of \['opt_state', 'params'\], .* Got 'best'.",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, part, like, message):
    save_checkpoint(tmp_path, 1, STATE)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path).restore(part, like)


def good(tmp_path):
    return save_checkpoint(tmp_path, 1, STATE, records={"loss": np.ones(3)}).read_bytes()


def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def changed(content, **change):
    parts = members(content)
    return packed(
        {**parts, "header.json": json.dumps({**json.loads(parts["header.json"]), **change})}
    )


def npy(shape, dtype="<f4", content=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"shape": shape, "fortran_order": False, "descr": dtype}
    )
    return buffer.getvalue() + content


BROKEN = {
    "empty": lambda good: b"",
    "cut in half": lambda good: good[: len(good) // 2],
    "without its last byte": lambda good: good[:-1],
    "a picture": lambda good: b"\x89PNG" + good,
    "one bit flipped in an array": lambda good: good.replace(
        np.float32(5).tobytes(), np.float32(6).tobytes()
    ),
    "of NumPy's own": lambda good: packed({"0.npy": npy((0,))}),
    "packed": lambda good: packed(members(good), zipfile.ZIP_DEFLATED),
    "another format": lambda good: changed(good, format="else"),
    "a later version": lambda good: changed(good, version=3),
    "a step that is no number": lambda good: changed(good, step="1"),
    "leaves of nonsense": lambda good: changed(good, leaves=[1, 2, 3]),
    "an unknown dtype": lambda good: changed(
        good, leaves=[{"part": "p", "path": "", "dtype": "os.system", "key": None}] * 3
    ),
    "a missing array": lambda good: packed(
        {k: v for k, v in members(good).items() if k != "1.npy"}
    ),
    "a shape larger than its bytes": lambda good: packed(
        {**members(good), "0.npy": npy((10**12,))}
    ),
    "pickled objects": lambda good: packed(
        {**members(good), "0.npy": npy((1,), "|O", b"cos\nsystem\n(S'true'\ntR.")}
    ),
    "a header that is a list": lambda good: packed({**members(good), "header.json": "[]"}),
    "a header nested without end": lambda good: packed(
        {**members(good), "header.json": "[" * 100000}
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_whole_is_an_error_and_the_one_before_is_used_when_asked(tmp_path, name):
    save_checkpoint(tmp_path, 7, STATE)
    content = BROKEN[name](good(tmp_path / "other"))
    (tmp_path / "step_000000000009.npz").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"step_000000000009.npz: must be an intact checkpoint. Got "
    ):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path, previous=True).step == 7
    other = tmp_path / "other.npz"  # a name that says no step
    other.write_bytes(content)
    with pytest.raises(ValueError, match=r"other.npz: must be an intact checkpoint. Got "):
        load_checkpoint(other)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_changed_bytes_are_seen_or_change_nothing(tmp_path, data):
    content = bytearray(good(tmp_path / "good"))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.npz"
    path.write_bytes(content)
    try:
        found = load_checkpoint(path)
    except ValueError as error:
        assert "must be an intact checkpoint. Got" in str(error)
    else:
        assert all(
            map(
                equal,
                jax.tree.leaves(found.restore("params", STATE["params"])),
                jax.tree.leaves(STATE["params"]),
            )
        )


def test_a_changed_end_is_seen_wherever_it_sends_the_reader(tmp_path):
    content, path = good(tmp_path / "good"), tmp_path / "changed.npz"
    for place in range(len(content) - 22, len(content)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(content)
            changed[place] ^= change
            path.write_bytes(changed)
            with contextlib.suppress(ValueError):
                assert load_checkpoint(path).step == 1


def test_a_checkpoint_is_read_array_by_array(tmp_path):
    state = {f"w{i}": np.full(2**18, i, np.float32) for i in range(8)}
    save_checkpoint(tmp_path, 1, {"params": state})
    tracemalloc.start()
    found = load_checkpoint(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * sum(x.nbytes for x in state.values())
    assert found.restore("params", state)["w7"][0] == 7


def test_nothing_is_a_clear_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="`source` must hold a checkpoint. Got .*, which has none."
    ):
        load_checkpoint(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match="`source` must be a checkpoint or a directory of them. Got '.*nowhere'.",
    ):
        load_checkpoint(tmp_path / "nowhere")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, STATE)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, STATE, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000000001.npz"]


def test_a_file_that_may_not_grow_leaves_what_was_there(tmp_path):
    program = (
        "import resource, signal, sys, numpy as np, jaxnn\n"
        "jaxnn.save_checkpoint(sys.argv[1], 1, {'params': np.zeros(9)})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "try:\n    jaxnn.save_checkpoint(sys.argv[1], 2, {'params': np.zeros(99999)})\n"
        "except OSError as error:\n    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert "refused: [Errno 27] File too large" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000000001.npz"]


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "file" / "below", 1, STATE)


def test_a_directory_belongs_to_one_run(tmp_path):
    (tmp_path / ".step_000000000004.npz.123.tmp").write_bytes(b"what a killed run had begun")
    with locked("checkpoint", tmp_path) as folder:
        delete_leftovers(folder)
        assert not list(tmp_path.glob(".step*"))
        with (
            pytest.raises(
                BlockingIOError,
                match="`checkpoint` must be used by one run at a time. Got .*, in use.",
            ),
            locked("checkpoint", tmp_path),
        ):
            pass
    with locked("checkpoint", tmp_path):
        pass


def test_a_replacement_that_fails_leaves_no_trace(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
