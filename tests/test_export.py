"""Exported networks: the same logits, in a process that has none of this package."""

import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
from safetensors.numpy import load

from dwsep_jax import data, evaluate
from dwsep_jax.__main__ import main
from dwsep_jax.config import PRETRAINED, load_file
from dwsep_jax.data.augment import normalize
from dwsep_jax.errors import UserError
from dwsep_jax.evaluate import Trained, load_pretrained, load_trained
from dwsep_jax.export import write
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.train import loop
from dwsep_jax.train.metrics import with_temperature
from dwsep_jax.train.step import make_state
from dwsep_jax.train.weights import load_weights
from dwsep_jax.workdir import open_workdir, read_json, write_json
from tests import tiny


def run_onnx(content, images):
    session = onnxruntime.InferenceSession(content)
    (logits,) = session.run(None, {"images": images})
    return logits


NETWORKS = [
    dict(bottleneck=2, inner_norm=True, inner_activation=True, activation="swish"),
    dict(conv="standard", activation="gelu", stem_stride=2, block_sizes=(2,)),
    dict(activation="leaky_relu", kernel_size=5, dtype="bfloat16"),
]
SHAPES = [(11, 10, 3)] * 3  # An odd edge is dropped where the image is halved.
# A single input channel, of gray images and of a stem of one, is not a depthwise one.
NETWORKS += [dict(block_sizes=(1,)), dict(stem_width=0.25, block_sizes=(1,))]
SHAPES += [(8, 9, 1), (8, 9, 3)]


@pytest.mark.parametrize(("changes", "shape"), list(zip(NETWORKS, SHAPES)), ids=str)
def test_every_network_has_the_same_logits_at_any_batch_size(changes, shape):
    config = tiny.make_config(**changes)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, *shape), np.uint8)
    with config.unlocked():
        config.dtype = "float32"
    model = create_model(config, 4)
    variables = jax.jit(model.init)(jax.random.key(0), normalize(images))
    # No scale, bias, mean or variance that could be left out unnoticed.
    move = lambda x: np.float32(x + rng.uniform(0.1, 0.5, x.shape))  # noqa: E731
    variables = jax.tree.map(move, variables)
    want = np.asarray(jax.jit(model.apply)(variables, normalize(images)))
    with config.unlocked():
        config.dtype = changes.get("dtype", "float32")
    model = create_model(config, 4)
    trained = Trained(model, variables, tuple("abcd"), shape, 1.0)
    program = write.make_stablehlo(config, trained)
    exported = jax.export.deserialize(bytearray(program))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    model = write.make_onnx(config, trained)
    for n in (5, 1):
        scale = np.abs(want[:n]).max()
        for got in (exported.call(images[:n]), run_onnx(model, images[:n])):
            np.testing.assert_allclose(got, want[:n], rtol=0, atol=1e-5 * scale)
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    layers, blocks = sum(config.block_sizes), len(config.block_sizes)
    per_layer = 1 if "conv" in changes else 3 if config.bottleneck else 2
    assert kinds.count("Conv") == 1 + per_layer * layers + blocks - 1


