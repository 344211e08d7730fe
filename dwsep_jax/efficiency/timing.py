"""How long a program takes, how much memory it needs, and what the machine can do.

This module knows no model. What is counted rather than measured is in `nn.counting`.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dwsep_jax.console import say
from dwsep_jax.environment import memory_bytes
from dwsep_jax.errors import is_out_of_memory
from dwsep_jax.nn.counting import peak_bytes, read_cost

WARMUP_CALLS = 2
MIN_CALLS, MIN_SECONDS = 10, 2.0
# Slow programs get fewer than MIN_CALLS calls, but at least three.
MAX_SECONDS = 10.0
# What the machine is measured with: the side of a matrix, the length of an array.
CPU_SIZES, OTHER_SIZES = (2048, 2**26), (8192, 2**28)


class Timing(NamedTuple):
    """Wall-clock times of single calls; all None if the program was not measured.

    Attributes:
      median_ms: median.
      p95_ms: 95th percentile.
      spread_ms: interquartile range.
      num_calls: number of calls timed.
    """

    median_ms: float | None = None
    p95_ms: float | None = None
    spread_ms: float | None = None
    num_calls: int | None = None


class Measurement(NamedTuple):
    """Time and memory of a compiled program; None where a figure is unavailable.

    Attributes:
      timing: of its calls.
      compile_seconds: time to trace and compile it; shorter if the result was cached on
        disk (`jax_compilation_cache_dir`).
      bytes_per_second: memory traffic, by XLA's cost analysis.
      temporary_bytes: memory besides arguments and results, by XLA's analysis.
      peak_bytes: see `counting.peak_bytes`.
      device_peak_bytes: the most memory that the device has held for this process so
        far; None on a CPU.
    """

    timing: Timing = Timing()
    compile_seconds: float | None = None
    bytes_per_second: float | None = None
    temporary_bytes: int | None = None
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None


def measure_program(
    what: str, jitted: Callable, make_inputs: Callable[[int], tuple]
) -> Measurement:
    """Compile and time a `jax.jit` function.

    If the program does not fit into memory, says so and returns an empty measurement.

    Args:
      what: names the program in that message.
      jitted: a jitted function that returns arrays.
      make_inputs: see `time_calls`; jax must be able to trace it.
    """
    try:
        start = time.perf_counter()
        compiled = jitted.lower(*jax.eval_shape(make_inputs, 0)).compile()
        compile_seconds = time.perf_counter() - start
        needed, available = peak_bytes(compiled), memory_bytes()
        if needed is not None and needed > available:
            raise MemoryError(
                f"it needs {needed / 2**30:.1f} GiB of memory, but only "
                f"{available / 2**30:.1f} GiB is available"
            )
        timing = time_calls(compiled, make_inputs)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        say(f"not measured: {what}: {reason}")
        return Measurement()
    accessed, usage = read_cost(compiled, "bytes accessed"), compiled.memory_analysis()
    statistics = jax.local_devices()[0].memory_stats() or {}
    return Measurement(
        timing,
        compile_seconds,
        accessed and accessed / (1e-3 * timing.median_ms),
        usage and usage.temp_size_in_bytes,
        needed,
        statistics.get("peak_bytes_in_use"),
    )


def time_calls(run: Callable, make_inputs: Callable[[int], tuple]) -> Timing:
    """Time `run(*make_inputs(i))` for i = 0, 1, ..., each until its result is ready.

    After a warm-up, calls are timed for at least two seconds and ten calls. A program
    too slow to make ten calls in ten seconds gets as many as fit, but at least three.

    Args:
      run: a compiled function that returns arrays.
      make_inputs: makes the inputs of a call; not part of the time.
    """
    seconds: list[float] = []
    for i in itertools.count():
        if i <= WARMUP_CALLS:
            start = time.perf_counter()
        elapsed = time.perf_counter() - start
        least = 3 if elapsed >= MAX_SECONDS else MIN_CALLS
        if elapsed >= MIN_SECONDS and len(seconds) >= least:
            break
        inputs = jax.block_until_ready(make_inputs(i))
        before = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        if i >= WARMUP_CALLS:
            seconds.append(time.perf_counter() - before)
    percentiles = np.percentile(1e3 * np.array(seconds), [25, 50, 75, 95])
    low, median, high, p95 = percentiles.tolist()
    return Timing(median, p95, high - low, len(seconds))


def measure_machine(dtype: Any) -> dict[str, float]:
    """Measure the peak rates that this machine reaches.

    Returns:
      `matmul_flops_per_second`: of a product of two square matrices of `dtype`.
      `copy_bytes_per_second`: bytes read plus bytes written while incrementing an array
      larger than any cache, in place: on a CPU, writing to newly allocated memory takes
      several times as long, which is the operating system's time.
    """
    is_cpu = jax.default_backend() == "cpu"
    size, length = CPU_SIZES if is_cpu else OTHER_SIZES
    keys = jax.random.split(jax.random.key(0), 2)
    factors = tuple(jax.random.normal(key, (size, size), dtype) for key in keys)
    product = time_calls(jax.jit(jnp.matmul), lambda i: factors)
    increment = jax.jit(lambda array: array + 1, donate_argnums=0)
    copy = time_calls(increment, lambda i: (jnp.ones(length, jnp.float32),))
    return {
        "matmul_flops_per_second": 2 * size**3 / (1e-3 * product.median_ms),
        "copy_bytes_per_second": 2 * 4 * length / (1e-3 * copy.median_ms),
    }


def find_limit(
    flops_per_second: float | None,
    bytes_per_second: float | None,
    machine: Mapping[str, float],
) -> str | None:
    """Return what limits a program: "arithmetic", "memory" or "neither".

    The limit is whichever of the machine's peak rates the program comes closest to, if
    it reaches at least half of it (the roofline model, Williams et al. 2009). With
    neither, the time goes to many small operations, or to operations that are slower
    than they could be. None if a rate is unknown.
    """
    if flops_per_second is None or bytes_per_second is None:
        return None
    shares = {
        "arithmetic": flops_per_second / machine["matmul_flops_per_second"],
        "memory": bytes_per_second / machine["copy_bytes_per_second"],
    }
    nearest = max(shares, key=shares.get)
    return nearest if shares[nearest] >= 0.5 else "neither"
