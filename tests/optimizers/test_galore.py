from __future__ import annotations

import copy
import io
import math
import pickle
import sys

import pytest
import torch
from torch import nn

from medsaga.optimizers import GaLoreAdamW
from medsaga.optimizers.projection import Basis, find_basis, rotate_moments

from .. import forks

SHAPES = [(12, 20), (20, 12), (16, 16)]
PROJECTIONS = ["one-sided", "two-sided"]
# galore_torch's names of our projections
GALORE_TYPES = {"one-sided": "std", "two-sided": "full"}


# it warns that its AdamW is torch's, in the tests where it is made like any other optimizer
pytestmark = pytest.mark.filterwarnings("ignore:This implementation of AdamW is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def galore_torch():
    return pytest.importorskip("galore_torch")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameter(*shape, seed=0, dtype=torch.float32):
    return nn.Parameter(random(*shape, seed=seed, dtype=dtype))


def drive(optimizer, params, gradients):
    """One step for each entry of gradients, which holds a gradient (or None) for each parameter."""
    for step in gradients:
        for param, grad in zip(params, step):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()


def gradients_for(params, steps, seed=100):
    return [
        [random(*p.shape, seed=seed + 1000 * i + t, dtype=p.dtype) for i, p in enumerate(params)] for t in range(steps)
    ]


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def orthonormal(*shape, seed=0):
    return torch.linalg.qr(random(*shape, seed=seed)).Q


def axis_aligned(strengths, columns, seed=0):
    """A wide matrix whose left singular vectors are the axes: projecting it at full rank only reorders its rows."""
    return torch.tensor(strengths)[:, None] * orthonormal(columns, len(strengths), seed=seed).T


# ---------------------------------------------------------------- without a rank: torch's AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_rank_equals_torch_bit_for_bit(weight_decay, dtype):
    ours = [parameter(*shape, dtype=dtype) for shape in [(7,), (12, 20), (4, 3, 3, 3), ()]]
    theirs = copy.deepcopy(ours)
    gradients = gradients_for(ours, 6)
    gradients[2][1] = None
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay}
    drive(GaLoreAdamW(ours, **options), ours, gradients)
    drive(torch.optim.AdamW(theirs, fused=True, **options), theirs, gradients)
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b)


def test_state_of_torch_adamw_is_continued():
    theirs = [parameter(5, 6), parameter(3)]
    gradients = gradients_for(theirs, 6)
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, fused=True)
    drive(reference, theirs, gradients[:3])
    ours = copy.deepcopy(theirs)
    optimizer = GaLoreAdamW(ours)
    optimizer.load_state_dict(reference.state_dict())
    drive(optimizer, ours, gradients[3:])
    drive(reference, theirs, gradients[3:])
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- with a rank: galore_torch where it is right


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [5, 14])  # within the first gap, and across two refreshes
def test_equals_galore_torch(galore_torch, shape, projection, steps, monkeypatch):
    # which takes the signs of singular vectors as LAPACK gives them
    monkeypatch.setattr("medsaga.optimizers.projection.align_signs", lambda new, old: new)
    ours, theirs = [parameter(*shape)], [parameter(*shape)]
    gradients = gradients_for(ours, steps)
    optimizer = GaLoreAdamW(
        ours, lr=1e-2, eps=0, rank=4, update_gap=6, scale=0.25, projection=projection, rotate_moments=False
    )
    group = {
        "params": theirs,
        "rank": 4,
        "update_proj_gap": 6,
        "scale": 0.25,
        "proj_type": GALORE_TYPES[projection],
    }
    reference = galore_torch.GaLoreAdamW([group], lr=1e-2, eps=0, no_deprecation_warning=True)
    drive(optimizer, ours, gradients)
    drive(reference, theirs, gradients)
    assert (ours[0] - parameter(*shape)).abs().max() > 1e-3
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_update_stays_in_the_space_of_the_gradient(shape, projection):
    low_rank = random(shape[0], 3) @ random(3, shape[1], seed=1)
    param = nn.Parameter(torch.zeros(shape))
    drive(GaLoreAdamW([param], rank=3, projection=projection), [param], [[low_rank]] * 3)
    left, right = orthonormal_sides(low_rank, 3)
    scale = param.abs().max()
    # a one-sided projection constrains the projected side only
    if projection == "two-sided" or shape[0] < shape[1]:
        assert (param - left @ left.T @ param).abs().max() < 1e-4 * scale
    if projection == "two-sided" or shape[0] >= shape[1]:
        assert (param - param @ right @ right.T).abs().max() < 1e-4 * scale


def orthonormal_sides(matrix, rank):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], vh[:rank].T


