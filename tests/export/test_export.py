"""Exported networks against the networks they were made from, in torch."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from medsaga.challenge import main as challenge
from medsaga.export import ExportedSegmenter, export_network
from medsaga.export.__main__ import main
from medsaga.inferers import BoxInferer, SliceBatchInferer
from medsaga.networks import SamSegmenter
from medsaga.networks.attention import RelPosAttention

from .. import forks

# not by pytest.importorskip, which would import it with its telemetry
pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'medsaga[export]'"
)

# of the largest logit
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "network"
    export_network(network, folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    return ExportedSegmenter(folder)


def boxes(number):
    corners = torch.rand(number, 2, 2, generator=torch.Generator().manual_seed(number)).sort(dim=1).values * 64
    return corners.flatten(1)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_automatic_segmentation_is_torchs(network, exported, images, channels):
    image = torch.rand(images, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    assert_close(exported.encode(image), network.encode(image))
    assert_close(exported(image), network(image))


@torch.no_grad()
def test_several_channels_are_torchs_and_all_planes_are_known(tmp_path):
    channels = 2
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", 64, 3, in_channels=channels).eval()
    network.channel_projection.weight.add_(torch.rand_like(network.channel_projection.weight))
    network.trained_plane = "all"
    export_network(network, tmp_path / "network")
    exported = ExportedSegmenter(tmp_path / "network")
    assert exported.trained_plane == "all"
    image = torch.rand(2, channels, 64, 64)
    assert_close(exported(image), network(image))
    with pytest.raises(ValueError, match=rf"must be \(B, {channels}, 64, 64\)"):
        exported(image[:, :1])


@torch.no_grad()
@pytest.mark.parametrize(("images", "number"), [(1, 1), (1, 2), (1, 9), (3, 3)])
def test_boxes_are_torchs(network, exported, images, number):
    image = torch.rand(images, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    assert_close(exported(image, boxes=boxes(number)), network(image, boxes=boxes(number)))


@torch.no_grad()
def test_lite_medsams_encoder_is_torchs(tmp_path):
    network = SamSegmenter("vit_t", 64, 4, "lite_medsam", fine_features=True).eval()
    for parameter in network.fine_features.widen.parameters():
        parameter.normal_()  # they start from zero, and would hide that they are missing
    export_network(network, tmp_path / "lite", "sam_boxes")
    exported = ExportedSegmenter(tmp_path / "lite")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert_close(exported(image), network(image))
    assert_close(exported(image, boxes=boxes(5)), network(image, boxes=boxes(5)))
    assert (exported.head, exported.encoder, exported.image_size, exported.num_classes) == ("sam_boxes", "vit_t", 64, 4)
    rough = ExportedSegmenter(tmp_path / "lite", precision="bf16")(image)
    difference = float((rough - network(image)).abs().max() / network(image).abs().max())
    assert difference < 0.2, "bfloat16 has 8 bits"


@torch.no_grad()
def test_stands_in_for_the_network_in_inferers(network, exported):
    volume = torch.rand(1, 1, 40, 64, 3, generator=torch.Generator().manual_seed(3))
    found, expected = (SliceBatchInferer(64, 2)(volume, n) for n in (exported, network))
    assert (found == expected).float().mean() > 0.999 and len(expected.unique()) > 1
    prompts = torch.tensor([[2.0, 3, 0, 40, 30, 1], [20, 10, 1, 60, 39, 2]])
    found, expected = (BoxInferer("classes")(volume, n, prompts) for n in (exported, network))
    assert (found == expected).float().mean() > 0.999 and len(expected.unique()) > 1


def test_the_network_is_not_changed(network, folder):
    assert {type(m) for m in network.modules() if isinstance(m, RelPosAttention)} == {RelPosAttention}
    assert folder.is_dir(), "it has been exported"


def test_an_export_that_fails_leaves_nothing(tmp_path, network):
    with pytest.raises(FileExistsError):
        export_network(network, tmp_path)
    half = SamSegmenter("vit_test", 64, 3, precision="bf16")
    with pytest.raises(ValueError, match="bf16"):
        export_network(half, tmp_path / "half")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        export_network(network, tmp_path / "file" / "network")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_an_exported_network_cannot_do_is_said(exported, folder, tmp_path):
    image = torch.zeros(1, 1, 64, 64)
    with pytest.raises(ValueError, match="points"):
        exported(image, points=(torch.zeros(1, 1, 2), torch.ones(1, 1)))
    with pytest.raises(ValueError, match="64, 64"):
        exported(torch.zeros(1, 1, 32, 64))
    with pytest.raises(ValueError, match=r"\(3, 4\) for 2 images"):
        exported(image.expand(2, -1, -1, -1), boxes=boxes(3))
    with pytest.raises(ValueError, match="precision='fp16'"):
        ExportedSegmenter(folder, precision="fp16")
    with pytest.raises(FileNotFoundError, match="medsaga.export"):
        ExportedSegmenter(tmp_path)


def test_the_command_exports_a_bundle_and_compares(bundle, tmp_path, capsys, network):
    main(["--bundle", str(bundle), "--output", str(tmp_path / "exported"), "--measure", "1"])
    printed = capsys.readouterr().out
    assert "vit_test, 64 px, 3 masks" in printed and "Largest difference" in printed
    assert "| embedding of a slice |" in printed and "| OpenVINO bf16 |" in printed
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert_close(ExportedSegmenter(tmp_path / "exported")(image), network(image))


def test_the_command_names_what_is_missing(bundle, tmp_path):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(SystemExit, match="model.pt"):
        main(["--bundle", str(bundle), "--output", str(tmp_path / "exported")])
    assert not (tmp_path / "exported").exists()


def test_challenge_cases_give_the_same_by_torch_and_exported(bundle, challenge_cases, tmp_path, folder):
    challenge(["--cases", str(challenge_cases), "--output", str(tmp_path / "torch"), "--bundle", str(bundle)])
    challenge(["--cases", str(challenge_cases), "--output", str(tmp_path / "openvino"), "--exported", str(folder)])
    for name in ("more/3DBox_CT_1.npz", "2DBox_US_1.npz"):
        by_torch, by_openvino = (np.load(tmp_path / how / name)["segs"] for how in ("torch", "openvino"))
        assert (by_torch == by_openvino).mean() > 0.999 and by_torch.any()


def test_a_process_outlives_its_exported_networks(folder):
    """And no one is told of it.

    Several of OpenVINO's cores leave a stack for signals that is gone, and a child's end is a signal.
    """
    code = f"""
import signal, socket, subprocess, time, torch
socket.getaddrinfo = lambda host, *_, **__: print("asks for", host, flush=True)  # in its forks, too
from medsaga.export import ExportedSegmenter
from medsaga.export.convert import import_openvino
import_openvino().convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))
signal.signal(signal.SIGCHLD, lambda *_: None)
networks = [ExportedSegmenter({str(folder)!r}) for _ in range(3)]
for network in networks:
    network.encode(torch.zeros(1, 1, 64, 64))
del network
while networks:
    networks.pop(0)
subprocess.Popen(["true"])
time.sleep(0.5)
print("alive")
"""
    done = forks.run([sys.executable, "-W", "ignore", "-c", code], folder)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
