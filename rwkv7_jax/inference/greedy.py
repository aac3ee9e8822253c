"""Greedy answers to many prompts: shared prefixes are read once, and a row that ends takes the next prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rwkv7_jax.bucketing import next_power_of_two, padded_prompt_length
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.functional import Params
from rwkv7_jax.generation.generate import for_decoding
from rwkv7_jax.generation.stop_strings import generated_text
from rwkv7_jax.inference import continuous_batching
from rwkv7_jax.inference.packing import PlacedNode
from rwkv7_jax.inference.prefix_tree import Query, ScoredSequence, forest
from rwkv7_jax.inference.scoring import PrefixScorer, Tick
from rwkv7_jax.inference.state_pool import group_by_structure, make_pool
from rwkv7_jax.inference.stop_automaton import token_table
from rwkv7_jax.model import RWKV7
from rwkv7_jax.non_finite_cause import cause_named
from rwkv7_jax.sharding import host
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer import Tokenizer

MIN_PROMPTS, MIN_TOKENS = 256, 128
"""Room for answers, so that small jobs share one program."""


class Prompt(NamedTuple):
    """Tokens to continue, from the initial state number `state`."""

    tokens: tuple[int, ...]
    state: int = 0


class GreedyGenerator:
    """Generates greedily on one model. `steps` counts passes of the decoding loop, each over all rows."""

    def __init__(self, model: RWKV7, params: Params, tokenizer: Tokenizer, scorer: PrefixScorer):
        self.tokenizer, self.scorer, self.steps = tokenizer, scorer, 0
        self.model, self.params = for_decoding(model, params)

    def answers(
        self,
        prompts: Sequence[Prompt],
        states: Sequence[State],
        stops: Sequence[str],
        limit: int,
        tick: Tick = lambda count: None,
    ) -> list[str]:
        """Continues each prompt greedily.

        Args:
          prompts: token sequences, each with the number of its initial state.
          states: unbatched initial states.
          stops: a continuation is cut where the earliest of these begins.
          limit: tokens of a continuation at most.
          tick: gets the number of prompts that were just done.

        Returns:
          The continuations, in order.

        Raises:
          ValueError: a prompt has no token.
          NonFiniteLogitsError: a `ValueError`; the model's logits are not finite.
        """
        if not all(prompt.tokens for prompt in prompts):
            raise ValueError("a prompt has no token: give a prefix token")
        ends = continuous_batching.Ends(
            jnp.asarray(token_table(self.tokenizer, self.model.config.vocab_size, stops)),
            jnp.asarray(self.tokenizer.eos_id, jnp.int32),
            jnp.asarray(limit, jnp.int32),
        )
        texts = [""] * len(prompts)
        for members in group_by_structure(list(states)):
            chosen = [i for i, prompt in enumerate(prompts) if prompt.state in members]
            with cause_named(self.params, states):
                found = self._in_one_pool(prompts, chosen, states, members, ends, tick) if chosen else []
            for index, ids in zip(chosen, found, strict=True):
                texts[index] = generated_text(self.tokenizer, ids, stops)
        return texts

    def _in_one_pool(
        self,
        prompts: Sequence[Prompt],
        chosen: list[int],
        states: Sequence[State],
        members: list[int],
        ends: continuous_batching.Ends,
        tick: Tick,
    ) -> list[list[int]]:
        """Returns the generated tokens of the prompts `chosen`, whose states fit one pool."""
        order = sorted(range(len(chosen)), key=lambda i: (len(prompts[chosen[i]].tokens), prompts[chosen[i]].tokens))
        size = self.scorer.batch_size
        start = [states[number] for number in members]
        rows = continuous_batching.idle_rows(make_pool(self.model, start[:1], size))
        room = max(MIN_PROMPTS, next_power_of_two(len(order)))
        answers = continuous_batching.Answers(
            jnp.asarray(np.zeros((room, max(MIN_TOKENS, padded_prompt_length(int(ends.limit)))), np.int32)),
            jnp.asarray(np.zeros(room, np.int32)),
            jnp.asarray(np.zeros((), np.int32)),
            jnp.asarray(np.ones((), bool)),
        )
        done = 0
        for begin in range(0, len(order), size):
            part = [prompts[chosen[i]] for i in order[begin : begin + size]]
            state, token = self._read(part, [members.index(prompt.state) for prompt in part], start)
            last = begin + size >= len(order)
            first, count, taken = (jnp.asarray(np.asarray(x, np.int32)) for x in (begin, len(part), 0))
            queue = continuous_batching.Queue(state, token, first, count, taken, jnp.asarray(np.asarray(last)))
            rows, queue, answers = continuous_batching.run(self.model, self.params, rows, queue, answers, ends)
            if not host(answers.finite):
                raise NonFiniteLogitsError("the model's logits are not finite")
            finished = min(begin + size, len(order)) - int((host(rows.owner) != continuous_batching.IDLE).sum())
            tick(finished - done)
            done = finished
        self.steps += int(host(answers.steps))
        tokens, length = host((answers.tokens, answers.length))
        found: list[list[int]] = [[]] * len(order)
        for place, index in enumerate(order):
            found[index] = tokens[place, : length[place]].tolist()
        return found

    def _read(self, part: list[Prompt], at: list[int], start: list[State]) -> tuple[State, jax.Array]:
        """Returns (states [L, B, ...], most likely first tokens [B]) after the prompts."""
        size = self.scorer.batch_size
        best = np.zeros(size, np.int32)
        sequences = [
            ScoredSequence((*prompt.tokens, 0), len(prompt.tokens), row) for prompt, row in zip(part, at, strict=True)
        ]

        def found(query: Query, log_probability: float, token: int) -> None:
            best[query.owner] = token

        placed = [PlacedNode(root.state, root) for root in forest(sequences, self.scorer.min_saved)]
        state = make_pool(self.model, start[:1], size)
        for pieces, pool in self.scorer.visit(placed, start, found):
            ends = [(piece.target, owner) for piece in pieces for owner in piece.node.ending]
            for begin in range(0, len(ends), size):
                block = ends[begin : begin + size]
                slots, places = np.zeros(size, np.int32), np.full(size, size, np.int32)
                slots[: len(block)], places[: len(block)] = np.asarray(block).T
                state = continuous_batching.put(state, pool, jnp.asarray(slots), jnp.asarray(places))
        return state, jnp.asarray(best)
