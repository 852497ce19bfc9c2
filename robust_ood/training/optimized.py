"""The part of a training method that optimises, and that resumes under the settings of this run."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import Self

from robust_ood.errors import UserError
from robust_ood.training.freezing import ALL, Frozen, freeze
from robust_ood.training.optimization import Optimization

_PLATEAU_STATE = ("best", "cooldown_counter", "last_epoch", "num_bad_epochs")
"""What a plateau schedule has seen; the rest of its state are settings."""


class OptimizedPart(NamedTuple):
    """A network, the setting that it is optimised by, and its groups of parameters, if it has."""

    net: nn.Module
    optimization: Optimization
    groups: list[dict[str, Any]] | None = None


class OptimizedModule(LightningModule):
    """A LightningModule whose optimiser and schedule are one setting.

    A run that is resumed under the settings that it began with goes on from the checkpoint's state.
    Under others, this run's settings count: a schedule stands where it would stand had it been this
    one from the start, and the optimiser keeps what it has learnt, such as its momentum, if it is
    of the same class and has the same groups of parameters.

    Args:
        optimization: optimiser and schedule; SGD with Nesterov momentum and a cosine by default.
    """

    net: nn.Module

    def __init__(self, optimization: Optimization | None = None) -> None:
        super().__init__()
        self.optimization = optimization or Optimization()
        self._optimization_state: dict[str, str] = {}
        self._checkpoint: dict[str, Any] | None = None
        self._steps: float | None = None
        self._frozen: list[Frozen] | None = None

    def setup(self, stage: str) -> None:
        """Freeze what a run does not train, before processes compare their parameters."""
        if stage == "fit":
            self._freeze()

    def teardown(self, stage: str) -> None:
        """Leave the network as it was given: what was frozen takes gradients again."""
        for frozen in self._frozen or []:
            frozen.release()
        self._frozen = None

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode; what is frozen stays in eval mode."""
        super().train(mode)
        self.rest_frozen()
        return self

    def rest_frozen(self) -> None:
        """Put what is frozen into eval mode again, after a part was set to train mode by itself."""
        for frozen in self._frozen or []:
            frozen.rest()

    def _freeze(self) -> None:
        if self._frozen is None:
            frozen = []
            for part in self.optimized_parts():
                frozen.append(freeze(part.net, part.optimization.trainable))
            self._frozen = frozen

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule; of several parts, a list of them."""
        self._freeze()  # a method with a `setup` of its own may not have
        parts = self.optimized_parts()
        configured = []
        settings = []
        for part in parts:
            configured.append(self._configured(part))
            settings.append(f"{part.optimization!r} over {self._length(part.optimization)}")
        self._optimization_state = {
            "settings": "; ".join(settings),
            "optimizer": ", ".join(type(made["optimizer"]).__name__ for made in configured),
            "trainable": "; ".join(str(part.optimization.trainable) for part in parts),
        }
        if len(configured) == 1:
            return configured[0]
        return configured

    def optimized_parts(self) -> list[OptimizedPart]:
        """Return what is optimised apart, the network first; by default the network alone.

        A method of several parts takes their steps itself (Lightning's manual optimisation).
        """
        return [OptimizedPart(self.net, self.optimization, self.parameter_groups())]

    def parameter_groups(self) -> list[dict[str, Any]] | None:
        """Return groups of parameters with settings of their own; None for one group of all."""
        return None

    @property
    def progress(self) -> float:
        """The share of the run's optimiser steps that are done, in [0, 1]; 1 outside a run."""
        if self._steps is None:
            return 1.0
        return min(self.global_step / max(self._steps, 1), 1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say under which settings its optimiser and schedule came to be."""
        checkpoint["optimization"] = self._optimization_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint until the length of the run is known."""
        self._checkpoint = checkpoint

    def on_fit_start(self) -> None:
        """Put this run's settings into a checkpoint of other ones, before Lightning restores it."""
        self._steps = self.trainer.estimated_stepping_batches
        checkpoint = self._checkpoint
        self._checkpoint = None
        if checkpoint is not None:
            saved = checkpoint.get("optimization", {})
            if saved.get("settings") != self._optimization_state["settings"]:
                # Before checkpoints said what they hold, SGD was all that they could.
                names = saved.get("optimizer", "SGD")
                everything = "; ".join([ALL] * len(self.optimized_parts()))
                if saved.get("trainable", everything) != self._optimization_state["trainable"]:
                    names = ""  # its state is of other layers
                self._take_over(checkpoint, names)

    def on_validation_start(self) -> None:
        """Forget what an earlier validation logged for a plateau schedule."""
        for _, monitor in self._plateaus():
            self.trainer.callback_metrics.pop(monitor, None)

    def on_validation_epoch_end(self) -> None:
        """Step a plateau schedule where this validation logged its number."""
        values = self.trainer.callback_metrics
        for plateau, monitor in self._plateaus():
            if monitor in values:
                plateau.step(float(values[monitor]))
            elif not self._will_log(monitor):
                logged = ", ".join(sorted(values)) or "nothing"
                raise UserError(
                    f"optimization.monitor: {monitor!r} is not logged; logged: {logged}"
                )

    def _will_log(self, monitor: str) -> bool:
        """Return whether a callback logs a number, if not after this validation."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(monitor in getattr(callback, "logs", ()) for callback in callbacks)

    def schedules(self) -> list[LRScheduler | ReduceLROnPlateau]:
        """Return the schedule of each part."""
        schedules = self.lr_schedulers()
        if schedules is None:
            return []
        if isinstance(schedules, list):
            return schedules
        return [schedules]

    def _plateaus(self) -> list[tuple[ReduceLROnPlateau, str]]:
        """Return the plateau schedules of a run that is training, and what each follows."""
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return []
        plateaus = []
        for part, schedule in zip(self.optimized_parts(), self.schedules(), strict=True):
            if isinstance(schedule, ReduceLROnPlateau):
                plateaus.append((schedule, part.optimization.monitor))
        return plateaus

    def _configured(self, part: OptimizedPart) -> dict[str, Any]:
        length = self._length(part.optimization)
        return part.optimization.configure(part.net, length, part.groups)

    def _length(self, optimization: Optimization) -> int:
        """Return the length of the run in steps of a schedule."""
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UserError(
                "trainer.max_epochs: the learning rate follows the run to its end; "
                "set max_epochs or max_steps"
            )
        if optimization.interval == "epoch":
            return math.ceil(steps / self._steps_per_epoch())
        return int(steps)

    def _steps_per_epoch(self) -> int:
        batches = self.trainer.num_training_batches
        return max(math.ceil(batches / self.trainer.accumulate_grad_batches), 1)

    def _take_over(self, checkpoint: dict[str, Any], optimizer_names: str) -> None:
        """Replace the states of a checkpoint's optimisers and schedules by those of our settings.

        Args:
            checkpoint: as Lightning is about to restore it; changed in place.
            optimizer_names: the classes of the checkpoint's optimisers.
        """
        names = optimizer_names.split(", ")
        saved = checkpoint["optimizer_states"]
        saved_schedules = checkpoint["lr_schedulers"]
        states = []
        schedules = []
        for place, part in enumerate(self.optimized_parts()):
            state, schedule = self._taken_over(
                part,
                checkpoint["global_step"],
                names[place] if place < len(names) else "",
                saved[place] if place < len(saved) else {"param_groups": []},
                saved_schedules[place] if place < len(saved_schedules) else None,
            )
            states.append(state)
            schedules.append(schedule)
        checkpoint["optimizer_states"] = states
        checkpoint["lr_schedulers"] = schedules

    def _taken_over(
        self,
        part: OptimizedPart,
        steps: int,
        saved_name: str,
        saved: dict[str, Any],
        saved_schedule: dict[str, Any] | None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states of a part's optimiser and schedule after so many steps."""
        if part.optimization.interval == "epoch":
            steps = steps // self._steps_per_epoch()
        configured = self._configured(part)
        optimizer: Optimizer = configured["optimizer"]
        schedule: LRScheduler = configured["lr_scheduler"]["scheduler"]
        if not isinstance(schedule, ReduceLROnPlateau):
            _replay(schedule, steps)
        elif saved_schedule is not None:
            _take_plateau(schedule, saved_schedule, saved)
        state = optimizer.state_dict()
        if saved_name == type(optimizer).__name__ and _same_groups(saved, state):
            state["state"] = saved["state"]
        else:
            rank_zero_warn(
                "optimization: the checkpoint's optimiser has another class or other groups of "
                "parameters; this run's begins without its state"
            )
        return state, schedule.state_dict()


def _replay(schedule: LRScheduler, steps: int) -> None:
    """Step a new schedule, whose state depends on nothing but the number of its steps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(steps):
            schedule.step()


def _take_plateau(
    schedule: ReduceLROnPlateau, saved: dict[str, Any], saved_optimizer: dict[str, Any]
) -> None:
    """Go on from what another plateau schedule has seen, and from how far it had come down."""
    if saved.get("mode") != schedule.mode:
        return  # the checkpoint had another schedule, or followed another number
    schedule.load_state_dict({name: saved[name] for name in _PLATEAU_STATE})
    groups = schedule.optimizer.param_groups
    for group, saved_group in zip(groups, saved_optimizer["param_groups"], strict=False):
        if group["lr"] == saved_group["initial_lr"]:
            group["lr"] = saved_group["lr"]
        else:
            group["lr"] *= saved_group["lr"] / saved_group["initial_lr"]


def _same_groups(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two states of optimisers are of the same groups of parameters."""
    first_groups = [group["params"] for group in first["param_groups"]]
    second_groups = [group["params"] for group in second["param_groups"]]
    return first_groups == second_groups
