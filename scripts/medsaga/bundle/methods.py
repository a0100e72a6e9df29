"""Methods that are compared on a bundle's data, as overlays of its training."""

from __future__ import annotations

__all__ = ["METHODS", "VOLUMES_ONLY"]

# files of bundles/methods by name; the first is the default
METHODS: dict[str, tuple[str, ...]] = {
    "MedSAGa": (),
    "with unlabelled": ("semi.json",),
    "full AdamW": ("full.json",),
    "3-D DynUNet": ("dynunet_3d.json",),
}
VOLUMES_ONLY = "3-D DynUNet"  # no SAM network: it takes no 2-D images and no prompts
