"""What our networks cost: closed forms, and the file that says it."""

import json

import jax
import pytest

from configs import cpu, digits, separable, standard
from dwsep_jax import console, data
from dwsep_jax.efficiency import cost, timing
from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.train import optim
from tests import tiny

IMAGE = (32, 32, 3)
CONFIGS = {"separable": separable, "standard": standard, "cpu": cpu, "digits": digits}


def make_config(name, **changes):
    config = CONFIGS[name].get_config()
    config.update(changes)
    return optim.resolve(config)


def closed_form(config):
    """Return parameters and MACs of a network, block by block, in closed form.

    A block of n layers that begins with c channels and adds g a layer has layers of
    S = n c + g n (n - 1) / 2 input channels, all taken together.
    """
    g, area = config.growth_rate, 32**2 // config.stem_stride**2
    taps, width = config.kernel_size**2, config.bottleneck * config.growth_rate
    c = round(config.stem_width * g)
    parameters, macs = taps * 3 * c, taps * 3 * c * area
    for b, n in enumerate(config.block_sizes):
        if b > 0:
            mixing = c * (c // 2)
            parameters, macs = parameters + 2 * c + mixing, macs + mixing * area
            c, area = c // 2, area // 4
        total = n * c + g * n * (n - 1) // 2
        weights, inputs, norms = 0, total, 2 * total
        if width:
            weights, inputs, norms = total * width, n * width, norms + 2 * n * width
        if config.conv == "separable":
            weights += taps * inputs + inputs * g
        else:
            weights += taps * inputs * g
        parameters, macs = parameters + norms + weights, macs + weights * area
        c += n * g
    return parameters + 2 * c + 10 * c + 10, macs + 10 * c


@pytest.mark.parametrize("bottleneck", [0, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_macs_equal_the_closed_form(name, bottleneck, monkeypatch):
    monkeypatch.setattr(cost, "_count_flops", lambda *args: {})
    config = make_config(name, bottleneck=bottleneck)
    counts = cost.count_cost(config, 10, IMAGE)
    assert (counts["parameters"], counts["macs"]) == closed_form(config)
    layers = counts["layers"]
    assert sum(layer["parameters"] for layer in layers) == counts["parameters"]
    assert sum(layer["macs"] for layer in layers) == counts["macs"]
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)


def test_each_layer_is_named_and_has_its_kind():
    config = tiny.make_resolved(bottleneck=2, inner_norm=True)
    layers = cost.count_cost(config, 3, (8, 8, 3))["layers"]
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
    # Of what it takes, which is in pieces: the stem's 8 channels and the layer's 4.
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
def test_the_items_explain_what_xla_counts(name):
    config = tiny.make_resolved(block_sizes=(2, 1), **VARIANTS[name])
    counts = cost.count_cost(config, 3, (8, 8, 3))
    flops = counts["flops"]
    assert flops["formula_forward"] == 2 * counts["macs"]
    for total, items in (
        (flops["xla_forward"], flops["itemized"]),
        (flops["xla_train_step"], flops["itemized_train_step"]),
    ):
        assert sum(items.values()) == pytest.approx(total, rel=1e-6)
        assert abs(items["other"]) < 0.005 * total
        assert items["padding"] < 0 < min(items["norm"], items["activation"])
        assert set(items) == {*console.FLOP_ITEMS, "other"}
    forward, training = flops["itemized"], flops["itemized_train_step"]
    assert forward["conv_and_dense"] == flops["formula_forward"]
    assert (forward["dropout"], forward["loss"], forward["update"]) == (0, 0, 0)
    assert (training["dropout"] > 0) == (config.dropout_rate > 0)
    # The gradient of the images is not taken: three times the formula but for the stem.
    stem = 2 * 9 * 3 * 8 * (8 // config.stem_stride) ** 2
    assert training["conv_and_dense"] == 3 * flops["formula_forward"] - stem


@pytest.mark.parametrize("name", ["separable", "standard"])
def test_formula_and_items_are_within_two_percent_of_xla(name):
    flops = cost.count_cost(make_config(name), 10, IMAGE)["flops"]
    assert abs(flops["itemized"]["other"]) < 1e-4 * flops["xla_forward"]
    # By hand: each element that a norm reads is normalized by one multiply-add.
    blocks = ((48, 32), (96, 16), (120, 8), (132, 4))
    inputs = sum((6 * c + 24 * 15) * size**2 for c, size in blocks)
    inputs += 192 * 32**2 + 240 * 16**2 + 264 * 8**2 + 276 * 4**2
    assert flops["itemized"]["activation"] == inputs
    assert flops["itemized"]["norm"] == pytest.approx(2 * inputs, rel=1e-3)


def test_counts_do_not_depend_on_the_lowering():
    counts = [
        cost.count_cost(tiny.make_resolved(lowering=lowering), 3, (8, 8, 3))
        for lowering in ("conv", "shift", "auto")
    ]
    assert counts[0] == counts[1] == counts[2]


@pytest.fixture
def quick(monkeypatch):
    """Let each program run once and take 10 ms, on a machine that is not measured."""

    def time_calls(run, make_inputs):
        jax.block_until_ready(run(*make_inputs(0)))
        jax.block_until_ready(run(*make_inputs(1)))
        return timing.Timing(10.0, 12.0, 1.0, 2)

    machine = {"matmul_flops_per_second": 1e9, "copy_bytes_per_second": 1e15}
    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(timing, "measure_machine", lambda dtype: machine)
    monkeypatch.setattr(cost, "BATCH_SIZES", {"cpu": (1, 4)})


def measure(**changes):
    return cost.measure_cost(tiny.make_resolved(**changes), 3, (8, 8, 3))


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
    # Each weight is read once, and the images are larger.
    assert got["achieved_bytes_per_second"] > 4 * got["parameters"] / 0.01
    expected = "neither" if rate < 0.5e9 else "arithmetic"
    assert got["limited_by"] == expected
    memory = got["memory"]
    assert memory["parameters_bytes"] == 4 * got["parameters"]
    # The momentum, and step, rate and decay.
    assert memory["optimizer_bytes"] == memory["parameters_bytes"] + 12
    assert memory["peak_bytes"] > memory["activations_bytes"] > 0
    assert memory["device_peak_bytes"] is None  # Of a CPU.
    assert set(memory["source"]) == set(memory) - {"source"}
    assert got["compile_seconds"]["train"] > 0
    assert set(got["compile_seconds"]["inference"]) == {"1", "4"}
    assert got["environment"]["dtype"] == "float32"


@pytest.mark.usefixtures("quick")
def test_what_does_not_fit_into_memory_is_null_and_is_said(monkeypatch, capsys):
    peaks = {1: 100, 4: 2**31, 8: 2**32}

    def peak_bytes(compiled):
        shapes = [leaf.shape for leaf in jax.tree.leaves(compiled.in_avals)]
        return peaks[next(shape[0] for shape in shapes if shape[1:] == (8, 8, 3))]

    monkeypatch.setattr(timing, "peak_bytes", peak_bytes)
    monkeypatch.setattr(cost, "memory_bytes", lambda: 2**30)
    got = measure()
    one, four = got["latency"]
    assert one["images_per_second"] == 100.0
    assert four == dict.fromkeys(four) | {"batch_size": 4, "dtype": "float32"}
    assert got["train"] == dict.fromkeys(got["train"]) | {"batch_size": 8}
    assert got["achieved_by"] == "inference of 1 images"
    assert got["memory"]["activations_bytes"] is None
    assert got["compile_seconds"]["train"] is None
    json.dumps(got, allow_nan=False)
    console.print_efficiency(got)
    out = capsys.readouterr().out
    assert (
        "not measured: a training step of 8 images (--config.batch_size): needs 4.0 "
        "GiB of memory, and there are 1.0\n" in out
    )
    assert "not measured: inference of 4 images: needs 2.0 GiB" in out
    [line] = [line for line in out.splitlines() if line.startswith("  training step")]
    assert line.split()[2:] == ["8", "-", "-", "-", "-", "-"]


@pytest.mark.usefixtures("quick")
def test_an_analysis_that_xla_lacks_is_null(monkeypatch):
    monkeypatch.setattr(timing, "temporary_bytes", lambda compiled: None)
    monkeypatch.setattr(timing, "peak_bytes", lambda compiled: None)
    monkeypatch.setattr(cost, "read_cost", lambda stage, key: None)
    monkeypatch.setattr(cost, "xla_flops", lambda *args: None)
    got = measure()
    flops = got["flops"]
    assert flops["xla_forward"] is flops["itemized"]["other"] is None
    assert got["memory"]["peak_bytes"] is None
    assert got["achieved_flops_per_second"] is got["limited_by"] is None
    assert got["train"]["images_per_second"] == 800.0
    console.print_efficiency(got)
    json.dumps(got, allow_nan=False)


def test_an_error_that_is_not_of_memory_is_raised():
    def measure():
        raise jax.errors.JaxRuntimeError(message)

    message = "INTERNAL: broken"
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        cost._attempt("it", measure)
    message = "RESOURCE_EXHAUSTED: Out of memory"
    assert cost._attempt("it", measure) is None


@pytest.mark.usefixtures("quick")
def test_the_file_is_written_where_training_can_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "load", lambda config: tiny.make_dataset())
    config = tiny.make_config()
    cost.measure_workdir(config, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "efficiency.json"}
    content = json.loads((tmp_path / "run" / "efficiency.json").read_text())
    assert content["schema"] == 1
    assert content["macs"] == sum(layer["macs"] for layer in content["layers"])
    out = capsys.readouterr().out
    for title in ("Layers", "FLOPs per image", "Time", "Memory"):
        assert f"\n{title}" in f"\n{out}"
    assert "FLOPs is a count of operations, two for each MAC, and FLOP/s a rate" in out
    # Again, in the workdir of what is now a run.
    monkeypatch.setattr(cost, "measure_cost", lambda *args: content)
    cost.measure_workdir(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="belongs to another run: seed=0 there"):
        cost.measure_workdir(tiny.make_config(seed=1), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex but no config"):
        cost.measure_workdir(config, tmp_path / "other")
