"""Detectors fitted over two processes, with unequal shares, equal those of one process that saw
everything.

Run as a script, this file is one of the two processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import robust_ood
from robust_ood import detectors
from robust_ood.errors import UserError

NAMES = (
    "mahalanobis",
    "relative-mahalanobis",
    "knn",
    "combood",
    "vim",
    "residual",
    "react",
    "dice",
    "kl-matching",
    "msp-t",
    "gram",
)
SETTINGS = {
    "knn": {"neighbours": 3, "bank_size": 100},
    "combood": {"neighbours": 3, "bank_size": 100, "layers": "conv"},
    "gram": {"layers": "conv"},
}
COUNTS = (90, 150)  # images of each process


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean((2, 3)))


def problem():
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.head.weight *= 40
        net.head.bias *= 40
    images = torch.rand(sum(COUNTS), 3, 6, 6)
    with torch.no_grad():
        logits = net(images)
        net.head.bias -= logits.mean(0)
        labels = torch.where(
            torch.arange(len(images)) % 3 > 0, net(images).argmax(1), torch.arange(len(images)) % 3
        )
    fresh = [
        detectors.build(
            name,
            net,
            **SETTINGS.get(name, {}),
        )
        for name in NAMES
    ]
    detectors_to_fit = [*fresh, detectors.Mean([detectors.Standardize(detectors.Energy(net))])]
    layered = detectors.Mahalanobis(net, ("conv", "penultimate"))
    return detectors_to_fit, layered, images, labels, torch.rand(8, 3, 6, 6)


def scores(images, labels, noise, chosen, layered, probe, size):
    loader = list(zip(images.split(size), labels.split(size), strict=True))
    detectors.fit([*chosen, layered], loader, outliers=[noise])
    with torch.no_grad():
        return [detector(probe).tolist() for detector in (*chosen, layered)]


def run_process(rank, meeting_point):
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2
    )
    chosen, layered, images, labels, probe = problem()
    noise = torch.rand(60, 3, 6, 6, generator=torch.Generator().manual_seed(5)).split([10, 50])[
        rank
    ]
    mine = slice(0, COUNTS[0]) if rank == 0 else slice(COUNTS[0], None)
    results = {"scores": scores(images[mine], labels[mine], noise, chosen, layered, probe, 40)}
    try:
        detectors.Energy(chosen[0].net).fit([])  # needs nothing
        detectors.Residual(chosen[0].net).fit([images] if rank == 0 else [])
    except UserError as error:
        results["error"] = str(error)
    print(json.dumps(results), flush=True)
    distributed.barrier()
    os._exit(
        0
    )  # without `destroy_process_group`, in which older PyTorch may wait for ever for the other process


@pytest.fixture(scope="module")
def results(tmp_path_factory, outputs_of):
    meeting_point = tmp_path_factory.mktemp("ddp") / "meeting_point"
    root = Path(robust_ood.__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(meeting_point)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    return [json.loads(output.splitlines()[-1]) for output in outputs_of(processes, timeout=240)]


def test_both_processes_score_as_one_that_saw_everything(results):
    with torch.random.fork_rng():
        chosen, layered, images, labels, probe = problem()
    noise = torch.rand(60, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    expected = scores(images, labels, noise, chosen, layered, probe, 240)
    for process in results:
        for name, own, alone in zip(
            [*NAMES, "mean", "layers"], process["scores"], expected, strict=True
        ):
            torch.testing.assert_close(
                torch.tensor(own),
                torch.tensor(alone),
                rtol=1e-3,
                atol=1e-4,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_a_process_without_images_is_an_error_in_all_of_them(results):
    assert all("loader: gives no images" in process["error"] for process in results)


if __name__ == "__main__":
    run_process(int(sys.argv[1]), sys.argv[2])
