"""The console's pages in a real Chromium, on a running deployment: what a visitor sees, does, and never has to see.

Each page test fails on an error in the browser's console, and on a request to anywhere but the console.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import orjson
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Locator, Page, ViewportSize, expect

from context.features import CYCLES
from deploy.console.pages import SCREENS
from tests.integration.browsing import DESKTOP, WAIT_MS, chromium, opened
from tests.integration.live import Live, click, new_id

pytestmark = [pytest.mark.servers, pytest.mark.slow]

PHONE: ViewportSize = {"width": 390, "height": 844}
SECOND_MS = 1_000
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser, live: Live) -> Iterator[Page]:
    """A page of the console, at the width of a desktop."""
    with_checks = opened(browser, live)
    yield next(with_checks)
    for _ in with_checks:
        pass


def address(path: str, **query: str) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def visit(page: Page, path: str, **query: str) -> None:
    page.goto(address(path, **query), wait_until="load")


def titles(items: Locator) -> list[str]:
    """What the items of a list are called, once it is there."""
    expect(items.locator(".what > a").first).to_be_visible(timeout=WAIT_MS)
    return [text.strip() for text in items.locator(".what > a").all_inner_texts()]


def links(items: Locator) -> list[str]:
    """The items of a list, once it is there, by their pages: titles are not unique."""
    found = items.locator(".what > a")
    expect(found.first).to_be_visible(timeout=WAIT_MS)
    return [str(link) for link in found.evaluate_all("found => found.map(link => link.getAttribute('href'))")]


def milliseconds(took: Locator) -> float:
    expect(took).to_be_visible(timeout=WAIT_MS)
    return float(took.inner_text().replace(",", "").removesuffix(" ms"))


def known_user(live: Live) -> str:
    """A user with a window of this test's own."""
    user = new_id("visitor")
    for entry in live.recommend("nobody", count=3)["items"]:
        live.call("POST", "/v1/events", body=click(user, entry["item_id"]))
    live.until(lambda: len(live.get(f"/v1/users/{user}")["events"]) == 3, 20, "the user is known")
    return user


@pytest.fixture(scope="module")
def user_of_all(live: Live) -> str:
    """A user of whom nothing changes."""
    return known_user(live)


# --- the guided first visit ---------------------------------------------------------------------------------------


def test_a_click_as_a_user_changes_the_list_within_a_second(page: Page, live: Live) -> None:
    visit(page, "/")
    page.locator("button.chip").first.click()
    expect(page.locator("button.chip[aria-pressed=true]")).to_be_visible(timeout=WAIT_MS)
    panel = page.locator("#visit-list")
    took = []
    for _ in range(3):
        before = links(panel.locator(".list"))
        panel.locator(".list .place").first.get_by_role("button", name="Do it with").click()
        page.wait_for_function(
            "link => document.querySelector('#visit-list .what a').getAttribute('href') != link", arg=before[0]
        )
        took.append(milliseconds(panel.locator(".ms")))
        assert links(panel.locator(".list")) != before
    assert min(took) < SECOND_MS, took
    expect(panel.get_by_text(re.compile("came|moved"))).to_be_visible()


def test_a_new_item_is_recommended_and_disappears_when_it_is_withdrawn(page: Page, live: Live) -> None:
    user, name = known_user(live), f"Visitor's own {new_id('thing')}"
    visit(page, "/", user=user)
    page.get_by_label("called").fill(name)
    page.get_by_role("button", name="Add it to the catalogue").click()
    panel = page.locator("#visit-item")
    assert milliseconds(panel.locator(".ms")) > 0
    expect(panel.get_by_text(re.compile("it stands on place|not among the first"))).to_be_visible()
    item_id = str(panel.locator(".took a").get_attribute("href")).partition("=")[2]
    assert _lists(live, user, item_id)
    panel.get_by_role("button", name="Withdraw it again").click()
    expect(panel.get_by_text("no list has")).to_be_visible(timeout=WAIT_MS)
    assert not _lists(live, user, item_id)


def _lists(live: Live, user: str, item_id: str) -> bool:
    """Whether an item can be recommended."""
    body = {"user_id": user, "filter": {"field": "item_id", "in": [item_id]}}
    return bool(live.call("POST", "/v1/recommendations", body=body)["items"])


