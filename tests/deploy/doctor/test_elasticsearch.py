"""The doctor on Elasticsearch: a real one, and answers that a real one here would not give."""

from __future__ import annotations

import time
from typing import Any

import pytest

from deploy.doctor.elasticsearch import check_elasticsearch
from deploy.doctor.finding import Finding
from deploy.servers.redis import RedisServer
from deploy.settings import load
from tests.support.fake_servers import pages

pytestmark = pytest.mark.servers

KEY = "bm9ib2R5OnNlZXMtdGhpcw=="
PRODUCT = {"X-Elastic-Product": "Elasticsearch"}
HEALTHY = {"status": "green", "number_of_nodes": 3}


def look(url: str, key: str = "") -> Finding:
    (finding,) = check_elasticsearch(load({}, elasticsearch=url, elasticsearch_api_key=key))
    assert finding.name == "elasticsearch"
    return finding


def root(version: str) -> tuple[int, Any]:
    return 200, {"name": "n", "version": {"number": version}, "tagline": "You Know, for Search"}


def test_a_real_server_is_named_with_its_version(elasticsearch_url: str) -> None:
    finding = look(elasticsearch_url)
    assert finding.state == "ok" and finding.version.startswith("Elasticsearch ")
    assert finding.address == elasticsearch_url and "1 node(s), health " in finding.what


def test_without_an_address_it_is_not_used() -> None:
    assert look("").state == "ok"


def test_nothing_there() -> None:
    finding = look("http://127.0.0.1:1")
    assert finding.state == "wrong" and "PERSEID_ELASTICSEARCH" in finding.remedy


def test_another_server_on_that_port(redis_server: RedisServer) -> None:
    begin = time.monotonic()
    assert look(f"http://{redis_server.address}").state == "wrong"
    assert time.monotonic() - begin < 5
    with pages({"/": (200, {"hello": "world"})}, {}) as url:
        assert look(url).what == "answers, but not like Elasticsearch"


def test_tls_where_there_is_none_is_told() -> None:
    with pages({"/": root("9.2.0")}, PRODUCT) as url:
        finding = look(url.replace("http://", "https://"))
    assert finding.state == "wrong" and "SSL" in finding.what


def test_a_key_is_sent_and_a_wrong_one_named_and_not_shown() -> None:
    with pages({"/": root("9.2.0"), "/_cluster/health": (200, HEALTHY)}, PRODUCT, f"ApiKey {KEY}") as url:
        assert look(url, KEY).state == "ok"
        wrong = look(url, "d3Jvbmc6b25l")
    assert wrong.state == "wrong" and "PERSEID_ELASTICSEARCH_API_KEY" in wrong.remedy
    assert "d3Jvbmc6b25l" not in str(wrong)


def test_a_password_in_the_address_is_not_shown() -> None:
    finding = look("http://me:a-phrase-nobody-may-see@127.0.0.1:1")
    assert "a-phrase" not in str(finding) and finding.address == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("version", "headers", "health", "what"),
    [
        ("7.17.9", PRODUCT, HEALTHY, "too old"),
        ("9.2.0", {}, HEALTHY, "is not Elasticsearch itself"),
        ("9.2.0", PRODUCT, {"status": "red", "number_of_nodes": 3}, "its health is red"),
    ],
)
def test_old_other_and_sick_servers_are_named(
    version: str, headers: dict[str, str], health: dict[str, Any], what: str
) -> None:
    with pages({"/": root(version), "/_cluster/health": (200, health)}, headers) as url:
        finding = look(url)
    assert (finding.state, finding.what, finding.version) == ("wrong", what, f"Elasticsearch {version}")
    assert finding.remedy


def test_a_server_without_a_root_page_tells_its_version_by_its_node() -> None:
    found = {"/_nodes/_local": (200, {"nodes": {"x": {"version": "8.19.1"}}}), "/_cluster/health": (200, HEALTHY)}
    with pages(found, PRODUCT) as url:
        assert look(url).version == "Elasticsearch 8.19.1"
