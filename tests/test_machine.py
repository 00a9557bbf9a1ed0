"""What a device multiplies fastest, known from its capabilities."""

from __future__ import annotations

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
