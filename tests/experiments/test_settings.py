"""TOML files: errors name the file and the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from change.common.errors import UserError
from change.experiments.settings import Options, build, read_toml


@dataclass(frozen=True)
class Plan:
    """Settings of every type."""

    name: str
    count: int = 1
    share: float = 0.5
    packed: bool = False
    seeds: tuple[int, ...] = ()
    train: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count {self.count}: choose 1 or more")


def test_every_type(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('name = "a"\ncount = 2\nshare = 1\npacked = true\nseeds = [0, 3]\ntrain.lr = 1e-3\n')
    assert build(Plan, read_toml(path), "plan.toml") == Plan("a", 2, 1, True, (0, 3), {"lr": 1e-3})
    assert build(Plan, {"name": "a"}, "plan.toml") == Plan("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count = 1", "plan.toml: the key name is missing"),
        ('name = "a"\ncuont = 1', "plan.toml: unknown key cuont; the keys are name, count, share"),
        ("name = 1", "plan.toml: name is 1: give a text in quotes"),
        ('name = "a"\ncount = true', "plan.toml: count is True: give a whole number"),
        ('name = "a"\ncount = 1.5', "plan.toml: count is 1.5: give a whole number"),
        ('name = "a"\nshare = "1"', "plan.toml: share is '1': give a number"),
        ('name = "a"\npacked = 1', "plan.toml: packed is 1: give true or false"),
        ('name = "a"\nseeds = [0, "1"]', r"plan.toml: seeds is \[0, '1'\]: give a list of whole numbers"),
        ('name = "a"\nseeds = 3', "plan.toml: seeds is 3: give a list of whole numbers"),
        ('name = "a"\ntrain = 3', "plan.toml: train is 3: give a table of options of train.py"),
        ('name = "a"\ntrain.learning_rate = 3', "plan.toml: train: unknown key learning_rate; python train.py --help"),
        ('name = "a"\ntrain.lr = [3]', r"plan.toml: train: lr is \[3\]: give one value"),
        ('name = "a"\ncount = 0', "plan.toml: count 0: choose 1 or more"),
        ("name = a", "plan.toml is not valid TOML"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path.parent}/{message}"):
        build(Plan, read_toml(path), str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no settings at .*nowhere.toml: name a TOML file"):
        read_toml(tmp_path / "nowhere.toml")
