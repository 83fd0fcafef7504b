"""Finds full blocks again by the tokens that they and all blocks before them hold."""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DIGEST_BYTES = 16
SUFFIX_BYTES = 2
"""Of the suffix of any group of layers but the first, which has none."""

HASH_KEY_BYTES = 32
"""Of an index's key."""


class BlockKey(NamedTuple):
    """What a full block is found by, and confirmed by: its digest with its group's suffix, its parent's digest, and its
    tokens, packed."""

    digest: bytes
    parent: bytes
    tokens: bytes


IndexEntry = tuple[int, bytes, bytes]
"""One indexed block, and what a hit is confirmed against: its parent's digest and its tokens."""


class PrefixIndex:
    """A keyed hash chain: a block's digest covers the salt, all tokens before it, and its own.

    The key is random, per process or per folder on disk, so nobody can build two prompts whose digests collide, and
    a hit is confirmed by comparing parent and tokens all the same: a collision costs a miss, never a wrong answer.
    Requests find each other's blocks only under the same salt; None is the scope that all requests without a
    salt share. Where layers come in groups, each with blocks of its own for the same tokens, a block is indexed under
    its digest with its group's suffix (`group_suffixes`).

    Attributes:
        watched_changed: whether a block under one of the digests of the last `watch`, in any group, came or went since.
    """

    __slots__ = ("_digest_of", "_entries", "_keyed", "_watched", "watched_changed")

    def __init__(self, *, key: bytes | None = None) -> None:
        key = new_hash_key() if key is None else key
        self._keyed = hashlib.blake2b(key=key, digest_size=DIGEST_BYTES)
        self._entries: dict[bytes, IndexEntry] = {}
        self._digest_of: dict[int, bytes] = {}
        self._watched: frozenset[bytes] = frozenset()
        self.watched_changed = False

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, block: int) -> bool:
        return block in self._digest_of

    def root(self, salt: str | None) -> bytes:
        """The parent of a sequence's first block."""
        text = b"shared" if salt is None else b"salt:" + salt.encode("utf-8", "surrogatepass")
        return self.digest(b"", text)

    def digest(self, parent: bytes, tokens: bytes) -> bytes:
        """The chain's next link; `tokens` are a full block's, packed by `pack_tokens`."""
        state = self._keyed.copy()
        state.update(parent + tokens)
        return state.digest()

    def find(self, digest: bytes, parent: bytes, tokens: bytes) -> int | None:
        """The block that holds these tokens after that parent, or None. Changes nothing."""
        entry = self._entries.get(digest)
        if entry is None or entry[2] != tokens or entry[1] != parent:
            return None
        return entry[0]

    def add(self, digest: bytes, parent: bytes, tokens: bytes, block: int) -> bool:
        """Indexes a computed block; False, and no change, where the digest is taken by another block."""
        if digest in self._entries:
            return False
        assert block not in self._digest_of, f"block {block} is indexed already"
        self._entries[digest] = block, parent, tokens
        self._digest_of[block] = digest
        if self._watched and digest[:DIGEST_BYTES] in self._watched:
            self.watched_changed = True
        return True

    def remove(self, block: int) -> None:
        """Forgets a block whose content is about to be overwritten; nothing happens if it is not indexed."""
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._entries[digest]
            if self._watched and digest[:DIGEST_BYTES] in self._watched:
                self.watched_changed = True

    def watch(self, digests: Iterable[bytes]) -> None:
        """Begins to watch these digests, without suffixes, and no others; see `watched_changed`."""
        self._watched = frozenset(digests)
        self.watched_changed = False

    def digest_of(self, block: int) -> bytes | None:
        """The digest under which a block is indexed, or None."""
        return self._digest_of.get(block)

    def key_of(self, block: int) -> BlockKey | None:
        """What an indexed block is found by, or None."""
        digest = self._digest_of.get(block)
        return None if digest is None else BlockKey(digest, *self._entries[digest][1:])

    def check_invariants(self) -> None:
        """Asserts that both directions of the index agree. For tests."""
        assert len(self._entries) == len(self._digest_of)
        for block, digest in self._digest_of.items():
            indexed, parent, tokens = self._entries[digest]
            assert indexed == block
            assert self.digest(parent, tokens) == digest[:DIGEST_BYTES]


def group_suffixes(num_groups: int) -> tuple[bytes, ...]:
    """For each group of layers, what follows a digest where its blocks are indexed; nothing for the first."""
    return (b"", *(group.to_bytes(SUFFIX_BYTES, "little") for group in range(1, num_groups)))


def new_hash_key() -> bytes:
    """A random key for an index."""
    return secrets.token_bytes(HASH_KEY_BYTES)


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as bytes, 8 each."""
    return struct.pack(f"{len(token_ids)}q", *token_ids)
