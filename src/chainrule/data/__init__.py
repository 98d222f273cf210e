"""Images: found, verified, binarized and served in batches."""

from chainrule.data.arrays import Arrays
from chainrule.data.datamodule import Images
from chainrule.data.mnist import Dynamic, Seeded, Static, Threshold
from chainrule.data.toy import Toy

__all__ = ["Arrays", "Dynamic", "Images", "Seeded", "Static", "Threshold", "Toy"]
