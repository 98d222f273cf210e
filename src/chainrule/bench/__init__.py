"""``chainrule bench``: the cost of training, scoring and sampling on this machine, side by side with rivals."""