@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (256, 256)])
@pytest.mark.parametrize("magnitude", [1.0, 1e-36, 1e38])
def test_randomised_basis_is_as_good_as_the_svd(shape, magnitude):
    rank = 8
    spectrum = torch.diag(1 / torch.arange(1, min(shape) + 1))
    left = orthonormal(shape[0], min(shape))
    matrix = left @ spectrum @ orthonormal(shape[1], min(shape), seed=1).T
    basis = find_basis(matrix * magnitude, rank, "two-sided", seed=3)
    for vectors in basis:
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(rank), atol=1e-5, rtol=0)
    best = spectrum.diag()[:rank].square().sum().sqrt()
    assert torch.linalg.norm(basis.left.T @ matrix) > 0.995 * best
    assert torch.linalg.norm(matrix @ basis.right) > 0.995 * best


def test_randomised_basis_of_a_matrix_of_lower_rank_is_orthonormal():
    matrix = random(200, 2) @ random(2, 300, seed=1)
    for vectors in find_basis(matrix, 8, "two-sided", seed=0):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(8), atol=1e-5, rtol=0)


def test_runs_are_repeatable_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    gradients = [[random(200, 300, seed=t)] for t in range(3)]

    def run(seed):
        param = parameter(200, 300)
        drive(GaLoreAdamW([param], rank=4, update_gap=2, seed=seed), [param], gradients)
        return param

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert torch.equal(before, torch.get_rng_state())


def least_squares_loss(**options):
    """Final over initial loss. The target is a matrix of rank 4: at rank 2 only refreshes can reach all of it."""
    inputs, target = random(64, 12), random(8, 4, seed=1) @ random(4, 12, seed=2)
    weight = nn.Parameter(torch.zeros(8, 12))
    optimizer = GaLoreAdamW([weight], lr=0.1, update_gap=10, **options)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=600)
    losses = []
    for _ in range(600):
        optimizer.zero_grad()
        loss = (inputs @ (weight - target).T).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses[-1] / losses[0]


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("rank", [2, 4])
def test_least_squares_converges(rank, projection):
    assert least_squares_loss(rank=rank, projection=projection, rotate_moments=True) < 2e-3


def test_least_squares_converges_further_with_rotated_moments():
    assert least_squares_loss(rank=2, rotate_moments=True) < 0.1 * least_squares_loss(rank=2)


def test_groups_with_and_without_rank_mix():
    def params():
        return [parameter(12, 20), parameter(20, 12, seed=1), parameter(9, seed=2)]

    together, alone = params(), params()
    gradients = gradients_for(together, 5)
    groups = [{"rank": 4, "lr": 1e-2}, {"rank": 6, "projection": "two-sided"}, {"weight_decay": 0.1}]
    optimizer = GaLoreAdamW([{"params": [p], **group} for p, group in zip(together, groups)])
    drive(optimizer, together, gradients)
    assert [set(optimizer.state[p]) for p in together] == [
        {"step", "exp_avg", "exp_avg_sq", "basis_step", "left"},
        {"step", "exp_avg", "exp_avg_sq", "basis_step", "left", "right"},
        {"step", "exp_avg", "exp_avg_sq"},
    ]
    for i, (param, group) in enumerate(zip(alone, groups)):
        drive(GaLoreAdamW([param], **group), [param], [[step[i]] for step in gradients])
        assert torch.equal(together[i], param)


# --- the defects of galore_torch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (200, 300), (300, 200)])  # exact and randomised bases
def test_defect_1_state_owns_no_more_memory_than_it_shows(shape, projection):
    param = parameter(*shape)
    optimizer = GaLoreAdamW([param], rank=2, projection=projection)
    drive(optimizer, [param], gradients_for([param], 2))
    for value in optimizer.state[param].values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_defect_1_is_galore_torchs(galore_torch):
    projector = one_step_of_galore_torch(galore_torch, parameter(12, 20)).state_dict()["state"][0]["projector"]
    kept = projector.ortho_matrix
    assert kept.untyped_storage().nbytes() > kept.numel() * kept.element_size()


def one_step_of_galore_torch(galore_torch, param, grad=None, rank=4):
    group = {"params": [param], "rank": rank, "update_proj_gap": 200, "scale": 1.0, "proj_type": "std"}
    optimizer = galore_torch.GaLoreAdamW([group], lr=1e-2, no_deprecation_warning=True)
    drive(optimizer, [param], [[random(*param.shape, seed=5, dtype=param.dtype) if grad is None else grad]])
    return optimizer