def test_weather_changes_the_list_and_is_put_back(page: Page, live: Live) -> None:
    user = known_user(live)
    visit(page, "/", user=user)
    place = page.locator("#location option").first.inner_text()
    own = live.recommend(user, location=place)["context"]  # it may be cold there today
    for weather in ("heat wave", "cold snap"):  # whichever holds already, the other one is another list
        page.locator("#weather").select_option(weather)
        page.locator("#location").select_option(place)
        page.get_by_role("button", name="Change the weather").click()
        expect(page.locator("#visit-weather").get_by_text(weather.replace(" ", "_"))).to_be_visible(timeout=WAIT_MS)
    changed = live.recommend(user, location=place)["context"]
    assert changed["ts_ms"] > own["ts_ms"]
    expect(page.locator("#visit-weather .note").filter(has_text="came")).to_be_visible()
    page.get_by_role("button", name="Put the weather back").click()
    known = _of_the_record(own)
    is_cold = any("cold_snap=true" in feature for feature in known)
    expect(page.locator("#visit-weather").get_by_text("cold_snap=true")).to_have_count(int(is_cold))
    live.until(
        lambda: _of_the_record(live.recommend(user, location=place)["context"]) == pytest.approx(known, abs=0.001),
        5.0,
        "it is as it was",
    )


def _of_the_record(context: dict[str, Any]) -> dict[str, float]:
    """What a context record adds, by feature; the calendar's part, and so the bound, change from second to second."""
    return {part["feature"]: part["strength"] for part in context["applied"] if part["feature"] not in CYCLES}


# --- the screens --------------------------------------------------------------------------------------------------


def test_now_shows_charts_that_go_on_and_every_role(page: Page, live: Live) -> None:
    visit(page, "/now")
    expect(page.locator(".chart canvas")).to_have_count(4)
    expect(page.locator(".tile dd[data-value=lag]")).to_have_text(re.compile(r"\d"))
    roles = page.get_by_role("region", name="Processes")
    for role in ("worker", "embed", "api", "console", "traffic"):
        expect(roles.get_by_role("rowheader", name=role, exact=True)).to_be_visible()
    visible = live.get("/v1/status")["topics"]["clickstream"]["position"]
    live.call("POST", "/v1/events", body=click(new_id("visitor"), "item-00001"))
    row = page.get_by_role("region", name="Topics").get_by_role("row").filter(has_text="clickstream")
    expect(row.locator("td").first).not_to_have_text(f"{visible:,}", timeout=WAIT_MS)


