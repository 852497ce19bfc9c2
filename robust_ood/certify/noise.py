"""Passes over noisy copies of one image, which all that read one network share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from robust_ood.detectors import Detector
from robust_ood.detectors.sharing import score_images
from robust_ood.detectors.smoothing import noise_blocks
from robust_ood.errors import UserError
from robust_ood.inputs import sample_indices
from robust_ood.randomness import Key


class Noise:
    """Noisy copies of images, drawn for each by its index and a seed.

    Args:
        sigma: standard deviation, > 0.
        seed: of all draws.
        batch_size: copies that are scored at a time.
    """

    def __init__(self, sigma: float, seed: int, batch_size: int) -> None:
        self.sigma = sigma
        self.seed = seed
        self.batch_size = batch_size

    def scores(
        self,
        detectors: Mapping[str, Detector],
        image: Tensor,
        draws: int,
        *keys: Key,
    ) -> dict[str, Tensor]:
        """Return each detector's scores `(draws,)` of noisy copies of one image `(C, H, W)`.

        The copies exist one batch at a time, a score stays for each. One image at a time fills
        batches by its copies, so that neither its draws nor their rounding depend on the other
        images.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in detectors}
        for block in noise_blocks(image.shape, draws, self.seed, *keys):
            for noise in torch.split(block, self.batch_size):
                noisy = image + self.sigma * noise.to(image)  # (copies, C, H, W)
                # The layout that convolutions are fastest in.
                noisy = noisy.contiguous(memory_format=torch.channels_last)
                for name, scores in score_images(detectors, noisy).items():
                    found[name].append(scores)
        return {name: torch.cat(scores) for name, scores in found.items()}

    def refuse_random(self, detectors: Mapping[str, Detector], image: Tensor) -> None:
        """Raise `UserError` where a detector gives the same noisy images other scores again.

        Its own luck would be counted as the noise's.
        """
        # Rounding on a device may differ from pass to pass, luck differs by more.
        first = self.scores(detectors, image, 2, "probe")
        again = self.scores(detectors, image, 2, "probe")
        for name, scores in first.items():
            if not torch.allclose(scores, again[name], rtol=1e-3, atol=1e-6, equal_nan=True):
                raise UserError(
                    f"{name}: {type(detectors[name]).__name__} is random itself: it gave one image "
                    f"the scores {scores[0]:.6g} and {again[name][0]:.6g}; expected the same score "
                    "for the same image"
                )


def checked_indices(indices: Tensor | None, count: int) -> list[int]:
    """Return the indices that key the draws, 0..N-1 by default.

    Raises: `UserError` for another number of them, or for anything but whole numbers.
    """
    return [int(index) for index in sample_indices(indices, count).tolist()]
