"""The network in question: four dense blocks of depthwise-separable convolutions."""

from configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.conv = "separable"
    return c
