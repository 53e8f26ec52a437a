"""Pruning language models: block by block, so that no more than one block's statistics are held at a time."""

from pruninglab.language.blocks import Block, find_blocks, walk
from pruninglab.language.one_shot import one_shot, repaired, scored
from pruninglab.language.ratios import RATIOS
from pruninglab.language.selection import select
from pruninglab.language.sparsegpt import factor, sparsegpt

__all__ = ["RATIOS", "Block", "factor", "find_blocks", "one_shot", "repaired", "scored", "select", "sparsegpt", "walk"]