def test_an_event_appears_within_a_second_and_shows_what_it_changed(page: Page, live: Live) -> None:
    user = known_user(live)
    live.recommend(user)  # what was shown before the event
    visit(page, "/events", user=user, topic="exposures")  # which may reach Kafka a second later
    expect(page.locator("tbody tr").first).to_be_visible(timeout=WAIT_MS)
    visit(page, "/events", user=user)
    expect(page.locator("tbody tr")).to_have_count(3, timeout=WAIT_MS)
    took = []
    for count in (4, 5, 6):
        live.call("POST", "/v1/events", body=click(user, f"item-0000{count}"))
        began = time.monotonic()
        expect(page.locator("tbody tr")).to_have_count(count, timeout=WAIT_MS)
        took.append(1000 * (time.monotonic() - began))
    assert min(took) < SECOND_MS, took
    newest = page.locator("tbody tr").first
    newest.get_by_text("what it changed").click()
    expect(newest.locator(".list li")).to_have_count(10)
    expect(newest.get_by_text("Since the list before it")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    live.call("POST", "/v1/events", body=click(user, "item-00007"))
    expect(page.get_by_text("1 wait")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(6)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("tbody tr")).to_have_count(7)


def test_two_lists_stand_side_by_side_with_the_parts_of_their_scores(page: Page, live: Live) -> None:
    user = known_user(live)
    visit(page, "/ask", user=user)
    page.get_by_label("beside it").select_option("list: general")
    page.get_by_label("category").fill("Kitchen")
    page.get_by_role("button", name="Ask", exact=True).click()
    lists = page.locator("#answer section")
    expect(lists).to_have_count(2)
    answer = live.call(
        "POST", "/v1/recommendations", body={"user_id": user, "filter": {"field": "category", "in": ["Kitchen"]}}
    )
    assert titles(lists.first) == [entry["title"] for entry in answer["items"]]
    expect(lists.first.locator(".bar").first).to_have_attribute("aria-label", re.compile("cosine"))
    live.call("POST", "/v1/events", body=click(user, answer["items"][0]["item_id"]))
    live.until(lambda: len(live.get(f"/v1/users/{user}")["events"]) == 4, 20, "the click counts")
    page.get_by_role("button", name="Ask again, and compare with this").click()
    expect(page.get_by_text("Since the list that you kept")).to_be_visible()
    expect(page.locator("#answer .what > a").first).not_to_have_text(answer["items"][0]["title"])
    page.get_by_label("filter, as of the API").fill("{")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("no JSON")


def test_why_not_names_the_rule_that_removes_an_item(page: Page, live: Live) -> None:
    item = live.recommend("nobody", count=1)["items"][0]["item_id"]
    visit(page, "/why", user="nobody", item=item)
    expect(page.locator("#answer")).to_contain_text("It is on the list, at place 1")
    page.get_by_label("filter, as of the API").fill(orjson.dumps({"field": "item_id", "not_in": [item]}).decode())
    page.get_by_role("button", name="Why not?").click()
    expect(page.locator("#answer")).to_contain_text("filter.not_in does not let it pass")


def test_a_user_shows_events_as_they_come_and_what_was_chosen_from_a_list(page: Page, live: Live) -> None:
    user = known_user(live)
    answer = live.recommend(user)
    visit(page, "/user", user=user)
    expect(page.locator("section[aria-label=Events] li")).to_have_count(3)
    chosen = answer["items"][2]
    event = click(user, chosen["item_id"], "cart", recommendation_id=answer["recommendation_id"])
    live.call("POST", "/v1/events", body=event)
    expect(page.locator("section[aria-label=Events] li").first).to_contain_text("cart", timeout=WAIT_MS)
    live.until(lambda: "1 chosen" in _reloaded(page), 20, "the list with its click is in the log")
    expect(page.locator("section[aria-label=State] li").filter(has_text="✓ cart")).to_contain_text(chosen["title"])


def _reloaded(page: Page) -> str:
    page.reload(wait_until="load")
    return page.locator("section[aria-label=State]").inner_text()


def test_an_item_shows_record_vector_and_neighbours(page: Page, live: Live) -> None:
    visit(page, "/item", item="item-00042")
    record = live.get("/v1/items/item-00042")["catalogue"]
    expect(page.get_by_role("heading", level=1)).to_have_text(record["title"])
    expect(page.locator("section[aria-label=Record]")).to_contain_text(str(record["price"]))
    expect(page.locator("section[aria-label=Record]")).to_contain_text("current")
    expect(page.locator("section[aria-label=Neighbours] li")).to_have_count(12)
    visit(page, "/item", item="item-00042")
    page.get_by_role("link", name="search by text").click()
    expect(page).to_have_url(re.compile("/catalogue"))


def test_a_hidden_item_disappears_and_texts_of_producers_are_only_shown(page: Page, live: Live) -> None:
    user, item_id = known_user(live), new_id("hostile")
    record = {"item_id": item_id, "title": HOSTILE, "brand": HOSTILE, "category": ["Kitchen"], "ts_ms": _now_ms()}
    live.call("POST", "/v1/items", body=record)
    live.until(lambda: item_id in _ids(live, user), 30, "the item is recommended")
    visit(page, "/catalogue")
    page.locator("#text").fill(item_id)
    expect(page.locator("#found .note").first).to_have_text("1 item")
    row = page.locator("tbody tr").filter(has_text=item_id)
    expect(row).to_contain_text(HOSTILE)
    row.get_by_role("button", name="Hide").click()
    expect(row.get_by_role("button", name="Show")).to_be_visible()
    live.until(lambda: item_id not in _ids(live, user), 10, "the hidden item is in no list")
    row.get_by_role("button", name="Show").click()
    expect(row.get_by_role("button", name="Hide")).to_be_visible()
    live.until(lambda: item_id in _ids(live, user), 10, "the item is back")
    for path, query in (
        ("/item", {"item": item_id}),
        ("/ask", {"user": HOSTILE}),
        ("/user", {"user": HOSTILE}),
        ("/events", {}),
    ):
        live.call("POST", "/v1/events", body=click(user, item_id))
        visit(page, path, **query)
        expect(page.locator("main")).to_contain_text("<script>" if path != "/events" else "clickstream")
        assert page.title() != "owned"
    live.call("DELETE", f"/v1/items/{item_id}")


def _ids(live: Live, user: str) -> list[str]:
    body = {"user_id": user, "count": 1, "include_seen": True, "filter": {"field": "item_id", "in": []}}
    hostile = {"field": "brand", "in": [HOSTILE]}
    return [
        entry["item_id"]
        for entry in live.call("POST", "/v1/recommendations", body={**body, "filter": hostile})["items"]
    ]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_dead_letter_is_put_right_and_sent_again(page: Page, live: Live) -> None:
    user = new_id("visitor")
    event = {**click(user, "item-00005"), "kind": "veiw"}
    producer = live.producer()
    producer.send(live.topic("clickstream"), key=user.encode(), value=orjson.dumps(event)).get(10)
    producer.close()
    live.until(lambda: user in _letters(page), 30, "the dead letter is shown")
    field = page.locator("textarea").first
    expect(field).to_have_value(re.compile(user))
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_role("alert")).to_contain_text("kind")  # it is wrong as ever: nothing was published
    field.fill(field.input_value().replace("veiw", "view"))
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".done")).to_contain_text("Sent again: clickstream")
    live.until(lambda: [e["kind"] for e in live.get(f"/v1/users/{user}")["events"]] == ["view"], 20, "it is applied")


