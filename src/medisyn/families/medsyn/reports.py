"""Reports as the vectors that the base model reads.

Shapes here: T tokens that the base model reads, N tokens of one report with [CLS] and [SEP], E encoder width.

A report is never cut unless that was asked for. One that has more tokens than the encoder's window is read in windows
that overlap by a quarter, and a token's vectors are averaged; one that gives more than T vectors is brought to T by
averaging neighbours. "cut" instead keeps the first T vectors, as the published text features do. A report of fewer
vectors is read with padding, as published, or stretched: each vector is repeated until T are reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from medisyn.errors import InputError, ModelError
from medisyn.families.medsyn.config import LONG_REPORTS, SHORT_REPORTS
from medisyn.families.medsyn.sections import parse_report


class ReportReader:
    """A frozen text encoder and its tokenizer: reports to (B, T, E)."""

    def __init__(
        self, encoder: Any, tokenizer: Any, *, num_tokens: int, long_reports: str = "pool", short_reports: str = "pad"
    ) -> None:
        """`encoder` is a ReportEncoder, `tokenizer` a BertTokenizer with the same vocabulary."""
        assert long_reports in LONG_REPORTS
        assert short_reports in SHORT_REPORTS
        self.window = int(encoder.config.max_position_embeddings)
        if num_tokens > self.window:
            raise ModelError(
                f"the base model reads {num_tokens} tokens, the report encoder's window has {self.window}. Extend its "
                f"positions, or take another encoder."
            )
        if len(tokenizer) > encoder.config.vocab_size:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} words, the report encoder {encoder.config.vocab_size}: they do "
                f"not belong together"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.num_tokens, self.long_reports, self.short_reports = num_tokens, long_reports, short_reports

    @torch.no_grad()
    def read(self, reports: Sequence[str]) -> torch.Tensor:
        """(B, T, E) float32. Each report is encoded on its own, so a row does not depend on its batch."""
        return torch.stack([self._read_one(report) for report in reports])

    def _read_one(self, report: str) -> torch.Tensor:
        ids = self.token_ids(report)
        if not ids:
            raise InputError("the report is empty, or holds nothing but headings; write at least one finding")
        if self.long_reports == "cut":
            ids = ids[: self.window - 2]
        vectors_NE = self._vectors(ids)
        if len(vectors_NE) == self.num_tokens or (self.long_reports == "cut" and len(vectors_NE) > self.num_tokens):
            return vectors_NE[: self.num_tokens]
        return F.adaptive_avg_pool1d(vectors_NE.T[None], self.num_tokens)[0].T

    def token_ids(self, report: str) -> list[int]:
        """Findings and impression as tokens, without [CLS] and [SEP]; their order in the text does not matter."""
        text = parse_report(report).text
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _vectors(self, ids: list[int]) -> torch.Tensor:
        """One vector per token, [CLS] first and [SEP] last, padded to T where the report is shorter."""
        room = self.window - 2
        if len(ids) <= room:
            return self._window(ids, pad_to=self.num_tokens if self.short_reports == "pad" else 0)
        starts = [*range(0, len(ids) - room, room - room // 4), len(ids) - room]
        sums = torch.zeros(len(ids), self.encoder.config.hidden_size)
        counts, ends = torch.zeros(len(ids), 1), []
        for start in starts:
            vectors_NE = self._window(ids[start : start + room])
            sums[start : start + room] += vectors_NE[1:-1]
            counts[start : start + room] += 1
            ends.append(vectors_NE[[0, -1]])
        first, last = torch.stack(ends).mean(dim=0)
        return torch.cat([first[None], sums / counts, last[None]])

    def _window(self, ids: list[int], pad_to: int = 0) -> torch.Tensor:
        tokenizer = self.tokenizer
        row = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        padding = max(pad_to - len(row), 0)
        device = self.encoder.device
        mask = torch.tensor([[1] * len(row) + [0] * padding], device=device)
        tokens = torch.tensor([row + [tokenizer.pad_token_id] * padding], device=device)
        return self.encoder.bert(input_ids=tokens, attention_mask=mask).last_hidden_state[0].float().cpu()

    def lost_words(self, report: str) -> str:
        """The end of the report that is not read; "" when all of it is, which "pool" guarantees."""
        if self.long_reports == "pool":
            return ""
        ids = self.token_ids(report)
        return str(self.tokenizer.decode(ids[self.num_tokens - 1 :]))  # one place is taken by [CLS]
