"""How wide a network must be to have a given number of parameters or MACs."""

import bisect
import functools
import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax.summary import summarize

# A growth rate is an integer, so it alone may miss by more; the stem is finer.
TOLERANCE = 0.02


class Size(NamedTuple):
    """Parameters of a network, and its MACs per image."""

    parameters: int
    macs: int


def measure_size(
    config: ConfigDict, num_classes: int, image_shape: tuple[int, ...]
) -> Size:
    """Return the size of a configured network; nothing is computed."""
    return _measure(tuple(config.items()), num_classes, image_shape)


def match_size(
    config: ConfigDict,
    quantity: str,
    target: int,
    num_classes: int,
    image_shape: tuple[int, ...],
) -> dict[str, Any]:
    """Return the fields that bring a network closest to a target.

    That is the `growth_rate`, with which the whole network widens; where no integer
    comes within 2 %, also the `stem_width`.

    Args:
      config: the network to widen or to narrow.
      quantity: `parameters` or `macs`.
      target: how many.
      num_classes: length of the logits.
      image_shape: (H, W, C).
    """

    def measure(fields):
        changed = config.copy_and_resolve_references()
        changed.update(fields)
        return getattr(measure_size(changed, num_classes, image_shape), quantity)

    def miss(fields):
        return abs(measure(fields) / target - 1)

    def around(make_fields, highest):
        """Return the last fields that do not exceed the target, and the next."""
        values = range(1, highest + 1)
        i = bisect.bisect_right(values, target, key=lambda v: measure(make_fields(v)))
        return [make_fields(v) for v in values[max(0, i - 1) : i + 1]]

    # Parameters and MACs grow faster than the growth rate.
    ratio = max(1.0, target / measure({}))
    highest = math.ceil(config.growth_rate * ratio) + 1
    candidates = around(lambda rate: {"growth_rate": rate}, highest)
    if min(map(miss, candidates)) > TOLERANCE:
        for rate in [fields["growth_rate"] for fields in candidates]:
            candidates += around(
                lambda channels, rate=rate: {
                    "growth_rate": rate,
                    "stem_width": channels / rate,
                },
                math.ceil(2 * config.stem_width * rate),
            )
    return min(candidates, key=miss)


@functools.cache
def _measure(fields, num_classes, image_shape):
    parts = summarize(ConfigDict(dict(fields)), num_classes, image_shape)
    return Size(sum(p.parameters for p in parts), sum(p.macs for p in parts))
