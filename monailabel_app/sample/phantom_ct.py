"""A drawn CT of an abdomen, where no patient's can be had: organs at their places, HU as in a portal-venous phase."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, zoom

__all__ = ["phantom_ct"]

_SHAPE, _SPACING = (192, 144, 40), (2.0, 2.0, 4.0)
_FAT, _MUSCLE, _BONE, _GAS = -100, 55, 330, -900
# class of bundles/amos, HU, centre and half axes: in half widths of the image, to the left, the back and the head
_ORGANS = (
    (6, 112, (-0.42, -0.08, 0.35), (0.45, 0.56, 0.75)),  # liver
    (7, 40, (0.36, -0.38, 0.45), (0.27, 0.32, 0.5)),  # stomach
    (1, 122, (0.64, 0.22, 0.4), (0.17, 0.32, 0.45)),  # spleen
    (10, 92, (0.1, -0.06, 0.0), (0.33, 0.1, 0.22)),  # pancreas
    (2, 185, (-0.42, 0.42, -0.35), (0.16, 0.22, 0.5)),  # right kidney
    (3, 185, (0.42, 0.42, -0.25), (0.16, 0.22, 0.5)),  # left kidney
    (4, 12, (-0.28, -0.5, -0.05), (0.11, 0.15, 0.28)),  # gallbladder
    (9, 150, (-0.13, 0.22, 0.0), (0.075, 0.09, 9.0)),  # postcava
    (8, 200, (0.08, 0.28, 0.0), (0.07, 0.095, 9.0)),  # aorta
)


def phantom_ct(seed: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """One drawn patient.

    Args:
        seed: each has an anatomy and noise of its own.

    Returns:
        the CT in HU, and the organs by the class numbers of the bundle ``amos``.
    """
    random = np.random.RandomState(seed)
    unit = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in _SHAPE), indexing="ij"))
    # a smooth random deformation makes every patient's anatomy his own
    coarse = random.standard_normal((3, 6, 5, 4)) * 0.035
    x, y, z = unit + np.stack([zoom(c, [n / m for n, m in zip(_SHAPE, c.shape)], order=3) for c in coarse])
    x, y = x * 1.12, y * 1.2  # air around the body
    radius = np.sqrt(x**2 + y**2)

    values = np.full(_SHAPE, -1000.0)
    values[radius < 1] = _FAT
    values[radius < 0.93] = _MUSCLE
    values[radius < 0.84] = _FAT  # around the organs
    label = np.zeros(_SHAPE, np.uint8)
    for number, hu, centre, half in _ORGANS:
        moved = np.array(centre) + random.uniform(-0.03, 0.03, 3)
        size = np.array(half) * random.uniform(0.9, 1.1, 3)
        u, v, w = (((a - c) / h) ** 2 for a, c, h in zip((x, y, z), moved, size))
        inside = (u + v + w < 1) & (radius < 0.83)
        values[inside], label[inside] = hu + random.uniform(-8, 8), number
        if number == 7:  # gas lies in front of a supine patient's stomach
            values[inside & (y < moved[1] - 0.55 * size[1])] = _GAS
    spine = (x / 0.16) ** 2 + ((y - 0.56) / 0.2) ** 2 < 1
    canal = (x / 0.07) ** 2 + ((y - 0.66) / 0.07) ** 2 < 1
    values[spine], label[spine] = _BONE, 0
    values[canal] = 20
    values = gaussian_filter(values, (0.6, 0.6, 0.4))
    values += gaussian_filter(random.standard_normal(_SHAPE), (0.7, 0.7, 0)) * 22  # 11 HU
    # voxels run to the left, to the back and to the head
    affine = np.diag([-_SPACING[0], -_SPACING[1], _SPACING[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(_SHAPE) - 1) / 2
    return nib.Nifti1Image(np.rint(values).astype(np.int16), affine), nib.Nifti1Image(label, affine)
