"""An item's text, its hash, its vector by the offline model, its tags, and the memory of vectors."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.text.cache import TextMemory
from encoder.text.item_text import (
    MiniLM,
    TagLimits,
    VocabularyTagger,
    build_vocabulary,
    canonical_text,
    find_minilm,
    item_tags,
    text_hash,
)

CAT = [0.032963, 0.091185, 0.027717, 0.023629]  # the first four of 384
TEA = [0.032638, -0.052061, -0.014431, 0.014378]

TEAPOT = {
    "item_id": "i1",
    "title": "  Ceramic\tTea Pot\n",
    "brand": "Acme  Co",
    "category": ["Kitchen", " Tea "],
    "description": "Keeps tea\r\n warm.",
    "price": 9.5,
}


def test_the_canonical_text_has_one_order_and_one_kind_of_space() -> None:
    assert canonical_text(TEAPOT) == "Ceramic Tea Pot\nAcme Co\nKitchen > Tea\nKeeps tea warm."
    assert canonical_text(dict(reversed(TEAPOT.items()))) == canonical_text(TEAPOT)


def test_missing_and_empty_fields_leave_no_trace() -> None:
    assert canonical_text({"title": "Pot", "brand": None, "category": ["", "Tea"], "description": " "}) == "Pot\nTea"
    assert canonical_text({"category": "Tea"}) == canonical_text({"category": ("Tea",)}) == "Tea"
    assert canonical_text({}) == ""


def test_only_what_is_in_the_text_changes_the_hash() -> None:
    assert text_hash(canonical_text(TEAPOT)) == hashlib.sha256(canonical_text(TEAPOT).encode()).hexdigest()
    assert text_hash(canonical_text({**TEAPOT, "price": 1.0, "available": False})) == text_hash(canonical_text(TEAPOT))
    assert text_hash(canonical_text({**TEAPOT, "title": "Pot"})) != text_hash(canonical_text(TEAPOT))


@given(st.text(st.characters(exclude_categories=())), st.lists(st.text(st.characters(exclude_categories=()))))
def test_any_unicode_has_a_text_that_is_its_own_normal_form(title: str, category: list[str]) -> None:
    text = canonical_text({"title": title, "category": category})
    assert text.encode().decode() == text
    assert all(line == " ".join(line.split()) for line in text.split("\n"))
    assert len(text_hash(title)) == 64


def test_importing_the_texts_loads_no_torch() -> None:
    code = "import sys, encoder.text.item_text, encoder.text.cache; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM(threads=1)


def test_close_meanings_have_close_vectors(minilm: MiniLM) -> None:
    teapot, kettle, tyre = minilm.embed(["ceramic tea pot", "kettle for boiling water", "winter tyre for trucks"])
    assert teapot @ kettle > teapot @ tyre + 0.2


def test_vectors_are_those_of_the_published_model(minilm: MiniLM) -> None:
    """Known answers: the same wheel under sentence-transformers 6.2."""
    cat, tea = minilm.embed(["a photo of a cat", "Tea pot\nKitchen > Tea"])
    np.testing.assert_allclose(cat[:4], CAT, atol=1e-6)
    np.testing.assert_allclose(tea[:4], TEA, atol=1e-6)


def test_vectors_do_not_depend_on_the_batch_or_its_order(minilm: MiniLM) -> None:
    texts = [f"{word} number {n}" * (1 + n % 7) for n in range(12) for word in ("pot", "lamp", "shoe")]
    together = minilm.embed(texts)
    assert together.shape == (36, 384)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(minilm.embed(texts), together)
    np.testing.assert_allclose(minilm.embed(texts[::-1])[::-1], together, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([minilm.embed([text]) for text in texts[:5]]), together[:5], atol=1e-6)


@pytest.mark.parametrize("text", ["", " \n", "\ud800", "\x00\u202e🫖", "茶" * 3_000, "x" * 2_000_000, "cup " * 500_000])
def test_every_text_has_a_unit_vector(minilm: MiniLM, text: str) -> None:
    (vector,) = minilm.embed([text])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_warm_model_is_not_loaded_by_its_first_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MiniLM()
    model.warm_up()
    with monkeypatch.context() as later:
        later.setattr("encoder.text.item_text.find_minilm", lambda: pytest.fail("loaded when the text came"))
        assert model.embed(["pot"]).shape == (1, 384)


def test_no_texts_are_no_vectors(minilm: MiniLM) -> None:
    assert minilm.embed([]).shape == (0, 384)
    assert MiniLM.name == "minilm-l6-v2"
    assert find_minilm().is_dir()


def test_the_model_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert MiniLM().embed(["pot"]).shape == (1, 384)


def test_an_item_is_tagged_with_all_it_has() -> None:
    item: dict[str, Any] = {**TEAPOT, "subclass": "Pots", "tags": ["Gift Idea"]}
    assert item_tags(item) == [
        "brand:acme-co",
        "category:kitchen",
        "category:tea",
        "price:3",
        "subclass:pots",
        "tag:gift-idea",
        "word:ceramic",
        "word:pot",
        "word:tea",
    ]


@pytest.mark.parametrize(
    ("price", "tags"),
    [(1.0, ["price:0"]), (1.99, ["price:0"]), (2, ["price:1"]), (0.5, ["price:-1"]), (1024.0, ["price:10"])]
    + [(nothing, []) for nothing in (0, -1.0, None, float("nan"), float("inf"), "9")],
)
def test_price_bands_are_powers_of_two(price: object, tags: list[str]) -> None:
    assert item_tags({"price": price}) == tags


def catalogue() -> list[dict[str, Any]]:
    """100 items: all in `All`, halves in `Tea` and `Pans`, five brands of 20, one of a single item; a rare word."""
    return [
        {
            "title": f"{'Ceramic pot' if n % 2 else 'Steel pan'} model{n} {'rare' if n < 4 else ''}",
            "brand": f"Brand {n % 5}" if n else "Loner",
            "category": ["All", "Tea" if n % 2 else "Pans"],
            "price": 3.0 if n % 10 else 40.0,
        }
        for n in range(100)
    ]


def test_the_vocabulary_holds_what_tells_items_apart() -> None:
    assert build_vocabulary(catalogue()) == sorted(
        ["category:tea", "category:pans", "price:1", "price:5", "word:ceramic", "word:pot", "word:steel", "word:pan"]
        + [f"brand:brand-{n}" for n in range(5)]
    )


def test_the_vocabulary_does_not_depend_on_the_order_and_is_bounded() -> None:
    assert build_vocabulary(catalogue()[::-1]) == build_vocabulary(catalogue())
    few = build_vocabulary(catalogue(), TagLimits(most_tags=3))
    assert few == sorted(["price:1", "category:pans", "category:tea"])
    assert build_vocabulary([]) == []


def test_an_earlier_vocabulary_stays_in_front_as_far_as_items_carry_it() -> None:
    now = build_vocabulary(catalogue())
    before = ["word:rare", "word:pot", "brand:gone"]  # four items, fewer than a word needs; half of them; none
    assert build_vocabulary(catalogue(), before=before) == ["word:rare", "word:pot"] + [
        tag for tag in now if tag != "word:pot"
    ]
    limits = TagLimits(most_tags=len(now) + 1)
    assert build_vocabulary(catalogue(), limits, before=["brand:loner", "word:rare"]) == ["word:rare", *now]
    assert build_vocabulary(catalogue(), before=now[::-1]) == now[::-1]


def test_limits_are_kept() -> None:
    limits = TagLimits(brand_items=21, word_items=4, word_most_items=10)
    found = build_vocabulary(catalogue(), limits)
    assert "word:rare" in found
    assert not [tag for tag in found if tag.startswith("brand:") or tag == "word:pot"]


def test_only_tags_of_the_vocabulary_are_given() -> None:
    tagger = VocabularyTagger(["word:pot", "category:tea", "brand:nobody"])
    assert tagger.tag([TEAPOT, {}]) == [["category:tea", "word:pot"], []]
    assert tagger.vocabulary == ("word:pot", "category:tea", "brand:nobody")
    with pytest.raises(ValueError, match="'word:pot' twice"):
        VocabularyTagger(["word:pot", "word:pot"])


def test_tags_are_folded_by_what_is_given_and_so_is_a_vocabulary() -> None:
    def fold(text: str) -> str:
        return unicodedata.normalize("NFC", text.replace("\u200b", " "))

    item = {"title": "pot", "brand": "Cafe\u0301\u200bNoir", "tags": ["\u01f0"]}  # whose lower case is two characters
    assert item_tags(item, fold) == ["brand:caf\u00e9-noir", "tag:\u01f0", "word:pot"]
    assert build_vocabulary([item] * 5 + [{}], fold=fold) == item_tags(item, fold)
    tagger = VocabularyTagger(["brand:cafe\u0301-noir", "tag:j\u030c"], fold)
    assert tagger.tag([item]) == [["brand:caf\u00e9-noir", "tag:\u01f0"]]
    assert tagger.vocabulary == ("brand:cafe\u0301-noir", "tag:j\u030c")


def vector(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.full(3, value, np.float32)


def test_the_memory_forgets_what_was_used_longest_ago() -> None:
    memory = TextMemory(most=2)
    memory["a"], memory["b"] = vector(1), vector(2)
    assert memory["a"][0] == 1
    memory["c"] = vector(3)
    assert list(memory) == ["a", "c"]
    assert memory.get("b") is None
    del memory["a"]
    assert "a" not in memory
    with pytest.raises(ValueError, match="at least one"):
        TextMemory(most=0)


def test_the_memory_keeps_its_own_copy() -> None:
    memory, mine = TextMemory(), vector(1)
    memory["a"] = mine
    mine[0] = 9
    assert memory["a"][0] == 1


def test_the_memory_survives_in_its_file_and_merges_with_others(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "texts"
    one, two = TextMemory(path), TextMemory(path)
    one["a"], two["b"] = vector(1), vector(2)
    one.close()
    two.close()
    found = TextMemory(path)
    assert {key: float(found[key][0]) for key in found} == {"a": 1.0, "b": 2.0}
    assert found["a"].dtype == np.float32
    assert [file.name for file in path.parent.iterdir()] == ["texts"]


def test_a_crash_loses_few_vectors(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    memory = TextMemory(path)
    for n in range(600):
        memory[f"{n}"] = vector(n)
    assert len(TextMemory(path)) == 512


def test_the_file_is_bounded_like_the_memory(tmp_path: Path) -> None:
    first = TextMemory(tmp_path / "texts")
    for n in range(5):
        first[f"{n}"] = vector(n)
    first.close()
    second = TextMemory(tmp_path / "texts", most=3)
    second["new"] = vector(9)
    second.close()
    assert list(TextMemory(tmp_path / "texts")) == ["3", "4", "new"]


def test_vectors_of_another_embedder_are_not_used(tmp_path: Path) -> None:
    with_one = TextMemory(tmp_path / "texts", embedder="one")
    with_one["a"] = vector(1)
    with_one.close()
    assert len(TextMemory(tmp_path / "texts", embedder="two")) == 0


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_a_foreign_file_is_refused_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "texts").write_bytes(content)
    with pytest.raises(ValueError, match="delete or move it"):
        TextMemory(tmp_path / "texts")


def test_a_memory_with_nothing_new_writes_nothing(tmp_path: Path) -> None:
    TextMemory(tmp_path / "texts").close()
    assert not (tmp_path / "texts").exists()
