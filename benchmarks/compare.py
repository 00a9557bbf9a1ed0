"""Our models beside timm, transformers, ONNX Runtime and OpenVINO, with the same weights, in turn.

    python benchmarks/compare.py NAME [ROUNDS] [--models NAME ...]

NAME is a suite, or `models`, which measures --models beside every peer that is installed:

    forward                 the plain forward pass in eval mode, float32, eager, and timm's
    optimized               deit_zoo.optimize in bfloat16; timm, eager and compiled; OpenVINO
    cait                    CaiT and timm's: float32 and bfloat16, each eager and compiled
    train_forward_backward  forward and backward in training mode, float32, eager, and timm's

What is typed wins over the suite's own. A peer that cannot do a case is left out with the reason.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from measuring import arguments_of, write

from deit_zoo.cli.console import Bar
from harness import backends
from harness.compare import BenchmarkConfig, compare
from harness.plot import draw
from harness.report import failures, print_report

SUITES = {
    "forward": BenchmarkConfig(
        models=("deit_tiny", "deit_small", "deit_base", "cait_xxs24_224"),
        precisions=("float32",),
        modes=("eager",),
        peers=("timm",),
        memory=False,
    ),
    "optimized": BenchmarkConfig(
        models=("deit_small", "deit_base"),
        precisions=("bfloat16",),
        modes=("optimized",),
        peers=("timm", "openvino"),
        memory=False,  # each would be compiled once more
    ),
    "cait": BenchmarkConfig(
        models=("cait_xxs24_224", "cait_s24_224", "cait_xxs24_384"),
        batch_sizes=(8,),
        modes=("eager", "compiled"),
        peers=("timm",),
        memory=False,
    ),
    "train_forward_backward": BenchmarkConfig(
        models=("deit_tiny", "deit_small", "cait_xxs24_224"),
        batch_sizes=(8,),
        precisions=("float32",),
        modes=("eager",),
        peers=("timm",),
        train=True,
    ),
}
MODELS = "models"


def options(parser: argparse.ArgumentParser) -> None:
    """What is measured; the names are those of the fields of BenchmarkConfig."""
    parser.add_argument("name", choices=[*SUITES, MODELS])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+")
    parser.add_argument("--modes", nargs="+", help="of ours: eager, compiled, optimized")
    parser.add_argument("--peers", nargs="*", help=", ".join(backends.PEERS))
    parser.add_argument("--img-size", type=int, help="of every model")
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("--seconds", type=float, help="of each turn")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction)
    parser.add_argument("--train", action="store_true", default=None)
    parser.add_argument("--pretrained", action="store_true", default=None)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="images per second as bars")


def config_of(arguments: argparse.Namespace) -> BenchmarkConfig:
    """The suite with what was typed; ZooError for a peer that is unknown or not installed."""
    typed: dict[str, Any] = {
        field.name: value
        for field in fields(BenchmarkConfig)
        if (value := getattr(arguments, field.name)) is not None
    }
    if arguments.peers is not None:
        typed["peers"] = backends.chosen(arguments.peers)
    if arguments.name == MODELS:
        everyone = {"models": ("deit_tiny", "deit_small"), "peers": backends.chosen(None)}
        return BenchmarkConfig(**(everyone | typed))
    return replace(SUITES[arguments.name], **typed)


def main() -> None:
    """Measure, print, write."""
    arguments = arguments_of(__doc__, more=options)
    config = config_of(arguments)
    with Bar("turns") as bar:
        report = compare(config, bar)
    more = {key: report[key] for key in ("peaks_gflops", "failed", "seconds")}
    write(
        arguments,
        report["rows"],
        report["ratios"],
        name=arguments.name,
        device=config.device,
        **more,
    )
    print_report(report)
    if arguments.plot:
        draw(report, arguments.plot)
    for sentence in failures(report):
        print("left out:", sentence)


if __name__ == "__main__":
    main()
