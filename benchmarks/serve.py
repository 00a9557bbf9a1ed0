"""`deit-zoo serve` beside `classify`: the same photographs, as requests and as files.

    python benchmarks/serve.py [ROUNDS] [--threads N] [--model deit_tiny] [--images N] [--clients N]

A request is one image; every twentieth is cut off. The clients are threads of this process, on the
same cores as the service, and their work counts against it. Both have one optimized copy, as many
threads of torch and as many that read. Rounds are interleaved, medians are printed; each answer is
compared with that of `classify`. The service's memory is read after each round. Processor time
is what other work on the machine changes least; of `serve` it is the service's, and the clients' is
told beside it. The weights are random: what a model costs does not depend on them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from classify import SIZE, write_photographs
from measuring import arguments_of, write

import deit_zoo
from deit_zoo.data.prefetch import default_threads
from deit_zoo.errors import DataError
from deit_zoo.results import Prediction
from harness.timing import rotated

BROKEN_EVERY = 20
WARM = 96  # images that make all ready, before anything is measured
CLOSE = 1e-4  # of a probability: batches differ, and with them the order of sums
CLASSIFY, SERVE, CLIENTS = "classify --fast", "serve", "its clients"
CPU = "process_cpu_seconds_total"
Answers = list[list[Prediction] | DataError]


@contextmanager
def served(weights: Path, threads: int, workers: int) -> Iterator[tuple[str, int]]:
    """Host and port of a service that runs."""
    words = ["-m", "deit_zoo", "serve", str(weights), "--port", "0", "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, *words, "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        while not (found := re.search(r"answers at (\S+)/", process.stderr.readline())):
            assert process.poll() is None
        where = urlsplit(found[1])
        yield where.hostname or "", where.port or 0
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def ask_all(where: tuple[str, int], files: list[Path], clients: int) -> list[tuple[int, Any]]:
    """Status and answer of each file, one to a request, by clients that keep their connections."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(files)):
        waiting.put(number)
    answers: list[tuple[int, Any]] = [(0, None)] * len(files)

    def work() -> None:
        connection = http.client.HTTPConnection(*where)
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                break
            connection.request("POST", "/classify", files[number].read_bytes())
            response = connection.getresponse()
            answers[number] = response.status, json.loads(response.read())
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        for one in [pool.submit(work) for _ in range(clients)]:
            one.result()
    return answers


def judged(answers: list[tuple[int, Any]], expected: Answers) -> tuple[int, int]:
    """How many answers are right, and how many are errors that are due."""
    right = errors = 0
    for (status, body), known in zip(answers, expected, strict=True):
        if isinstance(known, DataError):
            errors += status == 422 and body[0]["error"].startswith("body cannot be read")
            continue
        best = {one["index"]: one["probability"] for one in body[0].get("predictions", ())}
        same = [abs(best.get(one.index, 2.0) - one.probability) < CLOSE for one in known[:1]]
        right += status == 200 and all(same)
    return right, errors


def figure(where: tuple[str, int], name: str) -> float:
    """What GET /metrics says."""
    connection = http.client.HTTPConnection(*where)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def main() -> None:
    """Measure, print, and write the results where asked."""
    arguments = arguments_of(__doc__, rounds=5, more=_more)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = deit_zoo.create(arguments.model).eval()
    fast = deit_zoo.optimize(model, compile=False)
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / "model.safetensors"
        deit_zoo.save(model, weights)
        files = write_photographs(Path(name), arguments.images)
        for file in files[::BROKEN_EVERY]:
            file.write_bytes(file.read_bytes()[:1000])
        with served(weights, arguments.threads, arguments.workers) as where:
            warm = measured(0, where, files[:WARM], fast, arguments)
            rounds = [
                measured(number, where, files, fast, arguments)
                for number in range(arguments.rounds)
            ]
            sizes = (figure(where, f"deit_zoo_batch_size_{part}") for part in ("sum", "count"))
            total, batches = sizes
    report(warm, rounds, len(files), total / batches, arguments)


def measured(
    number: int,
    where: tuple[str, int],
    files: list[Path],
    fast: Any,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One round: seconds and processor seconds of either, and what the service answered."""
    found: dict[str, Any] = {}
    for what in rotated([CLASSIFY, SERVE], number):
        started, own, its = time.perf_counter(), time.process_time(), figure(where, CPU)
        if what == CLASSIFY:
            expected: Answers = deit_zoo.classify(files, fast, workers=arguments.workers)
            found[f"cpu {CLASSIFY}"] = time.process_time() - own
        else:
            answers = ask_all(where, files, arguments.clients)
            found[f"cpu {CLIENTS}"] = time.process_time() - own
            found[f"cpu {SERVE}"] = figure(where, CPU) - its
        found[what] = time.perf_counter() - started
    found["right"], found["errors"] = judged(answers, expected)
    found["memory"] = figure(where, "process_resident_memory_bytes") / 2**20
    return found


def report(
    warm: dict[str, Any],
    rounds: list[dict[str, Any]],
    count: int,
    batch_size: float,
    arguments: argparse.Namespace,
) -> None:
    """Print the medians, and write them where asked."""
    broken = len(range(0, count, BROKEN_EVERY))
    print(
        f"{arguments.model} on the CPU, {os.cpu_count()} cores, {arguments.threads} threads of "
        f"torch, {arguments.workers} that read, {arguments.clients} clients; {count} JPEGs of "
        f"{SIZE[0]}x{SIZE[1]}, {broken} of them cut off"
    )
    rows: list[dict[str, Any]] = []
    for what in (CLASSIFY, SERVE, CLIENTS):
        rate = count / statistics.median(one[what] for one in rounds) if what != CLIENTS else None
        cpu = 1000 * statistics.median(one[f"cpu {what}"] for one in rounds) / count
        rows.append({"what": what, "images_per_second": rate, "cpu_ms_per_image": cpu})
        print(
            f"{what:24}{'' if rate is None else f'{rate:.1f} images/s':>18}{cpu:10.2f} ms of a core"
        )
    ratios = {
        "serve / classify": statistics.median(one[CLASSIFY] / one[SERVE] for one in rounds),
        "serve / classify, by processor time": statistics.median(
            one[f"cpu {CLASSIFY}"] / one[f"cpu {SERVE}"] for one in rounds
        ),
    }
    for name, ratio in ratios.items():
        print(f"{name:38}{ratio:8.3f}")
    memory = [one["memory"] for one in (warm, *rounds)]
    right, errors = (sum(one[key] for one in rounds) for key in ("right", "errors"))
    print(
        f"right answers {right} of {len(rounds) * (count - broken)}, errors {errors} of "
        f"{len(rounds) * broken}; {batch_size:.1f} images to a batch"
    )
    print("the service's memory at first and after each round, MiB:", *map(round, memory))
    found = {"right": right, "errors": errors, "memory_mb": memory, "batch_size": batch_size}
    asked = {"workers": arguments.workers, "clients": arguments.clients, "num_images": count}
    write(arguments, rows, ratios, model=arguments.model, **asked, **found)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=default_threads())


if __name__ == "__main__":
    main()