def _letters(page: Page) -> str:
    """The newest dead letter, as the page shows it."""
    visit(page, "/dead-letters")
    if page.locator("summary").count() == 0:
        return ""
    page.locator("summary").first.click()
    page.locator(".into .facts").first.wait_for()
    return page.locator("main").inner_text() + "".join(each.input_value() for each in page.locator("textarea").all())


def test_models_show_what_is_served_and_a_refused_step_says_why(page: Page, live: Live) -> None:
    visit(page, "/models")
    served = live.get("/v1/status")["models"]["champion"]
    expect(page.locator(".tile").first).to_contain_text(served)
    expect(page.get_by_role("region", name="Registry")).to_be_visible()


def test_results_show_what_was_clicked_of_a_list(page: Page, live: Live) -> None:
    user, scenario = new_id("shopper"), new_id("surface")
    shown = live.get(f"/v1/recommendations/{user}?count=5&scenario={scenario}")
    body = {**click(user, shown["items"][0]["item_id"]), "recommendation_id": shown["recommendation_id"]}
    live.call("POST", "/v1/events", body=body)
    live.until(lambda: _is_clicked(live, scenario), 30, "the click is joined to its list")
    visit(page, "/results")
    expect(page.get_by_role("row").filter(has_text=scenario)).to_contain_text("100.00 %")
    page.get_by_label("slot").check()
    slots = page.get_by_role("region", name="Results by scenario, list, slot").get_by_role("row")
    expect(slots.filter(has_text=scenario).first).to_be_visible(timeout=WAIT_MS)
    assert "by=slot" in page.url
    day = page.get_by_label("from (UTC)")
    first = day.input_value()
    day.fill("2999-01-01")
    expect(page.locator("#results").get_by_role("alert")).to_contain_text("query.since")
    day.fill(first)
    expect(slots.filter(has_text=scenario).first).to_be_visible(timeout=WAIT_MS)


def _is_clicked(live: Live, scenario: str) -> bool:
    rows = live.get("/v1/results?by=scenario")["rows"]
    return any(row["scenario"] == scenario and row["clicked"] for row in rows)


def test_a_record_is_set_at_a_place(page: Page, live: Live) -> None:
    place = new_id("place")
    visit(page, "/context")
    page.get_by_label("place", exact=True).fill(place)
    page.get_by_label("weather, events, promotions").fill('{"weather": {"temp_c": 7, "mood": "<b>grey</b>"}}')
    page.get_by_role("button", name="Set it").click()
    expect(page.locator("#context-set")).to_contain_text("In force")
    live.until(lambda: live.recommend("nobody", location=place)["context"]["ts_ms"], 20, "it is in force")
    visit(page, "/context")
    expect(page.get_by_role("row").filter(has_text=place)).to_contain_text("7 °C, <b>grey</b>")


