"""How far two arrays are apart."""

import numpy as np


def relative_error(got, want) -> float:
    """Return the norm of the difference over the norm of `want`, in float64."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
