"""Which layers share a block: equal windows together, few groups, little padding."""

from __future__ import annotations

from collections import Counter

import pytest

from paged_backend.executor.kv_layout import KVLayout, plan_layout

FULL, LONG, CHUNK, SIZE = 0, 32768, 2048, 16


def check(layout: KVLayout, windows: list[int]) -> None:
    """Each layer has a place of its own, in a group of its window."""
    assert len(set(layout.places)) == len(layout.places) == len(windows)
    for (group, lane), window in zip(layout.places, windows, strict=True):
        assert layout.groups[group].window == window
        assert 0 <= lane < layout.num_lanes
    assert {group for group, _ in layout.places} == set(range(len(layout.groups)))


def test_equal_layers_are_one_group_as_they_come() -> None:
    for window in (FULL, 4096):
        layout = plan_layout([window] * 7, LONG, SIZE, CHUNK)
        assert layout.places == tuple((0, layer) for layer in range(7))
        assert layout.num_lanes == 7
        check(layout, [window] * 7)


def test_windows_that_nothing_passes_are_none() -> None:
    layout = plan_layout([4096, 0, 5000], 4096, SIZE, CHUNK)
    check(layout, [FULL] * 3)
    assert len(layout.groups) == 1
    assert plan_layout([4095, 0], 4096, SIZE, CHUNK).groups[0].window == 4095
    assert plan_layout([1], 4096, SIZE, CHUNK).groups[0].window == 2


@pytest.mark.parametrize(
    ("windows", "num_groups", "num_lanes"),
    [
        ([4096, FULL] * 13, 2, 13),  # Gemma 2's pattern
        (([512] * 5 + [FULL]) * 4 + [512] * 2, 7, 4),  # Gemma 3's, of 26 layers
        ([FULL] * 27 + [4096], 4, 9),  # one odd layer must not make 28 groups, nor fill 27 places in vain
        ([FULL] * 2 + [128] * 2 + [1024] * 2, 3, 2),
    ],
)
def test_mixed_models(windows: list[int], num_groups: int, num_lanes: int) -> None:
    layout = plan_layout(windows, LONG, SIZE, CHUNK)
    check(layout, windows)
    assert (len(layout.groups), layout.num_lanes) == (num_groups, num_lanes)
    per_layer = sum(-(-LONG // SIZE) if not w else (w - 1 + CHUNK - 1 + SIZE - 1) // SIZE + 1 for w in windows)
    held = layout.most_blocks(LONG) * layout.num_lanes
    assert per_layer <= held <= 1.1 * per_layer * 1.03, "not much more than if each layer had its own blocks"
    sizes = Counter(group for group, _ in layout.places)
    for kind in set(layout.groups):
        of_kind = [sizes[i] for i, group in enumerate(layout.groups) if group == kind]
        assert max(of_kind) - min(of_kind) <= 1


def test_blocks_of_a_sequence() -> None:
    layout = plan_layout([64, FULL], 1024, SIZE, 128)
    # 128 new tokens and the 63 before them: 191 tokens in up to 13 blocks.
    assert layout.most_blocks(1024) == 64 + 13
    assert layout.most_blocks(40) == 3 + 3
