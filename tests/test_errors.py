"""What is never told: passwords, tokens, and what gives access to a file at its address."""

from __future__ import annotations

import pytest

from deit_zoo.errors import CheckpointError, redact


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
        ("size 100 ((…)ture=SECRET&X-Amz-Credential=SECRET).", "size 100 (***)."),
        ("at (…)SECRET of", "at (…)*** of"),
        ("X-Amz-Credential=SECRET", "X-Amz-Credential=***"),
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
