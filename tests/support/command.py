"""Python programs and `deit-zoo` as processes, forked by a server that has imported already."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from deit_zoo.manifest import manifest_path
from support.fork_client import ask, program_of
from support.fork_server import IMPORTS

ROOT = Path(__file__).resolve().parents[2]
# The folder of the servers' sockets: they serve the whole session, all its workers.
SERVERS = "TEST_FORK_SERVERS"
# A slow machine is no failure; a process that hangs is.
PATIENCE = 180.0


# Without site and what it imports it takes some milliseconds.
SHIM = """#!{python} -SE
import sys
sys.path[0] = {tests!r}
from support.fork_client import stand_for_python
stand_for_python({server!r}, {path!r})
"""


def forked_python(server: str = "training") -> str:
    """A program to start in place of `python`, which a server forks."""
    return str(Path(os.environ[SERVERS]) / f"python-{server}")


@contextmanager
def fork_servers() -> Iterator[None]:
    """Servers for this process and those that it starts; one imports when it is first needed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fork_")))
        for name in IMPORTS:
            server = subprocess.Popen(
                [sys.executable, "-m", "support.fork_server", folder / name],
                cwd=ROOT / "tests",
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            stack.enter_context(server)
            assert server.stdout
            assert server.stdout.readline() == b"ready\n"
        for name in IMPORTS:
            shim = folder / f"python-{name}"
            shim.write_text(
                SHIM.format(
                    python=sys.executable,
                    tests=str(ROOT / "tests"),
                    path=str(shim),
                    server=str(folder / name),
                )
            )
            shim.chmod(0o755)
        os.environ[SERVERS] = str(folder)
        yield
        del os.environ[SERVERS]


class Process:
    """`python ARGUMENTS`, forked by a server: what tests use of `subprocess.Popen`.

    What it starts with `sys.executable` is forked too.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        server: str = "torch",
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        text: bool = False,
        start_new_session: bool = False,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        self.text = text
        program = program_of(self.args)
        assert program, self.args
        with ExitStack() as stack:
            files, pipes = _descriptors((stdin, stdout, stderr), stack)
            self._answers = ask(
                str(Path(os.environ[SERVERS]) / server),
                program,
                files,
                os.environ if env is None else env,
                str(cwd or Path.cwd()),
                parent=os.getpid(),
                executable=forked_python(server),
                start_new_session=start_new_session,
            )
        self.stdin, self.stdout, self.stderr = (
            None if pipe is None else os.fdopen(pipe, mode + ("" if text else "b"), encoding=utf8)
            for pipe, mode in zip(pipes, "wrr", strict=True)
            for utf8 in ["utf-8" if text else None]
        )
        self._lines = self._answers.makefile("r")
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def _end(self) -> None:
        self.returncode = int(self._lines.readline())
        self._lines.close()
        self._answers.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write `input`, read both streams to their ends and wait."""
        until = None if timeout is None else time.monotonic() + timeout
        read: dict[IO[Any], Any] = {}
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        threads = [
            threading.Thread(target=lambda s=stream: read.update({s: s.read()}), daemon=True)
            for stream in streams
        ]
        for thread in threads:
            thread.start()
        if self.stdin is not None:
            try:
                self.stdin.write(input or ("" if self.text else b""))
                self.stdin.close()
            except BrokenPipeError:
                pass
        for thread in threads:
            thread.join(None if until is None else until - time.monotonic())
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        for stream in streams:
            stream.close()
        return read.get(self.stdout), read.get(self.stderr)  # type: ignore[arg-type]

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.kill()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def _descriptors(
    streams: Sequence[int | IO[Any] | None], stack: ExitStack
) -> tuple[list[int], list[int | None]]:
    """The child's three descriptors, and this side's ends of those that are pipes."""
    theirs: list[int] = []
    pipes: list[int | None] = [None, None, None]
    for number, stream in enumerate(streams):
        if stream is None:
            theirs.append(number)
        elif not isinstance(stream, int):
            theirs.append(stream.fileno())
        elif stream == subprocess.STDOUT:
            theirs.append(theirs[1])
        elif stream == subprocess.DEVNULL:
            theirs.append(os.open(os.devnull, os.O_RDWR))
            stack.callback(os.close, theirs[-1])
        elif stream == subprocess.PIPE:
            reading, writing = os.pipe()
            theirs.append(writing if number else reading)
            pipes[number] = reading if number else writing
            stack.callback(os.close, theirs[-1])
        else:
            theirs.append(stream)
    return theirs, pipes


def run_python(
    arguments: Sequence[str | Path],
    *,
    server: str = "torch",
    input: bytes = b"",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    text: bool = True,
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[Any]:
    """`python ARGUMENTS` to its end, and what it wrote."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(input)
        files[0].seek(0)
        stdin, stdout, stderr = files
        process = Process(
            arguments, server=server, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=env
        )
        try:
            process.wait(timeout)
        finally:
            process.kill()
        for file in files:
            file.seek(0)
        out, err = (file.read().decode() if text else file.read() for file in files[1:])
    done = subprocess.CompletedProcess(process.args, process.wait(), out, err)
    if check:
        assert done.returncode == 0, err
    return done


class Done(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and what it said."""

    status: int
    out: str
    err: str


def deit_zoo(
    *arguments: object,
    server: str = "torch",
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> Done:
    """Run `deit-zoo`, with some variables more, and return how it ended."""
    words = ["-m", "deit_zoo", *map(str, arguments)]
    more = os.environ | (env or {})
    done = run_python(words, server=server, input=stdin, cwd=cwd, env=more, timeout=timeout)
    return Done(done.returncode, done.stdout, done.stderr)


def python(code: str, *, env: Mapping[str, str], cwd: Path | None = None) -> str:
    """Run a program that must succeed; returns what it printed."""
    printed: str = run_python(["-c", code], cwd=cwd, env=os.environ | env, check=True).stdout
    return printed


def sentence(done: Done) -> str:
    """The one sentence of a refusal."""
    assert done.status == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    return done.err.removeprefix("error: ").strip()


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def hub_source(repo_id: str, **facts: Any) -> dict[str, Any]:
    """A source of a manifest record; what is not given is null."""
    known = {"repo_id": repo_id, "filename": "model.safetensors"}
    unknown = dict.fromkeys(("revision", "sha256", "bytes"))
    return {"kind": "hub"} | known | unknown | facts


def write_manifest(file: Path, sources: dict[str, list[dict[str, Any]]]) -> Path:
    """The bundled records of these names, with other sources."""
    bundled = json.loads(manifest_path().read_text(encoding="utf-8"))["checkpoints"]
    records = {name: bundled[name] | {"sources": these} for name, these in sources.items()}
    text = json.dumps({"schema_version": 1, "checkpoints": records}, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    return file
