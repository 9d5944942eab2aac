"""A layer that scales its inputs to mean 0 and standard deviation 1. It is fitted once, not trained."""

from typing import Tuple

import torch
from torch import nn

# Standardized features are clipped to -CLIP and CLIP.
CLIP = 8.0


class Standardize(nn.Module):
    """Standardize each feature, and clip it to the range from -8 to 8.

    shape (Tuple[int, ...]): Shape of one example.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: Tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit(self, sample: torch.Tensor) -> None:
        """Estimate mean and standard deviation.

        sample (Tensor): Shape (examples, *shape).
        """
        self.mean.copy_(sample.mean(0))
        # The offset keeps features that hardly vary from being scaled up to noise.
        std = sample.std(0, unbiased=False)
        self.std.copy_(std + 1e-3 * std.mean() + 1e-9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """RETURNS (Tensor): The standardized features, in the shape of x."""
        return ((x - self.mean) / self.std).clamp(-CLIP, CLIP)
