"""CLIP's text transformer, as Stable Diffusion reads it.

A module of our own for two reasons. Learned vectors enter between the token table and the first
layer, where transformers' text models have no public door. And its parameter names stay those of
the published checkpoints (`text_model.encoder.layers.0.self_attn.q_proj.weight`), which
transformers 5 changed: adapters and states are keyed by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOS = 49406
EOS = 49407
VOCABULARY = 49408
CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class ClipConfig:
    """Shape of one text encoder and how Stable Diffusion reads it.

    `key` is ComfyUI's name (clip_l, clip_g, clip_h); `pad` fills a chunk after its end token;
    `output_layer` counts the layers below the hidden state that becomes the context;
    `final_norm` says whether the final layer norm is applied to it; `pooled` whether the
    projected end token of the last layer is an output too.
    """

    key: str
    width: int
    layers: int
    heads: int
    intermediate: int
    activation: str
    pad: int
    output_layer: int
    final_norm: bool
    pooled: bool = False


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, intermediate: int, activation: str) -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = nn.Linear(width, intermediate)
        self.fc2 = nn.Linear(intermediate, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class _Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.self_attn = _Attention(config.width, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.mlp = _Mlp(config.width, config.intermediate, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position_embedding = nn.Embedding(CONTEXT_LENGTH, width)


class _Encoder(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))


class _TextModel(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config.width)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width)


class ClipText(nn.Module):
    """One text encoder: token vectors in, context (and pooled output) out."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextModel(config)
        if config.pooled:
            self.text_projection = nn.Linear(config.width, config.width, bias=False)

    @property
    def token_table(self) -> Tensor:
        """The embedding table [49408, width]. Read it; never write to it."""
        return self.text_model.embeddings.token_embedding.weight

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [N, 77] -> token vectors [N, 77, width] in fp32, before positions are added."""
        return self.text_model.embeddings.token_embedding(ids).float()

    def forward(self, embeds: Tensor, ends: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Token vectors [N, 77, width] -> hidden states [N, 77, width] and pooled [N, width], fp32.

        `ends` [M] holds the position of the end token in the first M rows, whose pooled output
        [M, width] is wanted; None, or an encoder without pooled output, skips the layers above
        `output_layer`.
        """
        model = self.text_model
        positions = model.embeddings.position_embedding.weight.float()
        x = (embeds + positions[: embeds.shape[1]]).to(self.token_table.dtype)
        for layer in model.encoder.layers[: self.config.output_layer]:
            x = layer(x)
        hidden = model.final_layer_norm(x) if self.config.final_norm else x
        if ends is None or not self.config.pooled:
            return hidden.float(), None
        x = x[: len(ends)]
        for layer in model.encoder.layers[self.config.output_layer :]:
            x = layer(x)
        last = x[torch.arange(len(ends), device=x.device), ends]
        return hidden.float(), self.text_projection(model.final_layer_norm(last)).float()
