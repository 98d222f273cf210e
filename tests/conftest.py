"""One thread for what runs in the process of the tests, whose tensors are tiny, unless a test asks for more.

Two threads on cores that others use as well wait for each other at every step: 30 times the time.
"""

import torch

torch.set_num_threads(1)
