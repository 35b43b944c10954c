from __future__ import annotations

import asyncio

import pytest
import torch

from app.cache.memory_tier import MemoryTier


@pytest.fixture
def tier() -> MemoryTier:
    return MemoryTier(torch.zeros(3, 16))


def put(tier: MemoryTier, key: str, pins: int = 0) -> int:
    """Store a blend under a key; gives the address of its slot."""
    slot = asyncio.run(asyncio.wait_for(tier.take(), 1))
    tier.put(key, f"recipe {key}", slot, pins)
    return slot.data_ptr()


def keys(tier: MemoryTier) -> list[str]:
    return [blend.key for blend in tier.blends()]


def test_slots_are_reused_and_never_more_than_the_budget(tier: MemoryTier) -> None:
    places = {put(tier, str(i)) for i in range(1000)}
    assert len(places) == 3
    assert tier.counters() == {
        "hits": 0,
        "misses": 0,
        "evictions": 997,
        "blends": 3,
        "kept": 0,
        "slots": 3,
        "asked": 3,
        "slot_bytes": 64,
    }


def test_the_least_recently_used_goes_first(tier: MemoryTier) -> None:
    for key in "abc":
        put(tier, key)
    blend = tier.pin("a")
    assert blend is not None
    tier.unpin(blend)
    put(tier, "d")
    assert keys(tier) == ["c", "a", "d"]


def test_what_lies_in_a_slot_is_named_anew_each_time_it_is_filled(tier: MemoryTier) -> None:
    names = set()
    for key in "abcdabcda":
        put(tier, key)
        blend = tier.peek(key)
        assert blend is not None and blend.contents.startswith(key)
        names.add(blend.contents)
    assert len(names) == 9


def test_what_is_in_use_stays(tier: MemoryTier) -> None:
    place = put(tier, "a", pins=1)
    for i in range(10):
        assert put(tier, str(i)) != place
    assert "a" in keys(tier)


def test_a_taker_waits_while_every_slot_is_in_use(tier: MemoryTier) -> None:
    async def scenario() -> None:
        blends = [tier.put(key, key, await tier.take(), pins=1) for key in "abc"]
        waiting = asyncio.create_task(tier.take())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        tier.unpin(blends[1])
        assert (await asyncio.wait_for(waiting, 1)).data_ptr() == blends[1].vector.data_ptr()
        assert keys(tier) == ["a", "c"]

    asyncio.run(scenario())


def test_a_deleted_blend_frees_its_slot_only_when_nobody_uses_it(tier: MemoryTier) -> None:
    place = put(tier, "a", pins=1)
    blend = tier.peek("a")
    assert blend is not None and tier.delete("a")
    assert tier.pin("a") is None and not tier.delete("a")
    assert place not in {put(tier, "b", pins=1), put(tier, "c", pins=1)}
    tier.unpin(blend)
    assert put(tier, "d") == place


def test_the_next_to_go_is_told_before_it_goes(tier: MemoryTier) -> None:
    assert tier.has_free_slot and tier.next_to_go() is None
    put(tier, "a", pins=1)
    put(tier, "b")
    put(tier, "c")
    gone = tier.next_to_go()
    assert not tier.has_free_slot and gone is not None and gone.key == "b"
    put(tier, "d")
    assert keys(tier) == ["a", "c", "d"]


def test_what_is_kept_goes_last_and_blocks_nobody(tier: MemoryTier) -> None:
    tier.keep("a")
    tier.keep("a")
    for key in "abcde":
        put(tier, key)
    assert keys(tier) == ["a", "d", "e"] and tier.is_kept("a")
    tier.let_go("a")
    put(tier, "f")
    assert keys(tier) == ["a", "e", "f"]
    for key in "ef":
        tier.keep(key)
    put(tier, "g")
    assert keys(tier) == ["e", "f", "g"], "where all are kept, the least recently used goes"
    tier.let_go("a")
    assert not tier.is_kept("a")


def test_hits_and_misses_are_counted(tier: MemoryTier) -> None:
    put(tier, "a")
    tier.pin("a")
    tier.pin("nothing")
    assert (tier.hits, tier.misses) == (1, 1)
    blend = tier.peek("a")
    assert blend is not None and blend.hits == 1


def test_what_is_kept_goes_last(tier: MemoryTier) -> None:
    tier.keep("a")
    for key in "abcdef":
        put(tier, key)
    assert keys(tier) == ["a", "e", "f"] and tier.counters()["kept"] == 1
    tier.let_go("a")
    put(tier, "g")
    assert keys(tier) == ["e", "f", "g"] and tier.counters()["kept"] == 0


def test_keeping_holds_until_all_who_keep_let_go(tier: MemoryTier) -> None:
    tier.keep("a")
    tier.keep("a")
    tier.let_go("a")
    assert tier.is_kept("a")
    tier.let_go("a")
    assert not tier.is_kept("a")


def test_when_all_are_kept_the_one_unused_for_longest_still_makes_room(tier: MemoryTier) -> None:
    for key in "abc":
        tier.keep(key)
        put(tier, key)
    place = put(tier, "d")
    assert keys(tier) == ["b", "c", "d"]
    assert put(tier, "e") == place and keys(tier) == ["b", "c", "e"]


def test_a_blend_may_be_kept_before_it_is_here(tier: MemoryTier) -> None:
    tier.keep("later")
    for key in ["a", "b", "later", "c", "d"]:
        put(tier, key)
    assert "later" in keys(tier)


def test_it_is_short_while_somebody_waits(tier: MemoryTier) -> None:
    async def scenario() -> None:
        blends = [tier.put(key, key, await tier.take(), pins=1) for key in "abc"]
        waiting = asyncio.create_task(tier.take())
        await asyncio.sleep(0.01)
        assert tier.is_short
        tier.unpin(blends[0])
        await waiting
        assert not tier.is_short

    asyncio.run(scenario())
