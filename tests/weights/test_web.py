"""Addresses that others wrote: where they may lead, and how long an answer may take."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

import pytest
import requests

from deit_zoo.data import image_like
from deit_zoo.data.remote import NotFetchedError
from deit_zoo.errors import DataError
from deit_zoo.weights import download, web
from deit_zoo.weights.reach import Reach

PIECE = bytes(web.PIECE)
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@contextmanager
def server(*answers: bytes, drops: bytes = b"", every: float = 0.02) -> Iterator[str]:
    """An address that gives one answer after another, as these bytes; the last one for ever.

    After it come `drops`, one at a time, until the client has had enough.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            left = list(answers)
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(left.pop(0) if len(left) > 1 else left[0])
                        while drops:
                            connection.sendall(drops)
                            time.sleep(every)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def body_of(url: str, **options: Any) -> bytes:
    with web.get(url, timeout=5, **options) as (_, body):
        return b"".join(body)


def redirect(location: str) -> bytes:
    # Else the client may ask again by a connection that is being closed.
    head = "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0"
    return f"{head}\r\nLocation: {location}\r\n\r\n".encode()


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "WINDOW_SECONDS", 0.3)


@pytest.mark.usefixtures("short_window")
@pytest.mark.parametrize("part", [OK + b"X-Drop: ", OK + b"\r\n"], ids=["headers", "body"])
def test_what_comes_drop_by_drop_ends(part: bytes) -> None:
    told = r"less than 262,144 bytes came in 0.3 seconds"
    with server(part, drops=b"a") as url, pytest.raises(web.SlowError, match=told):
        body_of(url)


def test_all_of_an_answer_has_a_time_to_come_in() -> None:
    told = r"no end in time, after [\d,]+ bytes"
    with server(OK + b"\r\n", drops=PIECE) as url, pytest.raises(web.SlowError, match=told):
        body_of(url, seconds=0.3)


@pytest.mark.usefixtures("short_window")
def test_an_answer_that_comes_steadily_may_take_longer_than_the_window() -> None:
    steady = pytest.raises(web.SlowError, match="no end in time")
    with server(OK + b"\r\n", drops=PIECE, every=0.01) as url, steady:
        body_of(url, seconds=1.0)


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("http://[bad", "'http://[bad', which is no address of the web"),
        ("file:///etc/passwd", "'file:///etc/passwd', which is no address of the web"),
        ("http://h:99999/", "which is no address of the web"),
    ],
)
def test_a_redirect_out_of_the_web_is_refused_at_once(location: str, told: str) -> None:
    with server(redirect(location)) as url, pytest.raises(web.RefusedError) as caught:
        body_of(url)
    assert told in str(caught.value)


def test_a_redirect_from_an_encrypted_address_to_a_plain_one_is_refused() -> None:
    answer = requests.Response()
    answer.status_code, answer.url, answer.raw = 302, "https://h/a", BytesIO()
    answer.headers["Location"] = "https://h/b"
    web._check_redirect(answer, answer.url)
    answer.headers["Location"] = "http://h/b"
    with pytest.raises(web.RefusedError, match=r"'http://h/b', which is .* not encrypted as its"):
        web._check_redirect(answer, answer.url)


