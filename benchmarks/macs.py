"""Are the MACs right? Compares them with PyTorch's own count for the same network.

Builds each network of `configs/` again from plain `torch.nn` modules and has
`torch.utils.flop_counter` count its forward pass on one 32x32 image. Prints a Markdown
table. Nothing is computed, so it takes seconds. Needs the extra `bench`.

    python -m benchmarks.macs
"""

import torch
from ml_collections import ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import make_dataset, print_header, print_row, start
from benchmarks.torch_net import make_torch_net
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
        model = make_torch_net(like, config.conv == "separable", channels).eval()
        images = torch.empty(1, channels, height, width)
    with FlopCounterMode(display=False) as counter:
        model(images)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.get_total_flops() // 2


def main() -> None:
    """Print the table."""
    start(__doc__)
    columns = ["config", "bottleneck", "parameters", "in torch", "MACs", "in torch"]
    print_header(*columns, "difference of MACs")
    for file in (separable, standard, cpu, digits):
        for bottleneck in (0, 4):
            config = optim.resolve(file.get_config())
            config.bottleneck = bottleneck
            ours = count_cost(config, make_dataset(config.batch_size))
            parameters, macs = count_with_torch(config)
            counts = [ours["parameters"], parameters, ours["macs"], macs]
            counts.append(ours["macs"] - macs)
            name = file.__name__.partition(".")[2]
            print_row(name, bottleneck, *(f"{n:,}" for n in counts))


if __name__ == "__main__":
    main()
