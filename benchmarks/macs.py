"""Are the MACs right? Compares them with PyTorch's own count for the same network.

Builds each network of `configs/` again from plain `torch.nn` modules and has
`torch.utils.flop_counter` count its forward pass on one 32x32 image. Prints a Markdown
table. Nothing is computed, so it takes seconds. Needs the extra `bench`.

    python -m benchmarks.macs
"""

import torch
from ml_collections import ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import make_dataset, print_header, print_row
from benchmarks.torch_net import TorchDenseNet
from configs import cpu, digits, separable, standard
from dwsep_jax.efficiency.cost import count_cost
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.train import optim

NUM_CLASSES, IMAGE_SHAPE = 10, (32, 32, 3)


def count_with_torch(config: ConfigDict) -> tuple[int, int]:
    """Return PyTorch's counts of parameters and of MACs per image."""
    height, width, channels = IMAGE_SHAPE
    with torch.device("meta"):
        like = create_model(config, NUM_CLASSES)
        model = TorchDenseNet(like, config.conv == "separable", channels).eval()
        images = torch.empty(1, channels, height, width)
    with FlopCounterMode(display=False) as counter:
        model(images)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.get_total_flops() // 2


def main() -> None:
    """Print the table."""
    columns = ["config", "bottleneck", "parameters", "in torch", "MACs", "in torch"]
    print_header([*columns, "difference of MACs"])
    for file in (separable, standard, cpu, digits):
        for bottleneck in (0, 4):
            config = file.get_config()
            config.bottleneck = bottleneck
            config = optim.resolve(config)
            ours = count_cost(config, make_dataset(config.batch_size))
            parameters, macs = count_with_torch(config)
            counts = [ours["parameters"], parameters, ours["macs"], macs]
            counts.append(ours["macs"] - macs)
            name = file.__name__.partition(".")[2]
            print_row([name, str(bottleneck), *(f"{n:,}" for n in counts)])


if __name__ == "__main__":
    main()
