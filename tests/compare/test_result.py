"""What comparison.json says of the runs' files."""

import numpy as np

from dwsep_jax.compare.result import compare_with_baseline


def test_bootstrap_pairs_images_by_their_names(tmp_path):
    ids, labels = np.array(["a", "b", "c", "d"]), np.array([0, 1, 0, 1])
    right = {"standard": [1, 1, 1, 0], "separable": [1, 1, 0, 0]}
    entries = {}
    for name, correct in right.items():
        (tmp_path / name).mkdir()
        predicted = np.where(correct, labels, 1 - labels)
        order = np.array([3, 1, 0, 2]) if name == "standard" else np.arange(4)
        np.savez(
            tmp_path / name / "predictions.npz",
            id=ids[order],
            label=labels[order],
            probabilities=np.eye(2)[predicted][order],
        )
        entries[name] = {"runs": [{"accuracy": np.mean(correct), "workdir": name}]}
    paired = compare_with_baseline(entries, tmp_path, 0.005)
    # One image of four differs; paired wrongly, two would for the worse, one better.
    bootstrap = paired["separable"]["bootstrap"]
    assert bootstrap["mean"] == -0.25
    assert bootstrap["ci95"] == [-0.75, 0.0]
