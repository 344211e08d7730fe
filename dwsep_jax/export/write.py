"""--mode=export: a trained network in files that need none of this package."""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import save

from dwsep_jax.console import say
from dwsep_jax.data.augment import normalize
from dwsep_jax.errors import ConfigError, UserError, choose
from dwsep_jax.evaluate import Trained, load_trained
from dwsep_jax.nn.summary import describe_network, summarize
from dwsep_jax.statistics import wilson_interval
from dwsep_jax.workdir import read_intact, write_atomically, write_json

PLATFORMS = ("cpu", "cuda", "tpu")
_WEIGHTS = "model.safetensors"
_DESCRIPTIONS = ("manifest.json", "README.md", "config.json", "evaluation.json")


def export_workdir(
    config: ConfigDict,
    workdir: str | os.PathLike,
    formats: Sequence[str],
    output: str | None = None,
) -> None:
    """Write the weights that a run's evaluation describes, as programs and as arrays.

    Files of another export of the same weights stay beside them; those of other weights
    are deleted. Beside model.<format> it writes manifest.json, a model card, README.md,
    and the run's config.json and evaluation.json. Programs take uint8 images (N, H, W,
    C) and return logits (N, K), both of any N, computed in float32.

    Args:
      config: the resolved configuration of the run.
      workdir: of the run.
      formats: some of stablehlo, onnx and safetensors.
      output: directory for the files; None is `export` in the workdir.

    Raises:
      ConfigError: for an unknown format, or an output with other files.
      UserError: if there is no checkpoint, a package is missing, or the output cannot
        be written.
    """
    writers = {name: choose("--format", name, FORMATS) for name in formats}
    trained = load_trained(workdir, config)
    contents = {
        f"model.{name}": write(config, trained) for name, write in writers.items()
    }
    digest = hashlib.sha256(make_safetensors(config, trained)).hexdigest()
    directory = pathlib.Path(output or os.path.join(workdir, "export")).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        kept = _prepare(directory, contents, digest)
        for name, content in contents.items():
            write_atomically(directory / name, content)
        _copy_descriptions(workdir, directory, trained.evaluation)
        manifest = _describe(config, trained, contents)
        manifest |= {"weights": digest, "files": kept | manifest["files"]}
        write_json(directory / "manifest.json", manifest)
        write_atomically(directory / "README.md", make_card(manifest))
    except OSError as error:
        raise UserError(
            f"--output={directory}: cannot be written ({error.strerror or error}); "
            "name another directory"
        ) from error
    say(f"exported {', '.join(contents)}: {directory}")


def _prepare(directory, contents, digest):
    """Return the digests of files that stay, of the same weights; delete the others.

    Raises:
      ConfigError: if the directory has files that are not of an export.
    """
    names = {path.name for path in directory.iterdir()}
    before = read_intact(directory, "manifest")
    is_begun = any(n.startswith("model.") for n in names) and all(
        n.startswith(("model.", *_DESCRIPTIONS)) for n in names
    )
    if names and not (before or is_begun):
        raise ConfigError(f"--output={directory}: holds other files; name another")
    there = before["files"] if before else {}
    if not before or digest not in (before.get("weights"), there.get(_WEIGHTS)):
        there = {}
    is_kept = {name: (directory / name).is_file() for name in there}
    kept = {n: d for n, d in there.items() if is_kept[n] and n not in contents}
    for name in FORMATS:
        if f"model.{name}" not in kept | contents:
            (directory / f"model.{name}").unlink(missing_ok=True)
    return kept


def _copy_descriptions(workdir, directory, evaluation):
    """Copy what `load_trained` reads, without the place of the data."""
    config = json.loads((pathlib.Path(workdir) / "config.json").read_bytes())
    config.pop("sha256", None)
    for part in ("requested", "resolved"):
        config[part]["data_dir"] = None
    write_json(directory / "config.json", config)
    if evaluation:
        write_json(directory / "evaluation.json", evaluation)
    else:
        (directory / "evaluation.json").unlink(missing_ok=True)


