"""Checkpoints on disk: the latest and the best. The only module that imports orbax."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from dwsep_jax.console import say
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.workdir import write_atomically

Tree = Any
_SUMS = "SHA256SUMS.json"
_UNFINISHED = ".orbax-checkpoint-tmp"
# Errors that say nothing about the checkpoint that is being read.
_NOT_ITS_FAULT = (UserError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)


@contextlib.contextmanager
def _alone():
    """Let orbax believe that process 0, which has whole arrays, is the only one.

    Otherwise it waits for the others, even if it is told not to, and expects them to
    save a part of each array.
    """
    process_count, jax.process_count = jax.process_count, lambda *_: 1
    try:
        yield
    finally:
        jax.process_count = process_count


class Restored(NamedTuple):
    """A checkpoint: its epoch, the arrays, and what was saved beside them."""

    epoch: int
    tree: Tree
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run: the latest and the one with the highest score.

    Saves are synchronous and atomic, and end with the checksums of all files: orbax
    itself restores a flipped bit in silence.
    """

    def __init__(self, workdir: str | os.PathLike, name: str = "checkpoints"):
        """Take those in `workdir`/`name`, which the first save creates."""
        self._directory = pathlib.Path(workdir).resolve() / name
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    @_alone()
    def save(
        self,
        epoch: int,
        tree: Tree,
        metadata: dict[str, Any],
        scores: Mapping[int, float],
    ) -> None:
        """Save after an epoch, then delete all checkpoints but this one and the best.

        One of the same epoch, which was damaged or not completed, is replaced.

        Args:
          epoch: counted from one.
          tree: of arrays.
          metadata: JSON-serializable.
          scores: of the epochs so far; one that is missing is the worst.
        """
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(tree),
            metadata=ocp.args.JsonSave({"leaves": describe_leaves(tree)} | metadata),
        )
        directory = self._directory / str(epoch)
        self._orbax.save(directory, args, force=True)
        write_atomically(directory / _SUMS, json.dumps(_sums(directory), indent=1))
        best = max(self.epochs(), key=lambda e: scores.get(e, -math.inf))
        for path in self._directory.iterdir():
            number = path.name.partition(_UNFINISHED)[0]
            if number.isdigit() and path.name not in (str(epoch), str(best)):
                shutil.rmtree(path)

    def epochs(self) -> list[int]:
        """Return the epochs that have a complete checkpoint, even a damaged one."""
        names = (path.parent.name for path in self._directory.glob(f"*/{_SUMS}"))
        return sorted(int(name) for name in names if name.isdigit())

    def restore_latest(self, like: Tree | None) -> Restored | None:
        """Return the newest intact checkpoint, or None if there are no checkpoints.

        Args:
          like: a tree of the structure, shapes and dtypes to restore.

        Raises:
          UserError: as `restore`.
        """
        return self.restore(self.epochs()[::-1], like)

    def restore(self, epochs: Sequence[int], like: Tree | None) -> Restored | None:
        """Return the first intact checkpoint of some epochs; None if there are none.

        Damaged ones are reported and passed over; missing ones are ignored.

        Args:
          epochs: of the checkpoints, in order of preference.
          like: a tree of the structure, shapes and dtypes to restore; if None, nested
            dicts and lists of what there is.

        Raises:
          ConfigError: if one belongs to another network.
          UserError: if all are damaged.
        """
        reasons = []
        for epoch in epochs:
            try:
                return self._restore(epoch, like)
            except _NOT_ITS_FAULT:
                raise
            # Orbax has no common error: a damaged file raises any of a dozen types.
            except Exception as error:
                if not (self._directory / str(epoch)).exists():
                    continue  # The run has replaced it in the meantime.
                reason = str(error).partition("\n")[0][:200]
                place = f"{self._directory.name}/{epoch}"
                reasons.append(f"{place}: {type(error).__name__}: {reason}")
                say(f"passing over the damaged checkpoint {reasons[-1]}")
        if reasons:
            raise UserError(
                f"no checkpoint in {self._directory} can be restored "
                f"({'; '.join(reasons)}); delete {self._directory.parent} to start "
                "over, or take another --workdir"
            )
        return None

    @_alone()
    def _restore(self, epoch, like):
        directory = self._directory / str(epoch)
        expected, found = json.loads((directory / _SUMS).read_bytes()), _sums(directory)
        if different := expected.items() ^ found.items():
            raise ValueError(f"the checksum of {min(different)[0]} does not match")
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        metadata = dict(self._orbax.restore(directory, args)["metadata"])
        there = metadata.pop("leaves")
        here = there if like is None else describe_leaves(like)
        for name in [*here, *there]:
            if there.get(name) != here.get(name):
                raise ConfigError(
                    f"the checkpoint {directory} is of another network: {name} is "
                    f"{there.get(name, 'missing')} there, {here.get(name, 'missing')} "
                    "here; choose another --workdir"
                )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
        tree = self._orbax.restore(directory, args)["arrays"]
        metadata.pop("checksums", None)  # Older ones have those of each leaf.
        return Restored(epoch, tree, metadata)


def describe_leaves(tree: Tree) -> dict[str, str]:
    """Return dtype and shape of every leaf by its path; arrays or their shapes do."""

    def describe(leaf):
        return f"{leaf.dtype} {'x'.join(map(str, leaf.shape)) or 'scalar'}"

    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): describe(leaf) for path, leaf in leaves}


def _sums(directory):
    """Return the SHA-256 of every file below, by its path."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(_SUMS)
    }
