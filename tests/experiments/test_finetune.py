"""Fine-tuning: epochs, options and folders of a run match the published ones; the data of the buildings checkpoint."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from change.checkpoint import Checkpoint, PassRecord, load_checkpoint
from change.common.command_line import to_flat
from change.common.errors import UserError
from change.experiments import buildings_data, finetune
from change.experiments.finetune import main
from change.experiments.settings import parse_options
from change.training.recipes import options_for_new_run
from change.training.start import options_for_continued_run
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import REPOSITORY, run_program, run_verb, write_pairs

LAND = f"--settings={REPOSITORY}/change/experiments/land.toml"
BUILDINGS = f"--settings={REPOSITORY}/change/experiments/buildings.toml"


def commands_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[list[str]]:
    """Return the commands of a dry run, without the interpreter."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--dry_run"]) == 0
    return [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]


def options_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Return the options of train.py in a dry run."""
    command = commands_of(capsys, *arguments)[0]
    place = command.index(str(REPOSITORY / "train.py"))
    return parse_options(command[place + 1 :])


@pytest.mark.parametrize(
    ("folder", "given", "expected"),
    [
        ("train/A", [], {"epoch": 800, "val_epoch": 267, "train_batchsize": 4}),
        ("A", [], {"epoch": 1200, "val_epoch": 400, "train_batchsize": 4}),
        ("A", ["--list=names"], {"epoch": 2400, "val_epoch": 800}),
        ("train/A", ["--epoch=5", "--nproc=8"], {"epoch": 5}),
        ("train/A", ["--val_epoch=7"], {"epoch": 800, "val_epoch": 7}),
        ("nothing", ["--list=nowhere"], {"epoch": 1, "val_epoch": 1}),
    ],
)
def test_epochs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    given: list[str],
    expected: dict[str, int],
) -> None:
    """There are 2,400 crops, whatever the number of pairs. Pairs are counted as train.py finds them, in all layouts."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "my data"
    (place / folder).mkdir(parents=True)
    (place / "list").mkdir()
    (place / "list" / "train.txt").write_text("1\n2\n\n")
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "train.txt").write_text("1\n")
    for name in ("1.png", "2.TIF", "3.jpeg", "1.png.aux.xml", ".4.png"):
        (place / folder / name).touch()
    options = options_of(capsys, place, *given)
    assert expected.items() <= options.items()
    assert ("train_batchsize" in options) == ("--nproc=8" not in given)
    assert ("val_epoch" in options) == ("--epoch=5" not in given)


def test_published_values(capsys: pytest.CaptureFixture[str]) -> None:
    """The options are those with which the published checkpoints were made."""
    shared = {
        "recipe": "scratch",
        "trainsize": 0,
        "cropsize": 256,
        "swap": True,
        "val_batchsize": 1,
        "refine": True,
        "resume": True,
        "best_name": "best",
        "root": "d",
    }
    checkpoints, results = REPOSITORY / "checkpoints", REPOSITORY / "results"
    assert options_of(capsys, "d", "--epoch=30") == {
        **shared,
        "epoch": 30,
        "scale": "0.75 1.5",
        "lr": 2e-4,
        "train_batchsize": 4,
        "checkpoint_path": f"{checkpoints}/buildings.pth",
        "save_path": f"{results}/finetuned/d",
    }
    longer = {**shared, "cross": True, "warmup": 1, "scale": "0.8 1.25", "resolution": "0.5 2"}
    assert options_of(capsys, "d", LAND, "--nproc=2") == {
        **longer,
        "epoch": 130,
        "val_epoch": 10,
        "lr": 1e-3,
        "train_batchsize": 8,
        "checkpoint_path": f"{checkpoints}/buildings_r18.pth",
        "save_path": f"{results}/land/train",
    }
    assert options_of(capsys, "d", BUILDINGS) == {
        **longer,
        "epoch": 16,
        "val_epoch": 4,
        "lr": 7e-4,
        "train_batchsize": 4,
        "checkpoint_path": f"{checkpoints}/prx_change_r18.pth",
        "save_path": f"{results}/buildings/train",
    }


