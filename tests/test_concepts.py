"""What a lesson's input must be, and what is said when it is not."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import (
    Concept,
    ConceptTask,
    check_new_token,
    make_task,
    mentions,
    with_plain_nouns,
)
from lifelong_core.errors import InputError


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def pictures(count: int = 2, height: int = 80, width: int = 100) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(3, height, width, generator=draw) for _ in range(count)]


def test_a_task_has_square_pictures_and_default_captions() -> None:
    task = make_task("my-dog_1", " teddy bear ", pictures(), size=64)
    assert task.images.shape == (2, 3, 64, 64)
    assert task.captions == ("a photo of embedding:my-dog_1 teddy bear",) * 2
    assert task.phrase == "embedding:my-dog_1 teddy bear"


def test_the_content_hash_sees_every_part() -> None:
    task = make_task("tok", "dog", pictures(), size=64)
    same = make_task("tok", "dog", pictures(), size=64)
    others = [
        make_task("tok2", "dog", pictures(), size=64),
        make_task("tok", "cat", pictures(), size=64),
        make_task("tok", "dog", pictures()[::-1], size=64),
        make_task("tok", "dog", pictures(), ["embedding:tok", "embedding:tok x"], size=64),
        make_task("tok", "dog", pictures(), size=72),
    ]
    assert task.content_hash == same.content_hash
    assert len({task.content_hash, *(other.content_hash for other in others)}) == 6


def test_later_changes_of_the_input_do_not_reach_the_task() -> None:
    images = torch.rand(2, 3, 64, 64)
    task = ConceptTask("tok", "dog", images, ("embedding:tok",) * 2)
    before = task.content_hash
    images.zero_()
    assert task.content_hash == before


@pytest.mark.parametrize(
    "token", ["", "a b", "a.b", "a/b", "../x", "ünï", "x" * 65, "a:b", "tok\n", "(tok)"]
)
def test_tokens_that_are_no_file_names_are_refused(token: str) -> None:
    with pytest.raises(InputError, match="letters"):
        make_task(token, "dog", pictures(), size=64)


@pytest.mark.parametrize(
    ("noun", "says"),
    [("", "empty"), ("  ", "empty"), ("dog\ncat", "plain words"), ("(dog:1.2)", "plain words")],
)
def test_unusable_nouns_are_refused(noun: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_task("tok", noun, pictures(), size=64)


@pytest.mark.parametrize("token", ["dog", "Dog", "sks"])
def test_words_of_the_vocabulary_are_refused(backbone: Backbone, token: str) -> None:
    with pytest.raises(InputError, match="already knows"):
        check_new_token(token, backbone.text)


def test_a_name_that_is_no_word_is_taken(backbone: Backbone) -> None:
    check_new_token("my_dog_17", backbone.text)


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        (["embedding:tok dog"], "2 pictures came with 1 captions"),
        (["embedding:tok dog"] * 3, "2 pictures came with 3 captions"),
        (["embedding:tok dog", "a photo of a dog"], "Caption 2"),
        (["embedding:tok2 dog", "embedding:tok dog"], "Caption 1"),
    ],
)
def test_captions_must_fit(captions: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_task("tok", "dog", pictures(), captions, size=64)


def test_a_longer_name_is_no_mention() -> None:
    assert mentions("a photo of embedding:tok, on grass", "tok")
    assert mentions("(embedding:tok:1.2) dog", "tok")
    assert not mentions("embedding:tok-2 dog", "tok")
    assert not mentions("tok dog", "tok")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "No pictures"),
        ([torch.zeros(1, 64, 64)], r"Picture 1 is \(1, 64, 64\)"),
        ([torch.zeros(3, 64, 64), torch.zeros(64, 64)], "Picture 2"),
        ([torch.full((3, 64, 64), torch.nan)], "not finite"),
        ([torch.full((3, 64, 64), 255.0)], "0 to 1"),
    ],
)
def test_broken_pictures_are_refused(images: list[torch.Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_task("tok", "dog", images, size=64)


def test_a_concept_keeps_its_vectors_to_itself() -> None:
    vectors = {"clip_l": torch.ones(1, 4)}
    concept = Concept("tok", "dog", vectors)
    vectors["clip_l"].zero_()
    vectors["clip_g"] = torch.ones(1, 4)
    assert set(concept.vectors) == {"clip_l"}
    assert float(concept.vectors["clip_l"].sum()) == 4.0
    with pytest.raises(TypeError):
        concept.vectors["clip_l"] = torch.zeros(1, 4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a photo of embedding:rex dog", "a photo of a dog"),
        ("embedding:rex dog and embedding:ann apple", "a dog and an apple"),
        ("snow, (embedding:rex dog:1.2)", "snow, (a dog:1.2)"),
        ("a photo of a embedding:rex dog", "a photo of a dog"),
        ("my big embedding:rex dog", "my big dog"),
        ("a photo of embedding:rexy dog", "a photo of embedding:rexy dog"),
        ("a photo of a (embedding:rex:1.3) dog", "a photo of a dog"),
        ("((embedding:rex)) dog, embedding:ann", "a dog, "),
        ("a (embedding:rex dog:1.3)", "a (dog:1.3)"),
        ("(embedding:rexy:1.3) dog", "(embedding:rexy:1.3) dog"),
    ],
)
def test_plain_nouns_have_an_article_where_they_need_one(prompt: str, plain: str) -> None:
    assert with_plain_nouns(prompt, ["rex", "ann"]) == plain
