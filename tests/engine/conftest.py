"""Settings for the tests of the engine."""

from __future__ import annotations

import torch

# Tiny models gain nothing from more, and a busy machine loses much.
torch.set_num_threads(1)
