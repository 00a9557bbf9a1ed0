"""Many processes: started and watched by torchrun's launcher, or started by somebody else.

A process that dies takes the others with it, and all begin again from the last state.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from deit_zoo.errors import RecipeError, ZooError
from deit_zoo.files import MODEL_FILE, RECEIPT_FILE
from deit_zoo.recipes.plan import Plan
from deit_zoo.results import Evaluation
from deit_zoo.training import exit_status as outcome
from deit_zoo.training.signals import SIGNALS, Interrupted

if TYPE_CHECKING:
    from deit_zoo.runs.receipt import Verdict
    from deit_zoo.training.launch import Job

RESTARTS = 3
EXIT_PEER_LOST = 111  # the exit code of a process whose peer died
PORT = 29400
MEETING_SECONDS = 600  # that the first node waits for the last
STATE_SECONDS = 120  # that the processes have to finish a step and write a state
# Ctrl-C while a process still imports ends it without Python's traceback.
PROCESS = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "from deit_zoo.training.trainer import main; main()"
)
# Beside SIGNALS, what torch's launcher listens to.
TORCHS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name))
TALKATIVE = ("torch.distributed.elastic", "torch.distributed.launcher")


def world_size() -> int | None:
    """The number of processes that torchrun started beside this one; None without it."""
    size = os.environ.get("WORLD_SIZE") if "RANK" in os.environ else None
    return int(size) if size is not None else None


def is_rank(plan: Plan) -> bool:
    """Whether torchrun or srun has started this process as one of the plan's.

    Under srun, torchrun's variables are set from Slurm's. Raises RecipeError for another number.
    """
    env = os.environ
    # The shell of an allocation knows the job's tasks, and is none of a step's.
    tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS"))
    in_step = "SLURM_STEP_NODELIST" in env and "SLURM_PROCID" in env
    if in_step and tasks == str(plan.processes) and plan.processes > 1 and "RANK" not in env:
        env["RANK"] = env["SLURM_PROCID"]
        env["LOCAL_RANK"] = env["SLURM_LOCALID"]
        env["WORLD_SIZE"] = tasks
        env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
        env.setdefault("MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 20_000))
    size = world_size()
    if size is not None and size != plan.processes:
        raise RecipeError(
            f"torchrun started {size} processes, but --gpus and --nodes ask for {plan.processes}; "
            "make the two agree"
        )
    return size is not None


def first_host(nodes: str) -> str:
    """The first host of a list in Slurm's notation, such as `node[03-06,9]` or `a1,b2`."""
    found = re.match(r"([^\[\],]|\[[^\[\]]+\])+", nodes)
    if found is None:
        raise RecipeError(f"Slurm's list of nodes is {nodes!r}, in which there is no host")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def check_rendezvous(nodes: int, rendezvous: str | None) -> None:
    """Raises RecipeError where several nodes have no place to meet."""
    if nodes > 1 and not re.fullmatch(r"[^:\s]+:\d+", rendezvous or ""):
        here = f"{socket.gethostname()}:{PORT}"
        raise RecipeError(
            f"--nodes {nodes} needs --rendezvous HOST:PORT, the same on every node"
            f"{f', not {rendezvous!r}' if rendezvous else ''}; if this node is the first, type "
            f"--rendezvous {here}"
        )


def launch(job: Job, output: Path, rendezvous: str | None) -> Verdict:
    """Run this node's processes to the verdict.

    Raises what they raised, Stopped, or a ZooError where they died too often or never met.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    plan = job.plan
    outcome.clear(output)
    for name in list(logging.root.manager.loggerDict):  # what they tell is told here, in a sentence
        if name.startswith(TALKATIVE):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STATE_SECONDS))
    # A shared store keeps the addresses of dead processes, and new ones wait for them (torch 2.15).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    alone = plan.nodes == 1
    config = LaunchConfig(
        min_nodes=plan.nodes,
        max_nodes=plan.nodes,
        nproc_per_node=plan.processes // plan.nodes,
        run_id=uuid.uuid4().hex if alone else plan.recipe.digest[:16],
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0" if alone else rendezvous or "",
        rdzv_configs={"join_timeout": MEETING_SECONDS, "read_timeout": MEETING_SECONDS},
        local_addr="localhost" if alone else None,
        max_restarts=RESTARTS,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    command = ("-c", PROCESS, str(output.resolve()), str(os.getpid()))
    try:
        with hearing():
            elastic_launch(config, sys.executable)(*command)
        return told_verdict(job, output)
    except SignalException as error:
        raise Interrupted(int(error.sigval)) from error
    except ChildFailedError as error:
        if told := outcome.told_error(outcome.left(output)):
            raise told from error
        rank, code = first_to_die({rank: died.exitcode for rank, died in error.failures.items()})
        raise ZooError(
            f"process {rank} {ended(code)}, after {RESTARTS} restarts; what it printed "
            "is above, and the same command continues from the last state"
        ) from error
    except RendezvousError as error:
        raise ZooError(
            f"the {plan.nodes} nodes did not meet at {rendezvous} ({type(error).__name__}); type "
            f"the same command on each within {MEETING_SECONDS // 60} minutes, with a HOST:PORT "
            "that each can reach"
        ) from error
    finally:
        if alone:  # else the launchers of other nodes may still have to read it
            outcome.clear(output)


@contextmanager
def hearing() -> Iterator[None]:
    """Within it a signal raises SignalException: what torch's launcher expects of its own handlers.

    Those are set late, leave out SIGUSR1, and would hear a hangup under nohup.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    def raised(number: int, _frame: FrameType | None) -> NoReturn:
        asked = signal.Signals(number)
        raise SignalException(f"asked to stop by {asked.name}", sigval=asked)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.getsignal(number) for number in (*SIGNALS, *TORCHS)}
    deaf = {number for number in TORCHS if held[number] is signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, deaf) if deaf else set()
    for number in SIGNALS:
        signal.signal(number, raised)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        if deaf:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def first_to_die(codes: dict[int, int]) -> tuple[int, int]:
    """Of processes and their exit codes, one that did not end because another had."""
    followed = (EXIT_PEER_LOST, -signal.SIGTERM)  # the second is what torch's launcher sends
    return min(codes.items(), key=lambda found: (found[1] in followed, found[0]))


def ended(code: int) -> str:
    """How a process ended, by its exit code."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def told_verdict(job: Job, output: Path) -> Verdict:
    """The verdict that the first process left, or what it raised."""
    from deit_zoo.runs.receipt import judge

    facts = outcome.left(output)
    if told := outcome.told_error(facts):
        raise told
    if "signal" in facts:
        raise Interrupted(facts["signal"])
    receipt = json.loads((output / RECEIPT_FILE).read_text(encoding="utf-8"))
    reached = Evaluation(**receipt["reached"])
    return judge(job.plan.recipe, reached, receipt["sha256"][MODEL_FILE])
