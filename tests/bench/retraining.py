"""What a warm start is worth beside a cold one, and either beside no retraining: seconds, HR@10 and NDCG@10.

A first model learns the first part of a timeline. Then three times another part has passed: each arm makes its model
of all events so far, and is asked about the choices of the part that follows. `never` keeps the first model, `cold`
begins anew each time, `warm` goes on from its own last model over all events, `new` goes on with the new ones as
targets only. Differences from `cold` are paired over users. The data are a folder, or the generated shop, whose brands
come into fashion and go out of it. Seconds are of the processor, so they may be compared on a busy machine.

With --days the timeline is replayed so long from a midnight after the first part on, by a model that is retrained every
day, every week, or never. A retraining is what `perseid retrain` makes at that midnight: the served model goes on with
what there is but for the newest day (or half) that would be asked about; each is promoted.

    python -m tests.bench.retraining --state /tmp/retraining
    python -m tests.bench.retraining --state /tmp/retraining --days 28 --step 4 --plot shop.svg
    python -m tests.bench.retraining --state /tmp/retraining --data ml1m_exact_half --preset movielens --epochs 12
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from context.units import DAY_MS
from deploy.jobs.evaluate import model_vectors
from deploy.jobs.train import TrainPlan, recipe_of, seen_until, train_folder
from deploy.jobs.verdict import Stretch
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
from streams.evaluation.rankers import OfflineModel
from streams.evaluation.staleness.curves import side_by_side
from streams.evaluation.staleness.delays import FRESH
from streams.evaluation.staleness.sweep import sweep
from streams.folder.reader import EVENTS, Events, Folder, read_folder
from streams.item_vectors import ItemVectors
from tests.bench.replaced_model import METRICS, Reign, ReplacedModel, by_step, plot
from tests.bench.report import Row, result, show

END_MS = 1_790_000_000_000 // DAY_MS * DAY_MS
LIST: RequestedList = "next"
NAMES = {"never": "never retrained", "week": "every week", "day": "every day"}


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
        return self._train(self.at(part), f"cold-{part}", self._recipe(self.options.epochs))

    def warm(self, part: int, parent: Path, only_new: bool) -> Made:
        name = f"{'new' if only_new else 'warm'}-{part}-{self.options.warm_epochs}-{self.options.warm_lr}"
        recipe = self._recipe(self.options.warm_epochs)
        recipe = replace(recipe, lr=recipe.lr * self.options.warm_lr)
        if only_new:
            recipe = replace(recipe, since_ms=seen_until(read_document(parent)["metadata"]))
        return self._train(self.at(part), name, recipe, parent)

    def midnight(self) -> int:
        """The first one after what the first model learns."""
        return -(-self.at(0) // DAY_MS) * DAY_MS

    def first(self) -> Made:
        """A cold start at that midnight."""
        return self._train(self.midnight(), f"first-{self.midnight()}", self._recipe(self.options.epochs))

    def retrained(self, arm: str, now_ms: int, parent: Path) -> Made:
        """What `perseid retrain` would make at a time, of what the parent has not seen by then."""
        metadata = read_document(parent)["metadata"]
        times = self.folder.events.ts_ms[: self.folder.events.before(now_ms)]
        before_ms = Stretch.of(times, seen_until(metadata) or 0, DAY_MS).asked_ms
        recipe = replace(recipe_of(metadata), seed=self.options.seed, threads=1)
        if self.options.learn == "all":
            recipe = replace(recipe, since_ms=None)
        return self._train(before_ms, f"{arm}-{now_ms}-{self.options.epochs}-{self.options.learn}", recipe, parent)

    def replay(self, first: Path, later: Sequence[tuple[int, Path]], days: int) -> tuple[Outcomes, list[int]]:
        """Answers by the first model, and by the later ones from their times on; questions before each day's end."""
        start_ms = self.midnight()
        ends = [start_ms + (day + 1) * DAY_MS for day in range(days)]
        events = self.folder.events
        folder = replace(self.folder, events=_first(events, events.before(ends[-1])))
        ask = QuestionSettings(slots=(LIST,), ks=(10,), start_ms=start_ms, every=self.options.every)

        def opened(model: Path) -> tuple[OfflineModel, ItemVectors]:
            offline = open_model(model, self.settings).offline(self.options.plain)
            return offline, model_vectors(folder, model, self.settings, self.memory, False)

        offline, vectors = opened(first)
        held = HeldOut(folder, vectors, self.settings.rules(), ask, offline.weights)
        reigns = [Reign(now_ms, partial(opened, model)) for now_ms, model in later]
        run = ReplacedModel(held, offline, reigns, ends[:-1])
        run.run()
        return run.comparison.outcomes, [*run.asked, len(run.comparison.outcomes)]

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

    def _train(self, before_ms: int, name: str, recipe: TrainOptions, parent: Path | None = None) -> Made:
        """Trains, unless an earlier run with the same state folder did."""
        out = self.options.state / "models" / f"{self.path.name}-{self.options.preset}-{self.options.seed}" / name
        took = out / "cpu_s"
        if not took.exists():
            with TextSource(self.settings, self.memory) as source:
                plan = TrainPlan(self.path, out, preset=self.options.preset, options=recipe, texts=source)
                plan = replace(plan, parent=parent, before_ms=before_ms)
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


