"""Each preset on a small sample of its publisher's form: the events and items that come out of it."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from deploy.jobs.convert import convert
from deploy.tables.presets import preset, preset_names
from streams.folder.reader import read_folder
from tests.support.left_out import counts

Event = tuple[str, str, str, str]  # user, item, word, unix seconds


def write(folder: Path, **files: str | bytes) -> Path:
    """Files of a folder; `__` in a name stands for the dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def lines(*records: Any) -> bytes:
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def result(out: Path) -> tuple[list[Event], dict[str, dict[str, Any]]]:
    """Events and items of a folder, which is one that readers accept."""
    read_folder(out)
    with gzip.open(out / "events.csv.gz", "rt") as file:
        events = [(r["user_id"], r["item_id"], r["event_type"], r["timestamp"]) for r in csv.DictReader(file)]
    with gzip.open(out / "items.jsonl.gz") as raw:
        return events, {item.pop("item_id"): item for item in map(orjson.loads, raw)}


def converted(name: str, source: Path, out: Path) -> tuple[list[Event], dict[str, dict[str, Any]]]:
    convert(name, source, out)
    return result(out)


def test_every_preset_has_a_sample_here_and_says_what_it_reads() -> None:
    text = Path(__file__).read_text() + (Path(__file__).parents[1] / "jobs" / "test_convert.py").read_text()
    assert [name for name in preset_names() if f'"{name}"' not in text] == []
    assert all(len(preset(name).about) > 40 for name in preset_names())


def test_movielens_1m(tmp_path: Path) -> None:
    source = write(
        tmp_path / "ml-1m",
        ratings__dat="1::1193::5::978300760\n2::661::3::978302109\n",
        movies__dat="661::Käthe (1996)::Animation|Children's\n1193::Nest (1975)::Drama\n".encode("latin-1"),
    )
    for name in ("movielens", "movielens-1m"):
        events, items = converted(name, source, tmp_path / name)
        assert events == [("1", "1193", "rating", "978300760"), ("2", "661", "rating", "978302109")]
        assert items["661"] == {"title": "Käthe (1996)", "category": ["Animation", "Children's"]}


def test_movielens_100k(tmp_path: Path) -> None:
    flags = ["0"] * 19
    flags[3] = flags[5] = "1"  # Animation, Comedy; the first is `unknown`
    item = "|".join(["1", "Toy (1995)", "01-Jan-1995", "", "http://example.org/?a=1", *flags])
    source = write(tmp_path / "ml", u__data="196\t1\t3\t881250949\n", u__item=f"{item}\n")
    events, items = converted("movielens", source, tmp_path / "out")
    assert preset("movielens-100k").items[0].header[9] == "Children's"
    assert events == [("196", "1", "rating", str(881250949 + 3654 * 86_400))], "all of its times are before 2000"
    assert items == {"1": {"title": "Toy (1995)", "category": ["Animation", "Comedy"]}}


def test_movielens_as_one_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as packed:
        packed.writestr("ml-x/ratings.csv", "userId,movieId,rating,timestamp\r\n1,2,4.0,1500000001\r\n")
        packed.writestr("ml-x/movies.csv", "movieId,title,genres\r\n2,Lamp,Action\r\n")
        packed.writestr("ml-x/README.txt", "text")
    events, items = converted("movielens", tmp_path / "ml.zip", tmp_path / "out")
    assert events == [("1", "2", "rating", "1500000001")] and items["2"]["title"] == "Lamp"


def test_retailrocket_takes_the_latest_properties(tmp_path: Path) -> None:
    head = "timestamp,itemid,property,value\n"
    source = write(
        tmp_path / "rr",
        events__csv="timestamp,visitorid,event,itemid,transactionid\n"
        "1433221332117,257597,view,355908,\n1433224214164,992329,transaction,248676,4000\n",
        item_properties_part1__csv=f"{head}1435460400000,355908,categoryid,1338\n"
        "1435460400000,355908,888,1116 n277.200\n1441508400000,248676,790,n15360.000\n",
        item_properties_part2__csv=f"{head}1439089200000,355908,categoryid,213\n1431226800000,355908,available,1\n"
        "1441508400000,355908,available,0\n",
        category_tree__csv="categoryid,parentid\n213,1016\n1016,\n",
    )
    events, items = converted("retailrocket", source, tmp_path / "out")
    assert events == [
        ("257597", "355908", "view", "1433221332.117"),
        ("992329", "248676", "transaction", "1433224214.164"),
    ]
    assert items["355908"] == {"title": "", "category": ["1016", "213"], "price": None, "available": False}
    assert items["248676"] == {"title": "", "category": [], "price": 15360.0, "available": None}


