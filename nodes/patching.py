"""A lifelong state on top of ComfyUI's MODEL and CLIP: LoRA patches and concept embeddings.

Both come back as clones, so the objects that other nodes hold stay as they are. What this pack
put on is remembered on the clone, so that a later lesson can take it off again and work on the
same base.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sd
from torch import Tensor

from ..lifelong_core.errors import InputError, ModelError
from ..lifelong_core.methods import any_prompt_state
from ..lifelong_core.sharing.lora import lora_state_dict
from ..lifelong_core.state import LifelongState
from .layer_contexts import add_layers, remove_layers
from .localized_encoding import add_localized, remove_encodings
from .spectra import spectrum_for
from .word_adapters import remove_word_adapters

ATTACHMENT = "lifelong"


@dataclass(frozen=True)
class Applied:
    """Remembered on a patched clone: the concepts put on, and the patches that carry them."""

    tokens: tuple[str, ...]
    patches: tuple[Any, ...]
    tokenizer: Any = None


def apply_state(model: Any, clip: Any, state: LifelongState) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP that draw all that the state knows, whatever the prompt.

    Raises what `put_on` and `any_prompt_state` raise.
    """
    return put_on(model, clip, any_prompt_state(state))


def put_on(model: Any, clip: Any, state: LifelongState) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with the state's adapter and concepts, and no other state's.

    Raises ModelError when a layer of the state does not exist in MODEL or CLIP.
    """
    model, clip = remove_state(model), remove_state(clip)
    lora = lora_state_dict(state, spectrum_for(state, model))
    before = _patches(model), _patches(clip.patcher)
    model, clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    tokens = tuple(concept.token for concept in state.concepts)
    on_model, on_clip = _added(model, before[0]), _added(clip.patcher, before[1])
    _require_all(lora, len(on_model) + len(on_clip))
    original = clip.tokenizer
    clip.tokenizer = with_concepts(original, state)
    add_layers(model, clip, state)
    add_localized(clip, state)
    model.set_attachments(ATTACHMENT, Applied(tokens, on_model))
    clip.patcher.set_attachments(ATTACHMENT, Applied(tokens, on_clip, original))
    return model, clip


def applied_tokens(model_or_clip: Any) -> tuple[str, ...]:
    """The concepts that this pack has put on a MODEL or CLIP."""
    applied = _patcher(model_or_clip).get_attachment(ATTACHMENT)
    return applied.tokens if applied is not None else ()


def without_lessons(model: Any, clip: Any, state: LifelongState | None) -> tuple[Any, Any]:
    """MODEL and CLIP as before this pack's earlier lessons, which must be part of `state`.

    Raises InputError when they know concepts that `state` does not.
    """
    known = {concept.token for concept in state.concepts} if state else set()
    lost = sorted({*applied_tokens(model), *applied_tokens(clip)} - known)
    if lost:
        raise InputError(
            f"This MODEL or CLIP comes from a lesson and knows {', '.join(lost)}, which would be "
            "forgotten. Link the LIFELONG_STATE of that lesson too; or, to begin anew, the MODEL "
            "and CLIP of the checkpoint."
        )
    return remove_state(model), remove_state(clip)


def remove_state(model_or_clip: Any) -> Any:
    """The MODEL or CLIP without what `apply_state` put on; other nodes' patches stay."""
    applied = _patcher(model_or_clip).get_attachment(ATTACHMENT)
    if applied is None:
        return model_or_clip
    plain = model_or_clip.clone()
    patcher = _patcher(plain)
    # An empty add_patches gives the clone an identity of its own: ComfyUI compares it to decide
    # whether weights that are loaded already can be used again.
    patcher.add_patches({})
    ours = {id(patch) for patch in applied.patches}
    kept = {
        key: [entry for entry in entries if id(entry[1]) not in ours]
        for key, entries in patcher.patches.items()
    }
    patcher.patches = {key: entries for key, entries in kept.items() if entries}
    remove_layers(patcher)
    remove_encodings(patcher)
    remove_word_adapters(patcher)
    patcher.remove_attachments(ATTACHMENT)
    if applied.tokenizer is not None:
        plain.tokenizer = applied.tokenizer
    return plain


def _patcher(model_or_clip: Any) -> Any:
    return getattr(model_or_clip, "patcher", model_or_clip)


def _patches(patcher: Any) -> dict[str, int]:
    return {key: len(entries) for key, entries in patcher.patches.items()}


def _added(patcher: Any, before: Mapping[str, int]) -> tuple[Any, ...]:
    return tuple(
        entry[1]
        for key, entries in patcher.patches.items()
        for entry in entries[before.get(key, 0) :]
    )


def _require_all(lora: Mapping[str, Tensor], loaded: int) -> None:
    # One key per weight; LoRAs have more.
    endings = (".lora_down.weight", ".diff", ".w_norm", ".b_norm")
    layers = sum(key.endswith(endings) for key in lora)
    if loaded != layers:
        raise ModelError(
            f"Only {loaded} of the {layers} learned layers exist in this MODEL and CLIP. Link the "
            "MODEL and the CLIP of the checkpoint that the concepts were learned on."
        )


def with_concepts(tokenizer: Any, state: LifelongState) -> Any:
    """A copy of ComfyUI's tokenizer that finds the state's vectors, of layer-wise concepts their
    mean, before it looks for files.
    """
    known = copy.copy(tokenizer)
    for encoder in {key for concept in state.concepts for key in concept.vectors}:
        part = getattr(tokenizer, encoder, None)
        if part is None:
            raise ModelError(
                f"This CLIP has no text encoder {encoder!r}, which the state's concepts need. Link "
                "the CLIP of the checkpoint that the concepts were learned on."
            )
        words = copy.copy(part)
        if words.embedding_directory is None:  # Then ComfyUI would not look for embeddings at all.
            words.embedding_directory = []
        vectors = {c.token: c.single().vectors[encoder] for c in state.concepts}
        words._try_get_embedding = _Lookup(part, vectors)
        setattr(known, encoder, words)
    return known


class _Lookup:
    """`SDTokenizer._try_get_embedding` with concepts in memory in front of the files.

    A name ends at white space, '<' or '['; commas around it do not belong to it.
    """

    def __init__(self, tokenizer: Any, vectors: Mapping[str, Tensor]) -> None:
        self.tokenizer = tokenizer
        self.vectors = vectors

    def __call__(self, text: str) -> tuple[Tensor | None, str, str]:
        words = text.split()
        end = re.search(r"[<\[]", words[0]) if words else None
        name = words[0][: end.start()] if end else (words[0] if words else "")
        token = name.strip(",")
        if token not in self.vectors:
            return self.tokenizer._try_get_embedding(text)
        rest = [words[0][len(name) :], *words[1:]] if end else words[1:]
        after = name[name.index(token) + len(token) :]
        return self.vectors[token], token, " ".join(part for part in (after, *rest) if part)
