"""Checks Elasticsearch by key, product, version and health; one that is not configured is fine.

Three plain HTTP calls, so that the reason of a refusal is seen before a client library makes it its own. Servers whose
root page is not there (built from core modules) tell their version by their node.
"""

from __future__ import annotations

import ssl
from dataclasses import replace
from typing import Any

import httpx

from deploy.doctor.finding import ANSWER_S, CONNECT_S, Finding
from deploy.settings import Settings, public_address

OLDEST_ELASTICSEARCH = 8
_START = "start Elasticsearch, or set PERSEID_ELASTICSEARCH to it; empty means that filters run in the API's process"
_KEY = "check PERSEID_ELASTICSEARCH_API_KEY: the base64 form, with rights on the cluster's health and our indices"
_TRUST = "set PERSEID_ELASTICSEARCH_CA to the PEM file of the authority that signed its certificate"


def check_elasticsearch(settings: Settings) -> list[Finding]:
    """The server, when one is configured."""
    url, key = settings.elasticsearch.get_secret_value(), settings.elasticsearch_api_key.get_secret_value()
    if not url:
        return [Finding("elasticsearch").ok("not used: filters run in the API's process")]
    at = Finding("elasticsearch", address=public_address(url))
    try:
        with httpx.Client(
            base_url=url,
            headers={"authorization": f"ApiKey {key}"} if key else {},
            verify=ssl.create_default_context(cafile=settings.elasticsearch_ca or None),
            timeout=httpx.Timeout(ANSWER_S / 2, connect=CONNECT_S),
        ) as client:
            return [_look(client, at)]
    except (httpx.HTTPError, OSError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        return [at.wrong(what, _TRUST if "CERTIFICATE" in what else _START)]


def _look(client: httpx.Client, at: Finding) -> Finding:
    answer = client.get("/")
    if answer.status_code in (401, 403):
        return at.wrong(f"refuses the key ({answer.status_code})", _KEY)
    version = _version(answer) or _version(client.get("/_nodes/_local"))
    if not version:
        return at.wrong("answers, but not like Elasticsearch", _START)
    at = replace(at, version=f"Elasticsearch {version}")
    if int(version.partition(".")[0]) < OLDEST_ELASTICSEARCH:
        return at.wrong("too old", f"install Elasticsearch {OLDEST_ELASTICSEARCH} or newer")
    if answer.headers.get("x-elastic-product") != "Elasticsearch":
        return at.wrong("is not Elasticsearch itself", "use Elasticsearch: its client refuses other products")
    health = client.get("/_cluster/health")
    if health.status_code in (401, 403):
        return at.wrong(f"does not tell its health ({health.status_code})", _KEY)
    status, nodes = (_read(health).get(name) for name in ("status", "number_of_nodes"))
    if status not in ("green", "yellow"):
        return at.wrong(f"its health is {status}", "look at its log and disks: primary shards are missing")
    return at.ok(f"{nodes} node(s), health {status}")


def _version(answer: httpx.Response) -> str:
    """`9.2.0` from the root page or from the nodes' own page; empty when it is neither."""
    body = _read(answer)
    nodes = list((body.get("nodes") or {}).values())
    number = (body.get("version") or {}).get("number") or (nodes[0].get("version") if nodes else "")
    return str(number) if str(number or "").partition(".")[0].isdigit() else ""


def _read(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
