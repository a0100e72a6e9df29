"""Pictures: PNG, JPEG, BMP and TIFF. They have pixels and no millimetres, whatever their DPI tag says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .image import Grid, ImageFile, ReadingError, check_size, reason

__all__ = ["open_picture"]

_LOGGER = logging.getLogger(__name__)
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_ORIENTATION, _PHOTOMETRIC = 274, 262  # tags of EXIF and TIFF
_TURNED = (5, 6, 7, 8)  # orientations whose rows are columns
_GREY = ("1", "L", "LA", "La", "I", "F")  # and I;16 in its byte orders
_FEW_BITS = {"L;2": 85, "L;4": 17}  # PIL stretches 2 and 4 bits to 0 to 255, by these factors


def open_picture(path: Path, label: bool = False) -> ImageFile:
    """Read and check the header of a picture.

    Its values are (W, H), or (W, H, 3) for colours: upright by EXIF, without alpha (what is transparent is black). A
    palette of greys is read as grey values. In a label, indices of any other palette are class numbers, 1-bit pixels
    are 0 and 1, and colours that are greys become one channel; other colours are refused.

    Args:
        path: of the file, whose content decides on the format, whatever its suffix.
        label: the values are class numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: naming the file and what is wrong with it.
    """
    with _opened(path) as picture:
        width, height = picture.size
        if _turned(picture):
            width, height = height, width
        channels = 1 if label else _channels(picture)
        notices = ()
        if "16" in _rawmode(picture) and picture.mode in ("L", "LA", "RGB", "RGBA"):
            notices = (f"{path}: it has 16 bits for each colour; only the upper 8 are read.",)
    grid = Grid((width, height), np.diag([-1.0, -1.0, 1.0, 1.0]), channels, placed=False, unit="pixels")
    return ImageFile(grid, partial(_load, path, grid, label), notices)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An open picture whose header has been checked; every error names the file."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            _check_header(path, picture)
            yield picture
    except (ReadingError, FileNotFoundError):
        raise
    except Image.UnidentifiedImageError as err:
        with open(path, "rb") as file:
            dicom = file.read(132)[128:] == b"DICM"
        raise ReadingError(
            f"{path}: its content is DICOM; give it the suffix .dcm."
            if dicom
            else f"{path}: it is not a PNG, JPEG, BMP or TIFF that can be read, or it is damaged."
        ) from err
    except Exception as err:  # PIL raises many kinds: OSError, SyntaxError, struct.error, its own bomb error
        raise ReadingError(f"{path}: it cannot be read as a picture, or only in part: {reason(err)}.") from err


def _check_header(path: Path, picture: Image.Image) -> None:
    check_size(path, picture.size, len(picture.getbands()))
    pixels = picture.width * picture.height
    if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
        raise ReadingError(
            f"{path}: its header gives {picture.width} × {picture.height} pixels; the limit is "
            f"{Image.MAX_IMAGE_PIXELS}. Make it smaller."
        )
    # MPO: a JPEG as phones save it, followed by previews
    pages = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if pages > 1:
        raise ReadingError(f"{path}: it has {pages} pages; save the page to use as a file of its own.")
    if picture.format == "TIFF":
        if picture.mode.startswith("I") and picture.tag_v2.get(_PHOTOMETRIC) == 0:
            raise ReadingError(f"{path}: 0 is white in this 16-bit TIFF; save it with 0 as black.")
        if picture.tag_v2.get(_ORIENTATION) in _TURNED and picture.tile and picture.tile[0][0] == "raw":
            # Pillow 13 decodes the rows of such a file with the length of its columns
            raise ReadingError(
                f"{path}: the orientation tag of this TIFF turns it by 90°; save it upright, without it."
            )


def _turned(picture: Image.Image) -> bool:
    """Whether EXIF says that rows are columns; for a TIFF PIL has turned it already."""
    if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
        return False  # PIL would decode the whole PNG to look for EXIF after the pixels
    return picture.getexif().get(_ORIENTATION) in _TURNED


def _rawmode(picture: Image.Image) -> str:
    """How pixels are stored, in PIL's words: ``RGB;16B``."""
    args = picture.tile[0][3] if picture.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _palette(picture: Image.Image) -> np.ndarray | None:
    """Colours (N, 3) of a palette, uint8."""
    if picture.mode not in ("P", "PA") or picture.palette is None:
        return None
    order, data = picture.palette.getdata()
    entries = np.frombuffer(bytes(data), dtype=np.uint8)
    if order.endswith(";L"):  # TIFF's: all reds, all greens, all blues
        return entries.reshape(3, -1).T
    return entries.reshape(-1, len(order))[:, :3]


