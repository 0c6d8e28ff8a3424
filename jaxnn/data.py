"""Data: real handwritten digits, MNIST files, and mini-batches drawn from a key.

A data set is four arrays (`Digits`): images as rows of floats in [0, 1], labels as class indices.
The bundled digits and MNIST share a file format (IDX), so one reader serves both. The reader
validates everything that a file claims about itself.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from jaxnn._files import as_path
from jaxnn._jax import enable_x64
from jaxnn._validate import (
    as_array,
    describe,
    require_arrays,
    require_classes,
    require_count,
    require_floating_dtype,
    require_key,
    require_same_form,
)

_MNIST = {
    "x_train": "train-images-idx3-ubyte",
    "t_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "t_test": "t10k-labels-idx1-ubyte",
}


class Digits(NamedTuple):
    """A training set and a test set of images and labels.

    Attributes:
      x_train: images as rows, pixels scaled to [0, 1], float32.
      t_train: their labels, class indices, int32.
      x_test: images that are not trained on.
      t_test: their labels.

    Example:
      >>> {name: part.shape for name, part in load_digits()._asdict().items()}
      {'x_train': (1500, 64), 't_train': (1500,), 'x_test': (297, 64), 't_test': (297,)}
    """

    x_train: Float[Array, "train pixels"]
    t_train: Int[Array, "train"]  # noqa: F821
    x_test: Float[Array, "test pixels"]
    t_test: Int[Array, "test"]  # noqa: F821


def load_digits(seed: int = 0, test_size: int = 297) -> Digits:
    """The 1,797 real 8x8 digits that ship with the package, shuffled and split.

    Args:
      seed: for the shuffle before the split; the same seed gives the same split everywhere.
      test_size: number of images held out for testing.

    Returns:
      `Digits` with 64 pixels per image.

    Raises:
      ValueError: `test_size` leaves no image for training or none for testing.

    Source:
      "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, CC BY 4.0
      (`digits/SOURCE.txt`).

    Example:
      >>> load_digits().x_train.shape
      (1500, 64)
    """
    require_count("seed", seed)
    require_count("test_size", test_size, least=1)
    folder = files("jaxnn") / "digits"
    images = read_idx(folder / "images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / "labels-idx1-ubyte.gz", 1)
    if test_size >= len(images):
        raise ValueError(
            f"`test_size` must be under {len(images)}, the number of images. Got {test_size}."
        )
    order = np.random.default_rng(seed).permutation(len(images))
    x, t = _rows(images, 16)[order], labels.astype(np.int32)[order]
    parts = (x[test_size:], t[test_size:], x[:test_size], t[:test_size])
    return Digits(*map(jnp.asarray, parts))


def load_mnist(directory: str | Path) -> Digits:
    """Load MNIST (or Fashion-MNIST, KMNIST, ...) from its four IDX files, plain or gzipped.

    Args:
      directory: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
        `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each with or without the suffix
        `.gz`; `examples/fetch_mnist.py` fetches them.

    Returns:
      `Digits` with 784 pixels per image.

    Raises:
      FileNotFoundError: the directory or one of the files does not exist.
      ValueError: a file is truncated or mislabelled, or does not match the others; the message says
        which one and how.

    Source:
      LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86 (1998) 2278.

    Example:
      >>> load_mnist("nowhere")
      Traceback (most recent call last):
        ...
      FileNotFoundError: `directory` must be a directory with MNIST's IDX files. Got 'nowhere'.
    """
    folder = as_path("directory", directory)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`directory` must be a directory with MNIST's IDX files. Got {str(folder)!r}."
        )
    paths = {}
    for part, name in _MNIST.items():
        found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not found:
            raise FileNotFoundError(
                f"`directory` must hold {name} or {name}.gz. Got {str(folder)!r}, which has "
                f"neither."
            )
        paths[part] = found[0]
    arrays = {
        part: read_idx(path, 3 if part.startswith("x") else 1) for part, path in paths.items()
    }
    for half in ("train", "test"):
        images, labels = arrays[f"x_{half}"], arrays[f"t_{half}"]
        if len(images) != len(labels):
            raise ValueError(
                f"{paths[f't_{half}']}: must hold one label for each of the {len(images)} images. "
                f"Got {len(labels)} labels."
            )
        if not images.size:
            raise ValueError(
                f"{paths[f'x_{half}']}: must hold at least one image and one pixel. Got shape "
                f"{images.shape}."
            )
        if labels.size and labels.max() > 9:
            raise ValueError(f"{paths[f't_{half}']}: labels must be 0 to 9. Got {labels.max()}.")
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise ValueError(
            f"{paths['x_test']}: images must have the training images' size, "
            f"{arrays['x_train'].shape[1:]}. "
            f"Got {arrays['x_test'].shape[1:]}."
        )
    return Digits(
        **{
            part: jnp.asarray(_rows(array, 255) if part.startswith("x") else array.astype(np.int32))
            for part, array in arrays.items()
        }
    )


def read_idx(
    path: str | Path | Traversable, axes: int, limit: int = 2**31
) -> UInt8[np.ndarray, "..."]:
    """Read an IDX file of unsigned bytes, the format of MNIST: magic number, sizes, then the bytes.

    Args:
      path: the file; gzip is detected by its first bytes, whatever the name.
      axes: number of axes that the array must have: 3 for images, 1 for labels.
      limit: maximum number of bytes of data, so that a forged size cannot exhaust the memory.

    Returns:
      The array, uint8.

    Raises:
      ValueError: wrong magic number, number of axes or length; the message gives the expected and
        the actual value.

    Example:
      >>> read_idx(files("jaxnn") / "digits" / "images-idx3-ubyte.gz", 3).shape
      (1797, 8, 8)
    """
    require_count("axes", axes, least=1, most=255)
    require_count("limit", limit, least=1)
    source = path if isinstance(path, Traversable) else as_path("path", path)
    if not source.is_file():
        raise FileNotFoundError(f"`path` must be a file. Got {str(path)!r}.")
    head = 4 + 4 * axes
    with source.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            stream = gzip.GzipFile(fileobj=raw) if zipped else raw
            header = stream.read(head)
            if len(header) < head:
                raise ValueError(
                    f"{path}: an IDX header of {head} bytes must come first. Got {len(header)} "
                    f"bytes in all."
                )
            zero, dtype, dims = struct.unpack(">HBB", header[:4])
            if zero != 0 or dtype != 8 or dims != axes:
                raise ValueError(
                    f"{path}: the magic number must be 0x{0x0800 + axes:08x} (unsigned bytes, "
                    f"{axes} "
                    f"{'axis' if axes == 1 else 'axes'}). Got 0x{header[:4].hex()}."
                )
            shape = struct.unpack(f">{axes}I", header[4:])
            size = math.prod(shape)
            if math.prod(max(n, 1) for n in shape) > limit:
                raise ValueError(
                    f"{path}: must hold at most {limit} bytes of data. Got a header that says "
                    f"{shape}, {size} bytes."
                )
            data = stream.read(size + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path}: must be a valid gzip file. Got one that cannot be unpacked: {error}."
            ) from None
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more"
        raise ValueError(
            f"{path}: the header says {shape}, so {size} bytes must follow it. Got {found}."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def one_hot(
    t: Int[ArrayLike, "*batch"], classes: int, dtype: Any = jnp.float32
) -> Float[Array, "*batch classes"]:
    """Rows of zeros with a one at the class index.

    Args:
      t: class indices, 0 to classes - 1.
      classes: number of classes.
      dtype: of the result.

    Returns:
      An array with one more axis than `t`. Under `jit` an index out of range cannot raise; its row
      is NaN.

    Raises:
      TypeError: `t` is not an integer array.
      ValueError: an index is out of range (outside `jit`).

    Source:
      the chapter, 4.2.1.

    Example:
      >>> one_hot(jnp.array([2, 0]), 3)
      Array([[0., 0., 1.],
             [1., 0., 0.]], dtype=float32)
    """
    require_count("classes", classes, least=1, most=2**31 - 1)
    require_floating_dtype("dtype", dtype)
    index: Any = as_array("t", t)
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"`t` must be class indices (integers). Got {describe(index)}.")
    require_classes("t", t, classes)  # before conversion, which would truncate 64 bits
    inside = ((index >= 0) & (index < classes))[..., None]
    rows = jax.nn.one_hot(index, classes, dtype=dtype)
    # A NaN computed by JAX would raise under jax_debug_nans even if unused; NumPy's does not.
    return jnp.where(inside, rows, np.asarray(np.nan, dtype))


def sample_batch(key: Key[Array, ""], data: PyTree, batch_size: int) -> PyTree:
    """A mini-batch drawn with replacement, as in the chapter.

    Args:
      key: a PRNG key; the same key draws the same examples.
      data: a pytree of arrays whose first axis is the examples, for instance `(x, t)`.
      batch_size: number of examples to draw.

    Returns:
      The drawn examples, in the structure of `data`.

    Raises:
      ValueError: the arrays differ in length or are empty, or `batch_size` is below 1.

    Source:
      the chapter, 4.2.3.

    Example:
      >>> sample_batch(jax.random.key(0), {"x": jnp.ones((5, 3)), "t": jnp.arange(5)}, 2)["x"].shape
      (2, 3)
    """
    require_key("key", key)
    require_count("batch_size", batch_size, least=1, most=2**31 - 1)
    chosen = jax.random.randint(key, (batch_size,), 0, count_examples(data), jnp.int32)
    return jax.tree.map(lambda a: jnp.asarray(a)[chosen], data)


def shuffled(key: Key[Array, ""], count: int) -> Int[Array, "count"]:  # noqa: F821
    """The numbers 0 to count - 1 in random order: each example once, as in an epoch.

    Example:
      >>> sorted(shuffled(jax.random.key(0), 4).tolist())
      [0, 1, 2, 3]
    """
    require_key("key", key)
    require_count("count", count, least=1, most=2**31 - 1)
    # Sorting single integers takes a fifth of the time of `jax.random.permutation`, which sorts
    # pairs, twice. Each integer is a random draw with an index in its lowest bits. The draw has at
    # least 33 bits, so ties, whose indices keep their order, are rare.
    width = (count - 1).bit_length()
    draws = jax.random.bits(key, (2, count), jnp.uint32)
    with enable_x64(True):
        high, low = draws.astype(jnp.uint64)
        mixed = jnp.sort((high << 32 | low) >> width << width | jnp.arange(count, dtype=jnp.uint64))
        return (mixed & 2**width - 1).astype(jnp.int32)


def count_examples(data: PyTree, name: str = "data") -> int:
    """The common length of the first axis of all arrays in `data`; errors call the data `name`.

    Raises:
      ValueError: there are no arrays, an array has no first axis, or the lengths differ or are
        zero.

    Example:
      >>> count_examples((jnp.ones((5, 3)), jnp.arange(5)))
      5
    """
    require_arrays(name, data)
    leaves = jax.tree_util.tree_flatten_with_path(data)[0]
    shapes = {f"`{name}{jax.tree_util.keystr(path)}`": np.shape(leaf) for path, leaf in leaves}
    lengths = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(lengths) != 1 or 0 in lengths:
        got = [f"{leaf} {shape}" for leaf, shape in shapes.items()] or ["no arrays"]
        several = f" and {len(got) - 4} more" if len(got) > 4 else ""
        raise ValueError(
            f"`{name}` must be arrays with the same number of examples, at least one, on the first "
            f"axis. Got {', '.join(got[:4])}{several}."
        )
    return lengths.pop()


def require_alike(name: str, data: PyTree, like: PyTree) -> None:
    """Refuse data whose examples differ in form from those of `like`, the training data."""
    form = lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)  # noqa: E731
    one, other = (jax.tree.map(form, tuple(whole)) for whole in (data, like))
    require_same_form(f"an example of {name}", one, "data", other)


def require_batches(name: str, data: PyTree) -> None:
    """Refuse data that are not a tuple of arrays of examples."""
    optimizer = hasattr(data, "init") and hasattr(data, "update")
    if isinstance(data, list) and data and all(isinstance(part, tuple | list) for part in data):
        raise TypeError(
            f"`{name}` must be a tuple of arrays, such as (x, t): stack the examples, or pass "
            "batches as a function of the epoch, as in `lambda epoch: batches`. Got a list of "
            f"{len(data)} tuples."
        )
    if not isinstance(data, tuple | list) or optimizer:
        hint = ""
        if isinstance(data, Iterator):
            hint = ", or a function of the epoch that makes its batches, as in `lambda epoch: ...`"
        elif optimizer:
            hint = ", and come before `optimizer`"
        raise TypeError(
            f"`{name}` must be a tuple of arrays, such as (x, t){hint}. Got {describe(data)}."
        )
    count_examples(data, name)


def _rows(images: np.ndarray, largest: int) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(largest)
