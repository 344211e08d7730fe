"""What our networks cost by XLA and by hand, and the content of efficiency.json."""

import json

import jax
import numpy as np
import pytest

from configs import separable
from dwsep_jax import console, data
from dwsep_jax.efficiency import cost, timing
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.nn import counting
from dwsep_jax.nn.summary import summarize
from dwsep_jax.train import optim
from tests import tiny
from tests.quick import read


def test_layers_have_names_kinds_and_shapes(monkeypatch):
    monkeypatch.setattr(cost, "_count_flops", lambda *args: {})
    config = tiny.make_resolved(bottleneck=2, inner_norm=True)
    counts = cost.count_cost(config, tiny.make_dataset())
    layers, parts = counts["layers"], summarize(config, 3, (8, 8, 3))
    assert counts["parameters"] == sum(part.parameters for part in parts)
    assert counts["macs"] == sum(part.macs for part in parts)
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    found = {layer["name"]: (layer["kind"], layer["output_shape"]) for layer in layers}
    assert list(found.items())[:7] == [
        ("stem/conv", ("convolution", [8, 8, 8])),
        ("block0/layer0/norm", ("batch norm", [8, 8, 8])),
        ("block0/layer0/bottleneck", ("pointwise convolution", [8, 8, 8])),
        ("block0/layer0/bottleneck_norm/normalize", ("batch norm", [8, 8, 8])),
        ("block0/layer0/conv/depthwise", ("depthwise convolution", [8, 8, 8])),
        ("block0/layer0/conv/norm/normalize", ("batch norm", [8, 8, 8])),
        ("block0/layer0/conv/pointwise", ("pointwise convolution", [8, 8, 4])),
    ]
    # A norm covers all pieces of its input: the stem's 8 channels and the layer's 4.
    assert found["transition1/norm"] == ("batch norm", [8, 8, 12])
    assert found["transition1/conv"] == ("pointwise convolution", [8, 8, 6])
    assert found["head"] == ("dense", [3])


