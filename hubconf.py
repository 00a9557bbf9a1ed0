"""torch.hub entry points: one for every model's name and upstream's name, and `create`.

    torch.hub.load("org/deit", "deit_tiny", trust_repo=True)

They are made from the registry; no name is typed here. A model goes by its own name, by upstream's
and by short ones such as `deit_s`; `create` takes any other spelling too, and suggests where there
is none. Nothing is fetched or printed on import.
"""

import sys

dependencies = [
    *("torch", "safetensors", "huggingface_hub", "PIL"),
    *("filelock", "requests", "rich", "msgspec"),
]

if sys.version_info < (3, 10):
    raise RuntimeError(
        f"deit_zoo needs Python 3.10 or later, this is {sys.version.split()[0]}; use a newer Python"
    )


def create(name, pretrained=True, **kwargs):
    """Create any model by any spelling of its name; keywords as in `deit_zoo.create`.

    Unlike `deit_zoo.create`, torch.hub gives the pretrained model unless told otherwise.

        model = torch.hub.load("org/deit", "create", "deit_s", num_classes=10, trust_repo=True)
    """
    return _served().create(name, pretrained=pretrained, **kwargs)


def _served():
    """The deit_zoo that answers; says so where it is not the copy that lies beside this file."""
    import re
    import warnings
    from pathlib import Path

    import torch

    import deit_zoo

    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 11):
        raise RuntimeError(
            f"deit_zoo needs torch 2.11 or later, this is {torch.__version__}; pip install -U torch"
        )
    beside = Path(__file__).resolve().parent / "deit_zoo" / "version.py"
    here = re.findall(r'__version__ = "(.+)"', beside.read_text(encoding="utf-8"))[0]
    if here != deit_zoo.__version__:
        warnings.warn(
            f"deit_zoo {deit_zoo.__version__} from {deit_zoo.__file__} was imported already and "
            f"serves this call; torch.hub holds {here}",
            stacklevel=3,
        )
    return deit_zoo


def _entry(name, spec):
    """An entry point for one name of a model."""

    def entry(pretrained: bool = True, **kwargs):
        return create(name, pretrained=pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = _docstring(name, spec)
    return entry


def _docstring(name, spec):
    """What torch.hub.help prints: what it is, how good, with which transform, an example."""
    from deit_zoo.manifest import read_manifest

    record = read_manifest().get(spec.name)
    lines = [
        f"{spec.name} ({spec.source}): {spec.num_params:,} parameters, {spec.gmacs:g} GMACs.",
    ]
    if record is not None and record.metric is not None:
        lines.append(
            f"Top-1 {record.metric.top1:g} % at {spec.img_size} pixels with crop_pct "
            f"{record.crop_pct:g}, {record.interpolation} ({record.metric.source})."
        )
    lines += [
        "",
        "Arguments: pretrained (bool, True): with weights, in eval mode; False: random weights,",
        "in train mode. Keywords of deit_zoo.create: checkpoint, num_classes, img_size, in_chans,",
        "drop_path_rate, device, dtype.",
        "",
        f'    model = torch.hub.load("org/deit", "{name}", trust_repo=True)',
    ]
    return "\n".join(lines)


def _entries():
    """Every entry point by its name."""
    from deit_zoo.registry import MODELS

    entries = {}
    for spec in MODELS.values():
        for name in (spec.name, *spec.aliases[:2]):  # upstream's and, of DeiT, a short one
            if name.isidentifier():
                entries[name] = _entry(name, spec)
    return entries


globals().update(_entries())