def test_a_redirect_from_a_public_address_to_a_private_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A proxy stands for the public network.
    with server(redirect("http://169.254.169.254/latest"), OK + b"\r\nsecret") as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(web.RefusedError, match=r"169\.254\.169\.254, which is in a private"):
            body_of("http://public.invalid/x.png")
    with server(redirect("http://public.invalid/y.png"), OK + b"\r\nimage") as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert body_of("http://public.invalid/x.png") == b"image"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 " + b"a." * 15000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/9.9 " + b"a." * 15000 + b"\r\n\r\n",
        redirect("ftp://" + "a." * 15000),
    ],
    ids=["reason", "status line", "address"],
)
def test_what_a_server_says_is_cut_to_what_a_person_reads(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    with server(answer) as url:
        with pytest.raises(DataError, match=r"a\.a\.") as of_an_image:
            image_like.fetch(url)
        with pytest.raises(download.UnavailableError, match=r"a\.a\.") as of_a_file:
            download.download(url, tmp_path / "file")
    assert max(len(str(of_an_image.value)), len(str(of_a_file.value))) < 500


def test_what_is_cut_shows_no_half_of_a_password() -> None:
    said = web.shortened(f"{'a' * (web.READ_SIGNS - 20)} https://user:{30 * 'SECRET'}@host/x")
    assert said.endswith(" https://***@host/x")


def test_a_private_address_may_lead_to_another() -> None:
    with server(OK + b"\r\nimage") as second, server(redirect(second)) as first:
        assert body_of(first) == b"image"


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("10.1.2.3", True),
        ("::1", True),
        ("::ffff:192.168.0.1", True),
        ("2130706433", True),  # 127.0.0.1 as a number
        ("8.8.8.8", False),
        ("a..b", False),
    ],
)
def test_what_is_private(host: str, private: bool) -> None:
    assert web.is_private(host) is private


@pytest.mark.parametrize("url", ["http://a..b/x", f"http://{'a' * 70}.x/y", "http://[bad"])
def test_an_address_that_nobody_can_have_is_one_sentence(url: str) -> None:
    with pytest.raises(DataError, match=r"could not be fetched: ") as caught:
        image_like.fetch(url)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("answer", "may_pass"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 429 Slowly\r\nContent-Length: 0\r\n\r\n", True),
        (b"", True),  # it hangs up
        (OK + b"Content-Length: 99\r\n\r\nhalf", True),
        (b"HTTP/1.1 404 Absent\r\nContent-Length: 0\r\n\r\n", False),
        (redirect("ftp://example.org/x"), False),
    ],
)
def test_a_server_that_may_answer_later_is_told_from_one_that_has_no_image(
    answer: bytes, may_pass: bool
) -> None:
    with server(answer) as url, pytest.raises(DataError, match="could not be fetched") as caught:
        image_like.fetch(f"{url}/7.png")
    assert isinstance(caught.value, NotFetchedError) is may_pass


@pytest.mark.parametrize("url", ["http://h:99999/x", "http://[bad/x", "hf.co", "http://", " "])
def test_a_server_that_nobody_can_have_is_not_looked_for(url: str) -> None:
    assert "no address of the web" in str(Reach([url]).problem(url))


@pytest.mark.parametrize("length", ["abc", "-5", "²", "9" * 5000])
def test_a_length_that_is_no_number_is_none(length: str, tmp_path: Any) -> None:
    answer = OK + f"Content-Length: {length}\r\n\r\nall of it".encode("latin-1")
    with server(answer) as url:
        download.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"all of it"


def test_an_answer_that_is_packed_unasked_is_refused(tmp_path: Any) -> None:
    answer = OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(1 << 20))
    refused = pytest.raises(download.UnavailableError, match="packed by gzip, which was not asked")
    with server(answer) as url, refused:
        download.download(url, tmp_path / "file")
    assert not any(tmp_path.glob("*.part"))


@pytest.mark.parametrize("tag", [b"\xff\xfe", b"a\nb", b"", b'W/"weak"', b'"%d"' % 10**2000, None])
def test_a_tag_that_does_not_say_which_bytes_there_are_begins_the_file_again(
    tag: bytes | None, tmp_path: Any
) -> None:
    (tmp_path / "file.part").write_bytes(b"half")
    if tag is None:  # which would be waited for
        os.mkfifo(tmp_path / "file.etag")
    else:
        (tmp_path / "file.etag").write_bytes(tag)
    with server(OK + b"Content-Length: 9\r\n\r\nall of it") as url:
        download.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"all of it"


