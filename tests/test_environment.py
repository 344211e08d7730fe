"""What a process is told before it computes."""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import jax
import pytest

from dwsep_jax import environment
from dwsep_jax.data.read import find_data_dir
from dwsep_jax.places import user_cache, user_home
from dwsep_jax.workdir import read_rows
from tests.test_package import MAIN, python, tiny_run

ROOT = pathlib.Path(__file__).parents[1]
CACHE = "jax_compilation_cache_dir"
XLA_CACHES = "jax_persistent_cache_enable_xla_caches"


@pytest.fixture(autouse=True)
def _restored():
    before = {name: getattr(jax.config, name) for name in (CACHE, XLA_CACHES)}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(CACHE, None)
    environment.use_compilation_cache()
    assert pathlib.Path(getattr(jax.config, CACHE)) == user_cache() / "compiled"
    assert user_cache() == tmp_path / "dwsep_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == user_home() / ".cache" / "dwsep_jax"
    # Else moving the directory would make all that is in it useless.
    assert getattr(jax.config, XLA_CACHES) == "none"
    jax.config.update(CACHE, "/elsewhere")
    environment.use_compilation_cache()
    assert getattr(jax.config, CACHE) == "/elsewhere"


def test_a_user_without_a_home_has_a_temporary_one(monkeypatch, tmp_path):
    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    # As it is for a user without an account.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = tmp_path / f"dwsep_jax-{os.getuid()}"
    assert user_home() == home
    assert home.stat().st_mode & 0o777 == 0o700
    assert user_cache() == home / ".cache" / "dwsep_jax"
    assert find_data_dir(None) == home / "tensorflow_datasets"

    elsewhere = tmp_path / "elsewhere"
    home.rename(elsewhere)
    home.symlink_to(elsewhere)  # By somebody who wants to see what is in it.
    assert user_home() != home
    assert user_home().parent == tmp_path


TERMINAL = dict(NO_COLOR="1", TERM="dumb", COLUMNS="10", PYTHONIOENCODING="ascii")
PLACE = dict(LC_ALL="C", TZ="Asia/Kathmandu")
CACHES = dict.fromkeys(("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"))
HOMELESS = dict(HOME=None, MPLBACKEND="module://nowhere", PYTHONOPTIMIZE="2")
READ_ONLY = dict(HOME="/proc", PYTHONWARNINGS="error", JAX_ENABLE_X64="1")
STRICT = dict(JAX_NUMPY_DTYPE_PROMOTION="strict", JAX_NUMPY_RANK_PROMOTION="raise")
DEBUG = dict(JAX_DEBUG_NANS="1", JAX_DEBUG_INFS="1", JAX_DEBUG_KEY_REUSE="1")
DEBUG |= dict(JAX_ENABLE_CHECKS="1")
# As if somebody set the clock back again and again.
CLOCK = "import time; clock = time.time; time.time = lambda: 3e9 - clock()\n"


@pytest.mark.parametrize(
    "changes",
    [CACHES | HOMELESS | STRICT | DEBUG, CACHES | READ_ONLY | TERMINAL | PLACE],
    ids=["homeless", "read-only"],
)
def test_a_run_and_its_report_take_the_environment_as_it_is(tmp_path, changes):
    workdir = tmp_path / "gr\u00fcn"
    arguments = tiny_run(workdir, "num_epochs=1", "warmup_epochs=0")
    for mode in (arguments, ["--mode=report", f"--workdir={workdir}"]):
        result = python(CLOCK + MAIN, *mode, **changes)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert (workdir / "report.html").exists()
    (row,) = read_rows(workdir)
    assert 0 < row["elapsed_seconds"] < 1000


# Runs a program with 128 MiB inside; prints how many pages were new to a call. Not each
# finds what the last one freed, if there is something small behind it; so the least of
# some calls counts.
COUNT_PAGES = """
import resource, sys
import jax, jax.numpy as jnp
from dwsep_jax import cli
if sys.argv[1] == "keep":
    cli.prepare_process("cpu")
def double(i, x):
    return jax.lax.optimization_barrier(2 * x)
fill = jax.jit(lambda x: jax.lax.fori_loop(0, 2, double, x * jnp.ones(2**25)).sum())
faults = []
for _ in range(20):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    fill(1.0).block_until_ready()
print(min(after - before for before, after in zip(faults, faults[1:])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_freed_memory_is_kept_for_the_next_call():
    def count(word):
        command = [sys.executable, "-c", COUNT_PAGES, word]
        return int(subprocess.check_output(command, text=True, cwd=ROOT))

    # Pages may be of 4 KiB, or many times that.
    assert count("keep") < count("free") / 4


# Two threads allocate at the same time; prints how many arenas malloc has.
COUNT_ARENAS = """
import ctypes, threading
from dwsep_jax import cli
cli.prepare_process("cpu")
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(2)
def allocate():
    together.wait()
    libc.malloc(ctypes.c_size_t(1000))
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
stream = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(stream))
libc.fflush(ctypes.c_void_p(stream))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_threads_do_not_wait_for_one_arena():
    command = [sys.executable, "-c", COUNT_ARENAS]
    assert subprocess.check_output(command, text=True, cwd=ROOT).count("<heap nr=") > 1
