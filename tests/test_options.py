"""Options: published defaults, booleans in every spelling, options without effect, what may change later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest

from change.common.command_line import from_flat, options_of, parse_given, to_flat
from change.common.errors import UserError
from change.options.__main__ import options_page
from change.options.test import TestOptions, parse_test
from change.options.train import LossOptions, TrainOptions
from change.training.recipes import RECIPES, options_for_new_run
from change.training.schedule import Schedule
from change.training.start import options_for_continued_run
from models.config import NetworkConfig
from models.losses import MASK_TERMS, TrainingLoss
from models.network import build_network
from tests.conftest import REPOSITORY

NEEDED = ["--root=data", "--save_path=run"]
TEST_NEEDED = ["--test_root=a", "--checkpoint_path=b.pth"]


def given(*arguments: str) -> dict[str, Any]:
    return parse_given(TrainOptions, [*NEEDED, *arguments], "")


def parse(*arguments: str) -> TrainOptions:
    return options_for_new_run(given(*arguments))


def continue_run(saved: Mapping[str, Any], **given: object) -> TrainOptions:
    return options_for_continued_run(saved, {**given, "continue_run": "run"})


def parse_for_test(*arguments: str) -> TestOptions:
    return parse_test([*TEST_NEEDED, *arguments])


def test_published_defaults() -> None:
    published = {
        "trainsize": 0,  # 1024 as published, which scores other images than test.py does
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
    options = to_flat(parse())
    assert {name: options[name] for name in published} == published
    assert parse().network.config() == NetworkConfig("resnet18")
    assert parse("--save_feq=7").run.save_freq == 7
    test = parse_test(["--test_root=a", "--test_checkpoint_path=b.pth"])
    assert test.input.checkpoint_path == "b.pth"


def test_options_are_flat_in_files() -> None:
    """Names are unique over the groups, so that a flat dict holds them all and builds the same options again."""
    for kind in (TrainOptions, TestOptions):
        names = [spec.name for _, spec in options_of(kind)]
        aliases = [spec.metadata["alias"] for _, spec in options_of(kind) if spec.metadata["alias"]]
        assert len({*names, *aliases}) == len(names) + len(aliases)
    options = parse("--lr=0.5", "--refine", "--k=3")
    assert from_flat(TrainOptions, to_flat(options)) == options
    with pytest.raises(UserError, match="unknown options: novelty"):
        from_flat(TrainOptions, {**to_flat(options), "novelty": 1})


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
    assert parse(*arguments).network.cross is value


def test_number_format_and_names() -> None:
    assert parse("--mixed_precision_training=False").compute.number_format() == "off"
    assert parse("--mixed_precision_training=True").compute.number_format() == "auto"
    names = [parse(*a).run_name() for a in ([], ["--refine"], ["--refine", "--cross"], ["--best_name=x"])]
    assert names == ["1", "2", "best", "x"]
    config = parse("--refine", "--cross", "--backbone=50").network.config()
    assert config == NetworkConfig("resnet50", cross=True, refine=True)


def test_recipes() -> None:
    """A recipe sets options that exist, if they are not given."""
    names = {spec.name for _, spec in options_of(TrainOptions)}
    assert all(set(values) <= names for values in RECIPES.values())
    options = parse("--recipe=scratch", "--lr=0.5")
    assert (options.optimizer.lr, options.optimizer.eps, options.optimizer.schedule) == (0.5, 1e-8, "cosine")
    assert options.augmentation.scales() == (0.8, 1.25)


def test_every_recipe_is_a_choice() -> None:
    recipe = next(spec for _, spec in options_of(TrainOptions) if spec.name == "recipe")
    assert recipe.metadata["choices"] == tuple(RECIPES)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--scale=2 1"], "--scale"),
        (["--scale=2"], "give two numbers"),
        (["--color_setting=1 2 x 4"], "give four numbers"),
        (["--color_setting=0 0 0 1"], "at most 0.5"),
        (["--dice=-1"], "--dice"),
        (["--lr=nan"], "--lr nan"),
        (["--warmup=-1"], "--warmup"),
        (["--ema=1"], "--ema 1"),
        (["--cropsize=100"], "multiple of 32"),
        (["--model=unet", "--cross"], "no cross-attention"),
        (["--within"], "add --cross"),
        (["--resume"], "--resume needs --checkpoint_path"),
        (["--best_name=a/b"], "file name without a folder"),
        (["--resolution=2 0.5"], '--resolution "2 0.5": give one number above 0, or two with the smaller one first'),
        (["--resolution=0"], "--resolution"),
        (["--resolution=1 2 3"], "--resolution"),
        (["--resolution=50cm"], "--resolution"),
    ],
)
def test_values_are_refused(arguments: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--k=3"], "--k does nothing without --refine"),
        (["--beta=0.5"], "--beta does nothing without --refine"),
        (["--l1=5"], "--l1 does nothing without --refine"),
        (["--l2=2"], "--l2 does nothing without --refine"),
        (["--power=2", "--schedule=cosine"], "--power does nothing without --schedule poly"),
        (["--recipe=scratch", "--power=2"], "--power does nothing without --schedule poly"),
        (["--patch=8"], "--patch does nothing without --cross"),
        (["--checkpoint_path=a.pth"], "--checkpoint_path does nothing without --resume"),
        (["--cache_path=x"], "--cache_path does nothing without --cache disk"),
        (["--kept_activations=0.5"], "--kept_activations does nothing without --compile on"),
        (["--resume", "--checkpoint_path=a", "--pretrained=none"], "--pretrained does nothing with --resume"),
        (["--resume", "--checkpoint_path=a", "--prior"], "--prior does nothing with --resume"),
        (["--mixed_precision_training=False", "--amp=bf16"], "means --amp off, not --amp bf16"),
        (["--warmup=5", "--epoch=5"], "--warmup 5: choose fewer epochs than --epoch, 5"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        parse(*arguments)


def test_options_with_effect_are_taken() -> None:
    """The same options are accepted in a mode in which they do something; False switches nothing on."""
    parse("--refine", "--k=3", "--l1=2", "--cache=disk", "--cache_path=x", "--compile=on", "--kept_activations=0.5")
    parse("--resume", "--checkpoint_path=a", "--recipe=scratch")
    parse("--power=2", "--cross", "--within", "--patch=8", "--warmup=4", "--epoch=5")
    parse("--within=False", "--prior=False", "--mixed_precision_training=False", "--amp=off")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--window=100"], "--tile does nothing without --protocol slide"),
        (["--protocol=full", "--overlap=10"], "--overlap does nothing without --protocol slide"),
        (["--protocol=tile256", "--tile=64"], "--tile does nothing without --protocol slide"),
        (["--protocol=slide", "--tile=64"], "--overlap 128: choose less than --tile 64"),
        (["--save_panels_path=x"], "--save_panels_path does nothing without --save_panels"),
        (["--save_result_path=x", "--save_result=False"], "--save_result_path does nothing without --save_result"),
        (["--threshold=1"], "--threshold 1"),
    ],
)
def test_options_of_test_are_refused(arguments: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        parse_for_test(*arguments)


def test_tiles_and_windows_are_one() -> None:
    arguments = ("--protocol=slide", "--overlap=16")
    assert parse_for_test(*arguments, "--window=64") == parse_for_test(*arguments, "--tile=64")


def test_network_config_refuses() -> None:
    with pytest.raises(ValueError, match="model vit: choose one of prx, unet"):
        NetworkConfig(model="vit")
    with pytest.raises(ValueError, match="no cross-attention"):
        NetworkConfig(model="unet", cross=True)
    with pytest.raises(ValueError, match="X-Cross"):
        NetworkConfig(within=True)
    with pytest.raises(ValueError, match="patch 3: choose one of 1, 2, 4, 8"):
        NetworkConfig(cross=True, patch=3)
    with pytest.raises(ValueError, match="backbone 20: choose one of resnet18, resnet34, resnet50, resnet101"):
        NetworkConfig("20")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (TrainOptions, TestOptions):
        with pytest.raises(SystemExit) as stop:
            parse_given(kind, ["--help"], "")
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(f"--{spec.name}" in text for _, spec in options_of(kind))


def test_the_page_of_options_is_current() -> None:
    """docs/options.md is what `python -m change.options` prints; defaults and meanings included."""
    assert (REPOSITORY / "docs" / "options.md").read_text() == options_page()


def test_every_loss_option_reaches_the_loss() -> None:
    """The names of the options are those of the terms: a new term needs an option and a function, nothing else."""
    options = asdict(LossOptions())
    loss = TrainingLoss(build_network(NetworkConfig()), **options)
    assert {"k", "beta", "l1", "l2"} <= options.keys()
    assert options.keys() - {"k", "beta", "l1", "l2"} == MASK_TERMS.keys() - {"cross_entropy"}
    assert loss.mask_weights == {"cross_entropy": 1.0, **dict.fromkeys(MASK_TERMS.keys() - {"cross_entropy"}, 0.0)}
    with pytest.raises(ValueError, match=f"unknown loss terms no_such_term: choose from {', '.join(MASK_TERMS)}"):
        TrainingLoss(loss.network, no_such_term=1.0)


# --- continuing a run ----------------------------------------------------------------------------------------------


def test_continuing() -> None:
    saved = to_flat(parse("--lr=0.1"))
    continued = continue_run(saved, lr=0.1, workers=3)
    assert continued.compute.workers == 3 and continued.run.continue_run == ""
    assert continue_run(saved, cache="disk").data.cache == "disk"
    by_depth = {**saved, "backbone": 18}  # as earlier versions saved it
    assert continue_run(by_depth, backbone="resnet18") == continue_run(saved)
    older = {name: value for name, value in saved.items() if name != "keep"}  # before that option was there
    assert continue_run(older, keep="best").validation.keep == "best"
    with pytest.raises(UserError, match=r"--lr 0\.2, was 0\.1; --seed 5, was 0"):
        continue_run(saved, lr=0.2, seed=5)
    with pytest.raises(UserError, match="--pretrained 'none', was 'imagenet'"):
        continue_run(saved, pretrained="none")


def test_continuing_writes_to_its_own_folder() -> None:
    saved = to_flat(parse())
    assert continue_run(saved, save_path="./run").run.save_path == "run"
    with pytest.raises(UserError, match="--continue_run run writes to its own folder: leave out --save_path other"):
        continue_run(saved, save_path="other")


def test_continuing_runs_of_earlier_versions() -> None:
    """Their options include one that no longer exists; its value 0 means what is done now."""
    saved = to_flat(parse())
    assert continue_run({**saved, "pseudo": 0.0}) == continue_run(saved)
    with pytest.raises(UserError, match=r"--pseudo 0\.5, which no longer exists"):
        continue_run({**saved, "pseudo": 0.5})
    for value in ({"novelty": 1}, {"backbone": "vgg16"}):
        with pytest.raises(UserError, match="made by another version"):
            continue_run({**saved, **value})


# --- the learning rate ---------------------------------------------------------------------------------------------


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
