"""`propose` guesses a map from the headers and first rows of a shop's tables, to be put right by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path

import orjson
import polars as pl

from deploy.tables.delimited import delimited, header_of
from deploy.tables.inputs import TableFile, files_of, kind_of_file, list_files
from deploy.tables.maps import TableMap
from deploy.tables.moments import as_us
from deploy.tables.nested import frames, json_records
from deploy.tables.report import LINE, Report
from streams.folder.reader import DEFAULT_KIND_OF

_ITEM_ID = (
    "itemid", "productid", "sku", "articleid", "artikelnummer", "artikelnr", "artikelid", "artikel", "article",
    "stockcode", "asin", "movieid", "item", "product", "produkt",
)  # fmt: skip
_EVENT_WORDS: Mapping[str, Sequence[str]] = {
    "user_id": ("userid", "customerid", "visitorid", "kundennummer", "kundennr", "kundenid", "kunde", "customer",
                "user", "client", "email", "sessionid", "session"),
    "item_id": _ITEM_ID,
    "kind": ("eventtype", "eventname", "event", "kind", "action", "aktion", "ereignis", "type", "typ"),
    "time": ("timestamp", "eventtime", "zeitpunkt", "zeitstempel", "createdat", "orderdate", "invoicedate",
             "bestelldatum", "datetime", "time", "date", "zeit", "datum", "ts"),
    "session_id": ("sessionid", "session", "usersession", "orderid", "invoiceno", "bestellnummer", "auftrag"),
    "value": ("price", "preis", "unitprice", "amount", "betrag", "value", "rating"),
}  # fmt: skip
_ITEM_WORDS: Mapping[str, Sequence[str]] = {
    "item_id": (*_ITEM_ID, "id", "nummer", "number"),
    "title": ("title", "name", "titel", "bezeichnung", "productname", "produktname", "artikelname", "itemname"),
    "description": ("description", "beschreibung", "langtext", "text", "body"),
    "brand": ("brand", "marke", "hersteller", "manufacturer", "vendor"),
    "category": ("category", "kategorie", "categories", "warengruppe", "genres", "producttype", "categorycode"),
    "price": ("price", "preis", "unitprice", "vk", "verkaufspreis"),
    "tags": ("tags", "labels", "schlagworte", "keywords"),
    "available": ("available", "verfuegbar", "verfügbar", "instock", "stock", "bestand", "lagerbestand"),
}  # fmt: skip
_KINDS: Mapping[str, Sequence[str]] = {
    "purchase": ("kauf", "bestell", "order", "buy", "bought", "purchase", "paid"),
    "cart": ("warenkorb", "korb", "cart", "basket"),
    "remove": ("entfern", "remove", "retour", "return"),
    "like": ("merk", "wish", "favor", "like"),
    "view": ("ansicht", "angeseh", "seen", "view", "click", "klick", "besuch"),
}
_FORMS = ("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y")
_COMMA = r"^-?[\d.]*\d,\d{1,2}$"
_SEPARATORS = (" > ", "|", " / ", ">", ";")
_ROWS = 1_000


def propose(events: Sequence[Path], items: Sequence[Path]) -> str:
    """A map in TOML, with what was guessed and what was not. Raises ValueError for files that cannot be read."""
    report = Report(skip_bad_lines=True)
    parts = ["# A guess from the headers; put it right, then: perseid convert table … --map THIS.toml --dry-run"]
    for part, paths, words in (("events", events, _EVENT_WORDS), ("items", items, _ITEM_WORDS)):
        if paths:
            parts.append("\n".join(_table(part, list_files(paths, report), words, report)))
    reference = (resources.files("deploy.tables") / "words.toml").read_text("utf-8")
    return "\n\n".join([*parts, reference])


def _table(part: str, given: Sequence[TableFile], words: Mapping[str, Sequence[str]], report: Report) -> Iterator[str]:
    files = files_of(TableMap(), given)
    if not files:
        raise ValueError(f"{part}: there is no CSV, JSON lines or Parquet file among {', '.join(map(str, given[:9]))}")
    rows = _sample(files[0], report)
    yield f"[{part}]"
    yield f"# {files[0].plain_name} has the columns {', '.join(rows.columns)}"
    if any(rows[name].str.contains(_COMMA).any() for name in rows.columns):
        yield 'decimal = ","'
    yield ""
    yield f"[{part}.fields]"
    taken: set[str] = set()
    for field, known in words.items():
        column = _guess(rows.columns, known, taken)
        if column is not None:
            taken.add(column)
            yield f"{field} = {_field(field, rows[column])}"
        elif field == "kind":
            yield 'kind = { constant = "purchase" }  # no column was found: what are these events?'
        elif field in ("user_id", "item_id", "time"):
            yield f'{field} = "?"  # no column was found'


def _sample(file: TableFile, report: Report) -> pl.DataFrame:
    kind = kind_of_file(file)
    if kind == "parquet":
        with file.open_bytes() as raw:
            frame = pl.read_parquet(raw.read()).head(_ROWS)
        return frame.select(pl.col(name).cast(pl.String) for name, of in frame.schema.items() if not of.is_nested())
    with file.open_text(None) as text:
        if kind == "json":
            records = list(islice(json_records(text, str(file), report, python=False), _ROWS))
            names = list(dict.fromkeys(name for _, record in records for name in record))
            found = pl.concat(frames(records, names, None)) if records else pl.DataFrame()
        else:
            header = header_of(text.peek(1 << 20).split(b"\n")[0])
            found = next(delimited(text, str(file), TableMap(), header, report), pl.DataFrame()).head(_ROWS)
    return found.drop(LINE, strict=False)


def _guess(columns: Sequence[str], known: Sequence[str], taken: set[str]) -> str | None:
    plain = {re.sub(r"[^a-zäöüß]", "", name.lower()): name for name in reversed(columns) if name not in taken}
    return next((plain[word] for word in known if word in plain), None)


def _field(field: str, column: pl.Series) -> str:
    name, said = _toml(column.name), column.drop_nulls()
    if field == "kind":
        words = said.unique(maintain_order=True).head(12).to_list()
        if all(word.lower() in DEFAULT_KIND_OF for word in words):
            return name
        meant = ", ".join(f"{_toml(word)} = {_toml(_kind(word))}" for word in words)
        return f'{{ column = {name}, values = {{ {meant} }} }}  # "" leaves such rows out'
    if field == "time" and said.len():
        form = next((form for form in _FORMS if as_us(said, zone="UTC", form=form).us.null_count() == 0), None)
        if form:
            return f'{{ column = {name}, format = "{form}" }}  # zone = "Europe/Berlin" for local times'
    if field in ("category", "tags"):
        separator = next((each for each in _SEPARATORS if said.str.contains(each, literal=True).any()), None)
        if separator:
            return f"{{ column = {name}, separator = {_toml(separator)} }}"
    return name


def _kind(word: str) -> str:
    known = DEFAULT_KIND_OF.get(word.lower())
    return known or next((kind for kind, parts in _KINDS.items() if any(p in word.lower() for p in parts)), "")


def _toml(text: str) -> str:
    return orjson.dumps(text).decode()