@pytest.mark.parametrize("inside", ["", "train"])
def test_pairs_without_val_are_split(tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str) -> None:
    """A fifth of the pairs is set aside in lists, which a second call uses again; crops are counted without them."""
    folder = write_pairs(tmp_path / "mine" / inside, 6)
    where = f"--save_path={tmp_path / 'run'}"
    options = options_of(capsys, tmp_path / "mine", where)
    lists = tmp_path / "run" / "split"
    assert (options["root"], options["list"], options["save_path"]) == (str(folder), str(lists), str(tmp_path / "run"))
    assert options["epoch"] == 2400 / 5
    val = (lists / "val.txt").read_text().split()
    assert len(val) == 1 and sorted(val + (lists / "train.txt").read_text().split()) == ["0", "1", "2", "3", "4", "5"]
    other = (lists / "train.txt").read_text().split()[0]
    (lists / "val.txt").write_text(f"{other}\n")
    assert options_of(capsys, tmp_path / "mine", where) == options
    assert (lists / "val.txt").read_text() == f"{other}\n"
    assert main([str(tmp_path / "mine"), where, "--dry_run"]) == 0
    said = f"mine has no val split. The lists of an earlier call are used: {lists / 'val.txt'}"
    assert f"{said}; left out, because neither list names them: {val[0]}\n" in capsys.readouterr().err
    (lists / "val.txt").write_text(f"{val[0]}\n")
    assert main([str(tmp_path / "mine"), where, "--dry_run"]) == 0
    assert f"{said}\n" in capsys.readouterr().err
    default = options_of(capsys, tmp_path / "mine", "--list=names")
    assert default["list"] == "names" and default["save_path"].endswith("results/finetuned/mine")


def test_pairs_that_cannot_be_split(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "mine", 2)
    (folder / "label" / "1.png").rename(folder / "label" / "2.png")
    with pytest.raises(UserError, match="no file for label/1: every pair needs a file in A, B and label"):
        main([str(folder), f"--save_path={tmp_path / 'run'}", "--dry_run"])
    (folder / "label" / "2.png").write_bytes(b"no image")
    (folder / "label" / "2.png").rename(folder / "label" / "1.png")
    with pytest.raises(UserError, match=r"label/1\.png"):
        main([str(folder), f"--save_path={tmp_path / 'run'}", "--dry_run"])
    assert not (tmp_path / "run").exists()


def test_what_is_given_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--lr=1", "--no-cross", "--checkpoint_path=x.pth", "--save_path=out", "--workers=3", "--epoch=2"]
    options = options_of(capsys, "d", *given)
    expected = {"lr": 1.0, "cross": False, "checkpoint_path": "x.pth", "save_path": "out", "workers": 3, "epoch": 2}
    assert expected.items() <= options.items()
    assert options_for_new_run(options)


@pytest.mark.parametrize(("data", "name"), [("a/b/", "b"), (".", "here"), ("..", "above"), ("link", "link")])
def test_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: str, name: str
) -> None:
    """The folder is named after the data set, as the user writes it."""
    here = tmp_path / "above" / "here"
    (here / "target").mkdir(parents=True)
    (here / "link").symlink_to(here / "target")
    monkeypatch.chdir(here)
    assert options_of(capsys, data, "--epoch=3")["save_path"] == f"{REPOSITORY}/results/finetuned/{name}"


def test_packing_follows(capsys: pytest.CaptureFixture[str]) -> None:
    training, packing = commands_of(capsys, "d", LAND, "--save_path=out")
    assert training[0] == str(REPOSITORY / "train.py")
    assert packing == ["-m", "change", "pack", "out/best.pth", "out/packed.pth"]
    assert len(commands_of(capsys, "d")) == 1


