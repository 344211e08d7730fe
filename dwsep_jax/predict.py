"""--mode=predict: classify pictures with a trained run."""

import csv
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from dwsep_jax.console import say
from dwsep_jax.data import load, pictures
from dwsep_jax.data.augment import normalize
from dwsep_jax.data.folder import list_pictures
from dwsep_jax.data.read import without_controls
from dwsep_jax.environment import compiler_options
from dwsep_jax.errors import ConfigError, UserError, choose
from dwsep_jax.evaluate import restore
from dwsep_jax.nn.densenet import create_model
from dwsep_jax.workdir import read_json, write_atomically

# An image, and its most probable classes.
Row = tuple[str, list[tuple[str, float]]]


def predict_workdir(
    config: ConfigDict,
    workdir: str | os.PathLike,
    images: str,
    output: str | None = None,
    top: int = 5,
) -> None:
    """Classify pictures; print or write the most probable classes of each.

    Pictures that cannot be read are named and left out.

    Args:
      config: the resolved configuration of the run.
      workdir: of the run.
      images: a picture, a folder of them, or a .txt file with a path on each line.
      output: file to write, .csv or .jsonl; None prints.
      top: classes of each picture, at most.

    Raises:
      ConfigError: if there are no such pictures, or the output is of another kind.
      UserError: at the end, if some could not be read; or if there is no checkpoint.
    """
    encode = output and choose("--output", os.path.splitext(output)[1], _ENCODE)
    paths = _find_pictures(images)
    names, shape, temperature = _describe_run(config, workdir)
    classify = _make_classifier(config, workdir, len(names), temperature)
    read = partial(_read, shape=shape)
    rows, size = [], min(config.eval_batch_size, len(paths))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), size):
            batch, found = np.zeros((size, *shape), np.uint8), []
            some = paths[start : start + size]
            for path, picture in zip(some, pool.map(read, some), strict=True):
                if isinstance(picture, str):
                    say(f"skipped {without_controls(path)}: {picture}")
                else:
                    batch[len(found)] = picture
                    found.append(path)
            for path, shares in zip(found, np.asarray(classify(batch)), strict=False):
                best = np.argsort(-shares, kind="stable")[:top]
                rows.append((path, [(names[i], float(shares[i])) for i in best]))
                if not output:
                    say(_format(rows[-1]))
    if output:
        _write(output, encode(rows))
        say(f"predictions: {output}")
    if len(rows) < len(paths):
        raise UserError(
            f"{len(paths) - len(rows):,} of {len(paths):,} pictures cannot be read; "
            "those named above are left out"
        )


def _find_pictures(images):
    path = os.path.expanduser(images)
    if not os.path.exists(path):
        raise ConfigError(f"--images={images}: no such file or folder")
    paths = [path]
    if os.path.isdir(path):
        paths = list_pictures(path)
    elif path.endswith(".txt"):
        with open(path, errors="surrogateescape") as file:
            paths = [line.strip() for line in file if line.strip()]
    if not paths:
        kinds = ", ".join(pictures.SUFFIXES)
        raise ConfigError(f"--images={images}: holds no picture ({kinds}); name others")
    return paths


def _describe_run(config, workdir):
    """Return class names, shape of the images and temperature of a run.

    Evaluations of earlier versions lack the last two: then the data are asked.
    """
    evaluation = read_json(workdir, "evaluation") or {}
    temperature = evaluation.get("temperature", 1.0)
    if shape := evaluation.get("image_shape"):
        return [c["name"] for c in evaluation["per_class"]], shape, temperature
    dataset = load(config)
    return dataset.class_names, dataset.image_shape, temperature


def _make_classifier(
    config, workdir, num_classes, temperature
) -> Callable[[np.ndarray], jax.Array]:
    """Return uint8 images (N, H, W, C) -> probabilities (N, K)."""
    trained = restore(config, workdir, None)
    weights = trained["ema"] or trained
    variables = {name: weights[name] for name in ("params", "batch_stats")}
    model = create_model(config, num_classes)

    def classify(variables, images):
        logits = model.apply(variables, normalize(images), train=False)
        return nn.softmax(logits / temperature)

    options = compiler_options(config.deterministic)
    return partial(jax.jit(classify, compiler_options=options), variables)


def _read(path, shape):
    height, width, channels = shape
    picture = pictures.read(path, (width, height), "L" if channels == 1 else "RGB")
    return picture if isinstance(picture, str) else np.atleast_3d(picture)


def _format(row: Row) -> str:
    path, classes = row
    shares = (f"{name} {share:.2%}" for name, share in classes)
    return "  ".join([without_controls(path), *shares])


def _encode_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    ranks = range(1, 1 + max((len(classes) for _, classes in rows), default=0))
    writer.writerow(
        ["image", *(f"{c}_{i}" for i in ranks for c in ("class", "probability"))]
    )
    for path, classes in rows:
        writer.writerow([path, *(value for pair in classes for value in pair)])
    return text.getvalue()


def _encode_jsonl(rows: list[Row]) -> str:
    def describe(row: Row) -> dict[str, Any]:
        keys = ("class", "probability")
        return {
            "image": row[0],
            "top": [dict(zip(keys, c, strict=True)) for c in row[1]],
        }

    return "".join(json.dumps(describe(row)) + "\n" for row in rows)


_ENCODE = {".csv": _encode_csv, ".jsonl": _encode_jsonl}


def _write(output, text):
    try:
        write_atomically(output, text.encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot be written ({error.strerror}); name another"
        ) from error
