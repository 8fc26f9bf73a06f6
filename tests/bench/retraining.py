"""What a warm start is worth beside a cold one, and either beside no retraining: seconds, HR@10 and NDCG@10.

A first model learns the first part of a timeline. Then three times another part has passed: each arm makes its model
of all events so far, and is asked about the choices of the part that follows. `never` keeps the first model, `cold`
begins anew each time, `warm` goes on from its own last model over all events, `new` goes on with the new ones as
targets only. Differences from `cold` are paired over users. The data are a folder, or the generated shop, whose brands
come into fashion and go out of it. Seconds are of the processor, so they may be compared on a busy machine.

    python -m tests.bench.retraining --state /tmp/retraining
    python -m tests.bench.retraining --state /tmp/retraining --data ml1m_exact_half --preset movielens --epochs 12
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from context.units import DAY_MS
from deploy.jobs.evaluate import model_vectors
from deploy.jobs.train import TrainPlan, seen_until, train_folder
from deploy.models.open_model import open_model
from deploy.settings import Settings, load
from deploy.shop.shop import Shop, ShopConfig
from deploy.texts.models import TextSource
from encoder.device import use_threads
from encoder.model.config import preset_names, preset_training
from encoder.model.document import read_document
from encoder.text.cache import TextMemory
from encoder.training.options import TrainOptions
from index.query.model import RequestedList
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.staleness.curves import side_by_side
from streams.evaluation.staleness.delays import FRESH
from streams.evaluation.staleness.sweep import sweep
from streams.folder.reader import EVENTS, Events, Folder, read_folder
from tests.bench.report import Row, result, show

END_MS = 1_790_000_000_000 // DAY_MS * DAY_MS
LIST: RequestedList = "next"


@dataclass(frozen=True, slots=True)
class Made:
    """A model and what its training took."""

    folder: Path
    cpu_s: float


class Timeline:
    """Trains on a folder up to a time, and asks about what follows."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path, self.options = path, options
        self.settings: Settings = load({"PERSEID_IDLE_DAYS": "0"}, state=options.state)
        self.memory = TextMemory(options.state / "texts")
        self.folder: Folder = read_folder(path, self.settings.rules())

    def at(self, part: int) -> int:
        """When a part ends: 0 is what the first model learns."""
        return self.folder.split_ms(self.options.first + part * self.options.share)

    def cold(self, part: int) -> Made:
        return self._train(part, f"cold-{part}", self._recipe(self.options.epochs))

    def warm(self, part: int, parent: Path, only_new: bool) -> Made:
        name = f"{'new' if only_new else 'warm'}-{part}-{self.options.warm_epochs}-{self.options.warm_lr}"
        recipe = self._recipe(self.options.warm_epochs)
        recipe = replace(recipe, lr=recipe.lr * self.options.warm_lr)
        if only_new:
            recipe = replace(recipe, since_ms=seen_until(read_document(parent)["metadata"]))
        return self._train(part, name, recipe, parent)

    def ask(self, models: Mapping[str, Path], part: int) -> dict[str, Any]:
        """The comparison of models by arm on the part after `part`."""
        events = self.folder.events
        folder = replace(self.folder, events=_first(events, events.before(self.at(part + 1))))
        found: dict[str, Outcomes] = {}
        for arm, model in models.items():
            offline = open_model(model, self.settings).offline(self.options.plain)
            ask = QuestionSettings(slots=(LIST,), ks=(10,), start_ms=self.at(part), every=self.options.every)
            vectors = model_vectors(folder, model, self.settings, self.memory, False)
            held = HeldOut(folder, vectors, self.settings.rules(), ask, offline.weights)
            found[arm] = sweep(held, offline, [FRESH]).comparison.outcomes
        comparison = side_by_side(found, (LIST,), (10,))
        comparison.sliced = False
        return comparison.result(len(folder.item_ids))

    def _recipe(self, epochs: int | None) -> TrainOptions:
        said = {} if epochs is None else {"epochs": epochs}
        recipe = {"epochs": TrainOptions().epochs, **preset_training(self.options.preset), **said}
        return TrainOptions(**recipe, seed=self.options.seed, threads=1)

    def _train(self, part: int, name: str, recipe: TrainOptions, parent: Path | None = None) -> Made:
        """Trains, unless an earlier run with the same state folder did."""
        out = self.options.state / "models" / f"{self.path.name}-{self.options.preset}-{self.options.seed}" / name
        took = out / "cpu_s"
        if not took.exists():
            with TextSource(self.settings, self.memory) as source:
                plan = TrainPlan(self.path, out, preset=self.options.preset, options=recipe, texts=source)
                plan = replace(plan, parent=parent, before_ms=self.at(part))
                began_s = time.process_time()
                done = train_folder(plan, self.settings.rules(), source.memory)
                seconds = time.process_time() - began_s
            self.memory.save()
            took.write_text(f"{seconds} {done.folder.name}")
            print(f"{name}: {seconds:.0f} s, {done.metrics}", file=sys.stderr, flush=True)
        seconds_text, version = took.read_text().split()
        return Made(out / version, float(seconds_text))


