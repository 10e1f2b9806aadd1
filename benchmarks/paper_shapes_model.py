"""The model that `benchmarks.paper_shapes` unlearns: taught authors and generic sentences until it has them by heart.

    forget probability   mean over forget rows of  exp( (1/n) sum_t log p(y_t | x, y_<t) )
    generic KL           mean over tokens of held-out generic text of  KL(start model || model), in nats

Generic text is made by a small grammar whose next word is often open, so there is a distribution to keep, not one
sentence to know by heart. Three parts are drawn apart: `taught` (the model learns from it), `stream` (what a method's
penalty sees; new to the model) and `held out` (what the KL is measured on; new to the model and to the method).
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from unlearn_core.data.config import DataConfig, GenericConfig
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Batch, Example, Formatter, collate, load_tokenizer
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.models import SmallLlama, build_small_llama
from unlearn_core.objectives.likelihood import label_rows, row_log_probs

BENCHMARK = "synthetic:small"
FORGET, RETAIN = ("forget10",), ("retain90",)
CHUNK = 32
"""Tokens of a chunk of generic text."""
MAX_LENGTH = 96
DOCUMENTS = {"taught": 400, "stream": 200, "held_out": 16}
TEACHING = {"steps": 900, "learning_rate": 4e-3, "rows": 32, "chunks": 8}

_PLACES = {
    "harbour": (("fisherman", "gull", "sailor", "crane"), ("old", "grey", "patient", "salty")),
    "forest": (("fox", "owl", "hunter", "deer"), ("quiet", "brown", "young", "watchful")),
    "market": (("baker", "merchant", "child", "pigeon"), ("busy", "cheerful", "hungry", "loud")),
    "mountain": (("shepherd", "eagle", "goat", "climber"), ("brave", "lonely", "white", "steady")),
    "station": (("driver", "porter", "traveller", "guard"), ("tired", "polite", "hurried", "tall")),
}
_DEEDS = ("waited near", "walked around", "looked at", "came back to", "slept beside", "talked about")
_THINGS = ("wooden gate", "stone bridge", "narrow road", "red lamp", "empty boat", "little fire", "iron bell")
_TIMES = ("in the morning", "after the rain", "before dawn", "every evening", "during the winter", "at noon")
_ENDS = ("and nobody was surprised", "while the wind grew stronger", "because the day was long", "without a word")


def generic_document(number: int, part: str) -> str:
    """Eight sentences about one place; equal arguments give equal text in every process."""
    draw = random.Random(f"generic/{part}/{number}")
    place = draw.choice(sorted(_PLACES))
    who, how = _PLACES[place]
    return " ".join(
        f"{draw.choice(_TIMES).capitalize()} the {draw.choice(how)} {draw.choice(who)} of the {place} "
        f"{draw.choice(_DEEDS)} the {draw.choice(_THINGS)}, {draw.choice(_ENDS)}."
        for _ in range(8)
    )


def data_config(folder: Path) -> DataConfig:
    """Rows of every run; generic text is the `stream` part."""
    return DataConfig(
        benchmark=BENCHMARK,
        forget=FORGET,
        retain=RETAIN,
        generic=GenericConfig(source=str(folder / "stream.jsonl"), length=CHUNK),
        format="plain",
        max_length=MAX_LENGTH,
    )


def make_model(folder: Path, split: str = "full") -> dict[str, Any]:
    """Teach a small Llama all authors and the taught generic text; write model, tokenizer and generic text.

    Args:
        folder: where they go.
        split: the authors it learns, such as retain90 for a model that never saw those to be forgotten. The tokenizer
            is the same.

    Returns:
        Its size, and the settings of the teaching.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {part: [generic_document(n, part) for n in range(count)] for part, count in DOCUMENTS.items()}
    for part, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    rows = open_benchmark(BENCHMARK).split("full")
    words = [text for row in rows for text in (row.question, row.answer)]
    tokenizer = train_tokenizer([*words, *texts["taught"]], vocab_size=1024)
    size = SmallLlama(
        hidden_size=64, layers=2, heads=4, mlp_size=176, vocab_size=1024, max_positions=128, tie_embeddings=False
    )
    model = build_small_llama(size, tokenizer, seed=0).train()
    formatter = Formatter(tokenizer, "plain", MAX_LENGTH)
    taught = open_benchmark(BENCHMARK).split(split)
    examples = [formatter.example(row.item_id, row.question, row.answer) for row in taught]
    chunks = _chunks(texts["taught"], formatter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHING["learning_rate"], weight_decay=0.01)
    draw = random.Random("teaching")
    for step in range(int(TEACHING["steps"])):
        batch = [*draw.sample(examples, int(TEACHING["rows"])), *draw.sample(chunks, int(TEACHING["chunks"]))]
        warm, done = min(1.0, (step + 1) / 30), step / TEACHING["steps"]
        for group in optimizer.param_groups:
            group["lr"] = TEACHING["learning_rate"] * warm * 0.5 * (1 + math.cos(math.pi * done))
        loss = F.cross_entropy(*_label_logits(model, collate(batch, formatter.pad_id))[:2])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "teaching": TEACHING,
        "generic documents": DOCUMENTS,
    }


