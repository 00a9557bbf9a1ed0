"""Labels: the 1000 classes in the benchmark's order, and the ten digits."""

from __future__ import annotations

import re

import pytest
from timm.data import ImageNetInfo

from deit_zoo.errors import DataError
from deit_zoo.labels import Label, labels


def test_imagenet_has_a_thousand_classes() -> None:
    assert len(labels("imagenet1k")) == 1000


def test_imagenet_folders_are_synset_ids() -> None:
    folders = [label.folder for label in labels("imagenet1k")]
    assert [folder for folder in folders if not re.fullmatch(r"n\d{8}", folder)] == []


def test_imagenet_classes_stand_in_the_order_of_their_folders() -> None:
    # An image folder is numbered alphabetically, and so were the checkpoints' classes.
    folders = [label.folder for label in labels("imagenet1k")]
    assert folders == sorted(set(folders))


def test_imagenet_is_timms() -> None:
    known = ImageNetInfo()
    theirs = [
        (known.index_to_label_name(number), known.index_to_description(number))
        for number in range(known.num_classes())
    ]
    assert [(label.folder, label.name) for label in labels("imagenet1k")] == theirs


@pytest.mark.parametrize(
    ("number", "folder", "name"),
    [
        (0, "n01440764", "tench, Tinca tinca"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby, tabby cat"),
        (999, "n15075141", "toilet tissue, toilet paper, bathroom tissue"),
    ],
)
def test_well_known_classes_have_their_numbers(number: int, folder: str, name: str) -> None:
    assert labels("imagenet1k")[number] == Label(folder, name)


def test_only_the_crane_names_two_classes() -> None:
    # The bird and the machine; their folders tell them apart.
    names = [label.name for label in labels("imagenet1k")]
    twice = {name: number for number, name in enumerate(names) if names.count(name) > 1}
    assert (twice, names.index("crane")) == ({"crane": 517}, 134)


def test_digits_are_their_own_names() -> None:
    assert [(label.folder, label.name) for label in labels("digits")] == [
        ("0", "0"),
        ("1", "1"),
        ("2", "2"),
        ("3", "3"),
        ("4", "4"),
        ("5", "5"),
        ("6", "6"),
        ("7", "7"),
        ("8", "8"),
        ("9", "9"),
    ]


def test_other_labels_are_unknown() -> None:
    with pytest.raises(DataError) as caught:
        labels("cifar10")
    assert str(caught.value) == "no labels are named 'cifar10'; there are imagenet1k and digits"
