"""A guard in an exchange format: network, score and threshold as one graph of tensor operations."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.data import EMBEDDED
from robust_ood.deployment.guard import Guard
from robust_ood.detectors import (
    PRO,
    Detector,
    GradNorm,
    GradUncertainty,
    InputNoise,
    SafeSpot,
    Smoothed,
)
from robust_ood.errors import UserError
from robust_ood.texts import first_sentence
from robust_ood.writing import replace_file

Format = Literal["torch", "onnx"]
OPSET = 18
"""The version of ONNX's operators; ONNX Runtime reads it from 1.14 on."""
OUTPUTS = ("scores", "accepted", "classes", "probabilities")
TOLERANCE = 1e-3
"""How far a score may differ from PyTorch's, as a share of the largest; more is no export."""
_CHECKED = 32
"""Real images of each kind on which an export is compared with PyTorch."""
_REASONS: dict[type[Detector], str] = {
    InputNoise: "it moves each image along a gradient of its score, which a graph of forward "
    "operations does not have",
    PRO: "it searches each image's neighbourhood with gradients of its score, which a graph of "
    "forward operations does not have",
    SafeSpot: "it searches with gradients, which a graph of forward operations does not have",
    Smoothed: "it draws noise for each image, which no exchange format reproduces",
    GradNorm: "it is defined by a gradient, and not offered in exchange formats",
    GradUncertainty: "it is defined by a gradient, and not offered in exchange formats",
}


class Exported(NamedTuple):
    """What an export wrote, and how near it is to PyTorch.

    file: the program. difference: the largest of a score or a probability on real images.
    changed: how many of the `images` decisions or classes differ.
    """

    file: Path
    difference: float
    changed: int
    images: int

    def in_words(self) -> str:
        """Return the comparison as a sentence."""
        return (
            f"largest difference from PyTorch on {self.images} images: {self.difference:.2g}; "
            f"{self.changed} decisions differ"
        )


class Program(nn.Module):
    """What is exported: prepared images to the four tensors of a decision, without checks."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scores, accepted, classes `(N,)` and probabilities `(N, K)`.

        images: float32 `(N, C, H, W)` in [0, 1], of the network's size.
        """
        decision = self.guard.decide(images)
        return tuple(decision)  # type: ignore[return-value]


@typed
def export_guard(guard: Guard, folder: Path | str, format: Format = "torch") -> Exported:  # noqa: A002
    """Write a guard as a `torch.export` program or an ONNX graph, once it is checked.

    The program takes `images`, float32 `(N, C, H, W)` in [0, 1] of the network's size (any N), and
    gives `scores`, `accepted`, `classes` `(N,)` and `probabilities` `(N, K)`. Resizing and cropping
    are not in it; `export.json` beside it says what they are.

    Args:
        guard: with a detector that is a function of tensors; those that need gradients or draws for
            each image are refused, with the reason.
        folder: made where it does not exist.
        format: "torch" writes `guard.pt2`, "onnx" `guard.onnx` of opset 18.

    Raises: `UserError` for a detector that cannot be exported, a missing package, or an export
        whose scores differ from PyTorch's.
    """
    _refuse(guard.detector)
    if format == "onnx":
        require_onnx()
    images = real_images(guard)
    program = Program(guard).eval()
    with torch.no_grad():
        expected = program(images)  # which also lets lazy parts of networks settle
        run, content = (_to_torch if format == "torch" else _to_onnx)(program, images)
        actual = run(images)
    difference, changed = _compare(actual, expected)
    scale = max(1.0, float(expected[0].abs().max()))
    if not difference <= TOLERANCE * scale:
        raise UserError(
            f"format: the {format} program's scores differ from PyTorch's by {difference:.2g} on "
            f"{len(images)} images; expected at most {TOLERANCE * scale:.2g}; nothing was written"
        )
    file = Path(folder) / ("guard.pt2" if format == "torch" else "guard.onnx")
    exported = Exported(file, difference, changed, len(images))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)
        replace_file(file.with_name("export.json"), _facts(guard, format, exported))
    except OSError as error:
        raise UserError(
            f"output: cannot write into {file.parent} ({error.strerror or error})"
        ) from error
    return exported


