"""Pico: bytes in, the next N bytes out. This file is the paper.

    tokens -> embeddings of the byte and of the n-grams that end with it -> local blocks
           -> router picks some bytes -> latent blocks on those alone -> gated back into the stream
           -> local blocks -> norm -> N heads, each of which may know the bytes before the one it predicts

B batch, T bytes, D width, H query heads, K key/value heads, E head width, N prediction heads, V vocabulary,
M latent positions. Weights are fp32; activations have the model's `dtype`, and every Linear casts to it.
"""

from collections.abc import Hashable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pico.base.routers import Rule
from pico.base.shapes import ModelConfig
from pico.base.symbols import BOS, BYTES, Alphabet
from pico.model.attention import choose_backend
from pico.model.blocks import Block, Linear, check_groups, run_block
from pico.model.cache import Cache, Ring
from pico.model.loss import multi_byte_loss
from pico.model.ngrams import NGrams
from pico.model.norm import norm
from pico.model.routing import gather_routed
from pico.model.scorers import SCORERS


class Output(NamedTuple):
    logits: Tensor | None  # (B, T, N, V), None when a loss was asked for; head k at t predicts byte t + 1 + k
    stream: Tensor  # (B, T, D) what the heads read
    router_weight: Tensor  # (B, T) fp32 gate in [0, 1]
    routed: Tensor  # (B, T) bool, True where the latent blocks ran
    skipped: Tensor  # () fraction of the bytes to be routed that met a full training buffer
    slots: int  # positions of each row that the latent blocks ran on, those that hold no routed byte included
    loss: Tensor | None = None  # () multi-byte loss, nats
    head_nll: Tensor | None = None  # (N,) nats per byte of each head
    router_loss: Tensor | None = None  # () the router's own loss, nats


