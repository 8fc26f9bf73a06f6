"""From a folder to an artefact: what is looked at, what is written beside the model, what is embedded only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from context.features import Feature
from deploy.cli import cli
from deploy.jobs.train import CHOSEN, TrainPlan, recipe_of, seen_until, train_folder
from deploy.settings import load
from deploy.texts.item_vectors import embed_texts, item_vectors, known_items, remembered_vectors
from deploy.texts.models import TextSource, known_vectors
from deploy.traffic.plan import TrafficPlan
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load as load_model
from encoder.model.artefact import save
from encoder.model.document import read_document
from encoder.model.encoder import StarsEncoder
from encoder.text.cache import TextMemory
from encoder.text.item_text import MiniLM, VocabularyTagger, build_vocabulary, canonical_text, text_hash
from encoder.training.dataset import TrainingData
from encoder.training.loop import TrainResult, train
from encoder.training.options import TrainOptions
from streams.events import Rules
from streams.folder.reader import EVENTS, read_folder
from streams.folder.records import popular_first
from streams.left_out import LeftOut
from tests.support.folders import START_S, item, write_folder

USERS, ITEMS, STEPS = 12, 10, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users walk through the items in turn; two items appear in the last quarter; weather changes once a day."""
    rows = [
        (
            f"u{user}",
            f"i{(user + step) % (ITEMS - 2 if step < 9 else ITEMS)}",
            "view",
            START_S + step * 3600 + user,
            "town",
        )
        for step in range(STEPS)
        for user in range(USERS)
    ]
    context = [
        {
            "location": "town",
            "ts_ms": (START_S + hour * 3600) * 1000,
            "valid_until_ms": (START_S + hour * 3600 + 3600) * 1000,
            "weather": {"hot": hour % 2 == 0},
        }
        for hour in range(STEPS)
    ]
    items = [item(f"i{number}", brand="Acme", category=["A" if number % 2 else "B"]) for number in range(ITEMS)]
    path = Path(tmp_path_factory.mktemp("data")) / "walks"
    header = "user_id,item_id,event_type,timestamp,location"
    return write_folder(path, sorted(rows, key=lambda row: row[3]), items, header=header, context=context)


@pytest.fixture(scope="module")
def memory(folder: Path) -> TextMemory:
    """All texts, with vectors that need no text model: equal texts have equal vectors."""
    remembered = TextMemory()
    for line in known_items(read_folder(folder), None):
        key = text_hash(canonical_text(line))
        remembered[key] = np.random.default_rng(int(key[:8], 16)).normal(size=384).astype(np.float32)
    return remembered


