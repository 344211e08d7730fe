"""Copies stderr, and makes one line of the many with which jax aborts.

jax ends a process with a dump of its stack once another one is lost. `launch` runs this
as a program, which prints what to do in place of the dump.
"""

import re
import sys

# Lines to the program: jax has started; a process has lost another one.
STARTED, LOST = b"started\n", b"lost\n"
_BEGINNING = re.compile(
    rb"[EWF]\d{4} .*\b(coordination_service\w*\.cc|client\.h):\d+\]"
)
_ABORT = b"JAX distributed service detected fatal errors"


def condense(address: str, debug: bool) -> None:
    """Copy stdin to stderr until its end."""
    held = []
    remedy = (
        f"error: not all processes have come to {address} in time; start each of them "
        "once, with the same number of processes"
    )
    for line in sys.stdin.buffer:
        if line == STARTED:
            remedy = (
                "error: another process of this run was lost, which may have said why; "
                "the same command resumes"
            )
        elif held or line == LOST or _BEGINNING.match(line):
            held.append(line)
        else:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    is_lost = any(line == LOST or _ABORT in line for line in held)
    if debug or not is_lost:
        sys.stderr.buffer.writelines(held)
    if is_lost:
        print(remedy, file=sys.stderr)


if __name__ == "__main__":
    condense(sys.argv[1], len(sys.argv) > 2)
