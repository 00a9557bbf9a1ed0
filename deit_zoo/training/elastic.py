"""Many processes: started and watched by torchrun's launcher, or started by somebody else.

A process that dies takes the others with it, and all begin again from the last state. How a run
ended, the first process leaves in a file for the one that started it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import uuid
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deit_zoo import errors
from deit_zoo.errors import RecipeError, ZooError
from deit_zoo.files import MODEL_FILE, RECEIPT_FILE, read_json, write_whole
from deit_zoo.machine import world_size
from deit_zoo.recipes.plan import Plan
from deit_zoo.results import Evaluation
from deit_zoo.terminal import Terminal
from deit_zoo.training import heartbeat
from deit_zoo.training.job import Job, read_job
from deit_zoo.training.run_lock import run_lock
from deit_zoo.training.signals import SIGNALS, Interrupted, signals_as_exceptions
from deit_zoo.training.slurm import set_rank_variables

if TYPE_CHECKING:
    from deit_zoo.runs.receipt import Verdict

RESTARTS = 3
EXIT_PEER_LOST = 111  # the exit code of a process whose peer died
PORT, LAST_PORT = 29400, 65535
JOIN_SECONDS = 600  # that the first node waits for the last
STATE_SECONDS = 120  # that the processes have to finish a step and write a state
EXIT_STATUS_FILE = ".outcome.json"
# Ctrl-C while a process still imports ends it without Python's traceback.
PROCESS = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "from deit_zoo.training.elastic import main; main()"
)
# Beside SIGNALS, what torch's launcher handles.
TORCHS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name))
TALKATIVE = ("torch.distributed.elastic", "torch.distributed.launcher")


def is_rank(plan: Plan) -> bool:
    """Whether torchrun or srun has started this process as one of the plan's."""
    set_rank_variables(plan.processes)
    size, but = world_size(), None
    if size is not None and size != plan.processes:
        option = "--gpus" if plan.device == "cuda" else "--processes"
        but = f"{option} and --nodes ask for {plan.processes}"
    elif size not in (None, 1) and "MASTER_ADDR" not in os.environ:
        but = "MASTER_ADDR is not set"
    if but is not None:
        raise RecipeError(
            f"RANK and WORLD_SIZE={size} say that torchrun started {size} processes, but {but}; "
            "make the two agree, or unset both variables where torchrun did not start this"
        )
    return size is not None


def check_rendezvous(nodes: int, rendezvous: str | None) -> None:
    """Raises RecipeError where several nodes have no address to meet at."""
    address = re.fullmatch(r"[^:\s]+:(\d{1,5})", rendezvous or "", re.ASCII)
    if nodes > 1 and not (address and 0 < int(address[1]) <= LAST_PORT):
        here = f"{socket.gethostname()}:{PORT}"
        raise RecipeError(
            f"--nodes {nodes} needs --rendezvous HOST:PORT, the same on every node"
            f"{f', not {rendezvous!r}' if rendezvous else ''}; if this node is the first, type "
            f"--rendezvous {here}"
        )


