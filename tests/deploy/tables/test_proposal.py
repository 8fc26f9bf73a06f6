"""A map is proposed from what shops call their columns, in four languages, and reads the tables it was made from."""

from __future__ import annotations

import gzip
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
import pytest

from deploy.jobs.convert import convert_table
from deploy.tables.maps import EVENT_FIELDS, ITEM_FIELDS, read_map
from deploy.tables.moments import as_us, forms_of
from deploy.tables.proposal import plain, propose
from deploy.tables.report import Report
from streams.folder.reader import read_folder
from tests.support.left_out import counts


class Shop(NamedTuple):
    """Two tables, and what the map has to say of them."""

    events: str
    items: str
    event_fields: Mapping[str, Any]
    item_fields: Mapping[str, Any]
    decimal: str | None = None


BOUGHT = {"constant": "purchase"}

SHOPS = {
    "german": Shop(
        "KdNr;ArtNr;Aktion;Bestelldatum;Filiale;Bestell-Nr.;Einzelpreis\n"
        "K1;A-1;gekauft;31.12.2025 23:59:01;Mitte;B1;1.234,50\n"
        "K2;A-2;in den Einkaufswagen;30.12.2025 08:00:59;Nord;B2;9,90\n"
        "K2;A-2;aus Warenkorb entfernt;30.12.2025 08:01:59;Nord;B2;9,90\n",
        "Artikel-Nr.;Bezeichnung;Hersteller;Warengruppe;Unterkategorie;VK;Schlagwörter;Lieferbar;Langtext\n"
        "A-1;Teekanne;Müller;Haus > Küche;Kannen;1.234,50 €;neu, rot;sofort lieferbar;<p>Aus Glas</p>\n"
        "A-2;Tasse;;Haus;;9,90 €;;ausverkauft;\n",
        {
            "user_id": "KdNr",
            "item_id": "ArtNr",
            "kind": {
                "column": "Aktion",
                "values": {
                    "gekauft": "purchase",
                    "in den Einkaufswagen": "cart",
                    "aus Warenkorb entfernt": "remove",
                },
            },
            "time": {"column": "Bestelldatum", "format": "%d.%m.%Y %H:%M:%S"},
            "session_id": "Bestell-Nr.",
            "value": "Einzelpreis",
            "location": "Filiale",
        },
        {
            "item_id": "Artikel-Nr.",
            "title": "Bezeichnung",
            "description": {"column": "Langtext", "html": True},
            "brand": "Hersteller",
            "category": {"column": "Warengruppe", "separator": " > "},
            "subclass": "Unterkategorie",
            "price": "VK",
            "tags": {"column": "Schlagwörter", "separator": ","},
            "available": "Lieferbar",
        },
        ",",
    ),
    "german-till": Shop(
        "sep=;\nKundennummer;Artikelnummer;Datum;Uhrzeit;PLZ;Belegnummer\nK1;007;31.12.2025;23:59;10115;1\n"
        "K2;008;01.12.2025;08:00;20095;2\n",
        "Artikelnummer;Artikelbezeichnung;Kategorie;Verfuegbar;Preis\n007;Tee;Tee;ja;4.50\n008;Öl;Öl;nein;9.90\n",
        {
            "user_id": "Kundennummer",
            "item_id": "Artikelnummer",
            "kind": BOUGHT,
            "time": {"columns": ["Datum", "Uhrzeit"], "format": "%d.%m.%Y %H:%M"},
            "session_id": "Belegnummer",
            "location": "PLZ",
        },
        {
            "item_id": "Artikelnummer",
            "title": "Artikelbezeichnung",
            "category": "Kategorie",
            "price": "Preis",
            "available": "Verfuegbar",
        },
    ),
    "french": Shop(
        "N° commande;Numéro client;Référence;Date de commande;Magasin;Prix unitaire\n"
        "1;C1;T-1;31/12/2025 23:59:01;Lyon;4,50\n2;C2;T-2;13/12/2025 08:00:00;Paris;1 234,00\n",
        # WooCommerce, products
        "ID,Type,UGS,Nom,Publié,Description courte,Description,En stock ?,Stock,Tarif promo,Tarif régulier,Catégories,"
        'Étiquettes,Marques\n11,simple,T-1,Thé,1,,Vert,1,5,,"4,50","Maison > Thé, Cadeaux > Thé","bio, vert",Feuille\n'
        '12,simple,T-2,Huile,1,,,0,0,,"1234,00",Maison,,\n',
        {
            "user_id": "Numéro client",
            "item_id": "Référence",
            "kind": BOUGHT,
            "time": {"column": "Date de commande", "format": "%d/%m/%Y %H:%M:%S"},
            "session_id": "N° commande",
            "value": "Prix unitaire",
            "location": "Magasin",
        },
        {
            "item_id": "UGS",
            "title": "Nom",
            "description": "Description",
            "brand": "Marques",
            "category": {"column": "Catégories", "separator": " > ", "paths": ","},
            "price": "Tarif régulier",
            "tags": {"column": "Étiquettes", "separator": ","},
            "available": "En stock ?",
        },
        ",",
    ),
    "spanish": Shop(
        "Pedido,ID cliente,Código de producto,Tipo,Fecha del pedido,Tienda,Precio unitario\n"
        "1,C1,T-1,compra,2025-12-31 23:59:01,Sevilla,4.50\n2,C2,T-2,vista,2025-12-13 08:00:00,Cádiz,9.00\n",
        # WooCommerce, products
        "ID,Tipo,SKU,Nombre,Publicado,Descripción corta,Descripción,¿Existencias?,Inventario,Precio normal,Categorías,"
        "Etiquetas,Marcas\n11,simple,T-1,Té,1,,Verde,1,5,4.50,Casa,bio,Hoja\n12,simple,T-2,Aceite,1,,,0,0,9.00,Casa,,\n",
        {
            "user_id": "ID cliente",
            "item_id": "Código de producto",
            "kind": {"column": "Tipo", "values": {"compra": "purchase", "vista": "view"}},
            "time": {"column": "Fecha del pedido"},
            "session_id": "Pedido",
            "value": "Precio unitario",
            "location": "Tienda",
        },
        {
            "item_id": "SKU",
            "title": "Nombre",
            "description": "Descripción",
            "brand": "Marcas",
            "category": "Categorías",
            "price": "Precio normal",
            "tags": "Etiquetas",
            "available": "¿Existencias?",
        },
    ),
    "shopify": Shop(
        "Name,Email,Financial Status,Paid at,Currency,Subtotal,Total,Created at,Lineitem quantity,Lineitem name,"
        "Lineitem price,Lineitem sku,Billing Name,Billing Zip,Billing Country,Shipping Zip,Shipping Country,Notes,"
        "Location,Id,Vendor\n"
        "#1,a@x,paid,2025-10-07 09:50:27 +0200,EUR,4.50,4.50,2025-10-07 09:50:26 +0200,1,Tea,4.50,T-1,A,10115,DE,10115,"
        "DE,,,991,Leaf\n#2,b@x,paid,2025-10-08 09:50:27 +0200,EUR,9.00,9.00,2025-10-08 09:50:26 +0200,1,Oil,9.00,T-2,B,"
        "20095,DE,20095,DE,,,992,Leaf\n",
        "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,Option2 Value,"
        "Option3 Value,Variant SKU,Variant Inventory Qty,Variant Price,Status\n"
        'tea,Tea,"<p>Green</p>",Leaf,Food > Tea,Green tea,"organic, new",true,Size,L,,,T-1,3,4.50,active\n'
        "oil,Oil,,Leaf,Food > Oil,Oil,,true,Size,L,,,T-2,0,9.00,draft\n",
        {
            "user_id": "Email",
            "item_id": "Lineitem sku",
            "kind": BOUGHT,
            "time": "Created at",
            "value": "Lineitem price",
            "location": "Shipping Zip",
        },
        {
            "item_id": "Variant SKU",
            "title": "Title",
            "description": {"column": "Body (HTML)", "html": True},
            "brand": "Vendor",
            "category": {"column": "Product Category", "separator": " > "},
            "price": "Variant Price",
            "tags": {"column": "Tags", "separator": ","},
            "available": "Variant Inventory Qty",
        },
    ),
    "woocommerce": Shop(  # orders by line, with the ids of lines beside those of products
        "order_id,order_number,date,status,customer_id,billing_email,billing_postcode,item_id,item_product_id,item_name,"
        "item_sku,item_quantity,item_total\n"
        "71,71,2025-10-07 09:50:26,completed,5,a@x,10115,1,11,Tea,T-1,1,4.50\n"
        "72,72,2025-10-08 09:50:26,completed,6,b@x,20095,2,12,Oil,T-2,1,9.00\n",
        "ID,Type,SKU,Name,Published,Short description,Description,In stock?,Stock,Sale price,Regular price,Categories,"
        'Tags,Brands\n11,simple,T-1,Tea,1,,Green,1,5,,4.50,"Home > Tea, Home > Gifts","organic, new",Leaf\n'
        "12,simple,T-2,Oil,1,,,0,0,,9.00,Home,,\n",
        {
            "user_id": "customer_id",
            "item_id": "item_product_id",
            "kind": BOUGHT,
            "time": {"column": "date"},
            "session_id": "order_id",
            "location": "billing_postcode",
        },
        {
            "item_id": "ID",
            "title": "Name",
            "description": "Description",
            "brand": "Brands",
            "category": {"column": "Categories", "separator": " > ", "paths": ","},
            "price": "Regular price",
            "tags": {"column": "Tags", "separator": ","},
            "available": "In stock?",
        },
    ),
    "magento": Shop(  # item_id and product_id do not meet the products, which know their SKU alone
        "item_id,order_id,store_id,created_at,product_id,product_type,sku,name,qty_ordered,price,customer_id\n"
        "1,71,1,2025-10-07T09:50:26.123Z,501,simple,T-1,Tea,1,4.50,5\n2,72,2,2025-10-08T09:50:26.5Z,502,simple,T-2,Oil,1,"
        "9.00,6\n",
        "sku,store_view_code,attribute_set_code,product_type,categories,product_websites,name,description,"
        "short_description,price,visibility,qty,is_in_stock,manufacturer\n"
        'T-1,,Default,simple,"Default Category/Tea,Default Category/Gifts/Tea",base,Tea,Green,,4.50,Catalog,5,1,Leaf\n'
        "T-2,,Default,simple,Default Category/Oil,base,Oil,,,9.00,Catalog,0,0,\n",
        {
            "user_id": "customer_id",
            "item_id": "sku",
            "kind": BOUGHT,
            "time": "created_at",
            "session_id": "order_id",
            "value": "price",
            "location": "store_id",
        },
        {
            "item_id": "sku",
            "title": "name",
            "description": "description",
            "brand": "manufacturer",
            "category": {"column": "categories", "separator": "/", "paths": ","},
            "price": "price",
            "available": "is_in_stock",
        },
    ),
    "shopware-5": Shop(  # its orders have a column twice, its articles call their number ordernumber
        "orderId;number;customerId;orderStatusID;shopId;invoiceAmount;orderTime;comment;orderDetailId;articleId;number;"
        "articleNumber;price;quantity;articleName\n"
        "15;20001;2;1;1;998.56;2025-08-30 10:15:54;;42;197;20001;SW10196;836.134;1;Tee\n"
        "16;20002;3;1;1;9.50;2025-08-31 10:15:54;;43;198;20002;SW10003;9.5;1;Öl\n",
        "ordernumber;mainnumber;name;additionalText;supplier;tax;price_EK;active;instock;description;description_long;"
        "keywords;categories\nSW10196;SW10196;Tee;;Blatt;19.00;836.13;1;25;Grün;<p>Grüner Tee</p>;;14|21\n"
        "SW10003;SW10003;Öl;;Blatt;19.00;9.50;1;0;;;;14\n",
        {
            "user_id": "customerId",
            "item_id": "articleNumber",
            "kind": BOUGHT,
            "time": {"column": "orderTime"},
            "session_id": "orderId",
            "value": "price",
        },
        {
            "item_id": "ordernumber",
            "title": "name",
            "description": "description",
            "brand": "supplier",
            "category": {"column": "categories", "separator": "|"},
            "price": "price_EK",
            "available": "instock",
        },
    ),
    "shopware-6": Shop(
        "order_number;order_date_time;customer_number;product_number;label;unit_price;quantity\n"
        "10001;2025-10-07T09:50:26.123+02:00;10;SW1;Tee;4.5;1\n10002;2025-10-08T09:50:26.123+02:00;11;SW2;Öl;9;1\n",
        "id;parent_id;product_number;active;stock;name;description;price_net;price_gross;tax_id;manufacturer_id;"
        "manufacturer_name;categories\n"
        "0a;;SW1;1;5;Tee;Grün;3.78;4.5;t;m;Blatt;c1|c2\n0b;;SW2;0;0;Öl;;7.56;9;t;m;Blatt;c1\n",
        {
            "user_id": "customer_number",
            "item_id": "product_number",
            "kind": BOUGHT,
            "time": "order_date_time",
            "session_id": "order_number",
            "value": "unit_price",
        },
        {
            "item_id": "product_number",
            "title": "name",
            "description": "description",
            "brand": "manufacturer_name",
            "category": {"column": "categories", "separator": "|"},
            "price": "price_gross",
            "available": "stock",
        },
    ),
}


