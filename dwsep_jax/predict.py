"""--mode=predict: classify pictures with a trained run."""

import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from dwsep_jax.console import say
from dwsep_jax.data import pictures
from dwsep_jax.data.augment import normalize
from dwsep_jax.data.folder import list_pictures
from dwsep_jax.data.read import without_controls
from dwsep_jax.environment import compiler_options
from dwsep_jax.errors import ConfigError, UserError, choose
from dwsep_jax.evaluate import load_trained
from dwsep_jax.workdir import write_atomically


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
    output = output and os.path.expanduser(output)
    encode = output and _check_output(output)
    paths, rows = _find_pictures(images), []
    trained = load_trained(workdir, config)
    for path, shares in _classify(config, trained, paths):
        best = [
            {"class": trained.class_names[i], "probability": float(shares[i])}
            for i in np.argsort(-shares, kind="stable")[:top]
        ]
        rows.append({"image": path, "top": best})
        if not output:
            shown = (f"{entry['class']} {entry['probability']:.2%}" for entry in best)
            say("  ".join([without_controls(path), *shown]))
    if output:
        try:
            write_atomically(output, encode(rows).encode(errors="surrogateescape"))
        except OSError as error:
            raise UserError(
                f"--output={output}: cannot be written ({error.strerror}); name another"
            ) from error
        say(f"predictions: {output}")
    if len(rows) < len(paths):
        raise UserError(
            f"{len(paths) - len(rows):,} of {len(paths):,} pictures cannot be read; "
            "those named above are left out"
        )


def _check_output(output):
    """Return how rows are encoded; raise `ConfigError` unless they may be written."""
    encode = choose("--output", os.path.splitext(output)[1], _ENCODE)
    folder, name = os.path.split(output)
    if not os.path.isdir(folder or "."):
        raise ConfigError(f"--output={output}: its folder is missing; create it first")
    is_theirs = os.path.exists(os.path.join(folder, "config.json"))
    if os.path.isdir(output) or (is_theirs and name in ("metrics.jsonl", "trials.csv")):
        what = "a directory" if os.path.isdir(output) else "a file of the workdir"
        raise ConfigError(f"--output={output}: is {what}; name another")
    return encode


def _find_pictures(images):
    path = os.path.expanduser(images)
    if not os.path.exists(path):
        raise ConfigError(f"--images={images}: no such file or folder")
    paths = [path]
    if os.path.isdir(path):
        paths = list_pictures(path)
    elif path.lower().endswith(".txt"):
        # Without the mark that editors on Windows put first.
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            paths = [line.strip() for line in file if line.strip()]
    if not paths:
        kinds = ", ".join(pictures.SUFFIXES)
        raise ConfigError(f"--images={images}: holds no picture ({kinds}); name others")
    return paths


def _classify(config, trained, paths):
    """Yield the paths of pictures that can be read, with float32 probabilities (K,)."""

    def classify(variables, images):
        logits = trained.model.apply(variables, normalize(images), train=False)
        return nn.softmax(logits / trained.temperature)

    options = compiler_options(config.deterministic)
    classify = jax.jit(classify, compiler_options=options)
    height, width, channels = trained.image_shape
    mode = "L" if channels == 1 else "RGB"
    read = partial(pictures.read, size=(width, height), mode=mode)
    size = min(config.eval_batch_size, len(paths))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), size):
            batch, found = np.zeros((size, *trained.image_shape), np.uint8), []
            some = paths[start : start + size]
            for path, picture in zip(some, pool.map(read, some), strict=True):
                if isinstance(picture, str):
                    say(f"skipped {without_controls(path)}: {picture}")
                else:
                    batch[len(found)] = np.atleast_3d(picture)
                    found.append(path)
            probabilities = np.asarray(classify(trained.variables, batch))
            yield from zip(found, probabilities, strict=False)


def _encode_csv(rows):
    text = io.StringIO()
    ranks = range(1, max((len(row["top"]) for row in rows), default=0) + 1)
    columns = [f"{name}_{rank}" for rank in ranks for name in ("class", "probability")]
    writer = csv.writer(text)
    writer.writerow(["image", *columns])
    for row in rows:
        cells = [cell for entry in row["top"] for cell in entry.values()]
        writer.writerow([row["image"], *cells])
    return text.getvalue()


def _encode_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


_ENCODE = {".csv": _encode_csv, ".jsonl": _encode_jsonl}
