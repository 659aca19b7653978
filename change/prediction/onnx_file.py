"""Checkpoints as ONNX files and as plain weights: the work of `python -m change export`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from torch.torch_version import TorchVersion

from change.checkpoint import Checkpoint, load_checkpoint, network_for_prediction, save_tensors
from change.common.band_files import read_bands
from change.common.bands import Bands
from change.common.errors import UserError, import_optional
from change.common.files import shipped_file, write_whole
from change.common.images import read_image
from change.prediction.folding import Fused
from change.prediction.predictor import to_probabilities
from change.prediction.threshold import any_change
from models.config import MULTIPLE
from models.padding import normalise

log = logging.getLogger(__name__)

INSTALL = "pip install onnx onnxscript onnxruntime"
SAMPLES = ("test_samples/A/0_0000.jpg", "test_samples/B/0_0000.jpg")
NOISY = ("onnx_ir", "onnxscript")  # packages that log every step
OPSET = 18
OUTPUTS = ["probability", "probabilities"]  # probability of change; probabilities of unchanged and of each class
SIDES = ("batch", "channels", "height", "width")
OLDEST = "2.9"  # oldest torch known to leave sizes open when it exports; 2.6 does not
# Largest difference of probabilities; half precision was measured to change them by up to 0.002.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}


class AnySize(nn.Module):
    """A network with normalisation, padding and sigmoid, for images of any size."""

    def __init__(self, network: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network, self.checkpoint = network, checkpoint

    def forward(self, before: Tensor, after: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Turn uint8 RGB (B, 3, H, W), or float32 levels (B, C, H, W), into probabilities of change.

        Returns:
            Probabilities of change, float32 (B, 1, H, W). If the checkpoint tells K classes apart, also those of
            unchanged and of each class, (B, K + 1, H, W).

        Equivalent to `models.padding.apply_to_any_size`, but in operations that leave the sizes open on export.
        """
        height, width = before.shape[2:]
        padded = [
            self.checkpoint.normalise(images[:, :, padding(height)][..., padding(width)]) for images in (before, after)
        ]
        probability = to_probabilities(self.network(*padded))[..., :height, :width]
        return probability if self.checkpoint.classes is None else (any_change(probability), probability)


