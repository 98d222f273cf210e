"""Whether Weights & Biases can be reached, found out in less than a second."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 0.8  # seconds that finding out about the network may cost


def logged_in() -> bool:
    """Whether W&B has this user's key, and its server answers."""
    import wandb  # noqa: PLC0415 (half a second that a run without W&B need not spend)

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode in ("offline", "dryrun", "disabled"):
        return False
    # The key is looked for on this machine; whether it is right is seen when it is used.
    return bool(wandb.login(prompt=False, verify=False)) and reachable(settings.base_url, settings.https_proxy)


def reachable(url: str, proxy: str | None = None) -> bool:
    """Whether somebody answers there, or at the proxy on the way there, within our patience.

    Args:
        url: of the server.
        proxy: of W&B's own settings; None: the environment's.
    """
    parts, answers = urlsplit(url), threading.Event()
    if not proxy and not proxy_bypass(parts.hostname or ""):
        proxy = getproxies().get(parts.scheme)
    first = urlsplit(proxy if "://" in proxy else f"//{proxy}") if proxy else parts
    port = first.port or (443 if first.scheme == "https" else 80)

    def knock() -> None:
        with suppress(OSError), socket.create_connection((first.hostname, port), PATIENCE):
            answers.set()

    # Looking up a name knows no time limit: a thread, and one that the end of the program does not wait for.
    threading.Thread(target=knock, daemon=True).start()
    return answers.wait(PATIENCE)
