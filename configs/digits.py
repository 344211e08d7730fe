"""placeholder docstring"""

from configs import default


def get_config():
    c = default.get_config()
    c.dataset = "digits"
    c.validation_size = 180
    c.flip = False
    c.growth_rate = 12
    c.block_sizes = (2, 2, 2, 2)
    c.stem_stride = 2
    c.batch_size = 64
    c.num_epochs = 40
    return c
