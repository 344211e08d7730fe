"""The order of the training examples, as a pure function of key, epoch and step."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames="num_examples")
def epoch_permutation(key: jax.Array, epoch: int, num_examples: int) -> jax.Array:
    """Return the order of the examples in an epoch, int32 (num_examples,).

    It depends on `key` and `epoch` alone, so there is no iterator state to save.
    """
    indices = jnp.arange(num_examples, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(key, epoch), indices)


def batch_indices(
    permutation: jax.Array, step_in_epoch: int | jax.Array, batch_size: int
) -> jax.Array:
    """Return the indices of one batch, int32 (batch_size,); the step may be traced.

    Steps run from 0 to `len(permutation) // batch_size - 1`. The partial batch at the
    end is dropped: XLA would clamp its start and repeat examples already seen.
    """
    start = step_in_epoch * batch_size
    return jax.lax.dynamic_slice_in_dim(permutation, start, batch_size)
