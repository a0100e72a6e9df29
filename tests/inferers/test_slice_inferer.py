from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from medsaga.inferers import SliceBatchInferer
from medsaga.transforms import cuts, fit_square, undo_fit_square

SIZE = 24


class Threshold(nn.Module):
    """Classes 0, 1, 2 below 1/3, below 2/3 and above; it remembers the batches it was given."""

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        level = images.mean(dim=1, keepdim=True)
        logits = torch.cat([-((level - centre) ** 2) for centre in (1 / 6, 1 / 2, 5 / 6)], dim=1)
        return F.avg_pool2d(logits, self.shrink)


def classes(image):
    """The label map by hand, (B, 1, ...)."""
    level = image.mean(dim=1, keepdim=True)
    return ((level > 1 / 3).int() + (level > 2 / 3).int()).to(torch.uint8)


def smooth(*shape):
    """Random images without detail, in [0, 1]."""
    torch.manual_seed(0)
    coarse = torch.rand(shape[0], shape[1], *[max(2, n // 6) for n in shape[2:]])
    mode = "bilinear" if len(shape) == 4 else "trilinear"
    return F.interpolate(coarse, size=shape[2:], mode=mode, align_corners=True)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, SIZE, SIZE), (3, 3, SIZE, SIZE), (1, 1, SIZE, SIZE, 7), (2, 1, SIZE, SIZE, 5), (1, 4, SIZE, SIZE, 5)],
)
def test_slices_of_the_networks_size_are_thresholded_exactly(shape):
    image = smooth(*shape)
    labels = SliceBatchInferer(SIZE, batch_size=3)(image, Threshold())
    assert labels.dtype == torch.uint8
    assert labels.shape == (shape[0], 1, *shape[2:])
    assert torch.equal(labels, classes(image))
    assert labels.unique().tolist() == [0, 1, 2]


class Noisy(nn.Module):
    """Logits of three classes that depend on the whole slice, and on its orientation."""

    def forward(self, images):
        level = images.mean(dim=1, keepdim=True)
        ramp = torch.linspace(-1, 1, SIZE).view(-1, 1) * level.mean(dim=(2, 3), keepdim=True)
        return torch.cat([level, ramp + level.flip(2), 2 * level.cumsum(3) / SIZE], dim=1)


@pytest.mark.parametrize("affine", [None, torch.diag(torch.tensor([-1.0, 1, 1, 1]))[[1, 2, 0, 3]].double()])
def test_all_planes_sum_their_probabilities(affine):
    volume = smooth(1, 1, 20, 22, 18)
    inputs = volume if affine is None else MetaTensor(volume, affine=affine)
    labels = SliceBatchInferer(SIZE, 5, plane="all")(inputs, Noisy())
    total = torch.zeros(3, 20, 22, 18)
    for cut in cuts((20, 22, 18), affine):
        slices = cut.turned(volume[0]).permute(3, 0, 1, 2)
        logits = undo_fit_square(Noisy()(fit_square(slices, SIZE)), SIZE, tuple(slices.shape[-2:]))
        cut.add(total, logits.softmax(1).permute(1, 2, 3, 0), 0)
    assert len(cuts((20, 22, 18), affine)) == 3
    best, second = total.topk(2, dim=0).values
    clear = best - second > 0.01  # of the sums in float16
    assert clear.float().mean() > 0.9 and torch.equal(labels[0, 0][clear], total.argmax(0).to(torch.uint8)[clear])
    assert labels.unique().numel() == 3 and isinstance(labels, type(inputs))
    assert (labels != SliceBatchInferer(SIZE, 5)(inputs, Noisy())).any()


