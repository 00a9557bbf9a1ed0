"""A batch script for Slurm that starts a run, hears of its time limit, and asks for the next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from deit_zoo.recipes.plan import Plan

REQUEUE = 75  # EX_TEMPFAIL: what `reproduce` exits with when it was asked to stop
WARNING_SECONDS = 300


def script(plan: Plan, command: Sequence[str], port: int) -> str:
    """The script; `command` is the run as typed, without `--slurm`. Nothing in it is of one site.

    One task per node starts that node's processes; they meet at the first node.
    """
    local = plan.processes // plan.nodes
    resources = [
        f"--job-name={plan.recipe.name}",
        f"--nodes={plan.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={local * (plan.workers + 1)}",
        "--requeue",
        "--open-mode=append",
        f"--signal=USR1@{WARNING_SECONDS}",
    ]
    if plan.device == "cuda":
        resources.insert(4, f"--gpus-per-node={local}")
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in resources)]
    lines.append("# Add what your site asks for, such as --partition, --account and --time.")
    # Since Slurm 22.05 srun takes one core unless it is told.
    lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
    run = f"srun {shlex.join(command)}"
    if plan.nodes > 1:
        lines.append('first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)')
        run += f' --rendezvous "$first:{port}"'
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
