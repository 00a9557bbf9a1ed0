"""Asks a fork server for a process; as a program, it stands for `python` and is that process.

`fork_servers` writes the program. Whatever signal it is sent it passes on, it ends as the process
ends, and the process ends with it. What no server can run, Python itself runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

LENGTH_BYTES = 8
PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT")


def program_of(arguments: Sequence[str]) -> dict[str, Any] | None:
    """What `python ARGUMENTS` runs; None where it is no module and no code."""
    words, filters = list(arguments), []
    while words[:1] in (["-W"], ["-u"]):
        filters += words[1:2] if words[0] == "-W" else []
        words = words[2 if words[0] == "-W" else 1 :]
    if len(words) < 2 or words[0] not in ("-c", "-m"):
        return None
    kind, program, *rest = words
    # Python's own helpers have descriptors that are not handed over.
    if kind == "-c" and "multiprocessing" in program:
        return None
    return {"kind": kind, "program": program, "arguments": rest, "warnings": filters}


def ask(
    server: str,
    program: dict[str, Any],
    files: Sequence[int],
    env: Mapping[str, str],
    cwd: str,
    *,
    parent: int,
    executable: str,
    start_new_session: bool = False,
) -> socket.socket:
    """A connection to a server that answers with the pid and, later, the status of a process."""
    request = program | {
        "env": dict(env),
        "cwd": cwd,
        "parent": parent,
        "executable": executable,
        "start_new_session": start_new_session,
    }
    data = json.dumps(request).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server)
    socket.send_fds(connection, [b"+"], list(files))
    connection.sendall(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    return connection


def stand_for_python(server: str, executable: str) -> NoReturn:
    """Be the `python` that was typed; `executable` is what the process takes for its Python."""
    program = program_of(sys.argv[1:])
    if program is None:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    connection = ask(
        server,
        program,
        [0, 1, 2],
        os.environ,
        os.getcwd(),
        parent=os.getppid(),
        executable=executable,
        start_new_session=os.getsid(0) == os.getpid(),
    )
    answers = connection.makefile("r")
    pid = int(answers.readline())
    for name in PASSED_ON:
        signal.signal(getattr(signal, name), lambda number, _: os.kill(pid, number))
    status = int(answers.readline())
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
