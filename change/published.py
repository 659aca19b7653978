"""State dicts of the published PRX-Change, translated into our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from change.common.errors import UserError, list_names
from models.config import NetworkConfig

# Published names and ours, applied in this order.
PUBLISHED_NAMES = (
    (r"^module\.", ""),
    (r"^backbone\.", "encoder."),
    (r"^change_head\.PFRM\.proj\.(\d)\.", r"refinement.stages.\1.coarse."),
    (r"^change_head\.PFRM\.refine_head\.(\d)\.mlp\.", r"refinement.stages.\1."),
    (r"^change_head\.outc\.conv\.", "head.out."),
    (r"^change_head\.(upsample[12])\.", r"head.\1."),
    (r"^change_head\.tf0\.conv\.", "decoder.deepest.mix."),
    (r"^change_head\.tf0\.", "decoder.deepest."),
    (r"^change_head\.tf1\.", "decoder.stages.0."),
    (r"^change_head\.tf2\.", "decoder.stages.1."),
    (r"^change_head\.tf3\.", "decoder.stages.2."),
    (r"\.conv\.linear\.0\.", ".gate.squeeze."),
    (r"\.conv\.linear\.2\.", ".gate.excite."),
    (r"\.conv\.reduce_conv\.", ".reduce."),
    (r"^(decoder\.stages\.\d)\.conv\.conv\.", r"\1.conv."),
    (r"\.x_cross\.embed\.proj\.", ".cross.embed."),
    (r"\.x_cross\.time_token_b$", ".cross.token_before"),
    (r"\.x_cross\.time_token_a$", ".cross.token_after"),
    (r"\.x_cross\.atten\.0\.norm1\.", ".cross.norm_in."),
    (r"\.x_cross\.atten\.0\.attn\.", ".cross.attention."),
    (r"\.x_cross\.atten\.0\.norm\.", ".cross.norm_out."),
    (r"\.x_cross\.atten\.0\.mlp\.", ".cross.mlp."),
    (r"\.x_cross\.to_feature\.conv\.", ".cross.to_map."),
    (r"\.x_cross\.norm\.", ".cross.norm_map."),
)
# The published network has this layer but never calls it.
UNUSED_PUBLISHED = ("change_head.tf0.upsample.weight", "change_head.tf0.upsample.bias")

# Number of blocks in the third stage, and whether they are bottlenecks -> the ResNet.
RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}


class Published(NamedTuple):
    """A translated state dict: configuration, weights under our names, and the published names that are left out."""

    config: NetworkConfig
    weights: dict[str, Tensor]
    left_out: list[str]


def our_name(name: str) -> str:
    """Translate one published name."""
    for pattern, replacement in PUBLISHED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def translate(state: Mapping[str, Any], path: Path) -> Published:
    """Translate a published state dict. Its names determine its configuration.

    Args:
        state: the state dict, with or without the prefix "module." of DataParallel.
        path: the file it comes from, for error messages.

    Raises:
        UserError: `state` is not the state dict of a PRX-Change network.
    """
    strange = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange or not state:
        raise UserError(f"{path} is neither a checkpoint nor a state dict: {list_names(strange) or 'it is empty'}")
    if "conv1.weight" in state:
        raise UserError(f"{path} holds only an encoder: give it to train.py as --pretrained {path}")
    weights: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, tensor in state.items():
        if name.removeprefix("module.") in UNUSED_PUBLISHED:
            left_out.append(name)
            continue
        ours = our_name(name)
        if re.match(r"refinement\.stages\.\d\.fc\d\.weight", ours) and tensor.ndim == 3:
            tensor = tensor.squeeze(2)  # published as a convolution over points
        weights[ours] = tensor
    blocks = {match.group(1) for name in weights if (match := re.match(r"encoder\.layer3\.(\d+)\.", name))}
    backbone = RESNETS.get((len(blocks), "encoder.layer1.0.conv3.weight" in weights))
    if backbone is None:
        raise UserError(f"{path} holds no PRX-Change network: its names begin with {list_names(state)}")
    config = NetworkConfig(
        backbone=backbone,
        cross=any(".cross." in name for name in weights),
        refine=any(name.startswith("refinement.") for name in weights),
    )
    return Published(config, weights, left_out)
