from __future__ import annotations

import torch

torch.set_num_threads(1)  # the models are tiny: handing work to more threads costs more than the work
