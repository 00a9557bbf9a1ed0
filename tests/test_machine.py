"""The device and the cores of a process, and what a device multiplies fastest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch

from deit_zoo import machine

CPU = torch.device("cpu")
AMX = frozenset({"avx2", "avx512_bf16", "amx_tile", "amx_bf16"})


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that the system lends the tiles of AMX, without a limit of oneDNN's."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(machine, "_requests_tiles", lambda: True)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        (frozenset(), None),
        (frozenset({"sse2", "avx2"}), {}),
        (frozenset({"avx2", "avx512f", "avx512_bf16"}), {}),
        (AMX, {"bfloat16": "AMX"}),
        (AMX | {"amx_fp16"}, {"bfloat16": "AMX", "float16": "AMX"}),
    ],
)
def test_a_processor_is_known_by_its_flags(
    monkeypatch: pytest.MonkeyPatch, flags: frozenset[str], fast: dict[str, str] | None
) -> None:
    monkeypatch.setattr(machine, "_cpu_flags", lambda: flags)
    assert machine.fast_dtypes(CPU) == fast


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    ("limit", "usable"),
    [
        ("ALL", True),
        ("avx512_core_amx", True),
        ("AVX512_CORE_BF16", False),
        ("AVX2", False),
    ],
)
def test_a_limit_of_the_library_is_kept(
    monkeypatch: pytest.MonkeyPatch, limit: str, usable: bool
) -> None:
    monkeypatch.setattr(machine, "_cpu_flags", lambda: AMX)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.fastest_dtype(CPU)[0] == ("bfloat16" if usable else "float32")


@pytest.mark.usefixtures("tiles")
def test_a_process_without_the_tiles_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_flags", lambda: AMX)
    monkeypatch.setattr(machine, "_requests_tiles", lambda: False)
    assert machine.fastest_dtype(CPU) == ("float32", "no units for 16 bits")


@pytest.mark.parametrize(
    ("capability", "fast"),
    [
        ((6, 1), {}),
        ((7, 5), {"float16": "CUDA capability 7.5"}),
        ((8, 0), {"bfloat16": "CUDA capability 8.0", "float16": "CUDA capability 8.0"}),
        ((10, 3), {"bfloat16": "CUDA capability 10.3", "float16": "CUDA capability 10.3"}),
    ],
)
def test_a_cuda_gpu_is_known_by_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: dict[str, str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 1)
    assert machine.fast_dtypes(device) == fast
    assert machine.fastest_dtype(device)[0] == next(iter(fast), "float32")


def test_an_apple_gpu_computes_in_float32() -> None:
    device = torch.device("mps")
    assert machine.fastest_dtype(device) == ("float32", "no known units for 16 bits")
    assert not machine.has_compiler(device)


def test_the_flags_of_this_processor_are_read() -> None:
    flags = machine._cpu_flags()
    assert not flags or "sse2" in flags


@pytest.mark.parametrize(
    ("gpus", "apple", "best"), [(2, True, "cuda:1"), (0, True, "mps:0"), (0, False, "cpu")]
)
def test_the_best_device_is_a_cuda_gpu_else_apples_else_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, apple: bool, best: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)  # the one that the caller chose
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    assert str(machine.usable_device("auto")) == best


@pytest.mark.parametrize(
    ("lines", "files", "cores"),
    [
        # docker run --cpus 2.5, by the second version of cgroups.
        (["0::/"], {"cpu.max": "250000 100000"}, 2),
        (["0::/"], {"cpu.max": "max 100000"}, 64),
        (["0::/"], {"cpu.max": "20000 100000"}, 1),
        # The quota of a parent binds its children.
        (["0::/a/b"], {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4),
        # The first version; -1 is no quota.
        (["2:cpu,cpuacct:/x"], {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000"}, 3),
        (["2:cpu,cpuacct:/x"], {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1"}, 64),
        # A container sees its own cgroup as the root, under the path that the host has for it.
        (["0::/docker/4711"], {"cpu.max": "700000 100000"}, 7),
        (["4:memory:/x", "0::/"], {}, 64),
    ],
)
def test_the_cores_are_those_of_the_affinity_and_of_the_cgroups_quota(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lines: list[str],
    files: dict[str, str],
    cores: int,
) -> None:
    for name, text in files.items():
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        (file.parent / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "own").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "tree")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert machine.usable_cores() == cores


def test_a_context_that_is_left_while_another_is_entered_holds_nothing_up() -> None:
    left = machine.without_warnings()  # as the garbage collector leaves a generator's
    left.__enter__()

    @machine.shared
    def other() -> Iterator[None]:
        left.__exit__(None, None, None)
        yield

    entering = Thread(target=other().__enter__, daemon=True)
    entering.start()
    entering.join(10)
    assert not entering.is_alive()


HOMES = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")


def test_a_picture_is_drawn_without_a_word_where_there_is_no_home(tmp_path: Path) -> None:
    # A process of its own: matplotlib looks for its folder once, when it is imported.
    home = tmp_path / "file"
    home.touch()
    code = "from deit_zoo.machine import require_matplotlib; require_matplotlib()"
    environment = {k: v for k, v in os.environ.items() if k not in HOMES} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
