"""The rival decoders by the names that `--model` accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.rivals.bit import BIT
from models.rivals.btc import BTC
from models.rivals.changer import Changer
from models.rivals.fc_siam import FCSiamConc, FCSiamDiff
from models.rivals.parts import Rival
from models.rivals.snunet import SNUNet
from models.rivals.tinycd import TinyCD

# In the order of `models.config.RIVALS`.
BUILDERS: dict[str, Callable[[Sequence[int]], Rival]] = {
    "fc_siam_conc": FCSiamConc,
    "fc_siam_diff": FCSiamDiff,
    "snunet": SNUNet,
    "bit": BIT,
    "tinycd": TinyCD,
    "changer": Changer,
    "btc": BTC,
}


def build_rival(name: str, encoder_channels: Sequence[int]) -> Rival:
    """Build a rival's decoder with random weights.

    Args:
        name: one of `models.config.RIVALS`.
        encoder_channels: the encoder's channels at strides 4, 8, 16, 32, each a multiple of 32.
    """
    return BUILDERS[name](encoder_channels)
