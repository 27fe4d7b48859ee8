"""The part of the report about stores of prefixes."""
