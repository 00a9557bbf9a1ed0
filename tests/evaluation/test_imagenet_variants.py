"""ImageNet's other validation sets, as folders of the same shape with few and small images."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import deit_zoo
from deit_zoo.errors import CheckpointError, DataError
from deit_zoo.evaluation.accuracy import EvalDataset, cross_entropy
from deit_zoo.evaluation.imagenet_variants import open_eval_set
from deit_zoo.labels import labels
from deit_zoo.models.model import ZooModel
from deit_zoo.weights.load import save_model
from support.accuracy import accuracy

SYNSETS = [label.folder for label in labels("imagenet1k")]
SUBSET = SYNSETS[::5]  # 200 of them
NUMBERS = [str(number) for number in range(1000)]


def png() -> bytes:
    stream = BytesIO()
    Image.new("RGB", (4, 4)).save(stream, format="PNG")
    return stream.getvalue()


def write(root: Path, folders: Sequence[str], files: dict[str, int] | None = None) -> Path:
    """One image in each folder, or as many as `files` says."""
    content = png()
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range((files or {}).get(folder, 1)):
            (root / folder / f"{number}.png").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """V2: folders 0 to 999, two images in 10 and three in 2."""
    return write(tmp_path_factory.mktemp("v2"), NUMBERS, {"10": 2, "2": 3})


@pytest.fixture(scope="module")
def synsets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A val/ of all classes, the images numbered from the last class to the first."""
    root = tmp_path_factory.mktemp("imagenet")
    content = png()
    for number, folder in enumerate(SYNSETS):
        (root / "val" / folder).mkdir(parents=True)
        (root / "val" / folder / f"ILSVRC2012_val_{1000 - number:08}.JPEG").write_bytes(content)
    return root


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    """200 synset folders, four images in that of class 10."""
    return write(tmp_path / "subset", SUBSET, {SYNSETS[10]: 4})


@pytest.fixture(scope="module")
def blind() -> Callable[[dict[int, float]], ZooModel]:
    """Makes a model that sees nothing: its logits are 0 but for the given classes."""
    model = deit_zoo.create("deit_tiny", img_size=32).eval()

    def made(logits: dict[int, float]) -> ZooModel:
        bias = torch.zeros(1000)
        for number, value in logits.items():
            bias[number] = value
        model.load_state_dict(
            model.state_dict() | {"head.weight": torch.zeros(1000, 192), "head.bias": bias}
        )
        return model

    return made


@pytest.fixture
def real(tmp_path: Path) -> Callable[[dict[int, list[int]]], Path]:
    """Writes a real.json whose lists are empty but for the given images, counted from 1."""

    def written(lists: dict[int, list[int]]) -> Path:
        file = tmp_path / "real.json"
        file.write_text(json.dumps([lists.get(number + 1, []) for number in range(50_000)]))
        return file

    return written


def as_it_is(image: Image.Image) -> Image.Image:
    return image


def refuses(told: str, data: Path, folders: Sequence[str], *labels: object) -> None:
    with pytest.raises(DataError) as caught:
        open_eval_set(data, folders, as_it_is, *labels)  # type: ignore[arg-type]
    assert str(caught.value) == told


def test_v2_goes_by_the_number_of_a_folder_not_by_its_place(numbered: Path) -> None:
    found = open_eval_set(numbered, SYNSETS, as_it_is, "v2").images
    told = {found.name_of(index): found.label_of(index) for index in range(len(found))}
    # Sorted as text, folder 10 is the third.
    assert told[str(numbered / "10" / "0.png")] == 10
    assert told[str(numbered / "2" / "0.png")] == 2
    assert len(told) == 1003


def test_a_model_that_says_2_is_right_on_the_images_of_folder_2(
    numbered: Path, blind: Callable[[dict[int, float]], ZooModel]
) -> None:
    found = deit_zoo.evaluate(blind({2: 9.0}), numbered, labels="v2")
    assert (found.num_images, found.top1) == (1003, pytest.approx(100 * 3 / 1003))


def test_v2_must_have_every_folder(numbered: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "v2", [*NUMBERS[:-1], "cat"])
    refuses(
        f"the class folders of {root} are not the model's 1000 classes: 1 that are no class of "
        "the model (such as 'cat') and 1 missing (such as '999'); give images of each class, "
        "from '0' to '999'",
        root,
        SYNSETS,
        "v2",
    )


def test_sketch_has_the_folders_of_imagenet(
    synsets: Path, blind: Callable[[dict[int, float]], ZooModel]
) -> None:
    found = deit_zoo.evaluate(blind({}), synsets, labels="sketch")
    assert found.num_images == 1000
    assert found.loss == pytest.approx(math.log(1000), abs=1e-5)


