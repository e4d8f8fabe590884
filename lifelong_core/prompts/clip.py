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
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """How text encoders keep their weights in a base model of `dtype`: fp32 or fp16.

    They always compute in fp32, so range is no concern, and fp16 keeps three bits more than bf16.
    """
    return torch.float32 if dtype == torch.float32 else torch.float16


def _widened(weight: Tensor, x: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float32 else weight.to(x.dtype)


class _Linear(nn.Linear):
    """Linear layer that may keep its weights narrower than it computes."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else _widened(self.bias, x)
        return F.linear(x, _widened(self.weight, x), bias)


class _LayerNorm(nn.LayerNorm):
    """Layer norm that may keep its weights narrower than it computes."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _widened(self.weight, x), _widened(self.bias, x)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = _Linear(width, width)
        self.k_proj = _Linear(width, width)
        self.v_proj = _Linear(width, width)
        self.out_proj = _Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(projection(x), "b t (h d) -> b h t d", h=self.heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(rearrange(mixed, "b h t d -> b t (h d)"))


class _Mlp(nn.Module):
    def __init__(self, width: int, intermediate: int, activation: str) -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = _Linear(width, intermediate)
        self.fc2 = _Linear(intermediate, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class _Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = _LayerNorm(config.width)
        self.self_attn = _Attention(config.width, config.heads)
        self.layer_norm2 = _LayerNorm(config.width)
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
        self.final_layer_norm = _LayerNorm(config.width)


class ClipText(nn.Module):
    """One text encoder: token vectors in, context (and pooled output) out."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextModel(config)
        if config.pooled:
            self.text_projection = _Linear(config.width, config.width, bias=False)

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
        model, config = self.text_model, self.config
        positions = model.embeddings.position_embedding.weight.float()
        x = self._through(0, config.output_layer, embeds + positions[: embeds.shape[1]])
        hidden = model.final_layer_norm(x) if config.final_norm else x
        if ends is None or not config.pooled:
            return hidden.float(), None
        x = self._through(config.output_layer, config.layers, x[: len(ends)])
        last = x[torch.arange(len(ends), device=x.device), ends]
        return hidden.float(), self.text_projection(model.final_layer_norm(last)).float()

    def _through(self, start: int, stop: int, x: Tensor) -> Tensor:
        narrow = self.token_table.dtype != torch.float32
        for layer in self.text_model.encoder.layers[start:stop]:
            if narrow and x.requires_grad:
                # The graph would keep an fp32 copy of every weight until the backward pass.
                x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x)
        return x
