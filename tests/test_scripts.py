"""The bash scripts, run from another folder: which commands they give, and what those do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from change.checkpoint import Checkpoint, load_checkpoint
from change.common import command_line
from change.common.command_line import to_flat
from change.options import TestOptions, TrainOptions
from change.training.start import options_for_new_run, options_for_resumed_run
from models.network import NetworkConfig, build_network
from tests.conftest import REPOSITORY, run_program, run_verb, write_pairs

DATASETS = ("levir", "dsifn", "s2looking")
SCRIPTS = sorted(REPOSITORY.glob("*_script/*.sh"))

# An interpreter that only records its arguments, one per line, with a line of dots behind each command.
RECORDER = """#!/bin/sh
printf '%s\\n' "$@" ... >>"$0.log"
"""


def run_script(script: str, cwd: Path, *arguments: str, **values: object) -> subprocess.CompletedProcess[str]:
    """Run a script with `values` as the only environment variables among those that scripts take."""
    environment = {name: value for name, value in os.environ.items() if name not in names_in_run_sh()}
    environment |= {"python": sys.executable, "OMP_NUM_THREADS": "2", **{k: str(v) for k, v in values.items()}}
    command = ["bash", str(REPOSITORY / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


@cache
def names_in_run_sh(array: str = r"\w+") -> frozenset[str]:
    """Return the words in the arrays of variables in run.sh whose name matches, all of them by default."""
    text = (REPOSITORY / "train_script" / "run.sh").read_text()
    arrays = re.findall(rf"^{array}=\(\n([^)]*)\)", text, re.MULTILINE)
    return frozenset(word for words in arrays for word in words.split())


def make_recorder(place: Path, code: int = 0) -> Path:
    """Write an interpreter that records its arguments and exits with `code`."""
    recorder = place / "recorder"
    recorder.write_text(f"{RECORDER}exit {code}\n")
    recorder.chmod(0o755)
    recorder.with_suffix(".log").unlink(missing_ok=True)
    return recorder


def recorded(place: Path) -> list[list[str]]:
    """Return the arguments of every command that the recorder in `place` was given."""
    log = place / "recorder.log"
    text = log.read_text() if log.exists() else ""
    return [command.splitlines() for command in text.split("...\n") if command]


def commands_of(script: str, cwd: Path, *arguments: str, **values: object) -> list[list[str]]:
    """Return the commands that a script gives its interpreter, without running them."""
    result = run_script(script, cwd, *arguments, **{**values, "python": make_recorder(cwd)})
    assert result.returncode == 0, result.stderr
    return recorded(cwd)


def command_of(script: str, cwd: Path, *arguments: str, **values: object) -> list[str]:
    """Return the only command that a script gives."""
    (command,) = commands_of(script, cwd, *arguments, **values)
    return command


def options_in(command: list[str]) -> dict[str, str]:
    """Return the options of a command; the last one of a name counts, as it does for the programs."""
    options = [word.removeprefix("--").split("=", 1) for word in command if word.startswith("--") and "=" in word]
    return dict(options)


def options_of(script: str, cwd: Path, *arguments: str, **values: object) -> dict[str, str]:
    """Return the options that a script gives its program."""
    return options_in(command_of(script, cwd, *arguments, **values))


def read_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return options of train.py as train.py reads them."""
    return command_line.parse_given(TrainOptions, [f"--{name}={value}" for name, value in options.items()], "")


def perform(command: list[str], cwd: Path) -> str:
    """Run a recorded command; return what it writes on stderr."""
    if command[:2] == ["-m", "change"]:
        result = run_verb(*command[2:])
    else:
        result = run_program(Path(command[0]), *command[1:], cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stderr


# data set: image, crop, batch, jitter, epochs of pass 1 and of passes 2 and 3, learning rate of pass 1, validate every
PUBLISHED = {
    "levir": ("1024", "512", "8", "0.2 0.2 0.1 0.1", "1000", "800", "6e-4", "1"),
    "dsifn": ("256", "256", "16", "0 0 0 0", "1000", "800", "8e-4", "1"),
    "s2looking": ("1024", "512", "8", "0.2 0.2 0.1 0.1", "1000", "500", "6e-4", "10"),
}


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS)
def test_published_values(tmp_path: Path, dataset: str) -> None:
    size, crop, batch, jitter, first, later, lr, every = PUBLISHED[dataset]
    shared = {"trainsize": size, "cropsize": crop, "train_batchsize": batch, "color_setting": jitter}
    base = options_of(f"train_script/train_{dataset}.sh", tmp_path)
    assert shared.items() <= base.items()
    assert {"epoch": first, "lr": lr, "val_epoch": every}.items() <= base.items()
    assert "refine" not in base and "cross" not in base
    refine = options_of(f"train_script/train_refine_{dataset}.sh", tmp_path, checkpoint_path="1.pth")
    expected = {
        "epoch": later,
        "lr": "4e-4",
        "val_epoch": "1",
        "refine": "True",
        "resume": "True",
        "checkpoint_path": "1.pth",
    }
    assert (shared | expected).items() <= refine.items()
    assert refine.get("cross", "False") == "False"
    cross = options_of(f"train_script/train_refine_{dataset}.sh", tmp_path, checkpoint_path="2.pth", cross="True")
    assert (shared | expected | {"cross": "True", "checkpoint_path": "2.pth"}).items() <= cross.items()
    test = options_of(f"test_script/test_{dataset}.sh", tmp_path, checkpoint_path="best.pth")
    assert Path(test["save_path"]).resolve() == REPOSITORY / "results" / dataset
    assert "testsize" not in test


