"""What an error never tells, such as passwords and tokens, and that it reaches any process."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo.errors import CheckpointError, ZooError, redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("https://me:PASSWORD@host/x.pth is gone", "https://***@host/x.pth is gone"),
        ("http://me:PASS@W/ORD?@host:80/x", "http://***@host:80/x"),
        ("'https://TOKEN@host/x'", "'https://***@host/x'"),
        ("at https://h/x?X-Amz-Signature=SECRET&a=b; again", "at https://h/x?***; again"),
        ("(https://h/x?SECRET)", "(https://h/x?***)"),
        ('{"url": "https://h/x?sig=SECRET", "a": 1}', '{"url": "https://h/x?***", "a": 1}'),
        ("with url: /cdn/x?Signature=SECRET (Caused by", "with url: /cdn/x?*** (Caused by"),
        ("https://h/x#access_token=SECRET", "https://h/x#***"),
        (f"https://h/x#a;{'k' * 150}=SECRET", "https://h/x#a;***"),
        ("size 100 ((…)ture=SECRET&X-Amz-Credential=SECRET).", "size 100 (***)."),
        ("at (…)SECRET of", "at (…)*** of"),
        ("X-Amz-Credential=SECRET", "X-Amz-Credential=***"),
        ('https://me:PA"SS@host/x is', "https://***@host/x is"),
        ("hf://me:PASSWORD@org/repo", "hf://***@org/repo"),
        ("http://proxy/https://me:PASSWORD@host/x", "http://proxy/https://***@host/x"),
        ("'https://h/x?a=\"SECRET\"'", "'https://h/x?***\"'"),
        ("https://h/x;sig=SECRET, https://h/y%3Fs=SECRET", "https://h/x;***, https://h/y%3F***"),
        ("Authorization: Basic SECRETSECRET", "Authorization: Basic ***"),
        ("{'authorization': b'token SECRETSECRET'}", "{'authorization': b'token ***'}"),
        ("Set-Cookie: session=SECRET; path=/", "Set-Cookie: ***"),
        ('{"token": "SECRET", "a": 1}', '{"token": "***", "a": 1}'),
        ("AccountKey=SECRET;x, pwd=SECRET", "AccountKey=***;x, pwd=***"),
        ("of hf_oauth_SECRET.SECRET-SECRET", "of ***"),
        ("Authorization: Bearer SECRETSECRET", "Authorization: Bearer ***"),
        ("the token hf_abcdefghijklmnop is", "the token *** is"),
    ],
)
def test_a_secret_is_masked_and_the_rest_stays(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert str(CheckpointError(text)) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "hf://org/repo@1234567/model.safetensors",
        "checkpoint 'hf://org/repo@main' is no Hub address; did you mean hf://org/other?",
        "type --set lr=0.1, or HF_TOKEN to a token with write access",
        "http://localhost:8000/a/@name/x.png",
        "/photos/who?.jpg and hf_hub_download",
        "http://localhost:8000/x;v2, https://h/a#b.",
        "no --set with secret: words, and token: in a sentence",
        "https://huggingface.co/org/repo#usage",
    ],
)
def test_what_is_no_secret_is_told(text: str) -> None:
    assert redact(text) == text


def test_the_token_that_is_set_is_masked_whatever_it_looks_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "no-pattern-knows-it")
    assert redact("sent no-pattern-knows-it there") == "sent *** there"


def test_a_long_text_is_read_in_one_go() -> None:
    pieces = ("a.", "token=", "://", "://a:", "://a@", "?a", "a=b&", "(…)", "bearer ", "a==", "hf_")
    pieces += ("#", ";")
    # By a pattern that looks again from each sign on, this would take hours.
    code = (
        "from deit_zoo.errors import redact\n"
        f"for one in {pieces}: redact(one * 100_000 + '://' + one * 100_000)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


def subclasses(of: type[ZooError]) -> Iterator[type[ZooError]]:
    yield of
    for kind in of.__subclasses__():
        yield from subclasses(kind)


def test_every_error_reaches_another_process_and_is_made_anew_of_its_sentence() -> None:
    root = Path(deit_zoo.__file__).parent
    for file in root.rglob("*.py"):
        if re.search(r"^class \w+\(\w*Error", file.read_text(encoding="utf-8"), re.MULTILINE):
            import_module(".".join(file.relative_to(root.parent).with_suffix("").parts))
    kinds = {*subclasses(ZooError)}
    assert {"UnknownFormatError", "WorkersDiedError"} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        error = kind("it is so; do this")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), str(error)) == (kind, str(error), "it is so; do this")