class Stacked(nn.Module):
    """A network with normalisation and sigmoid whose input holds both dates."""

    def __init__(self, network: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, checkpoint.mean, checkpoint.std

    def forward(self, both: Tensor) -> Tensor:
        """Turn float32 (B, 6, S, S), 0 to 1, into probabilities (B, 1, S, S).

        The bands of before come first, then those of after; S is a multiple of 32.
        """
        before, after = (normalise(both[:, i : i + 3] * 255, self.mean, self.std) for i in (0, 3))
        return torch.sigmoid(self.network(before, after))


def padding(length: int) -> Tensor:
    """Return, for each position of a side that is padded to a multiple of 32, the original position that it copies.

    `length` is the original length. As in `models.padding.pad_side`, the end is reflected; if the side is too short for
    that, the last position is repeated. The choice is computed with tensors, so that an exported network makes it for
    each size.
    """
    place = torch.arange((length + MULTIPLE - 1) // MULTIPLE * MULTIPLE)
    inside = place < length
    reflected = torch.where(inside, place, 2 * (length - 1) - place)
    repeated = torch.where(inside, place, length - 1)
    return torch.where(reflected.min() >= 0, reflected, repeated)


def write_export(given: argparse.Namespace) -> None:
    """Write the file that the command line asks for. `given`: what `change.prediction.export.parse` returns."""
    samples = [shipped_file(place) for place in SAMPLES] if given.format != "pth" and not given.pair else []
    checkpoint = load_checkpoint(given.checkpoint)
    if checkpoint.classes is not None and given.format == "deepness":
        raise UserError(
            f"--format deepness is for networks without classes, and {given.checkpoint} tells apart "
            f"{checkpoint.classes.described()}: choose onnx"
        )
    pair = [] if given.format == "pth" else read_pair(given, samples, checkpoint.bands)
    network, _ = network_for_prediction(checkpoint)
    if given.format == "pth":
        save_tensors({name: tensor.float() for name, tensor in network.state_dict().items()}, given.out)
        log.info("%s: %.1f MB", given.out, given.out.stat().st_size / 1e6)
        return
    dtype = torch.float16 if given.half else torch.float32
    fused = Fused(network, dtype, portable=True)
    if given.format == "onnx":
        module: nn.Module = AnySize(fused, checkpoint)
        classes = checkpoint.classes
        cases: list[dict[str, Tensor]] = pairs_of_sizes(pair)
        metadata: dict[str, Any] = {}
        if classes is not None:
            metadata = {"classes": classes.names, "threshold": checkpoint.threshold}
    else:
        assert given.format == "deepness", given.format
        module = Stacked(fused, checkpoint)
        cases, metadata = [stack_dates(pair, given.tile)], deepness_metadata(given, checkpoint.threshold)
    write_onnx(module.eval(), cases, given.out, tolerance=TOLERANCE[dtype], metadata=metadata)


def deepness_metadata(given: argparse.Namespace, threshold: float) -> dict[str, Any]:
    """Return the settings of the plugin Deepness, under its own names."""
    return {
        "model_type": "Segmentor",
        "class_names": {0: "background", 1: "change"},
        "resolution": given.resolution,
        "tiles_size": given.tile,
        "tiles_overlap": given.overlap,
        "seg_thresh": threshold,
        "seg_small_segment": given.min_segment,
        "standardization_mean": [0.0] * 6,
        "standardization_std": [1.0] * 6,
    }


def write_onnx(
    module: nn.Module, cases: Sequence[dict[str, Tensor]], out: Path, *, tolerance: float, metadata: Mapping[str, Any]
) -> None:
    """Export a module to an ONNX file, after a comparison of onnxruntime with PyTorch.

    The batch size stays open; height and width stay open if there are several cases.

    Args:
        module: has the outputs `OUTPUTS`, or only the first, (B, O, H, W) each.
        cases: inputs by name, which are run in both and compared.
        out: file to write.
        tolerance: largest difference of the outputs.
        metadata: values that are stored in the file as JSON.

    Raises:
        UserError: if a package is missing, torch is too old, an output is not finite or differs by more than
            `tolerance`, or the file cannot be written.
    """
    if TorchVersion(torch.__version__) < OLDEST:
        raise UserError(f"torch {torch.__version__} cannot export this network to ONNX: pip install 'torch>={OLDEST}'")
    onnx, runtime, _ = (import_optional(name, INSTALL) for name in ("onnx", "onnxruntime", "onnxscript"))
    log.info("step 1 of 2: converting the network, which can take a minute or two")
    model = export_model(module, cases)
    # The exporter writes the newest version, which older runtimes refuse, among them that of the plugin Deepness.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    data = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for number, case in enumerate(cases, start=1):
        log.info("step 2 of 2: comparing onnxruntime with PyTorch, input %d of %d", number, len(cases))
        with torch.no_grad():
            expected = [output.numpy() for output in as_tuple(module(*case.values()))]
        found = session.run(None, {name: tensor.numpy() for name, tensor in case.items()})
        for program, outputs in (("PyTorch", expected), ("onnxruntime", found)):
            if not all(np.isfinite(values).all() for values in outputs):
                raise UserError(
                    f"{out} is not written: the network gives no finite probability in {program} for the compared "
                    "pair (--pair): leave out --half, or choose other weights"
                )
        worst = max(worst, *(float(np.abs(ours - own).max()) for ours, own in zip(found, expected, strict=True)))
    if not worst <= tolerance:
        raise UserError(f"{out} is not written: onnxruntime and PyTorch differ by {worst:.2g}, above {tolerance:.0e}")
    write_whole(out, data)
    log.info("%s: %.1f MB, within %.1e of PyTorch in onnxruntime", out, len(data) / 1e6, worst)


def export_model(module: nn.Module, cases: Sequence[dict[str, Tensor]]) -> Any:
    """Return a module as an ONNX model; arguments as in `write_onnx`."""
    first = cases[0]
    sizes = dict.fromkeys((0, 2, 3) if len(cases) > 1 else (0,), Dim.AUTO)
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            module,
            # Two pairs, because the exporter takes a batch size of 1 as fixed.
            tuple(torch.cat((tensor, tensor)) for tensor in first.values()),
            input_names=list(first),
            output_names=OUTPUTS[: len(as_tuple(module(*first.values())))],
            dynamic_shapes=[sizes] * len(first),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
        )
    assert program is not None
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        for side, name in zip(value.type.tensor_type.shape.dim, SIDES, strict=True):
            if not side.HasField("dim_value"):
                side.dim_param = name  # in place of the exporter's symbol
    return model


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a module as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the warnings and messages of the exporter about itself inside this context."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def read_pair(given: argparse.Namespace, samples: Sequence[Path], bands: Bands | None) -> list[NDArray[Any]]:
    """Read the pair of the command line, or `samples`: before and after, uint8 RGB or float32 levels (H, W, C).

    Raises UserError if they are missing, cannot be read or differ in size, or if the format is only for RGB.
    """
    paths = given.pair or samples
    if bands is None:
        pair = [read_image(path) for path in paths]
    elif given.format == "deepness":
        raise UserError(f"--format deepness is for RGB, and {given.checkpoint} reads {bands.described()}: choose onnx")
    elif not given.pair:
        raise UserError(f"{given.checkpoint} reads {bands.described()}: give --pair, two files with these bands")
    else:
        pair = [read_bands(path, bands)[0].astype(np.float32) for path in paths]
    if pair[0].shape != pair[1].shape:
        raise UserError(f"--pair {paths[0]} {paths[1]}: give two images of the same size")
    return pair


def pairs_of_sizes(pair: Sequence[NDArray[Any]]) -> list[dict[str, Tensor]]:
    """Return two inputs of `AnySize`: a whole pair of images (H, W, C), and a part of it with odd sides.

    Small images are repeated. The exporter would not leave all sizes open if sides were equal or needed no padding.
    """
    whole = max(160, pair[0].shape[0]), max(128, pair[0].shape[1])
    return [
        {
            name: torch.from_numpy(repeat_to_size(image, height, width).transpose(2, 0, 1).copy())[None]
            for name, image in zip(("before", "after"), pair, strict=True)
        }
        for height, width in (whole, (101, 67))
    ]


def repeat_to_size(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return the upper left (height, width, C) of an image (H, W, C), which is repeated if it is smaller."""
    rows, columns = np.arange(height) % len(image), np.arange(width) % image.shape[1]
    return np.asarray(image[rows][:, columns])


def stack_dates(pair: Sequence[NDArray[np.uint8]], side: int) -> dict[str, Tensor]:
    """Return the upper left square of a pair as the input of `Stacked`; small images are repeated."""
    both = repeat_to_size(np.concatenate(pair, axis=2), side, side)
    return {"both": torch.from_numpy(both.transpose(2, 0, 1).astype(np.float32) / 255)[None]}