class Pico(nn.Module):
    """The whole model. `attention_backend` None picks the fastest for the device at the first forward."""

    alphabet: Alphabet = BYTES  # what its ids stand for

    regions = ("head_inputs",)  # what torch.compile traces besides the blocks

    def __init__(self, config: ModelConfig, attention_backend: str | None = None, dtype=torch.float32):
        super().__init__()
        self.config, self.dtype, self.attention_backend = config, dtype, attention_backend
        self.gradient_checkpointing = False  # training keeps what goes into each block, and runs it again
        local, latent = config.fb_att_window_size, config.latent_att_window_size
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.ngrams = NGrams(config) if config.ngram_max else None
        skip = config.embedding_skip
        self.local_in = nn.ModuleList(Block(config, local, skip) for _ in range(config.fb_num_blocks))
        self.router = SCORERS[config.scorer](config)
        mixed = config.latent_embedding_skip
        self.latent = nn.ModuleList(Block(config, latent, mixed) for _ in range(config.latent_blocks))
        self.local_out = nn.ModuleList(Block(config, local, skip) for _ in range(config.fb_num_blocks))
        self.heads = Linear(config.dim, config.next_tokens * config.vocabulary)
        chained = config.next_tokens - 1 if config.chained_heads else 0
        self.chain = nn.ModuleList(Linear(config.dim, config.dim) for _ in range(chained))
        self.heads_trained = config.next_tokens  # from the first one on; training begins with one
        self.init_weights()

    def init_weights(self) -> None:
        """Normal everywhere, standard deviation by role:

        embedding         0.5        the stream starts at about the scale that the blocks add
        n-gram tables     0          what was never seen adds nothing
        heads, router     0.02       the first guess is uniform, the first gate one half
        out, down         0          every block starts as the identity
        other Linears     1/sqrt(n)  n inputs: unit variance in, unit variance out
        """
        std = {self.embedding.weight: 0.5, self.heads.weight: 0.02, self.router.weight: 0.02}
        for block in self.blocks:
            std[block.attention.out.weight] = std[block.mlp.down.weight] = 0.0
        if self.ngrams:
            std[self.ngrams.table.weight] = 0.0
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=std.get(parameter, parameter.shape[1] ** -0.5))
        self.router.init_weights()

    @property
    def blocks(self) -> list[Block]:
        """All of them, in the order in which a routed byte passes."""
        return cast(list[Block], [*self.local_in, *self.latent, *self.local_out])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter, by what its optimizer must know:

        tables      rows of a hash table, of which a step looks up some thousand: their gradient is sparse
        symbols     matrices with the vocabulary on one side, which is not to be rotated
        matrices    all others
        undecayed   what weight decay would pull away from its meaning: scales, mixtures and the router

        Raises AssertionError for a parameter that is in none of them, or in two: whoever adds a module says here what
        its parameters are.
        """
        inside = [p for block in self.blocks for p in block.parameters()]
        linear = cast(list[Linear], [*self.chain, *([self.ngrams.project] if self.ngrams else [])])
        groups = {
            "tables": [self.ngrams.table.weight] if self.ngrams else [],
            "symbols": [self.embedding.weight, self.heads.weight],
            "matrices": [p for p in inside if p.ndim > 1] + [each.weight for each in linear],
            "undecayed": [p for p in inside if p.ndim < 2] + list(self.router.parameters()),
        }
        return check_groups(self, groups)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        cache: Cache | None = None,
        disable_latent: bool = False,
        start: Tensor | None = None,
        rule: Rule | None = None,
    ) -> Output:
        """tokens (B, T) integers, targets (B, T + N - 1) with -100 where there is none.

        With a cache the bytes continue what it holds (T <= cache.feed) and the cache moves on. start (B,): where in its
        text each row begins (0 if not given), for the rules that go by position. rule: routes otherwise than the
        model's own; the gates of what is chosen stay the learned ones.
        """
        tokens = tokens.long()
        backend = choose_backend(tokens.device, self.attention_backend)
        length = tokens.shape[1]
        # 1. Where we are. A text of its own is preceded by BOS, for the n-grams and rules that look back.
        if cache is None:
            history = tokens.new_full((len(tokens), self.config.history), BOS)  # (B, history)
            start = tokens.new_zeros(len(tokens)) if start is None else start
            local = latent = carry = None
        else:
            assert start is None, "a cache knows where its texts are"
            assert length <= cache.feed, f"feed at most {cache.feed} bytes at a time"
            history, local, latent, start = cache.history, cache.local, cache.latent, cache.length
            local.open(length, backend)
            carry = cache.carry
        positions = start[:, None] + torch.arange(length, device=tokens.device)  # (B, T)
        text = torch.cat([history, tokens], dim=1)  # (B, history + T)
        again = self.gradient_checkpointing and self.training

        # 2. Local blocks, on every byte. Each may mix the embedding back in, so it is kept.
        embedding = x = self.embed(text)  # (B, T, D)
        for layer, block in enumerate(self.local_in):
            x = run_block(block, again, x, backend, local, layer, embedding)

        # 3. Latent blocks, on the chosen bytes alone: they are gathered to (B, M, D), and what comes out is added back.
        # M is a size of the buffer, not of the choice: `slots` counts what was computed, `routed` what was of use.
        routing = self.router(x, tokens, text[:, -length - 1 : -1], positions, rule, text, carry)
        routed = torch.zeros_like(routing.routed) if disable_latent else routing.routed
        slots = routing.index.shape[1] if self.latent and not disable_latent else 0
        smooth = None
        if slots:
            x, smooth = self.latent_stack(x, routing, backend, latent, carry, embedding)

        # 4. Local blocks again. In the cache their layers follow those before the latent stack.
        for layer, block in enumerate(self.local_out, start=len(self.local_in)):
            x = run_block(block, again, x, backend, local, layer, embedding)
        x = norm(x)
        if cache is not None:
            cache.advance(tokens, routed, self.router.carried(routing._replace(routed=routed), smooth, cache.carry))

        # 5. Heads: logits (B, T, N, V) for whoever decodes; in training the losses, without ever holding all logits.
        skipped = (routing.chosen & ~routing.routed).sum() / routing.chosen.sum().clamp(min=1)
        seen = x, routing.weight, routed, skipped, slots
        if targets is None:
            return Output(rearrange(self.heads(x), "b t (n v) -> b t n v", v=self.config.vocabulary), *seen)
        heads = self.heads_trained if self.training else self.config.next_tokens
        weight = self.heads.weight if self.heads.cast is None else self.heads.cast
        hidden = self.head_inputs(x, embedding) if heads > 1 else [x]
        used = weight[: heads * self.config.vocabulary], targets[:, : length + heads - 1]
        loss, head_nll, nats = multi_byte_loss(hidden, *used)
        return Output(None, *seen, loss, head_nll, self.router.loss(routing, targets, nats))

    def embed(self, text: Tensor) -> Tensor:
        """Of each byte and of the n-grams that end with it: (B, history + T) -> (B, T, D)."""
        x = F.embedding(text[:, self.config.history :], self.embedding.weight.to(self.dtype))
        return x + self.ngrams(text, self.dtype) if self.ngrams else x

    def head_inputs(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """What each head reads in training: N of (B, T, D).

        Those after the first learn to draft from the stream as it is: they do not bend it to what they need, nor the
        embedding of the byte before the one that they predict, which chained heads are shown as in drafting (Hydra,
        arXiv 2402.05109).
        """
        seen = x.detach()
        if not self.chain:
            return [x] + [seen] * (self.config.next_tokens - 1)
        ahead = self.ahead(embedding.detach(), x.shape[1])
        return [x, *(self.chained(seen, e, k) for k, e in enumerate(ahead, start=1))]

    def ahead(self, embedding: Tensor, length: int) -> list[Tensor]:
        """What stands 1, 2, ... N - 1 bytes after each of the first `length`: each (B, length, D), 0 past the end."""
        padded = F.pad(embedding, (0, 0, 0, self.config.next_tokens - 1))
        return [padded[:, k : k + length] for k in range(1, self.config.next_tokens)]

    def chained(self, x: Tensor, embedding: Tensor, head: int) -> Tensor:
        """What head `head` > 0 reads: the stream, and the embedding of the byte before the one that it predicts."""
        return norm(x + self.chain[head - 1](norm(embedding)))

    def right_draft_logits(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, T, N, V): what every head says after the stream x (B, T, D) where all drafts before its own were right.

        Head k at t, which predicts byte t + 1 + k, is shown the true bytes t + 1 to t + k, as `draft_logits` is when
        they were drawn. text (B, T + N - 1): the T bytes read, and the N - 1 after them.
        """
        read = [x] * self.config.next_tokens
        if self.chain:
            embedding = self.embed(F.pad(text, (self.config.history, 0), value=BOS))
            ahead = self.ahead(embedding, x.shape[1])
            read = [x, *(self.chained(x, e, k) for k, e in enumerate(ahead, start=1))]
        heads = self.heads.weight.to(x.dtype).chunk(len(read))
        return torch.stack([F.linear(y, head) for y, head in zip(read, heads)], dim=2)

    def draft_logits(self, x: Tensor, drawn: Tensor, history: Tensor) -> Tensor:
        """(B, V) of head k after the stream x (B, D), given the k bytes drawn (B, k) since, by the heads before it.

        history (B, H): the bytes up to where x is. Chained heads can draft beyond the N that were trained: the last
        one goes on, less often right.
        """
        head = min(drawn.shape[1], self.config.next_tokens - 1)
        if self.chain:
            text = torch.cat([history, drawn], dim=1)[:, -history.shape[1] - 1 :]
            x = self.chained(x, self.embed(text)[:, 0], head)
        return F.linear(x, self.heads.weight.view(-1, self.config.vocabulary, x.shape[-1])[head].to(x.dtype))

    def latent_stack(
        self,
        x: Tensor,
        routing,
        backend: str,
        ring: Ring | None,
        carry: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The latent stack: x[routed] += w (latent(x[routed]) - x[routed]), on a sequence of routed bytes alone.

        Also what its router will want to know of it.
        """
        chosen = gather_routed(x, routing, backend)  # (B, M, D)
        if ring is not None:
            ring.open(chosen.shape[1], backend)
        y, mixed = chosen, None
        if self.config.latent_embedding_skip and embedding is not None:
            mixed = gather_routed(embedding, routing, backend)
        for layer, block in enumerate(self.latent):
            y = block(y, backend, ring, layer, mixed)
        return self.router.come_back(x, chosen, y, routing, carry, backend)

    def set_dropout(self, updates: float, times: Tensor | None = None) -> None:
        """What training leaves out from now on: a share of what each block adds, and lookups in rows (B,) of text that
        it has read so many times before; None: all of it is new."""
        for block in self.blocks:
            block.dropout = updates
        if self.ngrams:
            self.ngrams.times = times

    def begin_step(self, progress: float) -> Hashable:
        """Call before every training step, after this fraction of the run: how many heads learn in it, and by which
        rule it is routed, which is returned."""
        self.heads_trained = self.config.heads_at(progress)
        return self.heads_trained, self.router.begin_step(progress)

    def end_step(self, gate: Tensor | None = None) -> None:
        """Call after every optimizer step: lets the rule move its threshold to keep the routed fraction."""
        self.router.update(gate)

    def forget_step(self) -> None:
        """Call after a step that moves nothing: what the router saw in it does not count."""
        self.router.seen.zero_()

    def new_cache(self, batch: int, feed: int) -> Cache:
        """For a batch of texts, of each of which a forward reads at most `feed` bytes."""
        return Cache(self.config, batch, self.dtype, self.embedding.weight.device, feed)

    def dense_parameters(self) -> list[nn.Parameter]:
        """All but the n-gram tables, of which a step touches some thousand rows."""
        table = self.ngrams.table.weight if self.ngrams else None
        return [p for p in self.parameters() if p is not table]

    def uncast_parameters(self) -> list[nn.Parameter]:
        """Those that the forward reads in fp32, whatever the dtype of its activations."""
        return [*self.router.parameters(), *self.parameter_groups()["tables"]]

    def parts(self) -> dict[str, int]:
        """Parameters of each part."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}


@torch.inference_mode()
def plain_generate(model, ids: list[int], count: int, temperature: float = 0.0, seed: int = 0, **options) -> list[int]:
    """At most `count` symbols after `ids`, up to EOS: for each of them the whole text goes through the model.

    What decode/ does fast is held to this, of both kinds of model. Temperature 0 is greedy.
    """
    generator, new, eos = torch.Generator().manual_seed(seed), [], model.alphabet.eos
    never = torch.tensor([not symbol and i != eos for i, symbol in enumerate(model.alphabet.table)])
    while len(new) < count:
        logits = model(torch.tensor([[*ids, *new]]), **options).logits[0, -1, 0].float().masked_fill(never, -torch.inf)
        p = (logits / temperature).softmax(-1) if temperature else logits == logits.max()
        symbol = torch.multinomial(p.float(), 1, generator=generator).item()
        if symbol == eos:
            break
        new.append(symbol)
    return new
