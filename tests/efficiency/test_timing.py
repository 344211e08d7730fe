"""Timing with a clock that the test moves, and the limits of the machine."""

import itertools
import json
import types

import jax
import jax.numpy as jnp
import pytest

from dwsep_jax.efficiency import timing


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock with one that shows `clock.now`."""
    clock = types.SimpleNamespace(now=0.0)
    fake = types.SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(timing, "time", fake)
    return clock


def time_calls(clock, seconds):
    """Time calls that take the given seconds, one after the other."""

    def make_inputs(i):
        clock.now += 5e-3  # Not part of what is timed.
        return (i,)

    def run(i):
        assert i == next(calls)
        clock.now += next(seconds)
        return jnp.zeros(())

    calls = itertools.count()
    return timing.time_calls(run, make_inputs)


def test_percentiles_are_of_calls_after_the_warm_up(clock):
    seconds = itertools.cycle([0.25, 0.26, 0.27, 0.28, 0.29])
    got = time_calls(clock, itertools.chain([9.0, 9.0], seconds))
    assert got == pytest.approx((270, 290, 20, 10))


def test_fast_programs_run_for_two_seconds_and_slow_ones_at_least_three_times(clock):
    numbers = {1e-4: 392, 1e-9: 400, 0.095: 20, 0.9: 10, 30: 3}
    for seconds, num_calls in numbers.items():
        got = time_calls(clock, itertools.repeat(seconds))
        assert got.num_calls == pytest.approx(num_calls, abs=2)
        assert got.median_ms == pytest.approx(1e3 * seconds)


def test_a_call_is_timed_until_its_result_is_ready(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or x)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    got = timing.time_calls(lambda: "result", lambda i: ())
    assert waited.count("result") == timing.WARMUP_CALLS + got.num_calls


def test_memory_and_traffic_of_a_program(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    x = jnp.ones((512, 512))  # 1 MiB.
    product = jax.jit(lambda x: jnp.tanh(x @ x) @ x)
    got = timing.measure_program("a product", product, lambda i: (x,))
    assert got.temporary_bytes >= 2**20
    assert got.peak_bytes == got.temporary_bytes + 2 * 2**20
    assert got.bytes_per_second * 1e-3 * got.timing.median_ms >= 4 * 2**20
    assert got.compile_seconds > 0
    assert got.device_peak_bytes is None  # A CPU does not tell.
    in_place = jax.jit(lambda x: x + 1, donate_argnums=0)
    got = timing.measure_program("a sum", in_place, lambda i: (jnp.copy(x),))
    assert got.peak_bytes == 2**20


def test_only_errors_of_memory_are_caught(monkeypatch, capsys):
    def time_calls(run, make_inputs):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(timing, "time_calls", time_calls)
    arguments = ("it", jax.jit(jnp.sin), lambda i: (jnp.ones(1),))
    message = "INTERNAL: broken"
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        timing.measure_program(*arguments)
    message = "RESOURCE_EXHAUSTED: Out of memory\nsomewhere"
    assert timing.measure_program(*arguments) == timing.Measurement()
    monkeypatch.setattr(timing, "peak_bytes", lambda compiled: 2**32)
    monkeypatch.setattr(timing, "memory_bytes", lambda: 2**30)
    assert timing.measure_program(*arguments) == timing.Measurement()
    assert capsys.readouterr().out == (
        "not measured: it: RESOURCE_EXHAUSTED: Out of memory\n"
        "not measured: it: it needs 4.0 GiB of memory, but only 1.0 GiB is available\n"
    )


def test_the_machine_is_measured_by_a_product_and_a_copy(monkeypatch):
    def time_calls(run, make_inputs):
        seen.append(run(*make_inputs(0)).shape)
        return timing.Timing(100.0, 100.0, 0.0, 1)

    seen = []
    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(timing, "CPU_SIZES", (8, 1000))
    machine = timing.measure_machine(jnp.float32)
    assert seen == [(8, 8), (1000,)]
    want = {"matmul_flops_per_second": 2 * 8**3 / 0.1}
    want |= {"copy_bytes_per_second": 2 * 4 * 1000 / 0.1}
    assert machine == pytest.approx(want)
    json.dumps(machine)


def test_analyses_that_xla_lacks_are_none(monkeypatch):
    unknown = dict.fromkeys(("memory_analysis", "cost_analysis"), lambda: None)
    compiled = types.SimpleNamespace(**unknown)
    lowered = types.SimpleNamespace(compile=lambda: compiled)
    jitted = types.SimpleNamespace(lower=lambda *args: lowered)
    measured = timing.Timing(1.0, 1.0, 0.0, 1)
    monkeypatch.setattr(timing, "time_calls", lambda *args: measured)
    got = timing.measure_program("it", jitted, lambda i: (i,))
    assert got == timing.Measurement(measured, got.compile_seconds)


def test_the_limit_is_the_closest_peak_rate():
    machine = {"matmul_flops_per_second": 100, "copy_bytes_per_second": 10}
    limits = {(60, 5): "arithmetic", (60, 9): "memory", (40, 5.1): "memory"}
    limits |= {(40, 4): "neither", (None, 9): None, (60, None): None}
    assert {pair: timing.find_limit(*pair, machine) for pair in limits} == limits
