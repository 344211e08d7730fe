"""Is it worth it? Separable convolutions against standard ones, over several seeds.

python main.py --mode=compare --config=configs/compare.py           # CIFAR-10
python main.py --mode=compare --config=configs/compare.py:digits
"""

from configs import digits, separable


def get_config(dataset="cifar10"):
    """Return the configuration of a comparison on `cifar10` or `digits`."""
    if dataset == "cifar10":
        return separable.get_config()
    if dataset != "digits":
        raise ValueError(f"{dataset!r} is unknown; choose one of cifar10, digits")
    c = digits.get_config()
    c.validation_size = 200  # it selects the learning rates
    c.num_epochs = 12  # there are 28 runs
    c.learning_rate = 0.075  # a short run needs three times the usual rate
    return c
