"""Features of words, made once by a text tower and kept in a small file.

An evaluation then needs the image tower alone: neither the text tower nor its tokenizer.
"""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.modes import evaluating
from robust_ood.texts import first_sentence
from robust_ood.writing import replace_file

TEMPLATES = ("a photo of a {}.",)
_AT_A_TIME = 256  # texts
# AttributeError: a bare array (`.npy`) is no archive, in Python 3.10.
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class WordFeatures:
    """Unit text features of the words that describe both distributions.

    Args:
        in_features: `(K, D)`, one row for each in-word.
        out_features: `(M, D)`, one row for each out-word; M may be 0.
        logit_scale: the factor that the model puts before its cosines, > 0.
        in_words, out_words: the words, in the order of the rows.
        templates: the sentences that were averaged.
        model: which text tower made them.

    Raises:
        UserError: no in-word, a word in both lists or twice in one, rows that are not finite, or
            numbers of rows, words and columns that differ.
    """

    in_features: Tensor
    out_features: Tensor
    logit_scale: float
    in_words: tuple[str, ...]
    out_words: tuple[str, ...] = ()
    templates: tuple[str, ...] = TEMPLATES
    model: str = ""

    def __post_init__(self) -> None:
        check_words(self.in_words, self.out_words)
        for field, words in (("in_features", self.in_words), ("out_features", self.out_words)):
            rows: Tensor = getattr(self, field)
            if rows.ndim != 2 or len(rows) != len(words):
                raise UserError(
                    f"{field}: expected ({len(words)}, D), one row a word, got {tuple(rows.shape)}"
                )
            if not bool(rows.isfinite().all()):
                raise UserError(f"{field}: expected finite numbers, got NaN or infinity")
            object.__setattr__(self, field, F.normalize(rows.float(), dim=1))
        if len(self.out_words) and self.out_features.shape[1] != self.in_features.shape[1]:
            raise UserError(
                f"out_features: expected {self.in_features.shape[1]} columns, as in_features has, "
                f"got {self.out_features.shape[1]}"
            )
        if not 0 < self.logit_scale < float("inf"):
            raise UserError(f"logit_scale: expected a number > 0, got {self.logit_scale}")

    def with_negative_words(self, share: float = 0.15, percentile: float = 95.0) -> WordFeatures:
        """Return the in-words, and of the out-words those that are farthest from them.

        Source: Jiang et al. 2024 (NegLabel), the mining of negative labels: a candidate is as near
        to the in-words as that percentile of its cosines to them says, and the given share with
        the lowest values is kept, the farthest first. Nouns and adjectives are mined apart there:
        call it for each list.

        Args:
            share: of the out-words `(M, D)` that is kept, in (0, 1]; rounded down, at least one.
            percentile: in [0, 100]; at 100 the nearest in-word counts, below it few similar
                in-words do not.

        Raises:
            UserError: no out-words, or a setting outside its range.
        """
        if not self.out_words:
            raise UserError(
                "out_words: none given; expected the candidates that negative words are mined from"
            )
        if not 0 < share <= 1:
            raise UserError(f"share: expected a number in (0, 1], got {share}")
        if not 0 <= percentile <= 100:
            raise UserError(f"percentile: expected a number in [0, 100], got {percentile}")
        nearness = []
        for rows in torch.split(self.out_features, _AT_A_TIME):
            cosines = rows @ self.in_features.T  # (B, K), never (M, K)
            nearness.append(torch.quantile(cosines, percentile / 100, dim=1))
        order = torch.cat(nearness).argsort(stable=True)
        kept = order[: max(1, int(len(order) * share))]
        return replace(
            self,
            out_features=self.out_features[kept],
            out_words=tuple(self.out_words[row] for row in kept.tolist()),
        )

    def save(self, path: Path | str) -> Path:
        """Write them as an `.npz` file, in place of an earlier one, and return its path."""
        path = Path(path)
        facts = {
            "in_words": self.in_words,
            "out_words": self.out_words,
            "templates": self.templates,
            "logit_scale": self.logit_scale,
            "model": self.model,
        }
        content = io.BytesIO()
        np.savez(
            content,
            in_features=self.in_features.numpy(),
            out_features=self.out_features.numpy(),
            facts=np.array(json.dumps(facts)),  # text without dimensions, which needs no pickle
        )
        replace_file(path, content.getvalue())
        return path


