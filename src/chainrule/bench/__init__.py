"""``chainrule bench``: what training, scoring and sampling cost on this machine, beside what they could cost."""
