"""Settings of all tests: two CPU devices, and promotions that are errors."""

import os
import sys
import tempfile

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2"
    # Compiles several times faster; the programs of tests run once.
    " --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# What several tests, workers and child processes need is compiled once in a session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="dwsep_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Keep every test out of the user's datasets and caches."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_hook(monkeypatch):
    """Keep pytest's report of errors that nobody can catch, which `main` turns off."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture
def recompiled():
    """Compile anew what a test has changed, and forget it afterwards."""
    from dwsep_jax.train import programs

    programs._compile.cache_clear()
    yield
    programs._compile.cache_clear()


@pytest.fixture
def strict():
    """Let implicit conversions between dtypes be errors."""
    with jax.numpy_dtype_promotion("strict"):
        yield
