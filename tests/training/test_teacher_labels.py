"""A teacher's labels that are kept: the same weights with and without, never of other images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deit_zoo
from deit_zoo.data.image_set import open_set
from deit_zoo.errors import CheckpointError, RecipeError
from deit_zoo.files import LABEL_FACTS_FILE, LABELS_FILE
from deit_zoo.hub.publish_labels import build_labels
from deit_zoo.training import build, teaching
from deit_zoo.training.launch import make_plan, reproduce
from deit_zoo.training.places import epoch_order
from deit_zoo.training.teacher_labels import TeacherLabels
from deit_zoo.training.teaching import LabelJob, label_images, label_plan
from deit_zoo.weights.load import save_model
from support.command import deit_zoo as deit_zoo_command
from support.hub_server import HubServer
from support.runs import receipt_of, sha256, sha256_of

STUDENT = "deit_pico_distilled_digits"
# Two epochs of four steps of two replicas.
CHANGES = ("epochs=2", "batch_size=64", "replicas=2", "repeated_aug=2")
STEPS = 4


@pytest.fixture(scope="module")
def data(digits_folder: Path) -> Path:
    return digits_folder


def run(output: Path, data: Path, *changes: str, **options: Any) -> str:
    """The digest of a short run's weights."""
    reproduce(
        STUDENT,
        gpus=0,
        output=output,
        data=data,
        changes=(*CHANGES, *changes),
        **{"workers": 0} | options,
    )
    return sha256_of(output)


