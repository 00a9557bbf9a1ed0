"""Everything that can go wrong on the way of a file, one row each: outcome, requests, leftovers.

Rows of a Hub source show huggingface_hub's own behaviour, rows of a URL ours. Pauses are noted, not
waited for; each row ends with a fetch that works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from hashlib import md5
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import deit_zoo
from deit_zoo.errors import CheckpointError
from deit_zoo.weights.fetch import fetch_address
from support.hub_server import HubServer
from support.machine import FILE, NAME, PTH, REPO, Machine, hub_source, sha256, told, url_source

FOR_EVER = float("inf")


def slow(*values: int) -> list[Any]:
    """Rows that show huggingface_hub's own behaviour once more."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


HUB_ERRORS = [503, *slow(500, 502, 504)]
CHUNK = 1 << 18  # what the URL downloader writes at once
NO_SOCKETS = """
import socket
def refuse(*arguments):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.getaddrinfo = refuse
"""


@pytest.fixture
def closed() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def url(hub: HubServer) -> str:
    return hub.endpoint + PTH


def methods(hub: HubServer) -> list[str]:
    return [request.method for request in hub.requests]


def works(machine: Machine, weights: bytes) -> None:
    """The fault is gone: the next fetch gives the right file and leaves nothing else."""
    machine.hub.faults.clear()
    assert machine.fetch()["sha256"] == sha256(weights)
    assert machine.leftovers() == []


def downloads(machine: Machine, url: str, pth: bytes) -> None:
    """The fault is gone: the next download gives the right file and leaves nothing else."""
    machine.hub.faults.clear()
    assert machine.download(url)["sha256"] == sha256(pth)
    assert machine.leftovers() == ["pico.pth"]


# No connection.


def test_a_hub_that_refuses_connections_is_given_up_at_once(
    pinned: Machine, closed: str, weights: bytes
) -> None:
    answer = pinned.fetch(HF_ENDPOINT=closed)
    assert answer["error"] == "DownloadError"
    assert "the Hub's org/pico: [Errno 111] Connection refused (127.0.0.1)" in answer["message"]
    assert answer["pauses"] == []
    works(pinned, weights)


# The system looks names up for as long as it likes.
NO_NETWORK = """
import atexit, socket
from deit_zoo.weights import reach
assert reach.REACH_SECONDS <= 3
reach.REACH_SECONDS, reach.PATIENCE_SECONDS = 0.3, 0.6
really = time.sleep
def hang(*arguments, **options):
    really(60)
socket.getaddrinfo = hang
begun = time.monotonic()
atexit.register(lambda: print(json.dumps({"seconds": time.monotonic() - begun})))
"""


def test_without_a_network_it_is_said_at_once_in_one_line(pinned: Machine, weights: bytes) -> None:
    commit = pinned.hub.repositories[REPO].refs["main"]
    source = hub_source(revision=commit, sha256=sha256(weights))
    pinned.publish(source, url_source("https://nobody.invalid/pico.pth"))
    process = pinned.starts(before=NO_NETWORK, instant=False)
    out, err = process.communicate(timeout=50)
    answer, took = (json.loads(line) for line in out.splitlines())
    assert process.returncode == 0
    assert err == ("no answer from 127.0.0.1 in 0.3 seconds; waiting for it, 0.6 seconds at most\n")
    assert "no answer in 0.6 seconds (127.0.0.1)" in answer["message"]
    assert "no answer in 0.6 seconds (nobody.invalid)" in answer["message"]
    assert answer["message"].endswith("bring DIR here and set DEIT_ZOO_WEIGHTS=DIR")
    assert "\n" not in answer["message"]
    assert took["seconds"] < 30


@pytest.fixture
def silent() -> Iterator[str]:
    """An address whose host drops all packets: nobody accepts, and its queue is full."""
    with socket.socket() as held, ExitStack() as queue:
        held.bind(("127.0.0.1", 0))
        held.listen(0)
        for _ in range(2):
            client = queue.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(held.getsockname())
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


DROPPED = """
from deit_zoo.weights import reach
assert reach.CONNECT_SECONDS <= 5
reach.REACH_SECONDS, reach.CONNECT_SECONDS = 0.1, 0.5
"""


def test_a_server_whose_packets_are_dropped_is_given_up_in_seconds(
    pinned: Machine, silent: str, weights: bytes
) -> None:
    begun = time.monotonic()
    answer = pinned.fetch(before=DROPPED, HF_ENDPOINT=silent)
    assert "the Hub's org/pico: no answer in 0.5 seconds (127.0.0.1)" in answer["message"]
    assert time.monotonic() - begun < 10
    works(pinned, weights)


# The first of the resolver's servers is dead: names are known once it has been given up.
SLOW_NAMES = """
import socket
from deit_zoo.weights import reach
reach.REACH_SECONDS = 0.05
really, look_up = time.sleep, socket.getaddrinfo
def late(*arguments, **options):
    really(0.5)
    return look_up(*arguments, **options)
socket.getaddrinfo = late
"""


def test_a_resolver_that_is_slow_to_answer_is_waited_for(pinned: Machine, weights: bytes) -> None:
    process = pinned.starts(before=SLOW_NAMES, instant=False)
    out, err = process.communicate(timeout=50)
    assert json.loads(out)["sha256"] == sha256(weights)
    assert err.startswith("no answer from 127.0.0.1 in 0.05 seconds; waiting for it")


def test_a_url_that_refuses_connections_is_tried_twice(machine: Machine, closed: str) -> None:
    answer = machine.download(closed + PTH)
    assert "Connection refused" in answer["message"]
    assert answer["message"].endswith("(2 attempts)")
    assert answer["pauses"] == [1.0]
    assert machine.leftovers() == []


def test_a_host_without_an_address_is_tried_twice(machine: Machine) -> None:
    answer = machine.download("http://nobody.invalid/pico.pth")
    assert "nobody.invalid" in answer["message"]
    assert answer["message"].endswith("(2 attempts)")
    assert answer["pauses"] == [1.0]


