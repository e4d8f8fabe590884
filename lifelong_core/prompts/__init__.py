"""Prompts: tokenising, concept tokens, text encoders, caption templates."""

from .cache import PromptCache
from .captions import OBJECT_TEMPLATES, caption_for
from .clip import ClipConfig, ClipText
from .conditioning import Conditioning
from .stack import ConceptVectors, TextStack
from .tokenizer import Tokenizer, tokenizer
from .tokens import TokenizedPrompt, TokenVector

__all__ = [
    "OBJECT_TEMPLATES",
    "ClipConfig",
    "ClipText",
    "ConceptVectors",
    "Conditioning",
    "PromptCache",
    "TextStack",
    "TokenVector",
    "TokenizedPrompt",
    "Tokenizer",
    "caption_for",
    "tokenizer",
]
