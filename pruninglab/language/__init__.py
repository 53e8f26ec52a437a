"""Pruning language models: block by block, so that no more than one block's statistics are held at a time."""
