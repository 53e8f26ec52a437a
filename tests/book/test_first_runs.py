"""Chapters 0 to 5 run with another seed, in their quick versions (nbval runs some with their defaults).

In a file of their own, since what is in one file runs in one process, and these take longest.
"""

import pytest
from helpers import run_quickly

from pruninglab import book

CHAPTERS = [chapter for chapter in book.written() if chapter.number <= 5]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)
def test_it_runs_with_another_seed(chapter, tmp_path):
    run_quickly(chapter, tmp_path)
