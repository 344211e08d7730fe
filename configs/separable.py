"""The separable network: four dense blocks of depthwise-separable convolutions.

221,650 parameters, 62.5 M multiply-adds per image. Accuracy on CIFAR-10 after 100
epochs: not measured yet; this needs a GPU or TPU. On 2 CPU cores (jax 0.10.2, float32,
batch size 128) it trains at 128 images/s, and its twin, `standard.py`, at 20; without a
GPU or TPU, use `cpu.py`.

    python main.py --config=configs/separable.py
"""

from configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.conv = "separable"
    return c