def real_images(guard: Guard) -> Tensor:
    """Return photograph patches and digits as the network takes them, `(N, C, H, W)`."""
    preprocessing = guard.description.preprocessing
    prepared = []
    for name in ("digits/test", "photographs/test"):
        pixels = torch.from_numpy(EMBEDDED[name]().images[:_CHECKED]).permute(0, 3, 1, 2)
        if preprocessing.height != preprocessing.width:  # which files cannot be brought to
            size = (preprocessing.height, preprocessing.width)
            pixels = nn.functional.interpolate(pixels.float(), size).to(torch.uint8)
        prepared.append(preprocessing.tensor(pixels))
    return torch.cat(prepared).contiguous()


def require_onnx() -> None:
    """Raise `UserError` where a package of the extra is missing, or torch is too old."""
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f"format: onnx needs {', '.join(missing)}; pip install 'robust-ood[onnx]'")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise UserError(f"format: onnx needs torch >= 2.6, this is {torch.__version__}")


def _refuse(detector: Detector) -> None:
    """Raise `UserError` for a detector that does more than tensor operations on an image."""
    for part in detector.modules():
        for kind, reason in _REASONS.items():
            if isinstance(part, kind):
                raise UserError(
                    f"format: {type(part).__name__} cannot be exported: {reason}; robust-ood "
                    "predict and serve run it"
                )


Run = Callable[[Tensor], tuple[Tensor, ...]]


def _to_torch(program: Program, images: Tensor) -> tuple[Run, bytes]:
    """Return the exported program as a function, read back from the bytes that are written."""
    exported = _traced(program, images)
    file = io.BytesIO()
    torch.export.save(exported, file)
    module = torch.export.load(io.BytesIO(file.getvalue())).module()
    return lambda batch: tuple(module(batch)), file.getvalue()


def _to_onnx(program: Program, images: Tensor) -> tuple[Run, bytes]:
    exported = _traced(program, images)
    with _quietly():
        graph = torch.onnx.export(
            exported,
            (images,),
            input_names=["images"],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert graph is not None
    content: bytes = graph.model_proto.SerializeToString()
    return onnx_run(content), content


def onnx_run(content: bytes) -> Run:
    """Return an ONNX graph as a function of images `(N, C, H, W)`, run by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        arrays = session.run(list(OUTPUTS), {"images": np.asarray(images)})
        return tuple(torch.from_numpy(array) for array in arrays)

    return run


def _traced(program: Program, images: Tensor) -> Any:
    """Return the program's graph, for batches of any size."""
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with _quietly(), torch.no_grad():
            return torch.export.export(program, (images[:4],), dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:  # tracers raise anything on what they cannot follow
        kind = type(program.guard.detector).__name__
        raise UserError(
            f"format: {kind} cannot be exported: torch.export cannot follow it "
            f"({first_sentence(error, 120)})"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporters' notes, which are for their developers, off the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _compare(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> tuple[float, int]:
    """Return the largest difference of a number, and how many images' decisions differ."""
    differences = []
    for index in (0, 3):
        differences.append(float((actual[index] - expected[index]).abs().max()))
    changed = (actual[1] != expected[1]) | (actual[2] != expected[2])
    return max(differences), int(changed.sum())


def _facts(guard: Guard, format: Format, exported: Exported) -> str:  # noqa: A002
    """Return what a program's user has to know, as JSON."""
    description = guard.description
    facts = {
        "guard": description.id,
        "format": format,
        "file": exported.file.name,
        "opset": OPSET if format == "onnx" else None,
        "input": {"images": ["N", *description.preprocessing.input_shape], "range": [0, 1]},
        "outputs": list(OUTPUTS),
        "threshold": description.threshold.value,
        "class_names": list(description.class_names),
        "preprocessing": description.as_dict()["preprocessing"],
        "difference": exported.difference,
        "torch": str(torch.__version__),
    }
    return json.dumps(facts, indent=2) + "\n"
