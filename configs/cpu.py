"""A network to train without a GPU: few, wide layers at half the resolution.

145,690 parameters, 8.9 M multiply-adds per image. On CIFAR-10: 88.11 % test accuracy
(one run, seed 0) in 37 minutes on 2 busy CPU cores. Training has become faster since:
about 1,130 images/s (jax 0.10.2, float32), and 310 with standard convolutions.

    python main.py --config=configs/cpu.py
"""

from configs import default


def get_config():
    """Return the configuration."""
    c = default.get_config()
    c.growth_rate = 48
    c.block_sizes = (2, 3, 3, 2)
    c.stem_width = 1.0
    c.stem_stride = 2
    c.dropout_rate = 0.0  # such a small network does not overfit in 36 epochs
    c.num_epochs = 36
    c.eval_batch_size = 128  # of a time when 512 left the caches
    return c