@pytest.fixture(scope="module")
def kept(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps what its teacher says: `run`, and `labels`."""
    folder = tmp_path_factory.mktemp("kept")
    run(folder / "run", data, f"teacher_labels={folder / 'labels'}")
    return folder


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network can be built as a teacher."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a teacher is built")

    monkeypatch.setattr(build, "teacher_for", refuse)


def test_a_run_has_the_same_bytes_with_kept_labels_and_without(
    kept: Path, data: Path, tmp_path: Path, no_teacher: None
) -> None:
    again = run(tmp_path / "again", data, f"teacher_labels={kept / 'labels'}")
    first = sha256_of(kept / "run")
    assert again == first


def test_a_run_that_keeps_labels_is_the_run_that_does_not(
    kept: Path, data: Path, tmp_path: Path
) -> None:
    first = sha256_of(kept / "run")
    assert run(tmp_path / "plain", data) == first


def test_the_receipt_states_the_digest_of_labels_that_are_all_known(kept: Path) -> None:
    digest = sha256(kept / "labels" / LABELS_FILE)
    facts = json.loads((kept / "labels" / LABEL_FACTS_FILE).read_text())
    assert facts["sha256"] == digest
    assert receipt_of(kept / "run")["teacher"]["labels_sha256"] == digest
    assert receipt_of(kept / "run")["teacher"]["name"] == "convnet_pico_digits"


@pytest.mark.slow
def test_labels_are_the_same_by_any_number_of_processes_and_without_a_student(
    kept: Path, data: Path, tmp_path: Path
) -> None:
    plan, devices = label_plan(
        STUDENT, tmp_path / "labels", processes=2, changes=CHANGES, workers=0
    )
    seen: list[tuple[int, int]] = []
    sha256 = label_images(
        plan,
        data,
        tmp_path / "labels",
        devices,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert sha256 == json.loads((kept / "labels" / LABEL_FACTS_FILE).read_text())["sha256"]
    assert seen[-1] == (2 * STEPS, 2 * STEPS)


def test_labels_that_are_all_known_are_told_by_the_folder_as_it_is_called(
    kept: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(kept / "labels", tmp_path / "[b]labels")
    words = ("teacher-labels", STUDENT, "--data", data, "--output", "[b]labels", "--gpus", 0)
    changes = (word for change in CHANGES for word in ("--set", change))
    done = deit_zoo_command(*words, *changes, cwd=tmp_path)
    digest = sha256(kept / "labels" / LABELS_FILE)
    assert done.out == f"[b]labels has the labels of 2 epochs, SHA-256 {digest}\n", done.err


def test_only_what_is_not_known_is_asked_of_the_teacher(
    kept: Path, data: Path, tmp_path: Path
) -> None:
    # As a run leaves them that was killed in its second epoch.
    labels = tmp_path / "labels"
    shutil.copytree(kept / "labels", labels)
    whole = json.loads((labels / LABEL_FACTS_FILE).read_text())
    (labels / LABEL_FACTS_FILE).write_text(json.dumps(whole | {"sha256": None}))
    stored = np.load(labels / LABELS_FILE, mmap_mode="r+")
    stored[1, 1:] = 0
    stored.flush()
    before = stored[0].copy()
    run(tmp_path / "run", data, f"teacher_labels={labels}")
    after = np.load(labels / LABELS_FILE)
    assert (after[0] == before).all()
    assert json.loads((labels / LABEL_FACTS_FILE).read_text()) == whole


def test_of_an_epoch_whose_labels_are_known_in_part_the_rest_is_asked(
    kept: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, asked = tmp_path / "labels", list[int]()
    shutil.copytree(kept / "labels", labels)
    stored = np.load(labels / LABELS_FILE, mmap_mode="r+")
    before = stored[1].copy()
    stored[1, 3:] = 0
    stored.flush()
    plan, _ = label_plan(STUDENT, labels, processes=1, changes=CHANGES, workers=0)
    plan = replace(plan, num_images=len(open_set(data, "train")), reading="upstream")

    def counting(*arguments: Any) -> Any:
        teach = build.lesson_of(*arguments)
        return lambda images: (asked.append(len(images)), teach(images))[1]

    monkeypatch.setattr(teaching, "lesson_of", counting)
    classes = [str(digit) for digit in range(10)]
    job = LabelJob(plan=plan, data=str(data), classes=classes, folder=labels, epochs=[1])
    job.run_shard("cpu", 0, 1, lambda done, total: None)
    assert asked == [32, 32]  # the replicas of the last of four steps
    assert (np.load(labels / LABELS_FILE)[1] == before).all()


def test_a_state_on_disk_never_is_ahead_of_the_labels(
    kept: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed after a state in mid-epoch, and continued: no step's labels are lost between.
    from deit_zoo.training.checkpoint import CheckpointManager

    class Killed(Exception):
        pass

    saves = 0
    save = CheckpointManager.save

    def die_after(manager: CheckpointManager) -> None:
        nonlocal saves
        save(manager)
        manager.wait()
        saves += 1
        if saves == 3:
            raise Killed

    options = (f"teacher_labels={tmp_path / 'labels'}", "state_minutes=0")
    monkeypatch.setattr(CheckpointManager, "save", die_after)
    with pytest.raises(Killed):
        run(tmp_path / "run", data, *options)
    monkeypatch.setattr(CheckpointManager, "save", save)
    first = sha256_of(kept / "run")
    assert run(tmp_path / "run", data, *options) == first
    digest = json.loads((kept / "labels" / LABEL_FACTS_FILE).read_text())["sha256"]
    assert json.loads((tmp_path / "labels" / LABEL_FACTS_FILE).read_text())["sha256"] == digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=1", "seed 0 -> 1"),
        ("crop_scale=0.5,1", "crop_scale 0.6,1.0 -> 0.5,1.0"),
        ("mixup=0.3", "mixup 0.2 -> 0.3"),
        ("teacher_input=own", "teacher_input student -> own"),
        ("precision=bf16", "precision float32 -> bfloat16"),
    ],
)
def test_labels_of_other_images_are_refused_by_the_field_that_differs(
    change: str, named: str, kept: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        run(tmp_path / "run", data, change, f"teacher_labels={kept / 'labels'}")
    assert f"({named})" in str(caught.value)


def test_labels_of_other_training_images_are_refused(
    kept: Path, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "data"
    shutil.copytree(data, other)
    file = next((other / "train/0").iterdir())
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(RecipeError, match=r"\(data [0-9a-f]{12} -> [0-9a-f]{12}\)"):
        run(tmp_path / "run", other, f"teacher_labels={kept / 'labels'}")


def test_labels_of_another_teacher_are_refused(kept: Path, data: Path, tmp_path: Path) -> None:
    save_model(
        deit_zoo.create("convnet_pico_digits"), tmp_path / "other.safetensors"
    )  # the same network, other weights
    with pytest.raises(RecipeError, match=r"\(teacher [0-9a-f]{12} -> [0-9a-f]{12}\)"):
        run(
            tmp_path / "run",
            data,
            f"teacher={tmp_path / 'other.safetensors'}",
            f"teacher_labels={kept / 'labels'}",
        )


def test_a_student_of_other_settings_reads_the_same_labels(
    kept: Path, data: Path, tmp_path: Path, no_teacher: None
) -> None:
    labels = f"teacher_labels={kept / 'labels'}"
    run(tmp_path / "run", data, "lr=0.001", "drop_path_rate=0.1", "epochs=1", labels)


def test_labels_of_which_a_byte_was_changed_are_refused(
    kept: Path, data: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(kept / "labels", labels)
    stored = np.load(labels / LABELS_FILE, mmap_mode="r+")
    stored[1, 0, 0, 0] = 1 + stored[1, 0, 0, 0] % 10
    stored.flush()
    with pytest.raises(RecipeError, match="is not the file whose digest"):
        run(tmp_path / "run", data, f"teacher_labels={labels}")


def test_a_longer_run_than_the_labels_are_of_is_refused(
    kept: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="are of 2 epochs, the run has 3"):
        run(tmp_path / "run", data, "epochs=3", f"teacher_labels={kept / 'labels'}")


def test_a_folder_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / LABEL_FACTS_FILE).write_text("[]")
    with pytest.raises(RecipeError, match="holds no teacher labels that can be read"):
        run(tmp_path / "run", data, f"teacher_labels={tmp_path / 'labels'}")


def test_soft_distillation_has_no_labels_to_keep() -> None:
    with pytest.raises(RecipeError, match="type --set distillation=hard"):
        make_plan(STUDENT, gpus=0, changes=["distillation=soft", "teacher_labels=labels"])


def test_the_plan_says_what_is_saved() -> None:
    shares = {
        "deit_tiny_distilled": "81%",
        "deit_small_distilled": "53%",
        "deit_base_distilled": "23%",
    }
    for name, share in shares.items():
        plan = make_plan(name, gpus=0, changes=["teacher_labels=labels"])
        [line] = [line for title, line in plan.lines() if title == "teacher labels"]
        assert f"{share} of the multiply-accumulates are saved" in line, name
        assert "768.6 MB for 384,307,200 mixed images" in line, name


def test_labels_are_published_with_a_card_once_all_are_known(kept: Path, tmp_path: Path) -> None:
    files = build_labels(kept / "labels", "org/labels", tmp_path / "new")
    assert [file.name for file in files] == [
        "README.md",
        "SHA256SUMS",
        LABEL_FACTS_FILE,
        LABELS_FILE,
    ]
    card = (tmp_path / "new/README.md").read_text()
    assert "convnet_pico_digits" in card
    assert "| rand_augment | rand-m5-mstd0.5-inc1 |" in card
    facts = json.loads((kept / "labels" / LABEL_FACTS_FILE).read_text())
    assert facts["sha256"] in card
    unknown = tmp_path / "unknown"
    shutil.copytree(kept / "labels", unknown)
    (unknown / LABEL_FACTS_FILE).write_text(json.dumps(facts | {"sha256": None}))
    with pytest.raises(CheckpointError, match="are not all known yet"):
        build_labels(unknown, "org/labels", tmp_path / "other")


def test_published_labels_are_a_data_set_of_the_hub(kept: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        environment = hub.environment(tmp_path) | {"HF_TOKEN": "hf_writes"}
        words = ("weights", "publish", str(kept / "labels"), "--repo", "org/labels")
        done = deit_zoo_command(*words, env=environment)
        assert done.status == 0, done.err
        repository = hub.repositories["org/labels"]
        assert hub.count("POST", "/api/datasets/org/labels/commit/main") == 1
    uploaded = repository.commits[repository.refs["main"]]
    assert uploaded[LABELS_FILE] == (kept / "labels" / LABELS_FILE).read_bytes()


def test_what_another_run_has_kept_stays(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept / "labels", tmp_path / "labels")
    first = np.load(kept / "labels" / LABELS_FILE)
    stored = np.load(tmp_path / "labels" / LABELS_FILE, mmap_mode="r+")
    stored[0, 0] = 0
    stored.flush()
    one, other = (TeacherLabels(tmp_path / "labels") for _ in range(2))
    for labels, said in ((one, first[0, 0].astype(int) - 1), (other, np.zeros_like(first[0, 0]))):
        assert labels.read(0, 0, range(2)) is None
        labels.add(0, 0, range(2), [torch.from_numpy(said.astype(np.int64)).flatten()])
    one.write()
    other.write()
    assert (np.load(tmp_path / "labels" / LABELS_FILE) == first).all()


def test_what_is_said_of_an_image_in_the_place_of_another_is_not_kept(
    data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    first = epoch_order(320, epoch=0, replicas=2, repeats=2, count=128)[0, 0]
    Path(open_set(tmp_path / "data", "train").name_of(first)).write_bytes(b"no image")
    labels = tmp_path / "labels"
    run(tmp_path / "run", tmp_path / "data", "epochs=1", f"teacher_labels={labels}")
    unknown = (np.load(labels / LABELS_FILE) == 0).all(axis=(2, 3))
    assert 0 < unknown.sum() < STEPS
    assert receipt_of(tmp_path / "run")["teacher"]["labels_sha256"] is None


def test_a_younger_field_that_does_nothing_is_in_no_key(kept: Path) -> None:
    key = json.loads((kept / "labels" / LABEL_FACTS_FILE).read_text())["key"]
    assert not {"sampling", "three_augment", "top1_source", "layouts"} & set(key)
    assert {"seed", "crop_scale", "mixup", "replicas", "teacher"} <= set(key)


def test_a_recipe_without_a_teacher_has_no_labels_to_make(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^deit_small learns no labels of a teacher .*none"):
        label_plan("deit_small", tmp_path)