def test_a_network_that_has_learnt_from_all_planes_is_run_on_all_unless_one_is_named():
    volume, network = smooth(1, 1, 20, 22, 18), Noisy()
    network.trained_plane = "all"
    by_all, by_one = (SliceBatchInferer(SIZE, 5, plane=plane)(volume, Noisy()) for plane in ("all", "axial"))
    assert torch.equal(SliceBatchInferer(SIZE, 5, plane="auto")(volume, network), by_all)
    assert torch.equal(SliceBatchInferer(SIZE, 5, plane="axial")(volume, network), by_one)
    network.trained_plane = None
    assert torch.equal(SliceBatchInferer(SIZE, 5, plane="auto")(volume, network), by_one)


def test_all_planes_of_thick_slices_are_those_of_one():
    inputs = MetaTensor(smooth(1, 1, 20, 22, 18), affine=torch.diag(torch.tensor([1.0, 1, 5, 1])))
    network = Threshold()
    labels = SliceBatchInferer(SIZE, 7, plane="all")(inputs, network)
    assert sum(shape[0] for shape in network.shapes) == 18
    assert torch.equal(labels, SliceBatchInferer(SIZE, 7)(inputs, Threshold()))


@pytest.mark.parametrize("shape", [(2, 1, 35, 50, 5), (1, 1, 50, 35, 4), (1, 1, 60, 9, 3)])
@pytest.mark.parametrize("shrink", [1, 2])
def test_volume_equals_its_slices_one_by_one_whatever_the_batch_size(shape, shrink):
    image, network = smooth(*shape), Threshold(shrink)
    single = SliceBatchInferer(SIZE, batch_size=1)
    expected = torch.stack([single(image[..., z], network) for z in range(shape[-1])], dim=-1)
    assert (expected == classes(image)).float().mean() > 0.75
    for batch_size in (1, 2, 3, 100):
        assert torch.equal(SliceBatchInferer(SIZE, batch_size)(image, network), expected)


@pytest.mark.parametrize("shape", [(1, 1, 30, 20, 11), (2, 1, 30, 20, 4), (7, 3, 30, 20)])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_network_never_sees_more_than_a_batch(shape, batch_size):
    network = Threshold()
    SliceBatchInferer(SIZE, batch_size)(smooth(*shape), network)
    slices = shape[0] * (shape[4] if len(shape) == 5 else 1)
    assert sum(s[0] for s in network.shapes) == slices
    assert max(s[0] for s in network.shapes) == min(batch_size, slices)
    assert {s[1:] for s in network.shapes} == {(shape[1], SIZE, SIZE)}


@pytest.mark.parametrize("shape", [(1, 1, 30, 20, 6), (1, 3, 30, 20)])
def test_affine_and_file_name_go_with_the_label_map(shape):
    affine = torch.diag(torch.tensor([-2.0, 0.5, 3.0, 1.0]))
    image = MetaTensor(smooth(*shape), affine=affine, meta={"filename_or_obj": "/data/a.nii.gz"})
    before = image.clone()
    labels = SliceBatchInferer(SIZE)(image, Threshold())
    assert isinstance(labels, MetaTensor)
    assert torch.equal(labels.affine, image.affine)
    assert labels.meta["filename_or_obj"] == "/data/a.nii.gz"
    assert labels.dtype == torch.uint8
    assert torch.equal(image, before)


def test_plain_tensors_give_plain_tensors():
    assert type(SliceBatchInferer(SIZE)(smooth(1, 1, 30, 20), Threshold())) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8])
def test_other_number_types_reach_the_network_as_float32(dtype):
    types = []

    class Network(Threshold):
        def forward(self, images):
            types.append(images.dtype)
            return super().forward(images)

    SliceBatchInferer(SIZE)((smooth(1, 1, SIZE, SIZE) > 0.5).to(dtype), Network())
    assert types == [torch.float32]


def test_arguments_go_on_to_the_network():
    seen = []

    def network(images, prompt, scale):
        seen.append((prompt, scale))
        return Threshold()(images)

    SliceBatchInferer(SIZE, batch_size=2)(smooth(3, 1, SIZE, SIZE), network, "point", scale=2)
    assert seen == [("point", 2)] * 2


def test_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SliceBatchInferer(SIZE, batch_size=0)
