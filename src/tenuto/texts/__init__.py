"""Tasks with exact answers, and real text without downloads; nothing here runs a model."""
