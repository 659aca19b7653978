"""The values that describe a network. Nothing here needs torch, which takes seconds to import.

Command lines read these values, so that a wrong one is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass

STRIDES = (4, 8, 16, 32)
MULTIPLE = STRIDES[-1]  # the sides of the network's input are multiples of this
TIMM = "timm:"  # the prefix of the names of timm's networks
TIMM_WIDTH = 64
# The encoders by name, and the channels that each gives at stride 4 if no width is chosen. See `models.encoders`.
WIDTHS = {
    "resnet18": 64,
    "resnet34": 64,
    "resnet50": 128,
    "resnet101": 128,
    "efficientnet_lite0": 32,
    "efficientnet_lite1": 32,
    "efficientnet_lite2": 32,
}
ENCODERS = tuple(WIDTHS)
# Published networks to compare with, see `models.rivals`.
RIVALS = ("fc_siam_conc", "fc_siam_diff", "snunet", "bit", "tinycd", "changer", "btc")
MODELS = ("prx", "unet", *RIVALS)
ONE_MAP = ("snunet", "bit", "changer", "btc")  # networks that fuse the dates in one map, of stride 4
NORMS_OVER_PAIRS = ("unet", "fc_siam_conc", "fc_siam_diff", "btc")  # batch norms read their fused map of stride 32
RGB = 3  # channels of the images for which encoders are pretrained
MOST_CHANNELS = 32
MOST_CLASSES = 255  # of change, because masks have 8 bits
PATCHES = (1, 2, 4, 8)  # sides of the patches of X-Cross at stride 4; its map has sides that are multiples of 8


@dataclass(frozen=True)
class NetworkConfig:
    """The values from which a network is built.

    Attributes:
        backbone: the encoder's name, one of `ENCODERS`, or "timm:" and timm's name. The depth of a ResNet, such as 18,
            is accepted too and replaced by the name.
        cross: add X-Cross to every stage of the decoder.
        refine: add the refinement heads, which are used only in training.
        model: "prx", "unet", or one of `RIVALS`. Only "prx" has X-Cross, and those in `ONE_MAP` have no refinement.
        within: let X-Cross attend within each date, as a baseline.
        width: channels of the encoder's and the decoder's maps at stride 4, a multiple of 32; they double with each
            coarser stage. 0 is replaced by the encoder's own, which is 64 for resnet18, as published.
        patch: side of the patches of X-Cross at stride 4, one of `PATCHES`. It halves with each coarser stage, down to
            1. The published network has 4, which is 1, 1, 2, 4 at strides 32, 16, 8, 4.
        in_channels: channels of the images, 1 to `MOST_CHANNELS`; 3 for RGB.
        classes: classes of change, 1 to `MOST_CLASSES`. With 1, the network only tells changed from unchanged.

    Raises:
        ValueError: a value is unknown, or incompatible with the others.
    """

    backbone: str = "resnet18"
    cross: bool = False
    refine: bool = False
    model: str = "prx"
    within: bool = False
    width: int = 0
    patch: int = 4
    in_channels: int = RGB
    classes: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", encoder_name(self.backbone))
        object.__setattr__(self, "width", choose_width(self.backbone, self.width))
        if self.model not in MODELS:
            raise ValueError(f"model {self.model}: choose one of {', '.join(MODELS)}")
        if self.model != "prx" and self.cross:
            raise ValueError(f"model {self.model} has no cross-attention: leave it out")
        if self.model in ONE_MAP and self.refine:
            raise ValueError(f"model {self.model} has no maps of several strides to refine: leave refinement out")
        if self.within and not self.cross:
            raise ValueError("attention within each date is a form of X-Cross: add X-Cross, or leave it out")
        if self.patch not in PATCHES:
            raise ValueError(f"patch {self.patch}: choose one of {', '.join(map(str, PATCHES))}")
        if not 1 <= self.in_channels <= MOST_CHANNELS:
            raise ValueError(f"{self.in_channels} channels: choose 1 to {MOST_CHANNELS}")
        if not 1 <= self.classes <= MOST_CLASSES:
            raise ValueError(f"{self.classes} classes: choose 1 to {MOST_CLASSES}")

    @property
    def outputs(self) -> int:
        """The number of logits per pixel: one, or with several classes one for unchanged and one for each class."""
        return 1 if self.classes == 1 else 1 + self.classes


def encoder_name(value: str | int) -> str:
    """Return the encoder's name. A number, as int or str, is the depth of a ResNet: 18 is "resnet18".

    Raises:
        ValueError: there is no such encoder.
    """
    name = str(value)
    if name.isdigit():
        name = f"resnet{name}"
    if name.startswith(TIMM):
        import timm  # here, because it imports torch

        if not timm.is_model(name.removeprefix(TIMM)):
            raise ValueError(f"backbone {name}: timm has no network of this name, see timm.list_models()")
    elif name not in WIDTHS:
        raise ValueError(f"backbone {value}: choose one of {', '.join(ENCODERS)}, or timm:NAME")
    return name


def choose_width(name: str | int, width: int = 0) -> int:
    """Return the number of channels at stride 4: `width`, or the encoder's own default if that is 0.

    Raises:
        ValueError: there is no such encoder, or the width is not a multiple of 32.
    """
    chosen = width or WIDTHS.get(encoder_name(name), TIMM_WIDTH)
    if chosen < 32 or chosen % 32:
        raise ValueError(f"width {width}: choose a multiple of 32, or 0 for the encoder's own")
    return chosen
