"""The zoo's own cache: a file is hashed once and remembered, and nothing depends on it."""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo import files
from deit_zoo.errors import DownloadError, IntegrityError, ZooError
from deit_zoo.weights import cache
from support.machine import sha256

RIGHT, WRONG = b"the right bytes", b"the wrong bytes"


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "zoo"))
    return tmp_path / "zoo"


@pytest.fixture
def file(zoo: Path, tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(RIGHT)
    return tmp_path / "model.safetensors"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read, one entry for each time."""
    read: list[Path] = []
    digest = files.digest

    def noted(path: files.OpenedFile) -> str:
        read.append(path.path)
        return digest(path)

    monkeypatch.setattr(files, "digest", noted)
    return read


def swap_bytes(file: Path) -> None:
    """Other bytes behind the same path, size, modification time and inode."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.write(WRONG)
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the system's clock ticks in 4 ms
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_is_hashed_at_its_first_use_only(file: Path, hashed: list[Path]) -> None:
    for _ in range(3):
        cache.check(file, sha256(RIGHT))
    assert hashed == [file]


@pytest.mark.parametrize(("policy", "times"), [("once", 1), ("always", 3), ("never", 0)])
def test_the_policy_says_how_often(
    policy: str, times: int, file: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_VERIFY", policy)
    for _ in range(3):
        cache.check(file, sha256(RIGHT))
    assert len(hashed) == times


def test_another_policy_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_ZOO_VERIFY", "sometimes")
    with pytest.raises(ZooError) as caught:
        cache.check(file, sha256(RIGHT))
    assert str(caught.value) == "DEIT_ZOO_VERIFY is 'sometimes'; set it to once, always or never"


@pytest.mark.parametrize("policy", ["once", "always"])
def test_other_bytes_of_the_same_size_time_and_inode_are_noticed(
    policy: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_VERIFY", policy)
    cache.check(file, sha256(RIGHT))
    before = file.stat()
    swap_bytes(file)
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert after.st_ino == before.st_ino
    with pytest.raises(IntegrityError) as caught:
        cache.check(file, sha256(RIGHT))
    assert str(caught.value) == (
        f"{file} has SHA-256 {sha256(WRONG)}, but {sha256(RIGHT)} is expected; remove it and get "
        "it again"
    )


def test_a_file_that_is_written_to_while_it_is_hashed_is_hashed_again(
    file: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = cache.verify

    def written_to(path: files.OpenedFile, expected: str) -> None:
        verify(path, expected)
        swap_bytes(file)

    monkeypatch.setattr(cache, "verify", written_to)
    with pytest.raises(IntegrityError, match=f"{sha256(WRONG)}, but {sha256(RIGHT)} is expected"):
        cache.check(file, sha256(RIGHT))
    monkeypatch.setattr(cache, "verify", lambda path, expected: swap_bytes(file))
    with pytest.raises(IntegrityError, match="was changed each time it was hashed"):
        cache.check(file, sha256(RIGHT))
    assert not zoo.exists()


def test_what_is_read_is_the_file_that_was_hashed_whatever_is_put_in_its_place(
    file: Path, tmp_path: Path
) -> None:
    with cache.verified(file, sha256(RIGHT)) as same:
        (tmp_path / "other").write_bytes(WRONG)
        (tmp_path / "other").replace(file)
        with open(same, "rb") as stream:
            assert stream.read() == RIGHT
    assert file.read_bytes() == WRONG


@pytest.mark.parametrize("policy", ["once", "always"])
def test_a_fifo_or_a_folder_in_its_place_is_refused_and_does_not_hang(
    policy: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_VERIFY", policy)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ZooError, match="is a FIFO; give a regular file"):
        cache.check(file, sha256(RIGHT))
    file.unlink()
    file.mkdir()
    with pytest.raises(ZooError, match=r"cannot be read \(Is a directory\); give a file"):
        cache.check(file, sha256(RIGHT))


def touch(file: Path) -> None:
    os.utime(file, ns=(0, 0))


def copy(file: Path) -> None:
    before = file.stat()
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [touch, copy])
def test_a_file_of_another_time_or_inode_is_hashed_again(
    change: Callable[[Path], None], file: Path, hashed: list[Path]
) -> None:
    cache.check(file, sha256(RIGHT))
    change(file)
    cache.check(file, sha256(RIGHT))
    cache.check(file, sha256(RIGHT))
    assert hashed == [file, file]


def test_a_remembered_digest_is_no_proof_of_another(file: Path) -> None:
    cache.check(file, sha256(RIGHT))
    with pytest.raises(IntegrityError, match=f"{sha256(RIGHT)}, but {sha256(WRONG)} is expected"):
        cache.check(file, sha256(WRONG))


def test_a_file_that_failed_is_not_remembered(file: Path, zoo: Path) -> None:
    with pytest.raises(IntegrityError):
        cache.check(file, sha256(WRONG))
    assert not zoo.exists()


def test_a_link_is_remembered_as_the_file_behind_it(
    file: Path, hashed: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(file)
    cache.check(tmp_path / "link", sha256(RIGHT))
    cache.check(file, sha256(RIGHT))
    assert hashed == [tmp_path / "link"]


def test_where_nothing_can_be_remembered_each_use_hashes(
    file: Path, zoo: Path, hashed: list[Path]
) -> None:
    zoo.write_text("a file where the folder should be")
    cache.check(file, sha256(RIGHT))
    cache.check(file, sha256(RIGHT))
    assert hashed == [file, file]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number which has no name."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "DEIT_ZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ZooError, match="set DEIT_ZOO_CACHE to a folder"):
        cache.folder()


def test_where_there_is_no_home_each_use_hashes(
    file: Path, homeless: None, hashed: list[Path]
) -> None:
    cache.check(file, sha256(RIGHT))
    cache.check(file, sha256(RIGHT))
    assert hashed == [file, file]


def test_a_user_without_a_home_loads_a_model_of_the_package(homeless: None) -> None:
    assert deit_zoo.create("deit_pico_digits", pretrained=True).checkpoint.proof == "pinned"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"size": 15}', "null", "\xff", "[" * 10_000, "a device"]
)
def test_a_broken_record_is_no_record(
    content: str, file: Path, zoo: Path, hashed: list[Path]
) -> None:
    cache.check(file, sha256(RIGHT))
    (record,) = (zoo / "verified").iterdir()
    if content == "a device":
        record.unlink()
        record.symlink_to("/dev/zero")
    else:
        record.write_text(content, encoding="latin-1")
    cache.check(file, sha256(RIGHT))
    assert hashed == [file, file]


@pytest.mark.parametrize("field", ["key", "size", "mtime_ns", "ctime_ns", "inode", "sha256"])
def test_a_record_without_a_field_or_with_another_type_is_no_record(
    field: str, file: Path, zoo: Path, hashed: list[Path]
) -> None:
    cache.check(file, sha256(RIGHT))
    [path] = (zoo / "verified").iterdir()
    record = json.loads(path.read_text())
    for changed in ({**record, field: None}, {k: v for k, v in record.items() if k != field}):
        path.write_text(json.dumps(changed))
        cache.check(file, sha256(RIGHT))
    assert hashed == [file, file, file]


def test_a_wanted_digest_is_checked_at_no_cost_the_second_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.check(file, sha256(RIGHT))

    def opened(*arguments: object) -> str:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(files, "digest", opened)
    monkeypatch.setattr(cache, "write_whole", opened)
    cache.check(file, sha256(RIGHT))


@pytest.mark.parametrize(
    ("mode", "of_a_lock"),
    [(0o1777, 0o666), (0o2775, 0o664), (0o755, 0o644), (0o700, 0o600)],
)
def test_folders_and_locks_are_for_whom_the_cache_is_for(
    mode: int, of_a_lock: int, zoo: Path
) -> None:
    zoo.mkdir()
    zoo.chmod(mode)
    with cache.one_at_a_time("all"):
        cache.make_folder(zoo / "originals" / "deit_small")
        lock = stat.S_IMODE((zoo / "locks" / "all.lock").stat().st_mode)
    made = [zoo / "originals", zoo / "originals" / "deit_small", zoo / "locks"]
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in made]
    assert modes == [mode, mode, mode & 0o6777]
    assert lock == of_a_lock


@pytest.mark.parametrize(("mode", "of_a_record"), [(0o2770, 0o640), (0o755, 0o644), (0o700, 0o600)])
def test_records_are_for_whom_the_cache_is_for_whatever_the_umask(
    mode: int, of_a_record: int, file: Path, zoo: Path
) -> None:
    zoo.mkdir()
    zoo.chmod(mode)
    before = os.umask(0o077)
    try:
        cache.check(file, sha256(RIGHT))
    finally:
        os.umask(before)
    [record] = (zoo / "verified").iterdir()
    assert stat.S_IMODE(record.stat().st_mode) == of_a_record


def test_a_disk_that_knows_no_modes_holds_a_cache(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    with cache.one_at_a_time("all"):
        assert (zoo / "locks" / "all.lock").is_file()


def test_what_a_killed_process_left_of_a_lock_is_no_barrier(zoo: Path) -> None:
    (zoo / "locks" / "all.holder").mkdir(parents=True)
    with cache.one_at_a_time("all"):
        pass


def test_a_lock_that_cannot_be_made_is_named(zoo: Path) -> None:
    (zoo / "locks" / "all.lock").mkdir(parents=True)
    where = rf"cannot be written to \(Is a directory: {zoo}/locks/all\.lock\); set DEIT_ZOO_CACHE"
    with pytest.raises(DownloadError, match=where), cache.one_at_a_time("all"):
        pass


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_ZOO_CACHE", "/one")
    assert cache.folder() == Path("/one")
    monkeypatch.delenv("DEIT_ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache.folder() == Path("/two/deit_zoo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache.folder() == Path("/home/ada/.cache/deit_zoo")
