"""Which cases of a test are for `make test-all` only: those of the same kind as others."""

from typing import Any

import pytest


def long(*values: Any) -> list[Any]:
    """These cases, each a value or a tuple of them, with `make test-all` only."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]
