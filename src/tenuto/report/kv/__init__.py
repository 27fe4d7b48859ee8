"""The part of the report about KV caches."""
