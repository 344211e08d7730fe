"""The machine that a run uses: devices, versions, memory and compiler."""

import ctypes
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from dwsep_jax.places import user_cache

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "dwsep_jax")


def describe_environment(dtype: str, seed: int) -> dict[str, Any]:
    """Return devices, CPU threads, platform, versions, dtype, seed, and git commit.

    The commit is None if this package is not in a git checkout.
    """
    device = jax.local_devices()[0]
    return {
        "device_kind": device.device_kind,
        **describe_parallelism(),
        "platform": device.platform,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "dtype": dtype,
        "seed": seed,
        "git_commit": _git_commit(),
    }


def describe_parallelism() -> dict[str, int]:
    """Return the numbers on which the order of XLA's sums on a CPU depends."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Not on macOS.
    threads = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return {"device_count": jax.device_count(), "cpu_threads": threads}


def compiler_options(deterministic: bool) -> dict[str, Any] | None:
    """Return XLA's options for bit-reproducible results on a GPU.

    A CPU accepts the option and does not need it.
    """
    return {"xla_gpu_deterministic_ops": True} if deterministic else None


def use_compilation_cache() -> None:
    """Cache compiled programs on disk, so that later starts compile nothing.

    An existing setting, such as JAX_COMPILATION_CACHE_DIR, takes precedence. Nothing is
    cached where the user has no directory for it.
    """
    directory = user_cache() / "compiled"
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # jax would warn of each program.
        return
    # Otherwise the path of the directory becomes part of every key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(directory))


def keep_freed_memory() -> None:
    """Make XLA:CPU use the memory of the last call again, where malloc is glibc's.

    It allocates its buffers at every call, and the kernel zeroes each page before its
    first use, which took up to half of a training step. glibc keeps what was freed, but
    of large buffers only the main thread's; so jax is told to compute in the thread
    that calls it. (One arena for all threads would do as well, but they would wait for
    each other: a step of small images took up to 1.9 times as long.) Call this in the
    main thread, before jax starts. The process never returns its peak memory to the
    system.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**26)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def memory_bytes() -> int:
    """Return the memory of the device in bytes, or of the machine if they share it."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
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
    command = ["git", "-C", root, "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