@pytest.mark.parametrize(("cross", "start"), [("", "1.pth"), ("False", "1.pth"), ("True", "2.pth"), ("yes", "2.pth")])
def test_later_passes_start_from_the_one_before(tmp_path: Path, cross: str, start: str) -> None:
    options = options_of("train_script/train_refine_levir.sh", tmp_path, save_path="runs", cross=cross)
    assert options["checkpoint_path"] == f"runs/{start}"


def test_overrides(tmp_path: Path) -> None:
    options = options_of("train_script/train_levir.sh", tmp_path, "--lr=3", epoch=5, lr=2, workers=1, save_path="here")
    assert (options["epoch"], options["lr"], options["workers"], options["save_path"]) == ("5", "3", "1", "here")


@pytest.mark.parametrize("script", ["train_script/train_refine_dsifn.sh", "test_script/test_levir.sh"])
def test_number_of_processes(tmp_path: Path, script: str) -> None:
    """`nproc` puts torch's launcher before the same program with the same options; 1 is the same as none."""
    alone = command_of(script, tmp_path)
    assert alone[0].endswith(("/train.py", "/test.py"))
    assert command_of(script, tmp_path, nproc=1) == alone
    for number in ("2", "gpu"):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        assert command_of(script, tmp_path, nproc=number) == [*launcher, *alone]


def test_every_option_can_be_set() -> None:
    for array, kind in (("train_options", TrainOptions), ("test_options", TestOptions)):
        options = [spec for _, spec in command_line.options_of(kind)]
        names = {spec.name for spec in options}
        assert names <= names_in_run_sh(array) <= names | {spec.metadata["alias"] for spec in options}


@pytest.mark.slow
def test_folders_with_spaces(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "a folder"
    dataset.rename(place)
    config = NetworkConfig()
    Checkpoint(config, build_network(config).state_dict()).save(place / "a net.pth")
    command = command_of(
        "test_script/test_levir.sh",
        tmp_path,
        test_root=place / "val",
        checkpoint_path=place / "a net.pth",
        save_path=place / "the results",
        device="cpu",
    )
    perform(command, tmp_path)
    assert (place / "the results" / "metrics.json").is_file()


# --- style ---------------------------------------------------------------------------------------------------------

# What may follow a semicolon, or two in a case.
KEYWORDS = re.compile(r";\s*(?:then|do|;)\s*$|;;\s*$")


def strip_bash(line: str) -> str:
    """Return a line without quoted text and comment, neither of which holds statements; `;;` ends no statement."""
    line = re.sub(r"'[^']*'", "''", line)
    line = re.sub(r'"(?:\$\((?:[^()]|\([^()]*\))*\)|[^"$]|\$)*"', '""', line)
    return re.sub(r"(^|\s)#.*", "", line).replace(";;", "")


def style_faults(text: str) -> list[str]:
    """Return the lines of a script that are too long, or hold more than one statement."""
    faults = []
    for line in text.splitlines():
        code = strip_bash(line)
        joined = ";" in re.sub(r";\s*(?:then|do)\s*$", "", code)
        chained = len(re.findall(r"&&|\|\|", code)) > 1
        one_line_block = re.search(r"\b(?:then|do|else)\s+\S", code) or re.search(r"\(\)\s*\{\s*\S", code)
        if len(line) > 100 or joined or chained or one_line_block:
            faults.append(line)
    return faults


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_style_of_scripts(script: Path) -> None:
    """Lines of at most 100 columns with one statement each."""
    assert style_faults(script.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "a=1; b=2",
        "if true; then echo; fi",
        "for x in 1 2; do echo; done",
        "one && two && three",
        "[ -f x ] || make x || exit 1",
        "f() { echo; }",
        'echo "a; b"; echo c',
        "echo " + "x" * 100,
    ],
)
def test_style_faults_are_found(line: str) -> None:
    assert style_faults(f"{line}\n") == [line]


