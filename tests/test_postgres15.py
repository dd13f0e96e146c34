"""The service on PostgreSQL 15, the oldest that it promises to work with."""

from __future__ import annotations

import pytest
from debian import postgresql_15, run_suite

pytestmark = pytest.mark.system


def test_the_service_works_on_it() -> None:
    with postgresql_15() as url:
        run_suite(url, admin_url=url)
