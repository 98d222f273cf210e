"""One thread for torch, in the tests and in the commands that they start, unless a test asks for more.

Their tensors are tiny, and two threads on cores that others use as well wait for each other at every step: 30 times the
time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
