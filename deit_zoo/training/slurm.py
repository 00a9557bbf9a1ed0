"""Slurm: a batch script for a run, and srun's tasks as the processes of one.

The script starts a run, passes on the warning of its time limit, and queues the job again.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from deit_zoo.errors import RecipeError
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import count

REQUEUE = 75  # EX_TEMPFAIL: what a run exits with when it was asked to stop
WARNING_SECONDS = 300
FIRST_PORT, PORTS, STEPS_APART = 20_000, 20_000, 1_009  # of jobs and steps that share a node
HOURS = 24  # that a job asks for; it is queued again at their end


def cores_per_node(plan: Plan) -> int:
    """One for each process that trains, and for each that reads images."""
    return plan.processes // plan.nodes * (plan.workers + 1)


def asked(plan: Plan) -> str:
    """What the script asks for, in words."""
    local = plan.processes // plan.nodes
    gpus = f"{count(local, 'GPU')} and " if plan.device == "cuda" else ""
    cores, of = count(cores_per_node(plan), "core"), count(plan.workers, "worker")
    nodes = f"{count(plan.nodes, 'node')} of {gpus}{cores}"
    return f"{nodes} ({local} x (1 + {of})), for {HOURS} h at a time"


def script(plan: Plan, words: Sequence[str]) -> str:
    """The script; `words` are what was typed, without `--slurm`. Nothing in it is of one site.

    It starts this very environment, here. One task per node starts that node's processes; they meet
    at the first node.
    """
    local = plan.processes // plan.nodes
    command = [sys.executable, "-m", "deit_zoo", *words]
    if not any(word.startswith("--workers") for word in words):  # that node has other cores
        command += ["--workers", str(plan.workers)]
    resources = [
        f"--job-name={plan.recipe.name}",
        f"--nodes={plan.nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={local}"] if plan.device == "cuda" else []),
        f"--cpus-per-task={cores_per_node(plan)}",
        f"--time={HOURS}:00:00",
        f"--chdir={Path.cwd()}",
        "--requeue",
        "--open-mode=append",
        f"--signal=USR1@{WARNING_SECONDS}",
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {shlex.quote(option)}" for option in resources)]
    lines.append("# Add what your site asks for, such as --partition and --account.")
    lines.append("# Any --time will do: a run that is not done goes on from its last state.")
    # Since Slurm 22.05 srun takes one core unless it is told.
    lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
    run = f"srun {shlex.join(command)}"
    if plan.nodes > 1:
        lines.append('first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)')
        run += f' --rendezvous "$first:$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"'
    lines += [
        run,
        "status=$?",
        f"# {REQUEUE}: the run was asked to stop and left a state; queue it again to continue.",
        f'if [ "$status" -eq {REQUEUE} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$status"',
    ]
    return "\n".join(lines) + "\n"


def set_rank_variables(processes: int) -> None:
    """In one of `processes` tasks of srun: set torchrun's variables from Slurm's."""
    env = os.environ
    # The shell of an allocation knows the job's tasks, and is none of a step's.
    tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS"))
    in_step = "SLURM_STEP_NODELIST" in env and "SLURM_PROCID" in env
    if not in_step or tasks != str(processes) or processes == 1 or "RANK" in env:
        return
    env.update(RANK=env["SLURM_PROCID"], LOCAL_RANK=env["SLURM_LOCALID"], WORLD_SIZE=tasks)
    env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
    number = int(env["SLURM_JOB_ID"]) + STEPS_APART * int(env.get("SLURM_STEP_ID", 0))
    env.setdefault("MASTER_PORT", str(FIRST_PORT + number % PORTS))


def first_host(nodes: str) -> str:
    """The first host of a list in Slurm's notation, such as `node[03-06,9]` or `a1,b2`."""
    match = re.match(r"([^\[\],]|\[[^\[\]]+\])+", nodes)
    if match is None:
        raise RecipeError(f"Slurm's list of nodes is {nodes!r}, in which there is no host")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match[0])
