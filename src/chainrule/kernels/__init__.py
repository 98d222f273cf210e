"""Compiled loops where plain torch is far from the machine. Everything here is in chain order."""
