"""What Weights & Biases shows: a training as a run, and a saved workspace for all runs of a project."""
