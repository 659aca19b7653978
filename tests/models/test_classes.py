"""Networks that tell classes apart: shapes, the head as one layer, the points of refinement, and the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from change.checkpoint import build_apart
from change.prediction.folding import Fused
from models.config import MODELS, NetworkConfig
from models.decoder import Head
from models.losses import TrainingLoss, cross_entropy, dice_loss
from models.network import build_network
from models.refinement import Refinement, draw_points, margins
from tests.textbook import TextbookHead

CONFIG = NetworkConfig(width=32, classes=3)
# Sums of the absolute weights that the version before classes drew for seed 3: of the last layer, and of all.
HEAD, TOTAL = 1.999448537826538, 251951.8979768065


def draw_mask(height: int, width: int) -> torch.Tensor:
    """Draw a mask (2, 1, H, W) of the values 0 to 3."""
    return torch.randint(0, 4, (2, 1, height, width), generator=torch.Generator().manual_seed(5)).float()


@pytest.mark.parametrize("model", MODELS)
def test_every_network_gives_a_logit_per_class(model: str) -> None:
    """The fused form, which predicts, gives the same."""
    network = build_apart(NetworkConfig(width=32, model=model, classes=3)).eval()
    pair = torch.randn(2, 2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = network(*pair)
        assert logits.shape == (2, 4, 64, 96)
        torch.testing.assert_close(Fused(network, portable=True)(*pair), logits, rtol=1e-3, atol=1e-4)


def test_the_head_is_three_layers() -> None:
    torch.manual_seed(0)
    head = Head(64, 4).double()
    fused = torch.randn(2, 64, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(head(fused), TextbookHead(head)(fused))
    shares = [0.7, 0.2, 0.1, 0.0]
    head.start_at_shares(shares)
    torch.nn.init.zeros_(head.out.weight)
    found = torch.softmax(head(fused), dim=1)[0, :, 0, 0]
    assert found.tolist() == pytest.approx(shares, abs=1e-5)


def test_one_class_is_the_binary_network() -> None:
    """It draws the random weights that it drew before there were classes, so a seeded run stays the same."""
    torch.manual_seed(3)
    weights = build_network(NetworkConfig(width=32, refine=True, classes=1)).state_dict()
    assert weights["head.out.weight"].shape[0] == weights["refinement.stages.0.fc2.weight"].shape[0] == 1
    sums = {name: float(tensor.double().abs().sum()) for name, tensor in weights.items()}
    assert sums["head.out.weight"] == pytest.approx(HEAD)
    assert sum(sums.values()) == pytest.approx(TOTAL)
    for classes in (0, 256):
        with pytest.raises(ValueError, match=f"{classes} classes: choose 1 to 255"):
            NetworkConfig(classes=classes)


def test_points_are_drawn_where_two_classes_are_close() -> None:
    """Half of the map is certain: the two highest logits are far apart. All hard points lie in the other half."""
    coarse = torch.zeros(1, 4, 8, 8)
    coarse[:, 1] = 5
    coarse[:, 2, :, :4] = 4.5  # less certain, though both logits are high
    torch.manual_seed(0)
    points = draw_points(coarse, 20, 4, 1.0)
    assert (points[..., 0] < 0.5).all()
    logits = torch.tensor([[[1.0, 3.0, 2.5, -1.0], [0.0, 0.0, -7.0, -9.0]]])
    assert margins(logits).tolist() == [[0.5, 0.0]]


def test_losses() -> None:
    """Compared with loops over the classes in numpy. A class that does not occur in the mask adds no Dice loss."""
    mask = draw_mask(6, 5)
    mask[mask == 2] = 0
    logits = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(2))
    values, shares = mask.numpy().astype(int), logits.double().exp().numpy()
    shares /= shares.sum(1, keepdims=True)
    picked = np.take_along_axis(shares, values, 1)
    assert float(cross_entropy(logits, mask)) == pytest.approx(-np.log(picked).mean())
    dice = []
    for value in (1, 3):
        own, true = shares[:, value], values[:, 0] == value
        dice.append(1 - (2 * (own * true).sum() + 1) / (own.sum() + true.sum() + 1))
    assert float(dice_loss(logits, mask)) == pytest.approx(np.mean(dice))
    assert float(dice_loss(logits, 0 * mask)) == 0
    right = 200 * F.one_hot(mask[:, 0].long(), 4).permute(0, 3, 1, 2).float()
    assert float(dice_loss(right, mask)) == pytest.approx(0, abs=1e-6)


def test_refinement_and_its_loss() -> None:
    """The loss of points is the cross-entropy of the classes in the mask at these points, here computed in numpy."""
    config = NetworkConfig(width=32, classes=3, refine=True)
    loss = TrainingLoss(build_apart(config), l1=2.0, l2=3.0, dice=0.5).eval()
    pair = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = draw_mask(64, 64)
    rng = np.random.default_rng(3)
    pixels = [rng.integers(64, size=(2, 64 // stride, 2)) for stride in (32, 16, 8, 4)]  # columns and rows
    points = [torch.from_numpy((places + 0.5) / 64).float() for places in pixels]
    with torch.no_grad():
        found, logits = loss(*pair, mask, points)
    assert logits.shape == (2, 4, 64, 64)
    assert float(found.total) == pytest.approx(2 * float(found.classification) + 3 * float(found.refinement))
    assert float(found.classification) == pytest.approx(
        float(cross_entropy(logits, mask) + 0.5 * dice_loss(logits, mask))
    )
    assert isinstance(loss.network.refinement, Refinement)
    stages = loss.network.refinement(loss.network.fuse(*pair), mask, 2, 0.75, points)
    assert [stage.refined.shape for stage in stages] == [(2, 64 // stride, 4) for stride in (32, 16, 8, 4)]
    means = []
    for stage, places in zip(stages, pixels, strict=True):
        values = np.stack([mask[i, 0].numpy()[places[i, :, 1], places[i, :, 0]] for i in range(2)]).astype(int)
        assert np.array_equal(stage.labels.numpy(), values)
        shares = np.exp(stage.refined.detach().double().numpy())
        shares /= shares.sum(2, keepdims=True)
        means.append(-np.log(np.take_along_axis(shares, values[..., None], 2)).mean())
    assert float(found.refinement) == pytest.approx(np.mean(means))