@pytest.mark.parametrize("kind", ["a", "r"])
def test_of_a_and_r_only_their_own_classes_compete(
    kind: str, subset: Path, blind: Callable[[dict[int, float]], ZooModel]
) -> None:
    # Class 11 is best and none of the 200; of these the best is 10.
    found = deit_zoo.evaluate(blind({11: 9.0, 10: 5.0}), subset, labels=kind)
    assert (found.num_images, found.top1) == (203, pytest.approx(100 * 4 / 203))
    # One class with logit 5 and 199 with 0, four images of the first.
    partition = math.log(math.exp(5) + 199)
    assert found.loss == pytest.approx(partition - 5 * 4 / 203, abs=1e-5)


def test_a_folder_that_is_no_synset_is_named(subset: Path) -> None:
    (subset / SYNSETS[5]).rename(subset / "cat")
    refuses(
        f"1 of the class folders of {subset} are no class of ImageNet-1k (such as 'cat'); "
        "give the 200 synsets of ImageNet-A, such as 'n01440764'",
        subset,
        SYNSETS,
        "a",
    )


def test_a_subset_of_another_size_is_refused(subset: Path) -> None:
    write(subset, [SYNSETS[1]])
    refuses(
        f"there are 201 class folders of {subset}, and ImageNet-R has 200 classes; give all of "
        "them and no other",
        subset,
        SYNSETS,
        "r",
    )


def test_a_file_may_list_the_synsets(subset: Path, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(f"{synset} some words" for synset in reversed(SUBSET)) + "\n\n")
    found = open_eval_set(subset, SYNSETS, as_it_is, "a", file)
    assert found.class_subset == tuple(range(0, 1000, 5))


def test_the_folders_must_be_those_of_the_file(subset: Path, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join([SYNSETS[1], *SUBSET[1:]]))
    with pytest.raises(DataError, match=r"1 that are no class .*'n01440764'.* and 1 missing"):
        open_eval_set(subset, SYNSETS, as_it_is, "a", file)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([*SUBSET, SUBSET[0]], "{file} names 'n01440764' more than once; give each synset on one"),
        (SUBSET[1:], "there are 199 lines of {file}, and ImageNet-A has 200 classes; give all"),
        (
            ["tench", *SUBSET[1:]],
            "1 of the lines of {file} are no class of ImageNet-1k (such as 'tench')",
        ),
    ],
)
def test_a_list_of_synsets_is_checked(
    lines: list[str], told: str, subset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        open_eval_set(subset, SYNSETS, as_it_is, "a", file)
    assert str(caught.value).startswith(told.format(file=file))


def test_real_counts_any_of_its_classes_and_leaves_out_images_without_one(
    synsets: Path,
    real: Callable[[dict[int, list[int]]], Path],
    blind: Callable[[dict[int, float]], ZooModel],
) -> None:
    # The model says 7, then 8. Image 1000 is of class 0, image 1 of class 999.
    file = real({1000: [7, 3], 1: [999, 8], 2: [12], 3: [7]})
    model = blind({7: 9.0, 8: 8.0})
    found = deit_zoo.evaluate(model, synsets, labels="real", label_file=file)
    assert (found.num_images, found.num_unjudged) == (1000, 996)
    assert (found.top1, found.top5) == (50.0, 75.0)
    # Class 0 is not in the list of image 1000: the folder's own label says nothing.
    images = open_eval_set(synsets, SYNSETS, as_it_is, "real", file)
    assert images.multi_labels is not None
    assert (images.multi_labels[0], images.multi_labels[999]) == ((7, 3), (999, 8))


@pytest.mark.slow
def test_real_is_the_same_in_two_processes(
    synsets: Path,
    real: Callable[[dict[int, list[int]]], Path],
    blind: Callable[[dict[int, float]], ZooModel],
) -> None:
    file, model = real({1000: [7, 3], 1: [999, 8], 2: [12], 3: [7]}), blind({7: 9.0, 8: 8.0})
    alone = deit_zoo.evaluate(model, synsets, labels="real", label_file=file)
    found = deit_zoo.evaluate(model, synsets, labels="real", label_file=file, processes=2)
    assert found == alone


WANTED = "give real.json: 50,000 lists of class numbers from 0 to 999"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[1], [2]]", "{file} holds 2 entries; " + WANTED),
        ("{}", "{file} holds no list; " + WANTED),
        (json.dumps([[1]] * 49_999 + [1]), "entry 50,000 of {file} is 1; " + WANTED),
        (json.dumps([[1000]] * 50_000), "entry 1 of {file} is [1000]; " + WANTED),
        (json.dumps([[-1]] * 50_000), "entry 1 of {file} is [-1]; " + WANTED),
        (json.dumps([[True]] * 50_000), "entry 1 of {file} is [True]; " + WANTED),
        ("[", "{file} is not JSON (Expecting value: line 1 column 2 (char 1)); " + WANTED),
    ],
)
def test_a_file_that_is_not_reals_is_told(
    text: str, told: str, synsets: Path, tmp_path: Path
) -> None:
    file = tmp_path / "real.json"
    file.write_text(text)
    refuses(told.format(file=file), synsets, SYNSETS, "real", file)


