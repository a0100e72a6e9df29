"""What ``make serve`` gives to annotate, and what it says to open."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import nibabel as nib
import numpy as np
import pytest
from lib.opening import print_when_it_answers, to_open
from lib.served_model import ServedModel
from lib.start import Start
from monailabel.config import settings
from monailabel_app.sample import loopback
from monailabel_app.sample.contents import write_abdomen
from monailabel_app.sample.phantom_ct import phantom_ct
from monailabel_app.sample.series import as_series

from medsaga.reading import open_image

from ..integration.bundles import ROOT

TURNED = np.array([[0.0, 0.0, -2.5, 30.0], [0.8, 0.0, 0.0, -12.0], [0.0, -0.9, 0.0, 7.0], [0, 0, 0, 1]])
SHEARED = np.array([[1.0, 0.2, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0, 0, 0, 1]])


def write(instances, folder):
    folder.mkdir()
    for instance in instances:
        instance.save_as(folder / f"{instance.SOPInstanceUID}.dcm", write_like_original=False)
    return folder


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("affine", [np.diag([-0.7, -0.7, 3.0, 1.0]), np.diag([1.0, 1.0, -2.0, 1.0]), TURNED])
def test_a_series_lies_where_the_volume_lay(tmp_path, modality, affine):
    values = np.random.RandomState(0).randint(-900, 2000, (7, 9, 5)).astype(np.int16)
    folder = write(as_series(nib.Nifti1Image(values, affine), modality, "somebody", "test"), tmp_path / "series")
    read = open_image(folder)
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1).reshape(-1, 3)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    there = (places - read.grid.affine[:3, 3]) @ np.linalg.inv(read.grid.affine[:3, :3]).T
    np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
    found = read.load()[tuple(np.rint(there).astype(int).T)]
    scaled = (values - float(values.min())) / np.ptp(values) * 4095
    np.testing.assert_allclose(found, (values if modality == "CT" else scaled).ravel(), atol=0.51)


def test_the_same_volume_is_the_same_series_and_another_is_not():
    values = np.random.RandomState(0).randint(0, 99, (2, 5, 6, 4)).astype(np.int16)
    first, again, other = (as_series(nib.Nifti1Image(v, np.eye(4)), "CT", "a", "test") for v in values[[0, 0, 1]])
    assert [i.SOPInstanceUID for i in first] == [i.SOPInstanceUID for i in again]
    assert len({i.SOPInstanceUID for i in [*first, *other]}) == len(first) + len(other)
    assert first[0].SeriesInstanceUID != other[0].SeriesInstanceUID
    assert first[0].StudyInstanceUID != other[0].StudyInstanceUID


def test_a_volume_that_is_no_series_is_refused():
    with pytest.raises(ValueError, match="somebody.*not orthogonal"):
        as_series(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), SHEARED), "MR", "somebody", "test")


def test_the_ct_is_drawn_in_hu_with_organs_of_the_bundle(tmp_path):
    ct, label = (np.asarray(image.dataobj) for image in phantom_ct(3))
    names = {number: name for name, number in ServedModel(write_abdomen(tmp_path)).labels.items()}
    means = {names[number]: ct[label == number].mean() for number in np.unique(label) if number}
    assert means["aorta"] > means["liver"] > means["gallbladder"] and 90 < means["liver"] < 130
    assert ct[0].mean() < -900 and ct.max() < 500
    liver, spleen = (np.argwhere(label == n).mean(0) for n in (6, 1))
    assert liver[0] < ct.shape[0] / 2 < spleen[0], "columns run to the patient's left"


def test_the_light_bundle_keeps_what_was_trained(tmp_path):
    bundle = write_abdomen(tmp_path)
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    (bundle / "configs" / "train.json").write_text("{}")  # of an older version
    model = ServedModel(write_abdomen(tmp_path))
    assert model.trained and model.pretrained == "lite_medsam"
    assert model.labels == ServedModel(ROOT / "bundles" / "amos").labels


def test_two_servers_do_not_share_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(loopback, "_WAIT_SECONDS", 0.5)
    first = loopback.lock(str(tmp_path / "lock"))
    with pytest.raises(SystemExit, match=f"another server uses {tmp_path}.*--output"):
        loopback.lock(str(tmp_path / "lock"))
    os.close(first)
    os.close(loopback.lock(str(tmp_path / "lock")))


def test_ohif_is_to_be_opened_where_there_is_a_store_and_to_be_installed_elsewhere():
    first, *others = to_open("http://127.0.0.1:8000", "http://127.0.0.1:8001/dicom-web", {"no_ohif": "install"})
    assert first.title == "OHIF" and first.link == "http://127.0.0.1:8000/ohif/"
    assert not any(line.link for line in others), "one address to open"
    for conf, said in ({}, "--studies http://HOST/dicom-web"), ({"no_ohif": "`install` it"}, "OHIF: install it"):
        lines = to_open("http://127.0.0.1:8000", "/studies", conf)
        assert not any(line.link for line in lines)
        (ohif,) = (str(line) for line in lines if line.title == "OHIF")
        assert said in ohif and "`" not in ohif


class Silent(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *args) -> None:
        pass


def test_what_to_open_is_printed_once_the_server_answers(monkeypatch, capsys):
    with HTTPServer(("127.0.0.1", 0), Silent, bind_and_activate=False) as server:
        server.server_bind()
        monkeypatch.setattr(settings, "MONAI_LABEL_SERVER_PORT", server.server_port)
        print_when_it_answers(Start("0.0.0.0", "/label", 1), "/studies", {"about": "Images of nobody."})
        (thread,) = (t for t in threading.enumerate() if t.name == "what to open")
        thread.join(0.7)
        assert thread.is_alive() and not capsys.readouterr().out
        server.server_activate()
        server.handle_request()
        thread.join(30)
    said = capsys.readouterr().out
    assert "Images of nobody." in said and f"http://127.0.0.1:{server.server_port}/label/" in said
