"""Attention that is built into a model and trained with it, and owns its cache: levels of memory, or a pattern."""

from tenuto.attention.attach import added, attention_of, load, retrofit, watch
from tenuto.attention.cache import held
from tenuto.attention.mka import MKA, keep_far
from tenuto.attention.named import ATTENTIONS, parse
from tenuto.attention.window import Window

__all__ = [
    "ATTENTIONS",
    "MKA",
    "Window",
    "added",
    "attention_of",
    "held",
    "keep_far",
    "load",
    "parse",
    "retrofit",
    "watch",
]
