"""Time of training, scoring and sampling: of each model, of NADE's rivals, and of the pairs that targets are about."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from chainrule.bench.clock import Action, Clock, Values, spread
from chainrule.bench.job import BATCHES, Job, Training
from chainrule.bench.machine import instructions
from chainrule.bench.work import WORK, Ceiling, Sizes
from chainrule.density import AutoregressiveDensity

SLOW = "chainrule.bench.baselines"
# What of NADE's configuration makes it each of the implementations that are compared.
RIVALS: dict[str, dict[str, str]] = {
    "kernel": {"kernel": "auto"},
    "chunked": {"kernel": "torch"},
    "cumsum": {"_target_": f"{SLOW}.CumsumNADE"},
    "loop": {"_target_": f"{SLOW}.LoopNADE"},
    "rows": {"_target_": f"{SLOW}.RowsNADE"},
    "unbound": {"_target_": f"{SLOW}.UnboundNADE"},
}
BEFORE_COMPARING = 100  # training steps: weights near 0 would hide what rounding does


# ---- each model -------------------------------------------------------------------------------------


def of_model(job: Job, images: int, clock: Clock) -> dict[str, Any]:
    """Images per second of training, scoring and sampling, and the latency of a single sample."""
    step = job.training()
    density, generator = step.density, torch.Generator().manual_seed(job.seed)
    training = clock.time(step)  # first: what is scored and sampled has been trained a little
    density.eval()
    x = job.images(images)
    rates = clock.alternate({"score": lambda: score(density, x), "sample": lambda: density.sample(images, generator)})
    return {
        "model": name(job), "n": job.n, "d": job.d, "parameters": density.parameter_count,
        "kernel": getattr(density, "backend", None),
        "step_seconds": asdict(spread(training)),
        "train_images_per_second": job.batch / spread(training).median,
        "score_images_per_second": images / spread(rates["score"]).median,
        "sample_images_per_second": images / spread(rates["sample"]).median,
        "latency_seconds": asdict(spread(clock.each(lambda: density.sample(1, generator)))),
    }  # fmt: skip


@torch.no_grad()
def score(density: AutoregressiveDensity, x: torch.Tensor) -> torch.Tensor:
    return density.log_prob(x)


def name(job: Job) -> str:
    """The model's file, like everywhere: chainrule.models.nade.NADE is ``nade``."""
    return str(job.model["_target_"]).split(".")[-2]


# ---- NADE and its rivals ----------------------------------------------------------------------------


def of_rivals(job: Job, clock: Clock, top: Ceiling) -> list[dict[str, Any]]:
    """One training step of each implementation, in turns; ratios are to the kernel, round by round."""
    actions: dict[str, Action] = {rival: job.changed(**change).training() for rival, change in RIVALS.items()}
    seconds = clock.alternate(actions)
    sizes = sizes_of(job)
    return [_rival(rival, seconds[rival], seconds["kernel"], sizes, top) for rival in RIVALS]


def sizes_of(job: Job) -> Sizes:
    """What the counts depend on; pixels on as in the mean batch."""
    assert job.d is not None
    on = int(job.images(BATCHES * job.batch).sum()) // BATCHES
    return Sizes(batch=job.batch, n=job.n, d=job.d, on=on)


def _rival(rival: str, seconds: Values, kernel: Values, sizes: Sizes, top: Ceiling) -> dict[str, Any]:
    work, median = WORK[rival](sizes), spread(seconds).median
    of_flops, of_bytes = top.fractions(work, median)
    return {
        "name": rival,
        "seconds": asdict(spread(seconds)),
        "ratio": asdict(spread(seconds / kernel)),
        **asdict(work),
        "fraction_of_flops": of_flops,
        "fraction_of_bytes": of_bytes,
    }


# ---- pairs ------------------------------------------------------------------------------------------


def sampling_against_forward(job: Job, images: int, clock: Clock) -> Values:
    """Time of drawing images over that of one forward pass over as many, round by round."""
    density, z = job.density().eval(), job.images(images).float()
    generator = torch.Generator().manual_seed(job.seed)
    seconds = clock.alternate({"draw": lambda: density.sample(images, generator), "pass": lambda: _pass(density, z)})
    return seconds["draw"] / seconds["pass"]


def passes_against_sampling(job: Job, clock: Clock) -> Values:
    """Time of n full forward passes over that of drawing as many images, a batch, round by round."""
    density, z = job.density().eval(), job.images(job.batch).float()
    generator = torch.Generator().manual_seed(job.seed)
    passes: Action = lambda: [_pass(density, z) for _ in range(job.n)]  # noqa: E731
    seconds = clock.alternate({"draw": lambda: density.sample(job.batch, generator), "passes": passes})
    return seconds["passes"] / seconds["draw"]


@torch.no_grad()
def _pass(density: AutoregressiveDensity, z: torch.Tensor) -> torch.Tensor:
    return density.conditionals(z)


# ---- precision --------------------------------------------------------------------------------------


def of_precision(job: Job, images: int, clock: Clock) -> dict[str, Any]:
    """A training step in float32 and under bfloat16 autocast, and the NLL of the same weights in both."""
    full, mixed = (Training(job, job.density(), bf16=bf16) for bf16 in (False, True))
    seconds = clock.alternate({"float32": full, "bf16-mixed": mixed})
    for _ in range(BEFORE_COMPARING):
        full()
    density, x = full.density.eval(), job.images(images)
    nll = float(-score(density, x).double().mean())
    with torch.autocast(job.device, torch.bfloat16):
        nll_mixed = float(-score(density, x).double().mean())
    return {
        "model": name(job), "n": job.n, "d": job.d, "instructions": instructions(),
        "seconds": {precision: asdict(spread(s)) for precision, s in seconds.items()},
        "speedup": asdict(spread(seconds["float32"] / seconds["bf16-mixed"])),
        "nll": {"float32": nll, "bf16-mixed": nll_mixed}, "images": images,
    }  # fmt: skip
