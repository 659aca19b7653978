"""Experiments: the commands of every arm match the published tables, and an interrupted experiment is continued."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from change.common.errors import UserError
from change.experiments import experiment
from change.experiments.arms import read_experiment
from change.experiments.experiment import main
from change.experiments.settings import parse_options
from change.training.recipes import RECIPES, options_for_new_run
from models.config import MODELS
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "change" / "experiments"
ABLATION = str(FOLDER / "ablation.toml")
RECIPE = str(FOLDER / "recipe.toml")
PRETRAINED = str(FOLDER / "pretrained.toml")
LEADERBOARD = str(FOLDER / "leaderboard.toml")

SMALL = """
root = "data"
out = "out"
seeds = [0]
[train]
epoch = 4
[[arm]]
name = "one"
"""

SETS = """
out = "out"
seeds = [0, 1]
[train]
lr = 1e-3
[[data]]
name = "left"
root = "data/a"
epoch = 3
check = "check.json"
[[data]]
name = "right"
root = "data/b"
epoch = 6
[[arm]]
name = "one"
[[arm]]
name = "more"
seeds = [1, 2]
train.swap = true
"""


class Recorder:
    """Replaces `run`: it records the commands, and creates the files that the programs would create."""

    def __init__(self, fails_at: int = 0) -> None:
        self.commands: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, command: Sequence[str], dry_run: bool = False) -> int:
        assert not dry_run
        self.commands.append(list(command))
        options = given_in(command)
        folder = Path(options.get("save_path") or options["continue_run"])
        folder.mkdir(parents=True, exist_ok=True)
        if len(self.commands) == self.fails_at:
            (folder / "w.state.pth").touch()
            return 3
        (folder / ("metrics.json" if folder.name == "test" else "w.pth")).touch()
        return 0


def given_in(command: Sequence[str]) -> dict[str, str]:
    """Return the options of a command as they are written."""
    start = next(place for place, word in enumerate(command) if word.endswith(("train.py", "test.py")))
    return dict(word.removeprefix("--").split("=", 1) for word in command[start + 1 :])


def train_options(command: Sequence[str]) -> dict[str, Any]:
    """Return the options of a train.py command as train.py reads them."""
    return parse_options(command[command.index(str(REPOSITORY / "train.py")) + 1 :])


def record(monkeypatch: pytest.MonkeyPatch, *arguments: str, fails_at: int = 0) -> tuple[int, list[list[str]]]:
    """Run the verb; return its exit code and the commands that it ran."""
    recorder = Recorder(fails_at)
    monkeypatch.setattr(experiment, "run", recorder)
    return main(list(arguments)), recorder.commands


def test_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm is trained from the right weights, and scored. A second run does nothing."""
    arguments = [ABLATION, "--root=data", f"--out={tmp_path}", "--seeds=3", "--epoch=8", "--device=cpu"]
    code, commands = record(monkeypatch, *arguments)
    assert code == 0
    arms = {Path(given["save_path"]).name: given for given in map(train_options, commands[::2])}
    order = ["unet1", "base1", "unet", "base", "refine", "cross", "within", "both", "turn2", "turn3"]
    assert list(arms) == [f"{arm}_3" for arm in order]
    start_of = {name: Path(given.get("checkpoint_path", "")).parent.name for name, given in arms.items()}
    assert start_of == {
        **dict.fromkeys(("base1_3", "unet1_3"), ""),
        **{f"{arm}_3": "base1_3" for arm in ("base", "refine", "cross", "within", "both", "turn2")},
        **{"unet_3": "unet1_3", "turn3_3": "turn2_3"},
    }
    assert {name for name, given in arms.items() if given.get("model") == "unet"} == {"unet1_3", "unet_3"}
    assert {name: given["epoch"] for name, given in arms.items() if given["epoch"] != 8} == {"turn2_3": 4, "turn3_3": 4}
    parts = {
        part: {name.removesuffix("_3") for name, given in arms.items() if given.get(part)}
        for part in ("refine", "cross", "within")
    }
    assert parts == {
        "refine": {"refine", "both", "turn2", "turn3"},
        "cross": {"cross", "within", "both", "turn3"},
        "within": {"within"},
    }
    assert all(given["seed"] == 3 and given["recipe"] == "scratch" for given in arms.values())
    for command in commands[::2]:
        given = train_options(command)
        assert given["root"] == "data" and given["best_name"] == "w" and given["device"] == "cpu"
        options_for_new_run(given)  # raises UserError for an option that does nothing
        shared = {"val_epoch": 9999, "cropsize": 128, "trainsize": 0, "val_batchsize": 1}
        assert shared.items() <= given.items()
        assert given.get("resume", False) == ("pretrained" not in given) == ("checkpoint_path" in given)
    for training, scoring in zip(commands[::2], commands[1::2], strict=True):
        folder = train_options(training)["save_path"]
        assert scoring[1] == str(REPOSITORY / "test.py")
        assert given_in(scoring) == {
            "test_root": "data/val",
            "checkpoint_path": f"{folder}/w.pth",
            "save_path": f"{folder}/test",
            "amp": "auto",
            "device": "cpu",
        }
    assert record(monkeypatch, *arguments) == (0, [])