def test_defect_2_is_galore_torchs(galore_torch):
    with pytest.raises(pickle.UnpicklingError):
        saved_and_loaded(one_step_of_galore_torch(galore_torch, parameter(12, 20)).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("saved_at", [1, 4, 5, 9])
def test_defect_2_and_10_resume_is_exact(saved_at, projection, dtype):
    shapes = [(12, 20), (20, 12), (8, 3, 3, 3), (7,), (200, 150)]

    def make():
        params = [parameter(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
        matrices = [p for p in params if p.ndim > 1]
        vectors = [p for p in params if p.ndim < 2]
        groups = [{"params": matrices, "rank": 4}, {"params": vectors, "lr": 5e-3}]
        optimizer = GaLoreAdamW(groups, weight_decay=0.1, update_gap=4, projection=projection)
        return params, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=12)

    params, optimizer, schedule = make()
    gradients = gradients_for(params, 12)
    for t, step in enumerate(gradients):
        if t == saved_at:
            checkpoint = saved_and_loaded([params, optimizer.state_dict(), schedule.state_dict()])
        drive(optimizer, params, [step])
        schedule.step()

    resumed, other, other_schedule = make()
    with torch.no_grad():
        for param, value in zip(resumed, checkpoint[0]):
            param.copy_(value)
    other.load_state_dict(checkpoint[1])
    other_schedule.load_state_dict(checkpoint[2])
    for step in gradients[saved_at:]:
        drive(other, resumed, [step])
        other_schedule.step()
    for a, b in zip(params, resumed):
        assert torch.equal(a, b)
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, other.state[b][key]), key
            assert value.dtype == other.state[b][key].dtype


def test_loading_does_not_share_memory():
    param = parameter(12, 20)
    optimizer = GaLoreAdamW([param], rank=4)
    drive(optimizer, [param], gradients_for([param], 1))
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    copied = nn.Parameter(param.detach().clone())
    other = GaLoreAdamW([copied], rank=4)
    other.load_state_dict(state)
    drive(other, [copied], gradients_for([copied], 2))
    for key, value in before["state"][0].items():
        assert torch.equal(value, state["state"][0][key]), key


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_defect_2_state_moves_to_the_gpu(dtype):
    params = [parameter(200, 300, dtype=dtype), parameter(9, dtype=dtype)]
    groups = [{"params": params[:1], "rank": 4}, {"params": params[1:]}]
    optimizer = GaLoreAdamW(groups, lr=1e-2, update_gap=3)
    gradients = gradients_for(params, 8)
    drive(optimizer, params, gradients[:2])
    moved = [nn.Parameter(p.detach().cuda()) for p in params]
    other = GaLoreAdamW([{"params": moved[:1], "rank": 4}, {"params": moved[1:]}], update_gap=3)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    drive(optimizer, params, gradients[2:])
    drive(other, moved, [[g.cuda() for g in step] for step in gradients[2:]])
    for a, b in zip(params, moved):
        assert other.state[b]["exp_avg"].device.type == "cuda"
        assert other.state[b]["exp_avg"].dtype == torch.float32
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=2e-3)


def test_defect_3_new_gap_and_scale_hold_after_a_resume():
    param = parameter(12, 20)
    optimizer = GaLoreAdamW([param], lr=1e-2, rank=4, update_gap=100)
    gradients = gradients_for([param], 4)
    drive(optimizer, [param], gradients[:2])
    state = saved_and_loaded(optimizer.state_dict())

    def resume(**settings):
        copied = nn.Parameter(param.detach().clone())
        other = GaLoreAdamW([copied], rank=4, **settings)
        other.load_state_dict(copy.deepcopy(state))
        drive(other, [copied], gradients[2:3])
        return copied - param, other.state[copied]["basis_step"].item()

    moved, refreshed_at = resume(update_gap=100)
    assert refreshed_at == 0
    half, _ = resume(update_gap=100, scale=0.5)
    torch.testing.assert_close(half, moved / 2, rtol=1e-3, atol=1e-6)
    assert resume(update_gap=2)[1] == 2


@pytest.mark.parametrize(
    "settings",
    [{"rank": 5}, {"rank": None}, {"rank": 4, "projection": "two-sided"}],
    ids=["rank", "none", "projection"],
)
def test_defect_3_state_that_does_not_fit_is_refused(settings):
    param = parameter(12, 20)
    optimizer = GaLoreAdamW([param], rank=4, lr=1e-2)
    drive(optimizer, [param], gradients_for([param], 1))
    other = GaLoreAdamW([param], **settings, lr=1e-3)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=rf"\(12, 20\).*rank={settings['rank']}"):
        other.load_state_dict(optimizer.state_dict())
    assert other.state_dict() == before
    optimizer.param_groups[0].update(settings)
    value = param.detach().clone()
    with pytest.raises(ValueError, match="does not fit"):
        optimizer.step()
    assert torch.equal(value, param)