@dataclass
class Probe:
    """Forget, retain and generic measures of a model, against the start model it was made with."""

    forget: Batch
    retain: Batch
    generic: Batch
    start_log_probs_NV: torch.Tensor

    @classmethod
    def of(cls, folder: Path, model: Any) -> "Probe":
        """Rows of the run in `folder`, and what the start model says of held-out generic text."""
        formatter = Formatter(load_tokenizer(str(folder)), "plain", MAX_LENGTH)
        sets = training_sets(data_config(folder), ("forget", "retain"), formatter.tokenizer)
        lines = (folder / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
        chunks = _chunks([json.loads(line)["text"] for line in lines], formatter)
        generic = collate(chunks, formatter.pad_id)
        return cls(
            forget=collate(sets["forget"], formatter.pad_id),
            retain=collate(sets["retain"][:80], formatter.pad_id),
            generic=generic,
            start_log_probs_NV=_log_probs(model, generic),
        )

    @torch.no_grad()
    def forget_probability(self, model: Any) -> float:
        """Mean over all forget rows, in (0, 1]."""
        return float(_row_probabilities(model, self.forget).mean())

    @torch.no_grad()
    def retain_probability(self, model: Any) -> float:
        """Mean over the first 80 retain rows, in (0, 1]."""
        return float(_row_probabilities(model, self.retain).mean())

    @torch.no_grad()
    def generic_kl(self, model: Any) -> float:
        """KL(start || model) on held-out generic text, nats a token, from 0."""
        log_probs_NV = _log_probs(model, self.generic)
        start_NV = self.start_log_probs_NV
        return float((start_NV.exp() * (start_NV - log_probs_NV)).sum(dim=1).mean())

    def generic_entropy(self) -> float:
        """Mean entropy of the start model's next word on held-out generic text, nats: what KL compares with."""
        start_NV = self.start_log_probs_NV
        return float(-(start_NV.exp() * start_NV).sum(dim=1).mean())


def _chunks(texts: Sequence[str], formatter: Formatter) -> list[Example]:
    pieces = [piece for text in texts for piece in formatter.pieces(text, CHUNK) if len(piece) == CHUNK]
    return [Example(f"generic/{n}", piece, 1) for n, piece in enumerate(pieces)]


def _label_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    output = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    return label_rows(output.logits, batch.labels_BT)


@torch.no_grad()
def _log_probs(model: Any, batch: Batch) -> torch.Tensor:
    return F.log_softmax(_label_logits(model, batch)[0].float(), dim=1)


def _row_probabilities(model: Any, batch: Batch) -> torch.Tensor:
    log_prob_B, count_B = row_log_probs(*_label_logits(model, batch), len(batch.item_ids))
    return (log_prob_B / count_B).exp()