def _first(events: Events, count: int) -> Events:
    order = None if events.order is None else events.order[:count]
    columns = {name: getattr(events, name)[:count] for name in ("users", "items", "kinds", "ts_ms", "rows")}
    details: pl.DataFrame = events.details[:count]
    return Events(**columns, details=details, order=order)


def run(timeline: Timeline, options: argparse.Namespace) -> list[Row]:
    """All parts, each with every arm; the first of the arms is held against the others."""
    first, arms = timeline.cold(0), options.arms.split(",")
    last = {arm: first for arm in ("warm", "new") if arm in arms}
    rows = [result("first model, processor", first.cpu_s, "s")]
    for part in range(1, options.parts + 1):
        made = {"cold": timeline.cold(part)} if "cold" in arms else {}
        for arm in last:
            made[arm] = last[arm] = timeline.warm(part, last[arm].folder, arm == "new")
        folders = {"never": first.folder, **{arm: each.folder for arm, each in made.items()}}
        rows += figures(part, made, timeline.ask({arm: folders[arm] for arm in arms}, part))
    return rows


def figures(part: int, made: Mapping[str, Made], found: Mapping[str, Any]) -> list[Row]:
    """What came of a part; differences with both ends of their 95 % interval."""
    rows = [result(f"{part}: questions", found["questions"], "questions")]
    rows += [result(f"{part}: {arm}, processor", each.cpu_s, "s") for arm, each in made.items()]
    for name, metrics in found["lists"].items():
        rows += [
            result(f"{part}: {name.removesuffix(f' {LIST}')}, {m}", metrics[m], "share") for m in ("hr@10", "ndcg@10")
        ]
    for against in found["versus"]:
        if against["baseline"].endswith(f" {LIST}"):
            pair = " - ".join(against[name].removesuffix(f" {LIST}") for name in ("list", "baseline"))
            for metric, said in against["differences"].items():
                named = zip(("", ", low", ", high"), (said["mean"], *said["interval"]), strict=True)
                rows += [result(f"{part}: {pair}, {metric}{end}", value, "share") for end, value in named]
    print("\n".join(f"{row['name']}: {row['value']} {row['unit']}" for row in rows), file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--state", type=Path, required=True, help="folder that keeps data, texts and models")
    parser.add_argument("--data", type=Path, help="data folder; without: a generated shop")
    parser.add_argument("--fashion", type=float, default=2.0, help="of the generated shop")
    parser.add_argument("--preset", default="nano", choices=preset_names())
    parser.add_argument("--epochs", type=int, help="of a cold start; by default the preset's, else six")
    parser.add_argument("--warm-epochs", type=int, default=2)
    parser.add_argument("--warm-lr", type=float, default=1.0, help="of the cold start's rate")
    parser.add_argument("--arms", default="cold,never,warm,new", help="some of these, by commas; the first is compared")
    parser.add_argument("--first", type=float, default=0.5, help="share of the events that the first model learns")
    parser.add_argument("--share", type=float, default=0.1, help="of the events in each part")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--every", type=int, default=2, help="ask at each n-th choice")
    parser.add_argument("--plain", action="store_true", help="rank by vectors alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    use_threads(1)
    path = options.data
    if path is None:
        path = options.state / f"shop-3-{options.fashion:g}"
        if not (path / EVENTS).exists():
            Shop(3, ShopConfig(fashion=options.fashion)).write_history(path, END_MS, 60)
    timeline = Timeline(path, options)
    rows = run(timeline, options)
    show("retraining", rows, f"{path.name}, preset {options.preset}, {len(timeline.folder.events)} events")


if __name__ == "__main__":
    main()
