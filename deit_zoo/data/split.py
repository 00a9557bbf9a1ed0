"""One's own images as a list: parted by the share that is kept apart, compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from deit_zoo.data.folder import SPLIT_FOLDERS, FolderSet, class_folders, split_folder
from deit_zoo.data.image_list import UNREADABLE, ImageList, ListedImage
from deit_zoo.data.image_set import (
    ImageSet,
    absolute,
    has_split,
    is_table,
    kind_of,
    open_members,
    open_unchecked,
    read_list,
)
from deit_zoo.errors import DataError, first_of, is_real

_STAT_THREADS = 16  # they wait for a disk


def list_images(data: str | Path, val_share: float | None = None) -> ImageList:
    """The images of a data set; with a share parted, and their names decide which is where."""
    if val_share is not None and not (is_real(val_share) and 0.0 < val_share < 1.0):
        raise DataError(f"--val-share is {val_share!r}; it must be between 0 and 1, such as 0.2")
    kind = kind_of(data)
    if kind == "list":
        return _parted_list(data, val_share)
    if kind in ("archives", "table") and val_share is not None:
        return _parted_members(str(data), val_share)
    root = Path(absolute(data))
    if val_share is not None:
        typed = Path(data)
        if split_folder(typed, "val") is not None:
            raise DataError(_is_parted(data))
        typed = split_folder(typed, "train") or typed  # or all of it
        class_folders(typed)  # named as it was typed where there is none
        folder = FolderSet(root / typed.relative_to(data))
        groups: dict[str, list[ListedImage]] = {str(typed / name): [] for name in folder.classes}
        for image in _listed(root, folder, "train"):
            groups[str(typed / image.class_name)].append(image)
        parted = _parted(groups, val_share)
        others = [name for name in class_folders(Path(data)) if Path(data) / name != typed]
        beside = typed != Path(data) and others
        left_out = f"folders beside {typed} left out: {', '.join(others)}" if beside else ""
        ignored = "; ".join(filter(None, (left_out, folder.note)))
        return ImageList(root=root, images=tuple(parted), ignored=ignored)
    train, val = open_unchecked(root, "train"), open_unchecked(root, "val")
    return ImageList(
        root=root,
        images=(*_listed(root, train, "train"), *_listed(root, val, "val")),
        ignored="; ".join(filter(None, (train.note, val.note))),
    )


def _parted_list(data: str | Path, val_share: float | None) -> ImageList:
    """A list as it says, or parted: each class, or where images have several labels all of them."""
    images = read_list(data)
    is_parted = any(images.of(split) for split in SPLIT_FOLDERS)
    if val_share is None:
        if not is_parted:
            raise DataError(
                f"{data} does not say which images are for validation; type --val-share 0.2 to "
                "keep a fifth apart, or give it a column split of train and val"
            )
        for split in SPLIT_FOLDERS:
            if not images.of(split):
                left_out = f" ({images.ignored})" if images.ignored else ""
                raise DataError(
                    f"the column split of {data} says no {split}; it must say train and val"
                    f"{left_out}"
                )
        return images
    if is_parted:
        raise DataError(_is_parted(data))
    groups: dict[str, list[ListedImage]] = {}
    for image in images.images:
        name = str(data) if images.several else f"{data}, class {image.class_name}"
        groups.setdefault(name, []).append(image)
    parted = _parted(groups, val_share)
    return replace(
        images, images=_with_every_label(images, parted) if images.several else (*parted,)
    )


def _with_every_label(of: ImageList, parted: Sequence[ListedImage]) -> tuple[ListedImage, ...]:
    """The same, where each label that two images have is in both splits, if another lets it.

    What one image alone has is learned.
    """
    with_label: dict[str, list[ListedImage]] = {}
    for image in sorted(parted, key=_draw):
        for label in of.labels_of(image):
            with_label.setdefault(label, []).append(image)
    alone = {images[0].path for images in with_label.values() if len(images) == 1}
    val = {image.path for image in parted if image.split == "val"} - alone
    for images in with_label.values():
        apart = [image for image in images if image.path in val]
        others = [image for image in images if image.path not in alone]
        if others and not apart:
            val.add(others[0].path)
        elif len(apart) == len(images):
            val.remove(images[-1].path)
    if not val:
        raise DataError(
            f"each image of {of.file} has a label that no other has, so none can be kept apart; "
            "give two images or more with a label, or a column split"
        )
    return tuple(image._replace(split="val" if image.path in val else "train") for image in parted)


def _parted_members(data: str, val_share: float) -> ImageList:
    """The images of archives or of a table, parted."""
    if has_split(data, "val") and (not is_table(data) or has_split(data, "train")):
        raise DataError(_is_parted(data))
    members = open_members(absolute(data))
    groups: dict[str, list[ListedImage]] = {name: [] for name in members.classes}
    for index in range(len(members)):
        name, path = members.classes[members.label_of(index)], members.path_in_root(index)
        groups[name].append(ListedImage("all", name, members.bytes_of(index), path))
    named = {f"{data}, class {name}": images for name, images in groups.items()}
    parted = _parted(named, val_share)
    return ImageList(
        root=members.root, data=absolute(data), images=tuple(parted), ignored=members.note
    )


def _is_parted(data: str | Path) -> str:
    return (
        f"--val-share parts images that are not parted, and {data} says which are for validation; "
        "leave it out"
    )


def difference(kept: ImageList, now: ImageList, most_lost: int) -> str | None:
    """In what a folder is no longer what a run began with, by an example; None where it is.

    Images that could not be read then may be gone, and `most_lost` of those to train on.
    """
    before = {image.path: image for image in kept.images}
    after = {image.path: image for image in now.images}
    for path, image in after.items():
        if path not in before:
            return f"{now.root / path} is new"
        former = before[path]
        if former.class_name != image.class_name:
            was, now_is = former.class_name or "nothing", image.class_name or "nothing"
            return f"{now.root / path} was {was} and is {now_is}"
        if former.num_bytes != image.num_bytes and former.split != UNREADABLE:
            return f"{now.root / path} has {image.num_bytes:,} bytes, not {former.num_bytes:,}"
    lost = [image for path, image in before.items() if path not in after]
    lost = [image for image in lost if image.split != UNREADABLE]
    if len(lost) > most_lost or any(image.split == "val" for image in lost):
        return f"{now.root / lost[0].path} is gone"
    return None


def check_split(data: str | Path) -> None:
    """Raises DataError for images of which nothing is kept apart."""
    root, kind = Path(data), kind_of(data)
    if kind in ("archives", "table") and not has_split(str(data), "val"):
        raise DataError(
            f"{data} does not say which images are for validation; type --val-share 0.2 to keep a "
            "fifth of each class apart"
        )
    if kind != "folder" or split_folder(root, "val") is not None:
        return
    train = split_folder(root, "train")
    names = ", ".join(class_folders(train or root)[:3])
    lacks = "no val/ lies beside them" if train else "no train/ and val/"
    raise DataError(
        f"{train or root} holds class folders ({names}) and {lacks}; type --val-share 0.2 to keep "
        "a fifth of each class apart for validation"
    )


def _parted(groups: Mapping[str, list[ListedImage]], val_share: float) -> list[ListedImage]:
    """The images of groups, which are called so, in two splits: a share of each group apart."""
    val: set[str] = set()
    few = [(name, len(images)) for name, images in groups.items() if len(images) < 2]
    if not all(n for _, n in few) or len(few) == len(groups):  # one image of a class is learned
        named = first_of([f"{name} holds {'1 image' if n else '0 images'}" for name, n in few])
        raise DataError(f"{named}; to keep some apart there must be 2 or more in each class")
    for images in groups.values():
        files = sorted(images, key=_draw)
        num_val = min(max(round(val_share * len(files)), 1), len(files) - 1)
        val |= {image.path for image in files[:num_val]}
    return [
        image._replace(split="val" if image.path in val else "train")
        for images in groups.values()
        for image in images
    ]


def _draw(image: ListedImage) -> bytes:
    return hashlib.sha256(image.path_in_split.encode("utf-8", "surrogateescape")).digest()


def _listed(root: Path, images: ImageSet, split: str) -> list[ListedImage]:
    indices = range(len(images))
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        sizes = list(pool.map(images.bytes_of, indices))
    return [
        ListedImage(
            split,
            images.classes[images.label_of(index)],
            sizes[index],
            Path(images.name_of(index)).relative_to(root).as_posix(),
        )
        for index in indices
    ]