@pytest.mark.parametrize("name", SHOPS)
def test_the_columns_of_a_shop_are_found_and_its_tables_are_read(tmp_path: Path, name: str) -> None:
    shop = SHOPS[name]
    events, items = tmp_path / "events.csv", tmp_path / "items.csv"
    events.write_text(shop.events)
    items.write_text(shop.items)
    text = propose([events], [items])
    said = tomllib.loads(text)
    assert said["events"]["fields"] == shop.event_fields
    assert said["items"]["fields"] == shop.item_fields
    assert {part.get("decimal") for part in (said["events"], said["items"])} - {None} == {shop.decimal} - {None}
    report = Report()
    convert_table([events], [items], read_map(text, "proposed"), tmp_path / "out", report)
    folder = read_folder(tmp_path / "out")
    assert len(folder.events) == shop.events.removeprefix("sep=;\n").count("\n") - 1 and counts(report) == {}
    assert folder.left_out.to_dict() == {} and not [note for note in report.notes if "without a record" in note]
    assert all(item["title"] for item in folder.items)


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as found:
        return [orjson.loads(line) for line in found]


def test_what_a_german_map_reads(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(SHOPS["german"].events)
    (tmp_path / "items.csv").write_text(SHOPS["german"].items)
    text = propose([tmp_path / "events.csv"], [tmp_path / "items.csv"])
    convert_table([tmp_path / "events.csv"], [tmp_path / "items.csv"], read_map(text, "m"), tmp_path / "out", Report())
    tea, cup = lines(tmp_path / "out" / "items.jsonl.gz")
    assert tea == {
        "item_id": "A-1",
        "title": "Teekanne",
        "description": "Aus Glas",
        "brand": "Müller",
        "category": ["Haus", "Küche"],
        "subclass": "Kannen",
        "price": 1234.5,
        "tags": ["neu", "rot"],
        "available": True,
    }
    assert cup["available"] is False and cup["price"] == 9.9


def test_of_several_paths_in_a_cell_the_first_counts(tmp_path: Path) -> None:
    for name in ("woocommerce", "magento"):
        (tmp_path / "events.csv").write_text(SHOPS[name].events)
        (tmp_path / "items.csv").write_text(SHOPS[name].items)
        text = propose([tmp_path / "events.csv"], [tmp_path / "items.csv"])
        paths = ([tmp_path / "events.csv"], [tmp_path / "items.csv"])
        convert_table(*paths, read_map(text, "m"), tmp_path / name, Report())
        home = {"woocommerce": "Home", "magento": "Default Category"}[name]
        assert lines(tmp_path / name / "items.jsonl.gz")[0]["category"] == [home, "Tea"]


def test_a_known_export_is_named(tmp_path: Path) -> None:
    for name, shop in SHOPS.items():
        (tmp_path / "events.csv").write_text(shop.events)
        (tmp_path / "items.csv").write_text(shop.items)
        text = propose([tmp_path / "events.csv"], [tmp_path / "items.csv"])
        assert text.count("perseid convert shopify PATH OUT") == 2 * (name == "shopify")
        assert text.count("PATH OUT") == 2 * (name == "shopify")
    (tmp_path / "r.csv").write_text("userId,movieId,rating,timestamp\n1,2,4.0,1500000001\n")
    assert "perseid convert movielens PATH OUT" in propose([tmp_path / "r.csv"], [])


def test_words_of_a_kind_that_nobody_knows_are_no_kind(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,sku,type,date\nu,i,simple,2025-01-01\nv,i,bundle,2025-01-02\n")
    assert tomllib.loads(propose([tmp_path / "e.csv"], []))["events"]["fields"]["kind"] == BOUGHT


def test_words_of_stock_that_nobody_knows_are_listed_to_be_sorted(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,sku,date\nu,i,2025-01-01\n")
    (tmp_path / "i.csv").write_text("sku,Lieferbar\ni,ab Lager\nj,nie wieder\nk,nein\n")
    text = propose([tmp_path / "e.csv"], [tmp_path / "i.csv"])
    found = tomllib.loads(text)["items"]["fields"]["available"]
    assert found == {"column": "Lieferbar", "true": ["ab lager", "nie wieder"], "false": ["nein"]}


def test_objects_in_json_are_looked_into(tmp_path: Path) -> None:
    order = {"customer": {"id": 5, "name": "Ann"}, "product": {"sku": "T-1"}, "created_at": "2025-12-31T23:59:01Z"}
    (tmp_path / "e.jsonl").write_bytes(orjson.dumps(order))
    product = {"sku": "T-1", "name": "Tea", "categories": ["Home", "Tea"], "brand": {"name": "Leaf"}}
    (tmp_path / "i.jsonl").write_bytes(orjson.dumps(product))
    text = propose([tmp_path / "e.jsonl"], [tmp_path / "i.jsonl"])
    named = {"user_id": "customer.id", "item_id": "product.sku", "time": "created_at", "kind": BOUGHT}
    assert tomllib.loads(text)["events"]["fields"] == named
    convert_table([tmp_path / "e.jsonl"], [tmp_path / "i.jsonl"], read_map(text, "m"), tmp_path / "out", Report())
    item = {"item_id": "T-1", "title": "Tea", "brand": "Leaf", "category": ["Home", "Tea"]}
    assert lines(tmp_path / "out" / "items.jsonl.gz") == [item]


def test_a_table_with_a_header_alone_gets_a_map(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("Kunden-Nr.;Artikel-Nr.;Bestelldatum\n")
    fields = tomllib.loads(propose([tmp_path / "e.csv"], []))["events"]["fields"]
    named = {"user_id": "Kunden-Nr.", "item_id": "Artikel-Nr.", "time": "Bestelldatum"}
    assert fields == {**named, "kind": BOUGHT}


def test_what_is_not_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("x;y;z\n1;2;3\n")
    fields = tomllib.loads(propose([tmp_path / "e.csv"], []))["events"]["fields"]
    assert fields == {"user_id": "?", "item_id": "?", "time": "?", "kind": BOUGHT}


def test_names_of_columns_stand_in_the_table_once() -> None:
    known = tomllib.loads((resources.files("deploy.tables") / "columns.toml").read_text("utf-8"))
    assert set(known) == {"events", "items", "clock", "kinds"}
    assert set(known["events"]) <= set(EVENT_FIELDS) and set(known["items"]) <= set(ITEM_FIELDS)
    for table in known.values():
        for field, names in table.items():
            plainly = [plain(name) for name in names]
            assert all(plainly) and len(set(plainly)) == len(plainly), field


MOMENTS = [datetime(2025, 12, 31, 23, 59, 1, tzinfo=UTC), datetime(2025, 2, 13, 8, 0, 59, tzinfo=UTC)]


@pytest.mark.parametrize("day", ["%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%b %d, %Y"])
@pytest.mark.parametrize("clock", ["", " %H:%M:%S", " %H:%M", ", %H:%M", " %I:%M:%S %p", " %H:%M:%S %z", " %Hh%M"])
def test_forms_of_times_are_recognised(day: str, clock: str) -> None:
    cells = pl.Series([moment.strftime(day + clock) for moment in MOMENTS])
    assert forms_of(cells) == [day + clock]
    expected = [datetime.strptime(cell, day + clock).replace(tzinfo=UTC).timestamp() * 1e6 for cell in cells]
    assert as_us(cells, zone="UTC", form=day + clock).us.to_list() == expected


@pytest.mark.parametrize(
    "cell",
    [
        "2025-12-31 23:59:01",
        "2025-12-31T23:59:01",
        "2025-12-31T23:59:01Z",
        "2025-12-31T23:59:01.123456+01:00",
        "2025-12-31 23:59:01.5 -0500",
        "2025-12-31",
        "1767225541",
        "1767225541123",
    ],
)
def test_times_that_need_no_form(cell: str) -> None:
    assert forms_of(pl.Series([cell])) == [""]


def test_forms_that_mean_other_times_are_both_named(tmp_path: Path) -> None:
    assert forms_of(pl.Series(["01/02/2025 10:00", "03/04/2025 11:00"])) == ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"]
    (tmp_path / "e.csv").write_text("user_id,sku,date\nu,i,01/02/2025 10:00\n")
    assert '"%m/%d/%Y %H:%M" reads them too' in propose([tmp_path / "e.csv"], [])


def test_a_few_odd_cells_do_not_hide_the_form() -> None:
    cells = [f"{day:02}.12.2025 10:00:00" for day in range(1, 29)]
    assert forms_of(pl.Series([*cells, "gestern", None])) == ["%d.%m.%Y %H:%M:%S"]
    assert forms_of(pl.Series(["gestern", "heute", "01.12.2025"])) == []


@pytest.mark.parametrize("name", ["Angelegt am", "created_at", "date de création", "Fecha de alta"])
def test_the_day_that_an_item_was_added_is_when_it_was_first_seen(tmp_path: Path, name: str) -> None:
    (tmp_path / "e.csv").write_text("user_id,sku,date\nu,i,2025-01-01\n")
    (tmp_path / "i.csv").write_text(f"sku;title;{name}\ni;Tee;31.12.2024\nj;Uhr;01.12.2024\n")
    text = propose([tmp_path / "e.csv"], [tmp_path / "i.csv"])
    assert tomllib.loads(text)["items"]["fields"]["first_seen"] == {"column": name, "format": "%d.%m.%Y"}
