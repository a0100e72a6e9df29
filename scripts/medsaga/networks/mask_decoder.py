"""SAM's mask decoder, predicting one mask per class instead of three guesses for one object."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from .attention import TwoWayAttention
from .checkpointing import image_by_image, is_recording

__all__ = ["ClassMaskDecoder"]


class ClassMaskDecoder(MaskDecoder):
    """SAM's mask decoder with one mask token per class.

    SAM reads its four mask tokens as alternative masks of one object and picks among them by predicted IoU. Here token
    ``c`` is the mask of class ``c``, and all are returned. Every parameter keeps SAM's name, so SAM's checkpoints load;
    with ``num_classes=4`` and SAM's weights the logits are SAM's own four masks. The IoU head exists for those
    checkpoints only and is never computed.

    Args:
        num_classes: number of masks, background included.
        checkpointing: as in :class:`~medsaga.networks.SamSegmenter`: with ``"least"`` one item at a time.

    Source:
        MedSAGa (arXiv 2407.15042), section 3, ``M`` of eq. 3; SAMed (arXiv 2304.13785), section 3.3; the decoder itself
        is Segment Anything (arXiv 2304.02643), appendix A.
    """

    def __init__(self, num_classes: int, checkpointing: str = "off") -> None:
        super().__init__(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048),
            num_multimask_outputs=num_classes - 1,  # SAM adds one token of its own to this number
        )
        self.checkpointing = checkpointing
        self.transformer.final_attn_token_to_image = TwoWayAttention(256, num_heads=8, downsample_rate=2)
        for layer in self.transformer.layers:
            layer.self_attn = TwoWayAttention(256, num_heads=8)
            layer.cross_attn_token_to_image = TwoWayAttention(256, num_heads=8, downsample_rate=2)
            layer.cross_attn_image_to_token = TwoWayAttention(256, num_heads=8, downsample_rate=2)

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        fine: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Predict the masks of all classes.

        Args:
            image_embeddings: embeddings of B images.
            image_pe: positional encoding of the embedding grid.
            sparse_prompt_embeddings: P sets of N point and box corner embeddings. P = B gives each image its own
                prompts; with B = 1 all P sets are applied to the one image; with P = 1 all images share the set.
            dense_prompt_embeddings: mask prompt embeddings of the same P sets.
            fine: of the B images, what is added to the upscaled embeddings, of
                :class:`~medsaga.networks.fine_features.FineFeatures`; none for SAM's own decoder.

        Returns:
            Logits, one channel per class.

        Shape:
            - image_embeddings: (B, 256, h, w); image_pe: (1, 256, h, w)
            - sparse_prompt_embeddings: (P, N, 256); dense_prompt_embeddings: (P, 256, h, w)
            - fine: (B, 32, 4h, 4w) and (B, 64, 2h, 2w)
            - output: (max(B, P), num_classes, 4h, 4w)

        Raises:
            ValueError: when B and P differ and neither is 1.
        """
        images, prompts = image_embeddings.shape[0], sparse_prompt_embeddings.shape[0]
        if images != prompts and 1 not in (images, prompts):
            raise ValueError(
                f"{prompts} prompt sets for {images} images: give one set per image, "
                "or several sets for one image, or one set for all"
            )
        batch = max(images, prompts)

        # Only the tokens are copied per mask: image and prompt grids broadcast, where SAM repeats each in memory.
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat(
            [own_tokens.expand(batch, -1, -1), sparse_prompt_embeddings.expand(batch, -1, -1)], dim=1
        )  # (batch, 1 + k + N, 256)
        grid = (image_embeddings + dense_prompt_embeddings).expand(batch, -1, -1, -1)
        predict = partial(self._predict, image_pe)
        if self.checkpointing == "least" and is_recording(self):
            return image_by_image(predict, grid, tokens, *(x.expand(batch, -1, -1, -1) for x in fine))
        return predict(grid, tokens, *fine)

    def _predict(
        self, image_pe: torch.Tensor, grid: torch.Tensor, tokens: torch.Tensor, *fine: torch.Tensor
    ) -> torch.Tensor:
        h, w = grid.shape[-2:]
        tokens, grid = self.transformer(grid, image_pe, tokens)  # grid: (batch, h * w, 256)
        features = self._upscaled(grid.transpose(1, 2).unflatten(2, (h, w)), *fine)  # (batch, 32, 4h, 4w)
        kernels = torch.stack(
            [mlp(tokens[:, 1 + c]) for c, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # (batch, k, 32); token 0 is the IoU token
        return (kernels @ features.flatten(2)).unflatten(2, features.shape[-2:])

    def _upscaled(self, grid: torch.Tensor, *fine: torch.Tensor) -> torch.Tensor:
        if not fine:
            return self.output_upscaling(grid)
        finest, finer = fine
        first, norm, activation, second, last_activation = self.output_upscaling
        return last_activation(second(activation(norm(first(grid) + finer))) + finest)