VARIANTS = {
    "separable": {},
    "standard": {"conv": "standard"},
    "all": {
        **{"bottleneck": 2, "inner_norm": True, "inner_activation": True},
        **{"activation": "gelu", "stem_stride": 2, "ema_decay": 0.9, "clip_norm": 1.0},
    },
    "adam": {"optimizer": "adam", "activation": "swish", "dropout_rate": 0.0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_items_explain_what_xla_counts(name):
    config = tiny.make_resolved(block_sizes=(2, 1), **VARIANTS[name])
    counts = cost.count_cost(config, tiny.make_dataset())
    flops = counts["flops"]
    assert flops["formula_forward"] == 2 * counts["macs"]
    forward, training = flops["itemized"], flops["itemized_train_step"]
    totals = (flops["xla_forward"], flops["xla_train_step"])
    for total, items in zip(totals, (forward, training), strict=True):
        assert sum(items.values()) == pytest.approx(total, rel=1e-6)
        assert abs(items["other"]) < 0.005 * total
        assert items["padding"] < 0 < min(items["norm"], items["activation"])
        assert set(items) == {*console.FLOP_ITEMS, "other"}
    assert forward["conv_and_dense"] == flops["formula_forward"]
    assert (forward["dropout"], forward["loss"], forward["update"]) == (0, 0, 0)
    assert (training["dropout"] > 0) == (config.dropout_rate > 0)
    # Three times the formula, except for the stem: images need no gradient.
    stem = 2 * 9 * 3 * 8 * (8 // config.stem_stride) ** 2
    assert training["conv_and_dense"] == 3 * flops["formula_forward"] - stem
    if name == "separable":
        config.lowering = "shift"
        assert cost.count_cost(config, tiny.make_dataset()) == counts


def test_norms_and_activations_equal_a_count_by_hand():
    config = optim.resolve(separable.get_config())
    images = np.empty((config.batch_size, 32, 32, 3), np.uint8)
    split = data.Split(images, np.empty(len(images)), np.empty(len(images)))
    dataset = data.Dataset("images", tuple("0123456789"), *[split] * 4)
    flops = cost.count_cost(config, dataset)["flops"]
    assert abs(flops["itemized"]["other"]) < 1e-4 * flops["xla_forward"]
    # A norm takes one multiply-add per element that it reads.
    blocks = ((48, 32), (96, 16), (120, 8), (132, 4))
    inputs = sum((6 * c + 24 * 15) * size**2 for c, size in blocks)
    inputs += 192 * 32**2 + 240 * 16**2 + 264 * 8**2 + 276 * 4**2
    assert flops["itemized"]["activation"] == inputs
    assert flops["itemized"]["norm"] == pytest.approx(2 * inputs, rel=1e-3)


@pytest.fixture
def quick(monkeypatch):
    """Let every program run twice and take 10 ms, on a machine that is not measured."""

    def time_calls(run, make_inputs):
        jax.block_until_ready([run(*make_inputs(i)) for i in range(2)])
        return timing.Timing(10.0, 12.0, 1.0, 2)

    machine = {"matmul_flops_per_second": 1e9, "copy_bytes_per_second": 1e15}
    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(cost, "measure_machine", lambda dtype: machine)
    monkeypatch.setattr(cost, "CPU_BATCH_SIZES", (1, 4))


def measure(**changes):
    return cost.measure_cost(tiny.make_resolved(**changes), tiny.make_dataset())


@pytest.mark.usefixtures("quick")
def test_measured_figures_have_their_units():
    got = measure(ema_decay=0.9)
    time = {"median_ms": 10.0, "p95_ms": 12.0, "spread_ms": 1.0, "num_calls": 2}
    assert got["latency"] == [
        {"batch_size": 1, "dtype": "float32", **time, "images_per_second": 100.0},
        {"batch_size": 4, "dtype": "float32", **time, "images_per_second": 400.0},
    ]
    assert got["train"] == {"batch_size": 8, **time, "images_per_second": 800.0}
    assert got["achieved_by"] == "inference of 4 images"
    rate = 400 * got["flops"]["xla_forward"]
    assert got["achieved_flops_per_second"] == pytest.approx(rate)
    # Each weight is read once, besides the images.
    assert got["achieved_bytes_per_second"] > 4 * got["parameters"] / 0.01
    assert got["limited_by"] == ("neither" if rate < 0.5e9 else "arithmetic")
    memory = got["memory"]
    assert memory["parameters_bytes"] == 4 * got["parameters"]
    # The momentum, and step, rate and decay.
    assert memory["optimizer_bytes"] == memory["parameters_bytes"] + 12
    assert memory["peak_bytes"] > memory["activations_bytes"] > 0
    assert memory["device_peak_bytes"] is None  # A CPU does not tell.
    assert set(memory["source"]) == set(memory) - {"source"}
    assert got["compile_seconds"]["train"] > 0
    assert set(got["compile_seconds"]["inference"]) == {"1", "4"}
    assert got["environment"]["dtype"] == "float32"


@pytest.mark.usefixtures("quick")
def test_unavailable_figures_are_null_and_printed_as_dashes(monkeypatch, capsys):
    measured = timing.Measurement(timing.Timing(10.0, 12.0, 1.0, 2), 1.0)
    empty = timing.Measurement()
    results = iter([empty, measured, empty])  # Training, then batches of 1 and 4.
    monkeypatch.setattr(cost, "measure_program", lambda *args: next(results))
    monkeypatch.setattr(counting, "xla_flops", lambda *args: None)
    got = measure()
    one, four = got["latency"]
    assert one["images_per_second"] == 100.0
    assert four == dict.fromkeys(four) | {"batch_size": 4, "dtype": "float32"}
    assert got["train"] == dict.fromkeys(got["train"]) | {"batch_size": 8}
    assert got["achieved_by"] == "inference of 1 images"
    assert got["achieved_flops_per_second"] is got["limited_by"] is None
    assert got["memory"]["activations_bytes"] is got["memory"]["peak_bytes"] is None
    assert got["compile_seconds"]["train"] is None
    assert got["flops"]["xla_forward"] is got["flops"]["itemized"]["other"] is None
    assert got["flops"]["itemized"]["norm"] > 0
    json.dumps(got, allow_nan=False)
    console.print_efficiency(got)
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("  training step")]
    assert line.split()[2:] == ["8", "-", "-", "-", "-", "-"]


def test_the_file_is_written_where_training_can_continue(monkeypatch, tmp_path, capsys):
    content = {"schema": 1, "macs": 2}
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())
    monkeypatch.setattr(cost, "measure_cost", lambda *args: content)
    printed = []
    monkeypatch.setattr(cost, "print_efficiency", printed.append)
    config = tiny.make_config()
    for _ in range(2):  # The second time in the workdir of an existing run.
        cost.measure_workdir(config, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "efficiency.json"}
    assert read(tmp_path / "run" / "efficiency.json") == content
    assert printed == [content, content]
    assert f"files: {tmp_path / 'run'}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="seed=0 there"):
        cost.measure_workdir(tiny.make_config(seed=1), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex"):
        cost.measure_workdir(config, tmp_path / "other")
