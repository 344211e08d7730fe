"""Several processes, on one host or more, that train one run together.

Each computes its share of every batch. Process 0 alone reads and writes the files of
the run, and tells the others what it has read. `launch` starts them. One process pays
for none of this.
"""

import json
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from dwsep_jax.errors import ConfigError, ToldError
from dwsep_jax.launch import is_first

Tree = Any


def first_devices(num_devices: int) -> list[jax.Device]:
    """Return as many devices, the same number of each process."""
    n = jax.process_count()
    return [d for i in range(n) for d in jax.local_devices(i)[: num_devices // n]]


def place(tree: Tree, sharding: Sharding | None) -> Tree:
    """Put arrays that every process has in whole onto the devices of a sharding.

    None is the default device of this process.
    """
    if jax.process_count() == 1 or sharding is None:
        return jax.device_put(tree, sharding)

    def put(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        here = _to_host(leaf)
        there = jax.make_array_from_callback(here.shape, sharding, here.__getitem__)
        return _wrap(there, leaf)

    return jax.tree.map(put, tree)


def localize(tree: Tree) -> Tree:
    """Return replicated arrays as arrays on a device of this process."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: _wrap(jnp.asarray(_to_host(leaf)), leaf), tree)


def _to_host(leaf):
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _wrap(data, like):
    """Return the data of random keys as keys, where `like` is one."""
    if not _is_key(like):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


def _is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def from_first(make: Callable[[], Any]) -> Any:
    """Return what `make` returns in process 0, where alone it is called.

    With several processes, that must be JSON-serializable.

    Raises:
      Exception: that of `make` in process 0.
      ToldError: in the others, then.
    """
    if jax.process_count() == 1:
        return make()
    value, error = None, None
    if is_first():
        try:
            value = make()
        except Exception as raised:
            error = raised
            error.is_told = True  # See `launch.end`.
    code = error and getattr(error, "exit_code", 1)
    text = np.frombuffer(json.dumps([value, code]).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # Rounded up, so that few programs are compiled. Spaces end the JSON.
    there = np.full(-(-size // 2**14) * 2**14, ord(" "), np.uint8)
    if is_first():
        there[:size] = text
    value, code = json.loads(multihost_utils.broadcast_one_to_all(there).tobytes())
    if error is not None:
        raise error
    if code is not None:
        raise ToldError(code)
    return value


def in_turn(make: Callable[[], Any]) -> Any:
    """Return what `make` returns here, called once process 0 has called it."""
    made = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()


def tree_from_first(make: Callable[[], Tree], like: Tree) -> Tree:
    """Return the arrays that `make` returns in process 0, as `from_first` does.

    Args:
      make: returns a tree of arrays, or None.
      like: a tree of the same structure, shapes and dtypes.
    """
    if jax.process_count() == 1:
        return make()
    tree = in_turn(lambda: make() if is_first() else like)
    data = multihost_utils.broadcast_one_to_all(jax.tree.map(_to_host, tree))
    return jax.tree.map(lambda d, leaf: _wrap(jnp.asarray(d), leaf), data, tree)


def check_same(*values: Any) -> None:
    """Raise `ConfigError` unless all processes have these values, fit for JSON."""
    if jax.process_count() == 1:
        return
    crc = np.uint32(zlib.crc32(json.dumps(values, sort_keys=True).encode()))
    crcs = multihost_utils.process_allgather(crc)

    def compare():
        if (crcs != crc).any():
            raise ConfigError(
                "the processes have different fields, workdirs or images; give all the "
                "same, but for process_id, or let each train alone, with "
                "--config.num_processes=1"
            )

    from_first(compare)


class Vote:
    """Lets all processes do the same after the same step, by the highest vote."""

    def __init__(self, mesh: Mesh | None):
        """Take the devices that compute the steps.

        On a CPU, programs on others would overtake the steps, and mix up what these
        exchange.
        """
        self._before = 0
        if jax.process_count() > 1:
            self._votes = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._max = jax.jit(jnp.max, out_shardings=everywhere)

    def now(self, vote: int) -> int:
        """Return the highest vote, once each process has voted."""
        if jax.process_count() == 1:
            return vote
        self._before = 0
        return int(self._find_highest(vote))

    def later(self, vote: int) -> int:
        """Vote, and return the highest vote of the last time, or 0 if there was none.

        So no process has to wait for the step that is under way. One process alone gets
        its vote at once.
        """
        if jax.process_count() == 1:
            return vote
        before, self._before = self._before, self._find_highest(vote)
        return int(before)

    def _find_highest(self, vote):
        votes = np.full(self._votes.mesh.size, vote, np.int32)
        return self._max(place(votes, self._votes))
