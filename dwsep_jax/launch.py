"""Starts a process of several that train one run together, and ends it.

Nothing here uses jax before `start`.
"""

import os
import signal
import socket
import sys
import time
from subprocess import DEVNULL, PIPE, Popen

from ml_collections import ConfigDict

from dwsep_jax import condense
from dwsep_jax.errors import ConfigError, DivergedError, ToldError

# As long as jax waits for all to come, and to end.
START_SECONDS = 300
# A process that is not heard of for so long is lost.
HEARTBEAT_SECONDS = 30

# In the errors of what waits for another process.
_OF_A_LOST_PROCESS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_FIELDS = ("coordinator_address", "num_processes", "process_id")
_process_id: int | None = None  # Once several have started.


def start(config: ConfigDict, mode: str, debug: bool) -> None:
    """Start jax in this process of several, if the config or the environment says so.

    Raises:
      ConfigError: for fields that do not fit together, an address that cannot be used,
        or a mode other than train.
    """
    global _process_id
    address, n, process_id = (config[name] for name in _FIELDS)
    given = [f"{name}={config[name]}" for name in _FIELDS if config[name] is not None]
    if n == 1 or (not given and mode == "sweep"):
        return  # A sweep's workers are processes of their own.
    if given:
        _check(config, given)
        source = f"--config.num_processes={n}"
    else:
        source, n, process_id = _ask_environment()
        if n == 1:
            return
    if mode != "train":
        raise ConfigError(
            f"--mode={mode} is for one process, and {source} has {n}; start it once, "
            "with --config.num_processes=1"
        )
    if address is not None:
        _reach(address, process_id)
    _condense_stderr(address or source, debug)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # See `signals`.
    arguments = (address, n, process_id) if address else ()
    # Otherwise Ctrl-C would wait, too.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    jax.distributed.initialize(*arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    signal.signal(signal.SIGINT, before)
    _process_id = process_id
    os.write(2, condense.STARTED)
    _silence_stdout()


def is_first() -> bool:
    """Return whether this is process 0, which writes the files, or the only one."""
    jax = sys.modules.get("jax")  # Without it there are no others.
    return jax is None or jax.process_index() == 0


def _ask_environment() -> tuple[str, int, int]:
    """Return what started this process, how many of them, and which one this is."""
    try:
        from jax._src.clusters import ClusterEnv

        kinds = ClusterEnv._cluster_types
    except (ImportError, AttributeError):  # Private: another jax may lack it.
        kinds = ()
    for kind in kinds:
        if not kind.opt_in_only_method and kind.is_env_present():
            try:
                source = f"the environment ({kind.name})"
                return source, kind.get_process_count(), kind.get_process_id()
            except Exception as error:  # Of many types.
                raise ConfigError(
                    f"--config.num_processes: {kind.name} does not tell it ({error}); "
                    f"give {', '.join(_FIELDS)}, or 1"
                ) from error
    return "", 1, 0


def _check(config, given):
    for name in _FIELDS:
        if config[name] is None:
            raise ConfigError(
                f"--config.{name}: is missing beside {', '.join(given)}; give all "
                "three, or none"
            )
    if config.process_id >= config.num_processes:
        raise ConfigError(
            f"--config.process_id={config.process_id}: must be below "
            f"--config.num_processes={config.num_processes}; the first is 0"
        )


def _reach(address, process_id):
    """Wait until process 0 can be reached, or see whether it could be, there."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if process_id == 0:
                socket.create_server(("", int(port))).close()
            else:
                socket.create_connection((host.strip("[]"), int(port)), 10).close()
            return
        except OSError as error:
            is_final = process_id == 0 or isinstance(error, socket.gaierror)
            if is_final or time.monotonic() > end:
                raise ConfigError(
                    f"--config.coordinator_address={address}: cannot be "
                    f"{'used' if process_id == 0 else 'reached'} "
                    f"({error.strerror or error}); give the host of process 0, which "
                    "must be running, and a port that is free there"
                ) from error
            time.sleep(0.2)


def _condense_stderr(address, debug):
    """Let another process make one line of the many with which jax aborts."""
    command = [sys.executable, "-IS", condense.__file__, address]
    if debug:
        command.append("debug")
    # In a session of its own, Ctrl-C does not reach it.
    condenser = Popen(command, stdin=PIPE, stdout=DEVNULL, start_new_session=True)
    os.dup2(condenser.stdin.fileno(), 2)
    condenser.stdin.close()
    condenser.returncode = 0  # It ends after this process, which need not wait.


def _silence_stdout():
    """Let only Python's lines of process 0 through: Gloo writes some of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    own = os.dup(1) if _process_id == 0 else nowhere
    os.dup2(nowhere, 1)
    sys.stdout = os.fdopen(own, "w", buffering=1, errors="backslashreplace")


def end(error: BaseException, line: str, exit_code: int) -> int:
    """Print the line of an error, and return the exit code.

    A process of several ends at once, which jax in the others notices, unless all have
    the error; then process 0 prints it.
    """
    is_of_all = isinstance(error, DivergedError | ToldError)
    if _process_id is None or is_of_all or getattr(error, "is_told", False):
        if not _process_id:
            print(line, file=sys.stderr)
        return exit_code
    if any(word in str(error) for word in _OF_A_LOST_PROCESS):
        os.write(2, condense.LOST)
    else:
        print(f"process {_process_id}: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
