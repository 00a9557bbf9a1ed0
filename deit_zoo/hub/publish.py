"""For maintainers: a checkpoint as a repository of the Hub, which timm loads as well.

Its model card tells every figure with its transform, source and command; the words are in
`assets/model_card.md.jinja`.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from deit_zoo.errors import CheckpointError, OfflineError, ZooError, redact
from deit_zoo.files import (
    ASSETS,
    CONFIG_FILE,
    LOG_FILE,
    MODEL_FILE,
    RECEIPT_FILE,
    new_folder,
    read_json,
    write_sums,
    write_whole,
)
from deit_zoo.hub.config import config_bytes, timm_config, timm_name
from deit_zoo.hub.verify import copy_checked
from deit_zoo.labels import labels
from deit_zoo.manifest import Checkpoint, Source, manifest_record
from deit_zoo.recipes import RECIPES
from deit_zoo.registry import TRANSFORMERS, ModelSpec
from deit_zoo.registry.names import resolve
from deit_zoo.runs.plot import draw_run
from deit_zoo.version import __version__
from deit_zoo.weights.cache import KnownFile
from deit_zoo.weights.download import UnavailableError
from deit_zoo.weights.fetch import check_repo_id
from deit_zoo.weights.hub_files import LIBRARY, hub_error_context
from deit_zoo.weights.load import resolve_file

# What the Hub calls the data sets, and their names.
_DATASETS = {
    "imagenet1k": ("imagenet-1k", "ImageNet-1k"),
    "digits": ("digits", "Optical Recognition of Handwritten Digits"),
}


def build(name: str, repo_id: str, folder: Path) -> list[Path]:
    """Leave the files of a repository in a new folder, all or none. Returns them."""
    spec = resolve(name)
    record = manifest_record(spec.name)
    check_arguments(repo_id, folder)
    file = resolve_file(record)
    with new_folder(folder) as temporary:
        _fill(temporary, spec, record, repo_id, file)
    return sorted(folder.iterdir())


def upload(
    folder: Path, repo_id: str, name: str, kind: str = "model", private: bool = False
) -> str:
    """Make the repository where there is none and upload the folder. Returns the commit's URL.

    Raises ZooError where no token is set or its owner may not write there, or where a repository
    that is to be `private` is there and public.
    """
    check_rights(repo_id)
    api = HfApi(library_name=LIBRARY, library_version=__version__)
    try:
        with hub_error_context(Source(kind="hub", repo_id=repo_id), "main"):
            # None is what the organization has set for new ones, and that is public unless changed.
            api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
            if not private or api.repo_info(repo_id, repo_type=kind).private:
                commit = api.upload_folder(
                    repo_id=repo_id,
                    repo_type=kind,
                    folder_path=folder,
                    commit_message=f"{name}, published by deit_zoo {__version__}",
                )
                return str(commit.commit_url)
        refusal = ZooError(
            f"{repo_id} is there and public, so nothing was uploaded; make it private in its "
            "settings, or give another --repo"
        )
    except UnavailableError as error:
        refusal = _refusal(repo_id, error)
    raise refusal  # not from the error: its traceback would show whole addresses


def check_rights(repo_id: str) -> None:
    """Raises ZooError where nothing could be uploaded in any case."""
    if constants.HF_HUB_OFFLINE:
        raise OfflineError("HF_HUB_OFFLINE is set; unset it to upload, or type --dry-run")
    if get_token() is None:
        raise ZooError(
            f"there is no Hub token to publish {repo_id} with; type `hf auth login`, or set "
            "HF_TOKEN to one that may write there (--dry-run needs none)"
        )


def check_arguments(repo_id: str, folder: Path) -> None:
    """Raises ZooError for what is no repository's name, or a folder that is there."""
    if repo_id.count("/") != 1:
        raise ZooError(f"--repo is {repo_id!r}; give ORG/NAME")
    check_repo_id(repo_id)
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; remove it, or give a new --output")


