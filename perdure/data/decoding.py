"""The quick way to the pixels of a JPEG file, for those who ask for `transform: fast`.

torchvision hands out pixels as the decoder wrote them, channels last, which torch resizes without
rearranging them first; pillow's way copies them twice. The decoders are of the same family.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # listing data sets must not import torch
    from PIL.ImageFile import ImageFile
    from torch import Tensor

Transform = Literal["exact", "fast"]
"""How pictures become pixels: as pillow decodes them, or within one level of that in less time"""

TRANSFORMS = get_args(Transform)

_ORIENTATION = 0x0112
"""Number of the EXIF tag"""

_TURNS = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
"""EXIF orientation to whether rows and columns change places, and which run backwards after that"""


def fast_pixels(opened: ImageFile) -> Tensor | None:
    """Decode an opened picture as its camera was held, (3, H, W), uint8, channels last in memory.

    Args:
        opened: By pillow, which has read its header and refused what is too large.

    Returns:
        None for everything but whole JPEG files of 1 or 3 channels. Those pillow must decode, which
        also knows best what is wrong with a file.
    """
    decode, file = jpeg_decoder(), opened.fp
    plain = opened.format == "JPEG" and opened.mode in ("L", "RGB")
    if decode is None or file is None or not plain:
        return None
    file.seek(0)
    try:
        pixels = decode(file.read())
    except RuntimeError:  # damaged
        return None
    across, backwards = _TURNS.get(opened.getexif().get(_ORIENTATION, 1), (False, ()))
    upright = pixels.transpose(1, 2) if across else pixels
    return upright.flip(backwards) if backwards else upright


@lru_cache(maxsize=1)
def jpeg_decoder() -> Callable[[bytes], Tensor] | None:
    """Return what decodes a JPEG file to (3, H, W), uint8, raising RuntimeError where it cannot.

    torchvision's decoder is deprecated since 0.29 and shall move to torchcodec, which takes over
    where torchvision has none. None, with a warning, where neither has one.
    """
    import torch

    try:
        from torchvision.io import decode_jpeg
    except ImportError:
        try:
            from torchcodec.decoders import decode_jpeg
        except (ImportError, RuntimeError):  # the latter where its libraries do not load
            warnings.warn(
                "transform is 'fast', but neither torchvision nor torchcodec decodes JPEG files "
                "here, so pillow does, no faster than with 'exact'.",
                stacklevel=2,
            )
            return None

    def decode(content: bytes) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found: Tensor = decode_jpeg(
                torch.frombuffer(bytearray(content), dtype=torch.uint8), mode="RGB"
            )
        return found

    return decode
