"""Concepts' adapters inside ComfyUI's UNet, each heard in its own words of one prompt alone.

A conditioning that `localized_encoding` made says whose words stand at its rows. While the UNet
runs, the layers that make keys and values of them add what the owners' adapters change; nothing
stays behind. Below all patches of attention, so that these work as ever, attention guidance too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.nn.functional import pad

from ..lifelong_core.adapters.factors import Factors
from ..lifelong_core.prompts.conditioning import NOBODYS
from .layer_contexts import Place, placed, places_of, text_of
from .localized_encoding import WORDS, LocalizedRows

KEY = "lifelong_word_adapters"

Changes = Mapping[str, Factors]
"""ComfyUI's name of a linear layer of the UNet -> what an adapter changes in it."""


def add_word_adapters(model: Any, adapters: Mapping[str, Changes]) -> None:
    """Let a clone of MODEL, changed in place, hear these adapters, by their concepts' tokens, in
    the words of conditionings that name them.
    """
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, tell_owners)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, WordAdapters(adapters))


def remove_word_adapters(patcher: Any) -> None:
    """Undo `add_word_adapters`."""
    for kind in (WrappersMP.CALC_COND_BATCH, WrappersMP.DIFFUSION_MODEL):
        patcher.remove_wrappers_with_key(kind, KEY)


def tell_owners(
    executor: Any,
    model: Any,
    conds: Sequence[Sequence[dict[str, Any]] | None],
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> Any:
    """A CALC_COND_BATCH wrapper: the pass is told its conditionings' rows, by their places."""
    rows = {
        place: _rows_of(cond[WORDS], text_of(cond))
        for place, cond in placed(conds)
        if WORDS in cond and _still(cond[WORDS], text_of(cond))
    }
    options = {**model_options.get("transformer_options", {}), KEY: rows}
    return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})


class WordAdapters:
    """A DIFFUSION_MODEL wrapper: keys and values of owned rows have their owner's change."""

    def __init__(self, adapters: Mapping[str, Changes]) -> None:
        self.adapters = adapters
        self._moved: dict[Any, tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None,
        control: Any,
        transformer_options: Mapping[str, Any],
        **others: Any,
    ) -> Tensor:
        spoken = self._spoken(transformer_options, context)
        with self._heard(executor.class_obj, spoken):
            return executor(x, timesteps, context, y, control, transformer_options, **others)

    def _spoken(self, options: Mapping[str, Any], context: Tensor) -> dict[str, Tensor]:
        """Token -> the rows [B, T] of a pass's context that are its concept's."""
        known: Mapping[Place, LocalizedRows] = options.get(KEY, {})
        found: dict[str, Tensor] = {}
        places = places_of(options) if known else []
        for number, place in enumerate(places):
            if place not in known:
                continue
            rows, pictures = known[place], len(context) // len(places)
            # Where prompts of several lengths share a batch, the shorter ones repeat.
            owners = rows.owners.repeat(context.shape[1] // len(rows.owners))
            for owner, token in enumerate(rows.tokens):
                here = owners == owner
                if token in self.adapters and bool(here.any()):
                    mask = found.setdefault(token, torch.zeros(context.shape[:2], dtype=torch.bool))
                    mask[number * pictures : (number + 1) * pictures] |= here
        return {token: mask.to(context.device) for token, mask in found.items()}

    @contextmanager
    def _heard(self, unet: nn.Module, spoken: Mapping[str, Tensor]) -> Iterator[None]:
        """The UNet's layers with what these concepts' adapters change."""
        names = dict.fromkeys(name for token in spoken for name in self.adapters[token])
        before: list[tuple[nn.Module, Any]] = []
        try:
            for name in names:
                layer = unet.get_submodule(name)
                before.append((layer, layer.__dict__.get("forward")))
                own = {
                    token: mask for token, mask in spoken.items() if name in self.adapters[token]
                }
                layer.forward = _Forward(layer.forward, own, partial(self._factors, name))
            yield
        finally:
            for layer, forward in before:
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    def _factors(self, name: str, token: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """down and scaled up of an adapter's layer, where x is and in its format; moved once."""
        key = name, token, x.device, x.dtype
        if key not in self._moved:
            own = self.adapters[token][name]
            self._moved[key] = own.down.to(x), (own.scale * own.up).to(x)
        return self._moved[key]


class _Forward:
    """A linear layer's forward with the changes of some adapters in some rows of its input.

    own: token -> rows [B, T]. factors: of a token's adapter for an input.
    """

    def __init__(
        self,
        forward: Any,
        own: Mapping[str, Tensor],
        factors: Callable[[str, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.forward = forward
        self.own = own
        self.factors = factors

    def __call__(self, x: Tensor) -> Tensor:
        answer: Tensor = self.forward(x)
        for token, rows in self.own.items():
            behind = x.shape[1] - rows.shape[1]
            if len(x) != len(rows) or behind < 0:  # Not the pass's prompts.
                continue
            here = pad(rows, (0, behind))  # Patches may put tokens of their own behind.
            down, up = self.factors(token, x)
            change = x[here] @ down.mT @ up.mT
            answer = answer.index_put((here,), answer[here] + change.to(answer))
        return answer


def _rows_of(rows: LocalizedRows, context: Tensor) -> LocalizedRows:
    """The same for a conditioning in which other nodes have put rows behind the prompt."""
    behind = context.shape[1] - len(rows.owners)
    return replace(rows, owners=pad(rows.owners, (0, behind), value=NOBODYS))


def _still(rows: LocalizedRows, context: Tensor) -> bool:
    """Whether a conditioning still is, or begins with, the prompt that these rows are of."""
    length = rows.context.shape[1]
    return context.shape[1] >= length and torch.equal(context[:, :length], rows.context.to(context))
