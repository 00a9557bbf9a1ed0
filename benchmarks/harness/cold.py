"""Cold start: from the start of a process to its first prediction, ours and the peers'.

Each process imports, loads one model, reads one JPEG file, and prints the class that it predicts,
the way each library documents it. The file of weights is in the disk's cache; ours is a published
one in the cache of the Hub, and timm is given its path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from deit_zoo.inference.throughput import OURS, Case
from deit_zoo.registry import MODELS
from deit_zoo.registry.names import resolve
from harness import backends
from harness.published import published
from harness.timing import ChildError, rotated

WEIGHTS = "model.safetensors"

# argv: the model, its weights, the image, the number of threads. Imports that a call would make
# are made before the load's clock starts. The peak is read last, after the answer is out.
_OURS = """
import sys, time
name, weights, image, threads = sys.argv[1:]
import torch
torch.set_num_threads(int(threads))
from PIL import Image
import deit_zoo, deit_zoo.data.transforms, deit_zoo.weights.load, deit_zoo.weights.fetch
from deit_zoo.models import cait, deit
started = time.perf_counter()
model = deit_zoo.create(name, pretrained=True)
loaded = time.perf_counter() - started
transform = deit_zoo.transform(model)
with torch.inference_mode():
    answer = int(model(transform(Image.open(image))[None]).argmax())
"""
_TIMM = """
import sys, time
name, weights, image, threads = sys.argv[1:]
import torch
torch.set_num_threads(int(threads))
from PIL import Image
import timm
started = time.perf_counter()
model = timm.create_model(name, checkpoint_path=weights).eval()
loaded = time.perf_counter() - started
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.inference_mode():
    answer = int(model(transform(Image.open(image)).unsqueeze(0)).argmax())
"""
_TRANSFORMERS = """
import sys, time
name, weights, image, threads = sys.argv[1:]
import torch
torch.set_num_threads(int(threads))
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
started = time.perf_counter()
model = AutoModelForImageClassification.from_pretrained(weights)
loaded = time.perf_counter() - started
processor = AutoImageProcessor.from_pretrained(weights)
with torch.inference_mode():
    answer = int(model(**processor(Image.open(image), return_tensors="pt")).logits.argmax())
"""
_LAST = """
import json
print(json.dumps({"answer": answer, "load_seconds": loaded}), flush=True)
from deit_zoo.machine import peak_mb
print(json.dumps({"peak_mb": peak_mb()}))
"""
PROGRAMS = {OURS: _OURS, "timm": _TIMM, "transformers": _TRANSFORMERS}
MEASURED = ("seconds", "load_seconds", "peak_mb")


def cold_starts(
    models: Sequence[str],
    *,
    peers: Sequence[str],
    rounds: int,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Rows of medians over rounds of fresh processes in turn, ratios, and who failed.

    A ratio is ours to the peer's: below 1 we take less. The first round warms the disk's cache.
    """
    who = [name for name in PROGRAMS if name == OURS or name in peers]
    total, done = len(models) * len(who) * (rounds + 1), 0
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    failed: list[dict[str, Any]] = []
    for model in dict.fromkeys(resolve(name).name for name in models):
        answers: dict[str, list[dict[str, Any]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            commands, environment = _prepared(model, who, Path(folder), threads, failed)
            for number in range(rounds + 1):
                for name in rotated(list(commands), number):
                    measured = first_prediction(commands[name], environment)
                    if number:
                        answers.setdefault(name, []).append(measured)
                    done += 1
                    progress(done, total)
        for name in commands:
            rows.append({"model": model, "who": name} | _medians(answers[name]))
        for name in answers.keys() - {OURS}:
            ratios[f"{model}, to {name}"] = _ratios(answers[OURS], answers[name])
    return {"rows": rows, "ratios": ratios, "failed": failed}


def first_prediction(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Seconds from the start of the process to its answer, what it took to load, and its peak.

    Variables of the `environment` are added. Raises ChildError where there is no answer.
    """
    with tempfile.TemporaryFile("w+") as talk:  # a full pipe would stop the process
        started = time.perf_counter()
        with subprocess.Popen(
            command,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=talk,
            text=True,
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - started
            rest = process.stdout.read()
        if process.returncode:
            talk.seek(0)
            raise ChildError((talk.read().strip() or "it said nothing").splitlines()[-1])
    return {"seconds": seconds} | json.loads(line) | json.loads(rest)


def _prepared(
    model: str, who: Sequence[str], folder: Path, threads: int, failed: list[dict[str, Any]]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The files, the commands that use them and the variables that name them; a peer that has no
    such model is left out."""
    spec = resolve(model)
    case = Case(model=model, img_size=(spec.img_size, spec.img_size))
    network: Any = backends.plain(case)
    image = folder / "photo.jpg"
    _photo(image)
    commands = {}
    for name in who:
        try:
            own_name, weights = _saved(name, case, network, folder)
        except backends.UnsupportedError as error:
            failed.append({"model": model, "who": name, "mode": "", "reason": str(error)})
            continue
        program = PROGRAMS[name] + _LAST
        commands[name] = [sys.executable, "-c", program, own_name, str(weights), str(image)]
        commands[name].append(str(threads))
    return commands, _cached(model, folder)


def _cached(model: str, folder: Path) -> dict[str, str]:
    """Put the weights into the Hub's cache as a user's first call does; what finds them there."""
    if MODELS[model].labels == "digits":  # inside the package
        return {}
    with published(model, (folder / WEIGHTS).read_bytes(), folder) as (_, environment):
        call = f"import deit_zoo; deit_zoo.create({model!r}, pretrained=True)"
        subprocess.run([sys.executable, "-c", call], env=os.environ | environment, check=True)
    return environment


def _saved(who: str, case: Case, network: Any, folder: Path) -> tuple[str, Path]:
    """What a library calls the model, and where its weights lie."""
    from deit_zoo.weights import load

    file = folder / WEIGHTS
    if not file.exists():
        load.save_model(network, file)
    if who == OURS:
        return case.model, file
    if who == "timm":
        return backends.timm_name(resolve(case.model)), file
    saved = folder / "transformers"
    with backends.quiet():
        backends.save_transformers(case, network.state_dict(), saved)
    return case.model, saved


def _photo(file: Path) -> None:
    """A JPEG file of 500x375 pixels, as large as ImageNet's usually are: a sweep with noise."""
    from PIL import Image

    size = (500, 375)
    sweeps = [Image.linear_gradient("L"), Image.radial_gradient("L")]
    channels = [*(one.resize(size) for one in sweeps), Image.effect_noise(size, 60)]
    Image.merge("RGB", channels).save(file, quality=90)


def _medians(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    medians: dict[str, Any] = {}
    for key in MEASURED:
        values = [one[key] for one in measured]
        medians[key] = None if None in values else median(values)
    return medians | {"answer": measured[0]["answer"]}


def _ratios(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        key: median(our[key] / their[key] for our, their in zip(ours, theirs, strict=True))
        for key in MEASURED
        if None not in (ours[0][key], theirs[0][key])
    }