def make_stablehlo(config: ConfigDict, trained: Trained) -> bytes:
    """Return a program of jax.export with the weights inside, for all platforms."""
    model = trained.model.clone(dtype=jnp.float32)

    @jax.jit
    def classify(images):
        return model.apply(trained.variables, normalize(images), train=False)

    shape = (*jax.export.symbolic_shape("n"), *trained.image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return bytes(jax.export.export(classify, platforms=PLATFORMS)(images).serialize())


def make_onnx(config: ConfigDict, trained: Trained) -> bytes:
    """Return an ONNX model with the weights inside."""
    try:
        from dwsep_jax.export.onnx_graph import make_graph
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format=onnx: {error}; pip install 'dwsep_jax[onnx]', or choose another"
        ) from error
    graph = make_graph(config, trained.variables, trained.image_shape)
    return graph.SerializeToString()


def make_safetensors(config: ConfigDict, trained: Trained) -> bytes:
    """Return the weights alone, by the names of the modules, as `init_from` reads."""
    flat = flatten_dict(trained.variables, sep=".")
    return save({name: np.asarray(array) for name, array in flat.items()})


FORMATS = {
    "stablehlo": make_stablehlo,
    "onnx": make_onnx,
    "safetensors": make_safetensors,
}


def _describe(config, trained, contents):
    """Return what manifest.json says of the files."""
    parts = summarize(config, len(trained.class_names), trained.image_shape)
    manifest = {
        "schema": 1,
        "network": describe_network(config, parts),
        "dataset": os.path.basename(os.path.normpath(config.dataset)),
        "class_names": list(trained.class_names),
        "images": {"dtype": "uint8", "shape": ["N", *trained.image_shape]},
        "logits": {"dtype": "float32", "shape": ["N", len(trained.class_names)]},
        "temperature": trained.temperature,
        "parameters": sum(part.parameters for part in parts),
        "macs": sum(part.macs for part in parts),
        "files": {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()},
    }
    if evaluation := trained.evaluation:
        names = ("split", "weights", "epoch", "num_examples", "accuracy")
        manifest["evaluation"] = {name: evaluation[name] for name in names}
        share = (evaluation["accuracy"], evaluation["num_examples"])
        manifest["evaluation"]["interval"] = list(wilson_interval(*share))
    return manifest


def make_card(manifest: dict[str, Any]) -> str:
    """Return the model card of an export in Markdown."""
    height, width, channels = manifest["images"]["shape"][1:]
    result, calibrated = "It has not been evaluated.", ""
    if evaluation := manifest.get("evaluation"):
        low, high = evaluation["interval"]
        result = (
            f"Accuracy on {evaluation['num_examples']:,} images of "
            f"{evaluation['split']}: {evaluation['accuracy']:.2%} (95 % interval "
            f"{low:.2%} to {high:.2%}), {evaluation['weights']} weights of epoch "
            f"{evaluation['epoch']}."
        )
        calibrated = (
            f",\ndivided by {manifest['temperature']:.4g}, a temperature fitted on "
            "validation"
        )
    uses = "\n\n".join(_USES[name] for name in manifest["files"])
    sums = "\n".join(f"- `{n}`: `{digest}`" for n, digest in manifest["files"].items())
    names = manifest["class_names"]
    return f"""\
# {manifest["dataset"]}: {manifest["network"]}

{result}

It takes uint8 images (N, {height}, {width}, {channels}) from 0 to 255, in the order of
rows, columns and channels, and returns logits (N, {len(names)}); images are scaled to
[-1, 1] inside. Probabilities are the softmax of the logits{calibrated}.

Classes: {", ".join(names)}.

{uses}

SHA-256:

{sums}

Written by dwsep_jax with `--mode=export`.
"""


_USES = {
    "model.stablehlo": """\
`model.stablehlo` needs jax and flatbuffers alone:

```python
exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
logits = exported.call(images)
```""",
    "model.onnx": """\
`model.onnx`, by ONNX Runtime:

```python
session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": images})
```""",
    "model.safetensors": """\
`model.safetensors` holds the weights for `--config.init_from`, or any other reader.""",
}
