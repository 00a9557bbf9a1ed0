"""Trains the embedded checkpoints and records them: `python -m deit_zoo.assets.make_models`.

The teacher comes first, since the distilled model learns from its record. Needs a checkout.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from deit_zoo.files import digest, write_whole
from deit_zoo.manifest import manifest_path
from deit_zoo.registry import MODELS

HERE = Path(__file__).parent
NAMES = ("convnet_pico_digits", "deit_pico_digits", "deit_pico_distilled_digits")


def main() -> None:
    """Train each from nothing, keep its files here and its figures in the manifest."""
    from deit_zoo.training.launch import reproduce

    for name in NAMES:
        write_record(name, "0" * 64, dict.fromkeys(("top1", "top5", "loss", "source")))
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            reached = reproduce(name, gpus=0, output=run).reached
            for file, suffix in (
                ("model.safetensors", "safetensors"),
                ("log.jsonl", "log.jsonl"),
                ("receipt.json", "receipt.json"),
            ):
                shutil.copy(run / file, HERE / f"{name}.{suffix}")
        metric = {
            "top1": round(reached.top1, 3),
            "top5": round(reached.top5, 3),
            "loss": round(reached.loss, 4),
            "source": f"deit-zoo reproduce {name} --gpus 0",
        }
        write_record(name, digest(HERE / f"{name}.safetensors"), metric)


def write_record(name: str, sha256: str, metric: dict[str, Any]) -> None:
    """Put the record of an embedded model into the manifest."""
    data = json.loads(manifest_path().read_text(encoding="utf-8"))
    spec = MODELS[name]
    data["checkpoints"][name] = {
        "sources": [{"kind": "builtin", "filename": f"{name}.safetensors", "sha256": sha256}],
        "num_params": spec.num_params,
        "num_classes": spec.num_classes,
        "labels": spec.labels,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "metrics": {"digits_val": metric},
        "origin": "reproduced",
        "license": "apache-2.0",
        "paper": "arXiv:2012.12877" if spec.family == "deit" else None,
        "log": f"{name}.log.jsonl",
    }
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    write_whole(manifest_path(), text.encode())


if __name__ == "__main__":
    main()