def run_days(timeline: Timeline, options: argparse.Namespace) -> list[Row]:
    """The stream, replayed with each arm; weeks and days count from its start."""
    first, every = timeline.first(), {"never": options.days, "week": 7, "day": 1}
    found: dict[str, Outcomes] = {}
    steps: dict[str, list[dict[str, float]]] = {}
    rows = [result("first model, processor", first.cpu_s, "s")]
    for arm, days in every.items():
        made: list[tuple[int, Made]] = []
        for day in range(days, options.days, days):
            now_ms, parent = timeline.midnight() + day * DAY_MS, made[-1][1] if made else first
            made.append((now_ms, timeline.retrained(arm, now_ms, parent.folder)))
        later = [(now_ms, each.folder) for now_ms, each in made]
        found[arm], asked = timeline.replay(first.folder, later, options.days)
        steps[arm] = by_step(found[arm], LIST, asked, options.step)
        seconds = [each.cpu_s for _, each in made]
        rows += [result(f"{arm}: retrainings", len(made), "models")]
        rows += [result(f"{arm}: a retraining, processor, median", median(seconds), "s")] if seconds else []
    for number, parts in enumerate(zip(*steps.values(), strict=True)):
        days_of = f"days {number * options.step + 1}-{(number + 1) * options.step}"
        rows += [result(f"{days_of}: questions", parts[0]["questions"], "questions")]
        rows += [
            result(f"{days_of}: {arm}, {m}", part[m], "share")
            for arm, part in zip(steps, parts, strict=True)
            for m in METRICS
        ]
    comparison = side_by_side(found, (LIST,), (10,))
    comparison.sliced = False
    rows += figures("all", {}, comparison.result(len(timeline.folder.item_ids)))
    if options.plot is not None:
        plot(
            options.plot,
            options.title or timeline.path.name,
            {NAMES[arm]: part for arm, part in steps.items()},
            options.step,
        )
    return rows


def figures(part: int | str, made: Mapping[str, Made], found: Mapping[str, Any]) -> list[Row]:
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
    parser.add_argument("--days", type=int, help="replay so many days, with a model retrained every day, week, never")
    parser.add_argument("--step", type=int, default=4, help="with --days: days of a figure over time")
    parser.add_argument("--learn", choices=("new", "all"), default="new", help="with --days: targets of a retraining")
    parser.add_argument("--plot", type=Path, help="with --days: an SVG file")
    parser.add_argument("--title", help="of the plot")
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
    rows = run_days(timeline, options) if options.days else run(timeline, options)
    show("retraining", rows, f"{path.name}, preset {options.preset}, {len(timeline.folder.events)} events")


if __name__ == "__main__":
    main()
