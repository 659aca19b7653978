"""The bash scripts as processes, from another folder: published values, overridden by environment and arguments."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from change.checkpoint import Checkpoint, load_checkpoint
from change.options import RECIPES, TestOptions, TrainOptions, parse_given
from models.network import NetworkConfig, build_network
from tests.conftest import REPOSITORY, write_pairs

DATASETS = ("levir", "dsifn", "s2looking")


def run_script(script: str, cwd: Path, *arguments: str, **values: object) -> subprocess.CompletedProcess[str]:
    environment = {"python": sys.executable, "OMP_NUM_THREADS": "2", **{k: str(v) for k, v in values.items()}}
    command = ["bash", str(REPOSITORY / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=300, check=False
    )


def command_of(script: str, cwd: Path, *arguments: str, **values: object) -> list[str]:
    """What a script gives its interpreter: one that only prints its arguments."""
    recorder = cwd / "recorder"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    result = run_script(script, cwd, *arguments, **{**values, "python": recorder})
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def options_of(script: str, cwd: Path, *arguments: str, **values: object) -> dict[str, str]:
    """The options a script gives its program, the last of a name."""
    lines = command_of(script, cwd, *arguments, **values)[1:]
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


# data set: image, crop, batch, jitter, epochs of pass 1 and of passes 2 and 3, learning rate of pass 1, validate every
PUBLISHED = {
    "levir": ("1024", "512", "8", "0.2 0.2 0.1 0.1", "1000", "800", "6e-4", "1"),
    "dsifn": ("256", "256", "16", "0 0 0 0", "1000", "800", "8e-4", "1"),
    "s2looking": ("1024", "512", "8", "0.2 0.2 0.1 0.1", "1000", "500", "6e-4", "10"),
}


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


def test_overrides(tmp_path: Path) -> None:
    options = options_of("train_script/train_levir.sh", tmp_path, "--lr=3", epoch=5, lr=2, workers=1, save_path="here")
    assert (options["epoch"], options["lr"], options["workers"], options["save_path"]) == ("5", "3", "1", "here")


@pytest.mark.parametrize("script", ["train_script/train_refine_dsifn.sh", "test_script/test_levir.sh"])
def test_number_of_processes(tmp_path: Path, script: str) -> None:
    """`nproc` puts torch's launcher before the same program with the same options; 1 is as none."""
    alone = command_of(script, tmp_path)
    assert alone[0].endswith(("/train.py", "/test.py"))
    assert command_of(script, tmp_path, nproc=1) == alone
    for number in ("2", "gpu"):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        assert command_of(script, tmp_path, nproc=number) == [*launcher, *alone]


def test_every_option_can_be_set() -> None:
    text = (REPOSITORY / "train_script" / "run.sh").read_text()
    for program, kind in (("train", TrainOptions), ("test", TestOptions)):
        names = re.search(rf'{program}\) names="([^"]*)"', text)
        assert names and set(names[1].split()) == {spec.name for spec in fields(kind)}


def test_scripts_are_short() -> None:
    scripts = [*REPOSITORY.glob("*_script/*.sh")]
    assert len(scripts) >= 11
    for script in scripts:
        assert len(script.read_text().splitlines()) <= 15, script


def test_all_three_passes_and_a_test(dataset: Path, tmp_path: Path) -> None:
    """train_all.sh to best.pth; once more, it has nothing to do; test_levir.sh scores it."""
    values: dict[str, object] = {
        "root": dataset,
        "save_path": tmp_path / "run",
        "pretrained": "none",
        "device": "cpu",
        "trainsize": 0,
        "cropsize": 64,
        "train_batchsize": 2,
        "epoch": 1,
        "epoch3": 2,
        "workers": 0,
        "amp": "off",
    }
    first = run_script("train_script/train_all.sh", tmp_path, "levir", "--seed=1", **values)
    assert first.returncode == 0, first.stderr
    best = load_checkpoint(tmp_path / "run" / "best.pth")
    assert [record.options["epoch"] for record in best.lineage] == [1, 1, 2]
    assert all(record.options["seed"] == 1 for record in best.lineage)
    again = run_script("train_script/train_all.sh", tmp_path, "levir", "--seed=1", **values)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing left to do") == 3
    tested = run_script(
        "test_script/test_levir.sh",
        tmp_path,
        test_root=dataset / "val",
        checkpoint_path="run/best.pth",
        save_path="out",
        device="cpu",
    )
    assert tested.returncode == 0, tested.stderr
    assert len([*(tmp_path / "out" / "pred").iterdir()]) == len([*(tmp_path / "out" / "iou_map").iterdir()]) == 2


