"""What the members of archives mean: which of them are images of a split, and of which class.

Three layouts are known: folders (`train/CLASS/x.jpg`, or `CLASS/x.jpg` in `train.tar`), WebDataset
shards (`KEY.jpg` and its class in `KEY.cls`), and ImageNet's own two archives.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from deit_zoo.data.archives import (
    Archive,
    Members,
    inflate,
    list_members,
    open_descriptor,
    read_at,
    whole_archive,
)
from deit_zoo.data.folder import SPLIT_OF, has_hidden_part, is_image
from deit_zoo.data.image_file import check_length
from deit_zoo.data.imagenet import SOLUTION, VAL_NAME, read_solution, validation_labels
from deit_zoo.errors import DataError

# Listing is waiting for a disk, for the most part: threads wait at the same time.
LISTERS = 16
LABEL_SUFFIX = ".cls"
LONGEST_LABEL, LONGEST_NUMBER = 1024, 18

Progress = Callable[[int], None]


class Rows(NamedTuple):
    """The images of a split in one archive, each with its class and its path under that folder.

    In a shard it has its whole path, and the class that its label says.
    """

    images: Members
    classes: list[str]
    others: int
    hidden: int = 0
    in_shard: bool = False
    archive: int = 0  # its number among several


def list_archives(
    paths: Sequence[Path], split: str, num_named: int, progress: Progress
) -> list[Rows]:
    """The images of a split in each archive; the names of the first `num_named` tell the split."""
    named = [number < num_named for number in range(len(paths))]
    of_split = partial(_rows, split=split, progress=progress)
    with ThreadPoolExecutor(LISTERS) as pool:
        listed = list(pool.map(of_split, paths, named))
        if num_named and any(rows.in_shard for rows in listed[num_named:]):
            shard = next(n for n, rows in enumerate(listed) if rows.in_shard and not named[n])
            raise DataError(
                f"{paths[shard]} holds WebDataset samples, and its name does not tell whether for "
                f"train or val, as that of {paths[0]} does; call it so, or give the others alone"
            )
        if split == "val" and not any(rows.classes for rows in listed):
            listed = list(pool.map(partial(_rows, split="test"), paths, named))
    return [rows._replace(archive=number) for number, rows in enumerate(listed)]


def list_imagenet_train(path: Path, progress: Progress) -> list[Rows]:
    """ImageNet's archive of one archive for each class."""
    outer = list_members(whole_archive(path))
    for name in outer.names:
        if "/" in name or not name.endswith(".tar"):
            raise DataError(
                f"{path} holds {name!r}; give ILSVRC2012_img_train.tar as it was downloaded: an "
                "archive for each class, such as 'n01440764.tar'"
            )

    def rows_of(number: int) -> Rows:
        start, name = outer.offsets[number], outer.names[number].removesuffix(".tar")
        members = list_members(Archive(path, start, start + outer.lengths[number]), progress)
        return _in_folders(members, ((name, inner) for inner in members.names))

    with ThreadPoolExecutor(LISTERS) as pool:
        return list(pool.map(rows_of, range(len(outer.names))))


def list_imagenet_val(path: Path, labels: Path, progress: Progress) -> list[Rows]:
    """ImageNet's validation images, in one heap; `labels` is what sorts them."""
    synsets = validation_labels(labels)
    members = list_members(whole_archive(path), progress)
    numbered = enumerate(synsets, start=1)
    synset_of = {f"{VAL_NAME.format(number)}.JPEG": synset for number, synset in numbered}
    if members.names and set(members.names) == synset_of.keys():
        return [_in_folders(members, ((synset_of[name], name) for name in members.names))]
    other = sorted(synset_of.keys() ^ set(members.names))
    raise DataError(
        f"{path} holds {len(members.names):,} files and {labels} the labels of {len(synsets):,} "
        f"({other[0]!r} is not in both); give ILSVRC2012_img_val.tar as it was downloaded"
    )


def _rows(path: Path, named: bool, *, split: str, progress: Progress = lambda files: None) -> Rows:
    archive = whole_archive(path)
    members = list_members(archive, progress)
    if path.suffix.lower() == ".tar" and any(name.endswith(LABEL_SUFFIX) for name in members.names):
        # One whose name tells no split is of none: its samples would be in train and in val.
        return (
            _in_shard(archive, members) if named else Rows(_selected(members, ()), [], 0, 0, True)
        )
    if split == "all":
        return _in_folders(members, _all_places(members.names))
    heap = _heap(path, members) if split == "val" else {}
    return _in_folders(members, (_place(name, split, named, heap) for name in members.names))


