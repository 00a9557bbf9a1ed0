"""The images that a run is of: those that it begins with, and whether they are still the same.

Of a folder of one's own the run keeps a list. What a start left that failed binds no other run.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from deit_zoo.data.folder import split_folder
from deit_zoo.data.image_list import SPLIT_FILE, ImageList, check_there
from deit_zoo.data.image_set import ImageSet, kind_of, open_list, open_unchecked
from deit_zoo.data.split import check_split, difference, list_images
from deit_zoo.data.survey import (
    CONTENT,
    SMALL,
    SPLITS,
    bad_images,
    copies,
    dark_images,
    most_unreadable,
)
from deit_zoo.data.table import SplitName
from deit_zoo.errors import DataError
from deit_zoo.files import LOG_FILE, MODEL_FILE, PLAN_FILE, STEPS_FILE
from deit_zoo.machine import usable_cores
from deit_zoo.manifest import Reading
from deit_zoo.training.job import Job, read_job
from deit_zoo.training.rollback import FOLDER, read_history


def images_of_run(
    data: str | Path,
    val_share: float | None,
    output: Path,
    reading: Reading,
    tell: Callable[[str], None],
    progress: Callable[[int], None],
) -> ImageList | None:
    """The list that a run began with, or a new one; None for data that are read as they lie.

    Images of a small set that cannot be read are left out. Raises DataError where the run in
    `output` would go on with other images.
    """
    former = former_job(output)
    if val_share is None:
        check_split(data)
        # A plan written before there were lists has none.
        is_listed = kind_of(data) in ("folder", "list")
        if not is_listed or (former is not None and former.images is None):
            return None
    images = list_images(data, val_share)
    if former is not None and former.images is not None:
        _check_same_images(output, former, former.images, images, data, val_share)
        return replace(former.images, root=images.root, data=images.data)
    if former is not None:  # written before there were lists: it parted by links
        return images
    check_there(images)
    if images.ignored:
        tell(images.ignored)
    if len(images.images) <= SMALL:
        return _without_unreadable(images, data, reading, tell, progress)
    return images if val_share is not None or kind_of(data) == "list" else None


def check_outside(output: Path, data: str | Path) -> None:
    """Raises DataError where a run would lie among the images that it is trained on."""
    if kind_of(data) != "folder":
        return
    root = Path(data).resolve()
    parts = [split_folder(root, split) for split in SPLITS]
    for folder in filter(None, parts) if any(parts) else [root]:
        if output.resolve().is_relative_to(folder):
            raise DataError(
                f"{output} lies in {data}, where it would be a class; give an --output elsewhere"
            )


def check_validation(
    data: str, images: ImageList | None, reading: Reading, progress: Callable[[int], None]
) -> None:
    """Raises DataError where a validation image cannot be read: figures are of all of them."""
    if images is not None and len(images.images) <= SMALL:
        return  # those are left out already
    part = open_part(data, "val", images, reading)
    if bad := _unreadable([part], progress, []):
        raise DataError(
            f"{len(bad):,} of {len(part):,} validation images cannot be read ({_named(bad)}), and "
            f"figures are of all of them; mend or remove them: {_check_command(data)} lists them"
        )


def open_part(
    data: str, split: SplitName, images: ImageList | None, reading: Reading = "upstream"
) -> ImageSet:
    """A split as it lies, or as the run's list, which may not be written yet, has it."""
    if images is None:
        return open_unchecked(data, split, reading)
    part = open_list(images, split)
    part.reading = reading
    return part


def check_same_data(output: Path, job: Job, tell: Callable[[str], None]) -> None:
    """Raises DataError where a run would go on with other images than it began with.

    That files of a large set were written since, which a copy is too, is told.
    """
    former = former_job(output)
    if former is None:
        return
    before, now = former.fingerprint, job.fingerprint
    if _without_content(before) != _without_content(now):
        raise DataError(
            f"the run in {output} began with other data ({_files(former)}) than {job.data} holds "
            f"now ({_files(job)}); give the data that it began with, or a new --output"
        )
    known = [split for split in before if CONTENT in before[split] and CONTENT in now[split]]
    if any(before[split][CONTENT] != now[split][CONTENT] for split in known):
        raise DataError(
            f"images of {job.data} are not those that the run in {output} began with, though "
            "their names and sizes are; give the data that it began with, or a new --output"
        )
    if not known and former.data == job.data and 0 < former.newest < job.newest:
        tell(f"files of {job.data} were written since the run began; by name and size they are its")


def _without_content(fingerprint: dict[str, Any]) -> dict[str, Any]:
    return {
        split: {key: value for key, value in facts.items() if key != CONTENT}
        for split, facts in fingerprint.items()
    }


