"""Times and limits, with a clock that the test moves."""

import json
import types

import jax
import jax.numpy as jnp
import pytest

from dwsep_jax.efficiency import timing


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by one that stands still but for `clock.now`."""
    clock = types.SimpleNamespace(now=0.0)
    fake = types.SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(timing, "time", fake)
    return clock


def run_for(clock, durations):
    """Time calls that take the given seconds, one after the other, then the last."""
    calls = []

    def make_inputs(i):
        clock.now += 5e-3  # Not a part of what is timed.
        return (i,)

    def run(i):
        clock.now += durations[min(i, len(durations) - 1)]
        calls.append(i)
        return jnp.zeros(())

    return timing.time_calls(run, make_inputs), calls


def test_times_are_of_calls_after_the_warm_up(clock):
    durations = [9.0, 9.0, *(0.25 + 0.01 * (i % 5) for i in range(100))]
    times, calls = run_for(clock, durations)
    assert calls == list(range(timing.WARMUP_CALLS + times.num_calls))
    assert times.num_calls == 10
    assert times.median_ms == pytest.approx(270)
    assert times.spread_ms == pytest.approx(20)
    assert times.p95_ms == pytest.approx(290)


@pytest.mark.parametrize(
    ("seconds", "num_calls"),
    [(1e-4, 392), (1e-9, 400), (0.095, 20), (0.9, 10), (30, 3)],
)
def test_fast_programs_get_two_seconds_and_slow_ones_at_least_three_calls(
    clock, seconds, num_calls
):
    times, _ = run_for(clock, [seconds])
    assert times.num_calls == pytest.approx(num_calls, abs=2)
    assert times.median_ms == pytest.approx(1e3 * seconds)


def test_a_program_is_timed_to_its_end(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or x)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    times = timing.time_calls(lambda: "result", lambda i: ())
    assert waited.count("result") == timing.WARMUP_CALLS + times.num_calls


def test_compilation_is_timed_and_its_result_runs(clock):
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    compiled = timing.compile_program(jax.jit(lambda x: x + 1), x)
    assert compiled.run(jnp.zeros(3)).tolist() == [1, 1, 1]
    assert compiled.seconds == 0


def test_memory_is_arguments_results_and_what_is_in_between():
    def function(x):
        return jnp.tanh(x @ x) @ x

    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    compiled = timing.compile_program(jax.jit(function), x).run
    temporary = timing.temporary_bytes(compiled)
    assert temporary >= 2**20
    assert timing.peak_bytes(compiled) == temporary + 2 * 2**20
    in_place = jax.jit(lambda x: x + 1, donate_argnums=0)
    compiled = timing.compile_program(in_place, x).run
    assert timing.peak_bytes(compiled) == 2**20
    assert timing.tree_bytes({"a": jnp.zeros((3, 2)), "b": jnp.zeros(5, bool)}) == 29


def test_memory_that_is_not_told_is_none():
    compiled = types.SimpleNamespace(memory_analysis=lambda: None)
    assert timing.peak_bytes(compiled) is None
    assert timing.temporary_bytes(compiled) is None
    assert timing.device_peak_bytes() is None  # Of a CPU.


def test_the_machine_is_measured_by_a_product_and_a_copy(monkeypatch):
    def time_calls(run, make_inputs):
        seen.append(jax.tree.leaves(run(*make_inputs(0)))[0].shape)
        return timing.Timing(100.0, 100.0, 0.0, 1)

    seen = []
    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(timing, "CPU_SIZES", (8, 1000))
    machine = timing.measure_machine(jnp.float32)
    assert seen == [(8, 8), (1000,)]
    assert machine == {
        "matmul_flops_per_second": pytest.approx(2 * 8**3 / 0.1),
        "copy_bytes_per_second": pytest.approx(2 * 4 * 1000 / 0.1),
    }
    json.dumps(machine)


@pytest.mark.parametrize(
    ("flops", "num_bytes", "limit"),
    [
        (60, 5, "arithmetic"),
        (60, 9, "memory"),
        (40, 5.1, "memory"),
        (40, 4, "neither"),
        (None, 9, None),
        (60, None, None),
    ],
)
def test_what_limits_is_what_is_nearest_to_the_machine(flops, num_bytes, limit):
    machine = {"matmul_flops_per_second": 100, "copy_bytes_per_second": 10}
    assert timing.find_limit(flops, num_bytes, machine) == limit
