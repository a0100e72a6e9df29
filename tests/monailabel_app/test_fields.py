"""What requests may say."""

import pytest
from fastapi import HTTPException
from lib.fields import BatchFields, InferFields, ScoringFields, StrategyFields, TrainFields, checked, json_object

KINDS = [TrainFields, InferFields, BatchFields, StrategyFields, ScoringFields]
EVIL = "$__import__('pathlib').Path('ran').write_text('x') and 'cpu'"


def refused(function, *args):
    with pytest.raises(HTTPException) as caught:
        function(*args)
    assert caught.value.status_code == 422
    return caught.value.detail


@pytest.mark.parametrize("kind", KINDS)
def test_what_clients_send_is_taken(kind):
    """Slicer sends its client_id and the options of /info, OHIF its own fields; both may send a list of choices."""
    fields = {"client_id": "ann"}
    if "device" in kind.model_fields:
        fields["device"] = ["cpu", "cuda"]
    if kind is TrainFields:
        fields |= {"pretrained": True, "max_epochs": 0, "method": ["MedSAGa", "with unlabelled", "choose"]}
    if kind is InferFields:  # OHIF's Run, then Slicer's
        fields |= {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
        fields |= {"restore_label_idx": False, "label_prompt": [1, 2], "foreground": [[1, 2, 3]], "background": []}
        fields |= {"label": "anterior", "roi": [0, 1, 2, 3, 4, 5], "slice": 3, "reset_state": True}
        fields |= {"replace": False, "plane": ["auto", "axial"]}
        fields |= {
            "scribbles": [{"inside": True, "points": [[1, 2, 3]]}, {"inside": False, "points": [[1, 2], [3, 4]]}]
        }
        fields |= {"model_filename": ["model.pt", "model_v1.pt"], "label_info": [{"name": "anterior", "idx": 1}]}
    if kind is BatchFields:  # MONAI Label's own default
        fields |= {"multi_gpu": True, "gpus": "all", "logging": "WARNING", "save_label": True, "label_tag": "original"}
        fields |= {"max_workers": 1, "max_batch_size": 0}
    taken = checked(kind)(fields, "params")
    assert taken["client_id"] == "ann"
    assert taken.get("device", "cpu") == "cpu" and taken.get("model_filename", "model.pt") == "model.pt"
    assert taken.get("plane", "auto") == "auto"
    assert checked(kind)(None, "params") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_named(kind):
    for name in ("bundle_path", "picture", "local_rank", "run_id", "train#trainer#max_epochs", "_id", EVIL):
        detail = refused(checked(kind), {name: 1}, "params")
        assert name[:50] in detail and "known are client_id" in detail


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_refuses_what_is_of_no_use(kind):
    for name in kind.model_fields:
        for value in ({"a": 1}, [[{"a": EVIL}]], "x" * 10**5, float("nan"), 10**400, "\ud800"):
            assert (
                name in refused(checked(kind), {name: value}, "params")
                or value in ("\ud800", 10**400)
                or value != value
            )


@pytest.mark.parametrize("device", [EVIL, "$x", "@device", "%x", "cuda:99", "cpu ", "meta", ["x"]])
def test_only_known_devices(device):
    for kind in (TrainFields, InferFields, BatchFields):
        assert "known are cpu, cuda" in refused(checked(kind), {"device": device}, "params")


def test_prompts_are_limited(monkeypatch):
    monkeypatch.setenv("MEDSAGA_MAX_PROMPTS", "2")
    assert checked(InferFields)({"foreground": [[1, 1, 1]] * 2}, "params")
    assert "MEDSAGA_MAX_PROMPTS" in refused(checked(InferFields), {"foreground": [[1, 1, 1]] * 3}, "params")


@pytest.mark.parametrize(
    "scribbles",
    [
        [{"inside": True}],
        [{"points": [[1, 1, 1]]}],
        [{"inside": True, "points": []}],
        [{"inside": True, "points": [[1, "x", 1]]}],
        [{"inside": True, "points": [[1, 1, 1]], "width": 3}],
        [{"inside": True, "points": [[1, 1, 1]]}] * 51,
        [[[1, 1, 1]]],
    ],
)
def test_scribbles_are_lines_inside_or_outside(scribbles):
    assert "params, scribbles" in refused(checked(InferFields), {"scribbles": scribbles}, "params")


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '"x"', "null", "1", '{"a": NaN}', '{"a": [-Infinity]}', '{"a": 1e999}', '{"a": "\\ud800"}',
     '{"\\udc00": 1}', "[" * 5000, '{"a":' * 21 + "1" + "}" * 21, '{"a": 1' + "0" * 5000 + "}"],
)  # fmt: skip
def test_only_json_that_can_be_read_back(text):
    assert refused(json_object, text, "info").startswith("info ")


def test_json_that_can_be_read_back_stays():
    assert json_object("", "info") == {}
    assert json_object('{"a": [1, 2.5, null, true, {"ü": "\\ud83d\\ude00"}]}', "info") == {
        "a": [1, 2.5, None, True, {"ü": "😀"}]
    }
