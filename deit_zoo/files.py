"""Files that are whole or not there, the digests that say which bytes they hold, and JSON.

JSON may come from anybody: it is read within bounds of size, depth and number, from regular files
alone, and what is not as it should be is a FormatError of one sentence.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias, TypeVar

from deit_zoo.errors import DataError, FormatError, IntegrityError, ZooError

ASSETS = Path(__file__).parent / "assets"
# What lies in a folder that is a checkpoint, and in one that is a run.
MODEL_FILE, RECEIPT_FILE, SUMS_FILE = "model.safetensors", "receipt.json", "SHA256SUMS"
WEIGHT_FILES = (MODEL_FILE, "pytorch_model.bin")  # of a folder, the first that there is
INDEX_SUFFIX = ".index.json"  # after these, of what lists the files that hold a part each
CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
RECORD_FILE = "checkpoint.json"  # the manifest's record of weights that are carried
PLAN_FILE, LOG_FILE, STEPS_FILE = "plan.json", "log.jsonl", "steps.jsonl"
LABELS_FILE, LABEL_FACTS_FILE = "labels.npy", "labels.json"  # of a teacher

# What files of weights are called; which kind one is, its bytes say.
PICKLE_SUFFIXES = frozenset((".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar"))
EXPORT_SUFFIXES = frozenset((".onnx", ".pt2"))
WEIGHTS_SUFFIXES = PICKLE_SUFFIXES | {".safetensors"}
# A JSON document of the zoo's or the Hub's is 100 kB, and nested 8 deep; a configuration of 21,000
# classes is 2 MB; ReaL's labels are 50,000 lists. A SHA256SUMS has a line a file.
JSON_BYTES, JSON_DEPTH, JSON_LISTS = 8 << 20, 64, 1 << 18
SUMS_BYTES = 1 << 20
_INTEGER_DIGITS = 20  # those of 64 bits, with a sign
_WITHOUT_WAITING = sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
Place: TypeAlias = "str | os.PathLike[str]"
T = TypeVar("T")


def expand_user(path: str | os.PathLike[str]) -> Path:
    """A path with its `~` filled in. Raises ZooError where nobody knows that home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ZooError(f"{path}: no such home folder is known here; type the whole path") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when all is in it, and is gone where not."""
    folder = Path(os.path.realpath(folder))
    temporary = temporary_in(folder.parent, folder.name)
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            yield temporary
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(
    path: Path, option: str = "--output", kind: type[ZooError] = DataError
) -> Iterator[None]:
    """Within it, what the disk refuses of a path becomes one sentence that names the option; what
    it refuses of other files stays an OSError."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | bytes) and not _is_part(error.filename, path):
            raise
        reason = error.strerror or error
        raise kind(f"{path} cannot be written ({reason}); give another {option}") from error


def _is_part(name: str | bytes, path: Path) -> bool:
    """Whether a name is that of a path, of what is made or lies there, or of a folder that holds
    it."""
    name, own = os.path.abspath(os.fsdecode(name)), os.path.abspath(path)
    temporary = os.path.join(os.path.dirname(own), f".{path.name}.")
    within = (os.path.join(own, ""), temporary)
    return name == own or name.startswith(within) or own.startswith(os.path.join(name, ""))


def check_new_file(file: Path, suffixes: Sequence[str], option: str = "--output") -> None:
    """Raises DataError where no file with one of these suffixes can be put; `option` says which."""
    example = " or ".join(f"FILE{suffix}" for suffix in suffixes)
    advice = f"type {option} {example}" if option.startswith("-") else f"give {example}"
    if file.suffix.lower() not in suffixes:
        raise DataError(f"{file} does not end in {' or '.join(suffixes)}; {advice}")
    if file.is_dir():
        raise DataError(f"{file} is a folder; {advice}")
    if not file.parent.is_dir():
        raise DataError(f"there is no folder {file.parent}; make it, or give another {option}")
    if not os.access(file.parent, os.W_OK):
        raise DataError(f"{file} cannot be written (permission denied); give another {option}")


def write_whole(file: Path, data: bytes) -> None:
    """Put `data` under `file`'s name, or leave what was there, as `writing_whole`."""
    with writing_whole(file) as stream:
        stream.write(data)


