"""Whole runs of several processes: however they are started, stopped or killed, the same bits.

The baseline trains in this process. Every other run is typed, as a person types it.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.data.digits import write_folder
from deit_zoo.distributed import init_distributed
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.training import elastic
from deit_zoo.training.job import Job
from deit_zoo.training.launch import make_plan, reproduce
from deit_zoo.training.signals import SIGNALS, Interrupted, signals_as_exceptions
from support.command import forked_python
from support.processes import PROC, Tree, forest, forked, free_port, python, send
from support.runs import LEFT, digits_of, sha256_of

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="finds processes in /proc")

RUN = ("reproduce", "deit_pico_digits", "--gpus", "0", "--workers", "0")
ZOO = python("-m", "deit_zoo")
# The number of cores decides the number of threads, and they the order of sums.
HOOKS = """
import os, signal
os.sched_getaffinity = lambda process: {0, 1}
if os.environ.get("RANK") == os.environ.get("SPOILED", "none"):
    from support.faults import spoil
    spoil("gradient", [(1, step) for step in range(20)])
if os.environ.get("RANK") == os.environ.get("MORTAL", "none"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
SHORT, LONG, KILLED = 2, 4, 8
EVERY_STEP = ("--set", "state_minutes=0")


def settings(epochs: int) -> list[str]:
    """A short run at full rate from the first step on."""
    return [f"epochs={epochs}", "warmup_epochs=0"]


def states(output: Path) -> list[str]:
    return sorted(file.name for file in (output / "state").glob("epoch-*"))


def epochs_of(output: Path) -> int:
    """The lines of the log."""
    log = output / "log.jsonl"
    return len(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the digits in `data`, hooks for Python's start, and room for runs."""
    folder = tmp_path_factory.mktemp("elastic")
    digits_of(folder / "data", "0123456789", 77, 8)
    (folder / "hooks").mkdir()
    (folder / "hooks" / "sitecustomize.py").write_text(HOOKS, encoding="utf-8")
    (folder / "tmp").mkdir()
    return folder


@pytest.fixture(scope="module")
def environment(place: Path, manifest_of: Callable[[float | None], Path]) -> dict[str, str]:
    """Two cores, whatever the machine has; no figure to compare with, so a run ends with 0."""
    return {
        "PYTHONPATH": str(place / "hooks"),
        "DEIT_ZOO_MANIFEST": str(manifest_of(None)),
        "TMPDIR": str(place / "tmp"),
    }


@pytest.fixture(scope="module")
def plant(place: Path, environment: dict[str, str]) -> Iterator[Callable[..., Tree]]:
    """Start a tree of processes."""
    with forest(place) as start:
        yield lambda *command, **env: start(*command, **(environment | env))


@pytest.fixture(scope="module")
def begin(plant: Callable[..., Tree], place: Path) -> Callable[..., Tree]:
    """Type a run of two processes, or what `options` say; they have no imports to wait for."""

    def typed(
        output: Path, *options: str, epochs: int = SHORT, zoo: tuple[str, ...] = (), **env: str
    ) -> Tree:
        options = options or ("--processes", "2")
        sets = [word for change in settings(epochs) for word in ("--set", change)]
        paths = ("--data", str(place / "data"), "--output", str(output))
        return plant(*(zoo or forked("-m", "deit_zoo")), *RUN, *paths, *sets, *options, **env)

    return typed


@pytest.fixture(scope="module")
def alone(place: Path, environment: dict[str, str]) -> Callable[[int], str]:
    """The digest of the weights that one process trains, by the number of epochs."""
    known: dict[int, str] = {}

    def of(epochs: int) -> str:
        if epochs not in known:
            output = place / f"alone-{epochs}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
                patch.setenv("DEIT_ZOO_MANIFEST", environment["DEIT_ZOO_MANIFEST"])
                reproduce(
                    "deit_pico_digits",
                    gpus=0,
                    output=output,
                    data=place / "data",
                    changes=settings(epochs),
                    workers=0,
                )
            known[epochs] = sha256_of(output)
        return known[epochs]

    return of


@pytest.fixture(scope="module")
def pair(begin: Callable[..., Tree], place: Path) -> Tree:
    """A finished run of two processes, in `place / "pair"`."""
    tree = begin(place / "pair")
    assert tree.code() == 0, tree.stderr
    return tree


def test_two_processes_train_the_bits_of_one(
    pair: Tree, place: Path, alone: Callable[[int], str]
) -> None:
    assert sha256_of(place / "pair") == alone(SHORT)


def test_two_processes_are_measured_on_every_image_once(pair: Tree, place: Path) -> None:
    receipt = json.loads((place / "pair" / "receipt.json").read_text(encoding="utf-8"))
    assert (receipt["reached"]["num_images"], receipt["environment"]["processes"]) == (80, 2)


def test_of_two_processes_one_speaks(pair: Tree) -> None:
    said = pair.stderr.splitlines()
    assert len(said) == len(set(said))
    assert said[-1].startswith("weights, receipt, log and curve are in ")
    assert re.fullmatch(r"no verdict: top-1 .* on 80 images.*\n", pair.stdout)


def test_two_processes_leave_the_files_of_one(pair: Tree, place: Path) -> None:
    assert sorted(path.name for path in (place / "pair").iterdir()) == LEFT


def test_two_processes_leave_nothing_among_the_temporary_files(pair: Tree, place: Path) -> None:
    assert list((place / "tmp").glob("torchelastic*")) == []


def error_of(tree: Tree) -> str:
    """The one error of a run that ends by it, without a traceback."""
    assert tree.code() == 2, tree.stderr
    assert "Traceback" not in tree.stderr
    [error] = [line for line in tree.stderr.splitlines() if line.startswith("error: ")]
    return error


def slurm(rank: int, job: int) -> dict[str, str]:
    """What srun tells a task, one of two on this machine."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


@pytest.mark.slow
def test_tasks_of_srun_train_the_bits_of_one_process_and_the_first_speaks(
    begin: Callable[..., Tree], place: Path, alone: Callable[[int], str]
) -> None:
    output = place / "srun"
    port = str(free_port())  # which the number of the job gives where nobody does
    first, second = (begin(output, MASTER_PORT=port, **slurm(rank, 7)) for rank in (0, 1))
    assert (first.code(), second.code()) == (0, 0), first.stderr + second.stderr
    assert sha256_of(output) == alone(SHORT)
    assert (second.stdout, second.stderr) == ("", "")


@pytest.mark.slow
def test_torchruns_processes_train_the_bits_of_one(
    begin: Callable[..., Tree], place: Path, alone: Callable[[int], str]
) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    tree = begin(place / "torchrun", zoo=forked("-m", *torchrun, "-m", "deit_zoo"))
    assert tree.code() == 0, tree.stderr
    assert sha256_of(place / "torchrun") == alone(SHORT)
    assert re.fullmatch(r"no verdict: top-1 .* on 80 images.*\n", tree.stdout)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_keeps_a_state_and_continues_to_the_same_bits(
    begin: Callable[..., Tree], place: Path, alone: Callable[[int], str]
) -> None:
    # Others are asked by SIGTERM and SIGUSR1 below.
    output = place / "SIGINT"
    tree = begin(output, epochs=LONG)
    tree.until(lambda: epochs_of(output) == 1)
    tree.process.send_signal(signal.SIGINT)
    assert tree.code() == 130, tree.stderr
    assert tree.members() == {}
    *_, stopping, command = tree.stderr.splitlines()
    assert stopping == "SIGINT: stopping after this step; Ctrl-C again stops at once"
    assert command.startswith("stopped; this continues the run: deit-zoo reproduce ")
    assert "Traceback" not in tree.stderr
    assert "torch.distributed" not in tree.stderr
    assert len(states(output)) == 2
    assert not (output / elastic.EXIT_STATUS_FILE).exists()
    again = begin(output, epochs=LONG)
    assert again.code() == 0, again.stderr
    assert "continuing after epoch " in again.stderr
    assert sha256_of(output) == alone(LONG)


@pytest.mark.slow
def test_a_signal_to_every_process_at_once_keeps_a_state(
    begin: Callable[..., Tree], place: Path, alone: Callable[[int], str]
) -> None:
    output = place / "everyone"
    tree = begin(output, "--processes", "2", "--workers", "1", epochs=LONG)
    tree.until(lambda: epochs_of(output) == 1)
    tree.signal_all(signal.SIGTERM)
    assert tree.code() == 75, tree.stderr
    assert "Traceback" not in tree.stderr
    assert tree.stderr.count("stopped; this continues the run") == 1
    tree.until_gone()
    again = begin(output, epochs=LONG)
    assert again.code() == 0, again.stderr
    assert sha256_of(output) == alone(LONG)


def import_torch(pid: int) -> bool:
    """Whether a process has begun with what takes some seconds."""
    return "libtorch" in (PROC / str(pid) / "maps").read_text(encoding="utf-8")


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_is_no_traceback(
    begin: Callable[..., Tree], place: Path
) -> None:
    tree = begin(place / "early", zoo=ZOO)
    tree.until(lambda: [import_torch(pid) for pid in tree.ranks().values()] == [True, True])
    tree.process.send_signal(signal.SIGINT)
    assert tree.code() == 130
    assert "Traceback" not in tree.stderr
    assert tree.members() == {}


MOMENTS = ("any time", "a state is written", "an epoch ends")


def wait_for(tree: Tree, output: Path, moment: str, draw: random.Random) -> None:
    """Until the moment to kill."""
    if moment == "any time":
        tree.until(lambda: "continuing" in tree.stderr or epochs_of(output))
        patience = time.monotonic() + draw.uniform(0.0, 1.0)
        tree.until(lambda: time.monotonic() > patience)
    elif moment == "a state is written":
        tree.until(lambda: any((output / "state").glob(".epoch-*")))
    else:
        before = epochs_of(output)
        tree.until(lambda: epochs_of(output) > before)


@pytest.mark.slow
def test_a_run_killed_six_times_ends_in_the_bits_of_one_that_nobody_disturbed(
    begin: Callable[..., Tree], place: Path, alone: Callable[[int], str]
) -> None:
    output, draw = place / "killed", random.Random(0)
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(6)]
    draw.shuffle(moments)
    for moment in moments:
        options = EVERY_STEP if draw.random() < 0.5 else ()
        tree = begin(output, "--processes", "2", *options, epochs=KILLED)
        wait_for(tree, output, moment, draw)
        tree.kill()
        assert tree.process.returncode == -signal.SIGKILL, tree.stderr
    last = begin(output, epochs=KILLED)
    assert last.code() == 0, last.stderr
    assert sha256_of(output) == alone(KILLED)
    assert epochs_of(output) == KILLED


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_end_by_themselves(
    begin: Callable[..., Tree], place: Path
) -> None:
    # With processes of its own: forked ones are children of the server.
    tree = begin(place / "orphans", epochs=LONG, zoo=ZOO)
    tree.until(lambda: epochs_of(place / "orphans") == 1)
    tree.process.kill()
    tree.until_gone(seconds=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_begins_again_with_the_others_and_it_is_told(
    begin: Callable[..., Tree], place: Path, alone: Callable[[int], str], rank: int
) -> None:
    output = place / f"lost-{rank}"
    tree = begin(output, epochs=LONG)
    tree.until(lambda: epochs_of(output) == 1)
    send(tree.ranks()[rank], signal.SIGKILL)
    assert tree.code() == 0, tree.stderr
    told = "a process died; all begin again from the last state (restart 1 of 3)"
    assert tree.stderr.splitlines().count(told) == 1
    assert "Traceback" not in tree.stderr
    assert sha256_of(output) == alone(LONG)
    assert epochs_of(output) == LONG


IMPATIENT = (
    "from deit_zoo.training import heartbeat; heartbeat.SILENT_SECONDS = 10.0; "
    "from deit_zoo.cli import main; main()"
)
TORCHRUN = (
    *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("--max-restarts", "1", "--no-python"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "restarts"),
    [((), "a process died; all begin again from the last state (restart 1 of 3)"), (TORCHRUN, "")],
    ids=["own", "torchrun"],
)
def test_a_process_that_is_stopped_is_told_and_killed_and_all_begin_again(
    begin: Callable[..., Tree],
    place: Path,
    alone: Callable[[int], str],
    words: tuple[str, ...],
    restarts: str,
) -> None:
    output = place / f"stopped-{len(words)}"
    # torch 2.15 shares a store, which keeps the addresses of dead processes.
    store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    typed = forked(*words, *(forked() if words else ()), "-c", IMPATIENT)
    tree = begin(output, epochs=LONG, zoo=typed, **store)
    tree.until(lambda: epochs_of(output) == 1)
    send(tree.ranks()[0], signal.SIGSTOP)
    assert tree.code() == 0, tree.stderr
    told = tree.stderr.splitlines()
    silence = "process 0 gives no sign of life for 10 seconds; it is killed"
    assert told.count(silence) == 1, tree.stderr
    assert not restarts or told.count(restarts) == 1
    assert "Traceback" not in tree.stderr
    assert sha256_of(output) == alone(LONG)


@pytest.mark.slow
def test_a_process_that_dies_every_time_ends_the_run_in_one_sentence(
    begin: Callable[..., Tree], place: Path
) -> None:
    tree = begin(place / "mortal", MORTAL="1")
    assert error_of(tree) == (
        "error: process 1 was killed by SIGKILL, after 3 restarts; what it printed is above, and "
        "the same command continues from the last state"
    )
    assert tree.members() == {}


NO_TEACHER = ("--set", "distillation=hard", "--set", "teacher=deit_zoo_has_no_such_teacher")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "env", "told"),
    [
        (NO_TEACHER, {}, "teacher is 'deit_zoo_has_no_such_teacher', which neither "),
        ((), {"GLOO_SOCKET_IFNAME": "nosuch"}, "the 2 processes do not meet ("),
    ],
    ids=["teacher", "network"],
)
def test_an_error_that_every_process_meets_is_one_sentence_and_nothing_is_tried_again(
    begin: Callable[..., Tree],
    tmp_path: Path,
    words: tuple[str, ...],
    env: dict[str, str],
    told: str,
) -> None:
    tree = begin(tmp_path, "--processes", "2", *words, **env)
    assert error_of(tree).startswith(f"error: {told}")
    assert "begin again" not in tree.stderr
    assert not (tmp_path / elastic.EXIT_STATUS_FILE).exists()


@pytest.mark.slow
def test_an_image_that_one_process_alone_cannot_replace_is_one_sentence(
    begin: Callable[..., Tree], place: Path, tmp_path: Path
) -> None:
    # Every image of the training set becomes unreadable; each process meets its own first.
    write_folder(tmp_path / "data")
    for file in (tmp_path / "data" / "train").rglob("*.png"):
        file.write_bytes(b"no image")
    tree = begin(tmp_path / "run", "--processes", "2", "--data", str(tmp_path / "data"))
    assert error_of(tree).startswith("error: 11 images in a row cannot be read, the last: ")


@pytest.mark.slow
def test_gradients_that_one_process_spoils_end_the_run_of_all_and_another_rate_continues_it(
    begin: Callable[..., Tree], place: Path
) -> None:
    output = place / "spoiled"
    tree = begin(output, SPOILED="1")
    error = error_of(tree)
    assert tree.stderr.count("the gradient norm is nan at epoch 2, step 3; going back to ") == 1
    assert tree.stderr.count(" of 3 times) and leaving out ") == 3
    assert error.startswith("error: the gradient norm is nan at epoch 2, step ")
    assert error.endswith(
        ", after going back 3 times; the same command continues from the last good state, also "
        "with a lower rate (--set lr=0.001) or bounded gradients (--set clip_grad=1)"
    )
    assert "begin again" not in tree.stderr
    again = begin(output, "--processes", "2", "--set", "lr=0.001")
    assert again.code() == 0, again.stderr
    assert again.stderr.count("; changed on the way: lr\n") == 1
    receipt = json.loads((output / "receipt.json").read_text(encoding="utf-8"))
    (change,) = receipt["run"]["changes"]
    assert (change["fields"], receipt["run"]["rewinds"]) == ({"lr": [0.002, 0.001]}, 3)
    assert again.stdout.rstrip().endswith("; modified: epochs, lr, warmup_epochs")


STUBS = {
    "srun": 'exec "$@"\n',
    "scontrol": ('if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$ASKED"; fi\n'),
    "deit-zoo": 'exec "$FORKED_PYTHON" -m deit_zoo "$@"\n',
}


@pytest.fixture(scope="module")
def cluster(place: Path) -> dict[str, str]:
    """A Slurm of one machine: srun starts its arguments, scontrol notes what it is asked for."""
    folder = place / "bin"
    folder.mkdir()
    for name, text in STUBS.items():
        file = folder / name
        file.write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "ASKED": str(place / "asked"),
        "FORKED_PYTHON": forked_python(),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "2",
    }


@pytest.mark.slow
def test_the_slurm_script_runs_asks_to_be_queued_again_and_ends_well(
    begin: Callable[..., Tree],
    plant: Callable[..., Tree],
    cluster: dict[str, str],
    place: Path,
    alone: Callable[[int], str],
) -> None:
    output, script = place / "slurm", place / "slurm.sh"
    written = begin(output, "--processes", "2", "--slurm", str(script), epochs=LONG)
    assert written.code() == 0, written.stderr
    first = plant("bash", str(script), **cluster)
    first.until(lambda: epochs_of(output) == 1)
    for pid, env in first.members().items():  # Slurm's --signal: every process but the shell
        if pid != first.process.pid and "SLURM_JOB_ID" in env:
            send(pid, signal.SIGUSR1)
    assert first.code() == 75, first.stderr
    assert (place / "asked").read_text(encoding="utf-8") == "requeue 7\n"
    second = plant("bash", str(script), **cluster)
    assert second.code() == 0, second.stderr
    assert (place / "asked").read_text(encoding="utf-8") == "requeue 7\n"
    assert sha256_of(output) == alone(LONG)


@pytest.mark.slow
def test_the_slurm_script_of_two_nodes_meets_at_the_first(
    begin: Callable[..., Tree],
    plant: Callable[..., Tree],
    cluster: dict[str, str],
    place: Path,
    alone: Callable[[int], str],
) -> None:
    output, script = place / "two-nodes", place / "two-nodes.sh"
    nodes = ("--nodes", "2", "--processes", "1", "--slurm", str(script))
    assert begin(output, *nodes).code() == 0
    text = script.read_text(encoding="utf-8")
    port_of_job = "$((20000 + SLURM_JOB_ID % 20000))"
    assert port_of_job in text
    script.write_text(text.replace(port_of_job, str(free_port())), encoding="utf-8")
    trees = [plant("bash", str(script), **cluster, SLURM_PROCID=str(node)) for node in (0, 1)]
    assert [tree.code() for tree in trees] == [0, 0], trees[0].stderr + trees[1].stderr
    assert sha256_of(output) == alone(SHORT)
    assert trees[1].stdout == ""


@pytest.mark.slow
def test_a_node_that_waits_for_the_others_can_be_stopped(
    begin: Callable[..., Tree], place: Path
) -> None:
    port = free_port()
    nodes = ("--nodes", "2", "--processes", "1", "--rendezvous", f"localhost:{port}")
    tree = begin(place / "waiting", *nodes)
    handle_signals = f":{port:04X} "
    tree.until(
        lambda: handle_signals in (PROC / "net/tcp6").read_text() + (PROC / "net/tcp").read_text()
    )
    tree.process.send_signal(signal.SIGUSR1)
    assert tree.code() == 75, tree.stderr
    assert "Traceback" not in tree.stderr


def test_nodes_that_do_not_meet_are_told_in_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "JOIN_SECONDS", 1)
    plan = make_plan("deit_pico_digits", gpus=0, nodes=2)
    job = Job(plan=plan, data=str(place / "data"), fingerprint={})
    where = f"localhost:{free_port()}"
    with pytest.raises(ZooError) as caught:
        elastic.launch(job, place, where)
    assert str(caught.value) == (
        f"the 2 nodes did not meet at {where} (RendezvousTimeoutError); type the same command on "
        "each within 0 minutes, with a HOST:PORT that each can reach"
    )


def test_two_runs_of_one_recipe_at_one_address_are_two_rendezvous(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousError

    ids = []

    def note(config: Any, _program: str) -> Any:
        ids.append(config.run_id)
        raise RendezvousError

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", note)
    plan = make_plan("deit_pico_digits", gpus=0, nodes=2)
    job = Job(plan=plan, data=str(place / "data"), fingerprint={})
    # The nodes of a run may have its folder mounted elsewhere.
    for output in ("here/a", "there/a", "here/b"):
        (place / output).mkdir(parents=True)
        with pytest.raises(ZooError):
            elastic.launch(job, place / output, "localhost:1")
    assert ids[0] == ids[1] != ids[2]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nobody has started this process as one of many."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is set in a test is taken back
        monkeypatch.delenv(name)
    return monkeypatch


def set_all(patch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        patch.setenv(name, value)


def test_of_several_nodes_too_a_lock_is_taken_over_with_the_whole_name_of_its_folder(
    bare: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*_: object) -> None:
        raise ArithmeticError

    output = tmp_path / "run[red]"
    output.mkdir()
    plan = make_plan("deit_pico_digits", gpus=0, nodes=2)
    Job(plan=plan, data=str(tmp_path), fingerprint={}).write(output)
    owner = {"host": "elsewhere", "pid": 1, "since": "yesterday"}
    (output / ".owner.json").write_text(json.dumps(owner), encoding="utf-8")
    unwatched = str(output / "plan.json")
    bare.setattr(sys, "argv", ["-c", str(output), str(os.getppid()), unwatched])
    set_all(bare, {"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"})
    bare.setattr("deit_zoo.training.trainer.train", ended)
    with pytest.raises(ArithmeticError):
        elastic.main()
    assert f"the run in {output} had no end (process 1 on elsewhere" in capsys.readouterr().err


def test_torchruns_process_is_a_rank(bare: pytest.MonkeyPatch) -> None:
    set_all(bare, {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"})
    assert elastic.is_rank(make_plan("deit_pico_digits", gpus=0, processes=2))


def test_a_world_size_that_is_no_number_is_another_launchers(bare: pytest.MonkeyPatch) -> None:
    set_all(bare, {"RANK": "0", "WORLD_SIZE": "auto"})
    assert not elastic.is_rank(make_plan("deit_pico_digits", gpus=0))
    with init_distributed("cpu") as group:
        assert group.size == 1


@pytest.mark.parametrize(
    ("size", "gpus", "but"),
    [
        ("4", 0, "--processes and --nodes ask for 2"),
        ("4", 2, "--gpus and --nodes ask for 2"),
        ("2", 0, "MASTER_ADDR is not set"),
    ],
)
def test_variables_of_torchrun_that_do_not_fit_are_refused(
    bare: pytest.MonkeyPatch, size: str, gpus: int, but: str
) -> None:
    set_all(bare, {"RANK": "0", "WORLD_SIZE": size})
    with pytest.raises(RecipeError) as caught:
        elastic.is_rank(make_plan("deit_pico_digits", gpus=gpus, processes=None if gpus else 2))
    assert str(caught.value) == (
        f"RANK and WORLD_SIZE={size} say that torchrun started {size} processes, but {but}; make "
        "the two agree, or unset both variables where torchrun did not start this"
    )


@pytest.mark.parametrize(
    ("step", "port"), [({}, "25678"), ({"SLURM_STEP_ID": "2"}, "27696")], ids=["no step", "step 2"]
)
def test_a_task_of_srun_is_a_rank_with_torchruns_variables_and_its_steps_port(
    bare: pytest.MonkeyPatch, step: dict[str, str], port: str
) -> None:
    set_all(bare, slurm(1, 45_678) | {"SLURM_STEP_NODELIST": "node[07-08]"} | step)
    assert elastic.is_rank(make_plan("deit_pico_digits", gpus=0, processes=2))
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["1", "1", "2", "node07", port]


@pytest.mark.parametrize(
    "shell",
    [
        {},
        {"SLURM_NTASKS": "2"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        slurm(0, 7) | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["a person's", "of salloc", "of sbatch", "as a step of one task"],
)
def test_a_shell_is_no_rank_nor_that_of_an_allocation(
    bare: pytest.MonkeyPatch, shell: dict[str, str]
) -> None:
    set_all(bare, shell)
    assert not elastic.is_rank(make_plan("deit_pico_digits", gpus=0, processes=2))


@pytest.mark.parametrize(
    ("place_to_meet", "given"),
    [
        (None, ""),
        *((wrong, f", not {wrong!r}") for wrong in ("here", "here:", ":29400", "here:port")),
    ],
)
def test_nodes_without_a_host_and_a_port_to_meet_at_are_refused(
    monkeypatch: pytest.MonkeyPatch, place_to_meet: str | None, given: str
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    with pytest.raises(RecipeError) as caught:
        elastic.check_rendezvous(2, place_to_meet)
    assert str(caught.value) == (
        f"--nodes 2 needs --rendezvous HOST:PORT, the same on every node{given}; if this node is "
        "the first, type --rendezvous here:29400"
    )


def test_one_node_needs_no_place_to_meet() -> None:
    elastic.check_rendezvous(1, None)
    elastic.check_rendezvous(2, "node07.example.org:29400")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_the_launcher_hears_a_signal_whenever_it_comes(name: str) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException

    before = signal.getsignal(getattr(signal, name))
    heard = signals_as_exceptions(elastic.stopped_by, SIGNALS, elastic.TORCHS)
    with pytest.raises(SignalException) as caught, heard:
        signal.raise_signal(getattr(signal, name))
    assert caught.value.sigval == getattr(signal, name)
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_hangup_under_nohup_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        names = ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGQUIT"]
        assert elastic.signals_to_handle() == names
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert elastic.signals_to_handle() == [name for name in names if name != "SIGHUP"]
        with signals_as_exceptions(elastic.stopped_by, SIGNALS, elastic.TORCHS):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        ({0: -15, 1: -9}, (1, -9)),
        ({0: elastic.EXIT_PEER_LOST, 1: 1}, (1, 1)),
        ({0: 1, 1: 1}, (0, 1)),
        ({1: elastic.EXIT_PEER_LOST}, (1, elastic.EXIT_PEER_LOST)),
    ],
)
def test_the_process_that_is_named_did_not_follow_another(
    codes: dict[int, int], first: tuple[int, int]
) -> None:
    assert elastic.first_to_die(codes) == first


def test_what_the_first_process_left_is_raised_by_the_launcher(tmp_path: Path) -> None:
    plan = make_plan("deit_pico_digits", gpus=0, processes=2)
    job = Job(plan=plan, data="data", fingerprint={})
    elastic.write_exit_status(tmp_path, signal=int(signal.SIGUSR1))
    with pytest.raises(Interrupted) as stopped:
        elastic.read_verdict(job, tmp_path)
    assert stopped.value.number == signal.SIGUSR1
    elastic.write_exit_status(tmp_path, error=["RecipeError", "the sentence"])
    with pytest.raises(RecipeError, match=r"^the sentence$"):
        elastic.read_verdict(job, tmp_path)


def test_how_a_run_ended_is_the_last_word_until_it_is_forgotten(tmp_path: Path) -> None:
    assert elastic.read_exit_status(tmp_path) == {}
    words: list[dict[str, Any]] = [{"signal": 15}, {"error": ["DataError", "no"]}, {"done": True}]
    for facts in words:
        elastic.write_exit_status(tmp_path, **facts)
        assert elastic.read_exit_status(tmp_path) == facts
    elastic.raise_error_of(facts)  # none
    elastic.clear_exit_status(tmp_path)
    elastic.clear_exit_status(tmp_path)  # there is nothing left
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "raised"), [("DataError", DataError), ("FutureError", ZooError)])
def test_an_error_is_raised_as_the_kind_that_it_was_where_that_is_known(
    kind: str, raised: type[ZooError]
) -> None:
    with pytest.raises(ZooError, match=r"^no image$") as caught:
        elastic.raise_error_of({"error": [kind, "no image"]})
    assert caught.type is raised