@typed
def read_words(path: Path | str) -> WordFeatures:
    """Return the text features `(K, D)` and `(M, D)` of a file that `WordFeatures.save` wrote.

    Raises: `UserError` for a file that is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"words: {path} is no file; robust-ood text-features writes one")
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(str(arrays["facts"]))
        return WordFeatures(
            torch.from_numpy(arrays["in_features"]),
            torch.from_numpy(arrays["out_features"]),
            float(facts["logit_scale"]),
            tuple(facts["in_words"]),
            tuple(facts["out_words"]),
            tuple(facts["templates"]),
            str(facts["model"]),
        )
    except UserError as error:
        raise UserError(f"words: {path}: {error}") from error
    except _DAMAGED as error:
        reason = first_sentence(error, 80)
        raise UserError(
            f"words: {path} is not a file of text features ({reason}); robust-ood text-features "
            "writes one"
        ) from error


def check_words(in_words: Sequence[str], out_words: Sequence[str]) -> None:
    """Raise `UserError` for no in-word, an empty word, or one that is given twice.

    `CIFAR`'s underscores count as spaces, and upper and lower case as the same.
    """
    if not in_words:
        raise UserError("in_words: none given; expected one or more names of the in-distribution")
    seen: dict[str, str] = {}
    for field, words in (("in_words", in_words), ("out_words", out_words)):
        for word in words:
            plain = plain_word(word).lower()
            if not plain:
                raise UserError(f"{field}: expected words, got an empty one")
            if plain in seen:
                where = "twice" if seen[plain] == field else "in both lists"
                raise UserError(
                    f"{field}: {word!r} is {where}; each word belongs to one list, once"
                )
            seen[plain] = field


def check_templates(templates: Sequence[str]) -> None:
    """Raise `UserError` for no template, or one without its one `{}`."""
    if not templates:
        raise UserError("templates: none given; expected sentences with one {}")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"templates: expected one {{}} for the word, got {template!r}")


def plain_word(word: str) -> str:
    """Return a class name as a text has it: `aquarium_fish` is "aquarium fish"."""
    return " ".join(word.replace("_", " ").split())


@typed
def text_features(
    model: nn.Module,
    tokenizer: Callable[..., Any],
    words: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """Return the unit text features of words, `(N, D)`: unit features averaged over templates.

    Source: Radford et al. 2021 (CLIP), prompt ensembling: each template's feature has length 1
    before the mean, and the mean has length 1 again.

    Args:
        model: a model of open_clip, or a CLIP of transformers.
        tokenizer: the one that belongs to it, of the same library.
        words: N words; underscores become spaces.
        templates: sentences with one `{}`, where the word goes.

    Raises:
        UserError: no words, a template without its `{}`, or a model without a text tower.
    """
    check_words(words, ())
    check_templates(templates)
    total: Tensor | None = None
    for template in templates:
        texts = [template.replace("{}", plain_word(word)) for word in words]
        unit = F.normalize(_encoded(model, tokenizer, texts), dim=1)  # (N, D)
        total = unit if total is None else total + unit
    assert total is not None
    return F.normalize(total, dim=1)


def _encoded(model: nn.Module, tokenizer: Callable[..., Any], texts: list[str]) -> Tensor:
    device = next(model.parameters()).device
    parts = []
    with evaluating(model), torch.no_grad():
        for start in range(0, len(texts), _AT_A_TIME):
            batch = texts[start : start + _AT_A_TIME]
            parts.append(_encode_text(model, tokenizer, batch, device).float().cpu())
    return torch.cat(parts)


def _encode_text(model: Any, tokenizer: Any, texts: list[str], device: torch.device) -> Tensor:
    if hasattr(model, "encode_text"):  # open_clip
        encoded: Tensor = model.encode_text(tokenizer(texts).to(device))
        return encoded
    if hasattr(model, "get_text_features"):  # transformers
        # Truncated as open_clip does it; the tokenizer may not know the tower's length.
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        known = inspect.signature(model.get_text_features).parameters
        inputs = {name: value.to(device) for name, value in tokens.items() if name in known}
        return embedding_of(model.get_text_features(**inputs))
    raise UserError(
        f"model: {type(model).__name__} has no text tower; expected a model of open_clip "
        "(encode_text) or a CLIP of transformers (get_text_features)"
    )


def embedding_of(output: Any) -> Tensor:
    """Return the projected features `(N, D)`, which newer transformers return inside an object."""
    if isinstance(output, Tensor):
        return output
    features: Tensor = output.pooler_output
    return features