def test_state_of_galore_torch_is_refused(galore_torch):
    state = one_step_of_galore_torch(galore_torch, parameter(12, 20)).state_dict()
    with pytest.raises(ValueError, match="GaLoreProjector"):
        GaLoreAdamW([parameter(12, 20)], rank=4).load_state_dict(state)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (40, 2, 2, 2)])
def test_defect_4_convolutions_are_matrices(galore_torch, shape, projection):
    kernel = parameter(*shape)
    matrix = nn.Parameter(kernel.detach().reshape(shape[0], -1).clone())
    last = nn.Parameter(kernel.detach().clone(memory_format=torch.channels_last))
    options = {"rank": 4, "update_gap": 2, "weight_decay": 0.1, "projection": projection}
    gradients = gradients_for([kernel], 5)
    drive(GaLoreAdamW([kernel], **options), [kernel], gradients)
    drive(GaLoreAdamW([matrix], **options), [matrix], [[g.reshape(matrix.shape)] for (g,) in gradients])
    channels_last = [[g.clone(memory_format=torch.channels_last)] for (g,) in gradients]
    drive(GaLoreAdamW([last], **options), [last], channels_last)
    assert torch.equal(kernel.reshape(matrix.shape), matrix)
    torch.testing.assert_close(kernel.detach(), last.detach(), rtol=1e-6, atol=1e-6)
    assert last.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises((RuntimeError, IndexError)):
        one_step_of_galore_torch(galore_torch, parameter(*shape))


@pytest.mark.parametrize(
    ("shape", "rank"), [((7,), 2), ((), 1), ((12, 20), 13), ((20, 12), 13), ((4, 3, 3, 3), 5), ((12, 20), 0)]
)
def test_defect_4_a_rank_that_does_not_fit_is_refused(shape, rank):
    with pytest.raises(ValueError, match=str(rank)) as error:
        GaLoreAdamW([parameter(*shape)], rank=rank)
    if rank:
        assert str(shape) in str(error.value)
    optimizer = GaLoreAdamW([parameter(3)])
    with pytest.raises(ValueError, match=str(rank)):
        optimizer.add_param_group({"params": [parameter(*shape)], "rank": rank})
    assert len(optimizer.param_groups) == 1


def test_defect_4_is_galore_torchs(galore_torch):
    with pytest.raises(IndexError):
        one_step_of_galore_torch(galore_torch, parameter(7))
    optimizer = one_step_of_galore_torch(galore_torch, parameter(12, 20), rank=13)
    assert optimizer.state_dict()["state"][0]["projector"].ortho_matrix.shape == (12, 12)


def test_defect_5_refreshes_are_spread_over_the_gap():
    params = [parameter(12, 20, seed=i) for i in range(6)]
    optimizer = GaLoreAdamW(params, rank=4, update_gap=4)
    refreshed = []
    for step in gradients_for(params, 13):
        before = [optimizer.state[p]["left"].clone() if p in optimizer.state else None for p in params]
        drive(optimizer, params, [step])
        after = [optimizer.state[p]["left"] for p in params]
        refreshed.append([b is None or not torch.equal(a, b) for a, b in zip(after, before)])
    counts = [sum(row) for row in refreshed]
    assert counts[0] == 6
    assert max(counts[1:]) == 2
    for index in range(6):
        steps = [t for t, row in enumerate(refreshed) if row[index]][1:]
        assert set(steps) == {t for t in range(1, 13) if (t + index) % 4 == 0}


def test_defect_5_no_svd_of_a_large_matrix(monkeypatch):
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: pytest.fail("a full SVD"))
    param = parameter(200, 300)
    optimizer = GaLoreAdamW([param], rank=4, update_gap=2)
    drive(optimizer, [param], gradients_for([param], 4))
    assert optimizer.state[param]["left"].shape == (200, 4)


