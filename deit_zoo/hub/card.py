"""The model card of a published checkpoint: every figure with its transform, source and command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from deit_zoo.manifest import Checkpoint, Metric, Source
from deit_zoo.registry import ModelSpec

README_DEIT = "https://github.com/facebookresearch/deit"
# Id on the Hub, name, and what is known to be wrong with models that saw nothing else.
DATASETS = {
    "imagenet1k": (
        "imagenet-1k",
        "ImageNet-1k",
        "It knows the 1000 classes of ImageNet-1k and gives one of them for any image, also for "
        "one that shows none. The images are photographs from the web; what they show rarely is "
        "recognised badly. The figures hold for the validation set and the transform above, not "
        "for other images.",
    ),
    "digits": (
        "digits",
        "Optical Recognition of Handwritten Digits",
        "It is a demonstration, small enough to ship inside a package: it knows ten digits, drawn "
        "by hand and reduced to 8x8 pixels, and gives one of them for any image. The data are E. "
        "Alpaydin and C. Kaynak's, UCI Machine Learning Repository, CC BY 4.0, the part that "
        "scikit-learn ships; its last 360 images, by other writers, are the validation set.",
    ),
}
PAPERS = {
    "arXiv:2012.12877": """\
@inproceedings{touvron2021deit,
  title     = {Training data-efficient image transformers \\& distillation through attention},
  author    = {Hugo Touvron and Matthieu Cord and Matthijs Douze and Francisco Massa and
               Alexandre Sablayrolles and Herv\\'e J\\'egou},
  booktitle = {International Conference on Machine Learning},
  year      = {2021},
  note      = {arXiv:2012.12877}
}""",
    "arXiv:2103.17239": """\
