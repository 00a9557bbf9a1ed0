"""What this machine can do: its devices, its cores, its compiler."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, ParamSpec

from deit_zoo.errors import MissingExtraError, ZooError, check_whole

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
P = ParamSpec("P")
_LOCK = RLock()  # what is collected within may leave a context too
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
    )


def best_device() -> torch.device:
    """The one rule of `auto`: a CUDA GPU, else Apple's, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps", 0) if torch.backends.mps.is_available() else torch.device("cpu")


def usable_device(device: str | torch.device) -> torch.device:
    """A device by its name, of GPUs with its number, also by that alone; `auto` is the best that is
    there.

    Raises ZooError where this machine cannot use it.
    """
    import torch

    if device == "auto":
        return best_device()
    try:
        named = f"cuda:{device}" if str(device).isdigit() else device
        zero = torch.zeros(1, device=torch.device(named))
        zero.item()  # of `meta` there is nothing to read
        return zero.device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        if reason.startswith(("Expected one of", "device()")):  # and more than a person reads
            reason = "torch knows none of this name"
        raise ZooError(
            f"device {str(device)!r} cannot be used here ({reason}); give auto, cpu, or cuda, "
            "cuda:1 or mps where PyTorch finds that GPU"
        ) from error


def usable_cores() -> int:
    """The cores that this process may use: by its affinity, and by the quota of its cgroup."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(affinity or 1, _cgroup_quota())))


def _cgroup_quota() -> float:
    """The cores whose time this process may take, as a container's --cpus says; inf without."""
    try:
        lines = OWN_CGROUPS.read_text("utf-8").splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Of the second version all controllers lie in one tree; a parent's quota binds as well.
        tree = CGROUPS / controllers
        own = tree / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(tree):
                quotas.append(_quota_of(folder))
    return min(quotas)


def _quota_of(folder: Path) -> float:
    """The quota of one cgroup, in either version's files."""
    try:
        if (file := folder / "cpu.max").is_file():
            quota, period = file.read_text("utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("utf-8")
            period = (folder / "cpu.cfs_period_us").read_text("utf-8")
        share = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no quota is "max"
        return math.inf
    return share if share > 0 else math.inf  # in version 1, none is -1


@contextmanager
def restore_process_state() -> Iterator[None]:
    """Restore what a call changes in the process: random states, threads, torch's flags, the
    environment, log levels.
    """
    import numpy as np
    import torch

    cuda = torch.backends.cuda
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    random_states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_gpus = torch.cuda.get_rng_state_all() if on_gpu else []
    threads, variables = torch.get_num_threads(), dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fused = cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    loggers = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    try:
        yield
    finally:
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        torch.set_rng_state(random_states[2])
        torch.cuda.set_rng_state_all(of_gpus)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cuda.enable_mem_efficient_sdp(fused[0])
        cuda.enable_cudnn_sdp(fused[1])
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)


def shared(context: Callable[P, Iterator[None]]) -> Callable[P, AbstractContextManager[None]]:
    """A context that threads share: the first enters it and the last leaves it, as each by itself
    would put back what another has set."""
    entered: dict[tuple[int, ...], list[AbstractContextManager[None]]] = {}

    @contextmanager
    @wraps(context)
    def within(*args: P.args, **kwargs: P.kwargs) -> Iterator[None]:
        with _LOCK:
            entries = entered.setdefault(tuple(map(id, args)), [])
            entry = entries[0] if entries else contextmanager(context)(*args, **kwargs)
            if not entries:
                entry.__enter__()
            entries.append(entry)
        try:
            yield
        finally:
            with _LOCK:
                entry = entries.pop()
                if not entries:
                    entry.__exit__(None, None, None)

    return within


@shared
def without_warnings() -> Iterator[None]:
    """Within it no thread of the process shows a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within it torch has its defaults (float32, CPU, gradients on, no autocast), whatever the
    caller has set.
    """
    import torch

    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            nullcontext() if device.type == "cpu" else torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


def peak_mb(device: torch.device | None = None) -> float | None:
    """The most memory that this process has held, of a GPU where one is given, in MB of 2**20
    bytes; None where nobody says.

    Of a GPU it is what torch reserved, CUDA graphs' share included. On Linux not from getrusage:
    there a process inherits the peak of the one that started it.
    """
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"VmHWM:\s*(\d+)", status.read_text("utf-8"))):
        return int(peak[1]) / 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return None


