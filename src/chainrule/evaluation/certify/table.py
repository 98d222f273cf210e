"""A certificate for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

Found = Mapping[str, Any]


def table(certificate: Found, warning: str = "") -> Table:
    """Every check with what it found, and the verdict."""
    verdict = "certified" if certificate["passed"] else "NOT certified"
    caption = f"checkpoint SHA-256 {certificate['sha256']['checkpoint'][:12]}…"
    sheet = Table(
        box=box.HORIZONTALS, title=f"{verdict}: test NLL {certificate['test_nll']:.4f} nats", title_justify="left",
        caption=f"{warning}\n{caption}" if warning else caption, caption_justify="left",
    )  # fmt: skip
    for header in ("check", "", "found"):
        sheet.add_column(header, overflow="fold")
    sheet.add_column("seconds", justify="right")
    for name, found in certificate["checks"].items():
        if found["passed"] is None:
            line = Text("–"), Text(f"not applicable: {found['not_applicable']}")
        elif found["passed"]:
            line = Text("passed", style="green"), Text(SUMMARIES[name](found))
        else:
            line = Text("FAILED", style="bold red"), Text(found["counterexample"], style="bold red")
        sheet.add_row(name, *line, f"{found['seconds']:.1f}")
    return sheet


def _causality(found: Found) -> str:
    return (
        f"{found['flips']:,} flips in {found['images']} images: no logit up to the flipped step changed by a bit; "
        f"of the later ones, {found['reacting']:.1%} did"
    )


def _normalization(found: Found) -> str:
    parts = []
    if "whole" in found:
        parts.append(f"all images sum to 1 within {abs(found['whole'] - 1):.1e}")
    if "prefixes" in found:
        what = f"{found['completions']:,} completions of {found['prefixes']} prefixes"
        parts.append(f"{what} sum to 1 within {found['deviation']:.1e}")
    return "; ".join(parts)


def _implementations(found: Found) -> str:
    return (
        f"{found['images']} images agree: walk ({found['walked']}, by {found['by']}) to {found['walk']:.1e}, alone to "
        f"{found['alone']:.1e}, kernel to {found['kernel']:.1e}, log_prob to {found['log_prob']:.1e}; "
        f"{found['draws']} draws, {found['ties']} ties"
    )


def _coding(found: Found) -> str:
    made = f" with {found['networks']} networks or orders" if found["networks"] > 1 else ""
    return (
        f"{found['images']:,} images back bit for bit (by {found['by']}) from {found['bits']:,} bits{made}; "
        f"{found['nats_per_image']:.3f} nats each, the record's within {found['difference']:.1e}; "
        f"the coder takes {found['coder_overhead']:+.3%}"
    )


def _recomputation(found: Found) -> str:
    others = ", ".join(f"{found[key]:,} {key.removesuffix('_images')}" for key in found if key.endswith("_images"))
    return (
        f"{found['nll']:.6f} nats in float64, the record {-found['difference']:+.1e}; {found['count']:,} test images"
        f"{', ' if others else ''}{others}; {found['distinct']:,} distinct, {found['also_in_training']:,} in training, "
        f"too; SHA-256 {found['sha256'][:12]}…"
    )


def _sampling(found: Found) -> str:
    samples, test = (f"{found[key]['mean']:.2f} ± {found[key]['stderr']:.2f}" for key in ("samples", "test"))
    z = ", ".join(f"{name} {value:+.1f}" for name, value in found["z"].items())
    return f"log p of samples {samples}, of test images {test}; z-scores: {z}"


SUMMARIES: dict[str, Callable[[Found], str]] = {
    "causality": _causality,
    "normalization": _normalization,
    "implementations": _implementations,
    "coding": _coding,
    "recomputation": _recomputation,
    "honesty": _sampling,
    "members": lambda found: f"all {found['members']} are certified",
}
