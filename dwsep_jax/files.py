"""Files that are never half-written."""

import os
import pathlib


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Write under another name, then rename: a reader sees the old file or the new."""
    path = pathlib.Path(path)
    # Two processes may write one file, but not under one other name.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
