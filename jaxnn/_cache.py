"""A folder in which checks keep compiled programs for the next process."""

import os
import pathlib
import platform
import sys

import jax

# Programs that compile faster than this many seconds are not kept.
LEAST = 0.02
# The oldest programs are deleted when all of them take more bytes than this.
MOST = 2**28


def keep_programs() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX has been given a folder or told
    to keep none (`JAX_ENABLE_COMPILATION_CACHE=false`).
    """
    names = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
    chosen, is_on = (getattr(jax.config, name) for name in names)
    if chosen or not is_on:
        return
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        # Machines that share a home may have different processors, and from Python 3.14 on, JAX
        # compresses programs otherwise.
        place = f"{platform.node() or 'here'}-{sys.implementation.cache_tag}"
        folder = pathlib.Path(caches, "jaxnn", place)
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder)
    except (OSError, RuntimeError):  # no home, or none that can be written to
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)


def _make_room(folder: pathlib.Path) -> None:
    """Delete the oldest programs of a folder that has grown too large."""
    kept = [(path.stat(), path) for path in folder.iterdir()]
    size = 0
    for stat, path in sorted(kept, key=lambda pair: pair[0].st_mtime, reverse=True):
        size += stat.st_size
        if size > MOST:
            path.unlink(missing_ok=True)