def test_values_of_the_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The defaults: three seeds of ten arms, and three folds of nine steps and of 18 changes."""
    for file, runs, epochs, data in (
        (ABLATION, 30, {56, 28}, {"data/CLCD"}),
        (RECIPE, 27, {14}, {"data/CLCD/train"}),
        (PRETRAINED, 54, {9}, {"data/CLCD/train"}),
    ):
        assert main([file, f"--out={tmp_path}", "--dry_run"]) == 0
        commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
        trained = [train_options(command) for command in commands[::2]]
        assert len(trained) == len({options["save_path"] for options in trained}) == runs
        assert {options["epoch"] for options in trained} == epochs
        assert {options["root"] for options in trained} == {str(REPOSITORY / place) for place in data}
        assert not [*tmp_path.iterdir()]
    ablation, recipe = read_experiment(Path(ABLATION)), read_experiment(Path(RECIPE))
    assert Path(ablation.out) == REPOSITORY / "results" / "ablation" and ablation.seeds == (0, 1, 2)
    assert Path(recipe.out) == REPOSITORY / "results" / "recipe" and recipe.folds == (0, 1, 2)
    assert Path(recipe.lists) == REPOSITORY / "list" / "CLCD-folds"


def test_changes_to_the_pretrained_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm changes one thing, or one and what it needs, and train.py accepts it."""
    code, commands = record(monkeypatch, PRETRAINED, "--root=data", f"--out={tmp_path}", "--lists=lists", "--folds=1")
    assert code == 0 and len(commands) == 2 * 18
    given = [train_options(command) for command in commands[::2]]
    assert all(options_for_new_run(g) for g in given)
    places = {"save_path", "best_name"}
    plain = {key: value for key, value in given[0].items() if key not in places}
    changes = [{k for k, v in g.items() if k not in places and plain.get(k) != v} for g in given[1:]]
    assert all(len(change) == 1 or change == {"cross", "patch"} for change in changes)


def test_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm is trained and scored on every data set, seed by seed; a second run does nothing."""
    path = tmp_path / "mine.toml"
    check = tmp_path / "check.json"
    check.touch()
    path.write_text(SETS.replace("check.json", str(check)))
    arguments = [str(path), f"--out={tmp_path / 'out'}"]
    code, commands = record(monkeypatch, *arguments)
    assert code == 0
    trained = {given["save_path"]: given for given in map(train_options, commands[::2])}
    names = ["left/one_0", "right/one_0", "left/one_1", "left/more_1", "right/one_1", "right/more_1"]
    assert list(trained) == [str(tmp_path / "out" / name) for name in [*names, "left/more_2", "right/more_2"]]
    for folder, given in trained.items():
        root, epoch = ("data/a", 3) if "/left/" in folder else ("data/b", 6)
        assert given["root"] == str(REPOSITORY / root) and given["epoch"] == epoch
        assert given["seed"] == int(folder[-1]) and given.get("swap", False) == ("more" in folder)
    for folder, scoring in zip(trained, map(given_in, commands[1::2]), strict=True):
        assert scoring["checkpoint_path"] == f"{folder}/w.pth" and scoring["save_path"] == f"{folder}/test"
        assert scoring["test_root"] == trained[folder]["root"] + "/val"
        assert scoring.get("check") == (str(check) if "/left/" in folder else None)
    assert record(monkeypatch, *arguments) == (0, [])


def test_chosen_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--only chooses runs by patterns; --seeds are those of all arms."""
    path = tmp_path / "mine.toml"
    path.write_text(SETS)
    arguments = [str(path), f"--out={tmp_path / 'out'}", "--seeds=0 5"]
    code, commands = record(monkeypatch, *arguments, "--only=right/*_5 right/one_0")
    assert code == 0
    folders = [Path(train_options(command)["save_path"]) for command in commands[::2]]
    assert [f"{folder.parent.name}/{folder.name}" for folder in folders] == [
        "right/one_0",
        "right/one_5",
        "right/more_5",
    ]
    with pytest.raises(UserError, match="--only 'one_0' matches no run"):
        main([*arguments, "--only=one_0"])
    with pytest.raises(UserError, match=r"no .*check\.json: .*change check .*data/a --save_path .* writes it"):
        main(arguments)
    with pytest.raises(UserError, match="--epoch is set by the data set left: leave it out"):
        main([*arguments, "--epoch=3"])
    with pytest.raises(UserError, match="choose either root, for one data set"):
        main([*arguments, "--root=data"])


