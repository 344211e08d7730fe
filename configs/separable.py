"""The network in question: four dense blocks of depthwise-separable convolutions.

221,650 parameters, 62.5 M multiply-adds per image. On CIFAR-10. Accuracy after 100
epochs is not measured yet: that takes a GPU or TPU. On 2 CPU cores (jax 0.10.2,
float32), training steps of 128 images make 128 images/s, and 20 with the twin,
`standard.py`; there, take `cpu.py`.

    python main.py --config=configs/separable.py
"""

from configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.conv = "separable"
    return c
