"""Archives of the same few images in every form that they come in."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from support.imagenet import kit_files, write_tar
from support.images import photo

# Names whose order as text is not that of their numbers, and a folder within a class.
FILES = {
    f"{split}/{synset}/{name}": photo(colour, (width, height))
    for height, split in enumerate(("train", "val"), start=2)
    for synset, colour in (("n02", "red"), ("n01", "blue"), ("n10", "green"))
    for width, name in enumerate(("10.png", "2.png", "a/7.JPEG", "a.PNG"), start=1)
}
CLASSES = sorted({name.split("/")[1] for name in FILES})


def part(files: Mapping[str, bytes], split: str) -> dict[str, bytes]:
    """The files of a split, by their paths in its folder."""
    return {
        name.removeprefix(f"{split}/"): file
        for name, file in files.items()
        if name.startswith(f"{split}/")
    }


def one_tar(root: Path, files: Mapping[str, bytes]) -> str:
    return str(write_tar(root / "images.tar", {f"./images/{name}": files[name] for name in files}))


def stored_zip(root: Path, files: Mapping[str, bytes]) -> str:
    return _zip(root / "stored.zip", files, zipfile.ZIP_STORED)


def deflated_zip(root: Path, files: Mapping[str, bytes]) -> str:
    return _zip(root / "deflated.zip", files, zipfile.ZIP_DEFLATED)


def tar_of_each_split(root: Path, files: Mapping[str, bytes]) -> str:
    for split in ("train", "val"):
        write_tar(root / "each" / f"{split}.tar", part(files, split))
    return str(root / "each")


def shards(root: Path, files: Mapping[str, bytes]) -> str:
    """WebDataset shards as timm's: `x-train-000.tar` with KEY.png, KEY.cls and KEY.json."""
    classes = sorted({name.split("/")[1] for name in files})
    for split, word in (("train", "train"), ("val", "validation")):
        names = list(part(files, split))
        random.Random(0).shuffle(names)
        for number in range(3):
            members = {}
            for name in names[number::3]:
                synset, _, file = name.partition("/")
                key = f"{synset}_{file.replace('/', '_')}".rpartition(".")[0]
                members[f"{key}.json"] = b"{}"
                members[f"{key}.png"] = files[f"{split}/{name}"]
                members[f"{key}.cls"] = str(classes.index(synset)).encode()
            write_tar(root / "shards" / f"x-{word}-{number:03}.tar", members)
    return str(root / "shards")


FORMS: dict[str, Callable[[Path, Mapping[str, bytes]], str]] = {
    form.__name__: form for form in (one_tar, stored_zip, deflated_zip, tar_of_each_split, shards)
}


def imagenet(root: Path) -> dict[str, bytes]:
    """ImageNet's archives of three classes; returns their files as they lie unpacked and sorted."""
    labels = ["n02", "n10", "n01", "n02", "n10"]
    train = {
        f"train/{synset}/{synset}_{number}.JPEG": photo("red", (number, 2))
        for synset in CLASSES
        for number in (3, 20, 1)
    }
    val = {
        f"val/{synset}/ILSVRC2012_val_{number:08}.JPEG": photo("blue", (number, 3))
        for number, synset in enumerate(labels, start=1)
    }
    of_class = {}
    for synset in ("n10", "n01", "n02"):
        images = {name.split("/")[1]: file for name, file in part(train, "train").items()}
        images = {name: file for name, file in images.items() if name.startswith(synset)}
        of_class[f"{synset}.tar"] = write_tar(root / "inner.tar", images).read_bytes()
    (root / "inner.tar").unlink()
    write_tar(root / "ILSVRC2012_img_train.tar", of_class)
    heap = {name.rpartition("/")[2]: file for name, file in val.items()}
    write_tar(root / "ILSVRC2012_img_val.tar", heap)
    # The kit's IDs are not in the order of the synsets.
    kit = kit_files(["n10", "n01", "n02"], labels)
    write_tar(root / "ILSVRC2012_devkit_t12.tar.gz", kit, "w:gz")
    return train | val


def _zip(file: Path, files: Mapping[str, bytes], method: int) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(file)
