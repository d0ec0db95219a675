"""One database, two kinds: SQLite for a machine of one's own, PostgreSQL for many. Same tables, same statements.

    read()    a transaction that only looks
    write()   one that changes; on SQLite it takes the write lock at its beginning, so it can never fail halfway
    now()     the database's own clock in seconds: dispatchers on machines with other clocks agree on a lease

SQLite runs in WAL mode with synchronous=FULL: what was committed survives a power cut.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from broll.errors import BadOption, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
IDLE_MS = 10_000  # PostgreSQL ends a transaction that does nothing for so long
LOCK = 0x62726F6C6C  # "broll": the advisory lock under which PostgreSQL is migrated


class now(FunctionElement[float]):  # noqa: N801  reads as SQL does
    """The database's clock, seconds since 1970."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


def normalised(url: str) -> sa.URL:
    """A database URL with its driver; a plain path is an SQLite file."""
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError:
        raise BadOption("database is no URL: sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise BadOption(f"database is {kind}; possible are sqlite:///FILE and postgresql://USER@HOST/NAME")
    return parsed.set(drivername="sqlite" if kind == "sqlite" else "postgresql+psycopg")


class Database:
    """Connections and transactions; closed by `close`."""

    def __init__(self, url: str, *, pool: int = 20) -> None:
        self.url = normalised(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        ping = {} if self.is_sqlite else {"pool_pre_ping": True, "connect_args": {"connect_timeout": 5}}
        self.engine: Engine = sa.create_engine(self.url, pool_size=pool, max_overflow=pool, **ping)
        # SQLite lets one write at a time; waiting in line here is fairer than its polling
        self._line: Any = threading.Lock() if self.is_sqlite else nullcontext()
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare)
            sa.event.listen(self.engine, "begin", _begin)
        else:
            sa.event.listen(self.engine, "connect", _limit)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._line, self.engine.connect() as connection:
            connection.execution_options(write=True)
            with connection.begin():
                yield connection

    def upgrade(self) -> None:
        """Bring the tables to this version; several processes may try at once."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self.write() as connection:
                if not self.is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except DBAPIError as error:
            raise Unavailable(f"the database cannot be used: {first_line(error)}") from error
        except CommandError as error:
            raise BadOption(f"the database was made by a newer broll: {error}") from error

    def close(self) -> None:
        self.engine.dispose()


def first_line(error: DBAPIError) -> str:
    return (str(error.orig).splitlines() or [type(error.orig).__name__])[0]


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says, not where the driver thinks
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=15000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _limit(connection: Any, _record: Any) -> None:
    """A process that was frozen, or cut off, in the middle of a write would hold its rows for hours."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_MS}")
    connection.commit()


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
