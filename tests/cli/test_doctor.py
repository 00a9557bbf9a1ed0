"""`deit-zoo doctor` says what a machine has, and what to type where it has it not."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from deit_zoo.machine import usable_cores
from support.command import deit_zoo, sentence
from support.hub_server import HubServer

NOWHERE = "http://127.0.0.1:9"  # discard, to which nobody listens


def test_a_machine_in_order_is_exit_0(tmp_path: Path) -> None:
    with HubServer() as hub:
        done = deit_zoo("doctor", env=hub.environment(tmp_path))
    assert done.status == 0, done.out + done.err
    names = [line.split("  ")[0] for line in done.out.splitlines() if not line.startswith(" ")]
    assert list(dict.fromkeys(names)) == [  # several GPUs have a line each
        *("deit_zoo", "Python", "torch", "GPU", "computes", "cores", "compiler"),
        *("extra train", "extra hfds", "extra remote", "extra export", "extra serve", "loading"),
        *("cache", "Hub's cache", "shared memory", "Hub"),
    ]
    assert "answers in" in done.out.splitlines()[-1]


def test_each_line_that_could_be_better_says_what_to_do(tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["DEIT_ZOO_WEIGHTS"] = str(tmp_path / "absent")
    done = deit_zoo("doctor", "--no-network", "--json", env=environment)
    lines = {line["name"]: line for line in json.loads(done.out)}
    if usable_cores() > 1:
        assert lines["cores"]["todo"] == "OMP_NUM_THREADS is 1: unset it to use all cores"
    assert lines["carried"]["found"] == f"no weights in {tmp_path / 'absent'}"
    assert lines["carried"]["todo"].startswith(f"{tmp_path / 'absent'} is no folder: set DEIT_ZOO")
    assert (done.status, lines["carried"]["wrong"]) == (1, True)


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_type(tmp_path: Path) -> None:
    # A mirror's password is nobody's business, least of all a bug report's.
    mirror = NOWHERE.replace("://", "://me:SECRET@")
    environment = {"HF_ENDPOINT": mirror, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = deit_zoo("doctor", "--json", env=environment)
    [hub] = [line for line in json.loads(done.out) if line["name"] == "Hub"]
    assert (done.status, hub["wrong"]) == (1, True)
    assert (
        hub["found"] == f"{NOWHERE.replace('://', '://***@')} cannot be reached (ConnectionError)"
    )
    assert "weights fetch NAME --to DIR" in hub["todo"]
    assert "SECRET" not in done.out + done.err


def test_certificates_that_are_not_there_are_told_among_the_other_lines(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": "https://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment |= {"HF_HUB_OFFLINE": "0", "SSL_CERT_FILE": str(tmp_path / "none.pem")}
    done = deit_zoo("doctor", "--json", env=environment)
    line = json.loads(done.out)[-1]
    assert line["found"] == "cannot be asked"
    assert str(tmp_path / "none.pem") in line["todo"]


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("socks://me:SECRET@127.0.0.1:1080/", "Unknown scheme for proxy URL"),
        ("http://me:SECRET/word@127.0.0.1:3128", "InvalidURL"),
    ],
)
def test_a_proxy_that_the_hubs_client_cannot_take_is_told_among_the_other_lines(
    proxy: str, reason: str, tmp_path: Path
) -> None:
    with HubServer() as hub:
        environment = hub.environment(tmp_path) | {"ALL_PROXY": proxy}
        done = deit_zoo("doctor", "--json", env=environment)
    [line] = [line for line in json.loads(done.out) if line["name"] == "Hub"]
    assert (done.status, line["wrong"]) == (1, True)
    assert line["todo"].startswith(reason)
    assert "give a proxy as http://, https://, socks5:// or socks5h://" in line["todo"]
    assert "SECRET" not in done.out + done.err


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("HF_ENDPOINT", "http://[bad", "Invalid IPv6 URL"),
        ("HF_ENDPOINT", "http://127.0.0.1:99999", "Port out of range 0-65535"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "30s", "invalid literal for int() with base 10: '30s'"),
    ],
)
def test_a_variable_that_the_hubs_library_cannot_read_is_named(
    name: str, value: str, reason: str
) -> None:
    # Python's own words for what cannot be parsed.
    told = sentence(deit_zoo("weights", "fetch", "deit_tiny", server="light", env={name: value}))
    assert told.startswith(f"huggingface_hub cannot read one of its variables ({reason}); mend or")
    assert name in told


def test_a_variable_that_the_hubs_library_cannot_read_is_no_end_of_the_other_lines() -> None:
    done = deit_zoo("doctor", "--json", env={"HF_ENDPOINT": "http://[bad"})
    hub = json.loads(done.out)[-1]
    assert (hub["name"], hub["wrong"], "HF_ENDPOINT" in hub["todo"]) == ("Hub", True, True)


def test_a_page_of_a_proxy_is_not_taken_for_the_hub(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as proxy:
        Thread(target=proxy.serve_forever).start()
        address = f"http://127.0.0.1:{proxy.server_port}"
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        done = deit_zoo("doctor", "--json", env=environment)
        proxy.shutdown()
    [hub] = [line for line in json.loads(done.out) if line["name"] == "Hub"]
    assert (done.status, hub["wrong"]) == (1, True)
    assert hub["found"] == f"{address} answers 501, not as a Hub does"


def test_a_carried_record_that_is_broken_is_told_and_stops_no_list(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "checkpoint.json").write_text("{broken")
    environment = {"DEIT_ZOO_WEIGHTS": str(tmp_path)}
    done = deit_zoo("doctor", "--no-network", "--json", env=environment)
    first = next(line for line in json.loads(done.out) if line["name"] == "carried")
    assert first["found"].startswith(f"{tmp_path / 'checkpoint.json'} is not JSON")
    assert (done.status, deit_zoo("list", env=environment).status) == (1, 0)


def test_without_a_network_nothing_is_asked(tmp_path: Path) -> None:
    done = deit_zoo("doctor", "--no-network", env={"HF_HOME": str(tmp_path)})
    assert (done.status, "Hub  " in done.out) == (0, False)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    environment = {"DEIT_ZOO_CACHE": str(tmp_path / "file" / "cache"), "HF_HOME": str(tmp_path)}
    done = deit_zoo("doctor", "--no-network", env=environment)
    lines = done.out.splitlines()
    [number] = [number for number, line in enumerate(lines) if line.startswith("cache")]
    assert done.status == 1
    assert lines[number + 1].strip() == (
        "→ it cannot be written to: set DEIT_ZOO_CACHE to a folder that can"
    )


def test_help_shows_the_commands_in_groups() -> None:
    shown = deit_zoo("--help", env={"COLUMNS": "100"}).out
    groups = [shown.index(f"─ {name} ─") for name in ("Use", "Train", "Look")]
    assert groups == sorted(groups)
    assert shown.index("doctor") > shown.index("─ Weights and machine ─")


def test_a_private_manifest_needs_no_model_of_ours(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "checkpoints": {}}')
    environment = {"DEIT_ZOO_MANIFEST": str(tmp_path / "manifest.json"), "HF_HOME": str(tmp_path)}
    done = deit_zoo("doctor", "--no-network", env=environment)
    assert (done.status, "loading  " in done.out) == (0, True), done.err
