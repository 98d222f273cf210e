"""What every command begins with, done once in the server that they are forked from."""

from hydra.core.plugins import Plugins
from numba.core.registry import cpu_target

import chainrule.cli
import chainrule.kernels.nade_numba
import chainrule.kernels.sampling_numba
import chainrule.training.search
import chainrule.training.train  # noqa: F401

Plugins.instance()
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
