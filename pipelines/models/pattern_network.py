"""The recogniser's convolutional network. torch and numpy only; `networks.train_network` trains it.

A falling market is a mirrored rising one, so the network reads every window twice, as it is and mirrored, with one set
of weights. Of the two logits a class takes the one of its own side.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from pipelines.models.networks import Singles

ABSENT = -20.0  # logit of an absent class: no loss, no gradient


class PatternNetwork(nn.Module):
    """Map windows (n, steps, len(source) + classes) to logits (n, classes).

    Standardisation, three convolutions over time, their mean and newest value, and a linear layer to one logit a class.

    source, sign  the mirror: column j of a mirrored window is sign[j] times column source[j] (high and low swap
                  places); these columns come first in a window
    classes       number of columns that follow them, read on the newest step only: the side of each class, 1, -1 or 0
    channels      of each convolution; kernels of five steps, the second and third halve the time axis
    """

    def __init__(
        self, source: Sequence[int], sign: Sequence[float], classes: int, channels: int, dropout: float
    ) -> None:
        """Create the layers with torch's current random state."""
        super().__init__()
        inputs = len(source)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, channels, 5, stride=stride, padding=2)
            for before, stride in ((inputs, 1), (channels, 2), (channels, 2))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * channels, classes)
        self.register_buffer("source", torch.tensor(list(source)))
        self.register_buffer("sign", torch.tensor(list(sign), dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def standardise(self, windows: Singles) -> None:
        """Set mean and scale from training windows and their mirror images; a constant column has a scale of 1."""
        flat = windows[:, :, : len(self.source)].reshape(-1, len(self.source)).astype(np.float64)
        both = np.concatenate([flat, flat[:, self.source.numpy()] * self.sign.numpy()])
        spread = both.std(axis=0)
        self.mean.copy_(torch.from_numpy(both.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes), ABSENT where the class is absent from the newest step."""
        market, side = windows[:, :, : len(self.source)], windows[:, -1, len(self.source) :]
        both = torch.cat([market, market[:, :, self.source] * self.sign])
        x = ((both - self.mean) / self.scale).transpose(1, 2)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        x = self.dropout(torch.cat([x.mean(dim=2), x[:, :, -1]], dim=1))
        rise, fall = self.head(x).chunk(2)
        # not torch.where with a number: it copies that number to a card, which no CUDA graph may capture
        return torch.where(side > 0, rise, fall).masked_fill(side == 0, ABSENT)
