"""Every test: no network but loopback, caches of its own, one thread, a seeded random state."""

from __future__ import annotations

import os
import signal
import socket
import tempfile

import pytest
import torch

pytest_plugins = ["support.hub_fixtures", "support.run_fixtures"]

# Before anything imports huggingface_hub: a test that reaches for the Hub must fail, not fetch.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor may it read or write what the user has cached, or send the user's token.
CACHES = tempfile.TemporaryDirectory(prefix="deit_zoo_tests_")
os.environ["HF_HOME"] = f"{CACHES.name}/huggingface"
os.environ["DEIT_ZOO_CACHE"] = f"{CACHES.name}/deit_zoo"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{CACHES.name}/torchinductor"
for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "DEIT_ZOO_VERIFY", "DEIT_ZOO_MANIFEST"):
    os.environ.pop(name, None)

# One thread for each process: more than there are cores get in each other's way.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to anything but this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            host = address[0] if isinstance(address, tuple) else str(address)
            assert host in {"127.0.0.1", "::1", "localhost"}, f"a test tried to reach {address}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def same_random_state() -> None:
    """Seed torch before each test."""
    torch.manual_seed(0)
