import torch
from monai.data import MetaTensor

from medsaga.transforms import OnlyLabelledd


def test_what_is_not_labelled_is_background_in_both():
    label = MetaTensor(torch.tensor([[[1, 255, 2], [255, 0, 1]]], dtype=torch.uint8), meta={"case": "a"})
    pred = torch.tensor([[[1, 1, 1], [2, 1, 1]]], dtype=torch.uint8)
    out = OnlyLabelledd()({"pred": pred, "label": label, "image": None})
    assert out["label"].tolist() == [[[1, 0, 2], [0, 0, 1]]] and out["pred"].tolist() == [[[1, 0, 1], [0, 1, 1]]]
    assert out["label"].meta["case"] == "a"
    assert pred.tolist() == [[[1, 1, 1], [2, 1, 1]]]


def test_labels_of_all_voxels_are_left_as_they_are():
    data = {"pred": torch.ones(1, 2, 2), "label": torch.zeros(1, 2, 2)}
    out = OnlyLabelledd()(data)
    assert out["pred"] is data["pred"] and out["label"] is data["label"]
