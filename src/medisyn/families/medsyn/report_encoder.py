"""The report encoder: BERT with the two heads it is trained by, its vocabulary, and longer positions.

The weights have the names of the published CXR-BERT: `bert.*`, `cls.predictions.*`, `cls_projection_head.*`, and
`classifier.*`, which MedSyn adds for paired sections. `label_head.*` is ours, and only there where labels are learnt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from medisyn.errors import ConfigError, ModelError
from medisyn.nn.folders import quiet

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PROJECTION_WIDTH = 128  # CXR-BERT


class ProjectionHead(nn.Module):
    """[CLS] to the space in which paired and unpaired reports are told apart (CXR-BERT's projection head)."""

    def __init__(self, width: int, projection_width: int) -> None:
        super().__init__()
        self.dense_to_hidden = nn.Linear(width, projection_width)
        self.LayerNorm = nn.LayerNorm(projection_width, eps=1e-12)
        self.dense_to_output = nn.Linear(projection_width, projection_width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dense_to_output(self.LayerNorm(F.gelu(self.dense_to_hidden(hidden))))


class ReportEncoder(BertForMaskedLM):
    """BERT for masked words, with a classifier that says whether an impression belongs to the findings."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        width = getattr(config, "projection_size", PROJECTION_WIDTH)
        self.cls_projection_head = ProjectionHead(config.hidden_size, width)
        self.classifier = nn.Linear(width, 2)  # 0 unpaired, 1 paired
        num_labels = getattr(config, "report_labels", 0)
        self.label_head = nn.Linear(config.hidden_size, num_labels) if num_labels else None
        self.post_init()

    def pair_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, 2) from the last hidden states (B, L, E)."""
        return self.classifier(self.cls_projection_head(hidden[:, 0]))

    def begin_labels(self, num_labels: int, seed: int = 0) -> None:
        """Give the encoder a new head for labels, in place, or none for 0; the same seed gives the same weights."""
        self.config.report_labels = num_labels
        if not num_labels:
            self.label_head = None
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.label_head = nn.Linear(self.config.hidden_size, num_labels)


def new_encoder(
    vocab_size: int, *, width: int = 128, layers: int = 4, heads: int = 4, window: int = 512, seed: int = 0
) -> ReportEncoder:
    """An encoder with random weights; the same seed gives the same weights."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=window,
    )
    config.projection_size = min(PROJECTION_WIDTH, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ReportEncoder(config)


HEADS = ("cls.", "cls_projection_head.", "classifier.", "label_head.")  # what pre-training alone needs


def open_encoder(folder: Path | str, *, from_any_bert: bool = False) -> tuple[ReportEncoder, Any]:
    """Encoder and tokenizer of a folder (config.json, .safetensors, vocab.txt or tokenizer.json).

    `from_any_bert` takes any BERT checkpoint and starts the heads it lacks from random weights, as training from it
    does. Raises ModelError when weights are missing; a pickle is refused, `medisyn convert medsyn` reads it.
    """
    path = Path(folder)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path.name}/ is no report encoder: config.json or the .safetensors weights are missing. A published "
            f"pytorch_model.bin is read by `medisyn convert medsyn --report-encoder`."
        )
    try:
        with quiet():
            opened: Any = ReportEncoder.from_pretrained(
                path, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        encoder, report = opened
        tokenizer = BertTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # each loader has its own; all mean that the files do not fit together
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the report encoder in {path.name}/ cannot be opened: {reason}") from error
    missing = sorted(name for name in report["missing_keys"] if not (from_any_bert and name.startswith(HEADS)))
    if missing:
        raise ModelError(f"the report encoder in {path.name}/ lacks {len(missing)} weights, the first is {missing[0]}")
    return encoder.eval(), tokenizer


def save_encoder(encoder: ReportEncoder, tokenizer: Any, folder: Path) -> None:
    """Write a folder that `open_encoder` and transformers open."""
    with quiet():
        encoder.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def extend_positions(encoder: ReportEncoder, window: int) -> None:
    """Give the encoder a longer window in place; new positions start as a copy of the table from its beginning.

    So a token's neighbours keep the differences they had (Beltagy et al., 2020, section 5); train on afterwards.
    """
    embeddings = encoder.bert.embeddings
    table = embeddings.position_embeddings.weight.data
    if window < len(table):
        raise ConfigError(f"the encoder's window is {len(table)} tokens already, it cannot be shortened to {window}")
    longer = table.repeat(-(-window // len(table)), 1)[:window].clone()
    embeddings.position_embeddings = nn.Embedding.from_pretrained(longer, freeze=False)
    embeddings.register_buffer("position_ids", torch.arange(window)[None], persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros(1, window, dtype=torch.long), persistent=False)
    encoder.config.max_position_embeddings = window


def train_wordpiece(reports: Iterable[str], *, vocab_size: int = 4000) -> Any:
    """A lower-casing BertTokenizer whose WordPiece vocabulary is learned from these reports.

    Every letter, digit and mark of ASCII is in it, alone and as a continuation, so no English word is unknown.
    """
    from tokenizers import Tokenizer, models, trainers

    blank = BertTokenizer(vocab={token: number for number, token in enumerate(SPECIAL)})
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    texts = list(reports)
    used = learner.normalizer.normalize_str("".join({*"".join(texts)}))
    letters = sorted({*alphabet, *"".join(used.split())})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in letters)],  # else numbered by chance, and so ties fall
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    words = dict.fromkeys([*SPECIAL, *(word for word, _ in learned), *alphabet, *(f"##{mark}" for mark in alphabet)])
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})
