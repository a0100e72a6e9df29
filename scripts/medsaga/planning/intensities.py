"""How intensities are scaled to [0, 1], and in which plane and size slices are used."""

from __future__ import annotations

import re

from .choice import Choices
from .findings import Findings
from .machine import Machine

__all__ = ["choose_input", "choose_intensities"]

# usual windows of CT in HU, the narrowest first; the first only where names mention a brain
_BRAIN = re.compile(r"brain|cerebr|crani|stroke|h(a)?emorrhage|\bich\b", re.I)
_WINDOWS = {
    "brain": (0.0, 80.0),
    "soft tissue": (-160.0, 240.0),
    "lung and soft tissue": (-1000.0, 400.0),
    "bone": (-200.0, 1300.0),
    "all of CT": (-1000.0, 1300.0),
}
_LOW, _HIGH = 0.5, 99.5  # percentiles
_MASKED = 0.3  # share of one value from which an image counts as masked or padded

_STEPS = {"vit_t": (56, 112, 168, 224, 256), "vit_test": (32, 64)}
_VIT_STEPS = (128, 256, 384, 512)
_SPARED = 0.9  # an input this much smaller than the slice loses little
_SMALL = 4  # pixels below which an object is hardly recognised


def choose_intensities(findings: Findings, choices: Choices) -> None:
    """Choose ``intensities``: a window for CT, percentiles for all else."""
    choices.choose("intensities", *_intensities(findings))


def _intensities(found: Findings) -> tuple[dict, str]:
    if found.hu == 1:
        return _window(found)
    lower, upper = _LOW, _HIGH
    reasons = []
    if found.background >= _MASKED:
        # the clipped share refers to the imaged object: 0.5 % of a head, not of the air around it
        rest = 1 - found.background
        lower, upper = round(_LOW * rest, 2), round(100 - (100 - _HIGH) * rest, 2)
        upper = min(upper, 99.99)
        reasons.append(f"{found.background:.0%} of an image has one value (masked or padded), which is not counted")
    if found.hu > 0:
        return (
            {"percentiles": [lower, min(upper, 99.0)], "floor": _WINDOWS["soft tissue"][0]},
            f"{found.hu:.0%} of the images have Hounsfield units and the others do not, so one window cannot fit both. "
            "Air and lung are raised to -160, and then percentiles are taken.",
        )
    if found.inside and found.within(95) > found.percentile(99.5) and upper < 99.9:
        upper = 99.9
        reasons.append("the labelled objects are brighter than nearly all else and must not be clipped")
    several = ", each channel by itself" if found.channels > 1 and not found.colour else ""
    why = (
        "Called CT, but the values are not Hounsfield units"
        if found.modality == "CT"
        else "The values have no fixed scale"
    )
    text = f"{why}, so each image is scaled by its own percentiles{several}" + "".join(f"; {r}" for r in reasons)
    return {"percentiles": [lower, upper], "floor": None}, f"{text}."


def _window(found: Findings) -> tuple[dict, str]:
    text = "The values are Hounsfield units"
    if not found.inside:
        return {"range": list(_WINDOWS["soft tissue"])}, f"{text}: the usual window for soft tissue."
    low, high = found.within(5), found.within(95)
    names = " ".join(one.name for one in found.classes)
    for name, (lowest, highest) in _WINDOWS.items():
        if name == "brain" and not _BRAIN.search(names):
            continue
        if lowest <= low and high <= highest:
            return (
                {"range": [lowest, highest]},
                f"{text}, in the labels mostly {low:.0f} to {high:.0f}: the usual window for {name} holds them.",
            )
    margin = 0.2 * (high - low)
    window = [float(10 * round((low - margin) / 10)), float(10 * round((high + margin) / 10))]
    return {"range": window}, f"{text}, in the labels mostly {low:.0f} to {high:.0f}, with a margin of a fifth."


def choose_input(found: Findings, choices: Choices, machine: Machine) -> None:
    """Choose ``plane``, ``encoder``, ``weights`` and ``image_size``."""
    choices.choose("plane", *_plane(found))
    longer = max(found.rows.median, found.columns.median)
    if machine.gpu and longer > _STEPS["vit_t"][-1]:
        suggested = "vit_b"
        why = f"SAM's ViT-B: slices of {longer:.0f} pixels are more than LiteMedSAM was made for, and there is a GPU."
    else:
        suggested = "vit_t"
        why = "LiteMedSAM's TinyViT: little memory and time, and its weights come with the installation."
        if longer > _STEPS["vit_t"][-1]:
            why += f" With a GPU, `--encoder vit_b` shows more of slices of {longer:.0f} pixels."
    encoder = choices.choose("encoder", suggested, why)
    weights = {"vit_t": "lite_medsam", "vit_test": None}.get(encoder, f"sam_{encoder}")
    said = "No weights are published for it." if weights is None else "The weights published for this encoder"
    if weights not in (None, "lite_medsam"):
        said += "; the training downloads them once. `--weights medsam_vit_b` starts from MedSAM's" * (
            encoder == "vit_b"
        )
    choices.choose("weights", weights, said.rstrip(".") + ".")
    choices.choose("image_size", *_image_size(found, encoder, longer))


def _plane(found: Findings) -> tuple[str | None, str]:
    if not found.volumes:
        return None, "2-D images."
    planes = ", ".join(f"{plane} {number}" for plane, number in sorted(found.planes.items()) if plane != "projection")
    if found.thick:
        return "auto", f"As acquired: {found.thick:.0%} of the volumes have thick slices, in these planes: {planes}."
    return "auto", (
        f"No volume has thick slices ({planes}): they are cut axially, as radiologists look at them. A training of "
        "1,000 steps and more may gain from the overlay all_planes.json."
    )


def _image_size(found: Findings, encoder: str, longer: float) -> tuple[int, str]:
    steps = _STEPS.get(encoder, _VIT_STEPS)
    size = next((step for step in steps if step >= _SPARED * longer), steps[-1])
    least = min(found.classes, key=lambda one: one.diameter)
    small = least.diameter / longer * size
    text = f"Slices have {longer:.0f} pixels on their longer side; this is the "
    if size >= _SPARED * longer:
        text += "smallest size that keeps them"
    else:
        text += f"largest size that is usual for {encoder}"
    text += f"; {least.name} is about {small:.0f} pixels across then"
    if small < _SMALL:
        text += ", and much of it will be missed"
        text += ": a larger --image-size shows more of them, in more time" if size < longer else ""
    return size, f"{text}."
