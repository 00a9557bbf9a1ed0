"""A teacher's labels as a data set of the Hub, for runs of others on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from deit_zoo.errors import CheckpointError, FormatError
from deit_zoo.files import (
    ASSETS,
    LABEL_FACTS_FILE,
    LABELS_FILE,
    as_record,
    new_folder,
    read_json,
    write_sums,
    write_whole,
)
from deit_zoo.hub.publish import check_arguments
from deit_zoo.hub.verify import copy_checked, copy_file
from deit_zoo.results import LabelFacts


def build_labels(labels: Path, repo_id: str, folder: Path) -> list[Path]:
    """Leave the files of a repository in a new folder, all or none. Returns them.

    Raises CheckpointError where the labels are not all known yet.
    """
    check_arguments(repo_id, folder)
    facts = _facts(labels)
    with new_folder(folder) as temporary:
        file, remedy = temporary / LABELS_FILE, "have the labels made again"
        copy_checked(labels / LABELS_FILE, file, facts.sha256, remedy)
        copy_file(labels / LABEL_FACTS_FILE, temporary / LABEL_FACTS_FILE)
        write_whole(temporary / "README.md", labels_card(facts, repo_id).encode())
        write_sums(temporary)
    return sorted(folder.iterdir())


def labels_card(facts: LabelFacts, repo_id: str) -> str:
    """README.md: front matter, and the sections of `assets/labels_card.md.jinja`."""
    data = DatasetCardData(tags=["deit_zoo", "knowledge-distillation"], pretty_name=repo_id)
    template = (ASSETS / "labels_card.md.jinja").read_text(encoding="utf-8")
    context: dict[str, Any] = {"facts": facts, "repo_id": repo_id}
    return str(DatasetCard.from_template(data, template_str=template, **context))


def _facts(labels: Path) -> LabelFacts:
    file = labels / LABEL_FACTS_FILE
    try:
        facts = as_record(read_json(file), LabelFacts, str(file))
    except (OSError, FormatError) as error:
        raise CheckpointError(f"{labels} holds no teacher labels ({error})") from error
    if facts.sha256 is None:
        raise CheckpointError(
            f"the labels in {labels} are not all known yet; type the deit-zoo teacher-labels that "
            "they were made with again, which completes them"
        )
    return facts