def test_a_part_that_is_a_link_is_not_written_through(tmp_path: Any) -> None:
    (tmp_path / "mine").write_bytes(b"all ")
    (tmp_path / "file.part").symlink_to(tmp_path / "mine")
    (tmp_path / "file.etag").write_bytes(b'"a"')
    with server(OK + b"Content-Length: 9\r\n\r\nall of it") as url:
        download.download(url, tmp_path / "file")
    assert (tmp_path / "mine").read_bytes() == b"all "


@pytest.fixture
def byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(web, "PIECE", 1)


def part_of(text: bytes, span: bytes, headers: bytes = b'ETag: "a"\r\n') -> bytes:
    """A part of nine bytes, as a server sends it."""
    length = b"Content-Length: %d\r\nConnection: close\r\n" % len(text)
    spans = b"Content-Range: bytes %s\r\n" % span if span else b""
    return b"HTTP/1.1 206 Part\r\n" + length + spans + headers + b"\r\n" + text


CUT = OK + b'ETag: "a"\r\nContent-Length: 9\r\n\r\nall o'
WHOLE = OK + b"Content-Length: 9\r\n\r\nnew bytes"


@pytest.mark.parametrize(
    "other",
    [
        part_of(b"ytes", b"5-8/9", b'ETag: "b"\r\n'),
        part_of(b"ytes", b"5-8/9", b""),
        part_of(b"f it", b"4-7/9"),
        part_of(b"f it", b"5-8/*"),
        part_of(b"f it", b""),
    ],
    ids=["another tag", "no tag", "another place", "no size", "no place"],
)
@pytest.mark.usefixtures("byte_by_byte")
def test_a_part_of_another_file_or_place_is_never_joined(other: bytes, tmp_path: Any) -> None:
    with server(CUT, other, WHOLE) as url:
        download.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new bytes"


@pytest.mark.usefixtures("byte_by_byte")
def test_a_server_that_sends_less_than_was_asked_for_is_asked_for_the_rest(tmp_path: Any) -> None:
    with server(CUT, part_of(b"f ", b"5-6/9"), part_of(b"it", b"7-8/9")) as url:
        download.download(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"all of it"


@pytest.mark.parametrize("status", [b"204 None", b"203 Changed", b"304 Same", b"300 Many"])
def test_an_answer_that_is_not_the_file_is_no_file(status: bytes, tmp_path: Any) -> None:
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    refused = pytest.raises(download.UnavailableError, match=status.decode())
    with server(answer) as url, refused:
        download.download(url, tmp_path / "file")


def test_a_redirect_that_is_refused_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    pauses: list[threading.Thread] = []
    real = time.sleep

    def sleep(seconds: float) -> None:
        pauses.append(threading.current_thread())
        real(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    refused = pytest.raises(download.UnavailableError, match="no address of the web")
    with server(redirect("file:///etc/passwd")) as url, refused:
        download.download(url, tmp_path / "file")
    assert threading.current_thread() not in pauses


def test_a_body_without_end_does_not_fill_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(download, "LARGEST", 1 << 20)
    refused = pytest.raises(download.UnavailableError, match="it is larger than")
    with server(OK + b"\r\n", drops=PIECE) as url, refused:
        download.download(url, tmp_path / "file")


def test_certificates_of_a_site_are_those_that_the_hubs_client_trusts_and_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trusted = []

    def get(session: requests.Session, *_: object, **__: object) -> None:
        trusted.append(session.verify)
        raise requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify")

    monkeypatch.setattr(requests.Session, "get", get)
    monkeypatch.setenv("SSL_CERT_FILE", "/site/ca.pem")
    with pytest.raises(requests.RequestException) as caught, web.get("https://x", timeout=1.0):
        pass
    assert trusted == ["/site/ca.pem"]
    assert web.reason_of(caught.value).endswith(
        "; set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to the certificates of your site"
    )


def test_certificates_that_are_not_there_are_a_reason_like_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    refused = pytest.raises(requests.RequestException, match=r"none\.pem")
    with refused, web.get("https://127.0.0.1:9", timeout=1.0):
        pass
