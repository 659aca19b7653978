"""The benchmark of networks: its counts are those of layers counted by hand, and its table has every form."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from change.prediction.folding import Fused
from models.config import NetworkConfig
from models.network import build_network
from tests.benchmark_networks import REFERENCE, count_work, main
from tests.benchmark_rounds import GFLOP


def test_arithmetic() -> None:
    """As torch counts it without X-Cross, whose attention torch does not count on a CPU; else as in the docs."""
    config = NetworkConfig()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        Fused(build_network(config))(*torch.zeros(2, 1, 3, 64, 64))
    gflop, gigabytes = count_work(config, 64)
    assert gflop == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)
    assert 0 < gigabytes < 0.01
    assert count_work(REFERENCE, 256)[0] == pytest.approx(GFLOP[256], rel=0.03)


@pytest.mark.parametrize(("patch", "tokens"), [(4, (4, 16, 16, 16)), (8, (4, 4, 4, 4))])
def test_attention(patch: int, tokens: tuple[int, ...]) -> None:
    """With sides twice as long, attention takes 16 times the arithmetic, gates as much, and everything else 4 times."""
    config = NetworkConfig("efficientnet_lite0", cross=True, patch=patch)
    once, twice, four_times = (count_work(config, size)[0] for size in (64, 128, 256))
    found = four_times - 5 * twice + 4 * once
    products = 2 * 2 * 2  # two dates, two products, a multiplication and an addition
    attention = sum(products * n**2 * channels for n, channels in zip(tokens, (256, 128, 64, 32), strict=True))
    assert found == pytest.approx((256 - 5 * 16 + 4) * attention / 1e9, rel=1e-6)


@pytest.mark.slow
def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sizes", "64", "--rounds", "1", "--no-cross", "--cpu_time"]) == 0
    rates, size, *forms = capsys.readouterr().out.splitlines()
    assert "TFLOP/s" in rates and size.startswith("64: ")
    assert forms[0].split()[0] == "float32" and all("of floor" in form for form in forms)