def cpu_name() -> str:
    """What the processor is called."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:(.*)", info.read_text("utf-8")) if info.is_file() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this code with `+` where files differ from it; None where it is installed."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def missing_compiler() -> str | None:
    """The C++ compiler that torch would call and that is not on the PATH; None where it is."""
    compiler = cxx_compiler()
    words = shlex.split(compiler)  # it may be "ccache g++"
    return None if words and shutil.which(words[0]) else compiler


def require_compiler(what: str, otherwise: str) -> None:
    """Raises ZooError where there is no C++ compiler for what needs one; `otherwise` is the way
    without."""
    if compiler := missing_compiler():
        raise ZooError(
            f"{what} needs a C++ compiler, and {compiler} is not on the PATH; install it, set CXX "
            f"to another, or {otherwise}"
        )


def cxx_compiler() -> str:
    """The C++ compiler that is meant: what CXX says, else the system's usual one."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX") or usual


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Raises MissingExtraError, with what to type, where a module of an extra is not installed."""
    names = [module.split(".")[0] for module in modules]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f"{what} needs {listed}; type: pip install 'deit_zoo[{extra}]'"
            ) from error


def require_matplotlib() -> None:
    """Raises MissingExtraError where no picture can be drawn."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that it does without a home is told at its import
    try:
        require_extra("train", "a picture", "matplotlib.figure")
    finally:
        logger.setLevel(level)


def world_size() -> int | None:
    """The number of processes of which torchrun started this one; None without it."""
    size = os.environ.get("WORLD_SIZE", "") if "RANK" in os.environ else ""
    return int(size) if size.isdecimal() else None


def check_processes(
    gpus: int | None,
    processes: int | None,
    *,
    dashes: str = "",
    error: type[ZooError] = ZooError,
) -> None:
    """Raises `error` where so many cannot be meant; `dashes` stand before a command's options."""
    if gpus and processes is not None:
        raise error(
            f"{dashes}processes {processes} is for the CPU; with {dashes}gpus {gpus} each GPU has "
            "one process"
        )
    if gpus is not None:
        check_whole(f"{dashes}gpus", gpus, 0, "a number of GPUs, or 0 for the CPU", error)
    if processes is not None:
        check_whole(f"{dashes}processes", processes, 1, "1 or more", error)


def check_gpus(
    gpus: int, *, dashes: str = "", error: type[ZooError] = ZooError, advice: str = ""
) -> None:
    """Raises `error` where torch sees fewer GPUs; `advice` is for a machine that has none."""
    import torch

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if usable < gpus:
        raise error(
            f"{dashes}gpus is {gpus}, but torch sees {usable or 'none'} here; give {dashes}gpus "
            f"{usable}{'' if usable else advice}"
        )


def fastest_dtype(device: torch.device) -> tuple[str, str]:
    """The floating-point type that a device multiplies fastest, and the reason."""
    fast = fast_dtypes(device)
    for name, unit in (fast or {}).items():
        return name, unit
    return "float32", "no units for 16 bits" if fast is not None else "no known units for 16 bits"


def fast_dtypes(device: torch.device) -> dict[str, str] | None:
    """The types of 16 bits that a device multiplies faster than float32, best first, and by what.

    None where that is not known: of other processors than those with x86's instructions, and of
    Apple's GPUs, which have no units for 16 bits beside those for 32.
    """
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        # Tensor cores multiply float16 since Volta, bfloat16 since Ampere.
        names = ("bfloat16", "float16")[0 if major >= 8 else 1 :] if major >= 7 else ()
        return dict.fromkeys(names, f"CUDA capability {major}.{minor}")
    flags = _cpu_flags() if device.type == "cpu" else frozenset()
    if not flags:
        return None
    # AVX512-BF16 alone does not suffice: torch's linear layers in it took 1.8 times as long as in
    # float32 (a Xeon with AMX switched off).
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    allowed = "amx_bf16" in flags and (limit in ("ALL", "DEFAULT") or "AMX" in limit)
    if not (allowed and _requests_tiles() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return {}
    return {"bfloat16": "AMX"} | ({"float16": "AMX"} if "amx_fp16" in flags else {})


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: C++ for the CPU, Triton for a CUDA GPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    return device.type == "cpu" and missing_compiler() is None


def _cpu_flags() -> frozenset[str]:
    """The instruction sets of an x86 processor by Linux's names; empty for any other."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _requests_tiles() -> bool:
    """Ask Linux for the tiles' registers, as torch does; a container may forbid it."""
    arch_prctl, request, tile_data = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)