def launch(job: Job, output: Path, rendezvous: str | None) -> Verdict:
    """Run this node's processes to the verdict.

    Raises what they raised, Interrupted, or a ZooError where they died too often or never met.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from deit_zoo.distributed import how_it_ended

    plan = job.plan
    clear_exit_status(output)
    for name in list(logging.root.manager.loggerDict):  # what they log is said here in a sentence
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
        # What all nodes know of a run, and no other run at this address has.
        run_id=uuid.uuid4().hex if alone else f"{plan.recipe.digest[:16]} {output.resolve().name}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0" if alone else rendezvous or "",
        rdzv_configs={"join_timeout": JOIN_SECONDS, "read_timeout": JOIN_SECONDS},
        local_addr="localhost" if alone else None,
        max_restarts=RESTARTS,
        monitor_interval=0.2,
        signals_to_handle=",".join(signals_to_handle()),
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    command = ("-c", PROCESS, str(output.resolve()), str(os.getpid()))
    try:
        own = Path(tempfile.mkdtemp(prefix="deit_zoo_"))
        # Also before torch's launcher sets its handlers.
        heard = signals_as_exceptions(stopped_by, SIGNALS, TORCHS)
        with heard, heartbeat.watch(own) as folder:
            elastic_launch(config, sys.executable)(*command, str(folder))
        return read_verdict(job, output)
    except SignalException as error:
        raise Interrupted(int(error.sigval)) from error
    except ChildFailedError as error:
        raise_error_of(read_exit_status(output))
        rank, code = first_to_die({rank: died.exitcode for rank, died in error.failures.items()})
        raise ZooError(
            f"process {rank} {how_it_ended(code)}, after {RESTARTS} restarts; what it printed is "
            "above, and the same command continues from the last state"
        ) from error
    except RendezvousError as error:
        raise ZooError(
            f"the {plan.nodes} nodes did not meet at {rendezvous} ({type(error).__name__}); type "
            f"the same command on each within {JOIN_SECONDS // 60} minutes, with a HOST:PORT "
            "that each can reach"
        ) from error
    finally:
        if alone:  # else the launchers of other nodes may still have to read it
            clear_exit_status(output)


def signals_to_handle() -> list[str]:
    """The names of the signals that torch's launcher shall pass on: no hangup under nohup."""
    numbers = (*SIGNALS, *TORCHS)
    return [number.name for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def stopped_by(number: int) -> BaseException:
    """What torch's launcher raises for a signal."""
    from torch.distributed.elastic.multiprocessing import SignalException

    received = signal.Signals(number)
    return SignalException(f"asked to stop by {received.name}", sigval=received)


def first_to_die(codes: dict[int, int]) -> tuple[int, int]:
    """Of processes and their exit codes, one that did not end because another had."""
    followed = (EXIT_PEER_LOST, -signal.SIGTERM)  # the second is what torch's launcher sends
    return min(codes.items(), key=lambda item: (item[1] in followed, item[0]))


def read_verdict(job: Job, output: Path) -> Verdict:
    """The verdict that the first process left, or what it raised."""
    from deit_zoo.runs.receipt import judge

    status = read_exit_status(output)
    raise_error_of(status)
    if "signal" in status:
        raise Interrupted(status["signal"])
    receipt = read_json(output / RECEIPT_FILE)
    reached = Evaluation(**receipt["reached"])
    sha256 = receipt["sha256"][MODEL_FILE]
    images = job.plan.num_images
    return judge(job.plan.recipe, reached, sha256, job.changed_fields, images)


def write_exit_status(output: Path, **facts: Any) -> None:
    """Say how a run ended: `done=True`, `signal=NUMBER`, or `error=[kind, sentence]`."""
    write_whole(output / EXIT_STATUS_FILE, json.dumps(facts).encode())


def read_exit_status(output: Path) -> dict[str, Any]:
    """How it ended; empty where nothing was said."""
    file = output / EXIT_STATUS_FILE
    return read_json(file) if file.is_file() else {}


def clear_exit_status(output: Path) -> None:
    """Forget how an earlier run ended."""
    (output / EXIT_STATUS_FILE).unlink(missing_ok=True)


def raise_error_of(status: dict[str, Any]) -> None:
    """Raise the error that ended a run, where one did, as it was raised there."""
    if "error" in status:
        kind, sentence = status["error"]
        raise getattr(errors, kind, ZooError)(sentence)


def main() -> None:
    """One process of several, as the launcher starts it: OUTPUT, the launcher's process id, and
    the folder in which it looks for signs of life.
    """
    output, launcher = Path(sys.argv[1]), int(sys.argv[2])
    if read_exit_status(output):  # another process has said why this run cannot go on
        return
    from deit_zoo.distributed import init_distributed, is_peer_lost
    from deit_zoo.training.trainer import train

    # Not before: a library that is loaded from a slow disk lets no other thread run meanwhile.
    heartbeat.beat(Path(sys.argv[3]), os.environ["RANK"])
    say = Terminal(stderr=True, markup=False).print
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts and os.environ["RANK"] == "0":
        count = f"restart {restarts} of {RESTARTS}"
        say(f"a process died; all begin again from the last state ({count})")
    job = read_job(output)
    with ExitStack() as stack:
        try:
            group = stack.enter_context(init_distributed(job.plan.device, launcher))
            several = group.is_main and job.plan.nodes > 1  # else the launcher has the lock
            with run_lock(output, say) if several else nullcontext():
                train(job, output, group)
            if group.is_main:
                write_exit_status(output, done=True)
        except Interrupted as interrupted:
            write_exit_status(output, signal=interrupted.number)
        except ZooError as error:
            if "by peer" in str(error.__cause__):  # who died while all met
                os._exit(EXIT_PEER_LOST)
            # First, so that the others, who lose this one, find it.
            write_exit_status(output, error=[type(error).__name__, str(error)])
            os._exit(1)
        except KeyboardInterrupt:
            os._exit(130)
        except RuntimeError as error:
            if not is_peer_lost(error):
                raise
            os._exit(EXIT_PEER_LOST)