def config(spec: ModelSpec, record: Checkpoint) -> dict[str, Any]:
    """config.json of a published checkpoint."""
    return timm_config(
        spec,
        labels(record.labels),
        num_classes=record.num_classes,
        crop_pct=record.crop_pct,
        license=record.license,
    )


def model_card(card: dict[str, Any]) -> str:
    """README.md of a published checkpoint, from what the sections of its template name."""
    spec, record = card["spec"], card["record"]
    dataset, metric = _DATASETS[record.labels], record.metric
    figures = ((1, metric and metric.top1), (5, metric and metric.top5))
    results = [
        eval_result(dataset, "accuracy", f"Top-{k} accuracy (%)", value)
        for k, value in figures
        if value is not None
    ]
    return fill_card(
        "model_card.md.jinja",
        card,
        license=record.license,
        datasets=[dataset[0]],
        metrics=["accuracy"],
        model_name=spec.name,
        eval_results=results or None,
    )


def eval_result(dataset: tuple[str, str], metric: str, title: str, value: float) -> EvalResult:
    """A figure for the front matter; of the data set the Hub's type and its name."""
    return EvalResult(
        task_type="image-classification",
        task_name="Image classification",
        dataset_type=dataset[0],
        dataset_name=dataset[1],
        dataset_split="validation",
        metric_type=metric,
        metric_name=title,
        metric_value=value,
    )


def fill_card(template: str, card: dict[str, Any], **data: Any) -> str:
    """README.md: front matter of `data` and the model, and the sections of a template in assets."""
    family = card["spec"].family
    front = ModelCardData(
        library_name="timm" if card["timm_name"] else "deit_zoo",
        pipeline_tag="image-classification",
        tags=["image-classification", "deit_zoo", family]
        + ["vision-transformer"] * (family in TRANSFORMERS),
        **data,
    )
    text = (ASSETS / template).read_text(encoding="utf-8")
    return redact(str(ModelCard.from_template(front, template_str=text, card=card)))


def _fill(
    folder: Path, spec: ModelSpec, record: Checkpoint, repo_id: str, known: KnownFile
) -> None:
    file = known.path
    remedy = f"type `deit-zoo weights verify {spec.name}`"
    sha256 = copy_checked(file, folder / MODEL_FILE, known.sha256, remedy)
    write_whole(folder / CONFIG_FILE, config_bytes(config(spec, record)))
    recipe = asdict(RECIPES[spec.name]) if spec.name in RECIPES else None
    if receipt := _add_run(file, record, folder):
        recipe = receipt["plan"]["recipe"]
        draw_run(folder, spec.name)
    card = dict(spec=spec, record=record, repo_id=repo_id, sha256=sha256, receipt=receipt)
    card |= dict(timm_name=timm_name(spec), recipe=recipe, curve=receipt is not None)
    write_whole(folder / "README.md", model_card(card).encode())
    write_sums(folder)


def _add_run(file: Path, record: Checkpoint, folder: Path) -> dict[str, Any] | None:
    """Copy receipt and log of a checkpoint that was trained here; returns the receipt."""
    if record.origin != "reproduced":
        return None
    log = file.with_name(str(record.log))
    receipt = file.with_name(f"{record.name}.{RECEIPT_FILE}")
    for source, name in ((log, LOG_FILE), (receipt, RECEIPT_FILE)):
        if not source.is_file():
            raise CheckpointError(
                f"{record.name} was trained here, but {source} is missing; publish it from a "
                "machine that has it"
            )
        shutil.copyfile(source, folder / name)
    content: dict[str, Any] = read_json(receipt)
    return content


def _refusal(repo_id: str, error: UnavailableError) -> ZooError:
    """What the Hub answers to an upload, as one sentence."""
    cause = error.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status in (401, 403):
        return ZooError(
            f"the Hub refused to write {repo_id} ({status}); set HF_TOKEN to a token with "
            f"write access to {repo_id.split('/')[0]}, or give another --repo"
        )
    if status is not None:
        return ZooError(f"the Hub answered {status} while {repo_id} was uploaded; type it again")
    return ZooError(
        f"{repo_id} could not be uploaded ({error}); check the network and type it again"
    )
