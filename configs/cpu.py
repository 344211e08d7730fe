"""placeholder"""

from configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.growth_rate = 12
    c.block_sizes = (4, 4, 4, 4)
    c.bottleneck = 4
    c.stem_stride = 2
    c.num_epochs = 30
    return c
