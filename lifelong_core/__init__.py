"""Lifelong personalization of text-to-image diffusion models, concept after concept."""

__version__ = "0.1.0"
