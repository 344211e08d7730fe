"""How long a compiled program takes, what memory it needs, and what its machine can do.

Knows no model. What is counted instead of measured is in `efficiency`.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WARMUP_CALLS = 2
MIN_CALLS, MIN_SECONDS = 10, 2.0
# A slow program gets fewer calls than MIN_CALLS, but never fewer than three.
MAX_SECONDS = 10.0
# Of what the machine is measured by: the side of a matrix, the length of an array.
CPU_SIZES, OTHER_SIZES = (2048, 2**26), (8192, 2**28)


class Timing(NamedTuple):
    """Wall-clock times of single calls, in milliseconds.

    Attributes:
      median_ms: half of the calls took less.
      p95_ms: 95 of 100 calls took less.
      spread_ms: the interquartile range: the middle half of the calls lies within it.
      num_calls: calls timed.
    """

    median_ms: float
    p95_ms: float
    spread_ms: float
    num_calls: int


class Compiled(NamedTuple):
    """A compiled program and how long it took to trace and compile, in seconds."""

    run: Callable
    seconds: float


def compile_program(jitted: Callable, *args: Any) -> Compiled:
    """Compile a `jax.jit` function for arguments, or for their shapes and dtypes.

    Compilations that are kept on disk (`jax_compilation_cache_dir`) make it shorter.
    """
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    return Compiled(compiled, time.perf_counter() - start)


def time_calls(run: Callable, make_inputs: Callable[[int], tuple]) -> Timing:
    """Time `run(*make_inputs(i))` for i = 0, 1, ..., up to the end of its computation.

    After a warm-up: for two seconds and at least ten calls, but of a program that takes
    over ten seconds for them no more than there is time for, and at least three.

    Args:
      run: a compiled function that returns arrays.
      make_inputs: makes the inputs of a call, outside of what is timed.
    """
    seconds: list[float] = []
    for i in itertools.count():
        if i <= WARMUP_CALLS:
            start = time.perf_counter()
        elif _is_enough(len(seconds), time.perf_counter() - start):
            break
        inputs = jax.block_until_ready(make_inputs(i))
        before = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        if i >= WARMUP_CALLS:
            seconds.append(time.perf_counter() - before)
    low, median, high, p95 = np.percentile(
        1e3 * np.array(seconds), [25, 50, 75, 95]
    ).tolist()
    return Timing(median, p95, high - low, len(seconds))


def _is_enough(num_calls, seconds):
    if num_calls >= MIN_CALLS and seconds >= MIN_SECONDS:
        return True
    return num_calls >= 3 and seconds >= MAX_SECONDS


def peak_bytes(compiled: Any) -> int | None:
    """Return the memory that a compiled program needs at once, by XLA's analysis.

    It is the sum of arguments, results and temporary memory, what is shared counted
    once: XLA's own peak leaves out the temporary memory on a CPU (jax 0.10.2). None
    where XLA does not say.
    """
    usage = compiled.memory_analysis()
    if usage is None:
        return None
    arguments, results = usage.argument_size_in_bytes, usage.output_size_in_bytes
    shared, temporary = usage.alias_size_in_bytes, usage.temp_size_in_bytes
    return arguments + results - shared + temporary


def temporary_bytes(compiled: Any) -> int | None:
    """Return what a compiled program needs besides arguments and results, by XLA."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


def device_peak_bytes() -> int | None:
    """Return the most memory the device has held for this process; None on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def tree_bytes(tree: Any) -> int:
    """Return the bytes of the arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def measure_machine(dtype: Any) -> dict[str, float]:
    """Measure what this machine reaches with nothing in its way.

    Returns:
      `matmul_flops_per_second`: of a product of two square matrices of `dtype`.
      `copy_bytes_per_second`: bytes read plus bytes written, of an array that is larger
      than any cache. It is written in place: on a CPU, memory that is fresh from the
      system takes several times as long, and that is the system's time.
    """
    is_cpu = jax.default_backend() == "cpu"
    size, length = CPU_SIZES if is_cpu else OTHER_SIZES
    keys = jax.random.split(jax.random.key(0), 2)
    factors = [jax.random.normal(key, (size, size), dtype) for key in keys]
    product = time_calls(jax.jit(jnp.matmul), lambda i: (factors[0], factors[1]))
    arrays = [jnp.ones((length,), jnp.float32)]
    increment = jax.jit(lambda array: array + 1, donate_argnums=0)

    def rewrite():
        arrays.append(increment(arrays.pop()))
        return arrays

    copy = time_calls(rewrite, lambda i: ())
    return {
        "matmul_flops_per_second": 2 * size**3 / (1e-3 * product.median_ms),
        "copy_bytes_per_second": 2 * arrays[0].nbytes / (1e-3 * copy.median_ms),
    }


def find_limit(
    flops_per_second: float | None,
    bytes_per_second: float | None,
    machine: Mapping[str, float],
) -> str | None:
    """Return what limits a program: "arithmetic", "memory", or "neither".

    It is what the program comes nearer to of what `measure_machine` reached, if that is
    half of it or more. With neither, time goes to small operations one after the other,
    or to operations that are not as fast as they could be. None without the rates.
    """
    if flops_per_second is None or bytes_per_second is None:
        return None
    shares = {
        "arithmetic": flops_per_second / machine["matmul_flops_per_second"],
        "memory": bytes_per_second / machine["copy_bytes_per_second"],
    }
    nearest = max(shares, key=shares.get)
    return nearest if shares[nearest] >= 0.5 else "neither"
