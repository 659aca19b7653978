"""The exchanges between processes: gradients during the backward pass, and batch norms that share their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from change.common import distributed
from models.config import NetworkConfig
from models.network import build_network
from tests.conftest import REPOSITORY, run_program

# A program for three processes, each with other images. `own` is the gradient of one process.
GRADIENTS = """
import copy
import pathlib
from types import SimpleNamespace
import torch
from change.common import distributed
from change.training.trainer import Training
from models.losses import TrainingLoss
from models.config import NetworkConfig
from models.network import build_network

@distributed.join()
def main():
    torch.manual_seed(0)
    loss = TrainingLoss(build_network(NetworkConfig(refine=True)).to(memory_format=torch.channels_last))
    shared, optimizer = distributed.share_gradients(loss), torch.optim.SGD(loss.parameters())
    start = copy.deepcopy(loss.state_dict())
    template = SimpleNamespace(config=NetworkConfig(refine=True))
    Training.rehearse(SimpleNamespace(loss=loss, shared=shared, optimizer=optimizer, template=template))
    assert all(torch.equal(start[name], value) for name, value in loss.state_dict().items())
    assert all(parameter.grad is None for parameter in loss.parameters())

    torch.manual_seed(1 + distributed.rank())
    before, after, mask = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    points = [torch.rand(2, number, 2) for number in (1, 2, 4, 8)]

    def gradient(*last):
        for exchanged in last:
            with distributed.exchange_gradients(shared, exchanged):
                shared(before, after, mask, points)[0].total.backward()
        found = torch.cat([parameter.grad.flatten() for parameter in loss.parameters()]).clone()
        optimizer.zero_grad()
        return found

    own = gradient(False)
    mean = distributed.sum_over_processes(own.double()) / 3
    first, second, two_parts = gradient(True), gradient(True), gradient(False, True)
    assert (own - mean).norm() > 0.1 * mean.norm()
    assert (first - mean).norm() <= 1e-5 * mean.norm()
    assert (two_parts - 2 * mean).norm() <= 1e-5 * mean.norm()
    assert torch.equal(first, second), "the order of the sums has changed"

main()
threads = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads  # such a thread aborts Python if it ends too late
"""


@pytest.mark.slow
def test_gradients_are_shared(tmp_path: Path) -> None:
    """The last micro-batch exchanges them, and the first step has the bits that it would have later in the run."""
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    environment = {"PYTHONPATH": str(REPOSITORY)}
    result = run_program(tmp_path / "gradients.py", processes=3, environment=environment)
    assert result.returncode == 0, result.stderr
    assert "Grad strides" not in result.stderr


def test_one_process_shares_no_gradients() -> None:
    """The module is used as it is, so that nothing changes its names or its calls."""
    module = nn.Conv2d(1, 1, 1)
    assert distributed.share_gradients(module) is module
    with distributed.exchange_gradients(module, last=False):
        torch.autograd.backward(module(torch.ones(1, 1, 1, 1)).sum())
    assert module.bias is not None and module.bias.grad == 1


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_synchronised_batch_norms(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, weights and outputs stay the same, also if a batch norm of timm applies an activation."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbone=backbone, cross=True)).eval()
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in norms.values():
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias)
    activated = {name for name, norm in norms.items() if isinstance(norm, BatchNormAct2d)}
    assert (len(activated) > 0) == (backbone == "efficientnet_lite0")
    before, after = torch.rand(2, 1, 3, 64, 64)
    averaged: list[int] = []

    def count(tensors: Sequence[Tensor], _: object) -> None:
        averaged.append(len(tensors))

    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "exchange_at_once", count)
    with torch.no_grad():
        names, expected = list(network.state_dict()), network(before, after)
        distributed.average_statistics(network)
        distributed.synchronise(network, torch.device("cpu"))
        assert all(network.get_submodule(name) is norm for name, norm in norms.items())
        distributed.synchronise(network, torch.device("cuda"))
        distributed.average_statistics(network)
        assert torch.equal(network(before, after), expected)
    assert list(network.state_dict()) == names and averaged == [2 * len(norms), 0]
    for name, norm in norms.items():
        converted = network.get_submodule(name)
        assert isinstance(converted, nn.SyncBatchNorm) and converted.weight is norm.weight
        assert isinstance(converted, SyncBatchNormAct) == (name in activated)
