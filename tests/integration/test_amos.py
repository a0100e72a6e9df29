"""The AMOS bundle on phantoms of CT and MRI laid out as the download, and on a real CT with AMOS's classes."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from medsaga.transforms import FitSquared

from .bundles import SMALL, config_files, fails, paths, run

SHORT = {
    **SMALL,
    "train#trainer#max_epochs": 1,
    "val_interval": 1,
    "batch_size": 2,
    "num_slices": 4,
    "test_patients": 1,
    "val_patients": 1,
    "train_patients": None,
    "warmup_steps": 1,
}
TRAINED = {"network_def#encoder": "vit_test", "image_size": 64}

SHAPE = (40, 30, 14)  # slices are no squares
TRAINING = ["amos_0001", "amos_0004", "amos_0500", "amos_0507", "amos_0600"]
VALIDATION = ["amos_0008", "amos_0510"]
TEST = ["amos_0002"]

# AMOS's number of each class of TotalSegmentator v2 that AMOS has too
AMOS_OF_TOTALSEGMENTATOR = {
    1: 1,  # spleen
    2: 2,  # right kidney
    3: 3,  # left kidney
    4: 4,  # gallbladder
    15: 5,  # esophagus
    5: 6,  # liver
    6: 7,  # stomach
    52: 8,  # aorta
    63: 9,  # inferior vena cava
    7: 10,  # pancreas
    8: 11,  # right adrenal gland
    9: 12,  # left adrenal gland
    19: 13,  # duodenum
    21: 14,  # urinary bladder
    22: 15,  # prostate
}


def phantom(ct: bool, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """An image in HU or in the units of some MRI scanner, and its label: 15 organs, each on 6 of the 14 slices."""
    label = np.zeros(SHAPE, np.uint8)
    for organ in range(1, 16):
        x, y, z = 5 + 6 * ((organ - 1) % 5), 5 + 7 * ((organ - 1) // 5), (organ - 1) * 8 // 14
        label[x : x + 5, y : y + 5, z : z + 6] = organ
    body = np.zeros(SHAPE, bool)
    body[3:37, 3:27] = True
    organs = 20.0 + 8.0 * label
    if ct:
        image = np.where(label > 0, organs, np.where(body, -100.0, -1000.0))
        image[18:22, 25:27] = 700.0  # bone
    else:
        image = np.where(label > 0, organs + 200.0, np.where(body, 120.0, 0.0)) * random.uniform(0.5, 500)
    noise = random.uniform(-0.01, 0.01, SHAPE) * (image.max() - 100.0)
    return (image + (noise if ct else np.abs(noise))).astype(np.float32), label


ORGANS_BY_SLICE = [len(np.unique(s)) - 1 for s in np.moveaxis(phantom(True, np.random.RandomState(0))[1], -1, 0)]


def save(array: np.ndarray, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.5, -1.5, 5.0, 1.0])
    affine[:3, 3] = [30.0, 12.0, -400.0]
    nib.save(nib.Nifti1Image(array, affine), path)


def write_index(folder, training, validation, test) -> None:
    """A ``dataset.json`` as AMOS has it, names as it spells them."""

    def entries(names, part):
        return [{"image": f"./images{part}/{n}.nii.gz", "label": f"./labels{part}/{n}.nii.gz"} for n in names]

    names = "background,spleen,right kidney,left kidney,gall bladder,esophagus,liver,stomach,arota,postcava,pancreas,"
    names += "right adrenal gland,left adrenal gland,duodenum,bladder,prostate/uterus"
    content = {
        "name": "AMOS",
        "description": "Phantoms in AMOS's layout",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(i): name for i, name in enumerate(names.split(","))},
        "numTraining": len(training),
        "numValidation": len(validation),
        "numTest": len(test),
        "training": entries(training, "Tr"),
        "validation": entries(validation, "Va"),
        "test": entries(test, "Ts"),
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def amos22(tmp_path):
    folder = tmp_path / "amos22"
    random = np.random.RandomState(0)
    for names, part in ((TRAINING, "Tr"), (VALIDATION, "Va"), (TEST, "Ts")):
        for name in names:
            image, label = phantom(int(name[5:]) <= 500, random)
            save(image, folder / f"images{part}" / f"{name}.nii.gz")
            if part != "Ts":
                save(label, folder / f"labels{part}" / f"{name}.nii.gz")
    save(image, folder / "imagesTr" / "amos_0009.nii.gz")  # not named in dataset.json, and without a label
    write_index(folder, TRAINING, VALIDATION, TEST)
    return folder


def train_config(overrides) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(config_files("amos", "train"))
    parser.update(overrides)
    return parser


def test_the_labelled_cases_are_those_of_both_lists(amos22, tmp_path):
    parser = train_config(paths("amos", amos22, tmp_path))
    datalist = parser.get_parsed_content("datalist")
    assert [case["patient"] for case in datalist] == TRAINING + VALIDATION
    # as the README says
    both = "medsaga.data.decathlon_datalist(@dataset_dir, ['training', 'validation'])"
    for choice, expected in (
        ("$medsaga.data.decathlon_datalist(@dataset_dir)", TRAINING),
        (f"$[c for c in {both} if int(c['patient'][5:]) <= 500]", [*TRAINING[:3], VALIDATION[0]]),
    ):
        parser = train_config({**paths("amos", amos22, tmp_path), "datalist": choice})
        assert [case["patient"] for case in parser.get_parsed_content("datalist")] == expected


def test_training_slices_show_five_organs_and_are_padded_to_a_square(amos22, tmp_path):
    overrides = {**SHORT, **paths("amos", amos22, tmp_path), "num_slices": None}
    parser = train_config(overrides)
    dataset = parser.get_parsed_content("train#dataset")
    wanted = [z for z, organs in enumerate(ORGANS_BY_SLICE) if organs >= 5]
    assert 0 < len(wanted) < SHAPE[2]
    assert list(map(tuple, dataset.slices.tolist())) == [(case, z) for case in range(5) for z in wanted]
    fit = parser.get_parsed_content("train#preprocessing").transforms[0]
    assert isinstance(fit, FitSquared)
    raw = dataset.cases[0].read(wanted[0])
    assert raw["image"].shape == (1, SHAPE[1], SHAPE[0])
    fitted = fit(raw)
    assert fitted["image"].shape == fitted["label"].shape == (1, 64, 64)
    rows = 64 * SHAPE[1] // SHAPE[0]
    assert float(fitted["image"][:, rows:].max()) == float(fitted["label"][:, rows:].max()) == 0
    # both sides by the same factor: an organ of 5×5 pixels stays a square
    organ = (fitted["label"][0] == int(raw["label"].max())).nonzero()
    assert (organ.max(dim=0).values - organ.min(dim=0).values + 1).tolist() == [8, 8]
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == (2, 1, 64, 64)


def test_one_rule_of_intensities_for_ct_and_mri(tmp_path):
    parser = ConfigParser()
    parser.read_config(config_files("amos", "inference"))
    preprocessing = parser.get_parsed_content("preprocessing")

    def scaled(image, name):
        save(image.astype(np.float32), tmp_path / name)
        out = preprocessing({"image": str(tmp_path / name)})["image"]
        assert 0 <= float(out.min()) <= float(out.max()) <= 1
        return np.asarray(out[0]).transpose(1, 0, 2)  # from P, L, S to the file's L, P, S

    image, label = phantom(True, np.random.RandomState(1))
    ct = scaled(image, "ct.nii.gz")
    air, fat, spleen, uterus = (float(np.median(ct[part])) for part in parts(label))
    assert air == 0
    assert 0.05 < fat < spleen
    # 112 HU of the 1700 between air and bone would be 0.07
    assert uterus - spleen > 0.2

    image, label = phantom(False, np.random.RandomState(2))
    mri = scaled(image, "mri.nii.gz")
    np.testing.assert_allclose(scaled(image * 300, "mri_of_another_scanner.nii.gz"), mri, atol=1e-5)
    air, fat, spleen, uterus = (float(np.median(mri[part])) for part in parts(label))
    assert air < fat < spleen
    assert uterus - spleen > 0.2


def parts(label) -> list[np.ndarray]:
    """Where a phantom has air, fat, spleen and uterus."""
    air, fat = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    air[:3], fat[35:37, 3:27] = True, True
    return [air, fat, label == 1, label == 15]


def assert_overlays(mask_path, image_path) -> None:
    mask, image = nib.load(mask_path), nib.load(image_path)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert set(np.unique(np.asarray(mask.dataobj))) <= set(range(16))


def test_train_evaluate_and_segment_both_modalities(amos22, tmp_path):
    overrides = {**SHORT, **paths("amos", amos22, tmp_path)}
    run("training", "amos", "train", **overrides)
    run("evaluating", "amos", "train", "evaluate", **overrides)
    rows = list(csv.DictReader((tmp_path / "output" / "evaluation" / "metrics.csv").open()))
    assert [row["class"] for row in rows] == train_config({})["class_names"][1:]
    assert {row["case"] for row in rows} <= set(TRAINING + VALIDATION)
    for image in (amos22 / "imagesTs" / "amos_0002.nii.gz", amos22 / "imagesVa" / "amos_0510.nii.gz"):
        options = {"dataset_dir": str(image), "output_dir": str(tmp_path), "model_path": overrides["model_path"]}
        run("evaluating", "amos", "inference", **TRAINED, **options)
        assert_overlays(tmp_path / image.name.replace(".nii", "_seg.nii"), image)


@pytest.mark.parametrize("file", ["labelsVa/amos_0510.nii.gz", "imagesTr/amos_0507.nii.gz"])
def test_a_missing_file_is_named(amos22, tmp_path, file):
    (amos22 / file).unlink()
    message = fails("training", "amos", "train", **SHORT, **paths("amos", amos22, tmp_path))
    assert f"{file} is missing" in message


def test_a_real_ct_with_amos_classes(sample_data, tmp_path):
    source = sample_data / "TotalSegmentator_example"
    image, label = nib.load(source / "ct.nii.gz"), nib.load(source / "ct_segmentation.nii.gz")
    total = np.asarray(label.dataobj)
    amos = np.zeros(total.shape, np.uint8)
    for theirs, ours in AMOS_OF_TOTALSEGMENTATOR.items():
        amos[total == theirs] = ours
    folder = tmp_path / "amos22"
    cuts = {"amos_0001": slice(None), "amos_0004": slice(30, 70), "amos_0005": slice(50, 60)}
    for name, cut in cuts.items():
        for part, array in (("imagesTr", np.asarray(image.dataobj)), ("labelsTr", amos)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            affine = image.slicer[:, :, cut].affine
            nib.save(nib.Nifti1Image(array[:, :, cut], affine), folder / part / f"{name}.nii.gz")
    write_index(folder, list(cuts), [], [])

    overrides = {**SHORT, **paths("amos", folder, tmp_path)}
    everything = {**overrides, "num_slices": None, "parts": {"train": "@datalist"}}
    dataset = train_config(everything).get_parsed_content("train#dataset")
    # the example shows no esophagus
    assert np.flatnonzero(dataset.cases[0].classes.any(axis=0)).tolist() == [n for n in range(16) if n != 5]
    organs = np.array([len(np.unique(s)) - 1 for s in np.moveaxis(amos, -1, 0)])
    assert [z for case, z in dataset.slices if case == 0] == np.flatnonzero(organs >= 5).tolist()

    run("training", "amos", "train", **{**overrides, "val_interval": 2})
    case = folder / "imagesTr" / "amos_0001.nii.gz"
    options = {"dataset_dir": str(case), "output_dir": str(tmp_path), "model_path": overrides["model_path"]}
    run("evaluating", "amos", "inference", **TRAINED, **options)
    assert_overlays(tmp_path / "amos_0001_seg.nii.gz", case)
