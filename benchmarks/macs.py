"""Are the MACs right? Ours beside PyTorch's own count of the same network.

Builds each network of `configs/` a second time, of plain `torch.nn` modules, and has
`torch.utils.flop_counter` count its forward pass on one 32x32 image. Prints a Markdown
table; nothing is computed, so it takes seconds. Needs PyTorch (2.x).

    python -m benchmarks.macs
"""

import torch
from ml_collections import ConfigDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from configs import cpu, digits, separable, standard
from dwsep_jax import optim
from dwsep_jax.cost import count_cost

NUM_CLASSES, IMAGE_SHAPE = 10, (32, 32, 3)


class TorchDenseNet(nn.Module):
    """The network of a configuration; images (N, C, H, W) to logits (N, num_classes).

    Everything but `inner_norm`, `inner_activation` and an activation other than ReLU.
    """

    def __init__(self, config: ConfigDict, num_classes: int, image_channels: int = 3):
        super().__init__()
        channels = max(1, round(config.stem_width * config.growth_rate))
        self.stem = nn.Conv2d(
            image_channels,
            channels,
            config.kernel_size,
            config.stem_stride,
            config.kernel_size // 2,
            bias=False,
        )
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for b, num_layers in enumerate(config.block_sizes):
            if b > 0:
                kept = int(config.reduction * channels)
                conv = nn.Conv2d(channels, kept, 1, bias=False)
                transition = [*_norm(channels), conv, nn.AvgPool2d(2)]
                self.transitions.append(nn.Sequential(*transition))
                channels = kept
            layers = nn.ModuleList()
            for _ in range(num_layers):
                layers.append(_make_layer(config, channels))
                channels += config.growth_rate
            self.blocks.append(layers)
        self.norm = nn.Sequential(*_norm(channels))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.stem(x)
        for b, layers in enumerate(self.blocks):
            if b > 0:
                x = self.transitions[b - 1](x)
            for layer in layers:
                x = torch.cat([x, layer(x)], 1)
        return self.head(self.norm(x).mean((2, 3)))


def _norm(channels):
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _make_layer(config, channels):
    modules = _norm(channels)
    if config.bottleneck:
        width = config.bottleneck * config.growth_rate
        modules += [nn.Conv2d(channels, width, 1, bias=False), *_norm(width)]
        channels = width
    size, growth = config.kernel_size, config.growth_rate
    if config.conv == "separable":
        modules += [
            nn.Conv2d(
                channels, channels, size, padding=size // 2, groups=channels, bias=False
            ),
            nn.Conv2d(channels, growth, 1, bias=False),
        ]
    else:
        modules += [nn.Conv2d(channels, growth, size, padding=size // 2, bias=False)]
    return nn.Sequential(*modules, nn.Dropout(config.dropout_rate))


def count_with_torch(config: ConfigDict) -> tuple[int, int]:
    """Return parameters and MACs of an image, by PyTorch."""
    height, width, channels = IMAGE_SHAPE
    with torch.device("meta"):
        model = TorchDenseNet(config, NUM_CLASSES, channels).eval()
        images = torch.empty(1, channels, height, width)
    with FlopCounterMode(display=False) as counter:
        model(images)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.get_total_flops() // 2


def main() -> None:
    """Print the table."""
    columns = ["config", "bottleneck", "parameters", "in torch", "MACs", "in torch"]
    columns.append("difference of MACs")
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|")
    for file in (separable, standard, cpu, digits):
        for bottleneck in (0, 4):
            config = file.get_config()
            config.bottleneck = bottleneck
            ours = count_cost(optim.resolve(config), NUM_CLASSES, IMAGE_SHAPE)
            parameters, macs = count_with_torch(config)
            counts = [ours["parameters"], parameters, ours["macs"], macs]
            counts.append(ours["macs"] - macs)
            name = file.__name__.partition(".")[2]
            cells = [name, str(bottleneck), *(f"{n:,}" for n in counts)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
