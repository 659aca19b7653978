"""The options of a new run, from the command line, the recipe and the defaults. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from change.common.command_line import from_flat, parse_given, refuse_without_effect, to_flat
from change.common.errors import UserError
from change.options.train import TrainOptions

# The values with which each --recipe replaces the defaults. Options on the command line take precedence.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "scratch": {
        "lr": 1e-3,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "decay_norms": False,
        "schedule": "cosine",
        "warmup": 2,
        "ema": 0.999,
        "keep": "last",
        "symmetries": True,
        "scale": "0.8 1.25",
        "color_setting": "0.3 0.3 0.3 0.05",
        "dice": 1.0,
        "prior": True,
    },
}


def options_for_new_run(given: Mapping[str, Any]) -> TrainOptions:
    """Build the options of a new run: each is the given value, or else that of the recipe, or else the default.

    Raises UserError for a value that is out of range and for an option that does nothing in this mode.
    """
    recipe = RECIPES[given.get("recipe", "published")]
    options = from_flat(TrainOptions, {**recipe, **given})
    refuse_without_effect(TrainOptions, given, to_flat(options))
    for name in ("pretrained", "prior", "bands", "rgb_bands"):
        if options.start.resume and given.get(name):
            raise UserError(
                f"--{name} does nothing with --resume, which starts from a checkpoint: leave one of them out"
            )
    if "amp" in given and given["amp"] != "off" and not options.compute.mixed_precision_training:
        raise UserError(f"--mixed_precision_training False means --amp off, not --amp {given['amp']}: leave one out")
    if options.optimizer.warmup >= options.run.epoch and "warmup" in given:
        raise UserError(
            f"--warmup {options.optimizer.warmup}: choose fewer epochs than --epoch, {options.run.epoch}, or the "
            "learning rate never reaches --lr"
        )
    return options


def parse_train(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the command line of train.py; return the options that it gives, flat, without defaults.

    Raises UserError as `options_for_new_run` does. Whether the options fit an interrupted run is checked later.
    """
    given = parse_given(TrainOptions, arguments, "Train PRX-Change: base, refine or refine + cross.")
    if not given.get("continue_run"):
        options_for_new_run(given)
    return given