@pytest.mark.parametrize(
    "line",
    ["if true; then", "while true; do", 'echo "a; b && c && d"', "a=1  # b; c", 'here="$(cd "$x" && pwd)"', "    ;;"],
)
def test_plain_lines_are_no_fault(line: str) -> None:
    assert style_faults(f"{line}\n") == []


def test_shellcheck() -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    command = [shellcheck, "-x", *map(str, SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


# --- what comes from the environment -------------------------------------------------------------------------------


def environment_lines(script: str, place: Path, *arguments: str, **values: object) -> list[str]:
    """Return the lines on stderr of a script whose interpreter is found on the PATH, as by a user."""
    recorder = make_recorder(place)
    (place / "bin").mkdir(exist_ok=True)
    python3 = place / "bin" / "python3"  # stands for change/common/environment.py, which prints an interpreter
    python3.write_text(f'#!/bin/sh\necho "{recorder}"\n')
    python3.chmod(0o755)
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = run_script(script, place, *arguments, **{"python": "", "PATH": path, **values})
    assert result.returncode == 0, result.stderr
    assert recorded(place)
    return result.stderr.splitlines()


@pytest.mark.parametrize(
    ("script", "values", "expected"),
    [
        ("train_script/train_levir.sh", {}, ""),
        ("train_script/train_levir.sh", {"seed": "", "test_root": "x", "seeds": "1", "count": 3}, ""),
        ("train_script/train_levir.sh", {"seed": 3, "root": "/a b"}, "root=/a b, seed=3"),
        ("train_script/train_levir.sh", {"nproc": 2, "epoch": 1000}, "nproc=2, epoch=1000"),
        ("train_script/train_refine_levir.sh", {"cross": "True"}, "cross=True"),
        ("train_script/train_refine_levir.sh", {}, ""),
        ("test_script/test_dsifn.sh", {"list": "some.txt", "epoch": 3}, "list=some.txt"),
        ("test_script/quick_start.sh", {"test_root": "mine"}, "test_root=mine"),
        ("train_script/finetune.sh", {"data": "mine", "lr": 1}, "data=mine, lr=1"),
        ("train_script/finetune.sh", {"data": "mine", "root": "x", "resume": "False"}, "data=mine"),
        ("train_script/train_land.sh", {"root": "mine", "data": "other"}, "root=mine"),
        ("train_script/train_buildings.sh", {"count": 3, "save_path": "x"}, "count=3, save_path=x"),
        ("train_script/ablation.sh", {"swap": "True", "seed": 3, "cross": "True", "folds": "1"}, "swap=True"),
        ("train_script/recipe.sh", {"list": "x", "seeds": "1", "seed": 4, "folds": "0 1"}, "seed=4, folds=0 1"),
        ("train_script/train_all.sh levir", {}, ""),
        ("train_script/train_all.sh levir", {"epoch2": 3, "lr": 1, "best_name": "x"}, "epoch2=3, lr=1"),
        ("train_script/train_demo.sh", {"count": 2}, "count=2"),
        ("train_script/train_demo.sh", {}, ""),
    ],
)
def test_environment_is_logged(tmp_path: Path, script: str, values: Mapping[str, object], expected: str) -> None:
    """One line with what the user has set and the script takes; neither its own defaults nor what it ignores."""
    name, *arguments = script.split()
    if "train_demo" in name:
        values = {"root": tmp_path / "scenes", **values}
        expected = ", ".join(part for part in (expected, f"root={tmp_path / 'scenes'}") if part)
    lines = environment_lines(name, tmp_path, *arguments, **values)
    assert lines == ([f"from the environment: {expected}"] if expected else [])


def test_the_interpreter_is_logged_too(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    result = run_script("train_script/train_levir.sh", tmp_path, python=recorder, seed=1)
    assert result.stderr == f"from the environment: python={recorder}, seed=1\n"


# --- the three passes ----------------------------------------------------------------------------------------------

SMALL: dict[str, object] = {
    "device": "cpu",
    "cropsize": 64,
    "train_batchsize": 2,
    "workers": 0,
    "amp": "off",
}


@pytest.mark.slow
def test_all_three_passes_and_a_test(dataset: Path, tmp_path: Path) -> None:
    """train_all.sh to best.pth; once more, it has nothing to do; test_levir.sh scores it."""
    values = {
        **SMALL,
        "root": dataset,
        "save_path": tmp_path / "run",
        "pretrained": "none",
        "trainsize": 0,
        "epoch": 1,
        "epoch3": 2,
    }
    passes = commands_of("train_script/train_all.sh", tmp_path, "levir", "--seed=1", **values)
    for command in passes:
        perform(command, tmp_path)
    best = load_checkpoint(tmp_path / "run" / "best.pth")
    assert [record.options["epoch"] for record in best.lineage] == [1, 1, 2]
    assert all(record.options["seed"] == 1 for record in best.lineage)
    again = commands_of("train_script/train_all.sh", tmp_path, "levir", "--seed=1", **values)
    assert len(again) == 3
    assert all("nothing left to do" in perform(command, tmp_path) for command in again)
    scored = {"test_root": dataset / "val", "checkpoint_path": "run/best.pth", "save_path": "out", "device": "cpu"}
    perform(command_of("test_script/test_levir.sh", tmp_path, **scored), tmp_path)
    assert len([*(tmp_path / "out" / "pred").iterdir()]) == len([*(tmp_path / "out" / "iou_map").iterdir()]) == 2


def test_options_of_the_three_passes(tmp_path: Path) -> None:
    """Only pass 1 starts from an encoder; a pass that goes on is not given the weights that it started from."""
    values = {"root": "data", "save_path": "run", "pretrained": "none", "epoch2": 3}
    first, second, third = (
        options_in(command) for command in commands_of("train_script/train_all.sh", tmp_path, "levir", **values)
    )
    assert (first["best_name"], second["best_name"], third["best_name"]) == ("1", "2", "best")
    assert (first["epoch"], second["epoch"], third["epoch"]) == ("1000", "3", "800")
    assert first["pretrained"] == "none"
    assert "checkpoint_path" not in first
    assert "pretrained" not in second.keys() | third.keys()
    assert (second["checkpoint_path"], third["checkpoint_path"]) == ("run/1.pth", "run/2.pth")
    assert (second["cross"], third["cross"]) == ("False", "True")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "2.state.pth").touch()
    again = [options_in(command) for command in commands_of("train_script/train_all.sh", tmp_path, "levir", **values)]
    begun = to_flat(options_for_new_run(read_options(second)))
    second["continue_run"] = "run"
    del second["checkpoint_path"]
    assert again == [first, second, third]
    assert options_for_new_run(read_options(first)) and options_for_new_run(read_options(third))
    assert options_for_resumed_run(begun, read_options(second))


def test_a_run_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    """The folder and the weights that a script would start a new run with are left out, unless the user gave them."""
    script = "train_script/train_refine_levir.sh"
    options = options_of(script, tmp_path, continue_run="mine")
    assert options["continue_run"] == "mine"
    assert not {"save_path", "checkpoint_path"} & options.keys()
    given = options_of(script, tmp_path, continue_run="mine", save_path="other", checkpoint_path="x.pth")
    assert (given["save_path"], given["checkpoint_path"]) == ("other", "x.pth")


@pytest.mark.slow
def test_a_pass_that_fails_ends_train_all(tmp_path: Path) -> None:
    failed = run_script("train_script/train_all.sh", tmp_path, "levir", python=make_recorder(tmp_path, code=2))
    assert failed.returncode == 2
    assert len(recorded(tmp_path)) == 1


@pytest.mark.slow
def test_demo_training(tmp_path: Path) -> None:
    """Scenes, three passes and the packed checkpoint from one script; once more, nothing is drawn or trained again."""
    values = {
        **SMALL,
        "root": tmp_path / "scenes",
        "save_path": tmp_path / "run",
        "count": 2,
        "cropsize": 32,
        "epoch1": 1,
        "epoch2": 1,
        "epoch3": 1,
        "trainsize": 64,
    }
    write_pairs(tmp_path / "scenes" / "val", 1)
    for command in commands_of("train_script/train_demo.sh", tmp_path, **values):
        perform(command, tmp_path)
    assert len([*(tmp_path / "scenes" / "train" / "A").iterdir()]) == 2
    packed = load_checkpoint(tmp_path / "run" / "packed.pth")
    assert [record.name for record in packed.lineage] == ["base", "refine", "refine+cross"]
    assert not any(str(tmp_path) in str(record.options) for record in packed.lineage)
    again = commands_of("train_script/train_demo.sh", tmp_path, **values)
    assert not (tmp_path / "run" / "packed.pth").exists()
    said = [perform(command, tmp_path) for command in again]
    assert sum("nothing left to do" in text for text in said) == 3 and len(again) == 4
    assert load_checkpoint(tmp_path / "run" / "packed.pth").lineage == packed.lineage


@pytest.mark.parametrize("script", ["train_all", "train_demo"])
@pytest.mark.parametrize("option", ["--save_path", "--pretrained=none"])
def test_some_options_stand_in_front(tmp_path: Path, script: str, option: str) -> None:
    given = ["levir"] if script == "train_all" else []
    result = run_script(f"train_script/{script}.sh", tmp_path, *given, option, "x", python=make_recorder(tmp_path))
    name = option.partition("=")[0]
    assert result.returncode == 2
    assert result.stderr == f"error: {name}: set it in front, {name[2:]}=... bash {script}.sh\n"
    assert recorded(tmp_path) == []


# --- fine-tuning and experiments: the commands behind the scripts are tested in tests/experiments --------------------


@pytest.mark.slow
def test_finetuning(tmp_path: Path) -> None:
    """In real processes: bash, python -m change finetune, train.py; the second time, the run is found done."""
    data = tmp_path / "my data"
    write_pairs(data / "train", 2, 256, 256, seed=1)
    write_pairs(data / "val", 1, 256, 256, seed=2)
    values = {**SMALL, "data": data, "save_path": "tuned", "epoch": 1, "cropsize": 64}
    tuned = run_script("train_script/finetune.sh", tmp_path, **values)
    assert tuned.returncode == 0, tuned.stderr
    checkpoint = load_checkpoint(tmp_path / "tuned" / "best.pth")
    assert len(checkpoint.lineage) == 5
    assert checkpoint.lineage[-1].options["lr"] == 2e-4
    again = run_script("train_script/finetune.sh", tmp_path, **values)
    assert again.returncode == 0 and "nothing left to do" in again.stderr


def test_finetuning_needs_data(tmp_path: Path) -> None:
    result = run_script("train_script/finetune.sh", tmp_path)
    assert (result.returncode, result.stderr) == (2, "error: which pairs? data=FOLDER bash finetune.sh\n")


@pytest.mark.parametrize(
    ("script", "values", "expected"),
    [
        ("finetune", {"data": "a b", "lr": 1}, ["finetune", "a b", "--lr=1", "--x"]),
        (
            "finetune",
            {"data": "d", "nproc": 4, "save_path": "s"},
            ["finetune", "d", "--nproc=4", "--save_path=s", "--x"],
        ),
        ("train_land", {"root": "r", "epoch": 2}, ["finetune", "r", "--epoch=2", "--settings", "land.toml", "--x"]),
        ("ablation", {"root": "r", "seeds": "0 1"}, ["experiment", "ablation.toml", "--root=r", "--seeds=0 1", "--x"]),
        ("ablation", {"model": "unet", "cross": "True", "within": "True"}, ["experiment", "ablation.toml", "--x"]),
        ("recipe", {"lists": "l", "scale": "1 2"}, ["experiment", "recipe.toml", "--lists=l", "--x"]),
        ("recipe", {"test_amp": "off", "out": "o"}, ["experiment", "recipe.toml", "--out=o", "--test_amp=off", "--x"]),
    ],
)
def test_verbs(tmp_path: Path, script: str, values: dict[str, object], expected: list[str]) -> None:
    """A script hands on what is set and what stands behind it; what an experiment sets itself is not taken."""
    command = command_of(f"train_script/{script}.sh", tmp_path, "--x", **values)
    place = f"{REPOSITORY}/change/experiments/"
    assert command == ["-m", "change", *(place + word if word.endswith(".toml") else word for word in expected)]


def test_buildings(tmp_path: Path) -> None:
    values = {"root": "all", "levir": "l", "ms_bcd": "m", "count": 3, "epoch": 2}
    data, training = commands_of("train_script/train_buildings.sh", tmp_path, **values)
    module = "change.experiments.buildings_data"
    assert data == ["-m", module, "all", "--levir", "l", "--ms_bcd", "m", "--count", "3"]
    settings = f"{REPOSITORY}/change/experiments/buildings.toml"
    assert training == ["-m", "change", "finetune", "all", "--epoch=2", "--settings", settings]


def test_buildings_need_their_parts(tmp_path: Path) -> None:
    """Reported before anything is drawn; what is there stays."""
    (tmp_path / "all.part").mkdir()
    (tmp_path / "all.part" / "mine").touch()
    result = run_script("train_script/train_buildings.sh", tmp_path, root="all/", levir="nowhere", ms_bcd="nowhere")
    assert result.returncode == 2
    logged, error = result.stderr.splitlines()
    assert logged.startswith("from the environment: ")
    assert "no folder nowhere/train/label" in error
    assert (tmp_path / "all.part" / "mine").exists() and not (tmp_path / "all").exists()
