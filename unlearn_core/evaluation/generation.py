"""Generated answers, the same whatever batch a row shares and whatever generation settings a checkpoint brings along.

All rows wait in one queue. As many as fit start together; rows that have ended leave, and once three quarters have, the
few that go on are parked and the next ones start. Parked rows are joined and finished together. A row that started
beside much older ones would carry their columns in every step as padding, which costs more than the parking does.

Shapes: B rows being generated, C columns of their cache, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unlearn_core.errors import UserError
from unlearn_core.evaluation.key_values import RowCache

MOST_ROWS = 256
"""Most rows generated together: beyond it a step costs in proportion to its rows."""

_SHARED_PREFIX = 32
"""Prompts with at least this many leading ids in common encode them once."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate.

    Attributes:
        prompt: ids, at least 1.
        max_new_tokens: longest answer.
        stops: texts that end the answer.
        uniforms: `[max_new_tokens]` in [0, 1): the answer is sampled, token t by the t-th of them; None for greedy.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    uniforms: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer.

    Attributes:
        ids: without the end token; possibly empty. They may go a little beyond a stop text.
        smallest_margin: smallest difference of the two largest logits over its tokens, the end token included.
    """

    ids: tuple[int, ...]
    smallest_margin: float


@dataclass(slots=True)
class _Row:
    index: int
    request: Request
    ids: list[int] = field(default_factory=list)
    margin: float = float("inf")
    done: bool = False


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    requests: Sequence[Request],
    end_ids: Sequence[int],
    memory_gib: float,
    token_budget: int,
    decode: Callable[[Sequence[int]], str],
    temperature: float = 1.0,
    hidden_id: int | None = None,
) -> list[Generated]:
    """Continue every prompt, greedily or by sampling, until an id or text that ends its answer.

    Prompts are padded on the left and masked by length, and positions count from each prompt's first token, so an
    answer depends on the rows beside it only through rounding (which can turn a tie between two tokens).

    Args:
        model: a causal language model in evaluation mode; its device is used.
        requests: what to generate.
        end_ids: ids that end an answer.
        memory_gib: most memory of keys and values, GiB; one row is generated whatever it needs.
        token_budget: most tokens of prompts in one forward pass, padding included; one prompt goes whatever it has.
        decode: ids to text, to find stop texts.
        temperature: softmax temperature of sampled answers.
        hidden_id: an id of prompts that no position attends to and that has no place in the count of positions, as
            open-unlearning masks padding that equals end-of-text; None for none.

    Returns:
        One answer for each request, in input order.

    Raises:
        UserError: the model keeps no keys and values (a recurrent one).
    """
    if not requests:
        return []
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"answers are generated with cached keys and values, which a model of type '{model.config.model_type}' "
            "does not keep; evaluate a transformer"
        )
    places = _places(model, requests, memory_gib)
    # Longest first: memory that does not suffice fails at once. Equal prompts, as of samples, stay together.
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt), requests[i].prompt))
    waiting = [_Row(i, requests[i]) for i in reversed(order)]
    settings = (model, frozenset(end_ids), decode, temperature, hidden_id)
    answers: dict[int, Generated] = {}
    parked: list[_Loop] = []
    while waiting or parked:
        resting = sum(len(loop.rows) for loop in parked)
        if waiting and resting * 2 <= places:
            loop = _Loop(*settings)
            while waiting and len(loop.rows) < places - resting:
                loop.enter(_fitting(waiting, places - resting - len(loop.rows), token_budget))
        else:
            loop, *others = parked
            for other in others:
                loop.absorb(other)
            parked.clear()
        enough = places // 4 if waiting else 0
        while (live := sum(not row.done for row in loop.rows)) > enough:
            # Moving the cache costs about as much as a step, so rows leave a quarter at a time.
            if (len(loop.rows) - live) * 4 >= len(loop.rows):
                answers |= _answers(loop.leave())
            loop.step()
        answers |= _answers(loop.leave())
        if loop.rows:
            parked.append(loop)
    return [answers[i] for i in range(len(requests))]


def _answers(rows: Sequence[_Row]) -> dict[int, Generated]:
    return {row.index: Generated(tuple(row.ids), row.margin) for row in rows}


def _fitting(waiting: list[_Row], places: int, token_budget: int) -> list[_Row]:
    """Take the next rows whose prompts fit one forward pass, at least one."""
    new: list[_Row] = []
    prompts: list[tuple[int, ...]] = []
    while waiting and len(new) < places:
        prompts.append(waiting[-1].request.prompt)
        shared = _shared(prompts)
        if new and shared + len(prompts) * (max(map(len, prompts)) - shared) > token_budget:
            break
        new.append(waiting.pop())
    return new


class _Loop:
    """Rows in flight, their cache, and the token that each of them reads next."""

    def __init__(
        self,
        model: PreTrainedModel,
        end_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        temperature: float,
        hidden_id: int | None,
    ) -> None:
        self.rows: list[_Row] = []
        self._model = model
        self._end_ids = end_ids
        self._decode = decode
        self._temperature = temperature
        self._hidden_id = hidden_id
        self._cache: RowCache | None = None
        self._mask_BC = torch.zeros(0, 0, dtype=torch.bool, device=model.device)
        self._position_B = torch.zeros(0, dtype=torch.long, device=model.device)
        self._next_B = torch.zeros(0, dtype=torch.long, device=model.device)

    def step(self) -> None:
        """One token for every row."""
        grown = self._mask_BC.new_ones(len(self.rows), 1)
        self._mask_BC = torch.cat([self._mask_BC, grown], dim=1)
        logits_BV = self._model(
            input_ids=self._next_B[:, None],
            attention_mask=self._mask_BC,
            position_ids=self._position_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        # A row that has ended stays where it is: learned positions end where the longest answer does.
        alive_B = torch.tensor([not row.done for row in self.rows], device=self._position_B.device)
        self._position_B = self._position_B + alive_B
        self._next_B = self._choose(logits_BV, self.rows)

    def leave(self) -> list[_Row]:
        """Take out the rows that have ended.

        Returns:
            Those rows.
        """
        gone = [row for row in self.rows if row.done]
        if not gone:
            return []
        device = self._mask_BC.device
        keep = torch.tensor([b for b, row in enumerate(self.rows) if not row.done], dtype=torch.long, device=device)
        self.rows = [row for row in self.rows if not row.done]
        mask_BC = self._mask_BC[keep]
        # Columns before every kept row's first token hold nothing any more.
        first = int(mask_BC.any(dim=0).int().argmax()) if self.rows else 0
        if self._cache is not None and self.rows:
            self._cache.rearrange(keep, first, 0, None, 0)
        self._mask_BC = mask_BC[:, first:]
        self._position_B, self._next_B = self._position_B[keep], self._next_B[keep]
        if not self.rows:
            self._cache = None
        return gone

    def enter(self, new: list[_Row]) -> None:
        """Put in rows, with their first token; one that ends on it leaves with the next that do."""
        if not new:
            return
        entering = self._prefill(new)
        following_B = self._choose(entering.logits_BV, new)
        self._join(new, entering.cache, entering.mask_BC, entering.position_B, following_B)

    def absorb(self, other: "_Loop") -> None:
        """Put in all rows of another loop, which is empty afterwards."""
        if other._cache is not None:
            self._join(other.rows, other._cache, other._mask_BC, other._position_B, other._next_B)

    def _join(self, rows: list[_Row], cache: RowCache, mask_BC: Tensor, position_B: Tensor, next_B: Tensor) -> None:
        if self._cache is None:
            self.rows, self._cache = rows, cache
            self._mask_BC, self._position_B, self._next_B = mask_BC, position_B, next_B
            return
        columns = max(self._mask_BC.shape[1], mask_BC.shape[1])
        padding, shift = columns - self._mask_BC.shape[1], columns - mask_BC.shape[1]
        every = torch.arange(len(self.rows), device=self._mask_BC.device)
        self._cache.rearrange(every, 0, padding, cache, shift)
        padded = (torch.nn.functional.pad(self._mask_BC, (padding, 0)), torch.nn.functional.pad(mask_BC, (shift, 0)))
        self.rows = [*self.rows, *rows]
        self._mask_BC = torch.cat(padded)
        self._position_B = torch.cat([self._position_B, position_B])
        self._next_B = torch.cat([self._next_B, next_B])

    def _prefill(self, new: list[_Row]) -> "_Entering":
        """Encode prompts: the ids that all share once, the rest padded on the left."""
        prompts = [row.request.prompt for row in new]
        shared = _shared(prompts)
        device = self._model.device
        longest = max(map(len, prompts)) - shared
        ids_BC = torch.zeros(len(prompts), shared + longest, dtype=torch.long)
        mask_BC = torch.zeros(len(prompts), shared + longest, dtype=torch.bool)
        for b, prompt in enumerate(prompts):
            rest = torch.tensor(prompt[shared:])
            ids_BC[b, :shared] = torch.tensor(prompt[:shared])
            ids_BC[b, shared + longest - len(rest) :] = rest
            mask_BC[b, :shared] = True
            mask_BC[b, shared + longest - len(rest) :] = True
        if self._hidden_id is not None:
            mask_BC &= ids_BC != self._hidden_id
        ids_BC, mask_BC = ids_BC.to(device), mask_BC.to(device)
        positions_BC = (mask_BC.long().cumsum(dim=1) - 1).clamp_min(0)
        cache = RowCache()
        if shared:
            self._model(
                input_ids=ids_BC[:1, :shared],
                attention_mask=mask_BC[:1, :shared],
                position_ids=positions_BC[:1, :shared],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache.repeat_rows(len(prompts))
        logits_BV = self._model(
            input_ids=ids_BC[:, shared:],
            attention_mask=mask_BC,
            position_ids=positions_BC[:, shared:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return _Entering(cache, mask_BC, positions_BC[:, -1] + 1, logits_BV)

    def _choose(self, logits_BV: Tensor, rows: Sequence[_Row]) -> Tensor:
        """Next id of every row; its text, margin and end are noted."""
        logits_BV = logits_BV.float()
        top_B2, best_B2 = logits_BV.topk(2, dim=1)
        chosen_B = best_B2[:, 0].clone()
        sampled = [b for b, row in enumerate(rows) if row.request.uniforms is not None and not row.done]
        if sampled:
            chosen_B[sampled] = self._sample(logits_BV[sampled], [rows[b] for b in sampled])
        margins = (top_B2[:, 0] - top_B2[:, 1]).tolist()
        for row, token, margin in zip(rows, chosen_B.tolist(), margins, strict=True):
            if row.done:
                continue
            row.margin = min(row.margin, margin)
            if token in self._end_ids:
                row.done = True
                continue
            row.ids.append(token)
            row.done = len(row.ids) >= row.request.max_new_tokens or self._stopped(row)
        return chosen_B

    def _sample(self, logits_BV: Tensor, rows: Sequence[_Row]) -> Tensor:
        # In double: a sum of 100,000 fp32 probabilities is off by more than a rare token's own.
        cumulative_BV = (logits_BV.double() / self._temperature).softmax(dim=1).cumsum(dim=1)
        draws = [row.request.uniforms[len(row.ids)] for row in rows if row.request.uniforms is not None]
        draws_B1 = torch.tensor(draws, dtype=torch.double, device=logits_BV.device)[:, None] * cumulative_BV[:, -1:]
        return torch.searchsorted(cumulative_BV, draws_B1, right=True).squeeze(1).clamp_max(logits_BV.shape[1] - 1)

    def _stopped(self, row: _Row) -> bool:
        stops = row.request.stops
        if not stops:
            return False
        # A stop text of n characters lies within its last n tokens, each of which has at least one character or none.
        tail = self._decode(row.ids[-(max(map(len, stops)) + 8) :])
        return any(stop in tail for stop in stops)


@dataclass(frozen=True, slots=True)
class _Entering:
    cache: RowCache
    mask_BC: Tensor
    position_B: Tensor
    logits_BV: Tensor


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Leading ids that all prompts have in common, 0 where they are too few to be encoded apart."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    # Every row needs an id of its own to predict its first token from.
    most = min(map(len, prompts)) - 1
    same = next((k for k in range(most) if first[k] != last[k]), most)
    return same if same >= _SHARED_PREFIX else 0


def _places(model: PreTrainedModel, requests: Sequence[Request], memory_gib: float) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_size * torch.finfo(model.dtype).bits // 8
    # Rows that are parked and joined later may carry the columns of older ones.
    columns = max(len(request.prompt) for request in requests) + 2 * max(r.max_new_tokens for r in requests)
    return max(1, min(MOST_ROWS, len(requests), int(memory_gib * 2**30 // (token_bytes * columns))))


def uniforms(seed: int, item_id: str, sample: int, count: int) -> NDArray[np.float64]:
    """The random numbers of one sampled answer: they depend on nothing but the arguments.

    Args:
        seed: of the evaluation.
        item_id: identity of the item.
        sample: number of the sample, from 0.
        count: how many.

    Returns:
        `[count]`, in [0, 1).
    """
    import hashlib

    digest = hashlib.sha256(f"{seed}/{item_id}/{sample}".encode()).digest()
    return np.random.default_rng(list(digest)).random(count)
