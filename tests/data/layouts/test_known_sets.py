"""Folders as public data sets are downloaded, with a few small files under their names."""

from __future__ import annotations

import pytest

L, M = (1,), (1, 2, 3)


def product(pattern, cases, files):
    return {pattern.format(c=case, k=kind): values for case in cases for kind, values in files.items()}


SETS = {
    "ACDC": (
        product(
            "training/patient{c:03}/patient{c:03}_{k}.nii.gz",
            (1, 2, 3),
            {"4d": (), "frame01": (), "frame01_gt": M, "frame12": (), "frame12_gt": M},
        ),
        "training/{patient}/{case}",
        "training/{patient}/{case}_gt",
        (6, 3),
    ),
    "CAMUS": (
        product(
            "patient{c:04}/patient{c:04}_{k}.nii.gz",
            (1, 2, 3),
            {"2CH_ED": (), "2CH_ED_gt": M, "4CH_ED": (), "4CH_ED_gt": M, "2CH_half_sequence": ()},
        ),
        "{patient}/{case}",
        "{patient}/{case}_gt",
        (6, 3),
    ),
    "LiTS": (
        {**{f"part1/volume-{i}.nii": () for i in range(12)}, **{f"seg/segmentation-{i}.nii": M for i in range(12)}},
        "part1/volume-{case}",
        "seg/segmentation-{case}",
        (12, 12),
    ),
    "PH2": (
        {f"IMD{i:03}/IMD{i:03}_Dermoscopic_Image/IMD{i:03}.bmp": () for i in (2, 3, 4)}
        | {f"IMD{i:03}/IMD{i:03}_lesion/IMD{i:03}_lesion.bmp": L for i in (2, 3, 4)},
        "{case}/{case}_Dermoscopic_Image/{case}",
        "{case}/{case}_lesion/{case}_lesion",
        (3, 3),
    ),
    "Montgomery": (
        {f"CXR_png/MC_{i:04}_0.png": () for i in range(4)}
        | {f"ManualMask/{side}Mask/MC_{i:04}_0.png": L for i in range(4) for side in ("left", "right")},
        "CXR_png/{case}",
        ["ManualMask/leftMask/{case}", "ManualMask/rightMask/{case}"],
        (4, 4),
    ),
    "TN3K": (
        {
            f"{s}-{k}/{i:04}.jpg": v
            for s in ("trainval", "test")
            for i in range(4)
            for k, v in (("image", ()), ("mask", L))
        },
        None,
        None,
        (8, 8),
    ),
    "ISIC, all parts": (
        {f"ISIC2018_Task1-2_{s}_Input/ISIC_{n}.jpg": () for n, s in enumerate(("Training", "Validation", "Test"), 10)}
        | {
            f"ISIC2018_Task1_{s}_GroundTruth/ISIC_{n}_segmentation.png": L
            for n, s in enumerate(("Training", "Validation", "Test"), 10)
        },
        "ISIC2018_Task1-2_{split}_Input/{case}",
        "ISIC2018_Task1_{split}_GroundTruth/{case}_segmentation",
        (3, 3),
    ),
    "DSB2018": (
        {f"stage1_train/{i:08x}/images/{i:08x}.png": () for i in range(4)}
        | {f"stage1_train/{i:08x}/masks/{i * 91 + j:010x}ab.png": L for i in range(4) for j in range(3 + i)},
        "stage1_train/{case}/images/{case}",
        ["stage1_train/{case}/masks/*"],
        (4, 4),
    ),
    "several readers": (
        product("x/{c}{k}.png", range(4), {"": (), "_mask_rater1": L, "_mask_rater2": L}),
        "x/{case}",
        "x/{case}_mask_rater1",
        (4, 4),
    ),
    "names that say nothing": (
        {f"A/{i}.png": () for i in range(4)} | {f"B/{i}.png": L for i in range(4)},
        "A/{case}",
        "B/{case}",
        (4, 4),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_it_is_recognised(recognised, name):
    files, image, label, (cases, patients) = SETS[name]
    layout = recognised(files)
    if image is not None:
        assert (layout.datalist["image"], layout.datalist["label"]) == (image, label)
    assert len(layout.cases) == cases
    assert len({case["patient"] for case in layout.cases}) == patients
    names = [case.get("name", case["image"].rpartition("/")[2]) for case in layout.cases]
    assert len(set(names)) == cases, "what is written for one would overwrite another's"
