"""MONAI Label's own bundle tasks train and serve a bundle as it is."""

import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from .bundles import ROOT

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The hippocampus bundle, with the test encoder in its configs as a site would change them."""
    folder = tmp_path_factory.mktemp("app") / "hippocampus"
    shutil.copytree(ROOT / "bundles" / "hippocampus", folder, ignore=shutil.ignore_patterns("cache", "output", "*.pt"))
    for name in ("train", "inference"):
        path = folder / "configs" / f"{name}.json"
        config = json.loads(path.read_text())
        config["network_def"]["encoder"] = "vit_test"
        config["image_size"] = 64
        config["weights"] = None
        path.write_text(json.dumps(config))
    return folder


def test_stock_tasks_train_and_infer(bundle, phantoms, tmp_path):
    from monailabel.tasks.infer.bundle import BundleInferTask
    from monailabel.tasks.train.bundle import BundleTrainTask

    cases = sorted((phantoms / "imagesTr").iterdir())[:5]
    labelled = [{"image": str(p), "label": str(phantoms / "labelsTr" / p.name)} for p in cases]
    task = BundleTrainTask(str(bundle), {}, load_strict=True)
    assert task.is_valid()
    request = {"model": "hippocampus", "max_epochs": 2, "device": "cpu", "val_split": 0.2}
    task(request, SimpleNamespace(datalist=lambda: labelled))
    model = bundle / "models" / "model.pt"
    first = torch.load(model, weights_only=True)
    assert first["pixel_mean"].shape == (3, 1, 1)
    assert [p.name for p in model.parent.iterdir()] == ["model.pt"], "only what may be served"

    serving = BundleInferTask(str(bundle), {"preload": "false"}, load_strict=True)
    assert serving.is_valid()
    assert serving.labels == {"anterior": 1, "posterior": 2}
    written, _ = serving({"image": str(cases[0]), "device": "cpu", "result_dir": str(tmp_path)})
    mask, image = nib.load(written), nib.load(cases[0])
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}
