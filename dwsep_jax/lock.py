"""A lock on a directory, for processes that share it."""

import contextlib
import os
from collections.abc import Iterator

from dwsep_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows. What needs no lock, such as the layers, works there.
    fcntl = None


@contextlib.contextmanager
def locked(directory: str | os.PathLike, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a directory; the system releases it on any exit.

    The directory itself is locked, not a file in it, so it may be read-only. There is
    no protection on file systems without locks (some network ones).

    Raises:
      BlockingIOError: if another process holds the lock and `wait` is False.
      UserError: on Windows.
    """
    if fcntl is None:
        raise UserError(
            "Windows is not supported: directories cannot be locked there; use the "
            "Windows Subsystem for Linux (WSL)"
        )
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
        yield
    finally:
        os.close(descriptor)


def is_free(directory: str | os.PathLike) -> bool:
    """Return whether no process locks a directory; False where there are no locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
