"""The KV family: which keys and values of a language model are kept, how, and attention on what is left."""