def test_leaderboard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every network is an arm, with one recipe and equally many crops, apart from the first stages of three."""
    assert main([LEADERBOARD, f"--out={tmp_path}", "--dry_run", "--results=x"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    trained = {str(Path(g["save_path"]).relative_to(tmp_path)): g for g in map(train_options, commands[::2])}
    assert len(trained) == 2 * (7 * 5 + 8 * 3)
    assert all(options_for_new_run(given) for given in trained.values())
    assert {given.get("model", "prx") for given in trained.values()} == set(MODELS)
    varied = {"root", "epoch", "save_path", "seed", "model", "refine", "cross", "patch"}
    varied |= {"pretrained", "resume", "checkpoint_path"}
    assert len({str({k: v for k, v in given.items() if k not in varied}) for given in trained.values()}) == 1
    for data, pairs in (("CLCD", 360), ("MS-HS-BCD", 539)):
        epochs = {name: given["epoch"] for name, given in trained.items() if name.startswith(data)}
        stages = sum(epochs[f"{data}/{name}_0"] for name in ("stage1", "stage2", "stages"))
        assert {epoch for name, epoch in epochs.items() if "/stage" not in name} == {stages}
        assert 12_000 <= stages * pairs < 13_000


def test_steps_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizer extends published, average extends optimizer, other steps extend average; the last is the recipe."""
    arguments = [RECIPE, "--root=data", f"--out={tmp_path}", "--lists=lists", "--folds=0 2", "--nproc=2"]
    code, commands = record(monkeypatch, *arguments)
    assert code == 0 and len(commands) == 2 * 9 * 2
    assert all(("--nproc_per_node=2" in command) == (index % 2 == 0) for index, command in enumerate(commands))
    given = [train_options(command) for command in commands[::2]]
    names = ["published", "optimizer", "average", "symmetries", "swap", "scale", "colour", "loss", "all"]
    assert [Path(g["save_path"]).name for g in given] == [f"{name}_{fold}" for name in names for fold in (0, 2)]
    assert all(g["root"] == "data/train" and g["list"] == f"lists/{g['save_path'][-1]}" for g in given)
    for scoring in commands[1::2]:
        options = given_in(scoring)
        fold = Path(options["save_path"]).parent.name[-1]
        assert options["test_root"] == "data/train" and options["list"] == f"lists/{fold}/val.txt"
    assert all(options_for_new_run(g) for g in given)
    steps = {Path(g["save_path"]).name[:-2]: {k: v for k, v in g.items() if k != "save_path"} for g in given[::2]}
    assert steps["published"].items() < steps["optimizer"].items() < steps["average"].items()
    assert steps["published"]["recipe"] == "published"
    assert steps.pop("all") == {**steps["published"], "recipe": "scratch"}
    own = {step: g.items() - steps["average"].items() for step, g in steps.items()}
    assert all(len(own[step]) >= 1 for step in list(steps)[3:])
    assert dict(own["swap"]) == {"swap": True}
    parts = steps["average"] | dict(item for step in own for item in own[step])
    assert RECIPES["scratch"].items() <= parts.items()
    assert record(monkeypatch, *arguments) == (0, [])


def test_an_interrupted_experiment_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.py gets the options again, which it compares with those of the run, but not the options of the start."""
    arguments = [ABLATION, f"--out={tmp_path}", "--root=data", "--seeds=1 2", "--epoch=9", "--swap"]
    code, first = record(monkeypatch, *arguments, fails_at=5)
    assert code == 3 and len(first) == 5
    code, rest = record(monkeypatch, *arguments)
    assert code == 0 and len(rest) == 40 - 4
    begun, going_on = train_options(first[4]), train_options(rest[0])
    assert going_on.pop("continue_run") == begun.pop("save_path") == str(tmp_path / "unet_1")
    assert begun.pop("resume") and begun.pop("checkpoint_path") == str(tmp_path / "unet1_1" / "w.pth")
    assert going_on == begun and going_on["model"] == "unet" and going_on["swap"] and going_on["epoch"] == 9


def test_half_as_many_epochs_are_rounded_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This also holds for a run that is continued."""
    (tmp_path / "turn2_0").mkdir()
    (tmp_path / "turn2_0" / "w.state.pth").touch()
    for given, expected in ((["--epoch=9"], 5), ([], 28)):
        assert main([ABLATION, f"--out={tmp_path}", "--seeds=0", "--dry_run", *given]) == 0
        lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
        options = [train_options(words) for words in lines[::2]]
        half = [given for given in options if given["epoch"] == expected]
        assert [given.get("continue_run") for given in half] == [str(tmp_path / "turn2_0"), None]


