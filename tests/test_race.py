"""`race`: several ways to do one thing, timed in turns."""

import time

import torch

from pruninglab.measure import race


def test_race_orders_ways_by_time_and_has_a_row_for_each_round():
    table = race({"slow": lambda x: time.sleep(0.004), "fast": lambda x: None}, torch.ones(1), rounds=3, repeats=3)
    assert list(table) == ["slow", "fast"]
    assert len(table) == 3
    assert (table["slow"] > 3).all()
    assert (table["fast"] < table["slow"]).all()


def test_race_lets_the_ways_take_turns_and_leaves_threads_alone():
    calls, threads = [], torch.get_num_threads()
    race({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=1, repeats=3)
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns == ["a", "b"] * 3
    assert torch.get_num_threads() == threads