def former_job(output: Path) -> Job | None:
    """The job of the run that has begun in a folder, if one has."""
    return read_job(output) if has_begun(output) else None


def has_begun(output: Path) -> bool:
    """Whether a run has got further than its start."""
    if not is_run(output):
        return False
    from deit_zoo.training.state_files import position_of, states

    return (
        _has_content(output / LOG_FILE)
        or (output / MODEL_FILE).is_file()
        or any(position_of(file) > (0, 0) for file in states(output))
        or read_history(output).failure is not None
    )


def is_run(output: Path) -> bool:
    """Whether a run's plan is there, or a state, which has it too."""
    return (output / PLAN_FILE).is_file() or (output.is_dir() and is_without_plan(output))


def is_without_plan(output: Path) -> bool:
    """Whether a run's states are there and its plan is not, which its command makes again."""
    from deit_zoo.training.state_files import states

    return not (output / PLAN_FILE).is_file() and bool(states(output))


def check_states(output: Path) -> None:
    """Raises DataError where a run has finished epochs and no state to continue from."""
    from deit_zoo.training.state_files import states

    left = next((name for name in (MODEL_FILE, LOG_FILE) if _has_content(output / name)), None)
    if left and not states(output):
        raise DataError(
            f"{output} holds {left} of a run, and {output / FOLDER} has no state to continue from; "
            f"put the states back, or remove {output} to train again from the start"
        )


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def forget_failed_start(output: Path, job: Job) -> None:
    """Remove what a start left that failed, unless it was of the same run."""
    if has_begun(output) or not is_run(output):
        return
    former = read_job(output)
    before = former.plan.recipe.digest, former.images, former.fingerprint
    if before != (job.plan.recipe.digest, job.images, job.fingerprint):
        shutil.rmtree(output / FOLDER, ignore_errors=True)
        for name in (STEPS_FILE, SPLIT_FILE, PLAN_FILE):
            (output / name).unlink(missing_ok=True)


def _without_unreadable(
    images: ImageList,
    data: str | Path,
    reading: Reading,
    tell: Callable[[str], None],
    progress: Callable[[int], None],
) -> ImageList:
    """The list without the images that cannot be read, which are told, as copies are."""
    sets = [open_part(str(data), split, images, reading) for split in SPLITS]
    high_bytes: list[int] = []
    bad = _unreadable(sets, progress, high_bytes)
    count = len(images.images)
    sentence = f"{len(bad):,} of {count:,} images cannot be read ({_named(bad)})"
    if len(bad) > (most := most_unreadable(count)):
        raise DataError(
            f"{sentence}, and a run can do without {most:,}; mend or remove them: "
            f"{_check_command(data)} lists them all"
        )
    if bad:
        tell(f"{sentence}; left out")
    for remark in filter(None, (dark_images(high_bytes), copies(*sets))):
        tell(remark)
    return images.without(bad)


def _unreadable(
    sets: Sequence[ImageSet], progress: Callable[[int], None], high_bytes: list[int]
) -> dict[str, str]:
    """The images that cannot be read, each with a reason; `high_bytes` is as in `bad_images`."""
    bad = bad_images(
        *sets,
        workers=usable_cores(),
        progress=lambda done, _: progress(done),
        high_bytes=high_bytes,
    )
    return dict(bad)


def _named(bad: dict[str, str]) -> str:
    by_reason = groupby(sorted(bad.items())[:3], lambda item: item[1])
    named = "; ".join(f"{', '.join(file for file, _ in some)}: {why}" for why, some in by_reason)
    return f"{named}, ..." if len(bad) > 3 else named


def _check_command(data: str | Path) -> str:
    return f"deit-zoo data check {shlex.quote(str(data))}"


def _check_same_images(
    output: Path,
    former: Job,
    kept: ImageList,
    images: ImageList,
    data: str | Path,
    val_share: float | None,
) -> None:
    why = ""
    if former.val_share != val_share:
        shares = [
            "no --val-share" if share is None else f"--val-share {share:g}"
            for share in (former.val_share, val_share)
        ]
        began, now = f"began with {shares[0]}, so ", f"{shares[1]} gives"
    elif example := difference(kept, images, most_unreadable(len(kept.images))):
        began, now, why = "began with ", f"{data} holds", f" ({example})"
    else:
        return
    before, after = (
        f"{len(of.of('train')):,} training and {len(of.of('val')):,} validation images"
        for of in (kept, images)
    )
    raise DataError(
        f"the run in {output} {began}{before}, and {now} {after} now{why}; give the data that it "
        "began with, or type a new --output for a run on these"
    )


def _files(job: Job) -> str:
    counts = [job.fingerprint.get(split, {}).get("files") for split in ("train", "val")]
    if None in counts:
        return f"{job.plan.num_images:,} training images"
    return "{:,} files in train and {:,} in val".format(*counts)
