"""Metrics pooled over two processes equal those of one process that saw everything.

Run as a script, this file is one of the two processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

import robust_ood
from robust_ood.metrics import AUROC, FPR95, OODMetrics, ood_metrics

ID_SCORES = torch.randn(157, generator=torch.Generator().manual_seed(0)) + 1
OOD_SCORES = torch.randn(
    101, generator=torch.Generator().manual_seed(1)
).double()  # of another type than ID

# What each of the two processes sees of (ID, OOD).
SHARES = {
    "uneven": [(ID_SCORES[:100], OOD_SCORES[:11]), (ID_SCORES[100:], OOD_SCORES[11:])],
    "one kind each": [(ID_SCORES, None), (None, OOD_SCORES)],
    "nothing for one": [(None, None), (ID_SCORES, OOD_SCORES)],
}


def run_process(rank, meeting_point):
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2
    )
    results = {}
    for name, shares in SHARES.items():
        pooled, single = OODMetrics(), [AUROC(), FPR95()]
        with torch.inference_mode():
            for scores, in_distribution in zip(shares[rank], (True, False), strict=True):
                for batch in () if scores is None else scores.split(32):
                    for metric in (pooled, *single):
                        metric.update(batch, in_distribution)
        results[name] = {key: value.item() for key, value in pooled.compute().items()}
        results[name] |= {"AUROC": single[0].compute().item(), "FPR95": single[1].compute().item()}
        results[name]["kept"] = sum(
            len(part) for part in pooled.id_scores
        )  # its own share again, after compute
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
    return [json.loads(output.splitlines()[-1]) for output in outputs_of(processes, timeout=120)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("share", SHARES)
def test_two_processes_equal_one(results, share, rank):
    expected = ood_metrics(ID_SCORES, OOD_SCORES)
    own = SHARES[share][rank][0]
    assert results[rank][share] == expected | {
        "AUROC": expected["auroc"],
        "FPR95": expected["fpr95"],
        "kept": 0 if own is None else len(own),
    }


if __name__ == "__main__":
    run_process(int(sys.argv[1]), sys.argv[2])
