import resource

import pytest
import torch

from medsaga.memory import measure, predict
from medsaga.memory.accounting import CATEGORIES
from medsaga.networks import SamSegmenter

from ..integration.bundles import BUNDLES


def peak(setup, device=None):
    return sum(predict(setup, device).values())


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_bundle_takes_what_was_predicted(bundle, small):
    setup = small(bundle)
    assert predict(setup) == pytest.approx(measure(setup).split, rel=0.01)


@pytest.mark.parametrize(
    "overlay, overrides",
    [
        ("full", {}),
        ("samed", {}),
        (None, {"checkpointing": "least", "update_in_backward": False}),
        (None, {"accumulation_steps": 2}),
        (None, {"channel_names": ["FLAIR", "T1c"]}),
        ("samed", {"channel_names": ["FLAIR", "T1", "T1c", "T2"]}),
        (None, {"precision": "bf16_weights", "state_bits": 8}),
    ],
)
def test_other_methods_take_what_was_predicted(overlay, overrides, small):
    setup = small("hippocampus", *filter(None, [overlay]), **overrides)
    assert predict(setup) == pytest.approx(measure(setup).split, rel=0.01)


@pytest.mark.parametrize("overlays", [(), ("semi",)], ids=["alone", "with a teacher"])
def test_the_network_as_it_is_published_takes_what_was_predicted(small, overlays):
    setup = small("hippocampus", *overlays, **{"network_def#encoder": "vit_t", "image_size": 32})
    assert predict(setup) == pytest.approx(measure(setup).split, rel=0.01)


def test_a_large_network_is_predicted_without_its_memory(small):
    with torch.device("meta"):
        network = SamSegmenter("vit_h", image_size=1024, num_classes=3)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = {"network_def#encoder": "vit_h", "image_size": 1024, "batch_size": 1, "ema_momentum": None}
    split = predict(small(**options))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 500 * 1024  # KiB
    assert split["weights"] == sum(tensor.nbytes for tensor in network.state_dict().values()) > 2.5e9
    assert set(split) == set(CATEGORIES)


def test_the_average_of_the_weights_takes_them_once_more(small):
    alone, averaged = (predict(small(ema_momentum=momentum)) for momentum in (None, 0.01))
    network = SamSegmenter("vit_test", image_size=small().parser()["image_size"], num_classes=3, train_prompts=False)
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    assert averaged["weights"] - alone["weights"] == trained


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there_is_predicted(small):
    encoder = {"image_size": 512, "batch_size": 64}
    half = peak(small(**encoder, precision="fp16"), "cuda")
    # activations in half precision, which are most of this
    assert half < 0.75 * peak(small(**encoder, precision="fp32"), "cuda")
    # kept in the machine's memory
    assert peak(small(**encoder, precision="fp16", offload=True), "cuda") < 0.8 * half


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "fp32", "bf16"])
def test_a_gpu_takes_what_was_predicted(precision, small):
    setup = small(device="$torch.device('cuda')", precision=precision)
    measured = measure(setup)
    assert sum(predict(setup).values()) == pytest.approx(sum(measured.split.values()), rel=0.01)
    # the allocator also has the libraries' workspaces
    assert sum(measured.split.values()) <= measured.process
