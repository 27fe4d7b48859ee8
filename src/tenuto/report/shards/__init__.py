"""The part of the report about sharded caches."""
