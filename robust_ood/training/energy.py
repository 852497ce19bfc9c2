"""Training of a classifier as an energy-based model of its images: JEM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.losses import wide
from robust_ood.perturb import minimize
from robust_ood.randomness import generator
from robust_ood.regions import Fraction, Unbounded
from robust_ood.rules import Langevin
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization
from robust_ood.training.ramps import Ramp, checked_ramp, climbed

_REPLAY = "replay"
"""The entry of a checkpoint that holds the replay buffers of all processes."""


class JEM(Method):
    """A classifier whose `logsumexp` of logits is the log-density of images (up to a constant).

    Minimises `mean CE(x, y) - generative_weight (mean log p(x) - mean log p(x'))`, where `log p(x)
    = logsumexp f(x)` and the samples x' come from the model by Langevin dynamics: chains that go on
    from a replay buffer, or begin anew from uniform noise. The detectors `energy` (log p), `msp`
    and `gradient-norm` score with such a network.

    Source: JEM (Grathwohl et al. 2020), Eq. 2 to 6 and Alg. 1; OOD-attack paper, App. J.

    **Units.** The published code has images in [-1, 1]. Here they are in [0, 1], half as large, so
    gradients of log p are twice those there: its step of 1 is 1/4 here, its noise of 0.01 is 0.005,
    and its input noise of 0.03 is 0.015. These are the defaults.

    Three deviations from that code. Samples and noisy images are clipped to [0, 1], both, so that
    pixels outside cannot tell them apart. One batch gives both terms, where the code draws two. The
    network is in eval mode while chains run, as there, and images and samples then share one pass
    in train mode. Networks without normalisation layers are meant, smooth ones (`activation: silu`)
    more stable.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        steps: of each chain in each training step, >= 1; 20 in the paper, 100 for better samples.
        step_size: of a chain along the gradient of log p, > 0.
        noise: standard deviation of each step's noise, in pixel fractions, >= 0.
        input_noise: likewise of the noise on training images.
        buffer_size: chains that are kept, divided among processes; as many as a batch at least.
        restart_probability: that a chain begins anew, in [0, 1].
        generative_weight: of the density's term, >= 0.
        weight_ramp: shares of the run between which `generative_weight` climbs from 0.
        energy_limit: a difference of log p between images and samples at which guards stop the run,
            > 0; 1e8 in the published code, where the network is lost long before.
        optimization: the default is the paper's: Adam with 1e-4, times 0.3 after 80 and 90 % of the
            run, a warm-up over its first 0.64 % (1,000 iterations).
        compile, seed: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        steps: int = 20,
        step_size: float = 0.25,
        noise: float | Fraction = 0.005,
        input_noise: float | Fraction = 0.015,
        buffer_size: int = 10_000,
        restart_probability: float = 0.05,
        generative_weight: float = 1.0,
        weight_ramp: Ramp = (0.0, 0.0),
        energy_limit: float = 1e4,
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        super().__init__(net, optimization=optimization or _paper(), compile=compile, seed=seed)
        for name, count in (("steps", steps), ("buffer_size", buffer_size)):
            if count < 1:
                raise UserError(f"{name}: {count} is not a whole number >= 1")
        for name, value in (("step_size", step_size), ("energy_limit", energy_limit)):
            if not value > 0:
                raise UserError(f"{name}: {value} is not > 0")
        if not 0 <= restart_probability <= 1:
            raise UserError(f"restart_probability: {restart_probability} is not in [0, 1]")
        if not generative_weight >= 0:
            raise UserError(f"generative_weight: {generative_weight} is not >= 0")
        self.steps = steps
        self.step_size = step_size
        self.noise = _deviation("noise", noise)
        self.input_noise = _deviation("input_noise", input_noise)
        self.buffer_size = buffer_size
        self.restart_probability = restart_probability
        self.generative_weight = generative_weight
        self.weight_ramp = checked_ramp("weight_ramp", weight_ramp)
        self.energy_limit = energy_limit
        # No buffer of the module: DDP would copy the first process's to all others.
        self.replay: Tensor | None = None
        self._restored: Tensor | None = None
        self._difference: Tensor | None = None

    def objective(self, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        samples = self.sample(batch)
        logits, sample_logits = self.logits(self._noisy(batch), samples)
        loss = self.inlier_loss(logits, batch)
        log_p = wide(logits).logsumexp(1).mean()
        sample_log_p = wide(sample_logits).logsumexp(1).mean()
        difference = log_p - sample_log_p
        self._difference = difference.detach()
        self.log("train/log_p", log_p.detach())
        self.log("train/log_p_samples", sample_log_p.detach())
        weight = self.generative_weight * climbed(self.weight_ramp, self.progress)
        return loss - weight * difference

    def divergence(self) -> str | None:
        """Return by how much log p of images and samples ran apart, beyond `energy_limit`."""
        if self._difference is None or bool(self._difference.abs() <= self.energy_limit):
            return None
        return (
            f"log p of images and of samples differ by {float(self._difference):.3g}, beyond "
            f"energy_limit {self.energy_limit:g},"
        )

    @property
    def divergence_advice(self) -> str:
        """What makes the energies stay together."""
        return (
            "energies run apart where chains are too short: give more steps, a lower learning "
            "rate, a generative_weight of 0.1 or a longer weight_ramp, or a network with "
            "activation: silu"
        )

    # Samples
    # ---------------------------------------------------------------------------------------------

    def sample(self, batch: Batch) -> Tensor:
        """Return as many samples as the batch has images, `(N, C, H, W)` in [0, 1], and keep them.

        Chains are drawn from the buffer without repetition, so that each goes on once.
        """
        replay = self._replay_for(batch)
        count = len(batch.images)
        if count > len(replay):
            raise UserError(
                f"buffer_size: {len(replay)} chains in a process are fewer than a batch's {count} "
                "images"
            )
        draws = self.draws("replay", batch)
        order = torch.randperm(len(replay), generator=draws, device=replay.device)
        chosen = order[:count]
        restarted = torch.rand(count, generator=draws, device=replay.device)
        fresh = _uniform(replay[:count].shape, draws, replay.dtype)
        restarts = (restarted < self.restart_probability).view(-1, 1, 1, 1)
        start = torch.where(restarts, fresh, replay[chosen])
        samples = self.run_chains(self._laid_out(start), batch)
        replay[chosen] = samples.to(replay)
        return samples

    def run_chains(self, start: Tensor, batch: Batch) -> Tensor:
        """Return where chains end that begin at images `(N, C, H, W)`."""
        keys = (batch.epoch, batch.step, self.global_rank)
        with self.searching():
            end = minimize(
                lambda images: -wide(logits_of(self._run(images))).logsumexp(1),
                start,
                Unbounded(),
                steps=self.steps,
                step_size=self.step_size,
                rule=Langevin(self.noise, self.seed, keys),
                keep="last",
            )
        return end.images

    def _noisy(self, batch: Batch) -> Tensor:
        if not self.input_noise:
            return batch.images
        draws = self.draws("noise on images", batch)
        noise = torch.randn(
            batch.images.shape, generator=draws, device=draws.device, dtype=batch.images.dtype
        )
        return (batch.images + self.input_noise * noise).clamp(0, 1)

    # The replay buffer
    # ---------------------------------------------------------------------------------------------

    def _replay_for(self, batch: Batch) -> Tensor:
        """Return this process's buffer `(n, C, H, W)`, made on the first batch."""
        images = batch.images
        if self.replay is None:
            shape = (max(self.buffer_size // self._processes, 1), *images.shape[1:])
            draws = generator(self.seed, "replay buffer", self.global_rank, device=images.device)
            self.replay = _uniform(shape, draws, images.dtype)
            self._take_restored(self.replay)
        return self.replay

    def _take_restored(self, replay: Tensor) -> None:
        """Put a checkpoint's chains, this process's share of them, into the buffer."""
        if self._restored is None:
            return
        if self._restored.shape[1:] != replay.shape[1:]:
            raise UserError(
                f"ckpt_path: the checkpoint's samples are {tuple(self._restored.shape[1:])}, the "
                f"images {tuple(replay.shape[1:])}"
            )
        share = len(self._restored) // self._processes
        chains = self._restored[self.global_rank * share :][: min(share, len(replay))]
        replay[: len(chains)] = chains.to(replay)
        self._restored = None

    @property
    def _processes(self) -> int:
        # A method outside a trainer is a process of its own.
        return self.trainer.world_size if self._trainer is not None else 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the buffers of all processes into the checkpoint, one after the other."""
        super().on_save_checkpoint(checkpoint)
        if self.replay is None:
            return
        gathered = self.replay
        if self._processes > 1:
            gathered = self.all_gather(self.replay).flatten(0, 1)  # type: ignore[union-attr]
        checkpoint[_REPLAY] = gathered.detach().cpu().clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint's chains until the first batch."""
        super().on_load_checkpoint(checkpoint)
        self.replay = None
        self._restored = checkpoint.get(_REPLAY)


def _uniform(shape: tuple[int, ...], draws: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return uniform noise in [0, 1)."""
    return torch.rand(shape, generator=draws, device=draws.device, dtype=dtype)


def _deviation(name: str, value: float | Fraction) -> float:
    """Return a standard deviation in pixel fractions, >= 0."""
    deviation = float(Fraction(value, name))
    if not deviation >= 0:
        raise UserError(f"{name}: {value} is not >= 0")
    return deviation


def _paper() -> Optimization:
    return Optimization(
        optimizer={"name": "adam", "lr": 1e-4},
        scheduler={
            "name": "milestones",
            "milestones": [0.8, 0.9],
            "gamma": 0.3,
            "warmup": 0.0064,
        },
    )