@pytest.fixture(scope="module")
def model(folder: Path, memory: TextMemory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(tmp_path_factory.mktemp("models"))
    options = TrainOptions(epochs=1, threads=1)
    return train_folder(TrainPlan(folder, out, 0.75, options=options), Rules(), memory).folder


def test_the_artefact_says_what_the_other_processes_need(folder: Path, model: Path) -> None:
    document = read_document(model)
    metadata, config = document["metadata"], document["config"]
    assert metadata["embedder"] == "minilm-l6-v2"
    assert metadata["data"] == "walks"
    assert [row["name"] for row in metadata["context_features"]] == config["context_features"]
    assert "weather.hot=true" in config["context_features"]
    assert config["kinds"] == [kind.name for kind in Rules().kinds]
    assert {"category:a", "category:b"} <= set(config["tags"])


def test_nothing_from_the_split_on_is_known_to_the_model(folder: Path, model: Path) -> None:
    document = read_document(model)
    assert document["metadata"]["before_ms"] == (START_S + 9 * 3600) * 1000
    assert set(document["item_ids"]) == {f"i{number}" for number in range(ITEMS - 2)}


def test_the_model_names_the_text_model_that_fits_it(model: Path) -> None:
    with TextSource(load({}), {}) as source:
        found = source.model(read_document(model))
        assert found.name == "minilm-l6-v2"
        assert found.tag([{"title": "new", "category": ["A"]}]) == [["category:a"]]


def test_traffic_finds_the_vectors_that_training_left(
    folder: Path, model: Path, memory: TextMemory, tmp_path: Path
) -> None:
    kept = TextMemory(tmp_path / "texts")
    kept.update(memory)
    kept.close()
    plan = TrafficPlan("data", str(folder), (START_S + 9 * 3600) * 1000, "k", str(model), str(tmp_path / "texts"))
    found = known_vectors(read_folder(folder), plan, load({}))
    assert sorted(found.item_ids) == [f"i{number}" for number in range(ITEMS - 2)]
    assert found.vectors.shape == (ITEMS - 2, 384)


class CountingModel(MiniLM):
    """Answers with noise and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        return np.random.default_rng(0).normal(size=(len(texts), 384)).astype(np.float32)


def test_each_text_is_embedded_once_in_its_life() -> None:
    items = [item("a", title="lamp"), item("b", title="lamp"), item("c", title="chair")]
    model, memory, tagger = CountingModel(), TextMemory(), VocabularyTagger(build_vocabulary(items))
    first = item_vectors(items, model, tagger, memory)
    assert sorted(model.asked) == ["chair", "lamp"]
    np.testing.assert_array_equal(first.vectors[0], first.vectors[1])
    again = item_vectors([*items, item("d", title="table")], model, tagger, memory)
    assert model.asked[2:] == ["table"]
    np.testing.assert_array_equal(again.vectors[:3], first.vectors)


def test_a_bound_of_embedding_is_what_is_left_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    """Some texts in the first seconds say nothing about the others: these may never have their turn."""
    items = [item(f"i{number}", title=f"thing {number}") for number in range(2_560)]
    with patch("deploy.progress.EVERY_S", 0.0):
        embed_texts(items, CountingModel(), TextMemory(), progress=True, bound_s=0.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("texts embedded: 256 of 2,560 (10 %)") and line.endswith(", at most 0:00 left")


def test_a_bound_of_embedding_takes_the_first_texts_and_leaves_the_rest() -> None:
    items, memory = [item(f"i{number}", title=f"thing {number}") for number in range(600)], TextMemory()
    embed_texts(items, CountingModel(), memory, bound_s=0.0)  # one batch is always made
    assert set(memory) == {text_hash(f"thing {number}") for number in range(256)}
    embed_texts(items, CountingModel(), memory, bound_s=60.0)
    assert len(memory) == 600


def test_a_bounded_training_learns_with_the_items_that_have_most_events(folder: Path, tmp_path: Path) -> None:
    memory, asked, left = TextMemory(), CountingModel(), LeftOut()
    with patch("deploy.texts.item_vectors._BATCH", 4), TextSource(load({}), memory) as source:
        source.embedder = asked
        options = TrainOptions(epochs=1, threads=1)
        plan = TrainPlan(folder, tmp_path, 0.75, options=options, texts=source, embed_seconds=1e-9)
        done = train_folder(plan, Rules(), memory, left.update)
    found = read_folder(folder)
    said = "its item has a record and no vector yet; nothing is lost, only this training does without them"
    assert left.count(f"{EVENTS}: {said}") > 0
    first = [found.item_ids[number] for number in popular_first(found, found.split_ms(0.75))[:4]]
    document = read_document(done.folder)
    assert set(document["item_ids"]) == set(first)
    assert document["metadata"]["left_out_events"] > 0


def test_what_was_embedded_before_labels_were_folded_is_not_embedded_again() -> None:
    before, now = item("a", title="lamp", brand="Cafe\u0301"), item("a", title="lamp", brand="Caf\u00e9")
    model, memory = CountingModel(), TextMemory()
    memory[text_hash(canonical_text(before))] = np.ones(384, np.float32)
    found = item_vectors([now], model, VocabularyTagger([]), memory)
    assert model.asked == [] and found.text_hashes == [text_hash(canonical_text(now))]
    np.testing.assert_array_equal(found.vectors[0], np.ones(384))


def test_items_whose_text_nobody_embedded_are_left_out() -> None:
    memory = TextMemory()
    memory[text_hash("lamp")] = np.ones(384, np.float32)
    found = remembered_vectors([item("a", title="lamp"), item("b", title="new")], "m", VocabularyTagger([]), memory)
    assert (found.item_ids, found.text_hashes) == (["a"], [text_hash("lamp")])


def test_a_catalogue_without_items_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"items\.jsonl\.gz"):
        item_vectors([], CountingModel(), VocabularyTagger([]), TextMemory())


def test_the_command_trains_and_reports(folder: Path, memory: TextMemory, tmp_path: Path) -> None:
    kept = TextMemory(tmp_path / "texts")
    kept.update(memory)
    kept.close()
    arguments = ["train", str(folder), "--out", str(tmp_path / "out"), "--epochs", "1", "--threads", "1", "--quiet"]
    arguments += ["--general-reach", "head", "--texts", str(tmp_path / "texts")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    (found,) = (tmp_path / "out").glob("m-*")
    assert found.name in done.output
    assert read_document(found)["metadata"]["options"]["general_reach"] == "head"
    assert len(read_document(found)["item_ids"]) == ITEMS


def test_the_command_goes_on_from_a_model(folder: Path, model: Path, texts: str, tmp_path: Path) -> None:
    arguments = ["train", str(folder), "--from", str(model), "--out", str(tmp_path), "--threads", "1"]
    done = CliRunner().invoke(cli, [*arguments, "--texts", texts])
    assert done.exit_code == 0, done.output
    (found,) = tmp_path.glob("m-*/model.json")
    before, after = read_document(model), read_document(found.parent)
    assert after["metadata"]["parent"] == before["version"] != after["version"]
    assert set(before["item_ids"]) < set(after["item_ids"]), "what appeared since is known now"
    options = after["metadata"]["options"]
    assert (options["epochs"], options["since_ms"]) == (1, before["metadata"]["before_ms"])
    assert after["config"]["tags"][: len(before["config"]["tags"])] == before["config"]["tags"]
    for words, said in (
        (["--protocol", "loo"], "--from is for --protocol timeline"),
        (["--preset", "small"], "--preset is given by --from's model"),
        (["--set", "d_model=32"], "its d_model is 64, here it is 32; leave the setting out"),
        (["--without", "profile"], "its profile_buckets is 1024, here it is 0"),
        (["--without", "text"], "its inputs are text,ids,tags"),
    ):
        refused = CliRunner().invoke(cli, [*arguments, "--texts", texts, *words])
        assert refused.exit_code != 0 and said in refused.output + str(refused.exception)


def test_a_training_that_goes_on_begins_with_all_that_the_parent_knew(
    folder: Path, model: Path, memory: TextMemory, tmp_path: Path
) -> None:
    at_once = TrainOptions(threads=1, max_seconds=1e-9)  # ends before its first step
    found = train_folder(TrainPlan(folder, tmp_path, preset="base", options=at_once, parent=model), Rules(), memory)
    before, after = read_document(model), read_document(found.folder)
    assert found.metrics["steps"] == 0
    assert after["config"] == {**before["config"], **{n: after["config"][n] for n in ("tags", "context_features")}}
    until_ms = (START_S + 11 * 3600 + USERS - 1) * 1000
    assert (after["metadata"]["until_ms"], seen_until(after["metadata"])) == (until_ms, until_ms + 1)
    assert seen_until(before["metadata"]) == (START_S + 9 * 3600) * 1000
    mine, his = (load_model(at)[0] for at in (found.folder, model))
    known = [line for line in known_items(read_folder(folder), None) if line["item_id"] in before["item_ids"]]
    tagger = VocabularyTagger(before["config"]["tags"])
    vectors = remembered_vectors(known, "minilm-l6-v2", tagger, memory)
    rows = []
    for encoder in (IncrementalEncoder(each, cache_bytes=1 << 26, device="cpu") for each in (mine, his)):
        encoder.items.put(vectors.item_ids, vectors.vectors, vectors.tags)
        rows.append(encoder.items.retrieval(vectors.item_ids))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)


def test_a_training_that_goes_on_has_the_recipe_of_its_parent_in_a_third_of_the_epochs() -> None:
    options = {"epochs": 20, "lr": 0.002, "seed": 7, "threads": 2, "holdout": 0.001, "max_seconds": 9.0, "gone": 1}
    first = recipe_of({"options": options, "before_ms": 5_000})
    assert first == TrainOptions(epochs=7, lr=0.002, since_ms=5_000)
    again = recipe_of({"options": {**options, "epochs": 7}, "before_ms": None, "until_ms": 5_999, "parent": "m-1"})
    assert again == TrainOptions(epochs=7, lr=0.002, since_ms=6_000)


def test_what_validates_a_training_that_goes_on_is_new_to_the_parent(
    folder: Path, model: Path, memory: TextMemory, tmp_path: Path
) -> None:
    options = TrainOptions(epochs=1, threads=1, holdout=0.4)
    plan = TrainPlan(folder, tmp_path, options=options, parent=model)
    found = train_folder(plan, Rules(), memory)
    assert read_document(found.folder)["metadata"]["options"]["holdout"] == (STEPS - 9) / STEPS / 2
    again = train_folder(replace(plan, before_ms=(START_S + 9 * 3600) * 1000), Rules(), memory)
    metadata, before = (read_document(at)["metadata"] for at in (again.folder, model))
    assert metadata["options"]["holdout"] == 0.0 and "events" not in again.metrics
    assert [metadata.get(name) for name in CHOSEN] == [before.get(name) for name in CHOSEN]


def test_a_calendar_that_the_data_are_too_short_to_learn_keeps_its_effect(
    folder: Path, model: Path, memory: TextMemory, tmp_path: Path
) -> None:
    parent, document = tmp_path / "parent", read_document(model)
    encoder, _ = load_model(model)
    names = [*document["config"]["context_features"], "year.sin1", "event.fair"]
    wide = StarsEncoder(replace(encoder.config, context_features=tuple(names)), document["item_ids"])
    state = {**encoder.state_dict(), "context": torch_like(encoder, names)}
    wide.load_state_dict(state)
    more = [asdict(Feature("year.sin1", "time", bound=2.0)), asdict(Feature("event.fair", "flag"))]
    save(wide, parent, {**document["metadata"], "context_features": document["metadata"]["context_features"] + more})
    found = train_folder(
        TrainPlan(folder, tmp_path, options=TrainOptions(epochs=2, threads=1), parent=parent), Rules(), memory
    )
    features, weights = read_document(found.folder)["config"]["context_features"], load_model(found.folder)[0].context
    for name in ("year.sin1", "event.fair"):
        assert (weights[:, features.index(name)] == 0.5).all()


def torch_like(encoder: StarsEncoder, names: Sequence[str]) -> Any:
    """A context offset with 0.5 everywhere."""
    return encoder.context.detach().new_full((encoder.config.d_model, len(names)), 0.5)


@pytest.fixture
def texts(memory: TextMemory, tmp_path: Path) -> str:
    kept = TextMemory(tmp_path / "kept")
    kept.update(memory)
    kept.close()
    return str(tmp_path / "kept")


def test_evaluate_asks_only_about_what_the_model_has_not_seen(folder: Path, model: Path, texts: str) -> None:
    arguments = ["evaluate", "timeline", str(folder), "--model", str(model), "--texts", texts, "--repeats", "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    found = orjson.loads(done.output.splitlines()[-1])
    assert found["start_ms"] == (START_S + 9 * 3600) * 1000
    assert found["questions"] == USERS * (STEPS - 9)
    assert 0 <= found["metrics"]["recall@10"] == found["lists"]["mixed"]["hr@10"] <= 1


def test_evaluate_asks_about_whole_baskets(folder: Path, model: Path, texts: str) -> None:
    arguments = ["evaluate", "timeline", str(folder), "--model", str(model), "--texts", texts, "--baskets", "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    found = orjson.loads(done.output.splitlines()[-1])
    assert found["questions"] + found["skipped"].get("seen before", 0) == USERS * (STEPS - 9)  # one item in each
    refused = CliRunner().invoke(cli, ["evaluate", "loo", *arguments[2:]])
    assert refused.exit_code == 2 and "No such option: --baskets" in refused.output


def test_replay_asks_the_same_questions_and_gives_a_digest(folder: Path, model: Path, texts: str) -> None:
    arguments = [
        "replay",
        str(folder),
        "--model",
        str(model),
        "--texts",
        texts,
        "--split",
        "0.75",
        "--repeats",
        "--json",
    ]
    first, again = (CliRunner().invoke(cli, arguments) for _ in range(2))
    assert first.exit_code == 0, first.output
    found, repeated = (orjson.loads(done.output.splitlines()[-1]) for done in (first, again))
    assert found["answers"]["questions"] == USERS * (STEPS - 9)
    assert found["records"]["clickstream"] == USERS * STEPS
    assert found["digest"] == repeated["digest"]


def test_a_model_that_has_seen_everything_is_not_evaluated(folder: Path, model: Path, texts: str) -> None:
    other = write_folder(folder.parent / "others", [("u", "i0", "view", START_S)], [item("i0")])
    done = CliRunner().invoke(cli, ["evaluate", "timeline", str(other), "--model", str(model), "--texts", texts])
    assert isinstance(done.exception, ValueError)
    assert "give --split" in str(done.exception)


def test_leave_one_out_is_trained_validated_and_measured(folder: Path, model: Path, texts: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = ["--protocol", "loo", "--preset", "movielens", "--epochs", "4", "--threads", "1"]
    done = CliRunner().invoke(cli, ["train", str(folder), "--out", str(out), "--texts", texts, *recipe])
    assert done.exit_code == 0, done.output
    trained = orjson.loads(done.output.splitlines()[-1])
    ask = ["evaluate", "loo", str(folder), "--texts", texts]
    done = CliRunner().invoke(cli, [*ask, "--model", trained["model"], "--json"])
    assert done.exit_code == 0, done.output
    found = orjson.loads(done.output.splitlines()[-1])
    assert (found["users"], found["catalogue"]) == (USERS, ITEMS)
    assert found["validation"]["next"]["ndcg@10"] == pytest.approx(trained["metrics"]["validation"], abs=1e-6)
    assert set(found["lists"]) == {"next", "general", "mixed"}
    best = max(found["validation"], key=lambda name: found["validation"][name]["ndcg@10"])
    assert found["list"] == best and found["metrics"] == found["lists"][best]
    shown = CliRunner().invoke(cli, [*ask, "--model", trained["model"]])
    assert "ndcg@10" in shown.output and f"{USERS} users" in shown.output
    seen = CliRunner().invoke(cli, [*ask, "--model", str(model)])
    assert isinstance(seen.exception, ValueError) and "--protocol loo" in str(seen.exception)


def test_a_validated_model_is_trained_again_on_what_validated_it(
    folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[int] = []

    def counted(data: TrainingData, *more: Any, **named: Any) -> TrainResult:
        learned.append(len(data.items))
        return train(data, *more, **named)

    monkeypatch.setattr("deploy.jobs.train.train", counted)

    def run(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, [*arguments, "--texts", texts])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = orjson.loads(done.output.splitlines()[-1])
        return found

    shared = ["train", str(folder), "--protocol", "loo", "--threads", "1", "--out", str(tmp_path / "out")]
    recipe = ["--preset", "movielens", "--set", "validate_every=1", "--set", "d_model=32", "--epochs", "3"]
    first = run(*shared, *recipe)
    again = run(*shared, "--refit", first["model"])
    assert learned == [USERS * (STEPS - 2), USERS * (STEPS - 1)]
    after = read_document(Path(again["model"]))["metadata"]
    assert (after["refit"], after["options"]["epochs"]) == (first["version"], int(first["metrics"]["best_epoch"]))
    assert read_document(Path(again["model"]))["config"] == read_document(Path(first["model"]))["config"]
    ask = ["evaluate", "loo", str(folder), "--json", "--model"]
    base, found = run(*ask, first["model"]), run(*ask, again["model"])
    assert found["validation"] is None and found["list"] == base["list"] == after["slot"]
    assert found["users"] == USERS and found["metrics"] == found["lists"][found["list"]]
    for arguments, message in (
        ([*shared, "--refit", again["model"]], "with a validation"),
        ([*shared, "--refit", first["model"], "--preset", "shop"], "--preset is given"),
        ([*shared, "--refit", first["model"], "--protocol", "timeline"], "is for --protocol loo"),
    ):
        refused = CliRunner().invoke(cli, [*arguments, "--texts", texts])
        assert refused.exit_code and message in f"{refused.output} {refused.exception}"


def test_what_is_left_out_of_items_is_not_even_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: MiniLM, texts: Sequence[str]) -> NDArray[np.float32]:
        raise AssertionError(f"embeds {texts[0]!r} for a model that reads no text")

    monkeypatch.setattr(MiniLM, "embed", refuse)
    arguments = ["train", str(folder), "--out", str(tmp_path / "out"), "--epochs", "1", "--threads", "1"]
    arguments += ["--protocol", "loo", "--without", "text,tags", "--texts", str(tmp_path / "none")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    model = orjson.loads(done.output.splitlines()[-1])["model"]
    assert (read_document(Path(model))["config"]["parts"], read_document(Path(model))["config"]["tags"]) == (
        ["ids"],
        [],
    )
    ask = ["evaluate", "loo", str(folder), "--texts", str(tmp_path / "none"), "--model", model, "--json"]
    done = CliRunner().invoke(cli, ask)
    assert done.exit_code == 0, done.output
    assert orjson.loads(done.output.splitlines()[-1])["users"] == USERS


@pytest.mark.parametrize("without", ["price", "text,ids,tags"])
def test_a_part_that_is_none_and_all_parts_are_refused(without: str, folder: Path) -> None:
    done = CliRunner().invoke(cli, ["train", str(folder), "--without", without])
    assert done.exit_code == 2
    assert "name some of text, ids, tags" in done.output
