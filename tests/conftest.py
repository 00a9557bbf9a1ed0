"""Every test: no network but loopback, caches of its own, one thread, a seeded random state."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import ExitStack

import pytest
import torch

from support.command import fork_servers
from support.fork_server import make_commands_once, refuse_the_network

pytest_plugins = ["support.hub_fixtures", "support.run_fixtures", "support.typed"]

# The workers of a session share the caches and the servers of the process that started them.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Before anything imports huggingface_hub: a test that reaches for the Hub must fail, not fetch.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor may it read or write what the user has cached, or send the user's token.
if not IS_WORKER:
    CACHES = tempfile.TemporaryDirectory(prefix="deit_zoo_tests_")
    os.environ["HF_HOME"] = f"{CACHES.name}/huggingface"
    os.environ["DEIT_ZOO_CACHE"] = f"{CACHES.name}/deit_zoo"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{CACHES.name}/torchinductor"
for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "DEIT_ZOO_VERIFY", "DEIT_ZOO_MANIFEST"):
    os.environ.pop(name, None)

# One thread for each process: more than there are cores get in each other's way.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C and Ctrl-\\, one under nohup hangups, and so would every
# process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGQUIT", "SIGHUP"):
    if (number := getattr(signal, name, None)) and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


refuse_the_network()
make_commands_once()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the servers that fork the processes of tests."""
    if not IS_WORKER:
        servers = ExitStack()
        servers.enter_context(fork_servers())
        config.add_cleanup(servers.close)


@pytest.fixture(autouse=True)
def same_random_state() -> None:
    """Seed torch before each test."""
    torch.manual_seed(0)
