"""What can go wrong, and nothing else: every message is one sentence for the person who typed.

Messages land in logs and in reports of bugs, so none shows a password or what gives access.
"""

import os
import re

# No text ends within an address but by one of these.
_SIGN = r"[^\s'\"<>]"
_LAST_SIGN = r"[^\s'\"<>.,:;)\]}]"
_SECRETS = (
    # user:password@ of an address, any sign in the password; not ORG@ of hf://ORG/REPO@REVISION.
    (rf"(?<!hf)://(?:[^/?#@:\s'\"<>]+:(?!\d+[/?#]){_SIGN}*|[^/?#\s'\"<>]*)@", "://***@"),
    # What an address asks by: a presigned one is a key to its file.
    (rf"(://[^\s'\"<>?#]*)\?{_SIGN}*{_LAST_SIGN}", r"\1?***"),
    (rf"([?#])[^\s'\"<>?#=]+={_SIGN}*", r"\1***"),
    # The same, as libraries cut it off in the front.
    (r"(?:\(…\)|\b)[\w.%-]+=[^\s'\"<>&]*&[^\s'\"<>)]*|(?<=\(…\))[^\s'\"<>)]+", "***"),
    (r"(?i)((?:signature|credential|token|secret|password|api[_-]?key)=)[^\s'\"<>&;,)]+", r"\1***"),
    (r"(?i)(bearer )\S{8,}", r"\1***"),
    (r"\bhf_[A-Za-z0-9]{8,}\b", "***"),
)
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")
_TOKEN_SIGNS = 8  # a shorter one could be a word


def redact(text: str) -> str:
    """A text without passwords, tokens and the queries of addresses, for others to read."""
    for pattern, masked in _SECRETS:
        text = re.sub(pattern, masked, text)
    for name in _TOKENS:
        if len(token := os.environ.get(name, "")) >= _TOKEN_SIGNS:
            text = text.replace(token, "***")
    return text


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
