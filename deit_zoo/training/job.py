"""What a run is: a plan and the data that it was made for, as `plan.json` keeps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deit_zoo.data.image_list import SPLIT_FILE, ImageList, read_split, root_of
from deit_zoo.errors import DataError
from deit_zoo.files import PLAN_FILE, as_record, read_json, write_json, write_whole
from deit_zoo.recipes.plan import Plan, plan_from


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A recipe that was changed on the way: since when, its digest before, and each field.

    `epoch` epochs and `step` steps of the next were finished; a field has its value before and
    after. Without a field the same weights were given by another path.
    """

    epoch: int
    step: int
    recipe_sha256: str
    fields: dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A plan, its data by a name that holds in any folder, and the fingerprint of what lies there.

    `newest` is when the last of its files was written, in nanoseconds; 0 where nobody knows.
    `changes` are those of the recipe after the run had begun. `images` is the list of files that
    the run keeps of a folder, where it keeps one; `val_share` is what it was parted by.
    """

    plan: Plan
    data: str
    fingerprint: dict[str, dict[str, Any]]
    newest: int = 0
    changes: tuple[Change, ...] = ()
    val_share: float | None = None
    images: ImageList | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `plan.json` says, and every state."""
        return self.plan.to_dict() | {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "newest": self.newest,
            "changes": [asdict(change) for change in self.changes],
            "val_share": self.val_share,
            "listed": self.images is not None,
        }

    def write(self, output: Path) -> None:
        """Leave `plan.json`, and before it the list of files."""
        if self.images is not None:
            write_whole(output / SPLIT_FILE, self.images.to_bytes())
        write_json(output / PLAN_FILE, self.to_dict())

    def keep(self, output: Path, tell: Callable[[str], None]) -> None:
        """Write again, in mid-run, what was removed meanwhile."""
        files = [PLAN_FILE] if self.images is None else [PLAN_FILE, SPLIT_FILE]
        if gone := [name for name in files if not (output / name).is_file()]:
            try:
                self.write(output)
            except OSError as error:
                tell(f"{' and '.join(gone)} cannot be written again ({error.strerror})")
            else:
                tell(f"{' and '.join(gone)} had gone from {output} and is written again")

    def source(self, output: Path) -> str:
        """The data set that is opened: the list in the run's folder, or the data."""
        return self.data if self.images is None else str(output / SPLIT_FILE)

    @property
    def earlier_recipes(self) -> tuple[str, ...]:
        """The digests of the recipes that the run has had before."""
        return tuple(change.recipe_sha256 for change in self.changes)

    @property
    def changed_fields(self) -> tuple[str, ...]:
        """The fields of the recipe that were changed on the way."""
        return tuple(dict.fromkeys(name for change in self.changes for name in change.fields))

    def changes_in_words(self) -> str:
        """What a run that goes on says of its changes."""
        return f"; changed on the way: {names}" if (names := ", ".join(self.changed_fields)) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What `plan.json` says beside the plan; an older one has fewer."""

    data: str
    fingerprint: dict[str, dict[str, Any]]
    newest: int = 0
    changes: tuple[Change, ...] = ()
    val_share: float | None = None
    listed: bool = False


def read_job(output: Path) -> Job:
    """What `plan.json` says, or without one the furthest state."""
    file = output / PLAN_FILE
    try:
        record = read_json(file) if file.is_file() else _kept(output)
        facts, split = as_record(record, _Facts, str(file)), output / SPLIT_FILE
        if facts.listed and not split.is_file():
            raise DataError(
                f"{output} has lost its {SPLIT_FILE}, which lists the images that its run is of; "
                "put it back, or give an empty folder as --output"
            )
        return Job(
            plan=plan_from(record),
            data=facts.data,
            fingerprint=facts.fingerprint,
            newest=facts.newest,
            changes=facts.changes,
            val_share=facts.val_share,
            images=read_split(split, root_of(facts.data)) if facts.listed else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is no plan of a deit_zoo run; give an empty folder as --output, or, of a run "
            "that has states, remove it: the same command makes it again"
        ) from error


def _kept(output: Path) -> dict[str, Any]:
    from deit_zoo.training.state_files import facts_kept

    record: dict[str, Any] | None = facts_kept(output).get("plan")
    if record is None:
        raise DataError(
            f"{output} has lost its {PLAN_FILE}, and no whole state there says what it was; put it "
            "back, or give an empty folder as --output"
        )
    return record
