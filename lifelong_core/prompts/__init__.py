"""Prompts: tokenising, concept tokens, text encoders, caption templates."""

from .cache import PromptCache, PromptEncoder
from .captions import OBJECT_TEMPLATES, caption_for
from .clip import ClipConfig, ClipText
from .conditioning import Conditioning
from .stack import TextStack
from .tokenizer import Tokenizer, tokenizer
from .tokens import TokenizedPrompt, TokenVector
from .vectors import ConceptVectors, layer_count, row_count, single_vectors, vectors_of_layer

__all__ = [
    "OBJECT_TEMPLATES",
    "ClipConfig",
    "ClipText",
    "ConceptVectors",
    "Conditioning",
    "PromptCache",
    "PromptEncoder",
    "TextStack",
    "TokenVector",
    "TokenizedPrompt",
    "Tokenizer",
    "caption_for",
    "layer_count",
    "row_count",
    "single_vectors",
    "tokenizer",
    "vectors_of_layer",
]
