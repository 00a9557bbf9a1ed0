"""Workers of a loader that import the program anew, as on macOS, on Windows and by Python 3.14."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, sys
from deit_zoo.data.loader import Loader

class Words(list): pass

if {guard}:
    multiprocessing.set_start_method(sys.argv[1], force=True)
    words = Words(["a" * int(sys.argv[2])])
    print(*[len(batch[0]) for batch in Loader(words, [[0]], 1).read()])
"""


# More than a pipe holds would be waited for: the worker ends before it is handed its work.
@pytest.mark.parametrize(
    ("guard", "method", "length"),
    [
        ("True", "spawn", 10**6),
        ("True", "forkserver", 1),
        ('__name__ == "__main__"', "spawn", 10**6),
    ],
)
def test_a_script_that_its_workers_import_is_told_to_guard_what_it_does(
    guard: str, method: str, length: int, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard=guard))
    command = [sys.executable, script, method, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    if guard != "True":
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{length}\n", "")
        return
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "deit_zoo.errors.ZooError: a loader worker imports the script that starts it, and ended "
        'at that; put what the script does below `if __name__ == "__main__":`, or give 0 workers'
    )
