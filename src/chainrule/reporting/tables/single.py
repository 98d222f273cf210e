"""The table that ends a run."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from chainrule.reporting.tables.published import published_for
from chainrule.reporting.tables.records import Record
from chainrule.reporting.tables.words import nats, three_digits, with_error


def summary(record: Record) -> Table:
    """The short table that ends ``chainrule train``: the number, what it cost, and the published one."""
    test = record.nll["test"]
    others = [split for split in ("train", "valid") if split in record.nll]
    lines = {
        "test NLL": f"{with_error(test.mean, test.stderr)} nats (standard error over {test.count:,} images)",
        "published": _reference(record),
        "bits per pixel": f"{record.bits_per_pixel:.4f}",
        f"{', '.join(others)} NLL": ", ".join(nats(record.nll[split].mean) for split in others) + " nats",
        "parameters": _parameters(record),
        "seconds": _cost(record),
        "kernel": record.kernel or "",
        "test set": f"{record.data} {record.side}×{record.side}, SHA-256 {record.sha256[:12]}…",
    }
    table = Table(title=Text(record.name), title_justify="left", box=box.HORIZONTALS, show_header=False)
    for name, text in lines.items():
        if text:
            table.add_row(name, Text(text))
    return table


def _reference(record: Record) -> str:
    """The published number in words; none for images of another size, which nobody published."""
    p = published_for(record.model, record.data) if record.n == 784 else None
    return f"{nats(p.nll)} nats ({p.name}, {p.cite}): {p.protocol}" if p else ""


def _cost(record: Record) -> str:
    epochs = f" for {record.epochs} epochs" if record.epochs is not None else ""
    speed = f", {three_digits(record.images_per_second)} images/s" if record.images_per_second is not None else ""
    return f"{three_digits(record.seconds)}{epochs}{speed}"


def _parameters(record: Record) -> str:
    effective = f" ({record.effective:,} effective)" if record.effective != record.parameters else ""
    return f"{record.parameters:,}{effective}"
