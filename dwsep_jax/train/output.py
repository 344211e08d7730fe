"""What a run shows while it trains."""

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from dwsep_jax import console
from dwsep_jax.config import STEADY_SCHEDULES
from dwsep_jax.data import Dataset
from dwsep_jax.nn.summary import describe_network, summarize
from dwsep_jax.train.programs import count_devices
from dwsep_jax.train.step import TrainState
from dwsep_jax.workdir import Row, score


def print_start(config: ConfigDict, dataset: Dataset, state: TrainState) -> str:
    """Print what is trained on what, and return one line that describes the network."""
    console.say(parameter_overview.get_parameter_overview(state.params))
    parts = summarize(config, len(dataset.class_names), dataset.image_shape)
    rows = [
        [p.name, "x".join(map(str, p.output_shape)), p.parameters, p.macs]
        for p in parts
    ]
    rows.append(["total", "", *(sum(row[i] for row in rows) for i in (2, 3))])
    columns = ["part", "output", "parameters", "MACs per image"]
    console.print_table("Network", columns, rows)
    network = describe_network(config, parts)
    splits = ("train", "validation", "test")
    sizes = (f"{len(getattr(dataset, name).labels):,} {name}" for name in splits)
    found, used = jax.device_count(), count_devices(config)
    others = f" ({used} of {found} used)" if found > 1 else ""
    console.say(f"network: {network}")
    console.say(f"data: {', '.join([dataset.name, *sizes])}")
    console.say(
        f"optimizer: {config.optimizer}, peak learning rate {config.learning_rate:g}, "
        f"weight decay {config.weight_decay:g}, batch size {config.batch_size}"
    )
    if config.early_stopping:
        text = (
            f"early stopping: after {config.early_stopping} epochs without a "
            f"validation accuracy better by more than {config.min_change:g}"
        )
        if config.schedule not in STEADY_SCHEDULES:
            text += (
                f"; the {config.schedule} schedule is planned for all "
                f"{config.num_epochs} epochs, so a run that stops early never sees its "
                "lowest rates"
            )
        console.say(text)
    console.say(f"device: {jax.devices()[0].device_kind}{others}")
    return network


def print_stop(config: ConfigDict, history: list[Row], epoch: int) -> None:
    """Say why a run with early stopping ended, and which epoch is evaluated."""
    why = "all epochs are trained"
    if len(history) < config.num_epochs:
        share = history[-1]["learning_rate"] / config.learning_rate
        why = (
            f"stopped early: in {config.early_stopping} epochs no validation accuracy "
            f"was better by more than {config.min_change:g}; the learning rate of the "
            f"{config.schedule} schedule was at {share:.0%} of its peak"
        )
    best = max(history, key=score)["epoch"]
    lost = "" if best == epoch else f"; the checkpoint of the best, {best}, is lost"
    console.say(f"{why}; epoch {epoch} is evaluated, the best that is kept{lost}")