def test_yoochoose(tmp_path: Path) -> None:
    folder = tmp_path / "yc"
    folder.mkdir()
    (folder / "yoochoose-clicks.dat").write_text(
        "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:54:09.868Z,214536500,5\n"
    )
    (folder / "yoochoose-buys.dat").write_text("1,2014-04-07T10:58:00.306Z,214536500,1046,1\n")
    events, items = converted("yoochoose", folder, tmp_path / "out")
    assert events == [
        ("1", "214536502", "view", "1396867869.277"),
        ("1", "214536500", "view", "1396868049.868"),
        ("1", "214536500", "purchase", "1396868280.306"),
    ]
    assert items["214536500"] == {"title": "", "category": ["5"], "price": 1046.0}
    assert items["214536502"]["category"] == []


def test_amazon_metadata_of_2014_are_lines_of_python(tmp_path: Path) -> None:
    source = write(
        tmp_path / "beauty",
        reviews_Beauty_5__json=lines(
            {"reviewerID": "A1", "asin": "B1", "helpful": [0, 0], "overall": 5.0, "unixReviewTime": 1391040000}
        ),
        meta_Beauty__json="{'asin': 'B1', 'title': \"Men's soap\", 'price': 4.99, 'brand': 'Acme', "
        "'categories': [['Beauty', 'Skin Care'], ['Gifts']], 'related': {'also_bought': ['B2']}}\n",
    )
    events, items = converted("amazon-reviews", source, tmp_path / "out")
    assert events == [("A1", "B1", "review", "1391040000")]
    assert items["B1"] == {
        "title": "Men's soap",
        "description": "",
        "brand": "Acme",
        "category": ["Beauty", "Skin Care"],
        "price": 4.99,
    }


@pytest.mark.parametrize(
    ("name", "text", "time"),
    [
        ("amazon-ratings-2014", "A1,B1,5.0,1391040000\nA2,B1,1.0,1391040001\n", "1391040000"),
        ("amazon-ratings-2018", "B1,A1,5.0,1391040000\nB1,A2,1.0,1391040001\n", "1391040000"),
        (
            "amazon-ratings-2023",
            "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1391040000123\nA2,B1,1.0,1391040001123\n",
            "1391040000.123",
        ),
    ],
)
def test_amazon_ratings(tmp_path: Path, name: str, text: str, time: str) -> None:
    events, items = converted(name, write(tmp_path / "in", ratings__csv=text), tmp_path / "out")
    assert events[0] == ("A1", "B1", "review", time) and len(events) == 2
    assert items == {"B1": {"title": ""}}


def test_instacart_orders_get_dates_from_their_distances(tmp_path: Path) -> None:
    source = write(
        tmp_path / "ic",
        orders__csv="order_id,user_id,eval_set,order_number,order_dow,order_hour_of_day,days_since_prior_order\n"
        "11,1,prior,1,2,08,\n13,1,train,3,3,10,1.0\n12,1,prior,2,2,07,14.0\n21,2,prior,1,0,00,\n",
        order_products__prior="",
        products__csv='product_id,product_name,aisle_id,department_id\n1,"Tea, green",94,7\n2,Lamp oil,101,17\n',
        aisles__csv="aisle_id,aisle\n94,tea\n101,lamps\n",
        departments__csv="department_id,department\n7,beverages\n17,household\n",
    )
    (source / "order_products.prior").unlink()
    head = "order_id,product_id,add_to_cart_order,reordered\n"
    (source / "order_products__prior.csv").write_text(f"{head}11,1,1,0\n12,2,1,0\n21,1,1,0\n")
    (source / "order_products__train.csv").write_text(f"{head}13,1,1,1\n")
    events, items = converted("instacart", source, tmp_path / "out")
    sunday = 1483228800  # 2017-01-01
    day = 86_400
    assert events == [
        ("2", "1", "purchase", f"{sunday}"),
        ("1", "1", "purchase", f"{sunday + 2 * day + 8 * 3600}"),
        ("1", "2", "purchase", f"{sunday + 16 * day + 7 * 3600}"),
        ("1", "1", "purchase", f"{sunday + 17 * day + 10 * 3600}"),
    ]
    assert items["1"] == {"title": "Tea, green", "category": ["beverages", "tea"]}


