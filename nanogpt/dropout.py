"""Dropout whose random numbers cost less on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16  # of the 16 bits that decide about a feature


class Dropout(nn.Dropout):
    """Leaves each feature out with probability p, to the nearest 1 / LEVELS, and scales up the rest
    (Srivastava et al. 2014).

    What costs time in nn.Dropout on a CPU are the numbers that it draws, one for each feature. 16
    bits will do to decide, and so four of them share a draw.
    """

    def forward(self, x: Tensor) -> Tensor:
        left_out = round(self.p * LEVELS)
        if not self.training or x.device.type != "cpu" or left_out in (0, LEVELS):
            return F.dropout(x, self.p, self.training)
        drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        bits = drawn.random_(-(2**63), None).view(torch.int16)[:x.numel()].view(x.shape)
        kept = bits >= left_out - LEVELS // 2
        return x * kept * (LEVELS / (LEVELS - left_out))
