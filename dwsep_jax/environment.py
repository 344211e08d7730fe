"""The machine of a run: its devices, versions, memory and compiler."""

import ctypes
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from dwsep_jax.data.cache import user_cache

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "dwsep_jax")


def describe_environment(dtype: str, seed: int) -> dict[str, Any]:
    """Return device kind and count, platform, versions, dtype, seed, and git commit.

    The commit is null where this package is not in a git checkout.
    """
    device = jax.devices()[0]
    return {
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "platform": device.platform,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "dtype": dtype,
        "seed": seed,
        "git_commit": _git_commit(),
    }


def compiler_options(deterministic: bool) -> dict[str, Any] | None:
    """Return what has XLA compute the same bits each time on a GPU.

    A CPU takes the option too, and has no need of it.
    """
    return {"xla_gpu_deterministic_ops": True} if deterministic else None


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache, for the next start to find.

    Does nothing where JAX_COMPILATION_CACHE_DIR names a place, or jax has one already.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    # Else the directory's own path would be a part of every key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled"))


def keep_freed_memory() -> None:
    """Have the C library keep what XLA frees, for the next call to find.

    XLA:CPU takes its buffers anew for each call, and the system clears each page before
    its first use: that was a quarter of an inference of 128 images. With glibc alone;
    the process keeps the most that it has used.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**26)


def memory_bytes() -> int:
    """Return the memory of the device, or of the machine where the device shares it."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit():
    root = pathlib.Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
