"""Pictures under every policy: speed, memory, quality."""