def test_the_next_source_serves_when_one_refuses(
    machine: Machine, closed: str, url: str, pth: bytes, weights: bytes
) -> None:
    machine.publish(hub_source(), url_source(url, sha256(pth)[:8]))
    assert machine.fetch(HF_ENDPOINT=closed)["sha256"] == sha256(weights)
    assert methods(machine.hub) == ["GET"]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        pytest.param(
            "ALL_PROXY",
            "socks5://127.0.0.1:1080",
            "a SOCKS proxy needs two more packages: pip install socksio pysocks",
            marks=pytest.mark.skipif(find_spec("socksio") is not None, reason="socksio is here"),
        ),
        (
            "ALL_PROXY",
            "socks://127.0.0.1:1080/",
            "URL('socks://127.0.0.1:1080/'): give a proxy as http://, https://, socks5://",
        ),
        ("SSL_CERT_FILE", "/none.pem", "no certificates in SSL_CERT_FILE='/none.pem' ("),
    ],
)
def test_what_the_hubs_client_cannot_be_made_of_is_a_reason_and_the_next_source_serves(
    variable: str, value: str, reason: str, machine: Machine, url: str, pth: bytes, weights: bytes
) -> None:
    machine.environment[variable] = value
    assert reason in machine.fetch()["message"]
    machine.publish(hub_source(), url_source(url, sha256(pth)[:8]))
    assert machine.fetch()["sha256"] == sha256(weights)


# A connection that breaks.


