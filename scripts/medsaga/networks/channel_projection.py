"""Map images of any number of channels to the three channels that published image encoders take."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ChannelProjection"]

_ENCODER_CHANNELS = 3


class ChannelProjection(nn.Conv2d):
    """A learnt 1×1 convolution from C channels to three, which starts from means of channels.

    Every channel reaches the encoder from the first step, and intensities stay in [0, 1], as published weights expect.
    Channel i goes to output i mod 3, and each output is the mean of its channels. With two channels the third output is
    the mean of both. No random number is drawn.

    Args:
        in_channels: number of channels C of the images, at least 2.

    Raises:
        ValueError: ``in_channels`` is below 2: one channel is repeated instead.

    Shape:
        - input: (B, C, H, W)
        - output: (B, 3, H, W)
    """

    def __init__(self, in_channels: int) -> None:
        if in_channels < 2:
            raise ValueError(f"in_channels={in_channels}: expected 2 or more; one channel is repeated to three")
        super().__init__(in_channels, _ENCODER_CHANNELS, kernel_size=1)
        start = torch.zeros(_ENCODER_CHANNELS, in_channels)
        for channel in range(in_channels):
            start[channel % _ENCODER_CHANNELS, channel] = 1
        start[start.sum(dim=1) == 0] = 1  # outputs without a channel
        start /= start.sum(dim=1, keepdim=True)
        with torch.no_grad():
            self.weight.copy_(start[:, :, None, None])
            self.bias.zero_()

    def reset_parameters(self) -> None:
        """Draw nothing, as the start is set above: networks with and without this layer draw the same numbers."""
