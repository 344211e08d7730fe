"""Checkpoints on disk: the latest and the best. The only module that imports orbax."""

import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from dwsep_jax.errors import UserError

Tree = Any


class Restored(NamedTuple):
    """A checkpoint: its epoch, the arrays, and what was saved beside them."""

    epoch: int
    tree: Tree
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run: the latest, and the one of the greatest score.

    Saves are synchronous and atomic, and carry a checksum of every array: orbax itself
    restores a flipped bit in silence. Use as a context manager.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Open `workdir`/checkpoints, and make it where it is not there."""
        self._directory = pathlib.Path(workdir).resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_names=("arrays", "metadata"),
            options=ocp.CheckpointManagerOptions(
                enable_async_checkpointing=False,
                preservation_policy=policy.AnyPreservationPolicy(
                    [
                        policy.LatestN(1),
                        policy.BestN(get_metric_fn=_score, reverse=False, n=1),
                    ]
                ),
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._manager.close()

    def save(self, epoch: int, tree: Tree, metadata: dict[str, Any], score: float):
        """Save after an epoch: arrays, and metadata that JSON can hold.

        A score that is not finite counts as the worst.
        """
        metadata = {"checksums": checksums(tree), **metadata}
        saved = self._manager.save(
            epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(tree),
                metadata=ocp.args.JsonSave(metadata),
            ),
            metrics={"score": score if np.isfinite(score) else float("-inf")},
            force=True,
        )
        if not saved:
            raise UserError(f"no checkpoint of epoch {epoch} in {self._directory}")

    def restore_latest(self, like: Tree) -> Restored | None:
        """Return the newest checkpoint that is whole, or None where there is none.

        A damaged one is reported and passed over.

        Args:
          like: a tree of the structure, shapes and dtypes to restore.

        Raises:
          UserError: if there are checkpoints, each damaged or of another network.
        """
        epochs = sorted(self._manager.all_steps(), reverse=True)
        reasons = []
        for epoch in epochs:
            try:
                return self._restore(epoch, like)
            except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # The checkpoint is not at fault.
            # Orbax has no common error: a damaged file raises any of a dozen types.
            except Exception as error:
                reason = str(error).partition("\n")[0][:200]
                reasons.append(f"epoch {epoch}: {type(error).__name__}: {reason}")
                logging.warning("passing over the checkpoint of %s", reasons[-1])
        if reasons:
            raise UserError(
                f"no checkpoint in {self._directory} can be restored "
                f"({'; '.join(reasons)}); delete the directory to start over, or take "
                "another --workdir"
            )
        return None

    def discard_after(self, epoch: int) -> None:
        """Delete the checkpoints of later epochs: those that were passed over.

        Else the next save of such an epoch would be refused.
        """
        for later in self._manager.all_steps():
            if later > epoch:
                self._manager.delete(later)

    def _restore(self, epoch, like):
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(target),
                metadata=ocp.args.JsonRestore(),
            ),
        )
        metadata = dict(restored["metadata"])
        expected, found = metadata.pop("checksums"), checksums(restored["arrays"])
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(f"the checksum of {name} does not match")
        return Restored(epoch, restored["arrays"], metadata)


def checksums(tree: Tree) -> dict[str, str]:
    """Return the SHA-256 of every leaf by its path; dtype and shape count."""

    def digest(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        header = f"{array.dtype.str}{array.shape}".encode()
        return hashlib.sha256(header + array.tobytes()).hexdigest()

    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in leaves}


def _score(metrics):
    return metrics["score"]
