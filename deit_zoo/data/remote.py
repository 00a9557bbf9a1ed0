"""What lies at an address that fsspec knows: `s3://`, `gs://`, and more.

Archives, at `https://` too, are fetched once, whole, and kept in the zoo's cache; one that has
another size or another tag at its address by now is fetched again. Images are read as they are
looked at.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from deit_zoo.data.image_file import check_length
from deit_zoo.data.prefetch import ordered_map
from deit_zoo.errors import DataError, MissingExtraError, words_of
from deit_zoo.files import digest, expand_user, temporary_in
from deit_zoo.terminal import Bar
from deit_zoo.version import USER_AGENT
from deit_zoo.weights import cache

LOCAL, HFDS = "file://", "hfds:"
# Files that are fetched at the same time.
FETCHERS = 8


class _File(NamedTuple):
    """A file at its address, as it is there now, and its place in the cache."""

    url: str
    path: Path
    size: int | None
    state: dict[str, Any]

    def is_fetched(self) -> bool:
        record = cache.read_record("archives", self.url, dict[str, Any])
        return self.path.is_file() and record == self.state | {"key": self.url}


class NotFetchedError(DataError):
    """What lies at an address could not be had, for a reason that may be gone later."""


def local_path(place: Any) -> Any:
    """`file:///photos` and `~/photos` as the path that is meant; whatever else as it is given."""
    if isinstance(place, str) and place.startswith(HFDS):
        return f"{HFDS}{local_path(place.removeprefix(HFDS))}"
    if isinstance(place, str) and place.startswith("~"):  # no shell fills it in in --data=~/photos
        return str(expand_user(place))
    if not isinstance(place, str) or not place.startswith(LOCAL):
        return place
    from urllib.request import url2pathname

    return url2pathname(place.removeprefix(LOCAL).removeprefix("localhost"))


def is_address(image: object) -> bool:
    """Whether an image, or a folder of images, is meant by an address that fsspec knows."""
    others = ("http://", "https://", LOCAL)  # of the web each is one image
    return isinstance(image, str) and is_remote(image) and not image.startswith(others)


def files_under(url: str) -> list[tuple[str, str]]:
    """The address of each file under an address, or of a pattern with *, and its path there."""
    files, path = _file_system(url)
    try:
        if files.isfile(path):
            return [(url, url.rpartition("/")[2])]
        names = sorted(files.glob(path) if "*" in path else files.find(path))
    except Exception as error:
        raise _not_fetched(url, error) from error
    root = path.partition("*")[0].rpartition("/")[0] if "*" in path else path.rstrip("/")
    return [(files.unstrip_protocol(name), name[len(root) :].lstrip("/")) for name in names]


def read_address(url: str) -> bytes:
    """An image's bytes at an address. NotFetchedError unless it is known why there are none."""
    files, path = _file_system(url)
    try:
        check_length(url, files.info(path)["size"] or 0)
        content: bytes = files.cat_file(path)
    except (DataError, FileNotFoundError):
        raise
    except (IsADirectoryError, PermissionError) as error:
        raise _not_fetched(url, error) from error
    except Exception as error:
        raise NotFetchedError(str(_not_fetched(url, error))) from error
    return content


def is_remote(data: str) -> bool:
    """Whether data lie at an address."""
    return "://" in data


def files_at(url: str) -> list[str]:
    """The addresses of all that lies in a folder."""
    files, path = _file_system(url)
    try:
        return sorted(files.unstrip_protocol(name) for name in files.ls(path, detail=False))
    except Exception as error:  # each kind of server raises its own
        raise _not_fetched(url, error) from error


def fetch(urls: Sequence[str]) -> list[Path]:
    """The files at these addresses in the zoo's cache, fetched where they are not there yet."""
    files = [*ordered_map(urls, _look, threads=FETCHERS, ahead=FETCHERS)]
    missing = [file for file in files if not file.is_fetched()]
    if missing:
        key = hashlib.sha256("\n".join(urls).encode()).hexdigest()[:16]
        with cache.one_at_a_time(f"archives-{key}"):
            missing = [file for file in missing if not file.is_fetched()]
            total = sum(file.size or 0 for file in missing)
            _check_space(total)
            with Bar(f"{len(missing):,} archives", size=total) as bar:
                _fetch_all(missing, bar.advance)
    return [file.path for file in files]