def test_a_rule_is_previewed_published_and_undone(page: Page, live: Live) -> None:
    scenario = new_id("home")
    usual = [entry["item_id"] for entry in live.recommend("nobody", count=10)["items"]]
    visit(page, "/rules")
    page.get_by_label("scenario", exact=True).fill(scenario)
    page.get_by_label("rule", exact=True).fill(orjson.dumps({"pins": [{"item": usual[4], "place": 0}]}).decode())
    page.get_by_label("users to preview, up to five").fill("nobody")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("alert")).to_contain_text("pins[0].place")
    page.get_by_label("rule", exact=True).fill(orjson.dumps({"pins": [{"item": usual[4], "place": 1}]}).decode())
    page.get_by_role("button", name="Preview").click()
    preview = page.get_by_role("region", name="Preview for nobody")
    link = preview.get_by_role("list", name="with the draft").locator(".what > a").first
    expect(link).to_have_attribute("href", f"/item?item={usual[4]}")
    assert "rules" not in live.recommend("nobody", scenario=scenario)  # nothing was published
    page.get_by_role("button", name="Publish").click()
    expect(page.locator(".done")).to_contain_text("Published")

    def first() -> Any:
        answer = live.recommend("nobody", count=10, scenario=scenario)
        return answer["items"][0]["item_id"] if "rules" in answer else None

    live.until(lambda: first() == usual[4], 10, "the rule is in the next answer")
    page.locator("#rule-done").get_by_role("button", name="Undo").click()
    expect(page.locator(".done")).to_contain_text("has no rule again")
    live.until(lambda: first() is None, 10, "it is as before")
    visit(page, "/rules", scenario=scenario)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".done")).to_contain_text("is as before, at version")
    live.until(lambda: first() == usual[4], 10, "what was undone is there again")
    visit(page, "/rules", scenario=scenario)
    expect(page.get_by_role("row").filter(has_text=scenario)).to_contain_text("pins")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".done")).to_contain_text("has no rule any more")
    live.until(lambda: first() is None, 10, "the rule is removed")


# --- what a page asks for -----------------------------------------------------------------------------------------


def test_what_a_page_asks_for_does_not_wait_for_the_test(page: Page) -> None:
    visit(page, "/rules")
    page.evaluate("() => { setTimeout(() => fetch('/rules?late').then((one) => one.text()), 200) }")
    time.sleep(2)  # in no call of Playwright
    assert page.evaluate("performance.getEntriesByType('resource').filter((one) => one.name.endsWith('?late')).length")


def test_a_page_that_asks_elsewhere_is_found_out(browser: Browser, live: Live) -> None:
    with_checks = opened(browser, live)
    page = next(with_checks)
    visit(page, "/rules")
    with pytest.raises(Error):
        page.goto("http://elsewhere.test/")
    with pytest.raises(AssertionError, match=r"http://elsewhere\.test/'\]"):
        next(with_checks)


# --- every screen -------------------------------------------------------------------------------------------------

LOOKS: list[tuple[str, dict[str, str]]] = [
    *((path, {}) for path, _ in SCREENS if path not in ("/", "/ask", "/why", "/user", "/item", "/context")),
    ("/", {"user": "USER"}),
    ("/ask", {"user": "USER", "beside": "list: general"}),
    ("/why", {"user": "USER", "item": "item-00042"}),
    ("/user", {"user": "USER"}),
    ("/item", {"item": "item-00042"}),
    ("/context", {"location": "oslo"}),
    ("/sign-in", {}),
]


SCHEMES: list[tuple[ViewportSize, Literal["light", "dark"]]] = [(DESKTOP, "light"), (PHONE, "dark")]


@pytest.mark.parametrize(("path", "query"), LOOKS, ids=[path for path, _ in LOOKS])
def test_a_screen_is_accessible_and_fits_desktop_and_phone(
    page: Page, live: Live, user_of_all: str, path: str, query: dict[str, str]
) -> None:
    visit(page, path, **{name: value.replace("USER", user_of_all) for name, value in query.items()})
    for viewport, scheme in SCHEMES:
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]][:3])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []
        too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert too_wide <= 0


def test_the_keyboard_is_enough(page: Page, live: Live) -> None:
    visit(page, "/catalogue")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("kettle/1")
    expect(page.locator("#text")).to_have_value("kettle/1")


def test_pages_work_without_scripts(browser: Browser, live: Live, tmp_path: Path) -> None:
    user = known_user(live)
    for page in opened(browser, live, java_script_enabled=False):
        visit(page, "/", user=user)
        shown = page.locator("#visit-list .list")
        first = links(shown)[0]
        shown.locator(".place").first.get_by_role("button", name="Do it with").click()
        expect(page.locator(".ms")).to_be_visible(timeout=WAIT_MS)
        assert first not in links(page.locator(".list"))