def _all_places(names: Sequence[str]) -> Iterator[tuple[str, str] | None]:
    """The class and the path of each file, whatever folders lie around the class folders."""
    images = [name for name in names if is_image(name) and not has_hidden_part(name)]
    outer = ""
    while images and all(name.count("/", len(outer)) > 1 for name in images):
        tops = {name[: name.index("/", len(outer)) + 1] for name in images}
        if len(tops) > 1:
            break
        outer = tops.pop()
    for name in names:
        folder, _, path = name.removeprefix(outer).partition("/")
        yield (folder, path) if path else None


def _heap(path: Path, members: Members) -> dict[str, str]:
    """The synsets of the images that Kaggle's archive has in one heap, by their names."""
    tables = [n for n, name in enumerate(members.names) if name.split("/")[-1] == SOLUTION]
    if not tables:
        return {}

    place, file = tables[0], path / members.names[tables[0]]
    length, size = members.lengths[place], members.sizes[place]
    check_length(file, max(length, size))

    def read() -> bytes:
        with open_descriptor(path) as descriptor:
            table = read_at(descriptor, length, members.offsets[place])
        return inflate(table, size) if members.deflated[place] else table

    synsets = read_solution(file, read)
    return {VAL_NAME.format(number): synset for number, synset in enumerate(synsets, start=1)}


def _place(name: str, split: str, named: bool, heap: Mapping[str, str]) -> tuple[str, str] | None:
    """The class of a file and its path under it; None where it is no file of the split."""
    parts = name.split("/")
    for number, part in enumerate(parts[:-2]):
        if part.lower() in SPLIT_OF:
            place = parts[number + 1], "/".join(parts[number + 2 :])
            return place if SPLIT_OF[part.lower()] == split else None
    synset = heap.get(parts[-1].partition(".")[0])
    if synset is not None and parts[-2:-1] == ["val"]:
        return synset, parts[-1]
    return (parts[0], "/".join(parts[1:])) if named and len(parts) > 1 else None


def _in_folders(members: Members, places: Iterator[tuple[str, str] | None]) -> Rows:
    """The images among members, by the class and the path of each; None is of another split."""
    numbers, classes, paths = array("Q"), [], []
    others = hidden = 0
    for number, place in enumerate(places):
        if place is None:
            continue
        if has_hidden_part(members.names[number]):
            hidden += 1
        elif is_image(place[1]):
            numbers.append(number)
            classes.append(place[0])
            paths.append(place[1])
        else:
            others += 1
    return Rows(_selected(members, numbers)._replace(names=paths), classes, others, hidden)


def _in_shard(archive: Archive, members: Members) -> Rows:
    """The images of a WebDataset shard: a key ends at the first dot of a file's name."""
    image_of: dict[str, int] = {}
    label_of: dict[str, int] = {}
    others = hidden = 0
    for number, name in enumerate(members.names):
        if has_hidden_part(name):
            hidden += 1
            continue
        folder, slash, file = name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        key, is_label = folder + slash + stem, dot + suffix == LABEL_SUFFIX
        if not is_label and not is_image(file):
            others += 1
        elif (label_of if is_label else image_of).setdefault(key, number) != number:
            raise DataError(
                f"{archive.path} holds a second {'label' if is_label else 'image'} of the key "
                f"{key!r}; give shards with one {LABEL_SUFFIX} and one image for a key"
            )
    if alone := sorted(image_of.keys() ^ label_of.keys()):
        what = "an image without a label" if alone[0] in image_of else "a label without an image"
        raise DataError(
            f"{archive.path} holds {what}, of the key {alone[0]!r}; give shards with one "
            f"{LABEL_SUFFIX} and one image for a key"
        )
    with open_descriptor(archive.path) as descriptor:
        classes = [_label(archive, members, label_of[key], descriptor) for key in image_of]
    images = _selected(members, image_of.values())
    return Rows(images, classes, others, hidden, in_shard=True)


def _selected(members: Members, numbers: Iterable[int]) -> Members:
    """Some of the members; what all of them took is free then."""
    chosen = list(numbers)
    return Members(
        names=[members.names[number] for number in chosen],
        offsets=array("Q", (members.offsets[number] for number in chosen)),
        lengths=array("Q", (members.lengths[number] for number in chosen)),
        sizes=array("Q", (members.sizes[number] for number in chosen)),
        deflated=bytearray(members.deflated[number] for number in chosen),
    )


def _label(archive: Archive, members: Members, number: int, descriptor: int) -> str:
    length = members.lengths[number]
    text = read_at(descriptor, min(length, LONGEST_LABEL), members.offsets[number])
    try:
        label = text.decode().strip()
    except UnicodeDecodeError:
        label = ""
    too_long = length > LONGEST_LABEL or (label.isdecimal() and len(label) > LONGEST_NUMBER)
    if label and not too_long:
        return str(int(label)) if label.isdecimal() else label
    raise DataError(
        f"{members.names[number]!r} in {archive.path} is no label; it must hold the number or the "
        "name of a class, as text"
    )
