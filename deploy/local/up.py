"""Runs a shop, a model, broker, Redis, the roles, traffic and a status line on one machine.

Assumes a state folder of its own; what takes time (history, text vectors, model) is kept there by content, so the next
start is quick. Servers that PERSEID_KAFKA or PERSEID_REDIS name are used instead of embedded ones. All processes die
with this one.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import orjson
import redis

from context.units import HOUR_MS
from deploy.disk_space import room_in
from deploy.local.news import News
from deploy.local.retraining import RetrainSchedule, ScheduledRetraining
from deploy.local.role_commands import api_ports, command, console_port, environment, roles
from deploy.local.status_line import StatusLine, describe, fetch, is_ok
from deploy.runtime.process import stoppable
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from deploy.servers.supervisor import StartError, Supervisor
from deploy.servers.topics import create_topics
from deploy.settings import PREFIX, Settings, load, public_address
from deploy.shop.shop import Shop, ShopConfig
from deploy.state_folder import FILE, STOPPING, note_phase, only_one, write_addresses
from deploy.texts.models import embedder_key
from deploy.traffic.plan import TrafficPlan
from encoder.model.document import read_document
from streams.folder.reader import EVENTS, read_folder

TRAIN_EPOCHS = 6  # about 35 s on two idle cores; so many steps whatever else runs, so the model is always the same
# Bounds for data folders of any size: useful answers have to come within four minutes.
EMBED_SECONDS = 45.0
TRAIN_SECONDS = 100.0
DATA_SPLIT = 0.8  # share of a data folder's events to train on; the rest is live traffic
HISTORY_DAYS = 60
_READY_S = 120.0  # torch alone takes ten seconds to load on a busy machine


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The command's options; `data` None means the generated shop, with `fashion` as a data folder is played."""

    state: Path
    data: Path | None = None
    speed: float | None = None
    traffic: bool = True
    api_port: int | None = None
    seed: int = 0
    workers: int = 1
    apis: int = 1  # on consecutive ports
    retrain: RetrainSchedule | None = None
    fashion: float = 0.0  # how much a brand in fashion draws everybody: taste drifts, so the shop is played as a folder
    days: int = HISTORY_DAYS  # of the generated shop's history
    console_port: int | None = None
    model: Path | None = None  # an artefact in place of one that is trained here


def up(options: UpOptions, environ: Mapping[str, str], line: StatusLine) -> None:
    """Runs everything until Ctrl-C or SIGTERM.

    Raises:
        ValueError: bad options, data or settings, or another `up` uses the state folder.
        StartError: a process did not start, or ended by itself later.
        OSError: the disk is full.
    """
    state = options.state.resolve()
    with room_in(state), only_one(state), ExitStack() as stack:
        stack.enter_context(stoppable())
        settings = load(environ, state=state, api_port=options.api_port)
        _check_embedded(settings, environ)
        ports = api_ports(settings, options.apis)
        settings = settings.model_copy(update={"console_port": console_port(settings, options.console_port)})
        plan = prepare(options, settings, environ, line)
        settings = settings.model_copy(update={"model": Path(plan.model)})
        note_phase(state, "starting its servers")
        settings, servers = _servers(settings, environ, plan, stack, line)
        write_addresses(state, settings)
        note_phase(state, "running")
        stack.callback((state / FILE).unlink, missing_ok=True)
        stack.callback(note_phase, state, STOPPING)
        supervisor = stack.enter_context(Supervisor())
        stack.callback(line.say, "Stopping …")  # before the roles are: they take seconds
        plan_file = plan.write(state / "traffic.json")
        for role in roles(settings, environ, plan_file, options.workers, ports):
            supervisor.start(role)
        retraining = None
        if options.retrain is not None:
            retraining = ScheduledRetraining(options.retrain, settings, environ)
            stack.callback(retraining.stop)
        _watch(supervisor, settings, servers, line, retraining)


def prepare(options: UpOptions, settings: Settings, environ: Mapping[str, str], line: StatusLine) -> TrafficPlan:
    """History and model, made or found in the state folder."""
    folder, split_ms = _history(options, settings.state, line)
    lives_on = options.data is None and not options.fashion  # at wall time; else a timeline is played
    # The generated shop is of one size: without a bound a busy machine takes longer and gets the same model.
    bound_s = None if options.data is None else TRAIN_SECONDS
    model = options.model and options.model.resolve()
    if model is None:
        model = _model(folder, 1.0 if lives_on else DATA_SPLIT, bound_s, settings, environ, line)
    document = read_document(model)
    if not lives_on:
        learned_ms = document["metadata"].get("before_ms")  # of a model of the whole folder: nothing is left to play
        split_ms = read_folder(folder).stop_ms if learned_ms is None else int(learned_ms)
    return TrafficPlan(
        kind="shop" if lives_on else "data",
        folder=str(folder),
        split_ms=split_ms,
        key=_key(_content(folder), document["version"], options.seed, settings.partitions, settings.kinds),
        model=str(model),
        texts=str(settings.state / "texts"),
        seed=options.seed,
        speed=options.speed,
        live=options.traffic,
    )