def write_json(file: Path, value: Any) -> None:
    """The same of a value as JSON for people to read; a number that is not finite is refused."""
    write_whole(file, f"{json.dumps(value, indent=2, sort_keys=True, allow_nan=False)}\n".encode())


@contextmanager
def writing_whole(file: Path) -> Iterator[BinaryIO]:
    """A stream of which all comes under `file`'s name, or nothing: temporary name, fsync, rename.

    FormatError where the name is a device's or a FIFO's: it would be gone.
    """
    if file.exists():
        _check_regular(file, file.stat().st_mode)
    temporary = temporary_in(file.parent, file.name)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there; on Windows nobody knows."""
    if sys.platform == "win32":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no system counts so far
        return False
    except OSError:  # it is another user's
        pass
    return True


def machine_key() -> str:
    """What tells this machine, and a container with processes of its own, from others that write to
    the same disk."""
    names = socket.gethostname()
    with suppress(OSError):  # Linux alone numbers the processes of containers by themselves
        names += os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(names.encode()):08x}"


def temporary_in(folder: Path, name: str) -> Path:
    """Where something may be made that becomes `name`; what processes of this machine that were
    killed had begun of it is removed."""
    beginning = f".{name}.{machine_key()}."
    with suppress(OSError):
        for path in folder.iterdir():
            pid = path.name.removeprefix(beginning).partition(".")[0]
            if path.name.startswith(beginning) and pid.isdecimal() and not is_running(int(pid)):
                _remove(path)
    return folder / f"{beginning}{os.getpid()}.{secrets.token_hex(4)}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def open_regular(file: os.PathLike[str]) -> BinaryIO:
    """A file to read from. FormatError for a FIFO, a device or a socket, which could hang."""
    return open(open_descriptor(file, _check_regular), "rb")


def open_descriptor(file: Place, check: Callable[[Place, int], None]) -> int:
    """A descriptor of a file whose mode passes a check, before it is opened and afterwards.

    A FIFO would wait for a writer, and a terminal become that of this process.
    """
    check(file, os.stat(file).st_mode)
    descriptor = os.open(file, os.O_RDONLY | _WITHOUT_WAITING)
    try:
        check(file, os.fstat(descriptor).st_mode)  # what took its place meanwhile
    except (ZooError, OSError):
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(file: Place, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(mode), "a device")
        raise FormatError(f"{file} is {what}; give a regular file")


class OpenedFile(os.PathLike[str]):
    """A file that stays the one that was opened, whatever is put under its name meanwhile.

    It reads as its path does and opens by its descriptor; where a system has no names for
    descriptors, by its path.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self._stream = path, stream
        self._name = f"/proc/self/fd/{stream.fileno()}"
        if not os.path.exists(self._name):
            self._name = str(path)

    def __fspath__(self) -> str:
        return self._name

    def __str__(self) -> str:
        return str(self.path)

    @property
    def status(self) -> os.stat_result:
        """Size, times and inode of the file that is open."""
        return os.fstat(self._stream.fileno())

    @property
    def suffix(self) -> str:
        return self.path.suffix


@contextmanager
def opened(file: Path) -> Iterator[OpenedFile]:
    """Within it the file is one and the same. OSError where it cannot be read; FormatError, as
    `open_regular`."""
    with open_regular(file) as stream:
        yield OpenedFile(file, stream)


def read_bytes(file: os.PathLike[str], limit: int = JSON_BYTES) -> bytes:
    """All bytes of a regular file. FormatError where there are more than `limit`."""
    with open_regular(file) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{file} is larger than {limit:,} bytes, so it was not read")
    return data


def read_json(file: os.PathLike[str], limit: int = JSON_BYTES) -> Any:
    """What a JSON file holds. OSError where it cannot be read, FormatError as `parse_json`."""
    return parse_json(read_bytes(file, limit), str(file))


