"""Servers that import once and fork for every command: `python -m support.fork_server FOLDER/NAME`.

A child is a process of its own, with its own pid, descriptors, environment and folder, that a
signal can reach; it has no imports to wait for, and none to take apart in the end. A server imports
when the first request comes, ends when its stdin is closed, and ends a child whose client is gone.

A request is one connection: descriptors for the child's stdin, stdout and stderr with a first byte,
then a length and JSON. The answer is a line with the pid and, in the end, one with the status.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib.util
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from support.fork_client import LENGTH_BYTES

# By server, what it imports. What reads the environment when it is imported is left to the child,
# huggingface_hub but for training, where timm imports it, or made anew in it, as rich's consoles.
COMMAND_LINE = (
    *("deit_zoo.cli.app", "typer._adapters", "rich.progress", "rich.table", "requests", "filelock"),
    *("tqdm.auto", "yaml"),
    # huggingface_hub imports the one or the other.
    *(name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)),
    *("deit_zoo.api", "deit_zoo.zoo", "deit_zoo.manifest", "deit_zoo.results", "deit_zoo.files"),
)
IMPORTS = {
    "light": COMMAND_LINE,
    "only torch": ("torch",),
    "torch": (
        *COMMAND_LINE,
        *("torch", "torch.utils.data", "safetensors.torch", "PIL.Image", "matplotlib.figure"),
        *("deit_zoo.models.deit", "deit_zoo.models.cait", "deit_zoo.evaluation.accuracy"),
    ),
    "training": (
        *COMMAND_LINE,
        *("matplotlib.figure", "torch.utils.tensorboard", "timm"),
        *("deit_zoo.training.launch", "deit_zoo.training.loop", "deit_zoo.training.trainer"),
    ),
}
# A process with this variable notes its pid and its environment in a folder of that name.
NOTED = "DEIT_ZOO_TEST_TREE"


def import_all(name: str) -> None:
    for module in IMPORTS[name]:
        importlib.import_module(module)
    assert name == "training" or "huggingface_hub.constants" not in sys.modules
    if app := sys.modules.get("deit_zoo.cli.app"):
        make_commands_once()(app.app)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    # Not to be looked through, and so copied, by the garbage collector of every child.
    gc.collect()
    gc.freeze()


def make_commands_once() -> Callable[[Any], Any]:
    """Let typer keep the commands of an app, which it makes anew whenever one is typed."""
    import typer.main

    typer.main.get_command = functools.cache(typer.main.get_command)
    return typer.main.get_command


def refuse_the_network() -> None:
    """Refuse connections to anything but this machine, here and in every child."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            host = address[0] if isinstance(address, tuple) else str(address)
            assert host in {"127.0.0.1", "::1", "localhost"}, f"a test tried to reach {address}"
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the descriptors that came with it."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "big")
        return json.loads(stream.read(length)), files


def answer(connection: socket.socket, line: int) -> None:
    try:
        connection.sendall(f"{line}\n".encode())
    except OSError:  # the client has gone
        return


def serve(name: str, listener: socket.socket) -> dict[str, Any]:
    """Answer requests for ever; returns in each child, with what it is to run."""
    waking, awake = socket.socketpair()
    waking.setblocking(False)
    awake.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for resource in (listener, awake, sys.stdin):
        selector.register(resource, selectors.EVENT_READ)
    imported = False
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, files = receive(connection)
                if not imported:
                    import_all(name)
                    imported = True
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    for resource in (selector, waking, awake, listener, connection):
                        resource.close()
                    for client in clients.values():
                        client.close()
                    become(request, files)
                    return request
                for file in files:
                    os.close(file)
                clients[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
                answer(connection, pid)
            elif key.fileobj is awake:
                awake.recv(1 << 10)
                for pid, status in ended(clients):
                    answer(clients[pid], status)
                    selector.unregister(clients[pid])
                    clients.pop(pid).close()
            elif key.fileobj is sys.stdin:  # whoever started this server is gone
                for pid in clients:
                    kill(pid)
                os._exit(0)
            elif key.data in clients:  # a client is gone; its child is waited for above
                kill(key.data)
                selector.modify(key.fileobj, selectors.EVENT_WRITE, None)


def kill(child: int) -> None:
    """End a child, and where it leads a session all that it forked."""
    if os.getpgid(child) == child:
        os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)


def ended(children: dict[int, socket.socket]) -> list[tuple[int, int]]:
    """The children that have ended, and how."""
    found = [os.waitpid(pid, os.WNOHANG) for pid in list(children)]
    return [(pid, os.waitstatus_to_exitcode(status)) for pid, status in found if pid]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def become(request: dict[str, Any], files: list[int]) -> None:
    """Take the descriptors, the environment, the folder and the arguments of a request."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["start_new_session"]:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # As Python opens them: the server's own may know of a file, where this is a pipe.
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    changed = {
        variable
        for variable in os.environ.keys() | request["env"].keys()
        if os.environ.get(variable) != request["env"].get(variable)
    }
    if "huggingface_hub.constants" in sys.modules:
        late = {variable for variable in changed if variable.startswith("HF_")}
        assert not late, f"{late} were read when this server imported huggingface_hub"
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for variable in changed:
        os.environ.pop(variable, None)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.executable = request["executable"]
    os.getppid = lambda: request["parent"] if is_there(request["parent"]) else 1
    sys.path[0] = ""
    tempfile.tempdir = None
    if console := sys.modules.get("deit_zoo.cli.console"):
        console.out.__init__()  # type: ignore[misc]
        console.talk.__init__(stderr=True)  # type: ignore[misc]
    if mark := os.environ.get(NOTED):
        note = Path(sys.argv[1]).with_name(mark) / str(os.getpid())
        note.parent.mkdir(exist_ok=True)
        note.with_suffix(".part").write_text(json.dumps(request["env"]), encoding="utf-8")
        note.with_suffix(".part").rename(note)
    if "PYTHONPATH" in changed:
        sys.path[:] = [path for path in sys.path if path not in paths]
        sys.path[1:1] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if importlib.util.find_spec("sitecustomize"):
            sys.modules.pop("sitecustomize", None)
            importlib.import_module("sitecustomize")
    for action in request["warnings"]:
        warnings.simplefilter(action)
        sys.warnoptions.append(action)


def run(request: dict[str, Any]) -> None:
    """Be `python -m MODULE ARGUMENTS` or `python -c CODE ARGUMENTS`."""
    sys.argv = [request["kind"], *request["arguments"]]
    if request["kind"] == "-m":
        runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        code = compile(request["program"], "<string>", "exec")
        exec(code, sys.modules["__main__"].__dict__)


def end(request: dict[str, Any]) -> NoReturn:
    """Run a request and end as Python does, but for taking apart all that was imported."""
    status = 0
    try:
        run(request)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    refuse_the_network()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(sys.argv[1])
        unix.listen(64)
        print("ready", flush=True)
        child = serve(Path(sys.argv[1]).name, unix)
    end(child)
