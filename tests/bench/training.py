"""What one epoch of training costs, beside RecTools: the same SASRec over the same sequences, in one run.

Sequences are generated with the lengths and the skew of a small shop, or read from a data folder. The other library
needs an older numpy than this project, so it runs in an environment of its own, in a process that is given the
sequences as a file. Seconds are of the epochs after the first; memory is the peak of each process. It says nothing
about quality.

    uv venv /tmp/rectools && uv pip install --python /tmp/rectools/bin/python 'rectools[torch]'
    python -m tests.bench.training --rectools /tmp/rectools/bin/python --data amazon_beauty_2014
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encoder.baselines.recipes import Recipe
from encoder.baselines.sequences import Sequences
from encoder.baselines.training import fit
from encoder.model.config import preset, preset_names, preset_training
from encoder.training.dataset import TrainingData
from encoder.training.loop import train
from encoder.training.options import TrainOptions
from streams.evaluation.baselines import leave_one_out_part
from streams.evaluation.leave_one_out import leave_one_out
from streams.folder.reader import read_folder
from streams.item_vectors import ItemVectors
from tests.bench.report import result, show

TEXT = 384  # dimensions of the text vectors that presets train on
SASREC = Recipe("sasrec", "sampled", d_model=64, n_layers=1, n_heads=1, d_ff=64, window=50, negatives=256)
BATCH = 128  # windows a step in RecTools; here about as many, as `batch_tokens` places


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="data folder; without: generated sequences")
    parser.add_argument("--rectools", type=Path, help="Python of an environment that has RecTools")
    parser.add_argument("--presets", default="nano,small", help=f"of {', '.join(preset_names())}")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--users", type=int, default=5000, help="of generated sequences")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a process for each, or the peaks of memory would mix
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = sequences_of(options.data, options.users)
    if options.measure is not None:
        print(json.dumps(measure(options.measure, data, options)))
        return
    rows = []
    for name in [*(f"preset {name}" for name in options.presets.split(",") if name), "SASRec here"]:
        rows += figures(name, _measured_in_a_process(name, sys.argv[1:] if arguments is None else arguments))
    if options.rectools is not None:
        rows += figures("SASRec in RecTools", rectools(options.rectools, data, options))
    setting = f"{options.threads} threads, torch {torch.__version__}, {len(data.items)} events, {data.catalogue} items"
    show("training", rows, setting)


def sequences_of(path: Path | None, users: int) -> Sequences:
    """The training part of a folder's leave-one-out split, or generated sequences."""
    if path is None:
        rng = np.random.default_rng(0)
        lengths = np.minimum(3 + rng.geometric(1 / 6, users), 200)
        items = np.minimum(rng.zipf(1.3, lengths.sum()), 10_000) - 1
        return Sequences(np.cumsum([0, *lengths]), items.astype(np.int64), np.arange(len(items)) * 60_000, 10_000)
    folder = read_folder(path)
    empty = ItemVectors(
        "none", folder.item_ids, np.zeros((len(folder.item_ids), 1), np.float32), [[]] * len(folder.item_ids)
    )
    return leave_one_out_part(leave_one_out(folder, empty)).sequences


def measure(name: str, data: Sequences, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of an epoch and peak memory of this process, in MB."""
    seconds = sasrec_seconds(data, options.epochs) if name == "SASRec here" else preset_seconds(name, data, options)
    return {"seconds": seconds, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def sasrec_seconds(data: Sequences, epochs: int) -> float:
    ends = [time.monotonic()]

    def ended(_: Any) -> float:
        ends.append(time.monotonic())
        return 0.0

    fit(data, replace(SASREC, epochs=epochs, validate_every=1, patience=0), ended)
    return float(np.median(np.diff(ends)[1:]))


def preset_seconds(name: str, data: Sequences, options: argparse.Namespace) -> float:
    """By the steps' times: those between the first of the second epoch and the last."""
    name = name.removeprefix("preset ")
    recipe = {**preset_training(name), "epochs": options.epochs, "threads": options.threads, "holdout": 0.0}
    vectors = np.random.default_rng(0).normal(size=(data.catalogue, TEXT)).astype(np.float32)
    columns = TrainingData(
        [f"i{number}" for number in range(data.catalogue)], vectors, [[]] * data.catalogue, [""] * data.catalogue,
        data.user_ptr, data.items.astype(np.int32), np.zeros(len(data.items), np.uint8), data.ts_ms,
    )  # fmt: skip
    times: list[float] = []
    record: Callable[[int, float], None] = lambda step, loss: times.append(time.monotonic())  # noqa: E731
    with tempfile.TemporaryDirectory() as out:
        train(columns, preset(name, d_text=TEXT), TrainOptions(**recipe), out=Path(out), on_step=record)
    per_epoch = len(times) / options.epochs
    first = round(per_epoch)
    seconds: float = (times[-1] - times[first - 1]) / (len(times) - first) * per_epoch
    return seconds


def _measured_in_a_process(name: str, arguments: Sequence[str]) -> dict[str, float]:
    return _answer([sys.executable, "-m", "tests.bench.training", *arguments, "--measure", name])


def _answer(command: Sequence[str]) -> dict[str, float]:
    """The JSON object in the last line of a command's output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{command[0]} ended with {done.returncode}: {done.stderr[-800:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


RECTOOLS = """
import json, resource, sys, time
import numpy as np, pandas as pd, torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

file, epochs, threads, batch, negatives, d, window = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
columns = np.load(file)
frame = pd.DataFrame({Columns.User: columns["users"], Columns.Item: columns["items"], Columns.Weight: 1.0,
                      Columns.Datetime: pd.to_datetime(columns["ts_ms"], unit="ms")})
ends = []

class Clock(Callback):
    def on_train_epoch_start(self, *_):
        ends.append(time.monotonic())
    def on_train_end(self, *_):
        ends.append(time.monotonic())

def trainer():
    return Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                   enable_progress_bar=False, enable_model_summary=False, callbacks=[Clock()])

model = SASRecModel(n_factors=d, n_blocks=1, n_heads=1, session_max_len=window, loss="sampled_softmax",
                    n_negatives=negatives, batch_size=batch, dropout_rate=0.2, get_trainer_func=trainer)
model.fit(Dataset.construct(frame))
print(json.dumps({"seconds": float(np.median(np.diff(ends)[1:])),
                  "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def rectools(python: Path, data: Sequences, options: argparse.Namespace) -> dict[str, float]:
    """The same architecture and loss there: one block, one head, 256 uniform negatives, windows of 50."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sequences.npz"
        np.savez(file, users=data.users, items=data.items, ts_ms=data.ts_ms)
        numbers = (options.epochs, options.threads, BATCH, SASREC.negatives, SASREC.d_model, SASREC.window)
        return _answer([str(python), "-W", "ignore", "-c", RECTOOLS, str(file), *map(str, numbers)])


def figures(name: str, found: dict[str, float]) -> list[dict[str, Any]]:
    print(f"{name}: {found['seconds']:.2f} s an epoch, {found['memory_mb']:.0f} MB", file=sys.stderr)
    return [
        result(f"{name}, seconds per epoch", found["seconds"], "s"),
        result(f"{name}, peak memory", found["memory_mb"], "MB"),
    ]


if __name__ == "__main__":
    main()
