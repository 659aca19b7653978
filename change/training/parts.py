"""What a run trains with, built from its options: network, loss, optimizer."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from change.checkpoint import Checkpoint
from change.common import distributed
from change.common.command_line import read_range
from change.common.errors import UserError
from change.common.logs import versions
from change.options.train import OptimizerOptions, TrainOptions
from change.training.average import WeightAverage
from change.training.data import Data
from change.training.first_weights import load_first_weights
from change.training.precision import Precision
from change.training.run_state import RunState
from models.losses import TrainingLoss
from models.network import PRXChange, build_network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The objects that a run trains with, on their device.

    Attributes:
        loss: the network and its loss.
        average: the moving average of the weights.
        optimizer: the optimizer of the network.
        precision: the number format.
        template: the checkpoint that the run writes, without its weights.
    """

    loss: TrainingLoss
    average: WeightAverage[PRXChange]
    optimizer: torch.optim.Optimizer
    precision: Precision
    template: Checkpoint


def build_parts(options: TrainOptions, precision: Precision, state: RunState | None, data: Data) -> Parts:
    """Build the network with its first weights, the loss and the optimizer.

    Args:
        options: the options of the run.
        precision: the number format and the device of the network.
        state: the state of an interrupted run, whose weights are loaded later; None for a new run.
        data: the rate of change of its train pairs is that of --prior, and its channels are those of the network.

    Raises:
        UserError: the encoder is a network of timm that gives no such maps, or the weights to start from are missing
            or do not fit.
    """
    torch.manual_seed(options.run.seed)
    config, channels, classes = options.network.config(), data.channels, data.train.classes
    if channels is not None:
        config = replace(config, in_channels=len(channels.bands.names))
    if classes is not None:
        config = replace(config, classes=len(classes.names))
    try:
        network = build_network(config)
    except ValueError as error:  # a network of timm that is no encoder
        raise UserError(f"--{error}") from error
    template = Checkpoint(config, {})
    if state is None:
        shares = data.train.shares
        if classes and options.augmentation.swap:
            shares = classes.half_swapped(shares)
        template = load_first_weights(
            network,
            config,
            options.start,
            rate=data.train.changed,
            bands=channels.bands if channels else None,
            classes=classes,
            shares=shares,
        )
        given = read_range("resolution", options.data.resolution, "0.5 2")
        if template.resolution and not given:
            smallest, largest = template.resolution
            log.info(
                "the ground resolution of the initial weights is kept: %g to %g m per pixel; "
                "if that of your images differs, state it with --resolution",
                smallest,
                largest,
            )
        template = replace(template, resolution=given or template.resolution)
    if channels is not None:
        template = replace(template, bands=channels.bands, mean=channels.mean, std=channels.std)
    distributed.synchronise(network, precision.device)
    network.to(precision.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, options.optimizer, fused=precision.apex is None)
    precision.prepare(network, optimizer)
    return Parts(
        loss=TrainingLoss(network, **asdict(options.loss)),
        average=WeightAverage(network, options.optimizer.ema),
        optimizer=optimizer,
        precision=precision,
        template=template,
    )


def describe_setup(precision: Precision) -> dict[str, str]:
    """Describe the setup of a run: versions, device, number format, number of processes."""
    return {
        **versions(),
        "device": str(precision.device),
        "precision": precision.name,
        "processes": str(distributed.processes()),
    }


def build_optimizer(network: PRXChange, options: OptimizerOptions, fused: bool) -> torch.optim.Optimizer:
    """Build AdamW over all parameters of a network."""
    return torch.optim.AdamW(parameter_groups(network, options), lr=options.lr, eps=options.eps, fused=fused)


def parameter_groups(network: PRXChange, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Group parameters by weight decay and learning rate.

    Norms and biases, which are vectors, have no weight decay unless `decay_norms`. Parameters for which there are
    pretrained weights have the learning rate of the encoder. The groups' `factor` is that of their learning rate.
    """
    new = tuple(f"encoder.{prefix}" for prefix in network.encoder.not_pretrained)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        decays = options.decay_norms or parameter.ndim >= 2
        pretrained = name.startswith("encoder.") and not name.startswith(new)
        groups.setdefault((decays, options.encoder_lr if pretrained else 1.0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": options.weight_decay if decays else 0.0, "factor": factor}
        for (decays, factor), parameters in groups.items()
    ]
