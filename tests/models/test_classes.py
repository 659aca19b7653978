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
    """It draws the same random weights, so a seeded run stays the same."""
    networks = []
    for config in (NetworkConfig(width=32, refine=True), NetworkConfig(width=32, refine=True, classes=1)):
        torch.manual_seed(3)
        networks.append(build_network(config).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert networks[0]["head.out.weight"].shape[0] == 1
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
    """The loss of points is the cross-entropy of the classes in the mask at these points, here all of one class."""
    config = NetworkConfig(width=32, classes=3, refine=True)
    loss = TrainingLoss(build_apart(config), l1=2.0, l2=3.0, dice=0.5).eval()
    pair = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = torch.full((2, 1, 64, 64), 2.0)
    with torch.no_grad():
        found, logits = loss(*pair, mask)
    assert logits.shape == (2, 4, 64, 64)
    assert float(found.total) == pytest.approx(2 * float(found.classification) + 3 * float(found.refinement))
    assert float(found.classification) == pytest.approx(
        float(cross_entropy(logits, mask) + 0.5 * dice_loss(logits, mask))
    )
    assert isinstance(loss.network.refinement, Refinement)
    stages = loss.network.refinement(loss.network.fuse(*pair), mask, 2, 0.75)
    assert [stage.refined.shape for stage in stages] == [(2, 64 // stride, 4) for stride in (32, 16, 8, 4)]
    assert all((stage.labels == 2).all() for stage in stages)
