"""What users can get wrong: each is reported in one line, with exit code 2, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from change.checkpoint import Checkpoint
from models.config import NetworkConfig
from models.network import build_network
from tests.common.test_locks import hold_elsewhere
from tests.conftest import SMALL, last_line, run_program, run_verb, train_arguments, write_pairs

pytestmark = pytest.mark.slow


def refused(result: subprocess.CompletedProcess[str], *parts: object) -> None:
    """Check for exit code 2 and one line with all of `parts`, without traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    line = last_line(result)
    assert line.startswith("error: "), result.stderr
    for part in parts:
        assert str(part) in line


def save_network(path: Path, config: NetworkConfig) -> Path:
    """Write a checkpoint with random weights."""
    Checkpoint(config, build_network(config).state_dict()).save(path)
    return path


def resume_arguments(root: Path, save_path: Path) -> list[str]:
    """Return arguments of a run that starts from a checkpoint, which takes the place of --pretrained."""
    arguments = train_arguments(root, save_path)
    return [*(argument for argument in arguments if not argument.startswith("--pretrained")), "--resume"]


def cut(path: Path, share: float) -> None:
    """Keep only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


# --- the data ------------------------------------------------------------------------------------------------------

# Faults: how a data folder is spoilt, and what the error must name.
FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing root": (lambda d: d.rename(d.with_name("elsewhere")), ("no folder", "data")),
    "missing split": (lambda d: shutil.rmtree(d / "val"), ("no folder", "val/A")),
    "missing label folder": (lambda d: shutil.rmtree(d / "train" / "label"), ("no folder", "train/label")),
    "missing partner": (lambda d: (d / "train" / "B" / "3.png").rename(d / "3.png"), ("no file for 3 in B",)),
    "empty split": (lambda d: [f.rename(f"{f}.txt") for f in (d / "val").rglob("*.png")], ("val holds no pairs",)),
    "0-byte image": (lambda d: cut(d / "train" / "A" / "2.png", 0), ("A/2.png", "no readable image header")),
    "truncated image": (lambda d: cut(d / "train" / "A" / "2.png", 0.5), ("A/2.png", "cannot be decoded")),
    "truncated val mask": (lambda d: cut(d / "val" / "label" / "1.png", 0.5), ("label/1.png", "cannot be decoded")),
    "sizes that differ": (
        lambda d: PIL.Image.new("RGB", (64, 96)).save(d / "train" / "B" / "4.png"),
        ("sizes differ", "A/4.png 96x64", "B/4.png 64x96"),
    ),
    "16-bit image": (
        lambda d: cv2.imwrite(str(d / "train" / "A" / "1.png"), np.full((64, 96, 3), 30000, np.uint16)),
        ("A/1.png", "16 bit", "convert it to 8-bit RGB"),
    ),
    "16-bit grey image": (
        lambda d: PIL.Image.fromarray(np.full((64, 96), 30000, np.uint16)).save(d / "train" / "A" / "1.png"),
        ("A/1.png", "16 bit", "convert it to 8-bit RGB"),
    ),
    "mask in colour": (
        lambda d: PIL.Image.new("RGB", (96, 64), (0, 0, 255)).save(d / "train" / "label" / "0.png"),
        ("label/0.png", "mask in colour"),
    ),
    "0/1 mask among 0/255": (
        lambda d: PIL.Image.new("L", (96, 64), 1).save(d / "train" / "label" / "4.png"),
        ("label/4.png", "would be read as unchanged"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_data(dataset: Path, tmp_path: Path, fault: str) -> None:
    spoil, parts = FAULTS[fault]
    spoil(dataset)
    refused(run_program("train.py", *train_arguments(dataset, tmp_path / "run", workers=1)), *parts)
    assert not (tmp_path / "run" / "1.pth").exists()


def test_the_same_command_after_a_fault(dataset: Path, tmp_path: Path) -> None:
    """What a run leaves behind that ended before its first step is no run that must be kept."""
    image = dataset / "train" / "A" / "2.png"
    content = image.read_bytes()
    cut(image, 0.5)
    arguments = train_arguments(dataset, tmp_path / "run", epoch=1)
    refused(run_program("train.py", *arguments), "A/2.png", "cannot be decoded")
    assert (tmp_path / "run" / "1.state.pth").exists() and not (tmp_path / "run" / "1.pth").exists()
    image.write_bytes(content)
    result = run_program("train.py", *arguments, "--seed=7")
    assert result.returncode == 0, result.stderr
    (row,) = (tmp_path / "run" / "1.epochs.jsonl").read_text().splitlines()
    scores = json.loads(row)["val"]
    shown = ", ".join(f"{name} {'-' if value is None else f'{100 * value:.2f}'}" for name, value in scores.items())
    assert f"epoch 1/1, val in percent: {shown}\n" in result.stderr
    assert f"done: best val F1 {100 * scores['f1']:.2f}% in epoch 1, " in last_line(result)
    refused(run_program("train.py", *arguments), "holds a run named 1")


def test_other_images_are_read(dataset: Path, tmp_path: Path) -> None:
    """RGBA, palette and grey images and a 16-bit mask are accepted."""
    folder = dataset / "train"
    for index, mode in enumerate(("RGBA", "P", "L", "LA")):
        with PIL.Image.open(folder / "A" / f"{index}.png") as image:
            converted = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
        converted.save(folder / "A" / f"{index}.png")
    levels = np.asarray(PIL.Image.open(folder / "label" / "0.png")).astype(np.uint16) * 257
    PIL.Image.fromarray(levels).save(folder / "label" / "0.png")
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", epoch=1))
    assert result.returncode == 0, result.stderr


def test_test_data(dataset: Path, tmp_path: Path) -> None:
    checkpoint = save_network(tmp_path / "net.pth", NetworkConfig(**SMALL))
    arguments = [f"--checkpoint_path={checkpoint}", "--device=cpu", f"--save_path={tmp_path / 'out'}"]
    refused(run_program("test.py", f"--test_root={dataset}", *arguments), "did you mean", dataset / "train")
    cut(dataset / "val" / "A" / "1.png", 0.7)
    refused(run_program("test.py", f"--test_root={dataset / 'val'}", *arguments), "A/1.png", "cannot be decoded")
    shutil.rmtree(dataset / "train" / "label")
    unlabelled = run_program("test.py", f"--test_root={dataset / 'train'}", "--save_iou_map", *arguments)
    refused(unlabelled, "--save_iou_map needs masks")
    assert not (tmp_path / "out").exists()


# --- options -------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[list[str], tuple[str, ...]]] = [
    (["--cross=maybe"], ("--cross", "'maybe' is neither True nor False")),
    (["--backbone=20"], ("--backbone", "resnet18, resnet34, resnet50, resnet101")),
    (["--cropsize=128"], ("crop 128 is larger than", "choose a smaller --cropsize")),
    (["--cropsize=50"], ("--cropsize 50", "multiple of 32")),
    (["--color_setting=0.2"], ("--color_setting", "four numbers")),
    (["--color_setting=nan 0 0 0"], ("--color_setting", "0 or more")),
    (["--epoch=0"], ("--epoch 0",)),
    (["--lr=inf"], ("--lr inf", "finite")),
    (["--epochs=3"], ("unrecognized arguments: --epochs=3",)),
    (["--resume"], ("--resume needs --checkpoint_path",)),
    (["--checkpoint_path=1.pth"], ("without --resume",)),
    (["--checkpoint_path=nowhere.pth"], ("no checkpoint at nowhere.pth",)),  # with --resume
    (["--resume", "--checkpoint_path=1.pth"], ("--pretrained does nothing with --resume",)),
    (["--pretrained=nowhere.pth"], ("no checkpoint at nowhere.pth",)),
    (["--list=nowhere"], ("no list nowhere/train.txt",)),
    (["--continue_run=nowhere"], ("--continue_run nowhere", "there is no run to continue")),
    (["--device=tpu"], ("--device tpu", "choose auto, cpu, cuda")),
    (["--amp=apex"], ("--amp apex", "bf16", "fp16")),
]


@pytest.mark.parametrize(("wrong", "parts"), OPTIONS, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_options(dataset: Path, tmp_path: Path, wrong: list[str], parts: tuple[str, ...]) -> None:
    resumes = "--checkpoint_path=nowhere.pth" in wrong
    arguments = (resume_arguments if resumes else train_arguments)(dataset, tmp_path / "run")
    refused(run_program("train.py", *arguments, *wrong), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "0"])
def test_no_cuda(dataset: Path, tmp_path: Path, device: str) -> None:
    result = run_program("train.py", *train_arguments(dataset, tmp_path / "run", device=device))
    refused(result, f"--device {device}", "no CUDA device", "cpu")


# --- checkpoints ---------------------------------------------------------------------------------------------------


class Payload:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_pickle_that_runs_code(dataset: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"weights": Payload(mark)}))
    torch.save({"weights": Payload(mark)}, tmp_path / "zip.pth")
    for name in ("plain.pth", "zip.pth"):
        for program, flags in (
            ("test.py", [f"--test_root={dataset / 'val'}", "--device=cpu"]),
            ("train.py", resume_arguments(dataset, tmp_path / "run")),
        ):
            result = run_program(program, *flags, f"--checkpoint_path={tmp_path / name}")
            refused(result, name, "could run code")
    assert not mark.exists()


def test_other_checkpoints(dataset: Path, tmp_path: Path) -> None:
    """Refuse those of a later pass, another backbone or another network, cut-off files, and other files."""
    arguments = resume_arguments(dataset, tmp_path / "run")

    def start_from(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return run_program("train.py", *arguments, f"--checkpoint_path={path}", *more)

    crossed = save_network(tmp_path / "cross.pth", NetworkConfig(**SMALL, cross=True))
    refused(start_from(crossed), "cross.pth", "comes from a cross pass, this is a base pass")
    refused(
        start_from(crossed, "--refine", "--cross", "--backbone=34"),
        "holds the encoder timm:lcnet_050",
        "--backbone resnet34",
    )

    network = build_network(NetworkConfig(**SMALL))
    lacking = {name: weight for name, weight in network.state_dict().items() if name != "head.out.bias"}
    Checkpoint(NetworkConfig(**SMALL), {**lacking, "surplus": torch.zeros(1)}).save(tmp_path / "lacking.pth")
    refused(start_from(tmp_path / "lacking.pth"), "missing head.out.bias", "unexpected surplus")
    Checkpoint(NetworkConfig(**SMALL), {**lacking, "head.out.bias": torch.zeros(2)}).save(tmp_path / "shape.pth")
    refused(start_from(tmp_path / "shape.pth"), "other shapes: head.out.bias (2,) for (1,)")

    cut(crossed, 0.6)
    refused(start_from(crossed), "cross.pth", "damaged")
    refused(start_from(dataset / "val" / "A" / "0.png"), "0.png", "is no checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(start_from(tmp_path / "list.pth"), "holds a list")
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "strange.pth")
    refused(start_from(tmp_path / "strange.pth"), "no PRX-Change network", "some.weight")


# --- the disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(dataset: Path, tiny_disk: Path) -> None:
    """Without room for a state, and without any room: what was there stays, and no partial file is left."""
    (tiny_disk / "precious").write_bytes(b"x" * 1000)
    arguments = train_arguments(dataset, tiny_disk / "run")
    refused(run_program("train.py", *arguments), "cannot write", "1.state.pth", "No space left on device")
    assert not list(tiny_disk.rglob("*.part")) and not list(tiny_disk.rglob("*.pth"))
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"x" * 4096)
    refused(run_program("train.py", *arguments), "No space left on device")
    checkpoint = save_network(dataset / "net.pth", NetworkConfig(**SMALL))
    flags = [f"--test_root={dataset / 'val'}", f"--checkpoint_path={checkpoint}", "--device=cpu", "--save_result"]
    refused(run_program("test.py", *flags, f"--save_path={tiny_disk / 'out'}"), "No space left on device")
    assert (tiny_disk / "precious").read_bytes() == b"x" * 1000


def test_save_path_below_a_file(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    refused(run_program("train.py", *train_arguments(dataset, file / "run")), "cannot make the folder", file)
    assert file.read_text() == "precious"


def test_existing_run_is_kept(dataset: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "other", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1.pth").write_text("precious")
    refused(run_program("train.py", *train_arguments(dataset, tmp_path / "run")), "holds a run named 1")
    assert (tmp_path / "run" / "1.pth").read_text() == "precious"


# --- a folder in use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["train", "continue", "test", "predict"])
def test_a_folder_in_use(dataset: Path, tmp_path: Path, program: str) -> None:
    """Another process writes there: nothing is read or changed, and the line names the folder."""
    out = tmp_path / "out"
    holder, _ = hold_elsewhere(out, program == "predict")
    try:
        if program == "train":
            result, option = run_program("train.py", *train_arguments(dataset, out)), "--save_path"
        elif program == "continue":
            result, option = run_program("train.py", f"--continue_run={out}"), "--save_path"
        elif program == "test":
            checkpoint = save_network(dataset / "net.pth", NetworkConfig(**SMALL))
            given = [f"--test_root={dataset / 'val'}", f"--checkpoint_path={checkpoint}", "--device=cpu"]
            result, option = run_program("test.py", *given, f"--save_path={out}"), "--save_path"
        else:
            images = [dataset / "val" / date / "0.png" for date in "AB"]
            result, option = run_verb("predict", *images, "-o", out), "-o"
        refused(result, f"{out} is in use by another run: wait until it has ended, or choose another {option}")
        assert [path.name for path in tmp_path.glob("*out/*")] == ([] if program == "predict" else [".lock"])
    finally:
        holder.communicate("")
    assert not out.exists()