@pytest.mark.parametrize(
    ("file", "given", "message"),
    [
        (RECIPE, ["--lr=1"], r"--lr is set by the arm optimizer: leave it out, or change it in the TOML file"),
        (RECIPE, ["--list=x"], "list cannot be chosen here: give lists"),
        (RECIPE, ["--seeds=1"], "choose either seeds or folds"),
        (ABLATION, ["--seed=1"], "seed cannot be chosen here: give seeds"),
        (ABLATION, ["--save_path=x"], "save_path cannot be chosen here: every arm has a folder of its own"),
        (ABLATION, ["--resume"], "resume cannot be chosen here: the key start of an arm"),
        (ABLATION, ["--cross"], "--cross is set by the arm cross"),
        ("nowhere.toml", [], "no settings at nowhere.toml"),
    ],
)
def test_options_that_an_experiment_sets(file: str, given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([file, "--dry_run", *given])


@pytest.mark.parametrize(("given", "message"), [("--seeds=a", "give whole numbers"), ("--epochs=3", "--epochs=3")])
def test_wrong_options(caplog: pytest.LogCaptureFixture, given: str, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([ABLATION, "--dry_run", given])
    assert stop.value.code == 2 and message in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('root = "data"', "", "the key root is missing"),
        ("seeds = [0]", "", "choose either seeds or folds, and give at least one"),
        ("seeds = [0]", "folds = [0]", "lists names the folder of the folds' lists: give it with folds"),
        ("epoch = 4", "", r"\[train\] needs epoch"),
        ("epoch = 4", "epoch = 4\nseed = 1", "seed cannot be chosen here: give seeds"),
        ("epoch = 4", 'epoch = 4\nsave_path = "x"', "save_path cannot be chosen here"),
        ("epoch = 4", "epoch = 4\nepochs = 4", "train: unknown key epochs"),
        ("seeds = [0]", "seeds = [0]\narms = 3", "unknown key arms"),
        ("seeds = [0]", "seeds = [0]\nsplits = 3", "unknown key splits; the keys are root, out, train, seeds"),
        ('name = "one"', 'name = "one"\nform = "x"', "arm one: unknown key form; the keys are name, start"),
        ('name = "one"', 'name = "a/b"', "arm a/b: name 'a/b': choose one that can name a folder"),
        ('name = "one"', "", "arm 1: the key name is missing"),
        (
            'name = "one"',
            'name = "one"\nstart = "two"',
            "arm one: two is not an earlier arm; the earlier arms are: none",
        ),
        ('name = "one"', 'name = "one"\nextends = "one"', "arm one: one is not an earlier arm"),
        ('name = "one"', 'name = "one"\nepoch_share = 1.5', "arm one: epoch_share 1.5: choose a share above 0"),
        ('name = "one"', 'name = "one"\ntrain.epoch = 3', "arm one: epoch cannot be chosen here: use epoch_share"),
        ('name = "one"', 'name = "one"\ntrain.lrr = 3', "arm one: train: unknown key lrr"),
        ('name = "one"', 'name = "one"\n[[arm]]\nname = "one"', "two arms have the name one"),
        ('[[arm]]\nname = "one"', "", r"no arms: give at least one \[\[arm\]\]"),
        ("[[arm]]", "[arm]", r"write each arm as \[\[arm\]\]"),
        ("[train]", '[[data]]\nname = "a"\nroot = "b"\n[train]', "choose either root, for one data set, or one"),
        ('root = "data"', 'root = "data"\ndata = 3', r"write each data as \[\[data\]\]"),
        (
            'name = "one"',
            'name = "one"\nseeds = [0]\n[[arm]]\nname = "b"\nstart = "one"\nseeds = [1]',
            "seeds that its start one",
        ),
    ],
)
def test_faults_in_a_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    refuse(tmp_path, SMALL, old, new, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "right"', 'name = "left"', "two data sets have the name left"),
        ('name = "right"', 'name = "a/b"', "name 'a/b': choose one that can name a folder"),
        ('root = "data/b"', "", "data right: the key root is missing"),
        ('root = "data/b"', 'path = "data/b"', "data right: unknown key path; the keys are name, root, epoch, check"),
        ("epoch = 6", "epoch = -1", "data right: epoch -1: choose 1 or more"),
        ("epoch = 6", "", r"\[train\] needs epoch"),
        ("seeds = [0, 1]", 'folds = [0]\nlists = "l"', "folds work with one data set only"),
    ],
)
def test_faults_in_data_sets(tmp_path: Path, old: str, new: str, message: str) -> None:
    refuse(tmp_path, SETS, old, new, message)


def refuse(tmp_path: Path, text: str, old: str, new: str, message: str) -> None:
    """Read an experiment with a fault, and expect an error that names the file."""
    path = tmp_path / "mine.toml"
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        read_experiment(path)
    assert str(path) in str(error.value)
