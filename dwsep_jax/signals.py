"""SIGINT and SIGTERM: they stop the program, but what is being trained is saved first.

SLURM and clouds that reclaim a machine send SIGTERM shortly before they kill.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_deferred: list[int] | None = None  # Within `deferred`, the signal that has come.


class Stopped(KeyboardInterrupt):
    """A signal, whose number is the argument, asked the program to stop.

    Attributes:
      is_told: whether all processes of several have agreed to.
    """

    is_told = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Turn both signals into `Stopped`, within the main thread of a program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Raise `Stopped` at the end, if a signal came in between; a second one at once.

    Yields:
      A list that holds the number of the signal once it has come.
    """
    global _deferred
    before, _deferred = _deferred, []
    try:
        yield (received := _deferred)
    finally:
        _deferred = before
    if received:
        raise Stopped(*received)


def _handle(number, frame):
    if _deferred is None or _deferred:
        raise Stopped(number)
    _deferred.append(number)