ALONE = """
import sys
sys.modules["dwsep_jax"] = sys.modules["flax"] = sys.modules["orbax"] = None
import jax, numpy, onnxruntime
exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
images = numpy.load(sys.argv[1])
logits = {"jax": exported.call(images)}
session = onnxruntime.InferenceSession("model.onnx")
(logits["onnx"],) = session.run(None, {"images": images})
numpy.savez(sys.argv[2], **logits)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda config: tiny.make_dataset())
        patch.setattr(loop, "draw_run", lambda workdir: None)
        workdir = tmp_path_factory.mktemp("export") / "run"
        loop.train_and_evaluate(tiny.make_config(num_epochs=1, ema_decay=0.5), workdir)
    return workdir


def export(workdir, *arguments):
    return main(["", "--mode=export", f"--workdir={workdir}", *arguments])


def test_a_run_is_exported_for_processes_without_the_package(run, tmp_path):
    output = tmp_path / "there"
    formats = "--format=stablehlo,onnx,safetensors"
    assert export(run, formats, f"--output={output}") == 0
    np.save(tmp_path / "images.npy", tiny.make_dataset().test.images)
    code = [sys.executable, "-c", ALONE, tmp_path / "images.npy", tmp_path / "l.npz"]
    subprocess.run(code, check=True, cwd=output)
    want = np.load(run / "predictions.npz")["probabilities"]
    for logits in np.load(tmp_path / "l.npz").values():
        np.testing.assert_allclose(jax.nn.softmax(logits), want, atol=1e-5)

    manifest = json.loads((output / "manifest.json").read_text())
    files = {path.name for path in output.iterdir()}
    described = {"manifest.json", "config.json", "evaluation.json", "README.md"}
    assert files == {*manifest["files"]} | described
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == digest
    evaluation = read_json(run, "evaluation")
    assert manifest["temperature"] == evaluation["temperature"]
    assert manifest["evaluation"]["accuracy"] == evaluation["accuracy"]
    low, high = manifest["evaluation"]["interval"]
    assert low < evaluation["accuracy"] < high
    assert manifest["class_names"] == ["red", "green", "blue"]
    card = (output / "README.md").read_text()
    assert f"{evaluation['accuracy']:.2%}" in card
    assert "red, green, blue" in card

    arrays = load((output / "model.safetensors").read_bytes())
    sizes = [x.size for name, x in arrays.items() if name.startswith("params.")]
    assert sum(sizes) == manifest["parameters"]


def test_the_default_leaves_out_onnx(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(run) == 0
    with pytest.raises(UserError, match="holds an export, which cannot be continued"):
        open_workdir(run / "export", tiny.make_config(), lambda config: config)
    files = sorted(path.name for path in (run / "export").glob("model.*"))
    assert files == ["model.safetensors", "model.stablehlo"]


def test_an_export_with_safetensors_is_loaded_as_the_run(run, tmp_path):
    assert export(run, "--format=safetensors", f"--output={tmp_path}") == 0
    ours, theirs = load_trained(tmp_path), load_trained(run)
    assert ours[2:] == theirs[2:]
    assert tiny.bits(ours.variables) == tiny.bits(theirs.variables)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its checksum differs; export it"):
        load_trained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be read .*; export it again"):
        load_trained(tmp_path)
    assert export(run, "--format=stablehlo", f"--output={tmp_path}") == 0
    with pytest.raises(UserError, match="export again with --format=safetensors"):
        load_trained(tmp_path)


def list_models(directory):
    names = json.loads((directory / "manifest.json").read_text())["files"]
    assert sorted(path.name for path in directory.glob("model.*")) == sorted(names)
    return {name.removeprefix("model.") for name in names}


def test_files_of_the_same_weights_stay_and_others_go(run, tmp_path):
    there = shutil.copytree(PRETRAINED / "digits", tmp_path / "there")
    assert export(there, "--format=stablehlo", f"--output={there}") == 0
    assert list_models(there) == {"stablehlo", "safetensors"}
    assert len(load_trained(there).class_names) == 10
    (there / "manifest.json").unlink()  # Killed before it was written.
    assert export(run, "--format=onnx", f"--output={there}") == 0
    assert list_models(there) == {"onnx"}
    assert export(run, "--format=safetensors", f"--output={there}") == 0
    assert list_models(there) == {"onnx", "safetensors"}


@pytest.mark.parametrize("manifest", ['{"name": "web"}', '{"files": {}}'])
def test_somebodys_manifest_is_no_export(run, tmp_path, manifest):
    for name, content in (("manifest.json", manifest), ("README.md", "mine")):
        (tmp_path / name).write_text(content)
    assert export(run, "--format=safetensors", f"--output={tmp_path}") == 2
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_export_is_enough_where_nothing_was_evaluated(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "evaluation.json").unlink()
    monkeypatch.setattr(evaluate, "load", lambda config: tiny.make_dataset())
    assert export(copy, "--format=safetensors") == 0
    monkeypatch.setattr(evaluate, "load", None)
    trained = load_trained(copy / "export")
    assert trained.class_names == ("red", "green", "blue")
    assert (trained.image_shape, trained.evaluation) == ((8, 8, 3), None)


def test_an_evaluation_of_other_weights_is_left_out(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    write_json(copy / "evaluation.json", read_json(run, "evaluation") | {"epoch": 7})
    assert export(copy, "--format=safetensors") == 0
    assert "evaluation.json is of epoch 7, and the weights are of epoch 1" in (
        capsys.readouterr().out
    )
    trained = load_trained(copy / "export")
    assert (trained.temperature, trained.evaluation) == (1.0, None)
    assert "has not been evaluated" in (copy / "export/README.md").read_text()


def test_an_export_has_no_checkpoints(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "load", lambda config: tiny.make_dataset())
    assert export(run, "--format=safetensors", f"--output={tmp_path}") == 0
    assert main(["", "--mode=evaluate", f"--workdir={tmp_path}"]) == 1
    assert "holds an export, which has no checkpoints" in capsys.readouterr().err
    weights = []
    for path in (tmp_path, tmp_path / "model.safetensors"):
        config = tiny.make_resolved(init_from=str(path))
        state = load_weights(config, make_state(config, tiny.make_dataset()))
        weights.append(tiny.bits(state.params))
    assert weights[0] == weights[1] != tiny.bits(tiny.make_state().params)
    with open(tmp_path / "model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="is damaged: its checksum differs"):
        tiny.make_resolved(init_from=str(tmp_path))


def test_the_weights_of_the_package_have_their_accuracy(tmp_path, monkeypatch, capsys):
    trained = load_pretrained("digits")
    evaluation = read_json(PRETRAINED / "digits", "evaluation")
    config = load_file("digits")
    config.data_dir = str(tmp_path)
    test = data.load(config).test
    logits = jax.jit(trained.model.apply)(trained.variables, normalize(test.images))
    assert np.mean(np.argmax(logits, 1) == test.labels) == evaluation["accuracy"]
    with pytest.raises(ValueError, match="'letters' is unknown; choose one of digits"):
        load_pretrained("letters")
    # Where there is no run of that config.
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(test.images[0]).save("digit.png")
    assert main(["", "--mode=predict", "--config=digits", "--images=digit.png"]) == 0
    assert f"digit.png  {test.labels[0]} 100" in capsys.readouterr().out


def test_mistakes_are_told_before_writing_anything(run, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    assert export(run, "--format=onnx,tflite", f"--output={output}") == 2
    line = "--format='tflite' is unknown; choose one of stablehlo, onnx, safetensors"
    assert line in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert export(run, f"--output={tmp_path}/file/out") == 1
    line = f"--output={tmp_path}/file/out: cannot be written (Not a directory); name an"
    assert line in capsys.readouterr().err
    assert export(run, f"--output={run}") == 2
    assert f"--output={run}: holds other files" in capsys.readouterr().err
    assert not (run / "manifest.json").exists()
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "dwsep_jax.export.onnx_graph", raising=False)
    assert export(run, "--format=onnx", f"--output={output}") == 1
    assert "pip install 'dwsep_jax[onnx]'" in capsys.readouterr().err
    assert not output.exists()


def test_the_page_on_ones_own_code_classifies_as_the_run_did(run):
    page = (pathlib.Path(__file__).parents[1] / "docs/your-own-code.md").read_text()
    (snippet,) = re.findall(r"```python\n([^`]*load_trained[^`]*)```", page)
    names = {}
    exec(snippet, names)
    images = normalize(tiny.make_dataset().test.images)
    with np.load(run / "predictions.npz") as arrays:
        temperature = read_json(run, "evaluation")["temperature"]
        want = with_temperature(arrays["probabilities"], temperature)
    np.testing.assert_allclose(names["classify"](run, images), want, atol=1e-5)
