"""Numbers from a finished run."""
