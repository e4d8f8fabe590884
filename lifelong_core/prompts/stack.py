"""The text side of a base model: one or two CLIP encoders behind one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .clip import ClipText, storage_dtype
from .conditioning import Conditioning
from .tokenizer import tokenizer
from .tokens import EMPTY_CHUNK, Chunk, TokenizedPrompt, TokenVector, end_position, tokenize
from .vectors import ConceptVectors, check_vectors, is_layerwise, row_count


class TextStack:
    """Frozen text encoders that read prompts as ComfyUI's CLIPTextEncode does.

    SD1 and the demo: last layer, final norm. SD2: penultimate layer, final norm. SDXL: penultimate
    layers of both encoders, no norm, joined along the width; pooled from clip_g's first chunk.
    Computes in fp32 whatever the weights' dtype, outside autocast, as ComfyUI does.

    layers: cross-attention layers of the UNet, for each of which a concept may have vectors.
    """

    def __init__(self, encoders: Sequence[ClipText], layers: int = 0) -> None:
        self.modules: dict[str, ClipText] = {
            encoder.config.key: encoder.requires_grad_(False).eval() for encoder in encoders
        }
        self.encoder_keys: tuple[str, ...] = tuple(self.modules)
        self.layers = layers

    @property
    def widths(self) -> dict[str, int]:
        """Encoder key -> width of its token vectors."""
        return {key: encoder.config.width for key, encoder in self.modules.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.modules.values())).token_table.device

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TextStack:
        """Move the encoders in place. In half precision they keep fp16 weights (see clip.py)."""
        for encoder in self.modules.values():
            encoder.to(device=device, dtype=None if dtype is None else storage_dtype(dtype))
        return self

    def has_word(self, word: str) -> bool:
        """Whether `word` is an entry of the vocabulary (a new concept token must not be)."""
        return tokenizer().has_word(word)

    def noun_vector(self, noun: str) -> dict[str, Tensor]:
        """Mean of the noun's token vectors per encoder, [1, width] fp32: a new concept's start.

        Raises InputError when the noun has no token at all.
        """
        ids = tokenizer().encode(noun)
        if not ids:
            raise InputError(f"The class noun {noun!r} holds no word; give one such as 'dog'.")
        return {
            key: encoder.token_table[ids].detach().float().mean(0, keepdim=True)
            for key, encoder in self.modules.items()
        }

    def tokenize(
        self, prompt: str, vectors: Mapping[str, ConceptVectors] | None = None
    ) -> TokenizedPrompt:
        """Tokenise by ComfyUI's rules; `vectors` names the concept tokens that may occur.

        Raises InputError for an unknown token or vectors that do not fit the encoders.
        """
        known = vectors or {}
        for token, concept in known.items():
            check_vectors(token, concept, self.widths, self.layers)
        return tokenize(prompt, {t: row_count(own) for t, own in known.items()}, tokenizer())

    def encode(
        self,
        prompts: Sequence[str],
        vectors: Mapping[str, ConceptVectors] | None = None,
    ) -> Conditioning:
        """Encode prompts: context [B, 77 * chunks, width], pooled [B, P] for SDXL; fp32.

        Equal prompts are encoded once; one that names a layer-wise concept once per layer too, in
        the same batch, which gives `layers`. Differentiable with respect to `vectors`; the encoders
        themselves are frozen. Raises InputError for an unknown concept token.
        """
        if not prompts:
            raise InputError("There is no prompt to encode; give at least one.")
        unique = list(dict.fromkeys(prompts))
        encoded = self.encode_tokenized([self.tokenize(p, vectors) for p in unique], vectors)
        if len(unique) == len(prompts):
            return encoded
        place = {prompt: row for row, prompt in enumerate(unique)}
        return encoded[torch.tensor([place[prompt] for prompt in prompts])]

    def encode_tokenized(
        self,
        prompts: Sequence[TokenizedPrompt],
        vectors: Mapping[str, ConceptVectors] | None = None,
    ) -> Conditioning:
        """`encode` for prompts that are tokenised already."""
        known = vectors or {}
        layerwise = [row for row, prompt in enumerate(prompts) if is_layerwise(prompt, known)]
        per_layer = [prompts[row].at_layer(n) for row in layerwise for n in range(self.layers)]
        parts = [
            _encode(encoder, [*prompts, *per_layer], known, pooled=len(prompts))
            for encoder in self.modules.values()
        ]
        context, own = torch.cat([part.context for part in parts], dim=-1).split(
            [len(prompts), len(per_layer)]
        )
        layers = None
        if layerwise:
            layers = context[:, None].expand(-1, self.layers, -1, -1)
            place = torch.tensor(layerwise, device=context.device)
            layers = layers.index_copy(0, place, own.unflatten(0, (-1, self.layers)))
        return Conditioning(context, parts[-1].pooled, layers)


def _encode(
    encoder: ClipText,
    prompts: Sequence[TokenizedPrompt],
    vectors: Mapping[str, ConceptVectors],
    pooled: int,
) -> Conditioning:
    """All chunks of all prompts through one encoder in one batch, put together per prompt.

    First chunks come first: only they have a pooled output, wanted of the first `pooled` prompts.
    """
    chunks = [prompt.chunks[0] for prompt in prompts]
    rows = []
    for index, prompt in enumerate(prompts):
        first_later = len(chunks)
        chunks += prompt.chunks[1:]
        rows.append([index, *range(first_later, len(chunks))])
    weighted = any(prompt.weighted for prompt in prompts)
    batch = [*chunks, EMPTY_CHUNK] if weighted else chunks
    device = encoder.token_table.device
    ends = [end_position(prompt.chunks[0]) for prompt in prompts[:pooled]]
    with torch.autocast(device.type, enabled=False):
        hidden, pools = encoder(_embed(encoder, batch, vectors), torch.tensor(ends, device=device))
    if weighted:
        weights = torch.tensor(
            [[position.weight for position in chunk] for chunk in chunks], device=device
        ).unsqueeze(-1)
        empty = hidden[-1:]
        hidden = hidden[:-1]
        hidden = torch.where(weights == 1.0, hidden, (hidden - empty) * weights + empty)
    parts = [Conditioning(hidden[chosen].flatten(0, 1).unsqueeze(0)) for chosen in rows]
    return Conditioning(Conditioning.cat(parts).context, pools)


def _embed(
    encoder: ClipText, chunks: Sequence[Chunk], vectors: Mapping[str, ConceptVectors]
) -> Tensor:
    """Token vectors [N, 77, width] of the chunks, fp32, with the learned rows set in."""
    key, pad = encoder.config.key, encoder.config.pad
    ids = [[_table_id(position.item, pad) for position in chunk] for chunk in chunks]
    embeds = encoder.embed(torch.tensor(ids, device=encoder.token_table.device))
    places = [
        (n, k, position.item)
        for n, chunk in enumerate(chunks)
        for k, position in enumerate(chunk)
        if isinstance(position.item, TokenVector)
    ]
    if not places:
        return embeds
    learned = torch.stack([_vector(vectors[item.token][key], item) for _, _, item in places])
    chunk_index = torch.tensor([n for n, _, _ in places], device=embeds.device)
    position_index = torch.tensor([k for _, k, _ in places], device=embeds.device)
    return embeds.index_put((chunk_index, position_index), learned.to(embeds))


def _vector(vectors: Tensor, item: TokenVector) -> Tensor:
    """The vector [width] that stands at a position."""
    if vectors.dim() == 2:
        return vectors[item.row]
    own = vectors[:, item.row]
    return own.mean(0) if item.layer is None else own[item.layer]


def _table_id(item: int | TokenVector | None, pad: int) -> int:
    return item if isinstance(item, int) else pad
