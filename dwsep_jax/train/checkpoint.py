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
    itself restores a flipped bit in silence. Use as a context manager.
    """

    @_alone()
    def __init__(
        self,
        workdir: str | os.PathLike,
        read_only: bool = False,
        name: str = "checkpoints",
    ):
        """Open `workdir`/`name`; unless `read_only`, create it if missing.

        Raises:
          UserError: if what orbax reads first is damaged.
        """
        self._directory = pathlib.Path(workdir).resolve() / name
        if read_only and not self._directory.is_dir():
            self._manager = None
            return
        if not read_only:
            for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        names = ("arrays", "metadata")
        try:
            self._manager = ocp.CheckpointManager(
                self._directory, item_names=names, options=options
            )
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise UserError(
                f"{self._directory} has a damaged _CHECKPOINT_METADATA ({error}); "
                "delete the checkpoint of that epoch"
            ) from error

    def __enter__(self):
        return self

    @_alone()
    def __exit__(self, *exception):
        if self._manager is not None:
            self._manager.close()

    @_alone()
    def save(
        self,
        epoch: int,
        tree: Tree,
        metadata: dict[str, Any],
        scores: Mapping[int, float],
    ) -> None:
        """Save after an epoch, then delete all checkpoints but this one and the best.

        Args:
          epoch: counted from one.
          tree: of arrays.
          metadata: JSON-serializable.
          scores: of the epochs so far; one that is missing or not finite is the worst.
            They are not orbax's `metrics`, which could not be read if damaged.
        """
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(tree),
            metadata=ocp.args.JsonSave({"leaves": describe_leaves(tree)} | metadata),
        )
        self._manager.save(epoch, args=args, force=True)
        directory = self._directory / str(epoch)
        write_atomically(directory / _SUMS, json.dumps(_sums(directory), indent=1))
        best = max(self.epochs(), key=lambda e: _finite(scores.get(e)))
        for other in self.epochs():
            if other not in (epoch, best):
                self._manager.delete(other)

    @_alone()
    def epochs(self) -> list[int]:
        """Return the epochs that have a complete checkpoint, even a damaged one."""
        steps = self._manager.all_steps() if self._manager else []
        return sorted(s for s in steps if (self._directory / str(s) / _SUMS).exists())

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
    def discard_after(self, epoch: int) -> None:
        """Delete the checkpoints of later epochs, damaged or incomplete.

        Otherwise saving such an epoch again would be refused.
        """
        for later in self._manager.all_steps():
            if later > epoch:
                self._manager.delete(later)

    @_alone()
    def _restore(self, epoch, like):
        directory = self._directory / str(epoch)
        expected, found = json.loads((directory / _SUMS).read_bytes()), _sums(directory)
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(f"the checksum of {name} does not match")
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        metadata = dict(self._manager.restore(epoch, args=args)["metadata"])
        leaves = metadata.pop("leaves")
        if like is not None:
            self._refuse_another_network(epoch, leaves, like)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
        tree = self._manager.restore(epoch, args=args)["arrays"]
        metadata.pop("checksums", None)  # Older ones have those of each leaf.
        return Restored(epoch, tree, metadata)

    def _refuse_another_network(self, epoch, there, like):
        here = describe_leaves(like)
        for name in [*here, *there]:
            if there.get(name) != here.get(name):
                raise ConfigError(
                    f"the checkpoint {self._directory}/{epoch} is of "
                    f"another network: {name} is {there.get(name, 'missing')} there, "
                    f"{here.get(name, 'missing')} here; choose another --workdir"
                )


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


def _finite(score):
    return score if score is not None and math.isfinite(score) else -math.inf
