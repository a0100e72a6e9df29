"""Methods that are compared on a bundle's data, as overlays of its training."""

from __future__ import annotations

__all__ = ["METHODS", "OF_VOLUMES", "TEACHER_OF"]

# files of bundles/methods by name; the first is the default
METHODS: dict[str, tuple[str, ...]] = {
    "MedSAGa": (),
    "with unlabelled": ("semi.json",),
    "full AdamW": ("full.json",),
    "all planes": ("all_planes.json",),
    "self-training": ("all_planes.json", "self_training.json"),
    "3-D DynUNet": ("dynunet_3d.json",),
}
# for volumes only: the MONAI Label app trains with none of them, and serves no network trained from scratch
OF_VOLUMES = ("all planes", "self-training", "3-D DynUNet")
# the method whose weights a method takes as its teacher
TEACHER_OF = {"self-training": "MedSAGa"}
