"""Data: the digits that ship, the IDX reader on good and broken files, batches drawn from keys."""

import gzip
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings, strategies as st

from jaxnn import load_digits, load_mnist, one_hot, sample_batch
from jaxnn.data import read_idx, shuffled


def test_the_digits_are_the_real_ones():
    digits = load_digits()
    assert digits.x_train.shape == (1500, 64) and digits.x_test.shape == (297, 64)
    labels = np.concatenate([digits.t_train, digits.t_test])
    # Class counts of the test part of the UCI set, from its own description.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = np.concatenate([digits.x_train, digits.x_test])
    assert (
        pixels.min() == 0
        and pixels.max() == 1
        and pixels.sum() * 16 == pytest.approx(561718, rel=1e-6)
    )


@pytest.mark.slow
def test_the_digits_are_those_of_scikit_learn():
    reference = sklearn.datasets.load_digits()
    digits = load_digits()
    ours = {
        (*np.round(np.asarray(x) * 16).astype(int), int(t))
        for x, t in zip(digits.x_test, digits.t_test, strict=True)
    }
    theirs = {
        (*x.astype(int), int(t)) for x, t in zip(reference.data, reference.target, strict=True)
    }
    assert ours <= theirs


def test_the_split_is_fixed_by_its_seed():
    assert np.array_equal(load_digits().t_test, load_digits().t_test)
    assert not np.array_equal(load_digits().t_test, load_digits(seed=1).t_test)
    assert load_digits(test_size=97).x_train.shape == (1700, 64)


def idx(array, dtype=8):
    return (
        struct.pack(f">HBB{array.ndim}I", 0, dtype, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


IMAGES, LABELS = np.arange(5 * 4 * 3).reshape(5, 4, 3), np.array([1, 2, 3, 9, 0])


@pytest.fixture
def mnist(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:2])))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:2]))
    return tmp_path


def test_mnist_files_are_read_plain_and_zipped(mnist):
    digits = load_mnist(mnist)
    np.testing.assert_allclose(digits.x_train, IMAGES.reshape(5, 12) / 255, rtol=1e-6)
    assert digits.t_train.tolist() == [1, 2, 3, 9, 0] and digits.t_test.tolist() == [1, 2]
    assert load_mnist(str(mnist)).x_test.shape == (2, 12)


BROKEN = [
    (
        "train-images-idx3-ubyte",
        None,
        FileNotFoundError,
        r"`directory` must hold train-images-idx3-ubyte or .*\.gz",
    ),
    (
        "train-images-idx3-ubyte",
        b"",
        ValueError,
        r"an IDX header of 16 bytes must come first. Got 0 bytes",
    ),
    (
        "train-images-idx3-ubyte",
        idx(IMAGES)[:-1],
        ValueError,
        r"the header says \(5, 4, 3\), so 60 bytes .* Got 59 bytes.",
    ),
    (
        "train-images-idx3-ubyte",
        idx(IMAGES) + b"x",
        ValueError,
        r"so 60 bytes must follow it. Got more.",
    ),
    (
        "train-images-idx3-ubyte",
        idx(LABELS).ljust(30),
        ValueError,
        r"magic number must be 0x00000803 .* Got 0x00000801.",
    ),
    (
        "train-images-idx3-ubyte",
        idx(IMAGES, 13),
        ValueError,
        r"magic number must be 0x00000803 .* Got 0x00000d03.",
    ),
    (
        "train-images-idx3-ubyte",
        idx(IMAGES[:4]),
        ValueError,
        r"must hold one label for each of the 4 images. Got 5 labels.",
    ),
    (
        "train-images-idx3-ubyte",
        struct.pack(">HBB3I", 0, 8, 3, 2**31, 9, 9),
        ValueError,
        r"at most 2147483648 bytes",
    ),
    (
        "t10k-images-idx3-ubyte.gz",
        idx(IMAGES[:2, :2]),
        ValueError,
        r"images must have the training images' size, \(4, 3\). Got \(2, 3\).",
    ),
    (
        "t10k-images-idx3-ubyte.gz",
        gzip.compress(idx(IMAGES[:2]), mtime=0)[:-9],
        ValueError,
        r"must be a valid gzip file",
    ),
    (
        "t10k-labels-idx1-ubyte",
        idx(np.array([3, 10])),
        ValueError,
        r"labels must be 0 to 9. Got 10.",
    ),
]


@pytest.mark.parametrize("name, content, error, message", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(mnist, name, content, error, message):
    (mnist / name).unlink()
    if content is not None:
        (mnist / name).write_bytes(content)
    with pytest.raises(error, match=message):
        load_mnist(mnist)


@settings(max_examples=300)
@given(st.binary(max_size=60), st.booleans(), st.integers(0, 30))
def test_the_reader_gives_the_right_array_or_a_clear_error(tmp_path_factory, noise, zipped, cut):
    good = idx(np.arange(6).reshape(1, 2, 3))
    content = good[:cut] + noise
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(content) if zipped else content)
    try:
        array = read_idx(path, 3)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert content == idx(array)


def test_one_hot(dtype):
    assert one_hot(jnp.array([2, 0]), 3, dtype).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(jnp.array(1), 2, dtype).dtype == dtype
    beyond = jax.jit(one_hot, static_argnums=1)(jnp.array([5, 3, -1]), 3)
    assert bool(jnp.isnan(beyond).all())


def test_a_batch_is_drawn_with_replacement_and_rows_stay_together():
    data = {"x": jnp.arange(10.0)[:, None], "t": jnp.arange(10)}
    batch = sample_batch(jax.random.key(0), data, 200)
    assert batch["x"].shape == (200, 1) and batch["x"][:, 0].tolist() == batch["t"].tolist()
    assert set(batch["t"].tolist()) == set(range(10))
    again = sample_batch(jax.random.key(0), data, 200)
    assert np.array_equal(batch["t"], again["t"])


@pytest.mark.parametrize("count", [1, 2, 3, 100, 128, 129, 10_000])
def test_an_epoch_has_each_example_once(count):
    order = shuffled(jax.random.key(0), count)
    assert sorted(order.tolist()) == list(range(count)) and order.dtype == jnp.int32
    assert count < 4 or order.tolist() != list(range(count))


def test_every_order_is_as_likely_as_another():
    orders = np.asarray(
        jax.vmap(lambda key: shuffled(key, 4))(jax.random.split(jax.random.key(0), 24_000))
    )
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (
        np.sum((counts - 1000) ** 2) / 1000 < 49.7
    )  # chi-squared with 23 degrees of freedom: 1 in 1,000 is above


def test_the_order_is_the_same_in_a_compiled_program_and_with_64_bits():
    keys = jax.random.split(jax.random.key(0), 3)
    alone = [shuffled(key, 9) for key in keys]
    assert np.array_equal(alone, jax.jit(jax.vmap(lambda key: shuffled(key, 9)))(keys))
    assert np.array_equal(alone, jax.lax.map(lambda key: shuffled(key, 9), keys))
    with jax.enable_x64(True):
        assert np.array_equal(alone[0], shuffled(keys[0], 9))
