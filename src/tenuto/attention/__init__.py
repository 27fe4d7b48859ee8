"""Attention that is built into a model and trained with it, and owns its cache: levels of memory, or a pattern."""

from tenuto.attention.attach import added, attention_of, load, retrofit, watch
from tenuto.attention.cache import held
from tenuto.attention.named import attentions, parse
from tenuto.attention.policies.fastmka import FastMKA
from tenuto.attention.policies.mka import MKA, keep_far
from tenuto.attention.policies.pi import PiAttention
from tenuto.attention.policies.short_conv import ShortConv
from tenuto.attention.policies.window import Window

__all__ = [
    "MKA",
    "FastMKA",
    "PiAttention",
    "ShortConv",
    "Window",
    "added",
    "attention_of",
    "attentions",
    "held",
    "keep_far",
    "load",
    "parse",
    "retrofit",
    "watch",
]
