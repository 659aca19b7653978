"""The bash scripts, run from another folder: the commands that they run, and what these do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from change.checkpoint import Checkpoint, load_checkpoint
from change.common import command_line
from change.common.command_line import to_flat
from change.options.test import TestOptions
from change.options.train import TrainOptions
from change.training.recipes import options_for_new_run
from change.training.start import options_for_continued_run
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import REPOSITORY, SMALL, write_pairs
from tests.scripts import (
    command_of,
    commands_of,
    make_recorder,
    names_in_run_sh,
    options_in,
    options_of,
    perform,
    read_options,
    recorded,
    run_script,
)

DATASETS = ("levir", "dsifn", "s2looking")

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
    plain = command_of(script, tmp_path)
    assert plain[0].endswith(("/train.py", "/test.py"))
    assert command_of(script, tmp_path, nproc=1) == plain
    for number in ("2", "gpu"):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        assert command_of(script, tmp_path, nproc=number) == [*launcher, *plain]


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


# --- what comes from the environment -------------------------------------------------------------------------------


def environment_lines(script: str, place: Path, *arguments: str, **values: object) -> list[str]:
    """Return the lines on stderr of a script that finds its interpreter on the PATH, as it does for a user."""
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
    """One line has the variables that the user has set and the script takes, but no defaults and no ignored ones."""
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

SHORT: dict[str, object] = {"device": "cpu", "cropsize": 64, "train_batchsize": 2, "workers": 0, "amp": "off"}


@pytest.mark.slow
def test_all_three_passes_and_a_test(dataset: Path, tmp_path: Path) -> None:
    """train_all.sh trains best.pth, has nothing to do when it is run again, and test_levir.sh scores the result."""
    values = {
        **SHORT,
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
    """Only pass 1 starts from an encoder. A pass that is continued does not get the weights that it started from."""
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
    assert options_for_continued_run(begun, read_options(second))


def test_a_run_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    """The script's defaults for the folder and the start of a new run are left out; what the user sets is not."""
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


@pytest.mark.parametrize("arguments", [[], ["levri"], ["demo"]], ids=["none", "misspelt", "not a data set"])
def test_train_all_needs_a_data_set(tmp_path: Path, arguments: list[str]) -> None:
    result = run_script("train_script/train_all.sh", tmp_path, *arguments, python=make_recorder(tmp_path))
    expected = "error: name a data set: bash train_all.sh levir|dsifn|s2looking\n"
    assert (result.returncode, result.stderr) == (2, expected)
    assert recorded(tmp_path) == []


@pytest.mark.slow
def test_demo_training(tmp_path: Path) -> None:
    """One script draws scenes, trains three passes and packs the checkpoint. A second run only packs it again."""
    values = {
        **SHORT,
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
    messages = [perform(command, tmp_path) for command in again]
    assert sum("nothing left to do" in text for text in messages) == 3 and len(again) == 4
    assert load_checkpoint(tmp_path / "run" / "packed.pth").lineage == packed.lineage


@pytest.mark.parametrize("script", ["train_all", "train_demo"])
@pytest.mark.parametrize("option", ["--save_path", "--pretrained=none"])
def test_some_options_are_only_taken_before_the_command(tmp_path: Path, script: str, option: str) -> None:
    given = ["levir"] if script == "train_all" else []
    result = run_script(f"train_script/{script}.sh", tmp_path, *given, option, "x", python=make_recorder(tmp_path))
    name = option.partition("=")[0]
    assert result.returncode == 2
    assert result.stderr == f"error: {name}: set it before the command: {name[2:]}=... bash {script}.sh\n"
    assert recorded(tmp_path) == []


# --- fine-tuning and experiments: tests/experiments tests the commands that these scripts call -----------------------


@pytest.mark.slow
def test_finetuning(tmp_path: Path) -> None:
    """bash, python -m change finetune and train.py run as real processes. A second run finds nothing left to do."""
    data = tmp_path / "my data"
    write_pairs(data / "train", 2, 256, 256, seed=1)
    write_pairs(data / "val", 1, 256, 256, seed=2)
    values = {**SHORT, "data": data, "save_path": "tuned", "epoch": 1, "cropsize": 64}
    tuned = run_script("train_script/finetune.sh", tmp_path, **values)
    assert tuned.returncode == 0, tuned.stderr
    checkpoint = load_checkpoint(tmp_path / "tuned" / "best.pth")
    assert len(checkpoint.lineage) == 3
    assert checkpoint.lineage[-1].options["lr"] == 2e-4
    again = run_script("train_script/finetune.sh", tmp_path, **values)
    assert again.returncode == 0 and "nothing left to do" in again.stderr


def test_finetuning_needs_data(tmp_path: Path) -> None:
    result = run_script("train_script/finetune.sh", tmp_path)
    assert (result.returncode, result.stderr) == (
        2,
        "error: name the folder of your pairs: data=FOLDER bash finetune.sh\n",
    )


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
    """A script passes on variables and arguments, but not the variables that the experiment sets itself."""
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
    """Missing parts are reported before anything is written or removed."""
    (tmp_path / ".all.part").mkdir()
    (tmp_path / ".all.part" / "mine").touch()
    result = run_script("train_script/train_buildings.sh", tmp_path, root="all/", levir="nowhere", ms_bcd="nowhere")
    assert result.returncode == 2
    logged, error = result.stderr.splitlines()
    assert logged.startswith("from the environment: ")
    assert "no folder nowhere/train/label" in error
    assert (tmp_path / ".all.part" / "mine").exists() and not (tmp_path / "all").exists()