def test_defect_5_first_step_of_large_matrices_sketches_and_the_next_ones_refine():
    params = [parameter(140, 150, seed=i) for i in range(3)]
    optimizer = GaLoreAdamW(params, rank=4, update_gap=100)
    # strong in four directions, so that their singular vectors are well apart from the rest
    signal = [10 * random(140, 4, seed=i) @ random(4, 150, seed=9 + i) for i in range(3)]
    kept, changed = [], []
    for step in range(5):
        before = [optimizer.state[p]["left"].clone() for p in params] if step else None
        drive(optimizer, params, [[s + random(140, 150, seed=50 + step) for s in signal]])
        bases = [optimizer.state[p]["left"] for p in params]
        changed.append([i for i in range(3) if before is None or not torch.equal(before[i], bases[i])])
        kept.append([((b.T @ s).norm() / s.norm()).item() for b, s in zip(bases, signal)])
        for basis in bases:
            torch.testing.assert_close(basis.T @ basis, torch.eye(4), atol=1e-5, rtol=0)
    assert changed == [[0, 1, 2], [0], [1], [2], []]
    assert min(kept[0]) > 0.9  # of the signal, by the sketch
    assert min(kept[-1]) > 0.999


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_defect_5_first_gradient_without_a_basis(galore_torch, bad):
    param = parameter(12, 20)
    start = param.detach().clone()
    optimizer = GaLoreAdamW([param], lr=1e-2, rank=2, weight_decay=0.1, update_gap=100)
    drive(optimizer, [param], [[torch.full((12, 20), bad)]])
    torch.testing.assert_close(param.detach(), start * (1 - 1e-2 * 0.1))
    assert "left" not in saved_and_loaded(optimizer.state_dict())["state"][0]
    gradient = random(12, 2) @ random(2, 20, seed=1)
    drive(optimizer, [param], [[gradient]])
    left = optimizer.state[param]["left"]
    torch.testing.assert_close(left @ left.T @ gradient, gradient, rtol=1e-4, atol=1e-4)
    assert param.isfinite().all()

    # galore_torch's projector, in the same place
    theirs = parameter(12, 20)
    if bad == 0.0:
        reference = one_step_of_galore_torch(galore_torch, theirs, torch.zeros(12, 20), rank=2)
        drive(reference, [theirs], [[gradient]])
        kept = reference.state[theirs]["projector"].ortho_matrix
        assert (kept @ kept.T @ gradient).norm() < 0.9 * gradient.norm()
    else:
        with pytest.raises(RuntimeError):
            one_step_of_galore_torch(galore_torch, theirs, torch.full((12, 20), bad))


def test_defect_5_a_first_zero_gradient_counts_as_in_torch():
    gradients = [[torch.zeros(4, 20)], *([axis_aligned([4.0, 3.0, 2.0, 1.0], 20, seed=t)] for t in range(4))]
    ours, theirs = parameter(4, 20), parameter(4, 20)
    drive(GaLoreAdamW([ours], lr=1e-2, rank=4), [ours], gradients)
    drive(torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.0), [theirs], gradients)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_defect_5_refresh_is_put_off_past_an_unusable_gradient(bad):
    param = parameter(12, 20)
    optimizer = GaLoreAdamW([param], rank=2, update_gap=3)
    drive(optimizer, [param], gradients_for([param], 3))
    basis = optimizer.state[param]["left"].clone()
    drive(optimizer, [param], [[torch.full((12, 20), bad)]])
    assert torch.equal(optimizer.state[param]["left"], basis)
    assert param.isnan().any() == math.isnan(bad)  # NaN reaches the parameter, as in torch.optim.AdamW
    drive(optimizer, [param], gradients_for([param], 1, seed=7))
    assert not torch.equal(optimizer.state[param]["left"], basis)
    assert optimizer.state[param]["left"].isfinite().all()
    assert optimizer.state[param]["basis_step"] == 4


def test_defect_5_svd_that_does_not_converge_is_put_off(monkeypatch):
    def fail(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fail)
    assert find_basis(random(12, 20), 2, "one-sided", seed=0) is None


