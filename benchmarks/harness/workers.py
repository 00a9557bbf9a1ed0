"""Processes that all get ready at once and are then measured one at a time.

What compiles for a minute does so while others do; while one is measured, the rest wait on a line
or stand still.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from harness.timing import BENCHMARKS, ChildError

READY = "ready"  # what a section prints when nothing but measuring is left


class Worker:
    """A process that builds what `entry`, a MODULE:FUNCTION, makes of `task`, and answers.

    `ready` holds what the function said of it, once it is there; `error` why it never will be.
    """

    def __init__(self, entry: str, task: Mapping[str, Any]) -> None:
        code = "import sys; from harness.workers import serve; serve(*sys.argv[1:])"
        path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, entry, json.dumps(task)],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready: Any = None
        self.error = ""

    @property
    def is_settled(self) -> bool:
        """Whether it is ready, or has failed."""
        return self.ready is not None or bool(self.error)

    def settle(self) -> None:
        """Read whether it became ready."""
        try:
            self.ready = self._answer()
        except ChildError as error:
            self.error = str(error)

    def ask(self, *words: Any) -> Any:
        """Its answer. Raises ChildError where there is none; it may have others."""
        assert self.process.stdin is not None
        try:
            print(json.dumps(words), file=self.process.stdin, flush=True)
        except BrokenPipeError as error:
            raise ChildError("it ended before it was asked") from error
        return self._answer()

    def close(self) -> None:
        """End it."""
        kill(self.process)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildError(f"it ended with exit code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer["answer"]


def serve(entry: str, task: str) -> None:
    """What a worker does: build, then answer every line of stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    module, name = entry.split(":")

    def answer(act: Callable[..., Any], *words: Any) -> Any:
        try:
            result = act(*words)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": reason(error)}), file=answers, flush=True)
            return None
        return result

    built = answer(lambda: getattr(import_module(module), name)(json.loads(task)))
    if built is None:
        sys.exit(1)
    ready, act = built
    print(json.dumps({"answer": ready}), file=answers, flush=True)
    for line in sys.stdin:
        if (result := answer(act, *json.loads(line))) is not None:
            print(json.dumps({"answer": result}), file=answers, flush=True)


def reason(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message[:200]}"


def settle(workers: Iterable[Worker], seconds: float | None, turn: TextIO | None = None) -> None:
    """Wait until one more worker is ready or has failed, or `turn` has a line to read."""
    waiting = {worker.process.stdout: worker for worker in workers if not worker.is_settled}
    readable, _, _ = select.select([*waiting, *([turn] if turn else [])], [], [], seconds)
    for stream in readable:
        if stream is not turn:
            waiting[stream].settle()


def wait_for_turn(workers: Sequence[Worker]) -> None:
    """Say when all are ready, and wait for the line that says that nobody else is measured."""
    while not all(worker.is_settled for worker in workers):
        settle(workers, None, sys.stdin)
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    print(READY, flush=True)
    sys.stdin.readline()


def in_order_of_readiness(
    cases: Sequence[Any], workers: Callable[[Any], Sequence[Worker]]
) -> Iterator[Any]:
    """The cases, the first whose workers are settled first; all others stand still meanwhile."""
    left = list(cases)
    while left:
        ready = [case for case in left if all(one.is_settled for one in workers(case))]
        if not ready:
            settle([one for case in left for one in workers(case)], None)
            continue
        left.remove(ready[0])
        late = [one for case in left for one in workers(case) if not one.is_settled]
        with still(late):
            yield ready[0]
        for one in workers(ready[0]):
            one.close()


@contextmanager
def still(workers: Iterable[Worker]) -> Iterator[None]:
    """Within it, these and all that they started do nothing."""
    stopped = [pid for one in workers for pid in tree(one.process.pid)]
    send(signal.SIGSTOP, stopped)
    try:
        yield
    finally:
        send(signal.SIGCONT, stopped)


def kill(process: subprocess.Popen[str]) -> None:
    """End a process that has not ended, and all its descendants."""
    if process.poll() is None:
        send(signal.SIGKILL, tree(process.pid))
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def tree(pid: int) -> list[int]:
    """A process and its living descendants, wherever their sessions are."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:  # grows as it goes
        found += [child for child, parent in parents.items() if parent == one]
    return found


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """A signal to processes that may have just ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
