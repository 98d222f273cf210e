"""Images: found, verified, binarized and served in batches."""

from chainrule.data.binarized import Dynamic, Seeded, Static, Threshold
from chainrule.data.images import Images
from chainrule.data.toy import Toy

__all__ = ["Dynamic", "Images", "Seeded", "Static", "Threshold", "Toy"]