def parse_json(
    data: bytes | str, where: str, parse_constant: Callable[[str], Any] | None = None
) -> Any:
    """What a JSON text says; `where` names it in the error.

    FormatError for what is no JSON in UTF-8, is nested deeper than JSON_DEPTH, has over JSON_LISTS
    lists and objects, names a key twice, or holds a number that is not finite or has no 64 bits.
    `parse_constant` makes something of NaN and Infinity, which are no JSON either.
    """
    starts = map(data.count, ("[", "{")) if isinstance(data, str) else map(data.count, b"[{")
    if sum(starts) > JSON_LISTS:
        raise FormatError(f"{where} holds more than {JSON_LISTS:,} lists, so it was not read")
    try:
        value = json.loads(
            data if isinstance(data, str) else data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=parse_constant or _finite,
        )
    except UnicodeDecodeError as error:
        raise FormatError(f"{where} is not JSON (byte {error.start} is not UTF-8)") from error
    except ValueError as error:
        raise FormatError(f"{where} is not JSON ({error})") from error
    except RecursionError:
        _too_deep(where)
    level = [value]
    for _ in range(JSON_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in _nested(level))
        level = [item for items in inner for item in items]
    if _nested(level):
        _too_deep(where)
    return value


def as_record(value: Any, kind: type[T], where: str) -> T:
    """`value` as a dataclass, or another type that msgspec knows, every field of its type.

    FormatError names the field that is missing or of another type. Other fields are left out.
    A union names list[T], not tuple[T, T]: of that msgspec 0.22 makes what ends the process.
    """
    import msgspec  # what only reads names and facts needs none

    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"{where} is not as it should be ({error})") from error


def _nested(values: list[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _too_deep(where: str) -> NoReturn:
    raise FormatError(f"{where} is nested deeper than {JSON_DEPTH} levels, so it was not read")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"it names {twice!r:.80} twice")
    return values


def _integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS:
        raise ValueError(f"{text[:_INTEGER_DIGITS]}... is no number of 64 bits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def verify(file: Path | OpenedFile, sha256: str) -> None:
    """Raises IntegrityError with both digests unless the file has this SHA-256."""
    if not os.path.isfile(file):
        raise IntegrityError(f"{file} is missing; install deit_zoo again")
    if (actual := digest(file)) != sha256:
        raise IntegrityError(
            f"{file} has SHA-256 {actual}, but {sha256} is expected; remove it and get it again"
        )


def digest(
    file: Path | OpenedFile,
    advance: Callable[[int], None] = lambda count: None,
    kind: str = "sha256",
) -> str:
    """The digest of a file's bytes, in hexadecimal; `advance` is called with each count read."""
    hasher = hashlib.new(kind, usedforsecurity=False)
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
            advance(len(chunk))
    return hasher.hexdigest()


def digest_of_blob(file: Path, git_sha1: str | None) -> str:
    """The SHA-256 of a file that git names by this SHA-1, where one is known; or IntegrityError."""
    sha256, size = hashlib.sha256(), file.stat().st_size
    sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            sha1.update(chunk)
    if git_sha1 not in (None, actual := sha1.hexdigest()):
        raise IntegrityError(
            f"{file} has git's SHA-1 {actual}, but {git_sha1} is expected; remove it and get it "
            "again"
        )
    return sha256.hexdigest()


def read_sums(file: Path) -> dict[str, str]:
    """The digest of each file that a SHA256SUMS names, all within its folder.

    FormatError for what no sha256sum writes of a folder: other lines, names that lead out of it,
    two digests of one file.
    """
    sums: dict[str, str] = {}
    lines = read_bytes(file, SUMS_BYTES).decode("utf-8", "backslashreplace").splitlines()
    for number, line in enumerate(lines, start=1):
        entry = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", line)
        if entry is None or not is_inside(entry[2]) or sums.get(entry[2], entry[1]) != entry[1]:
            raise FormatError(
                f"line {number} of {file} is {line!r:.120}, which is not what sha256sum writes of "
                "this folder"
            )
        sums[entry[2]] = entry[1]
    if not sums:
        raise FormatError(f"{file} is empty, so it states no digests")
    return sums


def write_sums(folder: Path) -> None:
    """SHA256SUMS of all that is in a folder."""
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    write_whole(folder / SUMS_FILE, sums.encode())


def is_inside(name: str) -> bool:
    """Whether a file's name stays in the folder that it is joined to, on every system."""
    parts = re.split(r"[/\\]", name)
    drive = re.match(r"[A-Za-z]:", name)
    return name.isprintable() and not drive and not {"", ".", ".."} & set(parts)
