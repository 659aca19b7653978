"""A checkpoint for tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from change.checkpoint import Checkpoint, PassRecord
from change.common.images import image_hash, read_image
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import SMALL, write_pairs


@pytest.fixture
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Save random weights with a normalisation, a threshold, and a record of training on one pair of `write_pairs`.

    Its parameter is the name of the encoder; without it, the network is a small one.
    """
    torch.manual_seed(0)
    values = {"backbone": request.param} if hasattr(request, "param") else SMALL
    config = NetworkConfig(**values, cross=True, refine=True)
    network = build_network(config)
    folder = write_pairs(tmp_path / "trained", 1, seed=7)
    record = PassRecord("refine+cross", images=[image_hash(read_image(folder / "A" / "0.png"))])
    Checkpoint(config, network.state_dict(), [record], mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.1), threshold=0.45).save(
        tmp_path / "net.pth"
    )
    return tmp_path / "net.pth"
