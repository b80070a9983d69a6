"""Pre-training of the report encoder as a family: masked words, and whether the sections belong together.

Shapes here: B reports, F findings tokens, I impression tokens, L tokens of the encoder's window, M masked tokens,
V vocabulary. What `encode` returns: "findings" (B, F) and "impression" (B, I) token ids, padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from medisyn.errors import ConfigError, InputError
from medisyn.families.base import ParamGroup
from medisyn.families.medsyn.report_encoder import ReportEncoder, save_encoder
from medisyn.families.medsyn.sections import parse_report
from medisyn.types import Item, Request, Sample

if TYPE_CHECKING:
    from medisyn.families.base import Encoded


@dataclass(frozen=True, kw_only=True)
class ReportTrainingConfig:
    """MedSyn section IV-A. Longer reports than a row holds are refused; longer than the window are read in parts."""

    masked_share: float = 0.15
    swapped_share: float = 0.5  # impressions that are replaced by another report's
    pair_weight: float = 1.0
    window: int = 512  # tokens of one training example; at most the encoder's window
    findings_tokens: int = 1536  # places of a row; a report with more is an error, not cut
    impression_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("masked_share", "swapped_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.window < 8:
            raise ConfigError(f"window must be at least 8 tokens, got {self.window}")


@dataclass(frozen=True)
class _Example:
    """One report as it is trained on in one step."""

    tokens: list[int]
    second_from: int  # index at which the impression starts
    paired: bool | None  # None: it has one section only
    masked: list[int]  # indices


class ReportPretraining:
    """Implements `families.base.Family`; it makes no images, so `sample` and `decode` refuse.

    `impressions` are the texts that swapped impressions are drawn from: the training reports' own.
    """

    def __init__(
        self,
        encoder: ReportEncoder,
        tokenizer: Any,
        impressions: Sequence[str],
        config: ReportTrainingConfig | None = None,
    ) -> None:
        self.encoder: Any = encoder
        self.tokenizer = tokenizer
        self.config = config or ReportTrainingConfig()
        if self.config.window > encoder.config.max_position_embeddings:
            raise ConfigError(
                f"window {self.config.window} is longer than the encoder's {encoder.config.max_position_embeddings} "
                f"positions; extend them first"
            )
        self._others = [tuple(self._ids(text)) for text in dict.fromkeys(impressions) if text]
        if len(set(self._others)) < 2:
            raise ConfigError(
                f"paired-section prediction needs at least 2 different impressions to swap, got {len(self._others)}"
            )

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def to(self, device: str | torch.device) -> ReportPretraining:
        """Move the network; returns self."""
        self.encoder.to(device)
        return self

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """The captions of the samples as rows; the pixels are not looked at."""
        return self.encode_reports([sample.caption for sample in samples], [sample.key for sample in samples])

    def encode_reports(self, reports: Sequence[str], keys: Sequence[str] | None = None) -> Encoded:
        """Reports as the rows described above. Raises InputError for an empty one, or one that a row cannot hold."""
        config, findings, impressions = self.config, [], []
        for key, text in zip(keys or [str(number) for number in range(len(reports))], reports, strict=True):
            report = parse_report(text)
            if not report.text:
                raise InputError(f"report {key}: it is empty, or holds nothing but headings")
            findings.append(self._row(key, "findings", report.findings, config.findings_tokens))
            impressions.append(self._row(key, "impression", report.impression, config.impression_tokens))
        return {"findings": torch.tensor(findings), "impression": torch.tensor(impressions)}

    def _row(self, key: str, section: str, text: str, places: int) -> list[int]:
        ids = self._ids(text)
        if len(ids) > places:
            raise InputError(
                f"report {key}: its {section} has {len(ids)} tokens, a row holds {places}. Raise {section}_tokens; "
                f"nothing is cut."
            )
        return ids + [self.tokenizer.pad_token_id] * (places - len(ids))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    def loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Loss per report (B,): cross-entropy over its masked words, plus that of the pair where it has two sections.

        Row i draws from draws[i]: swap, which impression, part of the findings, part of the impression, masks.
        """
        pad = self.tokenizer.pad_token_id
        examples = [
            self._example(findings[findings != pad].tolist(), impression[impression != pad].tolist(), draw)
            for findings, impression, draw in zip(encoded["findings"], encoded["impression"], draws, strict=True)
        ]
        tokens_BL, types_BL, mask_BL = self._batch(examples)
        truth_BL = tokens_BL.clone()
        for row, example in enumerate(examples):
            tokens_BL[row, example.masked] = self.tokenizer.mask_token_id
        hidden_BLE = self.encoder.bert(
            input_ids=tokens_BL, token_type_ids=types_BL, attention_mask=mask_BL
        ).last_hidden_state

        rows_M = torch.tensor([row for row, e in enumerate(examples) for _ in e.masked], device=self.device)
        places_M = torch.tensor([place for e in examples for place in e.masked], device=self.device)
        logits_MV = self.encoder.cls(hidden_BLE[rows_M, places_M]).float()
        words_M = F.cross_entropy(logits_MV, truth_BL[rows_M, places_M], reduction="none")
        counts_B = torch.tensor([len(e.masked) for e in examples], device=self.device)
        words_B = words_M.new_zeros(len(examples)).index_add(0, rows_M, words_M) / counts_B

        paired_B = torch.tensor([int(bool(e.paired)) for e in examples], device=self.device)
        has_pair_B = torch.tensor([float(e.paired is not None) for e in examples], device=self.device)
        pairs_B = F.cross_entropy(self.encoder.pair_logits(hidden_BLE).float(), paired_B, reduction="none")
        return words_B + self.config.pair_weight * has_pair_B * pairs_B

    def _example(self, findings: list[int], impression: list[int], draw: torch.Generator) -> _Example:
        paired: bool | None = None
        if findings and impression:
            paired = bool(torch.rand((), generator=draw) >= self.config.swapped_share)
            if not paired:
                impression = self._another(impression, draw)
        room = self.config.window - 3
        short = min(len(impression), max(room // 2, room - len(findings)))
        findings = _part(findings, room - short, draw)
        impression = _part(impression, short, draw)
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        tokens = [cls, *findings, sep, *impression, *([sep] if impression else [])]
        words = [place for place, token in enumerate(tokens) if token not in (cls, sep)]
        chance = torch.rand(len(words), generator=draw)
        masked = [
            place for place, value in zip(words, chance.tolist(), strict=True) if value < self.config.masked_share
        ]
        return _Example(tokens, len(findings) + 2, paired, masked or [words[int(chance.argmin())]])

    def _another(self, own: list[int], draw: torch.Generator) -> list[int]:
        """An impression of other words than `own`."""
        start = int(torch.randint(len(self._others), (), generator=draw))
        order = self._others[start:] + self._others[:start]
        return list(next(other for other in order if list(other) != own))

    def _batch(self, examples: Sequence[_Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, segment (0 findings, 1 impression) and which are real, all (B, L), padded to the longest."""
        length = max(len(example.tokens) for example in examples)
        tokens_BL = torch.full((len(examples), length), self.tokenizer.pad_token_id)
        types_BL, mask_BL = torch.zeros_like(tokens_BL), torch.zeros_like(tokens_BL)
        for row, example in enumerate(examples):
            count = len(example.tokens)
            tokens_BL[row, :count] = torch.tensor(example.tokens)
            types_BL[row, example.second_from : count] = 1
            mask_BL[row, :count] = 1
        return tokens_BL.to(self.device), types_BL.to(self.device), mask_BL.to(self.device)

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Refuses: a report encoder makes no images."""
        raise InputError("a report encoder makes no images; train a base model that reads it")

    def decode(self, latents: torch.Tensor) -> list[Item]:
        """Refuses, as `sample` does."""
        raise InputError("a report encoder makes no images; train a base model that reads it")

    def trainable(self) -> list[ParamGroup]:
        """All of the encoder; puts it in training mode."""
        self.encoder.train()
        return [ParamGroup("report_encoder", list(self.encoder.parameters()))]

    def save(self, folder: Path) -> None:
        """The encoder and its tokenizer."""
        save_encoder(self.encoder, self.tokenizer, folder)


def _part(ids: list[int], room: int, draw: torch.Generator) -> list[int]:
    """All of it where it fits, else `room` tokens from a drawn place: over many steps every part is read."""
    if len(ids) <= room:
        return ids
    start = int(torch.randint(len(ids) - room + 1, (), generator=draw))
    return ids[start : start + room]
