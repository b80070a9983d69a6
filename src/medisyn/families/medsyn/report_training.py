"""Pre-training of the report encoder as a family: masked words, whether the sections belong together, and labels.

Masked words teach an encoder that "no" is likely before "effusion", not that it matters: the mean vectors of a finding
and of its denial stay close. Where the corpus knows what is there, the encoder may learn to tell that too, from the
mean of its vectors, which is what a base model with pooled text reads. That part is not MedSyn's.

Shapes here: B reports, F findings tokens, I impression tokens, K labels, L tokens of the encoder's window, M masked
tokens, V vocabulary. What `encode` returns: "findings" (B, F) and "impression" (B, I) token ids, padded, and "labels"
(B, K) in [0, 1], NaN where one is not known.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
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

WHOLE = 0.5  # share of reports whose labels are told from all of their sentences; from some of them in the others


@dataclass(frozen=True, kw_only=True)
class ReportTrainingConfig:
    """MedSyn section IV-A. Longer reports than a row holds are refused; longer than the window are read in parts."""

    masked_share: float = 0.15
    swapped_share: float = 0.5  # impressions that are replaced by another report's
    pair_weight: float = 1.0
    label_weight: float = 1.0  # where the encoder has a head for labels
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
    second_from: int = sys.maxsize  # index at which the impression starts
    paired: bool | None = None  # None: it has one section only
    masked: list[int] = field(default_factory=list)  # indices


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
        """The captions of the samples as rows, and metadata["labels"] where labels are learnt; pixels are not read."""
        rows = self.encode_reports([sample.caption for sample in samples], [sample.key for sample in samples])
        if self.encoder.label_head is None:
            return rows
        return {**rows, "labels": torch.stack([self._labels(sample) for sample in samples])}

    def _labels(self, sample: Sample) -> torch.Tensor:
        """(K,); refuses another number of them, and values outside [0, 1]."""
        labels_K = torch.tensor(sample.metadata.get("labels", ()), dtype=torch.float32)
        wanted = self.encoder.config.report_labels
        known = labels_K[~labels_K.isnan()]
        if len(labels_K) != wanted or ((known < 0) | (known > 1)).any():
            raise InputError(f"report {sample.key}: it needs {wanted} labels in [0, 1] or NaN, got {labels_K.tolist()}")
        return labels_K

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
        """Loss per report (B,): cross-entropy over its masked words, plus that of the pair where it has two sections,
        plus that of its known labels, added up.

        Row i draws from draws[i]: swap, which impression, part of the findings, part of the impression, masks, and the
        sentences that the labels are told from.
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
        loss_B = words_B + self.config.pair_weight * has_pair_B * pairs_B
        if self.encoder.label_head is None:
            return loss_B
        return loss_B + self.config.label_weight * self._label_loss(encoded, draws)

    def _label_loss(self, encoded: Encoded, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """(B,): binary cross-entropy of each known label, told from the mean of the vectors that a base model reads.

        Half of the reports lose sentences, so that a short prompt tells what it says and no more; a label whose
        sentence is lost stays, and the encoder learns how likely it then is.
        """
        pad = self.tokenizer.pad_token_id
        rows = torch.cat([encoded["findings"], encoded["impression"]], dim=1)
        read = [self._some_sentences(row[row != pad].tolist(), draw) for row, draw in zip(rows, draws, strict=True)]
        examples = [_Example([self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id]) for ids in read]
        tokens_BL, _, mask_BL = self._batch(examples)
        hidden_BLE = self.encoder.bert(input_ids=tokens_BL, attention_mask=mask_BL).last_hidden_state
        mean_BE = (hidden_BLE * mask_BL[..., None]).sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
        labels_BK = encoded["labels"].to(self.device).float()
        known_BK = ~labels_BK.isnan()
        logits_BK = self.encoder.label_head(mean_BE).float()
        errors_BK = F.binary_cross_entropy_with_logits(logits_BK, labels_BK.nan_to_num(), reduction="none")
        return (errors_BK * known_BK).sum(dim=1)

    def _some_sentences(self, ids: list[int], draw: torch.Generator) -> list[int]:
        """All of a report, or those of its sentences that a drawn share keeps: one at least, at most a window full."""
        room = self.config.window - 2
        if torch.rand((), generator=draw) < WHOLE:
            return _part(ids, room, draw)
        stop = self.tokenizer.convert_tokens_to_ids(".")
        ends = [place + 1 for place, token in enumerate(ids) if token == stop and place + 1 < len(ids)]
        sentences = [ids[start:end] for start, end in itertools.pairwise([0, *ends, len(ids)])]
        share = torch.rand((), generator=draw)
        chance = torch.rand(len(sentences), generator=draw)
        kept = chance < share
        kept[chance.argmin()] = True
        return _part(
            [token for sentence, keep in zip(sentences, kept, strict=True) if keep for token in sentence], room, draw
        )

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