def test_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train.py gets the options again, which it compares with those of the run, but not the options of the start."""
    where = f"--save_path={tmp_path}"
    for given in ([], ["--device=cpu", "--epoch=7"], [LAND], [LAND, "--epoch=1"], ["--checkpoint_path=x.pth"]):
        (tmp_path / "best.state.pth").unlink(missing_ok=True)
        first = options_of(capsys, "d", where, *given)
        (tmp_path / "best.state.pth").touch()
        again = options_of(capsys, "d", where, "--nproc=2", *given)
        assert options_for_continued_run(to_flat(options_for_new_run(first)), again)
        assert again.pop("continue_run") == first.pop("save_path") == str(tmp_path)
        left_out = {"resume", "checkpoint_path", "train_batchsize", "epoch", "val_epoch"}
        assert again.items() <= first.items() and first.keys() - again.keys() <= left_out
        assert ("epoch" in again) == (LAND in given or "--epoch=7" in given)
        assert ("checkpoint_path" in again) == ("--checkpoint_path=x.pth" in given)
        assert again["lr"] == first["lr"] and "save_path" not in again


@pytest.mark.parametrize(("epoch", "warmup"), [(1, 0), (2, 1), (9, 1)])
def test_a_short_run_warms_up_less(capsys: pytest.CaptureFixture[str], epoch: int, warmup: int) -> None:
    assert options_of(capsys, "d", LAND, f"--epoch={epoch}")["warmup"] == warmup
    assert options_of(capsys, "d", LAND, f"--epoch={epoch}", "--warmup=1")["warmup"] == 1


@pytest.mark.parametrize("option", ["--root=x", "--best_name=x", "--no-resume", "--continue_run=x"])
def test_options_that_fine_tuning_sets(option: str) -> None:
    with pytest.raises(UserError, match="cannot be chosen here: "):
        main(["d", "--dry_run", option])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crops = 3", "the key start is missing"),
        ('start = ""\ncrops = 3\n[train]', "start is empty: name a checkpoint"),
        ('start = "x"\ncrops = -3\n[train]', "crops -3: choose 1 or more"),
        ('start = "x"\ncrops = 3\nval = 1\n[train]', "val 1: choose a share above 0 and below 1"),
        ('start = "x"\n[train]', r"choose either crops or epoch in \[train\]"),
        ('start = "x"\ncrops = 3\n[train]\nepoch = 3', r"choose either crops or epoch in \[train\]"),
        ('start = "x"\ncrops = 3\n[train]\nroot = "x"', "root cannot be chosen here: DATA"),
        ('start = "x"\ncrops = 3\n[train]\nlrr = 3', "train: unknown key lrr"),
        ('start = "x"\ncrops = 3\nlr = 3\n[train]', "unknown key lr; the keys are start, train"),
    ],
)
def test_faults_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        main(["d", "--dry_run", f"--settings={path}"])


def test_a_training_that_fails_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with the exit code of the training, and packs nothing."""
    commands: list[Sequence[str]] = []

    def fail(command: Sequence[str], dry_run: bool) -> int:
        commands.append(command)
        return 5

    monkeypatch.setattr(finetune, "run", fail)
    assert main(["d", LAND, f"--save_path={tmp_path}"]) == 5
    assert len(commands) == 1


# --- with real trainings -------------------------------------------------------------------------------------------

TINY = ["--epoch=1", "--workers=0", "--device=cpu", "--amp=off", "--cropsize=64"]


def write_data(folder: Path, side: int) -> Path:
    """Write a data folder with two train pairs and one for val."""
    write_pairs(folder / "train", 2, side, side, seed=1)
    write_pairs(folder / "val", 1, side, side, seed=2)
    return folder


class Programs:
    """Replaces `run`: it runs each command as the tests run programs, and keeps its stderr."""

    def __init__(self) -> None:
        self.said = ""
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str], dry_run: bool) -> int:
        assert command[0] == sys.executable and not dry_run
        self.commands.append(command)
        if command[1:3] == ["-m", "change"]:
            result = run_verb(*command[3:])
        else:
            result = run_program(Path(command[1]), *command[2:])
        self.said += result.stderr
        return result.returncode


