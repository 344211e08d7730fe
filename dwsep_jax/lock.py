"""A lock on a directory, for processes that share it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def locked(directory: str | os.PathLike, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a directory; the system releases it on any exit.

    The directory itself is locked, not a file in it, so it may be read-only. There is
    no protection on file systems without locks (some network ones).

    Raises:
      BlockingIOError: if another process holds the lock and `wait` is False.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