@pytest.mark.parametrize("name", ["cat.JPEG", "ILSVRC2012_val_00050001.JPEG", "1.png"])
def test_an_image_of_another_name_has_no_place_in_real(
    name: str, synsets: Path, real: Callable[[dict[int, list[int]]], Path]
) -> None:
    file, odd = real({1: [1]}), synsets / "val" / SYNSETS[3] / name
    odd.write_bytes(png())
    try:
        refuses(
            f"{odd} has not the name of a validation image, by which ReaL finds its labels; give "
            "the images as they were published, ILSVRC2012_val_00000001.JPEG to "
            "ILSVRC2012_val_00050000.JPEG",
            synsets,
            SYNSETS,
            "real",
            file,
        )
    finally:
        odd.unlink()


def test_an_image_that_is_there_twice_is_told(
    synsets: Path, real: Callable[[dict[int, list[int]]], Path]
) -> None:
    file, twin = real({1: [1]}), synsets / "val" / SYNSETS[3] / "ILSVRC2012_val_00000001.JPEG"
    twin.write_bytes(png())
    try:
        with pytest.raises(DataError, match="are the same image of the validation set; remove one"):
            open_eval_set(synsets, SYNSETS, as_it_is, "real", file)
    finally:
        twin.unlink()


def test_a_file_without_a_label_for_these_images_is_told(
    synsets: Path, real: Callable[[dict[int, list[int]]], Path]
) -> None:
    file = real({1001: [1]})
    refuses(
        f"{file} has no label for any of the 1,000 images of {synsets}",
        synsets,
        SYNSETS,
        "real",
        file,
    )


def test_real_needs_its_file(synsets: Path, tmp_path: Path) -> None:
    refuses(
        "the labels 'real' are in a file of their own; give its real.json as the label file",
        synsets,
        SYNSETS,
        "real",
    )
    absent = tmp_path / "real.json"
    refuses(
        f"the label file {absent} cannot be read (no such file or directory)",
        synsets,
        SYNSETS,
        "real",
        absent,
    )


def test_what_is_no_set_or_needs_no_file_is_told(tmp_path: Path) -> None:
    refuses("labels is 'c'; give one of real, v2, a, r, sketch", tmp_path, SYNSETS, "c")
    refuses(
        "a label file (x) is for the labels real, a, r; leave it out, or give one of these",
        tmp_path,
        SYNSETS,
        "v2",
        Path("x"),
    )


def test_the_sets_are_for_models_of_imagenet(tmp_path: Path) -> None:
    refuses(
        "the labels 'v2' are of ImageNet-1k's 1,000 classes, and this model has 10 of its own; "
        "give a model of ImageNet-1k",
        tmp_path,
        [str(digit) for digit in range(10)],
        "v2",
    )


def test_a_data_set_of_the_hub_has_no_folders_to_go_by() -> None:
    refuses(
        "the labels 'v2' go by folders; give a folder, not hfds:imagenet",
        "hfds:imagenet",
        SYNSETS,
        "v2",
    )


class Grey:
    """As many grey images, labelled 0, 1, 0, ..."""

    note = ""
    label_sets = None
    classes = ("0", "1")

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def label_of(self, index: int) -> int:
        return index % 2

    def name_of(self, index: int) -> str:
        return str(index)

    def bytes_of(self, index: int) -> int:
        return 0

    def open(self, index: int) -> Image.Image:
        return Image.new("RGB", (16, 16))


def tenfold(bias: Sequence[float]) -> ZooModel:
    """A model of ten classes that sees nothing."""
    model = deit_zoo.create("deit_pico_digits").eval()
    model.head.weight.data.zero_()
    model.head.bias.data.copy_(torch.tensor(bias))
    return model


