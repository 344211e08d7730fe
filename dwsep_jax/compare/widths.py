"""How wide a network must be to have a given number of parameters or MACs."""

import bisect
import functools
import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax.config import run_fields
from dwsep_jax.nn.summary import summarize

# The growth rate is an integer and may miss by more; the width of the stem is finer.
TOLERANCE = 0.02


class Size(NamedTuple):
    """Parameters of a network, and its MACs per image."""

    parameters: int
    macs: int


def measure_size(
    config: ConfigDict, num_classes: int, image_shape: tuple[int, ...], **changes: Any
) -> Size:
    """Return the size of a network with some fields changed; nothing is computed."""
    fields = run_fields(config) | changes
    return _measure(tuple(fields.items()), num_classes, image_shape)


@functools.cache
def _measure(fields, num_classes, image_shape):
    parts = summarize(ConfigDict(dict(fields)), num_classes, image_shape)
    return Size(sum(p.parameters for p in parts), sum(p.macs for p in parts))


def match_size(
    config: ConfigDict,
    quantity: str,
    target: int,
    num_classes: int,
    image_shape: tuple[int, ...],
) -> dict[str, Any]:
    """Return the fields that bring a network closest to a target.

    These are the `growth_rate`, which widens the whole network, and, if no integer
    comes within 2 %, the `stem_width`.

    Args:
      config: the network to widen or narrow.
      quantity: `parameters` or `macs`.
      target: how many.
      num_classes: length of the logits.
      image_shape: (H, W, C).
    """

    def measure(fields):
        size = measure_size(config, num_classes, image_shape, **fields)
        return getattr(size, quantity)

    def miss(fields):
        return abs(measure(fields) / target - 1)

    def find_nearest(ascending):
        i = max(1, bisect.bisect_right(ascending, target, key=measure))
        return ascending[i - 1 : i + 1]

    # Sizes grow faster than the growth rate: it changes by less than the ratio.
    ratio = target / measure({})
    low, high = sorted((config.growth_rate, config.growth_rate * ratio))
    rates = range(max(1, math.floor(low)), math.ceil(high) + 2)
    candidates = find_nearest([{"growth_rate": rate} for rate in rates])
    if min(map(miss, candidates)) > TOLERANCE:
        for rate in [fields["growth_rate"] for fields in candidates]:
            most = math.ceil(2 * config.stem_width * rate)
            widths = [channels / rate for channels in range(1, most + 1)]
            candidates += find_nearest(
                [{"growth_rate": rate, "stem_width": width} for width in widths]
            )
    return min(candidates, key=miss)