def test_defect_5_svd_that_overflows_is_put_off(monkeypatch):
    svd = torch.linalg.svd

    def overflow(matrix, **kwargs):
        u, s, vh = svd(matrix, **kwargs)
        return u, s, vh.fill_(float("nan"))

    monkeypatch.setattr(torch.linalg, "svd", overflow)
    assert find_basis(random(20, 12), 2, "one-sided", seed=0) is None


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (200, 300)])
def test_a_new_basis_has_the_signs_of_the_old_one(shape, monkeypatch):
    """The sign of a singular vector is arbitrary, so results must not depend on it."""
    gradients = gradients_for([torch.empty(shape)], 7)
    results = []
    for sign in (1, -1):
        for name in ("svd", "eigh"):
            function = getattr(torch.linalg, name)

            def flipped(*args, function=function, sign=sign, **kwargs):
                first, *rest = function(*args, **kwargs)
                # U, S, Vh or values, vectors
                return (first * sign, rest[0], rest[1] * sign) if len(rest) == 2 else (first, rest[0] * sign)

            monkeypatch.setattr(torch.linalg, name, flipped)
        param = parameter(*shape)
        optimizer = GaLoreAdamW([param], lr=1e-2, rank=4, update_gap=3)
        drive(optimizer, [param], gradients)
        results.append(param.detach())
        monkeypatch.undo()
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_defect_6_moments_follow_the_basis(galore_torch):
    # two gradients with the same singular vectors in another order: the right moments are AdamW's own
    strong, weak = [4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 4.0, 3.0]
    gradients = [[axis_aligned(strong if t < 4 else weak, 20)] for t in range(8)]

    def run(make, **options):
        param = parameter(4, 20)
        drive(make([{"params": [param], **options}], lr=1e-2, eps=1e-8), [param], gradients)
        return param

    reference = run(torch.optim.AdamW, weight_decay=0.0)
    rotated = run(GaLoreAdamW, rank=4, update_gap=4, rotate_moments=True)
    torch.testing.assert_close(rotated, reference, rtol=0, atol=1e-6)
    assert (run(GaLoreAdamW, rank=4, update_gap=4) - reference).abs().max() > 1e-2
    theirs = run(galore_torch.GaLoreAdamW, rank=4, update_proj_gap=4, scale=1.0, proj_type="std")
    assert (theirs - reference).abs().max() > 1e-2


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_defect_6_refresh_that_finds_the_same_space_changes_nothing(shape, projection):
    # refreshes (even steps) see one direction of growing length, so v lags behind m^2, where LDAdam's formula alone is
    # delicate; gradients between them fill the entries that are zero for that direction in a two-sided projection
    same, factor = random(*shape, seed=9), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    gradients = [[factor[t] * (same if t % 2 == 0 else random(*shape, seed=t))] for t in range(8)]
    often, never = parameter(*shape), parameter(*shape)
    options = {"rank": 4, "lr": 1e-2, "projection": projection, "rotate_moments": True}
    drive(GaLoreAdamW([often], update_gap=2, **options), [often], gradients)
    drive(GaLoreAdamW([never], update_gap=100, **options), [never], gradients)
    torch.testing.assert_close(often, never, rtol=0, atol=1e-4)


