"""How a command starts: the collector rests meanwhile, and works again afterwards."""

from __future__ import annotations

import gc

import pytest
from affectlens.startup import uncollected


@pytest.fixture(autouse=True)
def unfrozen():
    yield
    gc.unfreeze()


def test_the_collector_rests_while_a_command_starts():
    before = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_garbage_of_later_is_collected():
    class Node:
        pass

    with uncollected():
        pass
    node = Node()
    node.itself = node  # pyright: ignore[reportAttributeAccessIssue]
    del node
    assert gc.collect() >= 1


def test_it_works_again_after_an_error():
    with pytest.raises(ValueError, match="planted"), uncollected():
        raise ValueError("planted")
    assert gc.isenabled()
