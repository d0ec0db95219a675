"""`broll keys` and `broll credits`, on a database of their own."""

from broll.jobs import keys
from broll.serving import first_key, open_database
from broll.settings import Settings


def test_a_key_made_before_the_first_start_leaves_the_installation_as_it_would_be(broll):
    made = broll("keys", "create", "phone", "--json")
    assert made.status == 0, made.err
    (tenant,) = broll("credits", "show", "--json").json["tenants"]
    assert (tenant["name"], tenant["unmetered"]) == ("local", True)
    settings = Settings()
    database = open_database(settings)
    admin = first_key(database, settings)
    assert admin and admin != made.json["key"]
    assert first_key(database, settings) is None  # this once


def test_a_key_that_has_ended_is_listed_so(broll):
    broll("keys", "create", "short", "--expires-days", "0.001")
    broll("keys", "create", "long", "--expires-days", "3")
    rows = broll("keys", "list").out
    assert [row.split()[3] for row in rows.splitlines()] == ["expires", "expires"]


def test_another_tenant_has_the_welcome_credits(broll):
    assert "made the tenant acme with 100 credits" in broll("keys", "create", "x", "--tenant", "acme").err


def test_of_two_servers_that_begin_with_one_database_one_makes_the_first_key(tmp_path, monkeypatch):
    settings = Settings(data=tmp_path)
    database = open_database(settings)
    assert first_key(database, settings)
    look, blind = keys.find_tenant, [None, None]  # what the slower one saw before the faster one was done
    monkeypatch.setattr(keys, "find_tenant", lambda c, name: blind.pop() if blind else look(c, name))
    assert first_key(database, settings) is None and not blind