@inproceedings{touvron2021cait,
  title     = {Going deeper with Image Transformers},
  author    = {Hugo Touvron and Matthieu Cord and Alexandre Sablayrolles and Gabriel Synnaeve and
               Herv\\'e J\\'egou},
  booktitle = {International Conference on Computer Vision},
  year      = {2021},
  note      = {arXiv:2103.17239}
}""",
}
KINDS = {
    "deit": "DeiT",
    "cait": "CaiT",
    "regnet": "RegNetY, the teacher of DeiT",
    "convnet": "A convolutional network",
}
# What is said about a recipe, not what it does.
_REMARKS = ("name", "model", "source", "band", "band_source", "assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class CardContext:
    """What a card tells: the model, its record and where it came from."""

    spec: ModelSpec
    record: Checkpoint
    repo_id: str
    sha256: str
    timm_name: str | None
    recipe: dict[str, Any] | None
    receipt: dict[str, Any] | None
    curve: bool


def model_card(story: CardContext) -> str:
    """README.md: front matter and sections."""
    parts = [f"# {story.repo_id.split('/')[-1]}", _description(story), _usage(story)]
    sections = (
        ("Figures", _figures(story)),
        ("Recipe", _recipe(story)),
        ("Provenance", _provenance(story)),
        ("Limits", DATASETS[story.record.labels][2]),
        ("Licence", f"The weights are under {story.record.license}."),
        ("Citation", _citation(story.record)),
    )
    parts += [f"## {title}\n\n{text}" for title, text in sections if text]
    return f"---\n{_front_matter(story).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(story: CardContext) -> ModelCardData:
    spec, record = story.spec, story.record
    dataset, title, _ = DATASETS[record.labels]
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=dataset,
            dataset_name=title,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=told,
            metric_value=value,
        )
        for told, value in _accuracies(record.metric)
    ]
    family = ("vision-transformer",) if spec.family in ("deit", "cait") else ()
    return ModelCardData(
        license=record.license,
        library_name="timm" if story.timm_name else "deit_zoo",
        pipeline_tag="image-classification",
        tags=["image-classification", "deit_zoo", spec.family, *family],
        datasets=[dataset],
        metrics=["accuracy"],
        model_name=spec.name,
        eval_results=results or None,
    )


def _accuracies(metric: Metric | None) -> Iterator[tuple[str, float]]:
    if metric is not None and metric.top1 is not None:
        yield "Top-1 accuracy (%)", metric.top1
    if metric is not None and metric.top5 is not None:
        yield "Top-5 accuracy (%)", metric.top5


def _description(story: CardContext) -> str:
    spec, record = story.spec, story.record
    arch = ", ".join(f"{key} {value}" for key, value in spec.arch.items()) or spec.source
    paper = f" ([{record.paper}](https://arxiv.org/abs/{record.paper[6:]}))" if record.paper else ""
    trained = {
        "upstream": "The tensors are the authors' own.",
        "reproduced": "Trained from nothing by deit_zoo; receipt and log lie beside the weights.",
    }[record.origin]
    return (
        f"{KINDS[spec.family]}{paper} for {record.num_classes:,} classes: {arch}; "
        f"{spec.num_params:,} parameters, {spec.gmacs:g} GMACs at {spec.img_size} pixels. {trained}"
    )


def _usage(story: CardContext) -> str:
    lines = [
        "```python",
        "import deit_zoo",
        f'model = deit_zoo.create("{story.spec.name}", checkpoint="hf://{story.repo_id}")',
        'print(deit_zoo.classify("image.jpg", model))',
        "```",
    ]
    if story.timm_name:
        call = f'timm.create_model("hf-hub:{story.repo_id}", pretrained=True)'
        lines += ["", f"timm loads the same file: `{call}`."]
    return "\n".join(lines)


def _figures(story: CardContext) -> str:
    spec, record = story.spec, story.record
    lines = ["| measured on | top-1 | top-5 | loss | by |", "|---|---:|---:|---:|---|"]
    for key, metric in record.metrics.items():
        cells = [
            "–" if value is None else f"{value:g}"
            for value in (metric.top1, metric.top5, metric.loss)
        ]
        lines.append(f"| {key} | {' | '.join(cells)} | {metric.source or '–'} |")
    transform = (
        f"Transform: short side resized to {int(spec.img_size / record.crop_pct)} pixels "
        f"({record.interpolation}), centre crop of {spec.img_size} (crop_pct {record.crop_pct:g}), "
        "ImageNet's mean and standard deviation."
    )
    command = f"Measure again: `deit-zoo evaluate {spec.name} --data DIR`."
    return "\n".join(lines) + f"\n\n{transform}\n\n{command}"


def _recipe(story: CardContext) -> str:
    if story.recipe is None:
        return f"As {story.record.paper} describes; deit_zoo has no recipe for it yet."
    rows = [
        f"| `{key}` | {'none' if value is None else value} |"
        for key, value in story.recipe.items()
        if key not in _REMARKS
    ]
    text = f"From {story.recipe['source']}.\n\n| field | value |\n|---|---|\n" + "\n".join(rows)
    if assumed := story.recipe.get("assumed"):
        reasons = "\n".join(f"- `{key}`: {why}" for key, why in assumed.items())
        text += f"\n\nAssumed, because nobody published them:\n\n{reasons}"
    if story.receipt:
        environment, verdict = story.receipt["environment"], story.receipt["verdict"]
        text += (
            f"\n\nThe verdict on the run: {verdict}. It ran with deit_zoo "
            f"{environment['deit_zoo']} and torch {environment['torch']} on "
            f"{story.receipt['plan']['device']}; `receipt.json` tells the rest."
        )
    text += f"\n\nTrain it again: `deit-zoo reproduce {story.spec.name} --gpus N`."
    return text + ("\n\n![Loss and top-1 by epoch](curve.png)" if story.curve else "")


def _provenance(story: CardContext) -> str:
    lines = [f"- `model.safetensors` has SHA-256 `{story.sha256}`."]
    lines += [f"- {_told(source)}" for source in story.record.sources]
    if story.record.origin == "upstream":
        lines.append(
            f"- The authors' code: {README_DEIT}. From their file: "
            f"`deit-zoo weights convert FILE --name {story.spec.name}`."
        )
    lines.append("- `sha256sum -c SHA256SUMS` checks every file of this repository.")
    return "\n".join(lines)


def _told(source: Source) -> str:
    proof = {
        "pinned": f"SHA-256 `{source.sha256}`",
        "hub digest": "the digest that the Hub states for it was checked",
        "prefix": f"SHA-256 begins with `{source.sha256_prefix}`",
    }.get(source.proof, "no digest is published")
    if source.kind == "builtin":
        return f"Shipped inside the deit_zoo package as {source.filename}: {proof}."
    if source.kind == "url":
        return f"Original: {source.url} ({proof})."
    at = f" at commit {source.revision}" if source.revision else ""
    return f"From https://huggingface.co/{source.repo_id}{at} ({proof})."


def _citation(record: Checkpoint) -> str:
    entry = PAPERS.get(record.paper or "")
    return f"```bibtex\n{entry}\n```" if entry else ""
