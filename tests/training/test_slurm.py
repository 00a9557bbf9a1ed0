"""The batch script: what it asks for, and what it does when a run is asked to stop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.errors import RecipeError
from deit_zoo.training.launch import make_plan
from deit_zoo.training.slurm import first_host, script

RUN = ["reproduce", "deit_s", "--gpus", "8", "--data", "/data/my images"]
HERE = f"{sys.executable} -m deit_zoo"


def script_of(gpus: int, nodes: int = 1, **options: Any) -> str:
    name = "deit_s" if gpus else "deit_pico_digits"
    plan = make_plan(name, gpus=gpus, nodes=nodes, **{"workers": 10} | options)
    return script(plan, RUN)


def test_one_node_of_gpus() -> None:
    said = [line for line in script_of(8).splitlines() if not line.startswith("# ")]
    assert said == [
        "#!/bin/bash",
        "#SBATCH --job-name=deit_small",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=88",
        "#SBATCH --time=24:00:00",
        f"#SBATCH --chdir={Path.cwd()}",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR1@300",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        f"srun {HERE} reproduce deit_s --gpus 8 --data '/data/my images' --workers 10",
        "status=$?",
        'if [ "$status" -eq 75 ]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$status"',
    ]


def test_several_nodes_meet_at_the_first() -> None:
    told = script_of(4, nodes=2)
    assert "#SBATCH --nodes=2\n" in told
    assert "#SBATCH --gpus-per-node=4\n" in told
    assert 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n' in told
    assert ' --rendezvous "$first:$((20000 + SLURM_JOB_ID % 20000))"\n' in told


def test_the_cpu_is_asked_for_by_its_cores() -> None:
    told = script_of(0, processes=2, workers=3)
    assert "#SBATCH --cpus-per-task=8\n" in told
    assert "gpus-per-node" not in told


# What `srun` and `scontrol` are told, in place of the real ones.
COMMANDS = {
    "srun": 'echo "srun $@" >> told; exit "$ENDS"',
    "scontrol": 'echo "scontrol $@" >> told; [ "$1" = show ] && printf "node7\\nnode8\\n"; true',
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A machine with an `srun` that ends as it is told, and a `scontrol`."""
    for name, text in COMMANDS.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("status", "requeued"),
    [(0, []), (1, []), (2, []), (130, []), (75, ["scontrol requeue 4711"])],
)
def test_a_run_that_was_asked_to_stop_is_queued_again(
    site: Path, status: int, requeued: list[str]
) -> None:
    done = ends(site, script_of(8), status)
    assert done.returncode == status
    assert (site / "told").read_text().splitlines() == [
        f"srun {HERE} reproduce deit_s --gpus 8 --data /data/my images --workers 10",
        *requeued,
    ]


def test_jobs_meet_at_the_node_that_slurm_names_first_each_at_a_port_of_its_own(
    site: Path,
) -> None:
    ends(site, script_of(4, nodes=2), 0)
    assert (site / "told").read_text().splitlines()[-1].endswith(" --rendezvous node7:24711")


def ends(site: Path, text: str, status: int) -> subprocess.CompletedProcess[str]:
    """Run a script on a machine whose `srun` ends with this status."""
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[7-8]", "ENDS": str(status)}
    path = f"{site}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-u", "-c", text],
        cwd=site,
        env=os.environ | slurm | {"PATH": path, "SLURM_CPUS_PER_TASK": "88"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("a1,b2", "a1"),
        ("node[03-06,9]", "node03"),
        ("node[1,3-4],other", "node1"),
        ("gpu-a[07-08]-ib,login", "gpu-a07-ib"),
        ("rack[0-1]node[2-3]", "rack0node2"),
        ("n1.example.org,n[2-3].example.org", "n1.example.org"),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_list_without_a_host_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        first_host(",")
    assert str(caught.value) == "Slurm's list of nodes is ',', in which there is no host"
