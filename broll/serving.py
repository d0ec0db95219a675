"""A running service, put together from settings: database, storage, API, dispatcher, executors, webhooks.

role all          API and dispatcher in one process; jobs run in children of it
role api          only the API; any number of them on one database
role dispatcher   only devices; any number of them
"""
# ruff: noqa: PLC0415  what a role does not need is not loaded

import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from broll import catalog, group, logs, wiring
from broll.errors import BadOption, BrollError, OutputError
from broll.jobs import keys
from broll.jobs.artifacts import Artifacts
from broll.jobs.database import Database
from broll.jobs.dispatcher import Dispatcher, Pace, Slot
from broll.jobs.executor import Executor
from broll.jobs.job import Policy
from broll.jobs.leases import Device, Leases
from broll.jobs.local import Child, LocalExecutor
from broll.jobs.store import Store
from broll.jobs.sweep import Sweeper
from broll.jobs.tables import api_keys
from broll.planning import Planner
from broll.server.deps import Service
from broll.server.guard import Guard
from broll.server.signing import Signer, derive
from broll.server.webhooks import WebhookSender
from broll.settings import Settings

CHILD = [sys.executable, "-m", "broll.child"]
LOCAL = "local"  # the tenant of a fresh installation; unmetered


@dataclass
class Running:
    """What was started; `admin_key` is there only when it was made just now."""

    service: Service
    dispatcher: Dispatcher | None
    admin_key: str | None

    def drain(self) -> None:
        """On the way out: nothing new is begun, running jobs are handed back."""
        self.service.draining.set()
        if self.dispatcher is not None:
            self.dispatcher.drain()


def policy(settings: Settings) -> Policy:
    names = ("lease_s", "max_attempts", "backoff_s", "warm_age_s", "cancel_charge", "retention_s")
    return Policy(**{name: getattr(settings, name) for name in names})


def open_database(settings: Settings) -> Database:
    """The database, with its tables brought up to date."""
    url = settings.database.get_secret_value() if settings.database else f"sqlite:///{settings.data}/broll.db"
    try:
        database = Database(url)
    except OSError as error:
        raise OutputError(f"cannot write {settings.data}: {error.strerror}") from error
    database.upgrade()
    return database


def root_secret(settings: Settings) -> bytes:
    """From the settings, or from a file that only its owner reads, made once."""
    if settings.secret is not None:
        text = settings.secret.get_secret_value()
        if len(text) < 16:
            raise BadOption("secret is too short: 16 characters at least, 32 random ones are better")
        return text.encode()
    path = settings.data / "secret"
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return path.read_text().strip().encode()


def pepper(settings: Settings) -> bytes:
    return derive(root_secret(settings), "api-keys")


def open_artifacts(settings: Settings) -> Artifacts:
    where = settings.artifacts or str(settings.data / "clips")
    options = None
    if settings.artifacts_endpoint:
        plain = str(settings.artifacts_endpoint.startswith("http://")).lower()
        options = {"endpoint": settings.artifacts_endpoint, "allow_http": plain}
    return Artifacts.open(where, options=options)


def first_key(database: Database, settings: Settings) -> str | None:
    """The key of an installation that has no admin's yet; or the one that the settings name, put in place."""
    try:
        return _first_key(database, settings)
    except IntegrityError:
        # another server that begins with this database was faster: what it made is there now
        return _first_key(database, settings)


def _first_key(database: Database, settings: Settings) -> str | None:
    own = pepper(settings)
    with database.write() as c:
        tenant = keys.find_tenant(c, LOCAL)
        if tenant is None:
            tenant = keys.create_tenant(c, LOCAL, unmetered=True)
        if settings.admin_key is not None:
            keys.adopt(c, own, tenant, settings.admin_key.get_secret_value())
            return None
        admins = sa.select(api_keys.c.id).where(api_keys.c.scopes.contains("admin"))
        if c.execute(admins.limit(1)).first() is not None:
            return None
        return keys.create_key(c, own, tenant, "admin", scopes=("jobs", "read", "admin"))[1]


# --- devices ----------------------------------------------------------------------------------------------