def test_a_pass_that_fails_ends_train_all(tmp_path: Path) -> None:
    failed = run_script("train_script/train_all.sh", tmp_path, "levir", root=tmp_path / "nowhere", save_path="run")
    assert failed.returncode == 2
    assert failed.stderr.count("error: ") == 1


def test_folders_with_spaces(dataset: Path, tmp_path: Path) -> None:
    place = tmp_path / "a folder"
    dataset.rename(place)
    config = NetworkConfig()
    Checkpoint(config, build_network(config).state_dict()).save(place / "a net.pth")
    result = run_script(
        "test_script/test_levir.sh",
        tmp_path,
        test_root=place / "val",
        checkpoint_path=place / "a net.pth",
        save_path=place / "the results",
        device="cpu",
    )
    assert result.returncode == 0, result.stderr
    assert (place / "the results" / "metrics.json").is_file()


def test_demo_training(tmp_path: Path) -> None:
    """Scenes, three passes and the packed checkpoint from one script; once more, nothing is drawn or trained again."""
    values: dict[str, object] = {
        "root": tmp_path / "scenes",
        "save_path": tmp_path / "run",
        "count": 2,
        "cropsize": 32,
        "train_batchsize": 2,
        "epoch1": 1,
        "epoch2": 1,
        "epoch3": 1,
        "workers": 0,
        "device": "cpu",
        "amp": "off",
        "trainsize": 64,
    }
    (tmp_path / "scenes").mkdir()
    write_pairs(tmp_path / "scenes" / "val", 1)
    first = run_script("train_script/train_demo.sh", tmp_path, **values)
    assert first.returncode == 0, first.stderr
    assert len([*(tmp_path / "scenes" / "train" / "A").iterdir()]) == 2
    packed = load_checkpoint(tmp_path / "run" / "packed.pth")
    assert [record.name for record in packed.lineage] == ["base", "refine", "refine+cross"]
    assert not any(str(tmp_path) in str(record.options) for record in packed.lineage)
    again = run_script("train_script/train_demo.sh", tmp_path, **values)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing left to do") == 3


TINY: dict[str, object] = {
    "train_batchsize": 2,
    "epoch": 1,
    "warmup": 0,
    "val_epoch": 1,
    "workers": 0,
    "device": "cpu",
    "amp": "off",
}


def large_enough(folder: Path, side: int) -> Path:
    """A data folder for crops of 256: two train pairs, one for val."""
    write_pairs(folder / "train", 2, side, side, seed=1)
    write_pairs(folder / "val", 1, side, side, seed=2)
    return folder


def test_land_and_buildings(tmp_path: Path) -> None:
    """Data put together, the pass on it, the packed checkpoint; once more, nothing is drawn or trained again."""
    levir, small = large_enough(tmp_path / "levir", 512), large_enough(tmp_path / "ms", 256)
    values = {
        **TINY,
        "root": tmp_path / "all",
        "levir": levir,
        "ms_bcd": small,
        "count": 1,
        "save_path": tmp_path / "run",
    }
    first = run_script("train_script/train_buildings.sh", tmp_path, **values)
    assert first.returncode == 0, first.stderr
    names = sorted(path.name for path in (tmp_path / "all" / "train" / "A").iterdir())
    assert len(names) == 5 and {name.split("_")[0] for name in names} == {"levir", "ms", "scene"}
    assert len([*(tmp_path / "all" / "val" / "label").iterdir()]) == 2
    packed = load_checkpoint(tmp_path / "run" / "packed.pth")
    assert [record.name for record in packed.lineage] == ["base", "refine", "refine+cross", "refine+cross"]
    last = packed.lineage[-1].options
    assert (last["cropsize"], last["recipe"], last["lr"]) == (256, "scratch", 7e-4)
    again = run_script("train_script/train_buildings.sh", tmp_path, **values)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing left to do") == 1

    tuned = run_script(
        "train_script/finetune.sh",
        tmp_path,
        data=small,
        checkpoint_path="run/packed.pth",
        save_path="tuned",
        epoch=1,
        workers=0,
        device="cpu",
        amp="off",
    )
    assert tuned.returncode == 0, tuned.stderr
    assert len(load_checkpoint(tmp_path / "tuned" / "best.pth").lineage) == 5


