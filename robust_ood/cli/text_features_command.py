"""`robust-ood text-features`: the features of words, as a file that evaluations read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.errors import UserError
from robust_ood.models.image_text import load_image_text
from robust_ood.models.words import (
    TEMPLATES,
    WordFeatures,
    check_templates,
    check_words,
    text_features,
)


def parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="robust-ood text-features",
        description="Write text features of words for zero-shot detection.",
    )
    libraries: Any = Literal["open_clip", "transformers"]
    parser.add_argument("--library", type=libraries, default="open_clip", help="who builds it")
    parser.add_argument("--name", type=str, required=True, help="model, as models.CLIP takes it")
    parser.add_argument("--weights", type=str | None, default=None, help="open_clip's tag or file")
    parser.add_argument(
        "--in_words", type=list[str] | Path, required=True, help="a list, or a file, one a line"
    )
    parser.add_argument(
        "--out_words", type=list[str] | Path, default=[], help="a list, or a file, one a line"
    )
    parser.add_argument(
        "--templates", type=list[str] | Path, default=list(TEMPLATES), help="sentences with one {}"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write, .npz")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Write the text features and return the exit code."""
    config = parse_arguments(parser(), arguments)
    in_words = _lines("in_words", config.in_words)
    out_words = _lines("out_words", config.out_words)
    templates = _lines("templates", config.templates)
    check_words(in_words, out_words)
    check_templates(templates)
    if config.output.suffix != ".npz":
        raise UserError(f"output: expected a file that ends in .npz, got {config.output}")
    check_writable(config.output.absolute().parent)
    if config.library == "open_clip" and config.weights is None:
        raise UserError("weights: not given; those of open_clip's text tower would be random")
    model, tokenizer, _ = load_image_text(config.name, config.weights, config.library)
    if tokenizer is None:
        raise UserError(f"name: {config.name} has no tokenizer, which words need")
    inside = text_features(model, tokenizer, in_words, templates)
    outside = torch.empty(0, inside.shape[1])
    if out_words:
        outside = text_features(model, tokenizer, out_words, templates)
    model_name = " ".join(filter(None, [config.library, config.name, config.weights]))
    words = WordFeatures(
        inside,
        outside,
        _logit_scale(model),
        tuple(in_words),
        tuple(out_words),
        tuple(templates),
        model_name,
    )
    path = words.save(config.output)
    print(
        f"wrote {path}: {len(in_words)} in-words, {len(out_words)} out-words, width "
        f"{inside.shape[1]}, {len(templates)} templates"
    )
    return 0


def _logit_scale(model: Any) -> float:
    """Return the factor of the cosines, which CLIP keeps as a logarithm and limits to 100."""
    scale: Tensor = model.logit_scale.detach()
    return float(scale.exp().clamp(max=100.0))


def _lines(field: str, given: list[str] | Path) -> list[str]:
    """Return a list as it is, and the lines of a file that are not empty."""
    if isinstance(given, list):
        return given
    try:
        text = given.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: {given} cannot be read ({type(error).__name__})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
