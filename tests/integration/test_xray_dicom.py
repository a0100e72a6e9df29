"""The X-ray bundle on DICOM files: MONOCHROME1 and 2, a file and a folder, the mask back as PNG and as DICOM SEG."""

from __future__ import annotations

import importlib.util

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from .bundles import fails, run
from .dicom.series import write_xray

pytestmark = pytest.mark.integration

CLASSES = ["right lung", "left lung", "heart"]
LEVELS = 1000  # between the brightness of one class and the next


class ByBrightness(torch.nn.Module):
    """A stand-in network: the class is what the preprocessed brightness says, 0 to 1 in equal steps."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(b, 1, S, S) → logits (b, 4, S, S)."""
        numbers = torch.arange(4, device=image.device).view(1, 4, 1, 1)
        return -((3 * image[:, :1] - numbers) ** 2)


class Nothing(torch.nn.Module):
    """Background everywhere."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.eye(4, device=image.device)[0].view(1, 4, 1, 1).expand(len(image), 4, *image.shape[2:])


def drawn(shift: int = 0) -> np.ndarray:
    """Class numbers by column and row, without any symmetry."""
    label = np.zeros((64, 48), np.uint8)
    label[5:20, 8 + shift : 30], label[40:56, 10:33], label[24:36, 20:44] = 1, 2, 3
    return label


def write(folder, label, inverted, name="x"):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(0).randint(-40, 40, label.shape)
    (path,) = write_xray(folder, LEVELS * (label.astype(int) + 1) + noise, "DX", name, inverted).files
    return path


def options(image, work, extension, network="ByBrightness"):
    return {
        "network_def": {"_target_": f"{__name__}.{network}"},
        "initialize": ["$medsaga.bundle.show_root_cause()"],
        "image_size": 64,
        "dataset_dir": str(image),
        "output_dir": str(work),
        "output_ext": extension,
    }


def segment(image, work, extension):
    """Files that ``inference.json`` writes."""
    run("evaluating", "chest_xray", "inference", **options(image, work, extension))
    return sorted(path for path in work.iterdir() if path.suffix == extension)


def mask_of(path):
    """Class numbers by column and row, by PIL or pydicom alone."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture).T
    seg = pydicom.dcmread(path)
    found = np.zeros((seg.Columns, seg.Rows), np.uint8)
    names = {s.SegmentNumber: s.SegmentLabel for s in seg.SegmentSequence}
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence):
        name = names[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        found[frame.T > 0] = 1 + CLASSES.index(name)
    return found


def needs(extension):
    if extension == ".dcm" and importlib.util.find_spec("highdicom") is None:
        pytest.skip("highdicom is not installed (pip install medsaga[label])")


@pytest.mark.parametrize("extension", [".png", ".dcm"])
@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_mask_lies_on_its_xray_pixel_by_pixel(tmp_path, named, inverted, extension):
    needs(extension)
    path = write(tmp_path / "xray", drawn(), inverted)
    (written,) = segment(path if named == "file" else path.parent, tmp_path / "masks", extension)
    np.testing.assert_array_equal(mask_of(written), drawn())
    if extension == ".dcm":
        seg, image = pydicom.dcmread(written), pydicom.dcmread(path)
        assert (seg.StudyInstanceUID, seg.PatientID) == (image.StudyInstanceUID, image.PatientID)
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID


@pytest.mark.parametrize("extension", [".png", ".dcm"])
def test_several_xrays_in_a_folder_have_a_mask_each(tmp_path, extension):
    needs(extension)
    labels = {}
    for shift, inverted in enumerate([False, True, True]):
        path = write(tmp_path / "xrays", drawn(shift), inverted, f"p{shift}")
        image = pydicom.dcmread(path)
        labels[image.SeriesInstanceUID], labels[path.stem] = drawn(shift), drawn(shift)
    written = segment(tmp_path / "xrays", tmp_path / "masks", extension)
    assert len(written) == 3
    for file in written:
        (label,) = (label for name, label in labels.items() if file.name.startswith(f"{name}_"))
        np.testing.assert_array_equal(mask_of(file), label)


def test_a_picture_has_no_series_for_a_seg(tmp_path):
    Image.fromarray((60 * drawn()).T).save(tmp_path / "xray.png")
    message = fails("evaluating", "chest_xray", "inference", **options(tmp_path / "xray.png", tmp_path / "out", ".dcm"))
    assert "xray.png: it is not DICOM" in message and ".nii.gz" in message


def test_nothing_segmented_is_no_seg(tmp_path):
    needs(".dcm")
    path = write(tmp_path / "xray", drawn(), False)
    nothing = options(path, tmp_path / "out", ".dcm", network="Nothing")
    message = fails("evaluating", "chest_xray", "inference", **nothing)
    assert path.name in message and "no voxel is segmented" in message
