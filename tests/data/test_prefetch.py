"""Reading ahead: the order, the bound, the overlap, errors, and threads that end or are left."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from deit_zoo.data import prefetch as module
from deit_zoo.data.decode import open_image, opened
from deit_zoo.data.prefetch import default_threads, ordered_map, prefetch
from deit_zoo.errors import DataError

PATIENCE = 30.0  # seconds until a test that waits in vain fails


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twelve images, each one pixel wider than the one before, from 1."""
    found = [tmp_path / f"{number:02d}.png" for number in range(12)]
    for number, file in enumerate(found):
        Image.new("RGB", (1 + number, 4)).save(file)
    return found


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """After each test only the threads from before it are alive."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def width(file: Path) -> int:
    return open_image(file, reading="upright").width


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_batches_are_full_and_in_the_order_of_the_files(files: list[Path], threads: int) -> None:
    with prefetch(files, width, batch_size=5, threads=threads) as batches:
        assert list(batches) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]


def test_what_is_read_first_waits_for_what_comes_first(files: list[Path]) -> None:
    second_done = threading.Event()

    def read(file: Path) -> int:
        if file == files[0]:
            assert second_done.wait(PATIENCE)
        found = width(file)
        if file == files[1]:
            second_done.set()
        return found

    assert list(ordered_map(files, read, threads=2, ahead=2)) == list(range(1, 13))


def test_nothing_gives_no_batch() -> None:
    with prefetch([], width, batch_size=5) as batches:
        assert list(batches) == []


def test_later_images_are_read_while_the_first_batch_is_looked_at(files: list[Path]) -> None:
    read_later = threading.Event()

    def read(file: Path) -> int:
        found = width(file)
        if file == files[5]:
            read_later.set()
        return found

    with prefetch(files, read, batch_size=3, threads=1) as batches:
        assert next(batches) == [1, 2, 3]
        assert read_later.wait(PATIENCE)
        assert next(batches) == [4, 5, 6]


def test_files_are_taken_as_they_are_needed(files: list[Path]) -> None:
    taken: list[Path] = []

    def given() -> Iterator[Path]:
        for file in files:
            taken.append(file)
            yield file

    results = ordered_map(given(), width, threads=2, ahead=4)
    counts = [(next(results), len(taken)) for _ in range(3)]
    results.close()
    assert counts == [(1, 4), (2, 5), (3, 6)]


def test_no_more_images_are_read_than_those_taken_ahead(files: list[Path]) -> None:
    read: list[Path] = []

    def noted(file: Path) -> int:
        read.append(file)
        return width(file)

    results = ordered_map(files, noted, threads=2, ahead=4)
    assert next(results) == 1
    results.close()  # every thread has ended
    assert len(read) <= 4


def test_an_unreadable_image_is_raised_in_its_place(files: list[Path]) -> None:
    files[4].write_bytes(b"broken")
    results = ordered_map(files, width, threads=3, ahead=8)
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(DataError, match=rf"^{files[4]} cannot be read as an image \("):
        next(results)


def test_an_error_of_the_program_in_a_thread_is_raised_as_it_is(files: list[Path]) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        prefetch(files, lambda file: 1 // (width(file) - 3), batch_size=2) as batches,
    ):
        list(batches)


def test_an_error_of_what_gives_the_files_is_raised_as_it_is(files: list[Path]) -> None:
    def given() -> Iterator[Path]:
        yield files[0]
        raise KeyError("no more")

    with pytest.raises(KeyError), prefetch(given(), width, batch_size=2) as batches:
        list(batches)


def test_a_thread_that_a_disk_holds_is_left_behind(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.01)
    released = threading.Event()

    def read(file: Path) -> int:
        if file == files[1]:
            released.wait(PATIENCE)
        return width(file)

    results = ordered_map(files, read, threads=2, ahead=4)
    assert next(results) == 1
    results.close()
    assert not released.is_set()
    released.set()


def test_filters_of_warnings_are_as_before(files: list[Path]) -> None:
    before = list(warnings.filters)
    with prefetch(files, width, batch_size=2, threads=4) as batches:
        list(batches)
    assert list(warnings.filters) == before


def test_filters_of_warnings_are_as_before_where_the_callers_own_threads_overlap(
    files: list[Path],
) -> None:
    before = list(warnings.filters)
    first, second = (opened(file, file.name) for file in files[:2])
    with ExitStack() as one, ExitStack() as other:
        one.enter_context(first)
        other.enter_context(second)
        one.close()
        warnings.warn("of a thread that still decodes", stacklevel=1)
    assert list(warnings.filters) == before


def test_there_is_a_thread_for_each_core_but_not_for_hundreds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores: set[int] = set(range(5))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores, raising=False)
    assert default_threads() == 5
    cores.update(range(128))
    assert default_threads() == 16
