"""The part of the report about trained attentions."""
