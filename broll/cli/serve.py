"""`broll serve`: the whole service in one command; and the admin's commands for keys and credits."""

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broll.cli.output import say

if TYPE_CHECKING:
    import socket

    from broll.serving import Running
    from broll.settings import Settings

Where, Runs = "Where", "Runs jobs"


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", rich_help_panel=Where)] = None,
    port: Annotated[
        int | None, typer.Option(help="Its port; 0 takes a free one.", rich_help_panel=Where)
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(help="How clients reach it.", rich_help_panel=Where)
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="sqlite:///FILE or postgresql://...", rich_help_panel=Where)
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="A folder, or s3://BUCKET/PREFIX.", rich_help_panel=Where)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for all of it.", rich_help_panel=Where)] = None,
    role: Annotated[str | None, typer.Option(help="all, api or dispatcher.", rich_help_panel=Runs)] = None,
    executor: Annotated[str | None, typer.Option(help="local or ray.", rich_help_panel=Runs)] = None,
    ray_address: Annotated[str | None, typer.Option(help="HOST:PORT of Ray.", rich_help_panel=Runs)] = None,
    devices: Annotated[int | None, typer.Option(help="How many jobs at once.", rich_help_panel=Runs)] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve the API and run its jobs on this machine."""
    given = {name: value for name, value in locals().items() if value is not None}
    from broll.serving import running

    settings = read_settings(given)
    with running(settings) as started:
        if settings.role == "dispatcher":
            wait_for_a_signal(started)
        else:
            run_http(settings, started)


def read_settings(given: dict[str, Any]) -> "Settings":
    """Flags over the environment over broll.toml."""
    from pydantic import ValidationError

    from broll.errors import BadOption
    from broll.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadOption(f"the setting {name} is {first.get('input')!r}: {first['msg']}") from None


def run_http(settings: "Settings", started: "Running") -> None:
    """Until SIGTERM or Ctrl-C; then connections are finished, jobs handed back."""
    import uvicorn

    from broll.server.app import build

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002  uvicorn calls it so
            started.service.draining.set()  # streams end, waits end, readyz says no
            # Not uvicorn's own: after its end it sends itself the signal again, and the drain would be cut off.
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    listening = listen(settings.host, settings.port)
    port = listening.getsockname()[1]
    config = uvicorn.Config(
        build(started.service), log_config=None, access_log=False, timeout_graceful_shutdown=int(settings.drain_s),
        server_header=False,
    )  # fmt: skip
    introduce(settings, started, port)
    Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> "socket.socket":
    """A socket whose answers go out at once.

    asyncio sees to that only on sockets that name their protocol; without it the kernel holds a body back until the
    client acknowledges the headers, which takes it 40 ms, on every request.
    """
    import socket

    from broll.errors import BadOption

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise BadOption(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts inherits it
    return listening


def introduce(settings: "Settings", started: "Running", port: int) -> None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104  only compared
    url = settings.public_url or f"http://{host}:{port}"
    say(f"serving on {url}; the API is described on {url}/docs")
    if started.admin_key is not None:
        say(f"the admin key, shown this once: {started.admin_key}")
        say(
            f'try: BROLL_SERVER={url} BROLL_KEY={started.admin_key} broll generate --server {url} "a lake at sunset"'
        )
    if not sys.stderr.isatty():
        sys.stderr.flush()


def wait_for_a_signal(started: "Running") -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    devices = started.dispatcher.slots if started.dispatcher else []
    say(f"dispatching to {len(devices)} device{'s' if len(devices) != 1 else ''}")
    stop.wait()


# --- the admin's commands, straight on the database ---------------------------------------------------------

keys_app = typer.Typer(help="API keys, straight in the service's database.", no_args_is_help=True)
credits_app = typer.Typer(
    help="Tenants and their credits, straight in the service's database.", no_args_is_help=True
)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Tenant = Annotated[str, typer.Option(help="The tenant's name or id; a new one is made.")]


def opened() -> Any:
    from broll.serving import open_database
    from broll.settings import Settings

    settings = Settings()
    return settings, open_database(settings)


def tenant_of(c: Any, name: str, settings: Any, *, make: bool = False) -> str:
    from broll.errors import NotFound
    from broll.jobs import keys
    from broll.serving import LOCAL

    found = keys.find_tenant(c, name)
    if found is None and make:
        if name == LOCAL:  # as the first start of the service makes it
            return keys.create_tenant(c, name, unmetered=True)
        found = keys.create_tenant(c, name, credits=settings.welcome_credits)
        say(f"made the tenant {name} with {settings.welcome_credits} credits")
    if found is None:
        known = ", ".join(row["name"] for row in keys.list_tenants(c)) or "none yet"
        raise NotFound(f"there is no tenant {name!r}; there are: {known}")
    return found


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for.")] = "key",
    tenant: Tenant = "local",
    scopes: Annotated[str, typer.Option(help="jobs, read, admin; comma-separated.")] = "jobs",
    expires_days: Annotated[float | None, typer.Option(help="Days until it ends.", min=0.001)] = None,
    cap: Annotated[int | None, typer.Option(help="Credits it may spend in all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown once."""
    from broll.jobs import keys
    from broll.serving import pepper

    settings, database = opened()
    with database.write() as c:
        owner = tenant_of(c, tenant, settings, make=True)
        wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
        life_s = None if expires_days is None else expires_days * 86_400
        key_id, key = keys.create_key(c, pepper(settings), owner, name, scopes=wanted, life_s=life_s, cap=cap)
    print(json.dumps({"id": key_id, "key": key}) if as_json else key)


@keys_app.command("list")
def list_keys(tenant: Tenant = "local", as_json: AsJson = False) -> None:
    """Show a tenant's keys, by their beginnings and ends."""
    from broll.jobs import keys

    settings, database = opened()
    with database.read() as c:
        rows = keys.list_keys(c, tenant_of(c, tenant, settings))
    if as_json:
        print(json.dumps({"keys": rows}))
        return
    for row in rows:
        over = row["expires_at"] is not None and row["expires_at"] < time.time()
        ends = "expired" if over else "expires" if row["expires_at"] else "good"
        state = "revoked" if row["revoked_at"] else ends
        print(f"{row['id']}  {row['hint']}  {row['scopes']:<16} {state:<8} {row['name']}")


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="As `broll keys list` shows it.")], tenant: Tenant = "local"
) -> None:
    """End a key, at once."""
    from broll.jobs import keys

    settings, database = opened()
    with database.write() as c:
        keys.revoke(c, tenant_of(c, tenant, settings), key_id)
    print(f"{key_id} is revoked")


@credits_app.command("show")
def show_credits(as_json: AsJson = False) -> None:
    """Show every tenant's balance."""
    from broll.jobs import keys

    _, database = opened()
    with database.read() as c:
        rows = keys.list_tenants(c)
    if as_json:
        print(json.dumps({"tenants": rows}))
        return
    for row in rows:
        have = "unmetered" if row["unmetered"] else f"{row['available']} available, {row['held']} held"
        print(f"{row['name']:<24} {row['id']}  {have}")


@credits_app.command("grant")
def grant_credits(
    tenant: Annotated[str, typer.Argument(help="The tenant's name or id.")],
    amount: Annotated[int, typer.Argument(help="Credits to give; negative takes.")],
    note: Annotated[str, typer.Option(help="Written into the ledger.")] = "",
) -> None:
    """Give a tenant credits."""
    from broll.jobs import credits

    settings, database = opened()
    with database.write() as c:
        owner = tenant_of(c, tenant, settings)
        credits.grant(c, owner, amount, note)
        print(f"{tenant} has {credits.balance(c, owner).available} credits")
