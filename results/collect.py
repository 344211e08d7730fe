"""Copies a workdir of runs into this directory, without the paths of the machine.

    python -m results.collect WORKDIR results/compare-cpu

Of each run the files are copied, and the last checkpoint of those that are not finished
or have seed 0, so that the same command on a copy of the result goes on from there.
Predictions are kept in a comparison alone.
"""

import hashlib
import json
import pathlib
import re
import shutil
import sys

from dwsep_jax.report.figures import LAST_FIGURE

# With its last figure, a run counts as finished.
_KEPT = ("*.json", "metrics.jsonl", "trials.csv", LAST_FIGURE)


def collect(source: pathlib.Path, destination: pathlib.Path) -> None:
    """Copy what a report and a later start need from `source`."""
    is_comparison = (source / "comparison.json").exists() or any(source.glob("*/seed*"))
    kept = (*_KEPT, "predictions.npz") if is_comparison else _KEPT
    for directory in (source, *sorted(p.parent for p in source.rglob("config.json"))):
        place = destination / directory.relative_to(source)
        for path in (path for pattern in kept for path in directory.glob(pattern)):
            (place / path.relative_to(directory)).parent.mkdir(
                parents=True, exist_ok=True
            )
            shutil.copyfile(path, place / path.relative_to(directory))
        steps = [p for p in (directory / "checkpoints").glob("*") if p.name.isdigit()]
        # Where seeds are trained, the trials of rates are done with. Of finished seeds,
        # the weights of the first are kept.
        is_done = directory.name.startswith("rate") and any(directory.glob("../seed*"))
        is_done |= directory.name != "seed0" and (place / LAST_FIGURE).exists()
        if is_done:
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        elif steps:
            last = max(steps, key=lambda path: int(path.name))
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
            shutil.copytree(last, place / "checkpoints" / last.name)
            _remove_paths(place / "checkpoints" / last.name)


def _remove_paths(checkpoint):
    """Leave out where a checkpoint was saved, which orbax notes and nobody reads."""
    sums = checkpoint / "SHA256SUMS.json"
    checksums = json.loads(sums.read_text())
    for path in checkpoint.rglob("commit_success.txt"):
        path.write_text(re.sub(" to /.*", "\n", path.read_text()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        checksums[path.relative_to(checkpoint).as_posix()] = digest
    sums.write_text(json.dumps(checksums, indent=1, sort_keys=True))


if __name__ == "__main__":
    collect(*map(pathlib.Path, sys.argv[1:]))
