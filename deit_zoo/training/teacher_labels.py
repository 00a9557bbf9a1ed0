"""What a teacher says of every image of a run, kept on disk for all runs that show it the same.

Draws are functions of the recipe, so every run of one recipe and seed shows its teacher the same
mixed images, whoever the student is. Hard distillation asks for one number of each: a uint16, in
order of epoch, step, replica and position. What is not known yet is asked of the teacher, and kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from deit_zoo.errors import FormatError, RecipeError
from deit_zoo.files import LABEL_FACTS_FILE, LABELS_FILE, as_record, digest, read_json, write_json
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import shown
from deit_zoo.results import LabelFacts
from deit_zoo.training.logger import full_disk_as_error
from deit_zoo.training.loop import autocast_dtype
from deit_zoo.training.teacher import facts_of

UNKNOWN = 0  # so that a file begins without a byte on the disk; a label is kept plus one
MOST_CLASSES = 2**16 - 1
LOCK_FILE = ".lock"  # of whoever writes
# Fields of a recipe that change the student and not what is shown to it. All others are in the key.
_OF_STUDENT = {
    *("name", "model", "data", "init_from", "epochs"),
    *("optimizer", "lr", "betas", "eps", "momentum", "layer_decay", "freeze", "weight_decay"),
    *("clip_grad", "warmup_epochs", "warmup_lr", "min_lr", "schedule", "decay_epochs"),
    *("decay_rate", "train_mode", "ema_decay", "loss", "drop_path_rate", "label_smoothing"),
    *("blocks", "stem", "cosub", "class_weights", "distillation", "alpha", "tau"),
    *("kl_reduction", "teacher"),
}


def key_of(
    plan: Plan, fingerprint: dict[str, Any], teacher: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Everything that the labels of a run depend on, by name, as JSON has it.

    `fingerprint` is that of the training images, `teacher` the facts of the network, which computes
    on the device.
    """
    values = plan.recipe.deciding
    recipe = {name: values[name] for name in values if name not in _OF_STUDENT}
    machine = {
        "training images": plan.num_images,
        "reading": plan.reading,
        "data": fingerprint,
        "teacher": teacher["sha256"] or teacher["name"],
        "precision": str(autocast_dtype(plan, device) or torch.float32).removeprefix("torch."),
    }
    return json.loads(json.dumps(recipe | machine))


