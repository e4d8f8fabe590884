"""Runs inside ComfyUI's own process: what a state puts on MODEL and CLIP, and how it comes off."""

from __future__ import annotations

import importlib
from typing import Any

from inside import (
    EMBEDDINGS,
    foreign_lora,
    loaded,
    output,
    pack,
    refused,
    some_state,
    tokens,
    torch,
)

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
from safetensors.torch import save_file


def check_a_state_is_put_on_and_taken_off() -> None:
    model, clip, vae = loaded()
    patching = pack("nodes.patching")
    plain = output(model)
    styled = foreign_lora(model)
    with_style = output(styled)
    first, second = some_state("x"), some_state("x", token="my_cat", seed=1)
    taught, reader = patching.apply_state(styled, clip, first)
    assert patching.applied_tokens(taught) == patching.applied_tokens(reader) == ("my_dog",)
    learned = output(taught)
    assert float((learned - with_style).norm() / with_style.norm()) > 1e-3
    again, other_reader = patching.apply_state(*patching.apply_state(taught, reader, first), second)
    only_second = output(again)
    assert torch.equal(only_second, output(patching.apply_state(styled, clip, second)[0]))
    assert tokens(other_reader, "embedding:my_cat") and not tokens(other_reader, "embedding:my_dog")
    assert torch.equal(output(patching.remove_state(taught)), with_style)
    assert patching.remove_state(reader).tokenizer is clip.tokenizer
    assert torch.equal(output(model), plain)
    assert patching.applied_tokens(model) == patching.applied_tokens(clip) == ()
    assert not tokens(clip, "embedding:my_dog")


def check_a_lora_added_after_a_state_stays() -> None:
    model, clip, _ = loaded()
    patching = pack("nodes.patching")
    taught, _ = patching.apply_state(model, clip, some_state("x"))
    styled = foreign_lora(taught)
    assert torch.equal(output(patching.remove_state(styled)), output(foreign_lora(model)))


def check_a_state_goes_on_a_model_with_another_nodes_lora() -> None:
    model, clip, _ = loaded()
    state = some_state(pack("nodes.bridge").base_model(model).fingerprint)
    execute = pack("nodes.state_nodes").ApplyLifelongState.execute
    styled = foreign_lora(model)
    taught = execute(styled, clip, state).result[0]
    assert torch.equal(output(taught), output(foreign_lora(execute(model, clip, state).result[0])))
    elastic = pack("nodes.elastic_concept_weights").ElasticConceptWeights
    assert elastic.execute(styled, clip, state, "a embedding:my_dog dog", 4.0).result


def check_states_that_do_not_fit_are_refused() -> None:
    model, clip, _ = loaded()
    patching = pack("nodes.patching")
    state = some_state("x")
    apply_state = pack("nodes.state_nodes").ApplyLifelongState.execute
    refused("StateError", "fingerprint", lambda: apply_state(model, clip, state))
    blind = clip.clone()
    blind.tokenizer = type("Tokenizer", (), {})()
    refused("ModelError", "no text encoder", lambda: patching.apply_state(model, blind, state))


def check_tokens_in_memory_are_read_as_embedding_files_are() -> None:
    _, clip, _ = loaded()
    state = some_state("x")
    vectors = state.vectors["my_dog"]["clip_l"]
    EMBEDDINGS.mkdir(exist_ok=True)
    save_file({"emb_params": vectors.clone()}, EMBEDDINGS / "on_disk.safetensors")
    model, _, _ = loaded()
    _, reader = pack("nodes.patching").apply_state(model, clip, state)
    for prompt in (
        "a photo of embedding:NAME dog",
        "embedding:NAME",
        "embedding:NAME, on the beach",
        "embedding:NAME,",
        "a (embedding:NAME:1.3) and (embedding:NAME dog:0.7) at night",
        "embedding:NAME<cat> embedding:NAME[x] y",
        "embedding:NAME. dog",
        "embedding:NAMEX dog",
        "word " * 74 + "embedding:NAME dog " + "word " * 80,
    ):
        in_memory = reader.tokenize(prompt.replace("NAME", "my_dog"))["l"]
        on_disk = clip.tokenize(prompt.replace("NAME", "on_disk"))["l"]
        assert same_tokens(in_memory, on_disk), prompt
    for plain_text in ("a,embedding:my_dog dog", "Embedding:my_dog dog"):
        assert not tokens(reader, plain_text)
    reader_of_both = reader.tokenize("embedding:my_dog embedding:on_disk")["l"]
    assert sum(torch.is_tensor(token) for token, _ in reader_of_both[0]) == 4


def same_tokens(left: Any, right: Any) -> bool:
    def plain(chunks: Any) -> Any:
        return [
            [(token.tolist() if torch.is_tensor(token) else token, w) for token, w in chunk]
            for chunk in chunks
        ]

    return plain(left) == plain(right)


def check_one_model_cannot_hold_hard_routing() -> None:
    model, clip, _ = loaded()
    patching = pack("nodes.patching")
    replace = importlib.import_module("dataclasses").replace
    (record,) = some_state("x").records
    routed = replace(record, settings={"method": "hard_routing"})
    state = replace(some_state("x"), records=(routed,))
    refused("InputError", "hard_routing", lambda: patching.apply_state(model, clip, state))


def check_a_merge_draws_with_the_mean_of_its_lessons() -> None:
    patching, sharing = pack("nodes.patching"), pack("lifelong_core.sharing.lora")
    methods = pack("lifelong_core.methods")
    replace = importlib.import_module("dataclasses").replace
    one, other = some_state("x"), some_state("x", token="my_cat", seed=1)
    records = [
        replace(record, settings={"method": "lora_merge"})
        for record in (*one.records, *other.records)
    ]
    both = replace(one, adapter=other.adapter, records=records)
    first, second, merged = (
        sharing.lora_state_dict(state) for state in (one, other, methods.any_prompt_state(both))
    )
    for key in (key for key in merged if key.endswith(".alpha")):
        layer = key.removesuffix(".alpha")
        mean = (lora_change(first, layer) + lora_change(second, layer)) / 2
        # The lessons are kept in fp16.
        assert float((lora_change(merged, layer) - mean).norm() / mean.norm()) < 1e-3
    model, clip, _ = loaded()
    drawing, reader = patching.apply_state(model, clip, both)
    assert patching.applied_tokens(drawing) == ("my_dog", "my_cat")
    assert tokens(reader, "embedding:my_dog") and tokens(reader, "embedding:my_cat")


def lora_change(lora: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
    return lora[f"{layer}.alpha"] / len(down) * (up @ down)
