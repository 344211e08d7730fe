"""What XLA is known to compute wrongly on CPU, and how we keep clear of it.

Since jaxlib 0.10.2 it fuses sums, with the operations before them, into calls of the
library YNNPACK. Of some such programs the result is wrong by any factor, or NaN (jax
issue 39103). Where it is right, it is closer to float64 than without the fusion, and a
training step takes a quarter less time. So the fusion stays on; our programs are kept
clear of the wrong kinds, and tests at the shapes of real training watch over that.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def check_compiler() -> list[str]:
    """Compute what XLA is known to miscompile, on the default device, by jax.jit.

    Takes less than a second. The programs of this package are not among these.

    Returns:
      One line for each kind of program that comes out wrong, with the remedy. Nothing
      is wrong with `XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce`.
    """
    lines = []
    for pattern, shape, function, remedy in _MISCOMPILED:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        want = function(np, x.astype(np.float64))
        got = jax.jit(partial(function, jnp))(x)
        error = np.max(np.abs(got - want)) / np.max(np.abs(want))
        # These are wrong by any factor; an accelerator may well round to 1e-3.
        if not error < 0.01:
            lines.append(
                f"jax {jax.__version__} computes {pattern} wrongly (relative error "
                f"{error:.0e}): {remedy}, or set XLA_FLAGS="
                "--xla_cpu_experimental_ynn_fusion_type=-reduce before jax starts"
            )
    return lines


def hide_constant(x: jax.Array) -> jax.Array:
    """Return x, such that the compiler does not see where it is a constant."""
    axes = range(x.ndim)
    # Until jax 0.10.2 it looks through the barrier, but not through a reversal.
    return lax.rev(lax.optimization_barrier(lax.rev(x, axes)), axes)


_EYE = np.eye(3, dtype=np.float32)
_PASS = "pass the constant as an argument of the jitted function"
# What the program does, the shape of its argument, the program (of jnp or of NumPy),
# and how to avoid it.
_MISCOMPILED = (
    (
        "sums of x @ jnp.full(...)",
        (2, 8, 8, 64),
        lambda xp, x: (x @ xp.full((64, 64), 0.5)).mean((1, 2)),
        _PASS,
    ),
    (
        "sums of (x @ jnp.full_like(x, ...)) * x",
        (5, 60, 60),
        lambda xp, x: xp.sum((x @ xp.full_like(x, 0.5)) * x, -1),
        _PASS,
    ),
    (
        "sums of (w @ x) ** 2 for a w of 3x3 and an x of 32,769 to 65,000 columns",
        (40_000, 3),
        lambda xp, x: xp.sum((_EYE @ x.T) ** 2, 0),
        "write it as x.T @ w.T, without vmap",
    ),
)