def test_finetuning_again_on_other_pairs(tmp_path: Path) -> None:
    """A run that is done is not taken for one on them."""
    first, second = large_enough(tmp_path / "1", 256), large_enough(tmp_path / "2", 320)
    values = {"save_path": "tuned", "epoch": 1, "workers": 0, "device": "cpu", "amp": "off"}
    assert run_script("train_script/finetune.sh", tmp_path, data=first, **values).returncode == 0
    weights = (tmp_path / "tuned" / "best.pth").read_bytes()
    again = run_script("train_script/finetune.sh", tmp_path, data=second, **values)
    assert again.returncode == 2 and "choose another --save_path" in again.stderr.splitlines()[-1]
    assert (tmp_path / "tuned" / "best.pth").read_bytes() == weights


@pytest.mark.parametrize("name", ["train_all", "train_demo", "finetune", "train_land", "ablation", "recipe"])
def test_save_path_stands_in_front(tmp_path: Path, name: str) -> None:
    given = ["levir"] if name == "train_all" else []
    result = run_script(f"train_script/{name}.sh", tmp_path, *given, "--save_path", "x", data=tmp_path, root=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error: --save_path: set it in front, save_path=FOLDER")


def test_finetuning_needs_data(tmp_path: Path) -> None:
    result = run_script("train_script/finetune.sh", tmp_path)
    assert (result.returncode, result.stderr) == (2, "error: which pairs? data=FOLDER bash finetune.sh\n")


def test_buildings_need_their_parts(tmp_path: Path) -> None:
    """Said before anything is drawn; what is there stays."""
    (tmp_path / "all.part").mkdir()
    (tmp_path / "all.part" / "mine").touch()
    result = run_script("train_script/train_buildings.sh", tmp_path, root="all/", levir="nowhere", ms_bcd="nowhere")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "no folder nowhere/train/label" in result.stderr
    assert (tmp_path / "all.part" / "mine").exists() and not (tmp_path / "all").exists()


def recorded(script: str, place: Path, **values: object) -> list[list[str]]:
    """What a script has run by now, by a stand-in for the interpreter that makes the files its programs would make."""
    recorder = place / "recorder"
    recorder.write_text(
        """#!/bin/sh
        echo "$@" >>"$0.log"
        for word; do case "$word" in *.json|*.pth) ;; --save_path=*) mkdir -p "${word#*=}"; >"${word#*=}/w.pth" ;;
          */test) mkdir -p "$word"; >"$word/metrics.json" ;; esac; done
        """
    )
    recorder.chmod(0o755)
    result = run_script(script, place, python=recorder, **values)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in (place / "recorder.log").read_text().splitlines()]


