"""`deit-zoo doctor` says what a machine has, and what to type where it has it not."""

from __future__ import annotations

import json
from pathlib import Path

from support.command import deit_zoo
from support.hub_server import HubServer

NOWHERE = "http://127.0.0.1:9"  # discard, to which nobody listens


def test_a_machine_in_order_is_exit_0(tmp_path: Path) -> None:
    with HubServer() as hub:
        done = deit_zoo("doctor", env=hub.environment(tmp_path))
    assert done.status == 0, done.out + done.err
    names = [line.split("  ")[0] for line in done.out.splitlines()]
    assert names[:4] == ["deit_zoo", "torch", "computes", "cores"]
    assert "answers in" in done.out.splitlines()[-1]


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_type(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": NOWHERE, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = deit_zoo("doctor", "--json", env=environment)
    [hub] = [line for line in json.loads(done.out) if line["name"] == "Hub"]
    assert (done.status, hub["wrong"]) == (1, True)
    assert hub["found"] == f"{NOWHERE} cannot be reached (ConnectionError)"
    assert "weights fetch NAME --to DIR" in hub["todo"]


def test_without_a_network_nothing_is_asked(tmp_path: Path) -> None:
    done = deit_zoo("doctor", "--no-network", env={"HF_HOME": str(tmp_path)})
    assert (done.status, "Hub  " in done.out) == (0, False)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    environment = {"DEIT_ZOO_CACHE": str(tmp_path / "file" / "cache"), "HF_HOME": str(tmp_path)}
    done = deit_zoo("doctor", "--no-network", env=environment)
    [line] = [line for line in done.out.splitlines() if line.startswith("cache")]
    assert done.status == 1
    assert line.endswith("it cannot be written to: set DEIT_ZOO_CACHE to a folder that can")


def test_help_shows_the_commands_in_groups() -> None:
    shown = deit_zoo("--help", env={"COLUMNS": "100"}).out
    groups = [shown.index(f"─ {name} ─") for name in ("Use", "Train", "Look")]
    assert groups == sorted(groups)
    assert shown.index("doctor") > shown.index("─ Weights and machine ─")
