"""``relayctl``: one module a noun. Nouns read, verbs change."""
