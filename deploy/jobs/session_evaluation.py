"""`perseid evaluate --protocol sessions` put together: a data folder with impressions, a model, and a readable answer.

Assumes an artefact of `deploy.jobs.train` that was trained on the folder up to a time, and LightGBM (the extra
`baselines`). Loads torch. The protocol is that of `streams.evaluation.sessions.sessions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from context.features import ContextFeatures
from context.offsets import ContextOffset
from deploy.jobs.evaluate import given_vectors
from deploy.jobs.replay import asked_from, folder_vectors
from deploy.settings import Settings
from deploy.texts.item_vectors import Memory
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load, serving_arrays
from streams.evaluation.tables import metrics_table, verdict
from streams.folder.reader import Folder, read_folder

_BOUGHT = "purchase"


def evaluate_sessions_of(
    path: Path,
    model: Path,
    settings: Settings,
    memory: Memory,
    split: float | None = None,
    choice: str | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Every ranker on the folder's sessions after `split` (None: after what the model was trained on).

    `choice` is "click" or a kind of event; None: purchases where there are some, else clicks.

    Raises:
        ValueError: LightGBM is not installed, folder or model cannot be read, the model knows the sessions that would
            be asked about, or there is nothing to ask.
    """
    if find_spec("lightgbm") is None:
        raise ValueError(
            "sessions are ranked by LambdaMART too, which needs LightGBM: pip install 'perseid[baselines]'"
        )
    from streams.evaluation.sessions.ranking import SessionPlan, evaluate_sessions

    loaded, metadata = load(model)
    folder = read_folder(path, settings.rules())
    start_ms = asked_from(folder, model, split or 0.0)
    if start_ms is None or start_ms >= folder.stop_ms:
        raise ValueError(
            f"the model was trained on all of {metadata.get('data')!r}: give --split for another folder, or train with "
            "--split 0.8 to keep something to evaluate on"
        )
    vectors = folder_vectors(folder, model, settings, memory, progress is not None)
    features = ContextFeatures.from_list(metadata["context_features"])
    plan = SessionPlan(start_ms, choice or _usual_choice(folder), seed, settings.threads)
    found = evaluate_sessions(
        folder,
        vectors or given_vectors(folder, settings.rules()),
        IncrementalEncoder(loaded, cache_bytes=settings.cache_mb * 1024 * 1024, device=settings.device),
        ContextOffset(serving_arrays(loaded)["context.weight"], features),
        settings.rules(),
        plan,
        progress,
    )
    shown = found["views"]["before"]["label_pre"]
    facts = {"data": folder.name, "model": metadata["version"], "start_ms": start_ms, "seed": seed}
    return {**facts, "questions": shown["questions"], "metrics": shown["metrics"], **found}


def _usual_choice(folder: Folder) -> str:
    from streams.evaluation.sessions.sessions import CLICK

    bought = folder.kind_names.index(_BOUGHT) if _BOUGHT in folder.kind_names else None
    return _BOUGHT if bought is not None and (folder.events.kinds == bought).any() else CLICK


def sessions_table(found: Mapping[str, Any]) -> str:
    """All tables as aligned text: by view and label, then hits at 5 by number of candidates, then who is better."""
    parts = [f"model {found['model']} on {found['data']}: choices are {found['choice']}s; sessions {found['sessions']}"]
    known = {"before": "known before the session", "page": "known up to the page"}
    for view, labels in found["views"].items():
        for label, result in labels.items():
            title = f"{label}, {known[view]}"
            parts.append(metrics_table(title, result["questions"], result["lists"]))
            parts.append(_by_candidates(result))
            parts.append("\n".join(verdict(against) for against in result["versus"]))
    return "\n\n".join(parts)


def _by_candidates(result: Mapping[str, Any]) -> str:
    asked = {name: part for name, part in result["by_candidates"].items() if part["questions"]}
    rows = {
        ranker: {f"hr@5 of {name} ({part['questions']})": part["lists"][ranker]["hr@5"] for name, part in asked.items()}
        for ranker in result["lists"]
    }
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = ["  ".join(["by candidates".ljust(width), *columns])]
    lines += [
        "  ".join([name.ljust(width), *(f"{row[column]:.4f}".rjust(len(column)) for column in columns)])
        for name, row in rows.items()
    ]
    return "\n".join(lines)
