"""The user's directories outside of workdirs."""

import os
import pathlib
import tempfile


def user_home() -> pathlib.Path:
    """Return the home directory, or a temporary one for a user who has none.

    Containers run under user ids that no account belongs to, without $HOME.
    """
    home = pathlib.Path(os.path.expanduser("~"))
    if home.is_absolute():
        return home
    home = pathlib.Path(tempfile.gettempdir(), f"dwsep_jax-{os.getuid()}")
    home.mkdir(mode=0o700, exist_ok=True)
    # Compiled programs are run from there: somebody else may not have made it.
    is_ours = not home.is_symlink() and home.stat().st_uid == os.getuid()
    return home if is_ours else pathlib.Path(tempfile.mkdtemp(prefix="dwsep_jax-"))


def user_cache() -> pathlib.Path:
    """Return this program's directory in the user's cache (XDG base directories)."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # Then it is to be ignored, they say.
        base = user_home() / ".cache"
    return base / "dwsep_jax"