class TeacherLabels:
    """The labels in a folder (epochs, steps, replicas, batch), read and written step by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / LABELS_FILE
        facts = folder / LABEL_FACTS_FILE
        self.facts = as_record(read_json(facts), LabelFacts, str(facts))
        self.labels = np.load(self.file, mmap_mode="r")
        self.unknown: set[tuple[int, int]] = set()
        self.pending: list[tuple[int, int, int, Tensor]] = []

    def read(self, epoch: int, step: int, replicas: range) -> Tensor | None:
        """The labels of some replicas in a step (replicas, batch); None where not all are known."""
        known = self.labels[epoch, step, replicas.start : replicas.stop]
        if (known == UNKNOWN).any():
            self.unknown.add((epoch, step))
            return None
        return torch.from_numpy(known.astype(np.int64)) - 1

    def add(self, epoch: int, step: int, replicas: range, taught: Sequence[Tensor]) -> None:
        """Labels of some replicas in a step, which stay on their device until `write`."""
        if (epoch, step) in self.unknown:
            self.unknown.remove((epoch, step))
            self.pending.append((epoch, step, replicas.start, torch.cat(tuple(taught))))

    def write(self) -> None:
        """Put on the disk what was added, but where another run has been faster."""
        if not self.pending:
            return
        # Not through memory, whose pages are whole: on a shared folder they would be another's too.
        with self._locked(), self.file.open("r+b") as file:
            _, steps, replicas, batch = self.labels.shape
            for epoch, step, first_replica, labels in self.pending:
                number = (epoch * steps + step) * replicas + first_replica
                said = (labels + 1).cpu().numpy().astype(np.uint16)
                file.seek(self.labels.offset + 2 * batch * number)
                known = np.frombuffer(file.read(said.nbytes), np.uint16)
                file.seek(self.labels.offset + 2 * batch * number)
                file.write(np.where(known == UNKNOWN, said, known).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.pending.clear()

    def missing(self, epochs: int) -> list[int]:
        """The epochs, of the first so many, of which not every label is known."""
        return [n for n in range(epochs) if (self.labels[n] == UNKNOWN).any()]

    def finish(self) -> str | None:
        """The digest of the file, stated beside it; None where not all labels are known."""
        if self.facts.sha256 is None and not self.missing(len(self.labels)):
            with self._locked():
                self.facts = replace(self.facts, sha256=digest(self.file))
                write_json(self.folder / LABEL_FACTS_FILE, asdict(self.facts))
        return self.facts.sha256

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with full_disk_as_error(self.folder), FileLock(self.folder / LOCK_FILE):
            yield


def open_labels(
    folder: Path, plan: Plan, fingerprint: dict[str, Any], num_classes: int, device: torch.device
) -> TeacherLabels:
    """The labels in a folder, or none of them yet in a new one.

    They are of the training images with this fingerprint, by the plan's teacher on this device.
    Raises RecipeError where those in the folder are of other images, or of another teacher, or are
    not the bytes that were kept.
    """
    check_classes(num_classes)
    teacher = facts_of(plan.recipe)
    key = key_of(plan, fingerprint, teacher, device)
    if not (folder / LABEL_FACTS_FILE).exists():
        _begin(folder, plan, key, teacher)
    try:
        labels = TeacherLabels(folder)
        _check(labels, plan, key)
    except (OSError, ValueError, FormatError) as error:
        raise RecipeError(
            f"{folder} holds no teacher labels that can be read ({error}); give another folder"
        ) from error
    return labels


def check_classes(num_classes: int) -> None:
    """Raises RecipeError for more classes than the file has numbers for."""
    if num_classes > MOST_CLASSES:
        raise RecipeError(
            f"teacher labels are kept in 16 bits, for at most {MOST_CLASSES:,} classes, and the "
            f"data have {num_classes:,}; leave --teacher-labels out"
        )


def _shape(plan: Plan) -> tuple[int, int, int, int]:
    recipe = plan.recipe
    return recipe.epochs, plan.steps_per_epoch, recipe.replicas, plan.replica_batch


def _begin(folder: Path, plan: Plan, key: dict[str, Any], teacher: dict[str, Any]) -> None:
    """A file that says of no image what it shows, and beside it what it is for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK_FILE):
            if (folder / LABEL_FACTS_FILE).exists():  # another run's, by now
                return
            file = folder / LABELS_FILE
            np.lib.format.open_memmap(file, mode="w+", dtype=np.uint16, shape=_shape(plan))
            write_json(folder / LABEL_FACTS_FILE, asdict(LabelFacts(key=key, teacher=teacher)))
    except OSError as error:
        raise RecipeError(
            f"{folder} cannot hold {2 * prod(_shape(plan)) / 1e6:,.0f} MB of teacher labels "
            f"({error.strerror}); give a folder that you may write to, on a disk with room"
        ) from error


def _check(labels: TeacherLabels, plan: Plan, key: dict[str, Any]) -> None:
    """Raises RecipeError naming each field that differs."""
    kept = labels.facts.key
    differing = [name for name in sorted({*kept, *key}) if kept.get(name) != key.get(name)]
    if differing:
        named = ", ".join(
            f"{name} {_short(kept.get(name))} -> {_short(key.get(name))}" for name in differing
        )
        raise RecipeError(
            f"the teacher labels in {labels.folder} are of other images or another teacher "
            f"({named}); give another folder, or change that back"
        )
    epochs = len(labels.labels)
    if labels.labels.dtype != np.uint16 or labels.labels.shape[1:] != _shape(plan)[1:]:
        raise ValueError(f"{LABELS_FILE} has the shape {labels.labels.shape}")
    if epochs < plan.recipe.epochs:
        raise RecipeError(
            f"the teacher labels in {labels.folder} are of {epochs} epochs, the run has "
            f"{plan.recipe.epochs}; give another folder, or --set epochs={epochs}"
        )
    stated = labels.facts.sha256
    if stated is not None and digest(labels.file) != stated:
        raise ValueError(f"{LABELS_FILE} is not the file whose digest {LABEL_FACTS_FILE} states")


def _short(value: Any) -> str:
    """A value in words: a digest by its beginning, a description of many by its digest."""
    if isinstance(value, dict):
        value = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    if isinstance(value, list):
        value = tuple(value)
    return value[:12] if isinstance(value, str) and len(value) == 64 else shown(value)
