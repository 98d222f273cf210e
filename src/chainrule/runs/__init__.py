"""What a run leaves behind: its directory, fingerprint, record and provenance, and how to load it."""