def test_hm_keeps_the_zeros_of_article_numbers(tmp_path: Path) -> None:
    columns = (
        "article_id,prod_name,product_type_name,product_group_name,graphical_appearance_name,colour_group_name,"
        "index_group_name,section_name,detail_desc"
    )
    source = write(
        tmp_path / "hm",
        transactions_train__csv="t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-20,c1,0108775015,0.05,2\n",
        articles__csv=f"{columns}\n0108775015,Strap top,Vest top,Garment Upper body,Solid,Black,Ladieswear,Basics,"
        '"Top, jersey"\n',
    )
    events, items = converted("hm", source, tmp_path / "out")
    assert events == [("c1", "0108775015", "purchase", "1537401600")]
    assert items["0108775015"] == {
        "title": "Strap top",
        "description": "Top, jersey",
        "category": ["Ladieswear", "Garment Upper body", "Vest top"],
        "subclass": "Vest top",
        "tags": ["Black", "Solid", "Basics"],
    }


def test_otto_sessions_hold_their_events(tmp_path: Path) -> None:
    kinds = [(59625, 1661724000278, "clicks"), (59625, 1661724010000, "carts"), (7, 1661724020000, "orders")]
    session = {"session": 12899779, "events": [{"aid": a, "ts": t, "type": k} for a, t, k in kinds]}
    source = write(tmp_path / "otto", train__jsonl=lines(session, {"session": 5, "events": []}))
    events, items = converted("otto", source / "train.jsonl", tmp_path / "out")
    assert events == [
        ("12899779", "59625", "view", "1661724000.278"),
        ("12899779", "59625", "cart", "1661724010"),
        ("12899779", "7", "purchase", "1661724020"),
    ]
    assert set(items) == {"59625", "7"}


def ga4_rows() -> list[dict[str, Any]]:
    def event(name: str, us: int, items: list[dict[str, Any]], user: str | None = None) -> dict[str, Any]:
        session = {"key": "ga_session_id", "value": {"string_value": None, "int_value": 77}}
        page = {"key": "page_title", "value": {"string_value": "Shop", "int_value": None}}
        named = {"event_date": "20210131", "event_name": name, "event_timestamp": us, "user_id": user}
        return {
            **named,
            "event_params": [page, session],
            "user_pseudo_id": "p.1",
            "geo": {"country": "DE"},
            "items": items,
        }

    def item(identity: str, title: str, price: float | None) -> dict[str, Any]:
        levels = {"item_category": "Home", "item_category2": "Lamps"}
        return {"item_id": identity, "item_name": title, "item_brand": "(not set)", "price": price, **levels}

    return [
        event("page_view", 1612069510766593, []),
        event("view_item", 1612069510766594, [item("L1", "Old lamp", 8.0)]),
        event("purchase", 1612069520000000, [item("L1", "Lamp", None), item("L2", "Oil", 2.5)], "u-9"),
    ]


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_ga4_events_and_items_are_nested(tmp_path: Path, form: str) -> None:
    source = tmp_path / "ga4"
    source.mkdir()
    if form == "json":  # BigQuery writes its integers as strings
        rows = [{**row, "event_timestamp": str(row["event_timestamp"])} for row in ga4_rows()]
        (source / "events_20210131.json").write_bytes(lines(*rows))
    else:
        buffer = io.BytesIO()
        pl.DataFrame(ga4_rows()).write_parquet(buffer)
        (source / "events_20210131.parquet").write_bytes(buffer.getvalue())
    report = convert("ga4", source, tmp_path / "out")
    events, items = result(tmp_path / "out")
    assert events == [
        ("p.1", "L1", "view", "1612069510.766"),
        ("u-9", "L1", "purchase", "1612069520"),
        ("u-9", "L2", "purchase", "1612069520"),
    ]
    assert items["L1"] == {"title": "Lamp", "brand": None, "category": ["Home", "Lamps"], "price": 8.0}
    assert counts(report) == {"event_name is not asked for": 1, "items.item_id is empty (items)": 1}
    folder = read_folder(tmp_path / "out")
    assert folder.events.detail("session_id") == ["77"] * 3 and folder.events.detail("location") == ["DE"] * 3


