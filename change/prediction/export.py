"""Checkpoints for other programs: `python -m change export CHECKPOINT -o OUT`.

onnx      inputs `before` and `after`, uint8 RGB (B, 3, H, W) of any batch and size; output `probability`, float32
          (B, 1, H, W) of 0 to 1. Normalisation, padding and sigmoid are inside.
deepness  ONNX for the QGIS plugin Deepness: one input (B, 6, S, S) float32 of 0 to 1, the bands of before, then those
          of after; one output (B, 1, S, S); the plugin's settings as the file's metadata.
pth       the weights alone, float32, a plain state dict for `models.network.build_network`.

An ONNX file is run with onnxruntime on a pair of images before it appears under its name, beside PyTorch.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from torch.torch_version import TorchVersion

from change.checkpoint import Checkpoint, load_checkpoint, network_for_prediction, save_tensors
from change.common.errors import OneLineParser, UserError, needed
from change.common.files import shipped_file, write_whole
from change.common.images import read_image
from change.common.logs import start_logging
from change.prediction.folding import Fused
from models.padding import MULTIPLE, normalise

log = logging.getLogger(__name__)

INSTALL = "pip install onnx onnxscript onnxruntime"
FORMATS = ("onnx", "deepness", "pth")
OPSET = 18
SIDES = ("batch", "channels", "height", "width")
OLDEST = "2.9"  # torch whose exporter leaves sizes open; 2.6 does not, those between were not tried
# Of probabilities; half precision was measured to change them by up to 0.002.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}


class AnySize(nn.Module):
    """uint8 RGB (B, 3, H, W) of both dates -> probabilities float32 (B, 1, H, W)."""

    def __init__(self, network: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, checkpoint.mean, checkpoint.std

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """As `models.network.any_size`, in operations whose sizes may stay open."""
        height, width = before.shape[2:]
        padded = [
            normalise(images[:, :, padding(height)][..., padding(width)], self.mean, self.std)
            for images in (before, after)
        ]
        return torch.sigmoid(self.network(*padded))[..., :height, :width]


class Stacked(nn.Module):
    """(B, 6, S, S) of 0 to 1, before's bands then after's, S a multiple of 32 -> probabilities (B, 1, S, S)."""

    def __init__(self, network: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, checkpoint.mean, checkpoint.std

    def forward(self, both: Tensor) -> Tensor:
        """Normalise, predict, to probabilities."""
        before, after = (normalise(both[:, i : i + 3] * 255, self.mean, self.std) for i in (0, 3))
        return torch.sigmoid(self.network(before, after))


def padding(length: int) -> Tensor:
    """The positions that a side of `length` reads when padded at its end to a multiple of 32: reflected, or, where that
    is too short to reflect, the last again."""
    place = torch.arange((length + MULTIPLE - 1) // MULTIPLE * MULTIPLE)
    inside = torch.where(place < length, place, 2 * (length - 1) - place)
    return torch.where(inside < 0, length - 1, inside)


def main(arguments: Sequence[str]) -> int:
    """Parse, load, write; return the exit code."""
    parser = OneLineParser(prog="python -m change export", description="Write a checkpoint for other programs.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="weights: ours or published")
    parser.add_argument("-o", "--out", required=True, type=Path, help="file to write")
    parser.add_argument("--format", default="onnx", choices=FORMATS, help="onnx by default")
    parser.add_argument("--half", action="store_true", help="compute in half precision: half the size, for GPUs")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--pair",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="images for the comparison with PyTorch; default: test_samples",
    )
    parser.add_argument("--tile", type=int, default=512, help="deepness: side of the tiles in pixels (default: 512)")
    parser.add_argument("--overlap", type=int, default=15, help="deepness: of tiles, in percent (default: 15)")
    parser.add_argument("--resolution", type=float, default=50, help="deepness: cm a pixel (default: 50)")
    parser.add_argument(
        "--min_segment", type=int, default=9, help="deepness: smaller segments are dropped, in pixels (default: 9)"
    )
    given = parser.parse_args(arguments)
    start_logging()
    if given.out.exists() and not given.overwrite:
        raise UserError(f"{given.out} is there already: choose another name, or add --overwrite")
    if given.tile < MULTIPLE or given.tile % MULTIPLE:
        raise UserError(f"--tile {given.tile}: choose a multiple of {MULTIPLE}")
    if (given.half or given.pair) and given.format == "pth":
        raise UserError("--half and --pair are for onnx and deepness: --format pth holds float32 weights alone")
    if not 0 <= given.overlap < 100 or not 0 < given.resolution < 1e6 or given.min_segment < 0:
        raise UserError("--overlap is 0 to 99, --resolution above 0, --min_segment 0 or more")
    checkpoint = load_checkpoint(given.checkpoint)
    network, _ = network_for_prediction(checkpoint)
    if given.format == "pth":
        save_tensors({name: tensor.float() for name, tensor in network.state_dict().items()}, given.out)
        log.info("%s: %.1f MB", given.out, given.out.stat().st_size / 1e6)
        return 0
    paths = given.pair or sample_pair()
    pair = [read_image(path) for path in paths]
    if pair[0].shape != pair[1].shape:
        raise UserError(f"--pair {paths[0]} {paths[1]}: give two images of one size")
    dtype = torch.float16 if given.half else torch.float32
    fused = Fused(network, dtype, chunked=False)
    if given.format == "onnx":
        write_onnx(AnySize(fused, checkpoint).eval(), pairs_of_sizes(pair), given.out, TOLERANCE[dtype], {})
    else:
        settings = {
            "model_type": "Segmentor",
            "class_names": {0: "background", 1: "change"},
            "resolution": given.resolution,
            "tiles_size": given.tile,
            "tiles_overlap": given.overlap,
            "seg_thresh": checkpoint.threshold,
            "seg_small_segment": given.min_segment,
            "standardization_mean": [0.0] * 6,
            "standardization_std": [1.0] * 6,
        }
        write_onnx(
            Stacked(fused, checkpoint).eval(), [stacked(pair, given.tile)], given.out, TOLERANCE[dtype], settings
        )
    return 0


def write_onnx(
    module: nn.Module, cases: Sequence[dict[str, Tensor]], out: Path, tolerance: float, settings: dict[str, Any]
) -> None:
    """Export `module`, whose inputs are named as in `cases`, each of which is then run with onnxruntime and compared
    with PyTorch; write the file whole. `settings` become its metadata, as JSON.

    Batch and, where the sizes of `cases` differ, height and width stay open. Raises UserError where a package is
    missing or torch too old, where any output differs by more than `tolerance`, or where the file cannot be written.
    """
    if TorchVersion(torch.__version__) < OLDEST:
        raise UserError(f"torch {torch.__version__} cannot export this network to ONNX: pip install 'torch>={OLDEST}'")
    onnx, runtime, _ = (needed(name, INSTALL) for name in ("onnx", "onnxruntime", "onnxscript"))
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    names, first = list(cases[0]), list(cases[0].values())
    sizes = dict.fromkeys((0, 2, 3) if len(cases) > 1 else (0,), Dim.AUTO)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        # Of two pairs: a batch of one would be taken for the number 1.
        program = torch.onnx.export(
            module,
            tuple(torch.cat((tensor, tensor)) for tensor in first),
            input_names=names,
            output_names=["probability"],
            dynamic_shapes=[sizes] * len(names),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
        )
    assert program is not None
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        for side, name in zip(value.type.tensor_type.shape.dim, SIDES, strict=True):
            if not side.HasField("dim_value"):
                side.dim_param = name  # in place of the exporter's own symbols
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in settings.items()})
    data = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    differences = []
    for case in cases:
        with torch.no_grad():
            expected = module(*case.values()).numpy()
        found = session.run(None, {name: tensor.numpy() for name, tensor in case.items()})[0]
        differences.append(float(np.abs(found - expected).max()))
    worst = max(differences)
    if not worst <= tolerance:
        raise UserError(f"{out} is not written: onnxruntime and PyTorch differ by {worst:.2g}, above {tolerance:.0e}")
    write_whole(out, data)
    log.info("%s: %.1f MB, within %.1e of PyTorch in onnxruntime", out, len(data) / 1e6, worst)


def sample_pair() -> tuple[Path, Path]:
    """The first pair that comes along."""
    before, after = (sorted((shipped_file("test_samples") / date).iterdir())[0] for date in ("A", "B"))
    return before, after


def pairs_of_sizes(pair: Sequence[NDArray[np.uint8]]) -> list[dict[str, Tensor]]:
    """A pair of images, uint8 (H, W, 3), whole, and a piece of it with odd sides, as inputs of `AnySize`. Images that
    are small are repeated: of sides that agree, or need no padding, the exporter would take less than any size."""
    sizes = (max(160, len(pair[0])), max(128, pair[0].shape[1])), (101, 67)
    return [
        {
            name: torch.from_numpy(repeated(image, *size).transpose(2, 0, 1).copy())[None]
            for name, image in zip(("before", "after"), pair, strict=True)
        }
        for size in sizes
    ]


def repeated(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The upper left part of an image (H, W, C), repeated where it ends."""
    return image[np.arange(height) % len(image)][:, np.arange(width) % image.shape[1]]


def stacked(pair: Sequence[NDArray[np.uint8]], side: int) -> dict[str, Tensor]:
    """The upper left square of a pair as the input of `Stacked`, repeated where the images end."""
    both = repeated(np.concatenate(pair, axis=2), side, side)
    return {"both": torch.from_numpy(both.transpose(2, 0, 1).astype(np.float32) / 255)[None]}
