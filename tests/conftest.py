"""One thread for torch, in the tests and in the commands that they start, unless a test asks for more.

Their tensors are tiny, and two threads on cores that others use as well wait for each other at every step: 30 times the
time.
"""

import os
from collections.abc import Iterator

import pytest
from hydra.core.hydra_config import HydraConfig

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


@pytest.fixture(autouse=True)
def no_test_leaves_its_hydra_configuration_to_the_next() -> Iterator[None]:
    """Which tests share a process, and in what order, is chance; names of W&B runs come from this singleton."""
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before
