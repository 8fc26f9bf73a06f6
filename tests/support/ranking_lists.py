"""Features of lists as `perseid evaluate sessions` computes them, by the serving code; no test itself."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.jobs.ranking.folder_walk import list_features
from deploy.models.open_model import OpenedModel
from deploy.settings import load
from index.ranking.features import Floats
from streams.evaluation.sessions.two_stage import ListFeatures
from streams.folder.reader import Folder
from streams.ranking.walk import ListQuestion
from tests.support.replay_world import VERSION, encoder, vectors_of

SETTINGS = load({}, embedders="toy:4", device="cpu", cache_mb=4)


def walked_features(folder: Folder) -> ListFeatures:
    """Of lists of a folder, with an untrained encoder."""
    opened = OpenedModel(encoder(), {"version": VERSION, "context_features": []})

    def found(questions: Sequence[ListQuestion]) -> dict[int, Floats]:
        return list_features(folder, vectors_of(folder), opened, SETTINGS, None, questions)

    return found