def test_segment_orders_hold_products(tmp_path: Path) -> None:
    track = {"type": "track", "anonymousId": "a1"}
    tea = {"product_id": "T1", "name": "Tea", "category": "Food/Tea", "brand": "Leaf", "price": 4.5}
    source = write(
        tmp_path / "seg",
        track__json=lines(
            {**track, "event": "Product Viewed", "timestamp": "2024-01-15T10:23:45.500Z", "properties": tea},
            {**track, "event": "Signed Up", "timestamp": "2024-01-15T10:23:46Z", "properties": {}},
            {
                **track,
                "userId": "u1",
                "event": "Order Completed",
                "timestamp": "2024-01-15T12:00:00.000+01:00",
                "properties": {"order_id": "o1", "products": [tea, {"product_id": "T2", "name": "Cup", "price": 9}]},
            },
        ),
    )
    events, items = converted("segment", source, tmp_path / "out")
    assert events == [
        ("a1", "T1", "view", "1705314225.5"),
        ("u1", "T1", "purchase", "1705316400"),
        ("u1", "T2", "purchase", "1705316400"),
    ]
    assert items["T1"] == {"title": "Tea", "brand": "Leaf", "category": ["Food", "Tea"], "price": 4.5}
    assert items["T2"]["title"] == "Cup"


def test_snowplow_products_are_entities_of_an_event(tmp_path: Path) -> None:
    header = preset("snowplow").events[0].header
    product = "iglu:com.snowplowanalytics.snowplow.ecommerce/product/jsonschema/1-0-0"
    page = {"schema": "iglu:com.snowplowanalytics.snowplow/web_page/jsonschema/1-0-0", "data": {"id": "x"}}
    entity = {"id": "P125", "name": 'Base "T"', "brand": "Snow", "category": "Mens/Apparel", "price": 200}

    def row(kind: str, **cells: str) -> str:
        action = {"schema": "iglu:x/snowplow_ecommerce_action/jsonschema/1-0-2", "data": {"type": kind}}
        filled = {
            "event": "unstruct",
            "unstruct_event": orjson.dumps({"schema": "iglu:x", "data": action}).decode(),
            "contexts": orjson.dumps({"schema": "y", "data": [page, {"schema": product, "data": entity}]}).decode(),
            "domain_userid": "d-1",
            "collector_tstamp": "2024-01-15 10:23:45.500",
            "geo_country": "DE",
            **cells,
        }
        return "\t".join(filled.get(name, "") for name in header)

    text = "\n".join([row("product_view"), row("add_to_cart", user_id="u-1", derived_tstamp="2024-01-15 10:24:00"), ""])
    events, items = converted("snowplow", write(tmp_path / "sp", enriched__tsv=text), tmp_path / "out")
    assert len(header) == 131
    assert events == [("d-1", "P125", "view", "1705314225.5"), ("u-1", "P125", "cart", "1705314240")]
    assert items["P125"] == {"title": 'Base "T"', "brand": "Snow", "category": ["Mens", "Apparel"], "price": 200.0}


def test_shopify_rows_go_on_with_what_the_first_row_said(tmp_path: Path) -> None:
    source = write(
        tmp_path / "shop",
        orders_export_1__csv="Name,Email,Financial Status,Created at,Lineitem quantity,Lineitem name,"
        "Lineitem price,Lineitem sku\n"
        "#1001,a@example.org,paid,2025-10-07 09:50:26 +0200,1,Tea - 100 g,4.50,T-100\n"
        "#1001,,,,2,Cup,9.00,\n"
        "#1002,b@example.org,refunded,2025-10-08 09:50:26 +0200,1,Cup,9.00,\n",
        products_export_1__csv="Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Option1 Name,Option1 Value,"
        "Option2 Value,Option3 Value,Variant SKU,Variant Price,Image Src,Status\n"
        'tea,Tea,"<p>Green &amp; fresh</p>",Leaf,Food > Drinks > Tea,Green tea,"organic, new",Size,100 g,,,T-100,4.50,'
        "x,active\n"
        "tea,,,,,,,,250 g,,,'T-250,9.90,,\n"
        "tea,,,,,,,,,,,,,second image,\n",
    )
    report = convert("shopify", source, tmp_path / "out")
    events, items = result(tmp_path / "out")
    assert events == [
        ("a@example.org", "T-100", "purchase", "1759823426"),
        ("a@example.org", "Cup", "purchase", "1759823426"),
    ]
    assert counts(report) == {"Financial Status is not asked for": 1, "Variant Price is empty (items)": 1}
    assert items["T-100"] == {
        "title": "Tea 100 g",
        "description": "Green & fresh",
        "brand": "Leaf",
        "category": ["Food", "Drinks", "Tea"],
        "subclass": "Green tea",
        "tags": ["organic", "new"],
        "price": 4.5,
        "available": True,
    }
    assert items["T-250"]["title"] == "Tea 250 g" and items["T-250"]["price"] == 9.9


