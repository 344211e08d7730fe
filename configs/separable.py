"""The network in question: four dense blocks of depthwise-separable convolutions."""

from configs import default


def get_config():
    return default.get_config()
