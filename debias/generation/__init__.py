"""A chat model in, checked triplets out: prompts, client, ledger, filters."""
