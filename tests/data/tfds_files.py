"""Datasets as TFDS lays them out on disk, written by hand."""

import json
import struct

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from tests.data.picture_files import encode

IMAGE = tfds.features.Image(shape=(8, 6, 3))
LABEL = tfds.features.ClassLabel(num_classes=4)


def write_dataset(
    version_dir,
    *,
    num_examples=6,
    ids=None,
    image=IMAGE,
    label=LABEL,
    coarse=None,
    splits=("train", "test"),
    counts=(2, 4),
    file_format="tfrecord",
    edit=None,
):
    """Write a dataset of two shards per split; return its images, the same in each.

    Args:
      version_dir: where to.
      num_examples: of each split; example i has label i % 4.
      ids: of the examples.
      image: the feature of the images; None leaves it out.
      label: the feature of the labels.
      coarse: that of other labels, i % 2; None leaves it out.
      splits: their names.
      counts: the lengths that dataset_info.json claims for the two shards.
      file_format: the format that dataset_info.json claims.
      edit: features of example 4 to replace.
    """
    shape = image.shape if image and image.shape in ((7, 7, 1),) else (8, 6, 3)
    arrays = np.random.default_rng(0).integers(0, 256, (num_examples, *shape), np.uint8)
    examples = [
        {"image": encode(array.squeeze()), "label": i % 4, "coarse_label": i % 2}
        for i, array in enumerate(arrays)
    ]
    for i, id_ in enumerate(ids or []):
        examples[i]["id"] = id_.encode()
    examples[4] |= edit or {}
    version_dir.mkdir(parents=True)
    features = {"image": image, "label": label, "id": ids and tfds.features.Text()}
    features["coarse_label"] = coarse
    features = {name: feature for name, feature in features.items() if feature}
    tfds.features.FeaturesDict(features).save_config(version_dir)
    name = version_dir.parent.name
    for split in splits:
        for i, shard in enumerate((examples[:2], examples[2:])):
            path = version_dir / f"{name}-{split}.{file_format}-{i:05d}-of-00002"
            path.write_bytes(b"".join(map(_to_record, shard)))
    info = {"name": name, "version": version_dir.name, "fileFormat": file_format}
    shards = {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
    shards["shardLengths"] = [str(count) for count in counts]
    info["splits"] = [{"name": split, **shards} for split in splits]
    (version_dir / "dataset_info.json").write_text(json.dumps(info))
    return arrays


def _to_record(features):
    example = tf_example_pb2.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    content = example.SerializeToString()
    # Length, crc, content, crc; the crcs are not checked.
    return struct.pack("<QI", len(content), 0) + content + b"\0\0\0\0"