@pytest.mark.parametrize("at", [1000, *slow(0, 700_000, 1_275_551)])
def test_the_hub_is_asked_once_more_when_it_resets(
    at: int, pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("GET", "/cdn/", reset_at=at)
    assert pinned.fetch()["sha256"] == sha256(weights)
    assert methods(pinned.hub) == ["HEAD", "GET", "HEAD", "GET"]
    assert pinned.leftovers() == []


def test_the_hub_is_given_up_when_it_always_resets_and_works_next_time(
    pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("GET", "/cdn/", reset_at=1000, times=FOR_EVER)
    answer = pinned.fetch()
    assert answer["error"] == "DownloadError"
    assert "the Hub's org/pico: [Errno 104] Connection reset by peer" in answer["message"]
    assert answer["pauses"] == [1, 2, 4, 8]
    assert methods(pinned.hub) == 5 * ["HEAD", "GET"]
    assert pinned.leftovers() == []
    works(pinned, weights)


def test_the_next_source_serves_when_the_hub_resets(
    pinned: Machine, url: str, pth: bytes, weights: bytes
) -> None:
    pinned.publish(hub_source(sha256=sha256(weights)), url_source(url, sha256(pth)[:8]))
    pinned.hub.fail("GET", "/cdn/", reset_at=1000, times=FOR_EVER)
    assert pinned.fetch()["sha256"] == sha256(weights)
    assert pinned.hub.count("GET", PTH) == 1


@pytest.mark.parametrize(
    ("at", "kept"),
    [(0, 0), (1000, 0), (700_000, 2 * CHUNK), (1_285_824, 4 * CHUNK)],
)
def test_a_url_that_resets_is_continued_where_it_broke(
    at: int, kept: int, machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.fail("GET", PTH, reset_at=at)
    answer = machine.download(url)
    assert answer == {"sha256": sha256(pth), "pauses": [1.0]}
    assert [request.sent for request in machine.hub.requests] == [at, len(pth) - kept]
    asked = machine.hub.requests[1].headers.get("range")
    assert asked == (f"bytes={kept}-" if kept else None)
    assert machine.leftovers() == ["pico.pth"]


def test_a_url_that_is_given_up_is_continued_by_the_next_call(
    machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.fail("GET", PTH, reset_at=700_000)
    machine.hub.fail("GET", PTH, reset_at=0, times=FOR_EVER)
    answer = machine.download(url)
    assert answer["message"] == "[Errno 104] Connection reset by peer (5 attempts)"
    assert answer["pauses"] == [1.0, 2.0, 4.0, 8.0]
    assert machine.leftovers() == ["pico.pth.etag", "pico.pth.part"]
    downloads(machine, url, pth)
    assert machine.hub.requests[-1].sent == len(pth) - 2 * CHUNK


def test_a_file_that_changed_meanwhile_is_begun_again(
    machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.files[PTH] = bytes(len(pth))
    machine.hub.fail("GET", PTH, reset_at=700_000)
    machine.hub.fail("GET", PTH, reset_at=0, times=FOR_EVER)
    machine.download(url)
    machine.hub.files[PTH] = pth
    machine.hub.requests.clear()
    downloads(machine, url, pth)
    (request,) = machine.hub.requests
    assert (request.status, request.sent) == (200, len(pth))


def test_a_part_that_is_already_whole_is_not_fetched_again(
    machine: Machine, url: str, pth: bytes
) -> None:
    (machine.folder / "pico.pth.part").write_bytes(pth)
    (machine.folder / "pico.pth.etag").write_text(f'"{md5(pth).hexdigest()}"')
    machine.hub.fail("GET", PTH, status=416, headers={"Content-Range": f"bytes */{len(pth)}"})
    assert machine.download(url)["sha256"] == sha256(pth)
    assert machine.hub.sent == 0
    assert machine.leftovers() == ["pico.pth"]


def test_a_part_that_is_longer_than_the_file_is_begun_again(
    machine: Machine, url: str, pth: bytes
) -> None:
    (machine.folder / "pico.pth.part").write_bytes(pth + b"more")
    (machine.folder / "pico.pth.etag").write_text('"any"')
    machine.hub.fail("GET", PTH, status=416, headers={"Content-Range": f"bytes */{len(pth)}"})
    assert machine.download(url) == {"sha256": sha256(pth), "pauses": [0.0]}
    assert machine.leftovers() == ["pico.pth"]


# A server that is not well.


@pytest.mark.parametrize("status", HUB_ERRORS)
def test_the_hub_is_asked_again_after_an_error(
    status: int, pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("HEAD", "/resolve/", status=status)
    assert pinned.fetch()["sha256"] == sha256(weights)
    assert methods(pinned.hub) == ["HEAD", "HEAD", "GET"]


@pytest.mark.parametrize("status", HUB_ERRORS)
def test_a_hub_that_stays_ill_is_given_up_after_23_seconds(
    status: int, pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("HEAD", "/resolve/", status=status, times=FOR_EVER)
    answer = pinned.fetch()
    assert answer["error"] == "DownloadError"
    assert f"the Hub's org/pico: Server error '{status} " in answer["message"]
    assert methods(pinned.hub) == 7 * ["HEAD"]
    assert answer["pauses"] == [1, 2, 4, 8, 8]
    works(pinned, weights)


def test_what_a_hub_says_is_cut_to_what_a_person_reads(pinned: Machine) -> None:
    said = {"X-Error-Message": "a." * 15000}
    pinned.hub.fail("HEAD", "/resolve/", status=403, headers=said, times=FOR_EVER)
    process = pinned.starts()
    out, err = process.communicate(timeout=100)
    assert "a.a." in json.loads(out)["message"]
    assert max(len(json.loads(out)["message"]), len(err)) < 1000


def test_an_unpinned_record_waits_for_the_hub_as_a_pinned_one(
    machine: Machine, weights: bytes
) -> None:
    machine.hub.fail("HEAD", "/resolve/", status=503)
    answer = machine.fetch()
    assert (answer["sha256"], answer["pauses"]) == (sha256(weights), [1])
    assert methods(machine.hub) == ["HEAD", "HEAD", "HEAD", "GET"]


@pytest.mark.parametrize("status", HUB_ERRORS)
def test_an_error_of_the_hubs_store_is_tried_once_more(
    status: int, pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("GET", "/cdn/", status=status)
    assert pinned.fetch()["sha256"] == sha256(weights)
    assert methods(pinned.hub) == ["HEAD", "GET", "HEAD", "GET"]


def test_a_store_that_is_ill_for_a_while_is_waited_for(pinned: Machine, weights: bytes) -> None:
    pinned.hub.fail("GET", "/cdn/", status=503, times=3)
    answer = pinned.fetch()
    assert (answer["sha256"], answer["pauses"]) == (sha256(weights), [1, 2, 4])


def test_a_store_that_stays_ill_is_given_up(pinned: Machine, weights: bytes) -> None:
    pinned.hub.fail("GET", "/cdn/", status=503, times=FOR_EVER)
    answer = pinned.fetch()
    assert "the Hub's org/pico: Server error '503 " in answer["message"]
    assert methods(pinned.hub) == 5 * ["HEAD", "GET"]
    works(pinned, weights)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_url_is_asked_again_after_an_error(
    status: int, machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.fail("GET", PTH, status=status)
    assert machine.download(url) == {"sha256": sha256(pth), "pauses": [1.0]}
    assert methods(machine.hub) == ["GET", "GET"]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_url_that_stays_ill_is_given_up_after_five_attempts(
    status: int, machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.fail("GET", PTH, status=status, times=FOR_EVER)
    answer = machine.download(url)
    assert re.fullmatch(rf"{status} [A-Z][A-Za-z ]+ \(5 attempts\)", answer["message"])
    assert answer["pauses"] == [1.0, 2.0, 4.0, 8.0]
    assert machine.hub.count() == 5
    downloads(machine, url, pth)


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ({"Retry-After": "7"}, 8.0),
        ({"Retry-After": "99999999999"}, 301.0),
        ({"RateLimit": '"api";r=0;t=99999999999'}, 301.0),
    ],
)
def test_the_hub_gets_the_pause_it_asks_for_within_reason_and_a_second(
    asked: dict[str, str], pause: float, pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("GET", "/cdn/", status=429, headers=asked)
    answer = pinned.fetch()
    assert (answer["sha256"], answer["pauses"]) == (sha256(weights), [pause])
    assert methods(pinned.hub) == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize(
    ("asked", "pause"),
    [("7", 7.0), ("100000", 300.0), ("soon", 1.0), ("Fri, 31 Dec 99999 23:59:59 GMT", 1.0)],
)
def test_a_url_gets_the_pause_it_asks_for_within_reason(
    asked: str, pause: float, machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.fail("GET", PTH, status=429, headers={"Retry-After": asked})
    assert machine.download(url) == {"sha256": sha256(pth), "pauses": [pause]}


def test_a_url_may_ask_for_a_pause_by_date(machine: Machine, url: str, pth: bytes) -> None:
    then = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    machine.hub.fail("GET", PTH, status=503, headers={"Retry-After": then})
    (pause,) = machine.download(url)["pauses"]
    assert 40.0 < pause <= 60.0


def test_a_stall_of_the_hub_ends_at_the_time_out_and_is_tried_again(
    pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("GET", "/cdn/", stall=1.5)
    answer = pinned.fetch(HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert (answer["sha256"], answer["pauses"]) == (sha256(weights), [1])
    assert methods(pinned.hub) == ["HEAD", "GET", "GET"]


def test_a_stall_before_the_hubs_answer_ends_at_its_own_time_out(
    pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("HEAD", "/resolve/", stall=1.5)
    assert pinned.fetch(HF_HUB_ETAG_TIMEOUT="1")["sha256"] == sha256(weights)
    assert methods(pinned.hub) == ["HEAD", "HEAD", "GET"]


def test_a_stall_of_a_url_ends_at_the_same_time_out_and_is_continued(
    machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.fail("GET", PTH, stall=1.5, stall_at=700_000)
    answer = machine.download(url, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert answer == {"sha256": sha256(pth), "pauses": [1.0]}
    assert machine.hub.requests[1].sent == len(pth) - 2 * CHUNK


# A body that is not what was stated.


def test_the_hub_is_asked_again_when_a_body_ends_before_its_length(
    pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("GET", "/cdn/", close_at=1000)
    answer = pinned.fetch()
    assert (answer["sha256"], answer["pauses"]) == (sha256(weights), [1])
    assert methods(pinned.hub) == ["HEAD", "GET", "GET"]
    assert pinned.leftovers() == []


def test_a_body_of_the_hub_that_states_its_short_length_is_refused(
    pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("GET", "/cdn/", close_at=1000, length=1000)
    answer = pinned.fetch()
    assert answer["error"] == "DownloadError"
    assert "file should be of size 1275552 but has size 1000" in answer["message"]
    assert methods(pinned.hub) == ["HEAD", "GET"]
    assert pinned.leftovers() == []
    works(pinned, weights)


def test_a_url_is_continued_when_a_body_ends_before_its_length(
    machine: Machine, url: str, pth: bytes
) -> None:
    machine.hub.fail("GET", PTH, close_at=700_000)
    assert machine.download(url) == {"sha256": sha256(pth), "pauses": [1.0]}
    assert machine.hub.requests[1].sent == len(pth) - 2 * CHUNK


def test_a_url_that_states_its_short_length_is_noticed_by_the_prefix(
    by_url: Machine, weights: bytes, pth: bytes
) -> None:
    by_url.hub.fail("GET", PTH, close_at=1000, length=1000)
    assert by_url.fetch()["sha256"] == sha256(weights)
    assert [request.sent for request in by_url.hub.requests] == [1000, len(pth)]
    assert by_url.leftovers() == []


def test_without_a_prefix_a_short_file_is_still_no_checkpoint(
    machine: Machine, url: str, weights: bytes
) -> None:
    machine.publish(url_source(url))
    machine.hub.fail("GET", PTH, close_at=1000, length=1000)
    answer = machine.fetch()
    assert answer["error"] == "DownloadError"
    assert "is not a whole PyTorch file" in answer["message"]
    assert machine.leftovers() == []
    works(machine, weights)


def test_wrong_bytes_of_the_hub_are_fetched_twice_and_never_given_out(
    pinned: Machine, weights: bytes
) -> None:
    wrong = bytes(len(weights))
    pinned.hub.fail("GET", "/cdn/", body=wrong, times=FOR_EVER)
    assert pinned.fetch() | {"torch": None} == {
        "error": "IntegrityError",
        "message": f"the Hub's org/pico gave a file of SHA-256 {sha256(wrong)} twice, but "
        f"{sha256(weights)} is expected; try another network or mirror (HF_ENDPOINT)",
        "pauses": [],
        "torch": None,
    }
    assert methods(pinned.hub) == ["HEAD", "GET", "HEAD", "GET"]
    assert list(pinned.hf_cache.rglob("*.safetensors")) == []
    assert list(pinned.hf_cache.glob("*/blobs/*")) == []
    works(pinned, weights)


def test_wrong_bytes_of_a_url_are_fetched_twice_and_never_given_out(
    by_url: Machine, weights: bytes, pth: bytes
) -> None:
    wrong = bytes(len(pth))
    by_url.hub.fail("GET", PTH, body=wrong, times=FOR_EVER)
    answer = by_url.fetch()
    assert (answer["error"], answer["message"]) == (
        "IntegrityError",
        f"{by_url.hub.endpoint}{PTH} gave a file of SHA-256 {sha256(wrong)} twice, but one that "
        f"begins with {sha256(pth)[:8]} is expected; try another network",
    )
    assert methods(by_url.hub) == ["GET", "GET"]
    assert by_url.leftovers() == []
    works(by_url, weights)


def test_where_the_hub_is_ill_too_its_reason_stays_beside_wrong_bytes(
    machine: Machine, url: str, weights: bytes, pth: bytes
) -> None:
    machine.publish(hub_source(), url_source(url, sha256(pth)[:8]))
    machine.hub.fail("HEAD", REPO, status=401, times=FOR_EVER)
    machine.hub.fail("GET", PTH, body=bytes(9), times=FOR_EVER)
    answer = machine.fetch()
    assert answer["error"] == "IntegrityError"
    assert "try another network; before it: the Hub's org/pico: " in answer["message"]
    works(machine, weights)


def test_a_login_page_in_place_of_everything_is_said_to_be_a_page(
    machine: Machine, url: str, weights: bytes, pth: bytes
) -> None:
    machine.publish(hub_source(), url_source(url, sha256(pth)[:8]))
    for method in ("HEAD", "GET"):
        machine.hub.fail(
            method,
            "/",
            body=b"<!doctype html><title>Sign in</title>",
            headers={"Content-Type": "text/html; charset=utf-8"},
            times=FOR_EVER,
        )
    answer = machine.fetch()
    assert answer["error"] == "DownloadError"
    assert "the Hub's org/pico: " in answer["message"]
    assert f"{url}: it answers with a web page (of a login?), not a file" in answer["message"]
    works(machine, weights)


def test_the_hub_may_be_right_at_the_second_try(pinned: Machine, weights: bytes) -> None:
    pinned.hub.fail("GET", "/cdn/", body=bytes(len(weights)))
    assert pinned.fetch()["sha256"] == sha256(weights)
    assert methods(pinned.hub) == ["HEAD", "GET", "HEAD", "GET"]
    assert pinned.leftovers() == []


def test_a_url_may_be_right_at_the_second_try(by_url: Machine, weights: bytes, pth: bytes) -> None:
    by_url.hub.fail("GET", PTH, body=bytes(len(pth)))
    assert by_url.fetch()["sha256"] == sha256(weights)
    assert methods(by_url.hub) == ["GET", "GET"]


# What is not there, and what lies.


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"repo_id": "org/none"}, "no such repository, or a private one: set HF_TOKEN"),
        ({"revision": 40 * "0"}, f"it has no revision {40 * '0'}"),
        ({"filename": "none.safetensors"}, "it has no file none.safetensors"),
    ],
)
def test_what_the_hub_has_not_got_is_named_after_one_request(
    changed: dict[str, Any], reason: str, machine: Machine, weights: bytes
) -> None:
    machine.publish(hub_source(**changed))
    answer = machine.fetch()
    where = changed.get("repo_id", REPO)
    assert answer["message"].startswith(
        f"the weights of deit_pico_digits could not be had from any source (the Hub's {where}: "
        f"{reason}); put one of these right and try again"
    )
    assert (methods(machine.hub), answer["pauses"]) == (["HEAD"], [])
    machine.publish(hub_source())
    works(machine, weights)


def test_a_url_that_is_not_there_is_asked_once(machine: Machine, url: str) -> None:
    answer = machine.download(f"{url}.none")
    assert answer == {"message": "404 Not Found", "pauses": []}
    assert machine.hub.count() == 1


def test_a_gated_repository_says_so_and_opens_to_a_token(machine: Machine, weights: bytes) -> None:
    machine.hub.gated.add(REPO)
    answer = machine.fetch()
    assert (
        "the Hub's org/pico: it is gated: ask for access on its page, then set HF_TOKEN)"
        in answer["message"]
    )
    assert methods(machine.hub) == ["HEAD"]
    machine.hub.requests.clear()
    assert machine.fetch(HF_TOKEN="hf_test")["sha256"] == sha256(weights)
    sent = [request.headers.get("authorization") for request in machine.hub.requests]
    assert sent == ["Bearer hf_test", "Bearer hf_test", None]  # the store is not told


def test_a_redirect_loop_of_the_hub_ends(pinned: Machine, weights: bytes) -> None:
    address = f"/{REPO}/resolve/main/loop"
    loop = {"Location": pinned.hub.endpoint + address}
    pinned.hub.fail("HEAD", "/resolve/", status=302, headers=loop, times=FOR_EVER)
    answer = pinned.fetch()
    assert "the Hub's org/pico: Exceeded 20 redirects while resolving" in answer["message"]
    assert methods(pinned.hub) == 20 * ["HEAD"]
    works(pinned, weights)


def test_a_redirect_loop_of_the_hubs_store_ends(pinned: Machine, weights: bytes) -> None:
    loop = {"Location": f"{pinned.hub.cdn}/cdn/loop"}
    pinned.hub.fail("GET", "/cdn/", status=302, headers=loop, times=FOR_EVER)
    assert "Exceeded maximum allowed redirects" in pinned.fetch()["message"]
    assert pinned.hub.count("GET") == 21
    works(pinned, weights)


def test_a_redirect_loop_of_a_url_ends(machine: Machine, url: str, pth: bytes) -> None:
    machine.hub.fail("GET", PTH, status=302, headers={"Location": url}, times=FOR_EVER)
    assert machine.download(url)["message"] == "it redirects without end"
    assert machine.hub.count("GET") == 31
    downloads(machine, url, pth)


def test_a_lying_etag_is_found_out_where_nothing_is_pinned(
    machine: Machine, weights: bytes
) -> None:
    lie = {"X-Linked-ETag": f'"{64 * "a"}"'}
    machine.hub.fail("HEAD", "/resolve/", headers=lie, times=FOR_EVER)
    answer = machine.fetch()
    assert answer["error"] == "IntegrityError"
    assert f"{sha256(weights)} twice, but {64 * 'a'} is expected" in answer["message"]
    assert list(machine.hf_cache.glob("*/blobs/*")) == []


def test_a_lying_etag_does_not_matter_where_the_digest_is_pinned(
    pinned: Machine, weights: bytes
) -> None:
    pinned.hub.fail("HEAD", "/resolve/", headers={"X-Linked-ETag": f'"{64 * "a"}"'})
    assert pinned.fetch()["sha256"] == sha256(weights)


def test_a_hub_that_states_another_digest_than_before_is_an_error(
    machine: Machine, weights: bytes
) -> None:
    machine.fetch()
    machine.hub.commit(REPO, {FILE: b"other"})
    shutil.rmtree(machine.hf_cache)
    answer = machine.fetch()
    assert (answer["error"], answer["message"]) == (
        "IntegrityError",
        f"the Hub's org/pico now states SHA-256 {sha256(b'other')} for model.safetensors, but "
        f"stated {sha256(weights)} before; if the change is meant, remove "
        f"{machine.zoo_cache / 'stated'}",
    )
    assert machine.hub.count("GET") == 1


def test_a_branch_that_moves_does_not_change_what_is_cached(
    machine: Machine, weights: bytes
) -> None:
    machine.fetch()
    machine.hub.commit(REPO, {FILE: b"other"})
    machine.hub.requests.clear()
    assert machine.fetch()["sha256"] == sha256(weights)
    assert machine.hub.requests == []


def test_an_endpoint_that_is_no_hub_is_named(machine: Machine) -> None:
    machine.hub.fail("HEAD", "/resolve/", status=200, headers={"ETag": '"x"'}, times=FOR_EVER)
    assert "it does not answer as a Hub does: check HF_ENDPOINT" in machine.fetch()["message"]


# The disk and the process.

SMALL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))"


def test_a_full_disk_leaves_nothing_of_a_hub_file(pinned: Machine, weights: bytes) -> None:
    answer = pinned.fetch(before=SMALL_DISK)
    assert answer["error"] == "DownloadError"
    assert "the Hub's org/pico: [Errno 27] File too large" in answer["message"]
    assert pinned.leftovers() == []
    works(pinned, weights)


def test_a_full_disk_keeps_the_part_of_a_url_and_the_next_call_continues_it(
    by_url: Machine, weights: bytes, pth: bytes
) -> None:
    answer = by_url.fetch(before=SMALL_DISK)
    assert f"{PTH}: File too large); put one" in answer["message"]
    (part,) = by_url.zoo_cache.rglob("*.part")
    assert part.stat().st_size == 600_000
    works(by_url, weights)
    assert by_url.hub.requests[-1].sent == len(pth) - 600_000


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 seconds"
        time.sleep(0.01)


def test_a_download_of_a_url_that_was_killed_is_continued(
    by_url: Machine, weights: bytes, pth: bytes
) -> None:
    by_url.hub.fail("GET", PTH, stall=20, stall_at=700_000)
    process = by_url.starts()
    parts = by_url.zoo_cache / "originals"
    wait_until(lambda: any(p.stat().st_size == 2 * CHUNK for p in parts.rglob("*.part")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    by_url.hub.requests.clear()
    works(by_url, weights)
    (request,) = by_url.hub.requests
    assert request.headers["range"] == f"bytes={2 * CHUNK}-"
    assert request.headers["if-range"] == f'"{md5(pth).hexdigest()}"'
    assert request.sent == len(pth) - 2 * CHUNK


def test_a_download_of_the_hub_that_was_killed_is_begun_again(
    pinned: Machine, weights: bytes
) -> None:
    # huggingface_hub 2 gives every download a name of its own and never continues one.
    pinned.hub.fail("GET", "/cdn/", stall=20, stall_at=700_000)
    process = pinned.starts()
    wait_until(lambda: pinned.hub.sent == 700_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    pinned.hub.faults.clear()
    assert pinned.fetch()["sha256"] == sha256(weights)
    assert pinned.hub.requests[-1].sent == len(weights)


def test_a_process_killed_before_it_could_convert_does_not_fetch_again(
    by_url: Machine, weights: bytes, pth: bytes
) -> None:
    kept = by_url.zoo_cache / "originals" / "deit_pico_digits" / "pico.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(pth)
    works(by_url, weights)
    assert by_url.hub.requests == []


RANKS = [
    {"LOCAL_RANK": str(rank), "RANK": str(rank), "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "8"}
    for rank in range(8)
]


@pytest.mark.parametrize("ranks", [8 * [{}], RANKS], ids=["processes", "ranks of torchrun"])
def test_eight_processes_fetch_a_hub_file_once(
    ranks: list[dict[str, str]], machine: Machine, weights: bytes
) -> None:
    machine.hub.fail("GET", "/cdn/", stall=0.3)
    processes = [machine.starts(instant=False, **rank) for rank in ranks]
    assert [told(process)["sha256"] for process in processes] == 8 * [sha256(weights)]
    assert methods(machine.hub) == ["HEAD", "HEAD", "GET"]
    assert machine.hub.sent == len(weights)
    assert machine.leftovers() == []


def test_eight_processes_fetch_a_url_once(by_url: Machine, weights: bytes, pth: bytes) -> None:
    processes = [by_url.starts(instant=False, server="light") for _ in range(8)]
    answers = [told(process) for process in processes]
    assert [answer["sha256"] for answer in answers] == 8 * [sha256(weights)]
    assert by_url.hub.sent == len(pth)
    assert [answer["torch"] for answer in answers].count(True) == 1  # one converts
    assert by_url.leftovers() == []


def test_who_waits_too_long_for_another_process_is_told(machine: Machine) -> None:
    machine.hub.fail("GET", "/cdn/", stall=3)
    first = machine.starts(instant=False)
    wait_until(lambda: machine.hub.count("GET") == 1)
    before = "import deit_zoo.weights.cache as cache; cache.LOCK_SECONDS = 0.1"
    answer = machine.fetch(before=before, instant=False)
    assert answer["error"] == "DownloadError"
    holder = f"process {first.pid} on {socket.gethostname()}"
    assert answer["message"].startswith(f"{holder} has been fetching deit_pico_digits for")
    assert "file" in told(first)


def test_who_waits_for_another_process_is_told_for_which(machine: Machine) -> None:
    machine.hub.fail("GET", "/cdn/", stall=3)
    first = machine.starts(instant=False)
    wait_until(lambda: machine.hub.count("GET") == 1)
    before = "import deit_zoo.weights.cache as cache; cache.SILENT_SECONDS = 0.1"
    second = machine.starts(before=before, instant=False)
    _, err = second.communicate(timeout=100)
    holder = f"process {first.pid} on {socket.gethostname()}"
    assert err.startswith(f"waiting for {holder}, which is fetching deit_pico_digits;")
    assert "file" in told(first)
    assert list((machine.zoo_cache / "locks").glob("*.holder")) == []


# The cache.


@pytest.fixture
def shelf(pinned: Machine) -> Iterator[Machine]:
    """A pinned machine whose folder may be locked; it is opened again at the end."""
    yield pinned
    for path in (pinned.folder, *pinned.folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


# Permissions are no barrier to root, unless it gives up its capabilities.
AS_ANYONE = """
import ctypes, os
if os.geteuid() == 0:
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
"""


def lock_down(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_read_only_cache_serves_without_a_request_or_a_write(
    shelf: Machine, weights: bytes
) -> None:
    shelf.fetch()
    lock_down(shelf.folder)
    shelf.hub.requests.clear()
    answer = shelf.fetch(before=AS_ANYONE + NO_SOCKETS)
    assert answer["sha256"] == sha256(weights)
    assert shelf.hub.requests == []


def test_a_read_only_cache_of_another_tool_is_hashed_at_every_use(
    shelf: Machine, weights: bytes
) -> None:
    shelf.fetch()
    shutil.rmtree(shelf.zoo_cache)
    lock_down(shelf.folder)
    assert shelf.fetch(before=AS_ANYONE + NO_SOCKETS)["sha256"] == sha256(weights)
    assert not shelf.zoo_cache.exists()


def test_a_cache_that_cannot_be_written_to_is_named_where_a_file_must_be_fetched(
    shelf: Machine,
) -> None:
    lock_down(shelf.folder)
    answer = shelf.fetch(before=AS_ANYONE)
    assert (answer["error"], answer["message"]) == (
        "DownloadError",
        f"the cache {shelf.zoo_cache} cannot be written to (Permission denied: "
        f"{shelf.zoo_cache}); set DEIT_ZOO_CACHE to a folder that can",
    )
    assert shelf.hub.requests == []


def test_a_wrong_file_that_only_its_owner_can_remove_is_no_end_of_the_other_sources(
    shelf: Machine, url: str, pth: bytes, weights: bytes
) -> None:
    commit = shelf.hub.repositories[REPO].refs["main"]
    source = hub_source(revision=commit, sha256=sha256(weights))
    shelf.publish(source)
    file = Path(shelf.fetch()["file"])
    file.resolve().write_bytes(bytes(len(weights)))
    lock_down(shelf.hf_cache)
    assert (
        f"the Hub's org/pico: {file} is wrong and cannot be removed (Permission denied); let its "
        "owner remove it, or set HF_HOME" in shelf.fetch(before=AS_ANYONE)["message"]
    )
    shelf.publish(source, url_source(url, sha256(pth)[:8]))
    assert shelf.fetch(before=AS_ANYONE)["sha256"] == sha256(weights)


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user are made by root alone")
@pytest.mark.parametrize("left", ["lock", "half", "whole"])
def test_a_cache_that_all_may_write_to_serves_each_user(
    left: str, by_url: Machine, pth: bytes, weights: bytes
) -> None:
    by_url.zoo_cache.mkdir()
    by_url.zoo_cache.chmod(0o777 if left == "half" else 0o1777)  # sticky: each removes their own
    by_url.fetch()
    original = by_url.zoo_cache / "originals" / "deit_pico_digits" / "pico.pth"
    if left == "half":
        original.with_name("pico.pth.part").write_bytes(pth[:1000])
        original.with_name("pico.pth.etag").write_text(f'"{md5(pth).hexdigest()}"')
    if left == "whole":
        original.write_bytes(pth)
    (by_url.zoo_cache / "locks" / "deit_pico_digits.holder").write_text("process 1")
    shutil.rmtree(by_url.zoo_cache / "converted")
    for user, path in enumerate(by_url.zoo_cache.rglob("*"), start=1000):  # each of another one
        os.chown(path, user, user)
    answer = by_url.fetch(before=AS_ANYONE)
    assert answer.get("sha256") == sha256(weights), answer


def test_a_converted_file_is_for_whom_the_cache_is_for_whatever_the_umask(by_url: Machine) -> None:
    by_url.zoo_cache.mkdir()
    by_url.zoo_cache.chmod(0o2770)
    file = Path(by_url.fetch(before="import os; os.umask(0o077)")["file"])
    assert file.stat().st_mode & 0o777 == 0o640


CARRIED = """
from deit_zoo.errors import ZooError
from deit_zoo.manifest import manifest_record
from deit_zoo.weights.proof import carried_file
try:
    carried_file(manifest_record("deit_pico_digits"))
except ZooError as error:
    print(error)
"""


@pytest.mark.parametrize("shut", [".", "deit_pico_digits"])
def test_a_carried_folder_that_is_shut_is_named_instead_of_passed_over(
    shut: str, shelf: Machine, tmp_path: Path
) -> None:
    base = tmp_path / "carried"
    deit_zoo.fetch("deit_pico_digits", base / "deit_pico_digits")
    (base / shut).chmod(0o600)
    process = shelf.start(AS_ANYONE + CARRIED, DEIT_ZOO_WEIGHTS=str(base))
    assert process.communicate(timeout=100)[0] == (
        f"{base / 'deit_pico_digits'} cannot be read (permission denied); let its owner open it by "
        "chmod -R a+rX, or take it out of DEIT_ZOO_WEIGHTS\n"
    )


TYPED = """
import sys
from deit_zoo.cli import main
sys.argv[1:] = {words}
main()
"""


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["list", NAME, "--json"], 0, '"here": null'),
        (["doctor", "--no-network", "--json"], 1, "set DEIT_ZOO_CACHE to a folder that can"),
    ],
    ids=["list", "doctor"],
)
def test_folders_that_a_user_may_not_look_into_end_no_command_that_only_looks(
    words: list[str], status: int, told: str, shelf: Machine, url: str
) -> None:
    shelf.publish(hub_source(), url_source(url))
    shut = shelf.folder / "shut"
    shut.mkdir(mode=0o600)
    names = {"HF_HOME": "hf", "DEIT_ZOO_CACHE": "zoo", "DEIT_ZOO_WEIGHTS": "carried"}
    folders = {variable: str(shut / name) for variable, name in names.items()}
    process = shelf.start(AS_ANYONE + TYPED.format(words=words), server="torch", **folders)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err, told in out) == (status, "", True), out


def test_a_file_that_a_user_may_not_read_is_a_reason_and_the_next_source_is_asked(
    shelf: Machine, url: str, pth: bytes, weights: bytes
) -> None:
    file = Path(shelf.fetch()["file"])
    file.resolve().chmod(0o200)
    answer = shelf.fetch(before=AS_ANYONE)
    assert answer["error"] == "DownloadError"
    reason = f"the Hub's org/pico: {file} cannot be read (Permission denied)"
    assert reason in answer["message"]
    commit = shelf.hub.repositories[REPO].refs["main"]
    pinned = hub_source(revision=commit, sha256=sha256(weights))
    shelf.publish(pinned, url_source(url, sha256(pth)[:8]))
    assert shelf.fetch(before=AS_ANYONE)["sha256"] == sha256(weights)


ADDRESS = """
from deit_zoo.errors import ZooError
from deit_zoo.weights.fetch import fetch_address
try:
    print(fetch_address({text!r}).path)
except ZooError as error:
    print(error)
"""


@pytest.mark.parametrize("name", [FILE, "config.json"])  # a large file and a small one
def test_a_file_of_an_address_that_a_user_may_not_read_is_one_sentence(
    name: str, shelf: Machine
) -> None:
    commit = shelf.hub.commit(REPO, {"config.json": b"{}"})
    code = ADDRESS.format(text=f"hf://{REPO}@{commit}/{name}")
    file = Path(shelf.start(code).communicate(timeout=100)[0].strip())
    file.resolve().chmod(0o200)
    shutil.rmtree(shelf.zoo_cache, ignore_errors=True)
    for offline in "01":
        process = shelf.start(AS_ANYONE + code, HF_HUB_OFFLINE=offline)
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err, out.count("\n")) == (0, "", 1)
        assert str(file) in out
        assert "Permission denied" in out


def replaced(blob: Path) -> None:
    wrong = blob.with_name("wrong")
    wrong.write_bytes(bytes(blob.stat().st_size))
    wrong.replace(blob)


def truncated(blob: Path) -> None:
    os.truncate(blob, 1000)


def removed(blob: Path) -> None:
    blob.unlink()  # the snapshot's link dangles


SPOILT = [replaced, truncated, removed]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_file_of_the_hub_is_fetched_again(
    spoil: Callable[[Path], None], pinned: Machine, weights: bytes, tmp_path: Path
) -> None:
    blob = Path(pinned.fetch()["file"]).resolve()
    spoil(blob)
    pinned.hub.requests.clear()
    if blob.exists():
        os.link(blob, tmp_path / "wrong")
        before = (tmp_path / "wrong").read_bytes()
    works(pinned, weights)
    assert methods(pinned.hub) == ["HEAD", "GET"]
    # A new file took its place: the spoilt one was not opened for writing.
    if (tmp_path / "wrong").exists():
        assert (tmp_path / "wrong").read_bytes() == before


def test_a_spoilt_converted_file_is_fetched_again(by_url: Machine, weights: bytes) -> None:
    file = Path(by_url.fetch()["file"])
    for spoil in SPOILT:
        spoil(file)
        works(by_url, weights)
    assert methods(by_url.hub) == 4 * ["GET"]


@pytest.mark.parametrize("spoil", [replaced, truncated])
def test_a_spoilt_file_is_named_with_both_digests_where_it_cannot_be_fetched(
    spoil: Callable[[Path], None], pinned: Machine, weights: bytes
) -> None:
    file = Path(pinned.fetch()["file"])
    spoil(file.resolve())
    pinned.hub.requests.clear()
    answer = pinned.fetch(HF_HUB_OFFLINE="1")
    assert (answer["error"], answer["message"]) == (
        "IntegrityError",
        f"{file} has SHA-256 {sha256(file.read_bytes())}, but {sha256(weights)} is expected; "
        "remove it and get it again",
    )
    assert pinned.hub.requests == []


def test_a_spoilt_file_is_among_the_reasons_when_all_sources_fail(
    pinned: Machine, closed: str
) -> None:
    file = Path(pinned.fetch()["file"])
    truncated(file.resolve())
    answer = pinned.fetch(HF_ENDPOINT=closed)
    assert answer["error"] == "DownloadError"
    assert f"{file} has SHA-256 {sha256(file.read_bytes())}, but" in answer["message"]
    assert "the Hub's org/pico: [Errno 111] Connection refused" in answer["message"]


@pytest.mark.parametrize("year", [1980, 2100])
def test_a_clock_that_was_set_does_not_matter(year: int, pinned: Machine, weights: bytes) -> None:
    file = Path(pinned.fetch()["file"])
    seconds = datetime(year, 1, 1, tzinfo=timezone.utc).timestamp()
    os.utime(file, (seconds, seconds))
    for record in (pinned.zoo_cache / "verified").iterdir():
        os.utime(record, (seconds, seconds))
    pinned.hub.requests.clear()
    assert pinned.fetch()["sha256"] == sha256(weights)
    assert pinned.hub.requests == []


# In the dark, and in unusual surroundings.


@pytest.mark.parametrize("kind", ["unpinned", "pinned", "url"])
def test_what_is_cached_needs_no_network(
    kind: str, machine: Machine, url: str, pth: bytes, weights: bytes
) -> None:
    commit = machine.hub.repositories[REPO].refs["main"]
    sources = {
        "unpinned": hub_source(),
        "pinned": hub_source(revision=commit, sha256=sha256(weights)),
        "url": url_source(url, sha256(pth)[:8]),
    }
    machine.publish(sources[kind])
    machine.fetch()
    machine.hub.requests.clear()
    for offline in "01":
        answer = machine.fetch(before=NO_SOCKETS, server="light", HF_HUB_OFFLINE=offline)
        assert (answer["sha256"], answer["torch"]) == (sha256(weights), False)
    assert machine.hub.requests == []


def test_a_model_is_created_from_the_cache_with_sockets_blocked(machine: Machine) -> None:
    code = "import deit_zoo; m = deit_zoo.create('deit_pico_digits', pretrained=True)\n"
    code += "print(m.training, m.checkpoint.name, m.norm.weight.sum().item())"
    first = machine.start(code, server="torch").communicate()
    machine.hub.requests.clear()
    second = machine.start(NO_SOCKETS + code, server="torch", HF_HUB_OFFLINE="1").communicate()
    assert first[0].startswith("False deit_pico_digits ")
    assert second == first
    assert machine.hub.requests == []


def test_what_is_not_cached_names_every_path_and_the_cure_offline(
    machine: Machine, url: str
) -> None:
    machine.publish(hub_source(), url_source(url))
    answer = machine.fetch(before=NO_SOCKETS, HF_HUB_OFFLINE="1")
    assert (answer["error"], answer["message"]) == (
        "OfflineError",
        "the weights of deit_pico_digits are not on this machine and HF_HUB_OFFLINE is set; "
        f"looked at {machine.hf_cache / 'models--org--pico'}, {machine.zoo_cache / 'converted'}; "
        "where there is a network type `deit-zoo weights fetch deit_pico_digits --to DIR`, bring "
        "DIR here and set DEIT_ZOO_WEIGHTS=DIR",
    )
    assert not machine.zoo_cache.exists()


def test_a_cache_without_links_works(machine: Machine, weights: bytes) -> None:
    file = Path(machine.fetch(HF_HUB_DISABLE_SYMLINKS="1")["file"])
    assert not file.is_symlink()
    machine.hub.requests.clear()
    answer = machine.fetch(before=NO_SOCKETS, HF_HUB_DISABLE_SYMLINKS="1")
    assert (answer["file"], answer["sha256"]) == (str(file), sha256(weights))
    assert machine.hub.requests == []


def test_a_proxy_is_used_for_both_kinds_of_source(
    machine: Machine, pth: bytes, weights: bytes
) -> None:
    machine.publish(
        hub_source(repo_id="org/none"),
        url_source(f"http://original.invalid{PTH}", sha256(pth)[:8]),
    )
    proxy = {"HTTP_PROXY": machine.hub.endpoint, "http_proxy": machine.hub.endpoint}
    answer = machine.fetch(HF_ENDPOINT="http://hub.invalid", NO_PROXY="", no_proxy="", **proxy)
    assert answer["sha256"] == sha256(weights)
    assert methods(machine.hub) == ["HEAD", "GET"]
    hosts = [request.headers["host"] for request in machine.hub.requests]
    assert hosts == ["hub.invalid", "original.invalid"]


@pytest.mark.parametrize(
    "text", ["hf://org/pico", "hf://org/pico@main", "hf://org/pico@v1/a.safetensors"]
)
def test_an_address_of_the_hub_is_a_checkpoint(text: str, machine: Machine, weights: bytes) -> None:
    machine.hub.commit(REPO, {"a.safetensors": weights})
    machine.hub.repositories[REPO].refs["v1"] = machine.hub.repositories[REPO].refs["main"]
    code = (
        "import deit_zoo\n"
        f"print(deit_zoo.create('deit_pico_digits', checkpoint={text!r}).checkpoint.sha256)"
    )
    out, err = machine.start(code, server="torch").communicate()
    assert out.strip() == sha256(weights), err


@pytest.mark.parametrize(
    "text",
    [
        *("hf://-a/b", "hf://a--b/c", "hf://a/b.git", "hf://a/..", "hf://a b/c", "hf://a/b."),
        pytest.param(f"hf://a/{'b' * 96}", id="97 characters"),
        *("hf://a/b@../../x", "hf://a/b@main/../../etc/passwd", "hf://a/b@main//x"),
        *("hf://a/b@main/a\\..\\b", "hf://a/b@main/a\x1b[0mb", "hf://a/b@main/a/./b"),
    ],
)
def test_what_the_hub_cannot_have_is_refused_before_it_is_asked(text: str) -> None:
    # It would be asked offline only for what it could have.
    with pytest.raises(CheckpointError, match=r"no repository is named|is no revision or file"):
        fetch_address(text)
