"""Networks that commands use, and the challenge's command with torch's networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsaga.bundle.network import load_network
from medsaga.challenge import main as challenge
from medsaga.data import read_challenge_case
from medsaga.inferers import BoxInferer


def test_published_weights_come_with_sams_own_head():
    network, head = load_network(weights="lite_medsam")
    assert (network.encoder, network.image_size, network.num_classes, head) == ("vit_t", 256, 4, "sam_boxes")
    assert not network.training
    with pytest.raises(ValueError, match="name its bundle with --bundle"):
        load_network(model="model.pt")


def test_a_bundles_network_has_its_trained_weights(bundle, network):
    loaded, head = load_network(str(bundle))
    assert head == "classes" and not loaded.training
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_challenge_cases_get_results_and_seconds(bundle, network, challenge_cases, tmp_path):
    output = tmp_path / "results"
    challenge(["--cases", str(challenge_cases), "--output", str(output), "--bundle", str(bundle)])
    for name, shape in (("more/3DBox_CT_1.npz", (3, 30, 40)), ("2DBox_US_1.npz", (30, 40))):
        found = np.load(output / name)["segs"]
        assert found.shape == shape and found.dtype == np.uint8 and found.any()
        case = read_challenge_case(challenge_cases / name)
        expected = BoxInferer("classes")(case["image"][None], network, case["boxes"])[0, 0].numpy()
        assert np.array_equal(found, np.moveaxis(expected, -1, 0) if found.ndim == 3 else expected)
    rows = (output / "seconds.csv").read_text().splitlines()
    assert rows[0] == "case,modality,shape,boxes,seconds" and len(rows) == 3
    assert rows[1].startswith("2DBox_US_1.npz,US,30x40,2,") and rows[2].startswith("more/3DBox_CT_1.npz,CT,30x40x3,1,")
    np.savez(challenge_cases / "CT_2.npz", imgs=np.eye(5, dtype=np.uint8))
    with pytest.raises(SystemExit, match="CT_2.npz: it has no array 'boxes'"):
        challenge(["--cases", str(challenge_cases), "--output", str(output), "--bundle", str(bundle)])