def slots(settings: Settings, models: tuple[str, ...]) -> list[Slot]:
    """A device and its executor for each place where a job can run."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    if settings.batch > 1 and (settings.executor == "ray" or settings.group > 1):
        raise BadOption(f"batch is {settings.batch}; it is for the executor local, and goes with no group")
    if settings.executor == "ray":
        return [
            Slot(Device(f"{name}-{i}", models, memory_mb), executor)
            for i, (executor, memory_mb) in enumerate(ray_executors(settings))
        ]
    found = []
    for i, (child, memory_mb) in enumerate(children(settings)):
        for lane in range(settings.batch):
            device = Device(f"{name}-{i}" + (f".{lane}" if lane else ""), models, memory_mb)
            found.append(Slot(device, LocalExecutor(child, lane), beside=lane > 0))
    return found


def children(settings: Settings) -> list[tuple[Child, int]]:
    """A child process per GPU, or per group of them; or on this machine's processor."""
    import torch

    gpus = torch.cuda.device_count()
    group.check_devices(settings)
    found: list[tuple[Child, int]] = []
    for i in range(settings.devices or gpus // settings.group or 1):
        env = dict(os.environ) | together(settings) | {"BROLL_THREADS": str(settings.threads)}
        env |= {"BROLL_MODELS": str(settings.models), "BROLL_DATA": str(settings.data)}
        memory_mb = catalog.free_main_memory() // 10**6
        if gpus:
            own = ((i * settings.group + j) % gpus for j in range(settings.group))
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
            memory_mb = torch.cuda.get_device_properties(i % gpus).total_memory // 10**6
        found.append((Child(CHILD, env, settings.batch), settings.memory_mb or memory_mb))
    return found


def together(settings: Settings) -> dict[str, str]:
    """What a renderer must know to make clips with others: it starts them itself."""
    group_of = {"BROLL_GROUP": str(settings.group), "BROLL_PARALLEL": settings.parallel}
    return group_of | {"BROLL_BATCH": str(settings.batch)}


def ray_executors(settings: Settings) -> list[tuple[Executor, int]]:
    """An actor per GPU of the cluster, or per group of them on one node; without GPUs, as many as `devices` says."""
    from broll.jobs import ray_cluster

    if settings.ray_address is None:
        raise BadOption("executor is ray; ray_address must name the cluster, HOST:PORT")
    ray_cluster.connect(settings.ray_address)
    places = ray_cluster.places("gpu", settings.group, 0)
    if not places and ray_cluster.places("gpu", 1, 0):
        raise BadOption(f"group is {settings.group}, and no node of the cluster has so many GPUs")
    gpus, memory_mb = settings.group if places else 0, settings.memory_mb or 10**6
    return [
        (ray_cluster.RayExecutor("broll.renderer:actor", gpus=gpus, env=together(settings)), memory_mb)
        for _ in range(settings.devices or places or 1)
    ]


# --- all of it --------------------------------------------------------------------------------------------


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """Start what the role names; on the way out, drain and close it."""
    logs.set_up(settings.log_level)
    with ExitStack() as stack:
        database = open_database(settings)
        stack.callback(database.close)
        made = first_key(database, settings)
        wake = threading.Event()
        service = build(settings, database, wake)
        dispatcher = None
        if settings.role != "api":
            dispatcher = build_dispatcher(settings, service)
        if settings.role != "dispatcher":
            # torch takes seconds to import: not in the first request
            threading.Thread(target=service.models.cards, daemon=True).start()
            service.sender.start()
            stack.callback(service.sender.stop)
        if dispatcher is not None:
            dispatcher.start()
        started = Running(service, dispatcher, made)
        stack.callback(started.drain)
        yield started


def build(settings: Settings, database: Database, wake: threading.Event) -> Service:
    root = root_secret(settings)
    olds = [derive(old.get_secret_value().encode(), "urls") for old in settings.old_secrets]
    guard = Guard(allow=tuple(settings.network_allow))
    return Service(
        settings=settings, database=database, store=Store(database, policy(settings)),
        artifacts=open_artifacts(settings), models=Planner(settings), guard=guard,
        signer=Signer([derive(root, "urls"), *olds]), pepper=pepper(settings),
        sender=WebhookSender(database, guard), wake=wake,
    )  # fmt: skip


def ended(service: Service, job_id: str) -> None:
    """An attempt is over: those who wait in this process need not wait for their next look."""
    service.sender.wake.set()
    service.watch.tell(job_id)


def build_dispatcher(settings: Settings, service: Service) -> Dispatcher:
    planner = Planner(settings)
    models = tuple(planner.names())
    if not models:
        raise BrollError("there is no model on this machine; broll models list says how to get one")
    group.check_words(settings)
    if settings.executor == "local":
        wiring.prepare_compiler(settings)
        for name in models:
            wiring.check_attention(settings.attention, planner.config(name))
    names = ("beat_s", "poll_s", "snapshot_s", "stage_timeout_s", "drain_s")
    pace = Pace(**{name: getattr(settings, name) for name in names})
    own = policy(settings)
    return Dispatcher(
        Leases(service.database, own), service.artifacts, slots(settings, models), pace,
        sweeper=Sweeper(service.database, service.artifacts, own), wake=service.wake,
        over=lambda job: ended(service, job.id),
    )  # fmt: skip
