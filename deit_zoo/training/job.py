"""What a run is: a plan and the data that it was made for, as `plan.json` keeps them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_zoo.errors import DataError
from deit_zoo.files import PLAN_FILE, write_whole
from deit_zoo.recipes.plan import Plan, plan_from


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A plan, and its data: a folder or `hfds:NAME`, and the fingerprint of what lies there."""

    plan: Plan
    data: str
    fingerprint: dict[str, Any]

    def write(self, output: Path) -> None:
        """Leave `plan.json`."""
        record = self.plan.to_dict() | {"data": self.data, "fingerprint": self.fingerprint}
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        write_whole(output / PLAN_FILE, text.encode())


def read_job(output: Path) -> Job:
    """What `plan.json` says. Raises DataError where it is none of ours."""
    file = output / PLAN_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return Job(plan=plan_from(record), data=record["data"], fingerprint=record["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no plan of a deit_zoo run; give an empty folder as --output"
        ) from error