@pytest.mark.slow
def test_buildings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, training and packed checkpoint. A second run draws and trains nothing."""
    levir, small = write_data(tmp_path / "levir", 512), write_data(tmp_path / "ms", 256)
    arguments = [str(tmp_path / "all"), f"--levir={levir}", f"--ms_bcd={small}", "--count=1"]
    assert buildings_data.main(arguments) == 0
    names = sorted(path.name for path in (tmp_path / "all" / "train" / "A").iterdir())
    assert len(names) == 5 and {name.split("_")[0] for name in names} == {"levir", "ms", "scene"}
    assert len([*(tmp_path / "all" / "val" / "label").iterdir()]) == 2
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["train", "val"]
    assert not [*tmp_path.glob(".all.*")]
    written = (tmp_path / "all").stat().st_mtime_ns
    assert buildings_data.main(arguments) == 0
    assert (tmp_path / "all").stat().st_mtime_ns == written

    programs = Programs()
    monkeypatch.setattr(finetune, "run", programs)
    tuning = [str(tmp_path / "all"), BUILDINGS, f"--save_path={tmp_path / 'run'}", "--train_batchsize=2", *TINY]
    assert main(tuning) == 0, programs.said
    packed = load_checkpoint(tmp_path / "run" / "packed.pth")
    assert [record.name for record in packed.lineage] == ["base", "refine", "refine+cross", "refine+cross"]
    last = packed.lineage[-1].options
    assert (last["cropsize"], last["recipe"], last["lr"]) == (64, "scratch", 7e-4)
    assert main(tuning) == 0
    assert programs.said.count("nothing left to do") == 1
    assert load_checkpoint(tmp_path / "run" / "packed.pth").lineage == packed.lineage


@pytest.mark.slow
def test_again_on_other_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run on other pairs is not taken for a run on these."""
    first, second = write_data(tmp_path / "1", 64), write_data(tmp_path / "2", 96)
    programs = Programs()
    monkeypatch.setattr(finetune, "run", programs)
    given = [f"--save_path={tmp_path / 'tuned'}", *TINY]
    assert main([str(first), *given]) == 0, programs.said
    weights = (tmp_path / "tuned" / "best.pth").read_bytes()
    assert main([str(second), *given]) == 2
    assert "choose another --save_path" in programs.said.splitlines()[-1]
    assert (tmp_path / "tuned" / "best.pth").read_bytes() == weights


@pytest.mark.slow
def test_from_another_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder, width and normalisation are those of the checkpoint; its lineage is continued."""
    programs = Programs()
    monkeypatch.setattr(finetune, "run", programs)
    config = NetworkConfig("efficientnet_lite0", width=64)
    start = Checkpoint(config, build_network(config).state_dict(), [PassRecord("base", ["ab"])], mean=(0.5, 0.4, 0.3))
    start.save(tmp_path / "lite.pth")
    given = [f"--checkpoint_path={tmp_path / 'lite.pth'}", f"--save_path={tmp_path / 'tuned'}", *TINY]
    assert main([str(write_data(tmp_path / "data", 64)), *given]) == 0, programs.said
    found = load_checkpoint(tmp_path / "tuned" / "best.pth")
    assert (found.config.backbone, found.config.width, found.mean) == ("efficientnet_lite0", 64, (0.5, 0.4, 0.3))
    assert [record.name for record in found.lineage] == ["base", "refine"]


def test_cross_is_that_of_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """It is trained if the checkpoint has it, and left out on request."""
    crossed = f"--checkpoint_path={REPOSITORY / 'checkpoints' / 'buildings_r18.pth'}"
    assert options_of(capsys, "d", crossed)["cross"] is True
    assert options_of(capsys, "d", crossed, "--no-cross")["cross"] is False
    assert "cross" not in options_of(capsys, "d")


def test_buildings_need_their_parts(tmp_path: Path) -> None:
    """Missing parts are reported before anything is written or removed, and a file in place of ROOT stays."""
    (tmp_path / ".all.part").mkdir()
    (tmp_path / ".all.part" / "mine").touch()
    (tmp_path / "file").write_text("kept")
    arguments = [str(tmp_path / "all"), "--levir=nowhere", "--ms_bcd=nowhere"]
    with pytest.raises(UserError, match="no folder nowhere/train/label: set levir and ms_bcd"):
        buildings_data.main(arguments)
    with pytest.raises(UserError, match="--count -1: choose 0 or more"):
        buildings_data.main([*arguments, "--count=-1"])
    with pytest.raises(UserError, match="--overlap 512: choose 0 to 511"):
        buildings_data.main([*arguments, "--overlap=512"])
    with pytest.raises(UserError, match="file is not a folder: choose another one"):
        buildings_data.main([str(tmp_path / "file"), *arguments[1:]])
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / ".all.part" / "mine").exists() and not (tmp_path / "all").exists()
