"""Whether Weights & Biases can be reached, found out in less than a second."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Timeout
from urllib.parse import urlsplit

PATIENCE = 0.8  # seconds that finding out about the network may cost


def logged_in() -> bool:
    """Whether W&B has this user's key, and its server answers."""
    import wandb  # noqa: PLC0415 (half a second that a run without W&B need not spend)

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode in ("offline", "dryrun", "disabled"):
        return False
    # The key is looked for on this machine; whether it is right is seen when it is used.
    return bool(wandb.login(prompt=False, verify=False)) and reachable(settings.base_url)


def reachable(url: str) -> bool:
    """Whether somebody answers there, within our patience."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    pool = ThreadPoolExecutor(1)  # a thread, since looking up a name knows no time limit
    try:
        pool.submit(socket.create_connection, (parts.hostname, port), PATIENCE).result(PATIENCE).close()
    except (OSError, Timeout):
        return False
    finally:
        pool.shutdown(wait=False)
    return True
