"""Pre-training of an image encoder on images without labels: masked autoencoding, e-Mix and ShED."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional as F

from .sam_segmenter import SamSegmenter

__all__ = ["MaskedAutoencoder", "PretrainingCheckpoint", "emix_loss", "masked_error", "move_patches"]

_TEMPERATURE = 0.2  # of e-Mix, as in DABS
_MOVED = 0.15  # share of the patches that ShED moves, as in DABS
_SEGMENTER = "segmenter."


class MaskedAutoencoder(nn.Module):
    """A segmenter's image encoder that learns from images alone; what it returns is the loss.

    * **Masked autoencoding.** A share of the patches of each image is hidden, and one linear map reconstructs them from
      the image embedding. The loss is the mean absolute error of the hidden pixels. MAE leaves hidden patches out,
      which saves most of the encoder's work. Here the encoders have windowed attention and convolutions, which need the
      whole grid, so a hidden patch is replaced by learnt pixels, as in SimMIM. The linear head and the loss are
      SimMIM's too. SAM's ViT has the same patches, so there the learnt pixels amount to a learnt embedding, SimMIM's
      mask token; positions are added to it as to any other embedding.
    * **e-Mix** (``emix_weight``). Images are mixed in pairs; the embedding of a mixture must be similar to those of its
      two parts according to their shares. See :func:`emix_loss`.
    * **ShED** (``shed_weight``). 15 % of the patches of each image change places; a linear classifier predicts from the
      embedding which patches were moved.

    e-Mix and ShED are defined on the input of a transformer, the embeddings of patches. SAM's patch embedding is affine
    and the shares add up to 1, so mixing images mixes their embeddings, and moving patches moves their embeddings; the
    encoder needs no change. TinyViT's patch embedding has convolutions with an activation in between, so there both
    methods act on pixels.

    The image encoder and the small parts above are trained; nothing else has a gradient. Random numbers come from
    torch's global generator, which :class:`~medsaga.handlers.TrainingState` seeds by epoch.

    Args:
        mask_ratio: share of the patches that are hidden. Patches have 16 pixels a side; 8 where 16 do not divide
            ``image_size``.
        emix_weight: factor of e-Mix in the loss, 0 to leave it and its two passes through the encoder out.
        shed_weight: factor of ShED in the loss, 0 to leave it and its pass through the encoder out.
        **segmenter: of :class:`~medsaga.networks.SamSegmenter`. With ``num_classes=4`` and no new head the mask decoder
            of published weights is kept as it is.

    Raises:
        ValueError: when ``mask_ratio`` is not between 0 and 1 or a weight is negative; what ``SamSegmenter`` raises.

    Shape:
        - image: (B, C, S, S), as the ``in_channels`` of ``SamSegmenter`` say, intensities in [0, 1]
        - output: (), the loss; the part of masked autoencoding is in units of intensity

    Source:
        Medical SAM Adapter (arXiv 2304.12620), which names the three; MAE (arXiv 2111.06377) for the share of hidden
        patches; SimMIM (arXiv 2111.09886); DABS (arXiv 2111.12062), with its published code, for e-Mix and ShED.
    """

    def __init__(
        self, mask_ratio: float = 0.75, emix_weight: float = 0.0, shed_weight: float = 0.0, **segmenter: Any
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio}: the hidden share of an image must be between 0 and 1")
        for name, weight in (("emix_weight", emix_weight), ("shed_weight", shed_weight)):
            if weight < 0:
                raise ValueError(f"{name}={weight}: it must not be negative; 0 leaves this part out")
        self.mask_ratio = mask_ratio
        self.emix_weight = emix_weight
        self.shed_weight = shed_weight
        self.segmenter = SamSegmenter(**segmenter)
        for part in (self.segmenter.prompt_encoder, self.segmenter.mask_decoder):
            part.requires_grad_(False)

        size = self.segmenter.image_size
        self.patch = 16 if size % 16 == 0 else 8
        self.grid = size // self.patch
        cell = size // self.segmenter.prompt_encoder.image_embedding_size[0]  # pixels of one embedding
        channels = self.segmenter.channel_counts[-1]
        self.mask_patch = nn.Parameter(torch.full((channels, self.patch, self.patch), 0.5))
        self.reconstruction = nn.Sequential(nn.Conv2d(256, channels * cell**2, kernel_size=1), nn.PixelShuffle(cell))
        if shed_weight:
            cells = self.patch // cell
            self.moved = nn.Conv2d(256, 1, kernel_size=cells, stride=cells)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Hide, mix and move patches at random, and compute the loss.

        Args:
            image: images with intensities in [0, 1].

        Returns:
            The loss, a scalar.
        """
        if isinstance(image, MetaTensor):
            image = image.as_tensor()
        image = image.expand(-1, self.segmenter.channel_counts[-1], -1, -1)
        masked, hidden = self.hide(image)
        loss = masked_error(self.reconstruction(self._embed(masked)), image, hidden)
        if self.emix_weight:
            loss = loss + self.emix_weight * self._emix(image)
        if self.shed_weight:
            loss = loss + self.shed_weight * self._shed(image)
        return loss

    def hide(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hide patches drawn at random, the same number in each image.

        Args:
            image: images.

        Returns:
            The images with learnt pixels in place of the hidden ones, and which these are.

        Shape:
            - image: (B, C, S, S), grey ones as three channels
            - output: (B, C, S, S) and (B, 1, S, S), bool
        """
        hidden = self._grid_of(self._draw(image, self.mask_ratio))
        hidden = hidden.repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)
        return torch.where(hidden, self.mask_patch.tile(1, self.grid, self.grid), image), hidden

    def _emix(self, image: torch.Tensor) -> torch.Tensor:
        order = torch.randperm(len(image)).to(image.device)
        share = 0.5 + torch.rand(len(image)).to(image.device) / 2
        shares = share[:, None, None, None]
        mixed = self._embed(shares * image + (1 - shares) * image[order]).mean(dim=(2, 3))
        return emix_loss(mixed, self._embed(image).mean(dim=(2, 3)), share, order)

    def _shed(self, image: torch.Tensor) -> torch.Tensor:
        places = self._draw(image, _MOVED)
        logits = self.moved(self._embed(move_patches(image, places, self.patch)))
        return F.binary_cross_entropy_with_logits(logits.float(), self._grid_of(places).float())

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        return self.segmenter.encode(image).float()

    def _draw(self, image: torch.Tensor, share: float) -> torch.Tensor:
        """Indices of the patches drawn for each image, (B, k): at least two, because one alone could not be moved."""
        patches = self.grid**2
        drawn = torch.rand(len(image), patches).argsort(dim=1)  # on the CPU: the same whatever the device
        return drawn[:, : max(2, round(share * patches))].to(image.device)

    def _grid_of(self, places: torch.Tensor) -> torch.Tensor:
        """Which patches are among ``places``, (B, 1, S / patch, S / patch) bool."""
        chosen = torch.zeros(len(places), self.grid**2, dtype=torch.bool, device=places.device)
        return chosen.scatter(1, places, True).unflatten(1, (1, self.grid, self.grid))


def masked_error(reconstruction: torch.Tensor, image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the hidden pixels; the visible ones do not count.

    Args:
        reconstruction: reconstructed images.
        image: original images.
        hidden: which pixels were hidden.

    Returns:
        The error in units of intensity.

    Shape:
        - reconstruction, image: (B, C, S, S); hidden: (B, 1, S, S), bool
        - output: ()

    Source:
        SimMIM (arXiv 2111.09886), prediction targets.
    """
    error = (reconstruction - image).abs() * hidden
    return error.sum() / (hidden.sum() * error.shape[1])


def emix_loss(mixed: torch.Tensor, parts: torch.Tensor, share: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """How far the embeddings of mixtures are from those of their parts, compared with the rest of the batch.

    Mixture i has the share s of image i and 1 - s of image ``order[i]``. A softmax over the batch of its cosine
    similarities to all images, divided by a temperature of 0.2, should give these two the probabilities s and 1 - s:
    the loss is that cross entropy. It is 0 for a batch of one image, which teaches nothing.

    Args:
        mixed: embeddings of the mixtures.
        parts: embeddings of the images.
        share: of image i in mixture i.
        order: indices of the second images of the mixtures.

    Returns:
        The mean over the mixtures.

    Shape:
        - mixed, parts: (B, C); share, order: (B,)
        - output: ()

    Source:
        DABS (arXiv 2111.12062), section on e-Mix, after i-Mix (arXiv 2010.08887).
    """
    similarity = F.normalize(mixed, dim=1) @ F.normalize(parts, dim=1).T / _TEMPERATURE
    first = torch.arange(len(mixed), device=mixed.device)
    losses = [F.cross_entropy(similarity, target, reduction="none") for target in (first, order)]
    return (share * losses[0] + (1 - share) * losses[1]).mean()


def move_patches(image: torch.Tensor, places: torch.Tensor, side: int) -> torch.Tensor:
    """Exchange patches of each image in a ring: the content of each place goes to the next place in ``places``.

    Args:
        image: images.
        places: indices of the patches, counted row by row, for each image; all indices of one image differ.
        side: of a patch in pixels.

    Returns:
        The images with these patches moved, and the others where they were.

    Shape:
        - image, output: (B, C, S, S); places: (B, k)
    """
    patches = F.pixel_unshuffle(image, side)  # (B, C side², S / side, S / side)
    flat = patches.flatten(2)
    places = places[:, None].expand(-1, flat.shape[1], -1)
    flat = flat.scatter(2, places.roll(-1, dims=2), flat.gather(2, places))
    return F.pixel_shuffle(flat.view_as(patches), side)


class PretrainingCheckpoint:
    """What :class:`~medsaga.handlers.TrainingState` saves of a :class:`MaskedAutoencoder`.

    ``model`` holds the segmenter's weights in SAM's format, without normalisation of intensities. So
    :func:`~medsaga.networks.load_weights` loads such a file like published weights: at any image size, for any number
    of classes, with a fresh class head. The rest, which only a resumed pre-training needs, is under ``pretraining``.

    Args:
        network: what is trained.
    """

    def __init__(self, network: MaskedAutoencoder) -> None:
        self.network = network

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """
        Returns:
            ``model`` and ``pretraining``, see above.
        """
        state = self.network.state_dict()
        sam = [key for key in state if key.startswith(_SEGMENTER) and not key.startswith(_SEGMENTER + "pixel_")]
        return {"model": {key.removeprefix(_SEGMENTER): state.pop(key) for key in sam}, "pretraining": dict(state)}

    def load_state_dict(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """
        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            KeyError, RuntimeError: when it is of another network.
        """
        model = {_SEGMENTER + key: value for key, value in state["model"].items()}
        self.network.load_state_dict(model | state["pretraining"])