def _history(options: UpOptions, state: Path, line: StatusLine) -> tuple[Path, int]:
    """The data folder and, of a generated shop's, its end; that is made once, complete or not at all."""
    if options.data is not None:
        if not (options.data / EVENTS).is_file():
            raise ValueError(f"{options.data} is no data folder: it has no {EVENTS}; `perseid convert` makes one")
        return options.data.resolve(), 0
    shop = Shop(options.seed, ShopConfig(fashion=options.fashion))
    drift = [options.fashion] if options.fashion else []
    folder = state / f"shop-{options.seed}-{_key(repr(shop.config), options.days, *drift)}"
    marker = folder / "complete.json"
    if not marker.exists():
        note_phase(state, "generating a shop and its history")
        line.say("Generating the shop and its history …")
        end_ms = int(time.time() * 1000) // HOUR_MS * HOUR_MS
        shop.write_history(folder, end_ms, options.days)
        marker.write_bytes(orjson.dumps({"end_ms": end_ms}))
    return folder, int(orjson.loads(marker.read_bytes())["end_ms"])


def _model(
    folder: Path, split: float, bound_s: float | None, settings: Settings, environ: Mapping[str, str], line: StatusLine
) -> Path:
    """The artefact for this data; trained in a process of its own when there is none yet."""
    kinds = settings.kinds + embedder_key(settings)
    out = settings.state / "models" / _key(_content(folder), split, TRAIN_EPOCHS, bound_s, kinds)
    found = _artefact(out)
    if found is None:
        bounds = [] if bound_s is None else ["--embed-seconds", str(EMBED_SECONDS), "--max-seconds", str(bound_s)]
        most_s = EMBED_SECONDS + (bound_s or 0.0)
        takes = f": seconds for a small folder, about {most_s:.0f} s for a large one" if bound_s is not None else ""
        note_phase(settings.state, f"training a model on {folder.name}")
        line.say(f"Embedding texts and training a small model on {folder.name}{takes}; kept for the next start …")
        arguments = [
            *command("train", str(folder), "--out", str(out), "--split", str(split), "--epochs", str(TRAIN_EPOCHS)),
            *bounds,
            *("--texts", str(settings.state / "texts"), "--quiet"),
        ]
        done = subprocess.run(arguments, env=environment(settings, environ), check=False)
        found = _artefact(out)
        if done.returncode or found is None:
            raise StartError(f"training on {folder} failed with status {done.returncode}; see the lines above")
    return found


def _artefact(out: Path) -> Path | None:
    return min((path.parent for path in out.glob("m-*/model.json")), default=None)


def _check_embedded(settings: Settings, environ: Mapping[str, str]) -> None:
    """Refuses settings that the embedded servers cannot meet."""
    if settings.kafka_security != "plaintext" and f"{PREFIX}KAFKA" not in environ:
        raise ValueError(f"{PREFIX}KAFKA_SECURITY needs {PREFIX}KAFKA: the embedded broker speaks plaintext only")
    if settings.redis_cluster and f"{PREFIX}REDIS" not in environ:
        raise ValueError(f"{PREFIX}REDIS_CLUSTER needs {PREFIX}REDIS: the embedded server is no cluster")


def _servers(
    settings: Settings, environ: Mapping[str, str], plan: TrafficPlan, stack: ExitStack, line: StatusLine
) -> tuple[Settings, str]:
    """Starts what the environment does not name, and tells where everything is."""
    found: dict[str, str] = {}
    if f"{PREFIX}KAFKA" not in environ:
        counts = topic_partitions(settings.partitions)
        topics = {settings.kafka_config().topic(name): count for name, count in counts.items()}
        broker = Broker(topics, settings.state / "logs" / "broker.log")
        stack.callback(broker.stop)
        found["kafka"] = broker.start()
    elif created := create_topics(settings.kafka_config(), settings.partitions):
        line.say(f"Created topics {', '.join(created)}")
    if f"{PREFIX}REDIS" not in environ:
        # Kept by content: a user of one shop or model must not appear in another.
        server = RedisServer(settings.state / f"redis-{plan.key}", append_only=True)
        stack.callback(server.stop)
        found["redis"] = server.start()
        with redis.Redis.from_url(server.url) as client:
            client.delete(settings.keys().roles())  # processes of an earlier start
    settings = load(settings.environment() | {f"{PREFIX}{name.upper()}": value for name, value in found.items()})
    kafka, live = (public_address(address.get_secret_value()) for address in (settings.kafka, settings.redis))
    marks = {name: " (embedded)" if name in found else "" for name in ("kafka", "redis")}
    return settings, f"Kafka {kafka}{marks['kafka']}, live state {live}{marks['redis']}"


def _watch(
    supervisor: Supervisor,
    settings: Settings,
    servers: str,
    line: StatusLine,
    retraining: ScheduledRetraining | None,
) -> None:
    """Waits for the first answers, says where everything is, and shows the status until a signal or a role's end."""
    url = f"http://{settings.api_host}:{settings.api_port}"
    pages = f"http://{settings.console_host}:{settings.console_port}"
    supervisor.wait_ready("api", lambda: is_ok(f"{url}/healthz"), _READY_S)
    supervisor.wait_ready("console", lambda: is_ok(f"{pages}/healthz"), _READY_S)
    line.say(f"Console {pages}  (open it in a browser: it shows a click change a list)")
    line.say(f"API {url}  (documentation: {url}/docs)  logs: {settings.state / 'logs'}")
    line.say(servers)
    news = News(settings, url, line)
    while (crash := supervisor.crash()) is None:
        if retraining is not None:
            retraining.look()
        status = fetch(f"{url}/v1/status")
        if status is not None:
            news.tell(status)
        line.show(describe(status))
        time.sleep(1.0)
    line.end()
    raise StartError(str(crash))


def _content(folder: Path) -> str:
    """A hash of the data files of a folder."""
    digest = sha256()
    for path in sorted(folder.glob("*.gz")):
        digest.update(path.name.encode() + b"\0" + sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _key(*parts: object) -> str:
    return sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]
