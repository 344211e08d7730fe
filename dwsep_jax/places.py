"""The user's directories outside of workdirs."""

import os
import pathlib
import tempfile


def user_home() -> pathlib.Path:
    """Return the home directory, or a temporary one for a user who has none.

    Containers run under user ids that no account belongs to, without $HOME.
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        home = os.path.join(tempfile.gettempdir(), f"dwsep_jax-{os.getuid()}")
    return pathlib.Path(home)


def user_cache() -> pathlib.Path:
    """Return this program's directory in the user's cache (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or user_home() / ".cache"
    return pathlib.Path(base, "dwsep_jax")
