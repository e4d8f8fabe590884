"""Ordinary prompts: what a base model is asked for by people who know nothing of any concept.

Made up from common words, so that no list of captions has to be fetched. They stand for "everything
else" where something learned must leave everything else alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..seeding import generator

SENTENCES = (
    "a photo of a {adjective} {noun} {place}",
    "a photo of a {noun} and a {noun} {place}",
    "a {adjective} {noun} and a {adjective} {noun} {place}",
    "a {adjective} and {adjective} {noun} with a {adjective} {noun}",
    "a {medium} of a {noun} {place}",
    "{noun}, {noun}, {adjective}, {adjective} {medium}",
)
NOUNS = (
    *("dog", "cat", "bird", "duck", "horse", "cow", "sheep", "bear", "fish", "elephant", "fox"),
    *("man", "woman", "boy", "girl", "child", "person", "baby", "face", "hand", "eye", "crowd"),
    *("backpack", "teddybear", "mug", "cup", "bottle", "bowl", "plate", "box", "bag", "vase"),
    *("car", "bus", "train", "boat", "bicycle", "plane", "truck", "wheel", "road", "bridge"),
    *("house", "castle", "church", "tower", "door", "window", "wall", "roof", "street", "garden"),
    *("tree", "flower", "leaf", "forest", "river", "mountain", "sky", "cloud", "sun", "moon"),
    *("table", "chair", "bed", "lamp", "book", "clock", "phone", "computer", "guitar", "toy"),
    *("hat", "scarf", "shirt", "dress", "shoe", "coat", "glasses", "umbrella", "robot", "statue"),
    *("apple", "bread", "cake", "pizza", "egg", "coffee", "ear", "beak", "tail", "patch"),
)
ADJECTIVES = (
    *("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white"),
    *("grey", "gray", "turquoise", "golden", "silver", "dark", "bright", "colorful", "striped"),
    *("spotted", "plain", "fancy", "small", "big", "tall", "old", "new", "young", "wooden"),
    *("metal", "glass", "stone", "soft", "fluffy", "shiny", "happy", "sad", "beautiful", "ugly"),
)
PLACES = (
    *("on the beach", "on grass", "in the snow", "at night", "in a room", "in the desert"),
    *("in the forest", "in a city", "on a table", "in the water", "under a tree", "in the sky"),
    *("on a street", "in the rain", "at sunset", "in front of a house", "in space", ""),
)
MEDIA = (
    *("photo", "painting", "drawing", "sketch", "illustration", "portrait", "close-up", "poster"),
    *("watercolor", "oil painting", "hatched drawing", "sepia drawing", "render", "cartoon"),
)


def ordinary_prompts(count: int, seed: int = 0) -> list[str]:
    """The empty prompt, which every picture is drawn with, and `count` others."""
    draw = generator(seed, "ordinary prompts")

    def one_of(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=draw))]

    words = {"{noun}": NOUNS, "{adjective}": ADJECTIVES, "{place}": PLACES, "{medium}": MEDIA}
    prompts = [""]
    for number in range(count):
        prompt = SENTENCES[number % len(SENTENCES)]
        for gap, choices in words.items():
            while gap in prompt:
                prompt = prompt.replace(gap, one_of(choices), 1)
        prompts.append(prompt.strip())
    return prompts