def _fetch_all(files: Sequence[_File], advance: Callable[[int], None]) -> None:
    """Get files side by side. After an error or Ctrl-C the others end at their next piece."""
    stopped = Event()

    def counted(size: int) -> None:
        if stopped.is_set():
            raise DataError("another file could not be fetched")
        advance(size)

    fetch_one = partial(_fetch, advance=counted)
    fetched = ordered_map(files, fetch_one, threads=FETCHERS, ahead=FETCHERS, ending=stopped.set)
    with closing(fetched):
        for _ in fetched:
            pass


def _look(url: str) -> _File:
    files, path = _file_system(url)
    try:
        facts = files.info(path)
        # fsspec takes what lies at https:// for unchanging.
        tag = (facts.get("ETag") or facts.get("Last-Modified")) if url.startswith("http") else None
        state = {"size": facts.get("size"), "state": tag or files.ukey(path), "md5": _md5_of(facts)}
    except Exception as error:
        raise _not_fetched(url, error) from error
    folder, _, name = url.rpartition("/")
    # Files of one name may lie at several addresses.
    target = cache.folder() / "archives" / hashlib.sha256(folder.encode()).hexdigest()[:16] / name
    return _File(url, target, state["size"], state)


def _fetch(file: _File, *, advance: Callable[[int], None]) -> None:
    """Get one file under its name, whole or not at all."""
    from fsspec.callbacks import Callback

    callback = Callback()
    callback.relative_update = advance
    files, path = _file_system(file.url)
    temporary = temporary_in(file.path.parent, file.path.name)
    try:
        cache.make_folder(file.path.parent)
        files.get_file(path, str(temporary), callback=callback)
        _check(file, temporary)
        cache.share(temporary, but=~0o644)
        temporary.replace(file.path)
    except DataError:
        raise
    except Exception as error:
        raise _not_fetched(file.url, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    cache.write_record("archives", file.url, file.state)


def _check(file: _File, temporary: Path) -> None:
    """Raises DataError unless a file has the size, and the MD5, that its server stated."""
    size, md5 = temporary.stat().st_size, file.state["md5"]
    if file.size not in (None, size):
        problem = f"{size:,} bytes came, and {file.size:,} were announced"
    elif md5 and digest(temporary, kind="md5") != md5:
        problem = f"its MD5 is not {md5}, which was announced"
    else:
        return
    raise DataError(f"{file.url} did not arrive whole: {problem}; type the command again")


def _md5_of(facts: dict[str, Any]) -> str | None:
    """The MD5 that Google's storage states. An ETag looks like one, and of S3 it need not be one:
    not of encrypted files, and not of those that were sent in parts.
    """
    stated = facts.get("md5Hash")
    return base64.b64decode(stated).hex() if stated else None


def _check_space(total: int) -> None:
    cache.folder().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache.folder()).free
    if total > free:
        raise DataError(
            f"the archives have {total / 1e9:,.1f} GB and the disk of {cache.folder()} has "
            f"{free / 1e9:,.1f} free; set {cache.CACHE_ENVIRONMENT} to a folder with more"
        )


def _file_system(url: str) -> tuple[Any, str]:
    """What reads an address, and its path there. Raises MissingExtraError where it is missing."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        options = {"client_kwargs": {"headers": {"User-Agent": USER_AGENT}}}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise MissingExtraError(
            f"{url} needs a package of its own ({error}); type: pip install 'deit_zoo[remote]'"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{url} is no address that fsspec knows; give one of s3://, gs:// or https://"
        ) from error


def _not_fetched(url: str, error: Exception) -> DataError:
    return DataError(
        f"{url} cannot be fetched ({words_of(error)}); look at the address and at your access"
    )
