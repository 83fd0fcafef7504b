"""Which layers keep their keys and values together in a block, where layers see differently far back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paged_backend.kv.layer_group import LayerGroup

_BEARABLE_WASTE = 1.1
"""So much more memory than with the least padding is fine, if it makes fewer groups."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Every layer's place in the pool. All groups take their blocks out of the same one, so blocks are equally large.

    Attributes:
        groups: what each group of layers needs of a sequence.
        places: for each layer its group, and which of a block's `num_lanes` places is its own.
        num_lanes: layers that a block has room for; a group may have fewer.
    """

    groups: tuple[LayerGroup, ...]
    places: tuple[tuple[int, int], ...]
    num_lanes: int

    def most_blocks(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens holds at most at any time."""
        return sum(group.most_blocks(num_tokens) for group in self.groups)


def plan_layout(
    sliding_windows: Sequence[int], max_model_len: int, block_size: int, max_num_batched_tokens: int
) -> KVLayout:
    """Puts layers of equal windows together, into the fewest groups that waste next to nothing.

    A group is a block table more in every step; few groups of many layers leave room in the blocks of those that have
    fewer. So the layers of a kind may be divided among several groups.

    Args:
        sliding_windows: per layer, as in `Architecture`.
        max_model_len: tokens of a sequence at most; a larger window is none.
        block_size: tokens in a block.
        max_num_batched_tokens: of a step.
    """
    max_chunk = min(max_model_len, max_num_batched_tokens)
    kinds: dict[LayerGroup, list[int]] = {}
    for layer, window in enumerate(sliding_windows):
        kind = LayerGroup(max(window, 2) if 0 < window < max_model_len else 0, block_size, max_chunk)
        kinds.setdefault(kind, []).append(layer)
    num_lanes = _num_lanes({kind: len(layers) for kind, layers in kinds.items()}, max_model_len)
    groups: list[LayerGroup] = []
    places: dict[int, tuple[int, int]] = {}
    for kind, layers in kinds.items():
        num_groups = -(-len(layers) // num_lanes)
        for i, layer in enumerate(layers):
            places[layer] = len(groups) + i % num_groups, i // num_groups
        groups += [kind] * num_groups
    return KVLayout(tuple(groups), tuple(places[layer] for layer in range(len(places))), num_lanes)


def _num_lanes(num_layers: dict[LayerGroup, int], max_model_len: int) -> int:
    """Layers in a block: the most that are bearable, measured by what a sequence of max_model_len tokens holds."""

    def size(num_lanes: int) -> int:
        counts = [-(-count // num_lanes) * kind.most_blocks(max_model_len) for kind, count in num_layers.items()]
        return num_lanes * sum(counts)

    candidates = range(1, max(num_layers.values()) + 1)
    bearable = _BEARABLE_WASTE * min(map(size, candidates))
    return max(num_lanes for num_lanes in candidates if size(num_lanes) <= bearable)
