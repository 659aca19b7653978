"""Programs inside the test process: the outcome of a real process, and nothing left behind."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from tests.conftest import last_line, run_program, run_verb

ENDS = {
    "a code": ("sys.exit(3)", 3),
    "nothing": ("pass", 0),
    "a text": ("sys.exit('no such thing')", 1),
    "an exception": ("raise ValueError('no such value')", 1),
    "an error of the user": ("run_command(refuse)", 2),
    "an error of the system": ("run_command(lambda arguments: len(open('no such file').read()))", 2),
    "a wrong argument": ("OneLineParser().parse_args()", 2),
}
START = """
import sys
from change.common.errors import OneLineParser, UserError, run_command

def refuse(arguments):
    raise UserError(f"{arguments}: choose others")

print("first", *sys.argv[1:], __name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_the_outcome_is_that_of_a_process(tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    line, code = ENDS[end]
    script.write_text(START + line)
    inside = run_program(script, "--lr", 0.5, cwd=tmp_path)
    assert inside.returncode == code
    assert inside.stdout == "first --lr 0.5 __main__\n"
    outside = run_program(script, "--lr", 0.5, cwd=tmp_path, environment={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert (inside.returncode, inside.stdout, last_line(inside)) == (code, outside.stdout, last_line(outside))


# Changes whatever can be changed in a process, and writes in every way there is.
INTRUDER = """
import logging, os, random, signal, subprocess, sys, warnings
import numpy, PIL.Image, torch
logging.basicConfig(level=logging.DEBUG, force=True)
logging.captureWarnings(True)
logging.getLogger("known").setLevel(logging.ERROR)
logging.getLogger("new").addHandler(logging.StreamHandler())
warnings.simplefilter("error")
torch.use_deterministic_algorithms(True)
torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
torch.set_default_dtype(torch.float64)
torch.set_num_threads(2)
torch.manual_seed(1)
numpy.random.seed(1)
random.seed(1)
PIL.Image.MAX_IMAGE_PIXELS = 1
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.environ["NEW"] = "1"
del os.environ["KNOWN"]
os.chdir("/")
sys.path.insert(0, "/nowhere")
logging.info("by the root logger")
os.write(2, b"by its number\\n")
subprocess.run(["sh", "-c", "echo by a child; echo by a child with an error >&2"])
"""


def state_of_process() -> dict[str, object]:
    root, known, new = (logging.getLogger(name) for name in (None, "known", "new"))
    return {
        "level": root.level,
        "handlers": root.handlers[:],
        "level of a known logger": known.level,
        "handlers of a new logger": new.handlers[:],
        "showwarning": warnings.showwarning,
        "filters": warnings.filters[:],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "random numbers": (torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()),
        "pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "signals": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "arguments": sys.argv[:],
        "path": sys.path[:],
        "streams": (sys.stdout, sys.stderr),
    }


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN", "1")
    (tmp_path / "intruder.py").write_text(INTRUDER)
    before = state_of_process()
    result = run_program(tmp_path / "intruder.py")
    assert result.returncode == 0, result.stderr
    after = state_of_process()
    for name, value in before.items():
        assert after[name] == value, name
    assert result.stdout == "by a child\n"
    assert result.stderr.splitlines() == ["INFO:root:by the root logger", "by its number", "by a child with an error"]


def test_warnings_are_shown_as_in_a_process(tmp_path: Path) -> None:
    (tmp_path / "warn.py").write_text(
        "import warnings\nwarnings.warn('seen')\nimport warnings as w\nw.warn('x', ImportWarning)"
    )
    result = run_program(tmp_path / "warn.py")
    assert "UserWarning: seen" in result.stderr and "ImportWarning" not in result.stderr


def test_a_program_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(tmp_path / "hang.py", timeout=0.2)


def test_a_verb_runs_in_the_repository() -> None:
    result = run_verb("paint")
    assert result.returncode == 2 and result.stderr.startswith("error: python -m change VERB: choose one of prepare, ")


CYCLE = """
import os

class Loader:
    def __del__(self):
        os.write(1, b"freed ")

loader = Loader()
loader.itself = loader
del loader
os.write(1, b"done ")
"""


def test_cycles_are_freed_before_it_returns(tmp_path: Path) -> None:
    """They may hold processes and open files."""
    script = tmp_path / "script.py"
    script.write_text(CYCLE)
    assert run_program(script).stdout == "done freed "
