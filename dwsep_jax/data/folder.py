"""Pictures in folders, train/<class>/*: listed, and decoded once."""

import hashlib
import math
import os
import pathlib
import re
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from warnings import catch_warnings

import numpy as np
from rich.progress import track

from dwsep_jax.console import say
from dwsep_jax.data import cache, pictures
from dwsep_jax.data.read import Decoded, Split, check_size, without_controls
from dwsep_jax.errors import DataError

# Of the splits; a folder may have either name.
SHORT_NAMES = {"train": "train", "validation": "val", "test": "test"}
# So many files are named in a message.
_MAX_NAMED = 20
# Pictures that a thread decodes at a time.
_BLOCK = 256
# With at most so many pixels, Python takes longer than Pillow, which alone lets other
# threads work: for 32x32, two took 1.0 to 1.7 times as long as one.
_SMALL = 64 * 64


def load(directory: pathlib.Path, image_size: int | None) -> Decoded:
    """Return class names and splits of a folder, from the cache if nothing changed.

    Classes are sorted by name, or by number if all names are numbers; examples by id,
    which is the file's name without its suffix, or with class and suffix where a split
    has two of that name.

    Raises:
      DataError: naming all files that cannot be read, or whatever else is wrong.
    """
    splits = {}
    for split, short in SHORT_NAMES.items():
        there = {p for n in (split, short) if (p := directory / n).is_dir()}
        if len(there) > 1:
            raise DataError(f"it has both {split}/ and {short}/; keep one")
        for place in there:
            splits[split] = _list_files(place)
    if "train" not in splits:
        raise DataError("it has no folder train/; put pictures into train/<class>/")
    names = {label for _, _, label in splits["train"]}
    are_numbers = all(map(str.isdecimal, names))
    names = sorted(names, key=lambda name: (int(name) if are_numbers else 0, name))
    facts = []
    for split, files in splits.items():
        if others := sorted({label for _, _, label in files}.difference(names)):
            raise DataError(f"{split}/ has the class {others[0]}, and train/ has not")
        # A file that is missing will be named when it is decoded.
        facts += [(split, i, label, *cache.state_of(path)) for i, path, label in files]
    source = hashlib.sha256("".join(map(repr, facts)).encode()).hexdigest()

    def decode():
        stored = {}
        for split, files in splits.items():
            ids, paths, labels = zip(*files, strict=True)
            numbers = np.array(list(map(names.index, labels)), np.int32)
            stored[split] = Split(paths, numbers, np.array(ids, np.str_))
        return tuple(names), decode_splits(stored, image_size)

    return cache.cached(directory, [image_size], [source], decode)


def _list_files(directory) -> list[tuple[str, str, str]]:
    """Return id, path and class of the pictures of a split, sorted; none is hidden."""
    found, others, empty = [], [], []
    for name in _list_visible(os.listdir(directory)):
        place = os.path.join(directory, name)
        paths = _list_tree(place)
        if broken := [path for path in paths if re.search("[\ud800-\udfff]", path)]:
            raise DataError(f"{broken[0]!r} is not text in UTF-8; rename it")
        some = list(filter(_is_picture, paths))
        others += [path for path in paths if not _is_picture(path)]
        if some == [place]:
            raise DataError(f"{place} is in no class; move it to {directory}/<class>/")
        if os.path.isdir(place) and not some:
            empty.append(name)
        label = unicodedata.normalize("NFC", without_controls(name))
        found += [(os.path.relpath(path, directory), path, label) for path in some]
    if not found or (empty and directory.name == "train"):
        kinds = ", ".join(pictures.SUFFIXES)
        raise DataError(
            f"{directory} has no picture ({kinds}) in {_join(empty) or 'any class'}; "
            "add some, or delete the folder"
        )
    if others:
        say(f"{directory}: {len(others):,} other files are left out: {_join(others)}")
    stems = [os.path.splitext(os.path.basename(path))[0] for _, path, _ in found]
    if len(set(stems)) == len(stems):
        found = [(stem, *rest) for stem, (_, *rest) in zip(stems, found, strict=True)]
    return sorted(found)


def list_pictures(directory: str) -> list[str]:
    """Return the paths of all pictures below a directory, sorted."""
    return sorted(filter(_is_picture, _list_tree(directory)))


def _list_tree(place):
    """Return the paths of the files below a directory, or of the only file."""
    if not os.path.isdir(place):
        return [place]
    tree = os.walk(place)
    return [os.path.join(root, n) for root, _, ns in tree for n in _list_visible(ns)]


def _is_picture(path):
    return path.lower().endswith(pictures.SUFFIXES)


def _list_visible(names):
    return sorted(name for name in names if not name.startswith("."))


def _join(items):
    more = f", ... ({len(items):,} in all)" if len(items) > _MAX_NAMED else ""
    return without_controls(", ".join(items[:_MAX_NAMED]) + more)


def decode_splits(splits: dict[str, Split], image_size: int | None) -> dict[str, Split]:
    """Decode the pictures of all splits, gray where all of them are.

    Args:
      splits: with paths of files in place of images, or with open files, whose text
        says where they are.
      image_size: height and width that they get; None leaves them as they are.

    Raises:
      DataError: naming those that cannot be read, or that differ in size.
    """
    paths = [path for split in splits.values() for path in split.images]
    images, decoded = _decode(paths, image_size and (image_size, image_size)), {}
    for name, split in splits.items():
        decoded[name] = split._replace(images=images[: len(split.ids)])
        images = images[len(split.ids) :]
    return decoded


def _decode(paths, size):
    """Return pictures, uint8 (N, H, W, C), decoded in threads."""
    readable = (p for p in map(pictures.read, paths) if not isinstance(p, str))
    first = next((picture.size for picture in readable), (1, 1))
    width, height = size or first
    check_size(len(paths), (height, width, 3), "; take a smaller --config.image_size")
    images = np.empty((len(paths), height, width, 3), np.uint8)
    is_gray = np.empty(len(paths), bool)
    unreadable, others = {}, {}

    def decode_block(start):
        for i in range(start, min(start + _BLOCK, len(paths))):
            picture = pictures.read(paths[i], size)
            if isinstance(picture, str):
                unreadable[i] = picture
            elif picture.size != (width, height):
                others[i] = picture.size
            else:
                images[i] = np.atleast_3d(picture)
                is_gray[i] = picture.mode == "L"

    num_threads = os.cpu_count() if math.prod(first) > _SMALL else 1
    starts = range(0, len(paths), _BLOCK)
    show = {"disable": not sys.stdout.isatty(), "transient": True}
    with catch_warnings(action="ignore"), ThreadPoolExecutor(num_threads) as pool:
        list(track(pool.map(decode_block, starts), "decoding", len(starts), **show))
    if unreadable:
        named = [f"{paths[i]} ({unreadable[i]})" for i in sorted(unreadable)]
        raise DataError(
            f"{len(named):,} of {len(paths):,} pictures cannot be read: "
            f"{_join(named)}; repair or delete them"
        )
    if others:
        (i, (w, h)), n = min(others.items()), len(others)
        raise DataError(
            f"pictures differ in size: {paths[0]} is {width}x{height}, {paths[i]} "
            f"{w}x{h} ({n:,} of {len(paths):,} differ from the first); set "
            f"--config.image_size={min(width, height)}"
        )
    return images[..., :1].copy() if is_gray.all() else images
