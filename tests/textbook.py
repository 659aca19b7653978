"""The network as its paper describes it, step by step. The benchmark and the tests compare with it.

It has explicit attention matrices for each date, the 1x1 convolution after the upsampling, and a head of three layers,
whose map of 32 channels has the full resolution. `textbook` uses the modules and parameters of the network that it is
made from, and gives the same outputs up to rounding.

Shapes: B pairs, C channels, h and w the map's height and width, T tokens, P points per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.decoder import Decoder, FusionStage, Head
from models.network import PRXChange
from models.refinement import PointLogits, Refinement, StageRefinement, draw_points, to_full_precision
from models.xcross import XCross, split_dates


class TextbookCross(nn.Module):
    """X-Cross, one step after the other."""

    def __init__(self, cross: XCross) -> None:
        super().__init__()
        self.parts = cross
        self.drop = nn.Dropout(cross.attention.drop)
        self.train(cross.training)

    def forward(self, features: Tensor) -> Tensor:
        """Add what attention finds to features (2B, C, h, w), first before, then after; the shape stays."""
        parts = self.parts
        before, after = split_dates(features)
        tokens_b = parts.norm_in(parts.embed(before).flatten(2).transpose(1, 2) + parts.token_before)
        tokens_a = parts.norm_in(parts.embed(after).flatten(2).transpose(1, 2) + parts.token_after)
        query_b, key_b, value_b = (parts.attention.norm(x) for x in parts.attention.qkv(tokens_b).chunk(3, dim=2))
        query_a, key_a, value_a = (parts.attention.norm(x) for x in parts.attention.qkv(tokens_a).chunk(3, dim=2))
        cross_b = self.attend(query_a, key_b, value_b)
        cross_a = self.attend(query_b, key_a, value_a)
        map_b = self.back_to_map(tokens_b, cross_b, before)
        map_a = self.back_to_map(tokens_a, cross_a, after)
        out: Tensor = features + parts.norm_map(torch.cat((map_b, map_a)))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read values (B, T, C) with queries and keys of the same shape."""
        weights = torch.softmax(query @ key.transpose(1, 2) / query.shape[2] ** 0.5, dim=2)
        attended: Tensor = self.drop(weights) @ value
        return attended

    def back_to_map(self, tokens: Tensor, attended: Tensor, feature: Tensor) -> Tensor:
        """Turn tokens (B, T, C) and what they read into a map of the shape of `feature`, (B, C, h, w)."""
        parts = self.parts
        height, width = feature.shape[2:]
        y = parts.norm_out(tokens + parts.drop_path(attended))
        z = y + parts.drop_path(parts.mlp(y))
        z = z.transpose(1, 2).unflatten(2, (height // parts.patch_size, width // parts.patch_size))
        if parts.patch_size > 1:
            z = F.interpolate(z, scale_factor=parts.patch_size, mode="bilinear", align_corners=True)
        out: Tensor = parts.to_map(z)
        return out


class TextbookStage(nn.Module):
    """A stage of stride 16, 8 or 4: norm, concatenation, gate, reduction, one after the other."""

    def __init__(self, stage: FusionStage) -> None:
        super().__init__()
        self.parts = stage
        self.cross = TextbookCross(stage.cross) if isinstance(stage.cross, XCross) else nn.Identity()

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        """Fuse features (2B, C, h, w) and the map of the stage before, (B, coarse C, h/2, w/2): (B, C, h, w)."""
        parts = self.parts
        before, after = split_dates(self.cross(features))
        x = torch.cat([parts.norm(part) for part in (before, after, parts.upsample(coarse))], dim=1)
        gate = torch.sigmoid(parts.gate.excite(F.relu(parts.gate.squeeze(x.mean((2, 3))))))
        reduced = parts.reduce(x + x * gate[:, :, None, None])
        fused: Tensor = reduced + parts.conv(reduced)
        return fused


class TextbookHead(nn.Module):
    """Two transposed convolutions and a 1x1 convolution, one after the other."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.parts = head

    def forward(self, fused: Tensor) -> Tensor:
        """Predict: a map (B, C, H/4, W/4) -> logits (B, 1, H, W)."""
        logits: Tensor = self.parts.out(self.parts.upsample2(self.parts.upsample1(fused)))
        return logits


class TextbookRefinement(nn.Module):
    """Refinement that reads its points with `grid_sample`, from whole maps in float32."""

    def __init__(self, refinement: Refinement) -> None:
        super().__init__()
        self.parts = refinement

    def forward(
        self, fused: Sequence[Tensor], mask: Tensor, k: int, beta: float, points: Sequence[Tensor] | None = None
    ) -> list[PointLogits]:
        """Refine, as described in `Refinement.forward`."""
        answers = []
        for i, (part, feature) in enumerate(zip(self.parts.stages, fused, strict=True)):
            assert isinstance(part, StageRefinement)
            coarse = part.coarse(feature)
            at = draw_points(coarse, feature.shape[3], k, beta) if points is None else points[i]
            coarse_logits = self.sample(coarse, at)
            x = torch.cat((self.sample(feature, at), coarse_logits), dim=2)
            refined = part.fc2(part.drop(F.gelu(part.norm(part.fc1(x)))))
            labels = self.sample(mask, at, "nearest")
            answers.append(PointLogits(refined.squeeze(2), coarse_logits.squeeze(2), labels.squeeze(2)))
        return answers

    @staticmethod
    def sample(values: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
        """Read a map (B, C, h, w) at points (B, P, 2): (B, P, C)."""
        sampled = F.grid_sample(to_full_precision(values), (2 * points - 1)[:, None], mode=mode, align_corners=False)
        return sampled.squeeze(2).transpose(1, 2)


def textbook(network: PRXChange) -> PRXChange:
    """Copy the network into textbook form, NCHW in memory, in the same mode."""
    network = deepcopy(network).to(memory_format=torch.contiguous_format)
    assert isinstance(network.decoder, Decoder)
    deepest = network.decoder.deepest
    if isinstance(deepest.cross, XCross):
        deepest.add_module("cross", TextbookCross(deepest.cross))
    network.decoder.stages = nn.ModuleList(
        TextbookStage(stage) for stage in network.decoder.stages if isinstance(stage, FusionStage)
    )
    if network.refinement is not None:
        network.add_module("refinement", TextbookRefinement(network.refinement))
    network.add_module("head", TextbookHead(network.head))
    return network
