"""Inputs with mean 0 and spread 1, as a layer that is fitted once and then fixed."""

from typing import Tuple

import torch
from torch import nn

CLIP = 8.0


class Standardize(nn.Module):
    """Standardise each feature; what is further out than 8 is cut.

    shape (Tuple[int, ...]): Shape of one example.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: Tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit(self, sample: torch.Tensor) -> None:
        """Take mean and spread from a sample, shape (examples, *shape)."""
        self.mean.copy_(sample.mean(0))
        # Features that hardly change would become noise.
        std = sample.std(0, unbiased=False)
        self.std.copy_(std + 1e-3 * std.mean() + 1e-9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """RETURNS (Tensor): Shape of x."""
        return ((x - self.mean) / self.std).clamp(-CLIP, CLIP)