def test_rotation_of_the_first_moment_keeps_the_direction_in_full_space():
    old, new = orthonormal(12, 12), orthonormal(12, 12, seed=1)
    exp_avg, exp_avg_sq = random(12, 20, seed=2), random(12, 20, seed=3).square()
    expected = old @ exp_avg
    rotate_moments(exp_avg, exp_avg_sq, Basis(old, None), Basis(new, None), (0.9, 0.999), 7)
    torch.testing.assert_close(new @ exp_avg, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_rotated_moments_are_those_of_the_rotated_gradient(sides):
    # independent entries, drawn many times: the moments measured in the new basis are the reference
    generator = torch.Generator().manual_seed(0)
    m, n, r = 6, 5, 3
    mean, deviation = torch.randn(m, n, generator=generator), torch.rand(m, n, generator=generator)

    def pick(seed):
        left = orthonormal(m, r, seed=seed) if sides != "right" else None
        right = orthonormal(n, r, seed=seed + 50) if sides != "left" else None
        return Basis(left, right)

    old, new = pick(1), pick(2)
    shape = (r if old.left is not None else m, r if old.right is not None else n)
    mean, deviation = mean[: shape[0], : shape[1]], deviation[: shape[0], : shape[1]]
    samples = mean + deviation * torch.randn(200_000, *shape, generator=generator)
    left = torch.eye(m) if old.left is None else new.left.T @ old.left
    right = torch.eye(n) if old.right is None else new.right.T @ old.right
    rotated = left @ samples @ right.T

    betas, step = (0.9, 0.999), 5
    exp_avg = samples.mean(0) * (1 - betas[0] ** step)
    exp_avg_sq = samples.square().mean(0) * (1 - betas[1] ** step)
    rotate_moments(exp_avg, exp_avg_sq, old, new, betas, step)
    torch.testing.assert_close(exp_avg / (1 - betas[0] ** step), rotated.mean(0), rtol=0, atol=2e-2)
    torch.testing.assert_close(exp_avg_sq / (1 - betas[1] ** step), rotated.square().mean(0), rtol=2e-2, atol=2e-2)


def test_rotation_never_makes_a_step_jump():
    # growing gradients, as in warmup: the published formula alone gives steps of up to 100 learning rates here
    betas, steps = (0.9, 0.999), 90
    for seed in range(20):
        exp_avg, exp_avg_sq = torch.zeros(8, 50), torch.zeros(8, 50)
        mean = random(8, 50, seed=seed)
        for t in range(steps):
            gradient = (mean + random(8, 50, seed=1000 * seed + t)) * 1.05**t
            exp_avg.lerp_(gradient, 1 - betas[0])
            exp_avg_sq.lerp_(gradient.square(), 1 - betas[1])

        def furthest(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq):
            return ((exp_avg / (1 - betas[0] ** steps)).abs() / (exp_avg_sq / (1 - betas[1] ** steps)).sqrt()).max()

        before = furthest()
        bases = [Basis(orthonormal(40, 8, seed=seed + i), None) for i in (0, 500)]
        rotate_moments(exp_avg, exp_avg_sq, *bases, betas, steps)
        assert exp_avg_sq.min() >= 0
        assert furthest() <= 1.001 * max(before, 1)


def test_rotation_of_empty_moments_stays_empty():
    moments = torch.zeros(3, 5), torch.zeros(3, 5)
    rotate_moments(*moments, Basis(orthonormal(8, 3), None), Basis(orthonormal(8, 3, seed=1), None), (0.9, 0.999), 1)
    assert not any(moment.any() for moment in moments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [None, 4])
def test_defect_7_half_precision_parameters_have_moments_in_float32(dtype, rank):
    low, full = parameter(12, 20, dtype=dtype), parameter(12, 20)
    with torch.no_grad():
        full.copy_(low)
    # a large gradient, then small ones: in bfloat16 its square would never decay
    gradients = [[random(12, 20, seed=t, dtype=dtype) * (1 if t == 0 else 1e-3)] for t in range(40)]
    optimizer = GaLoreAdamW([low], lr=1e-3, rank=rank, weight_decay=0.1)
    reference = GaLoreAdamW([full], lr=1e-3, rank=rank, weight_decay=0.1)
    drive(optimizer, [low], gradients)
    drive(reference, [full], [[g.float()] for (g,) in gradients])
    assert low.dtype == dtype
    for key, value in reference.state[full].items():
        assert optimizer.state[low][key].dtype == torch.float32
        torch.testing.assert_close(optimizer.state[low][key], value, rtol=1e-6, atol=0)


def test_defect_7_is_galore_torchs(galore_torch):
    param = parameter(12, 20, dtype=torch.bfloat16)
    optimizer = one_step_of_galore_torch(galore_torch, param)
    first = optimizer.state[param]["exp_avg_sq"].clone()
    assert first.dtype == torch.bfloat16
    drive(optimizer, [param], [[torch.zeros_like(param)]] * 40)
    assert torch.equal(optimizer.state[param]["exp_avg_sq"], first)


def test_defect_7_small_decay_is_not_rounded_away():
    # 1 - 0.00018 (decay) and 1 - 0.0002 (update) both round to 1 in float16, but 1 - 0.00038 does not
    param = nn.Parameter(torch.full((4, 4), 1.0, dtype=torch.float16))
    drive(GaLoreAdamW([param], lr=2e-4, weight_decay=0.9), [param], [[torch.ones(4, 4, dtype=torch.float16)]])
    assert (param < 1).all()


@pytest.mark.parametrize("rank", [None, 16])
def test_small_updates_of_bfloat16_arrive_on_average(rank):
    # every one of them rounds away to nearest: the spacing of bfloat16 below 1 is 0.0039
    low = nn.Parameter(torch.ones(256, 64, dtype=torch.bfloat16))
    full = nn.Parameter(torch.ones(256, 64))
    gradient = random(256, 16).abs() @ random(16, 64, seed=1).abs()
    for param in (low, full):
        optimizer = GaLoreAdamW([param], lr=1e-4, rank=rank)
        drive(optimizer, [param], [[gradient.to(param.dtype)]] * 20)
    moved = (full - 1).mean()
    assert abs((low.float() - 1).mean() - moved) < 0.1 * abs(moved)
    again = nn.Parameter(torch.ones(256, 64, dtype=torch.bfloat16))
    drive(GaLoreAdamW([again], lr=1e-4, rank=rank), [again], [[gradient.bfloat16()]] * 20)
    assert torch.equal(low, again)


@pytest.mark.parametrize("rank", [None, 4])
def test_defect_8_eps_and_decay_are_torchs(galore_torch, rank):
    gradients = [[axis_aligned([4.0, 3.0, 2.0, 1.0], 20, seed=t)] for t in range(5)]

    def run(make, **options):
        param = parameter(4, 20)
        drive(make([{"params": [param], **options}], lr=1e-2, eps=0.1, weight_decay=0.5), [param], gradients)
        return param

    reference = run(torch.optim.AdamW)
    torch.testing.assert_close(run(GaLoreAdamW, rank=rank), reference, rtol=0, atol=1e-6)
    options = {"rank": 4, "update_proj_gap": 200, "scale": 1.0, "proj_type": "std"} if rank else {}
    theirs = run(galore_torch.GaLoreAdamW, **options)
    assert (theirs - reference).abs().max() > 1e-3


def closure_for(optimizer, param):
    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    return closure


def test_defect_9_closures_run_with_gradients(galore_torch):
    param = parameter(12, 20)
    optimizer = GaLoreAdamW([param], lr=1e-2, rank=4)
    losses = [optimizer.step(closure_for(optimizer, param)).item() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert GaLoreAdamW([param]).step() is None
    theirs = one_step_of_galore_torch(galore_torch, param)
    with pytest.raises(RuntimeError, match="does not require grad"):
        theirs.step(closure_for(theirs, param))


def test_defect_9_import_needs_neither_transformers_nor_bitsandbytes(tmp_path):
    code = (
        "import sys, medsaga.optimizers; "
        "sys.exit(any(name in sys.modules for name in ('transformers', 'bitsandbytes', 'galore_torch')))"
    )
    assert forks.run([sys.executable, "-c", code], tmp_path).returncode == 0


def test_defect_10_one_optimizer_works_with_a_grad_scaler():
    params = [parameter(12, 20), parameter(9)]
    plain = copy.deepcopy(params)

    def groups(params):
        return [{"params": params[:1], "rank": 4}, {"params": params[1:]}]

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, reference = GaLoreAdamW(groups(params), lr=1e-2), GaLoreAdamW(groups(plain), lr=1e-2)
    for t in range(4):
        overflow = t == 2
        values = [p.detach().clone() for p in params]
        loss = sum((p * random(*p.shape, seed=t)).sum() for p in params)
        optimizer.zero_grad()
        scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert all(torch.equal(a, b) for a, b in zip(params, values))
        else:
            drive(reference, plain, [[random(*p.shape, seed=t) for p in plain]])
    assert scaler.get_scale() == 512.0
    for a, b in zip(params, plain):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- the rest of an optimizer's duties


def test_parameters_without_a_gradient_are_left_alone():
    params = [parameter(12, 20), parameter(12, 20, seed=1)]
    optimizer = GaLoreAdamW(params, rank=4, weight_decay=0.1)
    gradient = random(12, 20, seed=2)
    drive(optimizer, params, [[gradient, None]])
    assert torch.equal(params[1], parameter(12, 20, seed=1))
    assert list(optimizer.state_dict()["state"]) == [0]
    drive(optimizer, params, [[gradient, gradient]])
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 1]


def test_sparse_gradients_are_refused_before_any_update():
    params = [parameter(12, 20), parameter(6, 5)]
    params[0].grad = random(12, 20)
    params[1].grad = random(6, 5).to_sparse()
    with pytest.raises(RuntimeError, match=r"sparse.*\(6, 5\)"):
        GaLoreAdamW([{"params": params[:1], "rank": 4}, {"params": params[1:]}]).step()
    assert torch.equal(params[0], parameter(12, 20))


def test_gradients_are_not_changed():
    param = parameter(12, 20)
    gradient = random(12, 20, seed=3)
    param.grad = gradient.clone()
    GaLoreAdamW([param], rank=4, weight_decay=0.1).step()
    assert torch.equal(param.grad, gradient)


def test_step_inside_autocast_is_the_same():
    inside, outside = parameter(12, 20), parameter(12, 20)
    gradients = gradients_for([inside], 3)
    with torch.autocast("cpu", torch.bfloat16):
        drive(GaLoreAdamW([inside], rank=4, update_gap=2), [inside], gradients)
    drive(GaLoreAdamW([outside], rank=4, update_gap=2), [outside], gradients)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_optimizer_can_be_copied(copied):
    param = parameter(12, 20)
    optimizer = GaLoreAdamW([param], rank=4, update_gap=2)
    gradients = gradients_for([param], 5)
    drive(optimizer, [param], gradients[:2])
    other = copied(optimizer)
    drive(optimizer, [param], gradients[2:])
    drive(other, other.param_groups[0]["params"], gradients[2:])
    assert torch.equal(param, other.param_groups[0]["params"][0])


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"rank": 1.5},
        {"weight_decay": math.nan},
        {"update_gap": math.nan},
        {"betas": (0.9, 1.0)},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"update_gap": 0},
        {"projection": "left"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GaLoreAdamW([parameter(12, 20)], **options)


@pytest.mark.parametrize("changed", [{"update_gap": 0}, {"rank": 13}], ids=["update_gap", "rank"])
def test_options_changed_out_of_range_are_refused_before_any_update(changed):
    param = parameter(12, 20)
    optimizer = GaLoreAdamW([param], rank=4)
    optimizer.param_groups[0].update(changed)
    with pytest.raises(ValueError, match=next(iter(changed))):
        drive(optimizer, [param], gradients_for([param], 1))
    assert torch.equal(param, parameter(12, 20))


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        GaLoreAdamW([nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))])
