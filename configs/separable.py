"""The separable network: four dense blocks of depthwise-separable convolutions.

221,650 parameters, 62.5 M multiply-adds per image. Its accuracy on CIFAR-10 after
100 epochs has not been measured yet, which takes a GPU or TPU. On 2 CPU cores (jax
0.10.2, float32, batches of 128) it trains at 128 images/s, and its twin, `standard.py`,
at 20; use `cpu.py` there.

    python main.py --config=configs/separable.py
"""

from configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.conv = "separable"
    return c
