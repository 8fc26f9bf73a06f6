"""Settings of a preset changed by name, and what a model can do without."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.commands.train_settings import INPUTS, RECIPE, SIZES, changed, left_out
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import preset
from encoder.model.document import read_document
from encoder.model.encoder import StarsEncoder
from tests.support.folders import START_S, item, write_folder

PROFILE = {"numeric": {}, "categorical": {"city": "Trier"}}


def test_values_are_read_as_what_they_are() -> None:
    sizes, recipe = changed(["dropout=0", "block=hstu", "targets=all", "batch_tokens=null", "lr=1e-3"])
    assert sizes == {"dropout": 0, "block": "hstu"}
    assert recipe == {"targets": "all", "batch_tokens": None, "lr": 0.001}
    assert changed([]) == ({}, {})
    assert changed(['kind_weights={"purchase": 5}'])[1] == {"kind_weights": {"purchase": 5}}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["d_modell=3"], "one of baskets, batch_tokens, bias, block"),
        (["d_model"], "NAME=VALUE"),
        (["d_model=1.5"], "d_model takes int"),
        (["d_model=true"], "d_model takes int"),
        (["d_model=wide"], "d_model takes int"),
        (["kind_weights=5"], "kind_weights takes dict or NoneType"),
        (["low_precision=yes"], "low_precision takes bool or NoneType"),
        (["lr=1", "lr=2"], "lr is set twice"),
        (["seed=1"], "NAME=VALUE"),  # has an option of its own
        (["kinds=1"], "NAME=VALUE"),  # comes from the data
    ],
)
def test_what_cannot_be_set_is_refused(pairs: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed(pairs)


def test_no_name_is_a_size_and_part_of_the_recipe() -> None:
    assert not set(SIZES) & set(RECIPE)
    assert {"d_model", "profile_buckets", "window"} <= set(SIZES) and {"prior", "patience"} <= set(RECIPE)


def test_a_model_can_do_without_inputs_but_not_without_items() -> None:
    assert left_out("text,context,profile") == {"text", "context", "profile"} < set(INPUTS)
    assert left_out("") == frozenset()
    for text in ("price", "text,ids,tags", "context,ids,tags,text"):
        with pytest.raises(ValueError, match="name some of text, ids, tags, context, profile"):
            left_out(text)


def test_without_buckets_no_profile_is_read() -> None:
    def vectors(buckets: int) -> list[list[float]]:
        model = StarsEncoder(preset("nano", d_text=4, d_reduced=4, profile_buckets=buckets)).eval()
        encoder = IncrementalEncoder(model, cache_bytes=1 << 20, device="cpu")
        asked = [EncodeRequest(user, [], [], [], profile, 0) for user, profile in (("a", PROFILE), ("b", None))]
        return [row.tolist() for row in encoder.encode(asked).vectors]

    with_profile, stranger = vectors(64)
    assert with_profile != stranger
    with_profile, stranger = vectors(0)
    assert with_profile == stranger


def test_the_command_trains_what_was_set_and_left_out(tmp_path: Path) -> None:
    rows = [(f"u{n % 8}", f"i{n % 5}", "view", START_S + 60 * n) for n in range(160)]
    context = [
        {"location": "DE", "ts_ms": START_S * 1000, "valid_until_ms": START_S * 1000 + 10**9, "numeric": {"t": 9}}
    ]
    users = [{"user_id": "u1", "ts_ms": START_S * 1000, **PROFILE}]
    folder = write_folder(tmp_path / "data", rows, [item(f"i{n}") for n in range(5)], context=context, users=users)
    ask = ["train", str(folder), "--out", str(tmp_path / "out"), "--epochs", "1", "--threads", "1"]
    ask += ["--without", "text,context,profile", "--set", "d_model=32", "--set", "prior=train"]
    done = CliRunner().invoke(cli, ask, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = Path(orjson.loads(done.output.splitlines()[-1])["model"])
    document = read_document(found)
    config, options = document["config"], document["metadata"]["options"]
    assert (config["d_model"], config["profile_buckets"], config["parts"]) == (32, 0, ["ids", "tags"])
    assert config["context_features"] == document["metadata"]["context_features"] == []
    assert options["prior"] == "train"


def test_a_wrong_setting_is_the_users_mistake(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["train", str(tmp_path), "--set", "d_model=wide"])
    assert done.exit_code == 2 and "d_model takes int" in done.output
