"""A linear layer in 4 bits that keeps to its compute dtype."""

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor


class Linear4bitAsAsked(Linear4bit):
    """bitsandbytes' layer; under autocast, too, its products are in `compute_dtype`.

    Autocast would make them bfloat16 whatever was asked for: it is for the adapters beside them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in the dtype of `x`."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = super().forward(x)
        return out
