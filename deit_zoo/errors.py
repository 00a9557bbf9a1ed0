"""What can go wrong, and the checks of arguments that all doors share.

Every message is one sentence for the person who typed.

Messages land in logs and in reports of bugs, so none shows a password or what gives access.
"""

import operator
import os
import re
from collections.abc import Sequence
from numbers import Real
from typing import Any

_ADDRESS = re.compile(r"://((?:(?!://)\S)+)")
# user:password@ of an address, any sign in the password; not host:port/. Or TOKEN@.
_PASSWORD = re.compile(r"[^/?#@:'\"<>]+:(?!\d+[/?#])")
_NO_PATH = re.compile(r"[^/?#'\"<>]*")
# What an address asks by: a presigned one is a key to its file.
_QUERY = re.compile(r"(?i)(\?|%3f|[#;](?=[^'\"<>#;]*=))((?:=['\"<]|[^'\"<>])*[^\s'\"<>.,:;)\]}])")
_NAMES = r"signature|sig|credential|token|secret|passw(?:or)?d|pwd|(?:api|access|account)[_-]?key"
# Each reads a text in one go, however it looks.
_SECRETS = (
    # A query, as libraries cut it off in the front.
    (r"([?#])[^\s'\"<>?#=]+=[^\s'\"<>]*", r"\1***"),
    (r"(\(…\))[^\s'\"<>)&]+(?![^\s'\"<>)&]*&)", r"\1***"),
    (r"(?:\(…\))?(?<![\w.%-])[\w.%-]+=[^\s'\"<>&=]*=*&[^\s'\"<>)]*", "***"),
    (rf"(?i)((?:{_NAMES})[=:])[^\s'\"<>&;,)]+", r"\1***"),
    (rf"""(?i)((?:{_NAMES})(['"])\s*:\s*\2)[^'"]+""", r"\1***"),
    (r"(?i)(bearer |authorization['\"]?: ?(?:b?['\"])?\w+ )[^\s'\"]{8,}", r"\1***"),
    (r"(?i)(cookie['\"]?: ?)[^\n]+", r"\1***"),
    (r"\bhf_(?:(?:oauth|jwt|app)_[\w.-]{8,}|[A-Za-z0-9]{8,}\b)", "***"),
)
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")
_TOKEN_SIGNS = 8  # a shorter one could be a word


def redact(text: str) -> str:
    """A text without passwords, tokens and the queries of addresses, for others to read."""
    text = _ADDRESS.sub(_without_access, text)
    for pattern, masked in _SECRETS:
        text = re.sub(pattern, masked, text)
    for name in _TOKENS:
        if len(token := os.environ.get(name, "")) >= _TOKEN_SIGNS:
            text = text.replace(token, "***")
    return text


def _without_access(address: re.Match[str]) -> str:
    """An address from its :// on, without user and query; hf://ORG/REPO@REVISION has no user."""
    rest = address[1]
    user, sign, host = rest.rpartition("@")
    is_hub = address.string.endswith("hf", 0, address.start())
    if sign and (_PASSWORD.match(user) or (not is_hub and _NO_PATH.fullmatch(user))):
        rest = f"***@{host}"
    return "://" + _QUERY.sub(r"\1***", rest, count=1)


def words_of(error: BaseException) -> str:
    """What an error says, on one line; of one that says nothing its kind."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def reason_of(error: BaseException) -> str:
    """The same of an operating system's error without the file, which is named beside it."""
    reason = error.strerror if isinstance(error, OSError) else None
    return reason[:1].lower() + reason[1:] if reason else words_of(error)


def first_of(names: Sequence[object], most: int = 8) -> str:
    """The first of names in a sentence, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


class ZooError(Exception):
    """The base of all errors that a user can mend; the command line prints it and exits 2."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redact(text) if isinstance(text, str) else text for text in arguments))


class UnknownModelError(ZooError):
    """No model has this name."""


class CheckpointError(ZooError):
    """A checkpoint, or the manifest that describes it, does not fit what was asked for."""


class DownloadError(ZooError):
    """A file could not be fetched from any of its sources."""


class IntegrityError(ZooError):
    """A file's bytes are not those that its digest promises."""


class FormatError(ZooError, ValueError):
    """A file, or a text of its kind, is not what its reader takes: no JSON, too large, no file."""


class OfflineError(ZooError):
    """A file is not on this machine and the network may not be used."""


class ImageSizeError(ZooError):
    """An image size does not fit the model."""


class DataError(ZooError):
    """An image or a folder of images cannot be used as it is."""


class RecipeError(ZooError):
    """A recipe, or a change asked of it, makes no sense."""


class MissingExtraError(ZooError):
    """A part that is installed separately is needed."""


class DifferenceError(ZooError):
    """An exported file answers otherwise than its model."""


def as_text(key: str, value: Any, expected: str, error: type[ZooError] = ZooError) -> str:
    """A name or a path as text. Raises `error` for what is neither, such as bytes or a list."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise error(f"{key} is {_with_type(value)}; give {expected}")
    return text


def whole_number(value: Any) -> int | None:
    """An int, numpy's and a tensor's too; None for anything else, also for True and False."""
    if isinstance(value, bool | int):
        return None if isinstance(value, bool) else value
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_whole(
    key: str, value: Any, least: int, expected: str, error: type[ZooError] = ZooError
) -> None:
    """Raises `error` for what is no whole number, or less than the least."""
    number = whole_number(value)
    if number is None or number < least:
        shown = _with_type(value) if number is None else value
        raise error(f"{key} is {shown}; give {expected}")


def is_real(value: Any) -> bool:
    """Whether a value is a number, numpy's too, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _with_type(value: object) -> str:
    """A value with its type; of what is long to write, such as a model, the type alone."""
    text, kind = repr(value), type(value).__name__
    return f"{text} ({kind})" if len(text) <= 60 and text.isprintable() else f"of type {kind}"
