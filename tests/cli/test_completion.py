"""What a shell is offered when Tab is pressed: the protocol that its installed script speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import ROOT, run_python

PROGRAM = "import sys\nfrom deit_zoo.cli import main\nsys.argv[0] = 'deit-zoo'\nmain()"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("deit-zoo info cait_s", ["cait_s24_224", "cait_s24_384", "cait_s36_384"]),
        ("deit-zoo info deit_tiny_patch16_224.", ["deit_tiny_patch16_224.fb_in1k"]),  # timm's
        ("deit-zoo classify x.png --model deit_t", ["deit_tiny", "deit_tiny_distilled"]),
        ("deit-zoo evaluate deit_small --beside cait_xs", ["cait_xs24_384"]),
        ("deit-zoo weights fetch deit_tiny cait_m48", ["cait_m48_448"]),
        ("deit-zoo reproduce deit3_base_pretrain", ["deit3_base_pretrain_21k"]),
        ("deit-zoo teach", ["teacher-labels"]),
        ("deit-zoo info runs/pho", []),  # then the shell offers files
    ],
)
def test_names_of_models_recipes_and_commands_are_offered(line: str, words: list[str]) -> None:
    protocol = {
        "_DEIT_ZOO_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = run_python(["-c", PROGRAM], server="light", env=os.environ | protocol)
    assert (done.stdout.split(), done.stderr) == (words, "")


def test_the_script_that_is_installed_in_bash_offers_them(tmp_path: Path) -> None:
    program = tmp_path / "deit-zoo"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    program.chmod(0o755)
    bash = """
        source <(_DEIT_ZOO_COMPLETE=source_bash deit-zoo)
        COMP_WORDS=(deit-zoo info cait_m) COMP_CWORD=2
        $(complete -p deit-zoo | sed -E 's/.*-F (\\w+).*/\\1/') deit-zoo cait_m info
        echo "${COMPREPLY[@]}"
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    words = ["bash", "-c", bash]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["cait_m36_384", "cait_m48_448"], "")
