"""A block is found by its tokens, all tokens before them and the salt, and by nothing else."""

from __future__ import annotations

import pytest

from paged_backend.kv.prefix_index import PrefixIndex, pack_tokens

A, B = pack_tokens([1, 2, 3, 4]), pack_tokens([5, 6, 7, 8])


class CollidingIndex(PrefixIndex):
    """Every text has the same digest."""

    def _hash(self, text: bytes) -> bytes:
        return b"same"


def test_a_block_is_found_after_its_parent_only() -> None:
    index = PrefixIndex()
    root = index.root(None)
    first = index.digest(root, A)
    second = index.digest(first, B)
    assert index.add(first, root, A, 10) and index.add(second, first, B, 11)
    assert index.find(first, root, A) == 10
    assert index.find(second, first, B) == 11
    assert index.find(index.digest(root, B), root, B) is None
    index.check_invariants()


def test_the_digest_covers_parent_tokens_salt_and_key() -> None:
    index = PrefixIndex(key=b"k1")
    roots = [index.root(salt) for salt in (None, "", "a", "shared", "b")]
    assert len(set(roots)) == len(roots)
    digests = {index.digest(root, tokens) for root in roots for tokens in (A, B)}
    assert len(digests) == 2 * len(roots)
    assert PrefixIndex(key=b"k2").root("a") != index.root("a")
    assert PrefixIndex().root("a") != PrefixIndex().root("a"), "the key is random"
    assert all(len(digest) == 16 for digest in digests)


def test_tokens_do_not_run_into_each_other() -> None:
    assert pack_tokens([1, 256]) != pack_tokens([257, 0])
    assert len(pack_tokens([0, 2**40])) == 16


def test_a_collision_is_a_miss() -> None:
    index = CollidingIndex()
    assert index.add(b"same", b"root", A, 0)
    assert index.find(b"same", b"root", B) is None, "other tokens"
    assert index.find(b"same", b"other", A) is None, "other parent"
    assert index.find(b"same", b"root", A) == 0
    assert not index.add(b"same", b"root", B, 1), "the first stays"
    assert 1 not in index and len(index) == 1


def test_a_removed_block_is_forgotten() -> None:
    index = PrefixIndex()
    root = index.root("tenant")
    digest = index.digest(root, A)
    index.add(digest, root, A, 3)
    assert 3 in index and index.digest_of(3) == digest and index.key_of(3) == (digest, root, A)
    index.remove(3)
    index.remove(3)
    assert 3 not in index and index.find(digest, root, A) is None and len(index) == 0
    assert index.add(digest, root, A, 4)


def test_a_block_is_indexed_once() -> None:
    index = PrefixIndex()
    root = index.root(None)
    index.add(index.digest(root, A), root, A, 0)
    with pytest.raises(AssertionError, match="indexed already"):
        index.add(index.digest(root, B), root, B, 0)


def test_any_salt_has_a_root() -> None:
    index = PrefixIndex()
    assert len({index.root("\ud800"), index.root("é"), index.root("x" * 10_000)}) == 3
