"""What the doctor sees of Elasticsearch: reachable, key, product, version, health. Not configured is fine.

Three plain HTTP calls, so that the reason of a refusal is seen before a client library makes it its own. It looks at no
index. Servers whose root page is not there (built from core modules) tell their version by their node.
"""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from deploy.doctor.finding import ANSWER_S, CONNECT_S, Finding
from deploy.settings import Settings, public_address

OLDEST_ELASTICSEARCH = (8, 0)
_PRODUCT = "x-elastic-product"
_START = "start Elasticsearch, or set PERSEID_ELASTICSEARCH to it; empty means that filters run in the API's process"
_KEY = "check PERSEID_ELASTICSEARCH_API_KEY: the base64 form, with rights on the cluster's health and our indices"
_TRUST = "set PERSEID_ELASTICSEARCH_CA to the PEM file of the authority that signed its certificate"


def check_elasticsearch(settings: Settings) -> list[Finding]:
    """The server, when one is configured."""
    url = settings.elasticsearch.get_secret_value()
    if not url:
        return [Finding("elasticsearch", "ok", "not used: filters run in the API's process")]
    address = public_address(url)
    try:
        with _client(settings, url) as client:
            return _findings(client, address)
    except (httpx.HTTPError, OSError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        return [Finding("elasticsearch", "wrong", what, _TRUST if "CERTIFICATE" in what else _START, address)]


def _client(settings: Settings, url: str) -> httpx.Client:
    key = settings.elasticsearch_api_key.get_secret_value()
    return httpx.Client(
        base_url=url,
        headers={"authorization": f"ApiKey {key}"} if key else {},
        verify=ssl.create_default_context(cafile=settings.elasticsearch_ca or None),
        timeout=httpx.Timeout(ANSWER_S / 2, connect=CONNECT_S),
    )


def _findings(client: httpx.Client, address: str) -> list[Finding]:
    def wrong(what: str, remedy: str, version: str = "") -> list[Finding]:
        return [Finding("elasticsearch", "wrong", what, remedy, address, version)]

    answer = client.get("/")
    if answer.status_code in (401, 403):
        return wrong(f"refuses the key ({answer.status_code})", _KEY)
    version = _version(answer) or _version(client.get("/_nodes/_local"))
    if not version:
        return wrong("answers, but not like Elasticsearch", _START)
    shown, product = f"Elasticsearch {version}", answer.headers.get(_PRODUCT)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_ELASTICSEARCH:
        oldest = OLDEST_ELASTICSEARCH[0]
        return wrong("too old", f"install Elasticsearch {oldest} or newer", shown)
    if product != "Elasticsearch":
        return wrong("is not Elasticsearch itself", "use Elasticsearch: its client refuses other products", shown)
    health = client.get("/_cluster/health")
    if health.status_code in (401, 403):
        return wrong(f"does not tell its health ({health.status_code})", _KEY, shown)
    status, nodes = (_read(health).get(name) for name in ("status", "number_of_nodes"))
    if status not in ("green", "yellow"):
        return wrong(f"its health is {status}", "look at its log and disks: primary shards are missing", shown)
    return [Finding("elasticsearch", "ok", f"{nodes} node(s), health {status}", "", address, shown)]


def _version(answer: httpx.Response) -> str:
    """`9.2.0` from the root page or from the nodes' own page; empty when it is neither."""
    body = _read(answer)
    nodes = list((body.get("nodes") or {}).values())
    number = (body.get("version") or {}).get("number") or (nodes[0].get("version") if nodes else "")
    parts = str(number or "").split(".")
    return str(number) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else ""


def _read(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
