"""How wide a network must be to have a given number of parameters or MACs."""

import bisect
import functools
import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dwsep_jax.config import run_fields
from dwsep_jax.nn.summary import summarize

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
    return _measure(tuple(run_fields(config).items()), num_classes, image_shape)


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

    def widen(rate):
        return {"growth_rate": rate}

    def widen_stem(rate, channels):
        return {"growth_rate": rate, "stem_width": channels / rate}

    # Nearly squares of the growth rate: a root leads close, and a few steps to the end.
    rate = config.growth_rate
    for _ in range(3):
        rate = max(1, round(rate * math.sqrt(target / measure(widen(rate)))))
    while rate > 1 and measure(widen(rate)) > target:
        rate -= 1
    while measure(widen(rate + 1)) <= target:
        rate += 1
    candidates = [widen(rate), widen(rate + 1)]
    if min(map(miss, candidates)) > TOLERANCE:
        for near in (rate, rate + 1):
            most = math.ceil(2 * config.stem_width * near)
            stems = [widen_stem(near, channels + 1) for channels in range(most)]
            i = bisect.bisect_right(stems, target, key=measure)
            candidates += stems[max(0, i - 1) : i + 1]
    return min(candidates, key=miss)


@functools.cache
def _measure(fields, num_classes, image_shape):
    parts = summarize(ConfigDict(dict(fields)), num_classes, image_shape)
    return Size(sum(p.parameters for p in parts), sum(p.macs for p in parts))
