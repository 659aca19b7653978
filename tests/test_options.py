"""Options: the published defaults, booleans in every spelling, what may change when a run goes on."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

import pytest

from change.common.errors import UserError
from change.options import RECIPES, CommonOptions, TestOptions, TrainOptions, continued, parse_given
from change.training.schedule import Schedule
from models.network import NetworkConfig
from tests.conftest import REPOSITORY

NEEDED = ["--root=data", "--save_path=run"]


def parse(*arguments: str) -> TrainOptions:
    return TrainOptions(**parse_given(TrainOptions, [*NEEDED, *arguments], ""))


def test_published_defaults() -> None:
    published = {
        "trainsize": 1024,
        "cropsize": 512,
        "color_setting": "0.2 0.2 0.1 0.1",
        "epoch": 800,
        "lr": 6e-4,
        "weight_decay": 2e-3,
        "eps": 1e-3,
        "train_batchsize": 8,
        "val_batchsize": 4,
        "val_epoch": 10,
        "decay_epoch": 1,
        "power": 1,
        "backbone": "resnet18",
        "refine": False,
        "cross": False,
        "k": 2,
        "beta": 0.75,
        "l1": 5,
        "l2": 1,
        "save_freq": 100,
        "resume": False,
        "mixed_precision_training": True,
    }
    options = asdict(parse())
    assert {name: options[name] for name in published} == published
    assert parse("--save_feq=7").save_freq == 7
    arguments = ["--test_root=a", "--test_checkpoint_path=b.pth"]
    assert TestOptions(**parse_given(TestOptions, arguments, "")).checkpoint_path == "b.pth"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--cross"], True),
        (["--cross=True"], True),
        (["--cross", "true"], True),
        (["--no-cross"], False),
        (["--cross=False"], False),
        (["--cross", "0"], False),
        ([], False),
        (["--cross", "--cross=False"], False),
    ],
)
def test_booleans(arguments: list[str], value: bool) -> None:
    assert parse(*arguments).cross is value


def test_precision_and_names() -> None:
    assert parse("--mixed_precision_training=False", "--amp=bf16").precision() == "off"
    assert parse("--mixed_precision_training=True").precision() == "auto"
    assert [parse(*a).run_name() for a in ([], ["--refine"], ["--refine", "--cross"], ["--best_name=x"])] == [
        "1",
        "2",
        "best",
        "x",
    ]
    assert parse("--refine", "--cross", "--backbone=50").network() == NetworkConfig("resnet50", cross=True, refine=True)


def test_recipes() -> None:
    """A recipe gives what is not given; every name in one is an option."""
    names = {spec.name for spec in fields(TrainOptions)}
    assert all(set(values) <= names for values in RECIPES.values())
    given = parse_given(TrainOptions, [*NEEDED, "--recipe=scratch", "--lr=0.5"], "")
    options = TrainOptions(**{**RECIPES["scratch"], **given})
    assert (options.lr, options.eps, options.schedule, options.scale_range()) == (0.5, 1e-8, "cosine", (0.8, 1.25))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--scale=2 1"], "--scale"),
        (["--scale=2"], "give two numbers"),
        (["--dice=-1"], "--dice"),
        (["--warmup=-1"], "--warmup"),
        (["--model=unet", "--cross"], "no cross-attention"),
        (["--within"], "add --cross"),
    ],
)
def test_recipe_options_refuse(arguments: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        parse(*arguments)


def test_network_config_refuses() -> None:
    with pytest.raises(ValueError, match="model vit: choose one of prx, unet"):
        NetworkConfig(model="vit")
    with pytest.raises(ValueError, match="no cross-attention"):
        NetworkConfig(model="unet", cross=True)
    with pytest.raises(ValueError, match="X-Cross"):
        NetworkConfig(within=True)
    with pytest.raises(ValueError, match="backbone 20: choose one of resnet18, resnet34, resnet50, resnet101"):
        NetworkConfig("20")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (TrainOptions, TestOptions):
        with pytest.raises(SystemExit) as stop:
            parse_given(kind, ["--help"], "")
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(f"--{spec.name}" in text for spec in fields(kind))


def test_going_on() -> None:
    saved = asdict(parse("--lr=0.1"))
    assert continued(saved, {"lr": 0.1, "workers": 3, "continue_run": "run"}).workers == 3
    assert continued(saved, {"cache": "disk"}).cache == "disk"
    older = {name: value for name, value in saved.items() if name != "keep"}  # before that option was there
    assert continued(older, {"keep": "best"}).keep == "best"
    assert continued({**saved, "pseudo": 0.0}, {}) == continued(saved, {})  # an option of earlier versions
    by_depth = {**saved, "backbone": 18}  # as earlier versions saved it
    assert continued(by_depth, {"backbone": "resnet18"}) == continued(saved, {})
    with pytest.raises(UserError, match=r"--pseudo 0.5, which this version no longer has"):
        continued({**saved, "pseudo": 0.5}, {})
    with pytest.raises(UserError, match=r"--lr 0.2, was 0.1; --seed 5, was 0"):
        continued(saved, {"lr": 0.2, "seed": 5})


def test_readme_names_every_option() -> None:
    text = (REPOSITORY / "README.md").read_text()
    missing = [
        s.name
        for kind in (TrainOptions, TestOptions, CommonOptions)
        for s in fields(kind)
        if f"`--{s.name}`" not in text
    ]
    assert not missing


def test_learning_rate() -> None:
    """lr * (1 - epoch / epochs) ** power after each epoch, or after every n."""
    schedule = Schedule(6e-4, 1000, 1.0)
    assert [schedule.at(epoch) for epoch in (0, 250, 999)] == pytest.approx([6e-4, 4.5e-4, 6e-7])
    assert [Schedule(1.0, 10, 2.0, every=5).at(epoch) for epoch in (0, 4, 5, 9)] == pytest.approx([1, 1, 0.25, 0.25])
    held = Schedule(1.0, 100, 0.0, every=5, warmup=9)
    assert [held.at(epoch) for epoch in (0, 4, 5, 9, 10)] == pytest.approx([0.1, 0.1, 0.6, 0.6, 1.0])
    cosine = Schedule(1.0, 100, 1.0, cosine=True, warmup=4)
    assert [cosine.at(epoch) for epoch in (4, 50, 75, 99)] == pytest.approx(
        [(1 + math.cos(math.pi * epoch / 100)) / 2 for epoch in (4, 50, 75, 99)]
    )
    assert [cosine.at(epoch) / (1 + math.cos(math.pi * epoch / 100)) * 2 for epoch in range(4)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8]
    )