def test_several_right_classes_share_their_probability() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(2.0)]] * 3, dtype=torch.float64)
    right = torch.tensor([[1, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    # Probabilities 1/4, 1/4 and 1/2.
    expected = [math.log(4), math.log(4 / 3), 0.0]
    assert cross_entropy(logits.numpy(), right.numpy()).tolist() == pytest.approx(expected)


def test_an_answer_may_be_several_classes_or_none() -> None:
    model = tenfold([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    # Class 0 is best, 4 the fifth: right at 1, right at 5, wrong, not counted.
    answers = [(7, 0), (4, 9), (5,), ()]
    images = EvalDataset(Grey(4), deit_zoo.transform(model), multi_labels=answers)
    found = accuracy(model, images, batch_size=3, workers=0)
    assert (found.top1, found.top5) == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    assert (found.num_images, found.num_unjudged) == (4, 1)


def test_classes_that_do_not_compete_win_nothing() -> None:
    model = tenfold([float(number) for number in range(10)])
    # Without 8 and 9 the best is 7, the second of the two columns; one image of each.
    images = EvalDataset(Grey(2), deit_zoo.transform(model), class_subset=(3, 7))
    found = accuracy(model, images, batch_size=2, workers=0)
    assert (found.top1, found.top5) == (50.0, 100.0)
    expected = (math.log1p(math.exp(4)) + math.log1p(math.exp(-4))) / 2
    assert found.loss == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A checkpoint of three classes, not in the order of the alphabet, that answers 'zebra'."""
    model = deit_zoo.create("deit_pico_digits", num_classes=3)
    model.head.weight.data.zero_()
    model.head.bias.data.copy_(torch.tensor([2.0, 1.0, 0.0]))
    (tmp_path / "tuned").mkdir()
    save_model(model, tmp_path / "tuned" / "model.safetensors", labels=["zebra", "ant", "eel"])
    return tmp_path / "tuned"


def test_a_checkpoint_names_its_own_classes(tuned: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_pico_digits", checkpoint=tuned)
    assert model.labels == ("zebra", "ant", "eel")
    [best] = deit_zoo.classify(Image.new("RGB", (16, 16)), model, topk=1)[0]
    assert (best.label, best.folder, best.index) == ("zebra", "zebra", 0)
    data = write(tmp_path / "data", ["ant", "eel", "zebra"], {"zebra": 3})
    assert deit_zoo.evaluate(model, data).top1 == 60.0


def test_a_fresh_head_has_no_classes_of_its_own(tuned: Path) -> None:
    model = deit_zoo.create("deit_pico_digits", checkpoint=tuned, num_classes=2)
    [best] = deit_zoo.classify(Image.new("RGB", (16, 16)), model, topk=1)[0]
    assert best.label in {"0", "1"}


@pytest.mark.parametrize("names", [["one", "two"], "abc", [1, 2, 3]])
def test_names_that_are_none_are_refused(names: object, tmp_path: Path) -> None:
    state = deit_zoo.create("deit_pico_digits", num_classes=3).state_dict()
    save_file(state, tmp_path / "model.safetensors", {"deit_zoo": json.dumps({"labels": names})})
    with pytest.raises(CheckpointError, match=r"labels that are no 3 names|at `\$\.labels"):
        deit_zoo.create("deit_pico_digits", checkpoint=tmp_path)


def test_a_part_of_the_classes_is_measured_on_those_alone(
    blind: Callable[[dict[int, float]], ZooModel], tmp_path: Path
) -> None:
    # Imagenette's ten classes, one image in each. The best of all classes is none of them.
    imagenette = write(tmp_path / "imagenette2" / "val", SYNSETS[100:200:10]).parent
    model = blind({5: 9.0, 130: 3.0})
    told: list[str] = []
    reached = deit_zoo.evaluate(model, imagenette, say=told.append)
    assert (reached.num_images, reached.top1) == (10, 10.0)
    assert told == [
        f"{imagenette} has 10 of the model's 1,000 classes, and no other competes",
    ]
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", imagenette)
    assert deit_zoo.evaluate(model, archive, say=told.append) == reached


def test_classes_that_the_model_does_not_know_are_refused_with_some_that_it_knows(
    tmp_path: Path,
) -> None:
    root = write(tmp_path / "val", [*SYNSETS[:3], "n99999999"])
    with pytest.raises(DataError, match="1 that are no class of the model"):
        open_eval_set(root, SYNSETS, as_it_is)


def test_one_class_alone_says_nothing_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="999 missing"):
        open_eval_set(write(tmp_path / "val", SYNSETS[:1]), SYNSETS, as_it_is)
