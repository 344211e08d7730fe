"""What a run says of itself when it starts."""

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from dwsep_jax import console
from dwsep_jax.config import STEADY_SCHEDULES
from dwsep_jax.data import Dataset
from dwsep_jax.nn.summary import describe_network, summarize
from dwsep_jax.train.step import TrainState


def print_start(config: ConfigDict, dataset: Dataset, state: TrainState) -> str:
    """Print what is trained on what; return one line that names the network."""
    console.say(parameter_overview.get_parameter_overview(state.params))
    image_shape = dataset.train.images.shape[1:]
    parts = summarize(config, len(dataset.class_names), image_shape)
    rows = [
        [p.name, "x".join(map(str, p.output_shape)), p.parameters, p.macs]
        for p in parts
    ]
    parameters, macs = (sum(p[i] for p in parts) for i in (2, 3))
    rows.append(["total", "", parameters, macs])
    columns = ["part", "output", "parameters", "MACs per image"]
    console.print_table("Network", columns, rows)
    network = describe_network(config, parts)
    sizes = (dataset.train, dataset.validation, dataset.test)
    train, validation, test = (f"{len(split.labels):,}" for split in sizes)
    device = jax.devices()[0]
    console.say(f"network: {network}")
    console.say(
        f"data: {dataset.name}, {train} train, {validation} validation, {test} test"
    )
    console.say(
        f"optimizer: {config.optimizer}, peak learning rate {config.learning_rate:g}, "
        f"weight decay {config.weight_decay:g}, batch size {config.batch_size}"
    )
    if config.early_stopping:
        console.say(describe_early_stopping(config))
    count = jax.device_count()
    others = f" (1 of {count} is used)" if count > 1 else ""
    console.say(f"device: {device.device_kind}{others}")
    return network


def describe_early_stopping(config: ConfigDict) -> str:
    """Return when the run will end, and what becomes of a schedule that decays."""
    text = (
        f"early stopping: after {config.early_stopping} epochs without a validation "
        f"accuracy better by more than {config.min_change:g}"
    )
    if config.schedule in STEADY_SCHEDULES:
        return text
    return text + (
        f"; the {config.schedule} schedule is planned for all {config.num_epochs} "
        "epochs, so a run that is stopped never sees its lowest rates"
    )