@pytest.mark.parametrize(
    ("folder", "given", "expected"),
    [
        ("train/A", {}, ["--epoch=800", "--val_epoch=267", "--train_batchsize=4"]),
        ("A", {}, ["--epoch=1200", "--val_epoch=400"]),
        ("A", {"list": "names"}, ["--epoch=2400"]),
        ("train/A", {"epoch": 5, "nproc": 8}, ["--epoch=5"]),
        ("nothing", {"list": "nowhere"}, ["--epoch=1"]),
    ],
)
def test_epochs_of_finetuning(tmp_path: Path, folder: str, given: dict[str, object], expected: list[str]) -> None:
    """2,400 crops, whatever the number of pairs: those that train.py will find, in its own layouts."""
    place = tmp_path / "my data"
    (place / folder).mkdir(parents=True)
    (place / "list").mkdir()
    (place / "list" / "train.txt").write_text("1\n2\n\n")
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "train.txt").write_text("1\n")
    for name in ("1.png", "2.TIF", "3.jpeg", "1.png.aux.xml", ".4.png"):
        (place / folder / name).touch()
    (words,) = recorded("train_script/finetune.sh", tmp_path, data=place, **given)
    assert set(expected) <= set(words)
    assert ("--train_batchsize=4" in words) == ("nproc" not in given)


def test_ablation(tmp_path: Path) -> None:
    """Every arm is trained, from where it should be, and scored; once more, nothing is done."""
    stray = {"model": "unet", "refine": True, "cross": True}  # of the user's environment: no arm may take them
    values = {"root": "data", "out": tmp_path / "arms", "seeds": 3, "epoch": 8, **stray}
    lines = recorded("train_script/ablation.sh", tmp_path, **values)
    trained = [TrainOptions(**parse_given(TrainOptions, words[1:], "")) for words in lines[::2]]
    assert all(words[0].endswith("test.py") for words in lines[1::2])
    arms = {Path(options.save_path).name: options for options in trained}
    assert len(arms) == len(lines) / 2 == 10
    start_of = {name: Path(options.checkpoint_path).parent.name for name, options in arms.items()}
    assert start_of == {
        **dict.fromkeys(("base1_3", "unet1_3"), ""),
        **{f"{arm}_3": "base1_3" for arm in ("base", "refine", "cross", "within", "both", "turn2")},
        **{"unet_3": "unet1_3", "turn3_3": "turn2_3"},
    }
    assert {name for name, options in arms.items() if options.epoch == 4} == {"turn2_3", "turn3_3"}
    assert {name for name, options in arms.items() if options.cross and options.refine} == {"both_3", "turn3_3"}
    assert all(options.seed == 3 and options.recipe == "scratch" for options in trained)
    assert recorded("train_script/ablation.sh", tmp_path, **values) == lines


def test_steps_of_the_recipe(tmp_path: Path) -> None:
    """Optimizer adds to published, average to that, each other step to average, on every fold; all is the recipe."""
    values = {"root": "data", "out": tmp_path / "steps", "lists": "lists", "folds": "0 2"}
    lines = recorded("train_script/recipe.sh", tmp_path, **values)
    assert len(lines) == 2 * 10 * 2
    text = [" ".join(words[1:]) for words in lines[::2]]
    for name in ("scale", "color_setting"):  # the recorder's words are split at spaces
        text = [re.sub(rf"(--{name}=\S+(?: [\d.]+)*)", lambda m: m[0].replace(" ", "_"), line) for line in text]
    given = [parse_given(TrainOptions, line.split(), "") for line in text]
    given = [{k: v.replace("_", " ") if k in ("scale", "color_setting") else v for k, v in g.items()} for g in given]
    assert [Path(g["save_path"]).name for g in given][:4] == [
        "published_0",
        "published_2",
        "optimizer_0",
        "optimizer_2",
    ]
    assert all(g["root"] == "data/train" and g["list"] == f"lists/{g['save_path'][-1]}" for g in given)
    steps = {Path(g["save_path"]).name[:-2]: {k: v for k, v in g.items() if k != "save_path"} for g in given[::2]}
    assert steps["published"].items() < steps["optimizer"].items() < steps["average"].items()
    assert steps.pop("all") == {**steps["published"], "recipe": "scratch"}
    own = {step: g.items() - steps["average"].items() for step, g in steps.items()}
    assert all(len(own[step]) >= 1 for step in list(steps)[3:])
    parts = steps["average"] | dict(item for step in own for item in own[step])
    assert RECIPES["scratch"].items() <= parts.items()
    assert recorded("train_script/recipe.sh", tmp_path, **values) == lines
