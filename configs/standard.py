"""Its twin: four dense blocks of standard convolutions."""

from configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.conv = "standard"
    return c