ORDERS = "Name,Email,Financial Status,Created at,Lineitem name,Lineitem price,Lineitem sku\n"
PRODUCTS = "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Option1 Value,Option2 Value,Variant SKU,"
STOCK = "Variant Inventory Tracker,Variant Inventory Qty,Variant Inventory Policy,Variant Price,Status\n"


def test_a_shopify_variant_without_sku_has_the_name_that_orders_know_and_a_user_one_spelling(tmp_path: Path) -> None:
    source = write(
        tmp_path / "shop",
        orders_export__csv=f"{ORDERS}#1,Kunde1@Example.com,paid,2025-10-07 09:50:26 +0200,Shirt - S / Red,9,\n"
        "#2,kunde1@example.com,paid,2025-10-08 09:50:26 +0200,Cup,4,\n",
        products_export__csv=f"{PRODUCTS}{STOCK}"
        "shirt,Shirt,,,,,,S,Red,,shopify,3,deny,9,active\n"
        "shirt,,,,,,,M,Red,,shopify,2,deny,9,\n"
        "shirt,,,,,,,,,,,,,,\n"
        "cup,Cup,,,,,,Default Title,,,,0,deny,4,active\n",
    )
    report = convert("shopify", source, tmp_path / "out")
    events, items = result(tmp_path / "out")
    assert [event[:2] for event in events] == [
        ("kunde1@example.com", "Shirt - S / Red"),
        ("kunde1@example.com", "Cup"),
    ]
    assert {item: found["title"] for item, found in items.items()} == {
        "Cup": "Cup", "Shirt - M / Red": "Shirt M Red", "Shirt - S / Red": "Shirt S Red",
    }  # fmt: skip
    assert not report.without_record.events


def test_a_shopify_variant_that_is_sold_out_and_not_sold_then_is_not_available(tmp_path: Path) -> None:
    stocks = {
        "none": "shopify,0,deny,9,active", "oversold": "shopify,-2,deny,9,active", "some": "shopify,1,deny,9,active",
        "goes-on": "shopify,0,continue,9,active", "untracked": ",0,deny,9,active", "draft": "shopify,5,deny,9,draft",
        "unknown": ",,,9,active",
    }  # fmt: skip
    rows = "".join(f"{sku},T,,,,,,a,,{sku},{stock}\n" for sku, stock in stocks.items())
    source = write(
        tmp_path / "shop",
        orders_export__csv=f"{ORDERS}#1,a@b.c,paid,2025-10-07 09:50:26 +0200,T,9,some\n",
        products_export__csv=f"{PRODUCTS}{STOCK}{rows}",
    )
    convert("shopify", source, tmp_path / "out")
    _, items = result(tmp_path / "out")
    available = {item for item, found in items.items() if found["available"]}
    assert available == {"some", "goes-on", "untracked", "unknown"}


def test_a_column_that_lacks_is_no_hint_for_one_that_is_read_already(tmp_path: Path) -> None:
    source = write(
        tmp_path / "shop",
        orders_export__csv=f"{ORDERS}#1,a@b.c,paid,2025-10-07 09:50:26 +0200,T,9,some\n",
        products_export__csv="Handle,Title,Body (HTML),Vendor,Product Category,Tags,Option1 Value,Variant SKU,"
        "Variant Price,Status,Types\n",
    )
    with pytest.raises(ValueError, match=r"has no column 'Type'; its header is .*; did you mean 'Types'\?$"):
        convert("shopify", source, tmp_path / "out")
    source = write(tmp_path / "shop", products_export__csv="Handle,Body (HTML),Vendor\n")
    with pytest.raises(
        ValueError, match=r"has no column 'Variant SKU', 'Title', [^;]*; its header is Handle, Body \(HTML\), Vendor$"
    ):
        convert("shopify", source, tmp_path / "out")