def _channels(picture: Image.Image) -> int:
    palette = _palette(picture)
    grey = picture.mode.startswith(_GREY) if palette is None else (palette == palette[:, :1]).all()
    return 1 if grey else 3


def _load(path: Path, grid: Grid, label: bool) -> np.ndarray:
    with _opened(path) as picture:
        if picture.format == "PNG":
            with Image.open(path, formats=_FORMATS) as again:
                again.verify()  # the chunks' checksums, which load() leaves out
        factor, palette = _FEW_BITS.get(_rawmode(picture), 1), _palette(picture)
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        values = _label_values(path, upright, palette, factor) if label else _image_values(path, upright, palette)
    values = values.swapaxes(0, 1)
    if values.shape != (*grid.shape, *([grid.channels] if grid.channels > 1 else [])):
        raise ReadingError(f"{path}: its orientation is not in its header; save it upright, without EXIF.")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _image_values(path: Path, picture: Image.Image, palette: np.ndarray | None) -> np.ndarray:
    """(H, W) or (H, W, 3)."""
    if palette is not None:
        transparent = picture.mode == "PA" or "transparency" in picture.info
        values = _without_alpha(path, np.array(picture.convert("RGBA" if transparent else "RGB")))
        return values[..., 0] if (palette == palette[:, :1]).all() else values
    if picture.mode == "1":
        return np.array(picture.convert("L"))
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    if picture.mode in ("LA", "RGBA"):
        return _without_alpha(path, np.array(picture))
    if picture.mode.startswith(_GREY):
        return np.array(picture)
    return np.array(picture.convert("RGB"))


def _label_values(path: Path, picture: Image.Image, palette: np.ndarray | None, factor: int) -> np.ndarray:
    """(H, W)."""
    if picture.mode == "1":
        return np.array(picture).astype(np.uint8)
    if palette is not None:
        indices = np.array(picture)
        indices = indices[..., 0] if picture.mode == "PA" else indices
        used = np.unique(indices)
        if (palette == palette[:, :1]).all() and used[-1] < len(palette):
            greys = palette[used, 0]
            if len(np.unique(greys)) == len(used):
                return palette[indices, 0]
        return indices
    values = _image_values(path, picture, palette)
    if values.ndim == 3:
        if not (values == values[..., :1]).all():
            raise ReadingError(
                f"{path}: the label is in colour; expected class numbers. Save it as a picture of one channel (or with "
                "a palette) whose values are the numbers of the classes."
            )
        values = values[..., 0]
    return values // factor if factor > 1 else values


def _without_alpha(path: Path, values: np.ndarray) -> np.ndarray:
    """Colours on black: (H, W, 2) → (H, W), (H, W, 4) → (H, W, 3)."""
    if values.shape[-1] == 3:
        return values
    colours, alpha = values[..., :-1], values[..., -1:]
    if (alpha < 255).any():
        _LOGGER.warning(
            "%s: %.1f %% of its pixels are transparent; black is put behind them.", path, (alpha < 255).mean() * 100
        )
        colours = ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
    return colours[..., 0] if colours.shape[-1] == 1 else colours
