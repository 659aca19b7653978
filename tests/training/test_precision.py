"""Precision: what auto means, one path on and off, NVIDIA Apex told apart from its namesake."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
import torch

from change.common.devices import choose_amp, choose_device, exact_float32
from change.common.errors import UserError
from change.training.precision import Precision, algorithms, nvidia_apex

CPU = torch.device("cpu")


@pytest.mark.parametrize(("hardware", "meaning"), [(True, "bf16"), (False, "off")])
def test_auto_on_the_cpu(monkeypatch: pytest.MonkeyPatch, hardware: bool, meaning: str) -> None:
    monkeypatch.setattr("change.common.devices.cpu_has_bf16", lambda: hardware)
    assert choose_amp("auto", CPU) == choose_amp("auto", CPU, training=True) == meaning
    assert choose_amp("fp16", CPU) == "fp16"


@pytest.mark.parametrize(("hardware", "meaning"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, hardware: bool, meaning: str) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: hardware)
    assert choose_amp("auto", torch.device("cuda"), training=True) == meaning
    assert choose_amp("auto", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize("name", ["off", "bf16", "fp16"])
def test_a_step(name: str) -> None:
    """Each precision takes the step of float32, to its own accuracy, and its state loads again."""
    steps = []
    for precision in (Precision("off", CPU), Precision(name, CPU)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        precision.prepare(layer, optimizer)
        with precision.autocast():
            loss = layer(torch.linspace(-1, 1, 64)).float().square().sum()
        precision.backward(loss, optimizer)
        precision.step(optimizer)
        assert layer.weight.grad is None
        steps.append(layer.weight.detach())
        Precision(precision.name, CPU).load_state_dict(precision.state_dict())
    assert torch.allclose(steps[0], steps[1], rtol=0.02, atol=1e-3)
    assert bool(Precision("fp16", CPU).state_dict()) and not Precision("bf16", CPU).state_dict()


def test_a_gradient_that_overflows_in_fp16() -> None:
    """The scaler skips the step and halves its scale; a continued run keeps that scale."""
    precision = Precision("fp16", CPU)
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    weight = layer.weight.detach().clone()

    def overflow() -> None:
        precision.backward((layer(torch.ones(1)) * torch.inf).sum(), optimizer)
        precision.step(optimizer)

    overflow()
    assert torch.equal(layer.weight, weight)
    other = Precision("fp16", CPU)
    before = other.state_dict()["scale"]
    other.load_state_dict(precision.state_dict())
    assert other.state_dict()["scale"] == before / 2
    assert not precision.lost()
    for _ in range(40):
        overflow()
    assert precision.lost()


def settings() -> tuple[object, ...]:
    """The global settings that a training run changes."""
    cudnn = torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled()
    return cudnn.benchmark, cudnn.allow_tf32, deterministic, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize("error", [False, True])
def test_algorithms_are_those_of_a_run_only(monkeypatch: pytest.MonkeyPatch, error: bool) -> None:
    """Deterministic algorithms on request, else the fastest on CUDA; afterwards the settings are the previous ones."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    gpu, before = torch.device("cuda"), settings()
    with contextlib.suppress(KeyError):
        with algorithms(False, Precision("off", gpu)):
            assert settings() == (True, False, False, None)
        with algorithms(False, Precision("bf16", gpu)):
            assert settings() == (True, before[1], False, None)
        with algorithms(False, Precision("bf16", CPU)):
            assert settings()[0] is False
        with algorithms(True, Precision("bf16", gpu)):
            assert settings() == (False, before[1], True, ":4096:8")
            if error:
                raise KeyError
    assert settings() == before


def test_algorithms_that_only_warn_do_so_again() -> None:
    """A host program can allow algorithms that are not deterministic, with a warning."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with algorithms(True, Precision("off", CPU)):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_predicting_in_float32_leaves_tf32_as_it_was() -> None:
    before = torch.backends.cudnn.allow_tf32
    with exact_float32(torch.float32):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with exact_float32(torch.float16):
        assert torch.backends.cudnn.allow_tf32 == before


APEX: dict[str, tuple[list[str], str]] = {
    "none": ([], "is not installed"),
    "another project": (["apex/__init__.py", "apex/models.py"], "is another project, not NVIDIA's"),
    "NVIDIA's without amp": (
        ["apex/__init__.py", "apex/multi_tensor_apply/__init__.py", "apex/optimizers/__init__.py"],
        "no longer has apex.amp",
    ),
    "NVIDIA's with amp": (
        ["apex/__init__.py", "apex/multi_tensor_apply/__init__.py", "apex/amp/__init__.py"],
        "needs a CUDA device",
    ),
}


@pytest.mark.parametrize("kind", APEX)
def test_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Each installation is reported in a line that names bf16 and fp16; the package is not imported to find out."""
    files, meaning = APEX[kind]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"{meaning}.*--amp bf16 or --amp fp16"):
        nvidia_apex(CPU)


def test_apex_takes_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check level O1, scaled loss and state with a stand-in for apex.amp that has its published interface."""
    folder = tmp_path / "apex"
    (folder / "multi_tensor_apply").mkdir(parents=True)
    (folder / "amp").mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "amp" / "__init__.py").write_text(
        "import contextlib\n"
        "said, scale = [], 4.0\n"
        "def initialize(models, optimizers, opt_level, verbosity): said.append(opt_level)\n"
        "@contextlib.contextmanager\n"
        "def scale_loss(loss, optimizers):\n"
        "    yield loss * scale\n"
        "    for group in optimizers.param_groups:\n"
        "        for p in group['params']: p.grad /= scale\n"
        "def state_dict(): return {'loss_scaler0': {'loss_scale': scale}}\n"
        "def load_state_dict(state): said.append(state)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    monkeypatch.setattr("change.training.precision.nvidia_apex", lambda _: nvidia_apex(torch.device("cuda")))
    precision = Precision("apex", CPU)
    layer = torch.nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    precision.prepare(layer, optimizer)
    weight = layer.weight.detach().clone()
    with precision.autocast():
        loss = layer(torch.ones(3)).sum()
    precision.backward(loss, optimizer)
    precision.step(optimizer)
    assert torch.allclose(layer.weight, weight - 1)
    precision.load_state_dict(precision.state_dict())
    import apex.amp

    assert apex.amp.said == ["O1", {"loss_scaler0": {"loss_scale": 4.0}}]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert str(choose_device("auto")) == "cuda"
    assert str(choose_device("1")) == "cuda:1"
    assert str(choose_device("cpu")) == "cpu"
    with pytest.raises(UserError, match="--device 2: torch sees 2 CUDA devices"):
        choose_device("2")
