"""A site on either database: one that a file of tests shares, or one of a test's own."""

import pytest

from tests import databases
from tests.faults.site import make_models, site


@pytest.fixture(scope="session")
def fault_models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("fault-models"))


@pytest.fixture(scope="module", params=databases.KINDS)
def shared(request, fault_models, tmp_path_factory):
    """A site for a whole file: its processes stay warm from test to test."""
    server = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    with site(request.param, server, fault_models, tmp_path_factory.mktemp("shared")) as made:
        yield made
        made.check_ledger()


@pytest.fixture(params=databases.KINDS)
def own(request, fault_models, tmp_path):
    """A site for one test."""
    server = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    with site(request.param, server, fault_models, tmp_path) as made:
        yield made
        made.check_ledger()
