"""Pictures are classified as the run's own evaluation does, with its temperature."""

import csv
import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from dwsep_jax import evaluate, predict
from dwsep_jax.__main__ import main
from dwsep_jax.errors import UserError
from dwsep_jax.train import loop
from dwsep_jax.train.metrics import with_temperature
from dwsep_jax.workdir import load_config, read_json, write_json
from tests import tiny
from tests.data.picture_files import encode, write

NAMES = ("blue", "red", "\u7eff")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a folder of pictures, and the folder."""
    place = tmp_path_factory.mktemp("predict")
    for split, size, seed in (("train", 40, 0), ("val", 12, 1), ("test", 13, 2)):
        for image, label, id_ in zip(*tiny.make_split(size, seed)):
            # With a mistake, so that a temperature is fitted.
            name = NAMES[label - (id_ == "tiny_1_003")]
            write(place / split / name / f"{id_}.png", encode(image))
    config = tiny.make_config(dataset=str(place), num_epochs=1, ema_decay=0.5)
    loop.train_and_evaluate(config, place / "run")
    return place / "run", place


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run."""
    assert read_json(trained[0], "evaluation")["temperature"] != 1
    return shutil.copytree(trained[0], tmp_path / "run")


def call(workdir, images, *arguments):
    arguments = (f"--workdir={workdir}", f"--images={images}", *arguments)
    return main(["", "--mode=predict", *arguments])


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_test_images_get_their_probabilities(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load", None)  # The data are not needed.
    evaluation = read_json(run, "evaluation")
    with np.load(run / "predictions.npz") as arrays:
        scaled = with_temperature(arrays["probabilities"], evaluation["temperature"])
        expected = dict(zip(arrays["id"].tolist(), scaled))
    output = tmp_path / "o.jsonl"
    assert call(run, trained[1] / "test", f"--output={output}") == 0
    rows = read_lines(output)
    paths = sorted(map(str, trained[1].glob("test/*/*")))
    assert [row["image"] for row in rows] == paths
    for row in rows:
        shares = expected[pathlib.Path(row["image"]).stem]
        best = np.argsort(-shares)
        assert [entry["class"] for entry in row["top"]] == [NAMES[i] for i in best]
        found = [entry["probability"] for entry in row["top"]]
        np.testing.assert_allclose(found, shares[best], rtol=1e-4)


@pytest.mark.parametrize("has_shape", [True, False])
def test_an_evaluation_of_old_has_temperature_1(trained, run, tmp_path, has_shape):
    evaluation = read_json(run, "evaluation")
    for key in ("temperature", "calibrated", *(() if has_shape else ["image_shape"])):
        del evaluation[key]
    write_json(run / "evaluation.json", evaluation)
    picture = sorted((trained[1] / "test").rglob("*.png"))[0]
    assert call(run, picture, f"--output={tmp_path}/o.jsonl", "--top=1") == 0
    [row] = read_lines(tmp_path / "o.jsonl")
    with np.load(run / "predictions.npz") as arrays:
        [shares] = arrays["probabilities"][arrays["id"] == picture.stem]
    [best] = row["top"]
    assert best["class"] == NAMES[shares.argmax()]
    assert best["probability"] == pytest.approx(shares.max(), rel=1e-4)


def test_damaged_pictures_are_named_and_left_out(run, tmp_path, capsys):
    pixels = tiny.make_split(3, 0).images
    # Of another size, and gray: as in training, resized and made RGB.
    write(tmp_path / "a/b/big.png", encode(pixels[0].repeat(4, 0).repeat(8, 1)))
    write(tmp_path / "a/gray\x1b.jpg", encode(pixels[1][..., 0], "JPEG"))
    write(tmp_path / "a/damaged.png", encode(pixels[2])[:99])
    write(tmp_path / "a/notes.txt", b"hello")
    assert call(run, tmp_path / "a") == 1
    out, err = capsys.readouterr()
    assert f"skipped {tmp_path}/a/damaged.png: " in out
    shown = [line for line in out.splitlines() if line.startswith(f"{tmp_path}/a/")]
    assert [line.split("  ")[0][-9:] for line in shown] == ["b/big.png", "gray .jpg"]
    assert all(line.count("%") == len(NAMES) for line in shown)
    line = "1 of 3 pictures cannot be read; those named above are left out"
    assert err == f"error: {line}\n"


def test_a_list_in_batches_of_another_size_to_csv(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = tiny.make_split(5, 0).images
    paths = [f"{i},\u7eff.png" for i in range(5)]
    for path, image in zip(paths, images):
        write(tmp_path / path, encode(image))
    lines = "\r\n".join([paths[0], "missing.png", *paths[1:], ""])
    write(tmp_path / "list.TXT", lines.encode("utf-8-sig"))
    (tmp_path / "home").mkdir()
    tables = []
    for size in (2, 8):
        options = ("--output=~/o.csv", "--top=2", f"--config.eval_batch_size={size}")
        assert call(run, "list.TXT", *options) == 1
        with open(tmp_path / "home/o.csv", newline="") as file:
            tables.append(list(csv.reader(file)))
    header, *rows = tables[0]
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row[0] for row in rows] == paths
    for row, other in zip(rows, tables[1][1:]):
        assert float(row[2]) == pytest.approx(float(other[2]), rel=1e-5)
        assert 1 >= float(row[2]) >= float(row[4]) > 0


def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty.txt", b"\n")
    write(tmp_path / "d.csv/x", b"")
    for arguments, line in (
        ("nowhere", "--images=nowhere: no such file or folder"),
        ("run/checkpoints", "--images=run/checkpoints: holds no picture (.png, .jpg"),
        ("empty.txt", "--images=empty.txt: holds no picture"),
        ("x.png --output=o.txt", "--output='.txt' is unknown; choose one of .csv, .j"),
        ("x.png --output=a/o.csv", "--output=a/o.csv: its folder is missing; create"),
        ("x.png --output=d.csv", "--output=d.csv: is a directory; name another"),
        ("x.png --output=run/metrics.jsonl", "--output=run/metrics.jsonl: is a file"),
    ):
        assert call("run", *arguments.split()) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {line}")
        assert err.count("\n") == 1


def test_what_cannot_be_written_is_one_line(run, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    write(tmp_path / "x.png", encode(tiny.make_split(1, 0).images[0]))
    monkeypatch.setattr(predict, "write_atomically", fail)
    assert call(run, tmp_path / "x.png", f"--output={tmp_path}/o.csv") == 1
    line = f"error: --output={tmp_path}/o.csv: cannot be written (Permission denied); "
    assert capsys.readouterr().err == f"{line}name another\n"


def test_a_run_without_a_checkpoint_is_one_line(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        predict.predict_workdir(load_config(run), run, str(run / "figures"))


def test_a_picture_has_the_channels_of_the_run(tmp_path):
    paths = [tmp_path / "gray.png", tmp_path / "rgb.png"]
    for path, shape in zip(paths, [(8, 8), (8, 8, 3)]):
        write(path, encode(np.zeros(shape, np.uint8)))

    def apply(variables, images, train):
        return images.mean((1, 2))

    for shape in [(6, 9, 1), (6, 9, 3)]:
        model = types.SimpleNamespace(apply=apply)
        trained = evaluate.Trained(model, {}, ("a", "b"), shape, 1.0)
        classified = predict._classify(tiny.make_config(), trained, paths)
        assert [path for path, _ in classified] == paths
