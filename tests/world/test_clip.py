"""The world CLIP: words, losses, shapes, and that the shipped one matches pictures and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from lifelong_core.files import read_json
from lifelong_core.seeding import generator
from lifelong_core.world.asked import prompt_of
from lifelong_core.world.backgrounds import BACKGROUNDS, PHRASES
from lifelong_core.world.captions import article
from lifelong_core.world.clip import (
    CONTEXT,
    END,
    PAD,
    START,
    VOCABULARY,
    WIDTH,
    WorldClip,
    load_world_clip,
    new_clip,
    read_words,
    word_ids,
)
from lifelong_core.world.dice import Dice
from lifelong_core.world.drawing import Placement
from lifelong_core.world.looks import Look
from lifelong_core.world.palette import COLOURS
from lifelong_core.world.pretrain.clip import (
    caption_loss,
    short_loss,
    train_clip,
    unevenness,
)
from lifelong_core.world.pretrain.clip_data import twin_scene
from lifelong_core.world.pretrain.clip_words import facts_of, falsified, levels, shortened
from lifelong_core.world.pretrain.dataset import Scenes
from lifelong_core.world.scenes import Scene, Thing, random_scene, render
from lifelong_core.world.shapes import NOUNS
from lifelong_core.world.streams import character
from lifelong_core.world.styles import Style

PLACE = Placement(0.3, 0.9, 0.5)
RED_DOG = Thing("dog", Look("red", hat="blue"), PLACE)
STRIPED_CAT = Thing("cat", Look("blue", "striped", "white"), PLACE)


def words(text: str) -> list[str]:
    names = {number: word for word, number in VOCABULARY.items()}
    return [names[number] for number in word_ids(text) if number in names]


def test_texts_become_known_words_only() -> None:
    read = words("A photo of a red-ish DOG, on the beach!")
    assert read == ["a", "photo", "of", "a", "dog", "on", "the", "beach"]
    assert words("a two-tone cat") == ["a", "two-tone", "cat"]
    assert words("a zebra") == ["a"]
    ids = word_ids("a dog")
    assert ids[0] == START and ids[3] == END and set(ids[4:]) == {PAD} and len(ids) == CONTEXT
    assert max(VOCABULARY.values()) < END  # pooling looks for the highest number


def test_concept_tokens_are_dropped_and_their_noun_kept() -> None:
    plain = word_ids("a photo of dog on grass")
    assert word_ids("a photo of embedding:v2-dog-1 dog on grass") == plain
    assert word_ids("a photo of (embedding:v2-red-1:1.2) dog on grass") == plain
    assert words("embedding:red") == []


def test_a_text_of_any_length_fits() -> None:
    ids = word_ids("red dog and " * 50)
    assert len(ids) == CONTEXT and ids[-1] == END


def test_the_model_is_open_clips_and_its_outputs_are_directions() -> None:
    model = new_clip(0)
    assert isinstance(model, CLIP)
    clip = WorldClip(model)
    images = torch.rand(3, 3, 128, 128)
    seen, read = clip.encode_images(images), clip.encode_texts(["a dog", "a cat"])
    assert seen.shape == (3, WIDTH) and read.shape == (2, WIDTH)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(read.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(seen, clip.encode_images(images, batch_size=1), atol=1e-5)
    assert not any(p.requires_grad for p in clip.model.parameters())


def test_reading_no_further_than_the_end_mark_changes_nothing() -> None:
    model = new_clip(0)
    texts = ["a dog", "a photo of a red dog and a fancy blue cat with a hat in the snow", "a mug"]
    ids = torch.tensor([word_ids(text) for text in texts])
    whole = F.normalize(model.encode_text(ids), dim=-1)
    for groups in (1, 2, 3):
        assert torch.allclose(read_words(model, ids, groups), whole, atol=1e-5)
    assert WorldClip(model).encode_texts(texts).allclose(whole, atol=1e-5)


def test_equal_captions_are_one_anothers_positives() -> None:
    ids = torch.tensor([word_ids("a dog"), word_ids("a cat"), word_ids("a dog")])
    right = torch.tensor([[9.0, -9, 9], [-9, 9, -9], [9, -9, 9]])
    wrong = torch.tensor([[9.0, -9, -9], [-9, 9, -9], [-9, -9, 9]])
    assert caption_loss(right, ids) < 0.75  # two equal captions share: log 2 each
    assert caption_loss(wrong, ids) > 5


def test_pictures_must_not_match_false_captions() -> None:
    ids = torch.tensor([word_ids("a dog"), word_ids("a cat"), word_ids("a red dog")])
    good = torch.tensor([[9.0, -9, -9], [-9, 9, -9]])
    bad = torch.tensor([[9.0, -9, 9], [-9, 9, -9]])
    assert caption_loss(bad, ids) > caption_loss(good, ids) + 0.1


def test_false_captions_differ_in_a_noun_or_in_colours_only() -> None:
    texts = ["a red dog and a blue cat in the snow", "a photo of a mug", "a green car at night"]
    ids = torch.tensor([word_ids(text) for text in texts] * 100)
    false = falsified(ids, generator(0, "false"))
    assert not (false == ids).all(1).any()
    changed = false != ids
    assert changed.sum(1).max() == 2  # two colours swapped
    named = {VOCABULARY[word] for word in (*NOUNS, *COLOURS)}
    assert set(ids[changed].tolist()) | set(false[changed].tolist()) <= named
    swapped = torch.tensor(word_ids("a blue dog and a red cat in the snow"))
    assert 20 < (false[::3] == swapped).all(1).sum() < 80


def test_a_patterns_colours_are_never_swapped() -> None:
    ids = torch.tensor([word_ids("a fancy red and white striped dog with a blue hat")] * 200)
    false = falsified(ids, generator(0, "false"))
    turned = torch.tensor(word_ids("a fancy white and red striped dog with a blue hat"))
    assert not (false == turned).all(1).any()
    moved = torch.tensor(word_ids("a fancy blue and white striped dog with a red hat"))
    assert (false == moved).all(1).any()


def test_short_captions_are_known_to_be_true_or_false() -> None:
    scene = Scene("beach", (RED_DOG, STRIPED_CAT))
    facts = torch.tensor([facts_of(scene), facts_of(replace(scene, style=Style("sepia")))])
    told = {
        name: [
            {i for i, yes in enumerate(row) if yes}
            for part in level.truth(facts)
            for row in part.tolist()
        ]
        for name, level in levels().items()
    }
    dog, cat = NOUNS.index("dog"), NOUNS.index("cat")
    assert told["noun"][0] == told["noun"][1] == {dog, cat}
    assert told["noun"][2] == set(range(8)) - {dog, cat}
    dogs, cats = (set(range(12 * noun, 12 * noun + 12)) for noun in (dog, cat))
    red = 12 * dog + COLOURS.index("red")
    assert told["colour"][0] == {red} and told["colour"][1] == set()  # sepia shows no colours
    assert told["colour"][2] == set(range(96)) - {red} - cats  # "a blue cat" is half true
    assert told["colour"][3] == set(range(96)) - dogs - cats
    beach = BACKGROUNDS.index("beach")
    assert told["background"][0] == {6 * dog + beach, 6 * cat + beach}
    assert len(told["background"][2]) == 46


def test_short_captions_say_what_their_numbers_say() -> None:
    for start in ("", "a photo of "):
        parts = levels(start)
        row = 12 * NOUNS.index("car") + COLOURS.index("teal")
        assert parts["colour"].ids[row].tolist() == word_ids(f"{start}a teal car")
        row = 6 * NOUNS.index("mug") + BACKGROUNDS.index("night")
        assert parts["background"].ids[row].tolist() == word_ids(f"{start}a mug at night")
        assert parts["noun"].ids[NOUNS.index("dog")].tolist() == word_ids(f"{start}a dog")


def test_true_short_captions_share_and_nothing_to_ask_costs_nothing() -> None:
    level = levels()["noun"]
    facts = torch.tensor([facts_of(Scene("beach", (RED_DOG, STRIPED_CAT)))])
    true, false = level.truth(facts)
    right, wrong = (20.0 * part.float() for part in (true, false))
    assert short_loss(right, level, facts) < short_loss(wrong, level, facts) - 5
    nothing = torch.tensor([facts_of(Scene("beach", ()))])
    assert short_loss(right, level, nothing) == 0


def test_captions_are_even_when_all_that_they_are_true_of_scores_alike() -> None:
    level = levels()["noun"]
    dog, cat = NOUNS.index("dog"), NOUNS.index("cat")
    scenes = [
        Scene("beach", (RED_DOG,)),
        Scene("grass", (RED_DOG,)),
        Scene("beach", (STRIPED_CAT,)),
    ]
    facts = torch.tensor([facts_of(scene) for scene in scenes])
    cosines = torch.zeros(3, len(NOUNS))
    cosines[:, cat] = torch.tensor([0.9, 0.1, 0.4])  # true of one only: nothing to compare
    cosines[:, dog] = torch.tensor([0.5, 0.5, -1.0])
    assert unevenness(cosines, level, facts) == 0
    cosines[1, dog] = 0.3
    assert float(unevenness(cosines, level, facts)) == pytest.approx(0.01)
    assert unevenness(cosines, level, facts[2:].expand(3, -1) * 0) == 0


def test_a_few_steps_of_training_write_weights_and_another_run_goes_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong_core.world.pretrain.dataset.HELD_OUT", 12)
    monkeypatch.setattr("lifelong_core.world.pretrain.clip_data.HELD_OUT", 12)
    monkeypatch.setattr("lifelong_core.world.pretrain.clip.BATCH", 6)
    monkeypatch.setattr("lifelong_core.world.pretrain.clip.TWINS", 2)
    scenes = Scenes(tmp_path, 24, 7, wild=False)
    train_clip(tmp_path, scenes, None, seed=0, steps=2, weights=tmp_path)
    measured = read_json(tmp_path / "clip.json")["history"][-1]
    told = {"noun_told", "colour_told", "background_told", "caption_found", "twin_found"}
    told |= {"plain_over_fancy"}
    assert told <= measured.keys()
    assert (tmp_path / "clip.safetensors").stat().st_size < 6_000_000
    (tmp_path / "clip.checkpoint.safetensors").unlink()
    begin = tmp_path / "clip.safetensors"
    again = train_clip(tmp_path, scenes, None, seed=0, steps=1, weights=tmp_path, begin_from=begin)
    fresh = new_clip(0)
    assert not torch.equal(again.token_embedding.weight, fresh.token_embedding.weight)


def test_words_are_left_out_but_never_the_marks() -> None:
    ids = torch.tensor([word_ids("a photo of a red dog and a blue cat in the snow")] * 400)
    short = shortened(ids, generator(0, "drop"))
    lengths = (short != PAD).sum(1)
    full = int((ids[0] != PAD).sum())
    assert ((lengths == full).float().mean() > 0.5) and lengths.min() < full - 1
    assert (short[:, 0] == START).all() and ((short == END).sum(1) == 1).all()
    for row in short[:20].tolist():
        kept = [number for number in row if number != PAD]
        rest = iter(ids[0].tolist())
        assert all(number in rest for number in kept)  # in the old order


def test_a_twin_is_the_same_object_elsewhere() -> None:
    scene = random_scene(7, 3)
    twin = twin_scene(scene, Dice(0, "twin"))
    assert twin.background != scene.background and twin.style.is_natural
    assert [(t.noun, t.look) for t in twin.things] == [(scene.things[0].noun, scene.things[0].look)]
    assert twin.things[0].place != scene.things[0].place


@pytest.fixture(scope="module")
def shipped() -> WorldClip:
    return load_world_clip()


@pytest.fixture(scope="module")
def singles() -> tuple[list[Scene], Tensor]:
    """Unseen plain objects, one per picture, and their pictures [48, 3, 128, 128]."""
    scenes = [random_scene(991, i, count=1, fancy=0.0, styled=0.0) for i in range(48)]
    return scenes, torch.stack([render(scene).image for scene in scenes])


def test_the_shipped_clip_names_noun_colour_and_background(
    shipped: WorldClip, singles: tuple[list[Scene], Tensor]
) -> None:
    scenes, images = singles
    seen = shipped.encode_images(images)

    def named(texts: Callable[[Scene], list[str]], right: Callable[[Scene], int]) -> float:
        best = [
            int((one @ shipped.encode_texts(texts(scene)).T).argmax())
            for one, scene in zip(seen, scenes, strict=True)
        ]
        return sum(a == right(s) for a, s in zip(best, scenes, strict=True)) / len(scenes)

    nouns = [f"a photo of {article(noun)}" for noun in NOUNS]
    assert named(lambda s: nouns, lambda s: NOUNS.index(s.things[0].noun)) >= 0.9
    assert (
        named(
            lambda s: [f"a photo of {article(f'{c} {s.things[0].noun}')}" for c in COLOURS],
            lambda s: COLOURS.index(s.things[0].look.colour),
        )
        >= 0.9
    )
    assert (
        named(
            lambda s: [f"{nouns[NOUNS.index(s.things[0].noun)]} {p}" for p in PHRASES.values()],
            lambda s: BACKGROUNDS.index(s.background),
        )
        >= 0.9
    )


def test_the_shipped_clip_prefers_the_true_description(
    shipped: WorldClip, singles: tuple[list[Scene], Tensor]
) -> None:
    scenes, images = singles
    seen = shipped.encode_images(images)
    true = shipped.encode_texts([prompt_of(scene) for scene in scenes])

    def better_than(change: Callable[[Thing, str], tuple[Thing, str]]) -> float:
        """How often the true prompt fits better than one with a single thing changed."""
        false = []
        for scene in scenes:
            thing, background = change(scene.things[0], scene.background)
            false.append(prompt_of(replace(scene, things=(thing,), background=background)))
        wrong = shipped.encode_texts(false)
        return float(((seen * true).sum(1) > (seen * wrong).sum(1)).float().mean())

    def after(options: Sequence[str], value: str) -> str:
        return options[(options.index(value) + 3) % len(options)]

    recoloured = better_than(lambda t, b: (replace(t, look=Look(after(COLOURS, t.look.colour))), b))
    assert recoloured > 0.95
    assert better_than(lambda t, b: (t, after(BACKGROUNDS, b))) > 0.95
    assert better_than(lambda t, b: (replace(t, noun=after(NOUNS, t.noun)), b)) > 0.95


def test_the_shipped_clip_tells_a_character_from_others_of_its_noun(shipped: WorldClip) -> None:
    characters = [character(5, index, "cat") for index in range(8)]
    photos = torch.stack([shipped.encode_images(one.photos(3)) for one in characters])
    unseen = torch.stack([shipped.encode_images(one.photos(3, unseen=True)) for one in characters])
    mean = photos.mean((0, 1))
    first, second = F.normalize(photos - mean, dim=-1), F.normalize(unseen - mean, dim=-1)
    alike = torch.einsum("apd,bqd->abpq", first, second).mean((2, 3))
    assert (alike.argmax(1) == torch.arange(8)).float().mean() >= 0.85
