"""The service on PostgreSQL 15, the oldest that it promises to work with, behind PgBouncer in transaction mode: a
client has another server process for every transaction.

Both at once, since the tests that use the database run again for them; all others use the embedded server.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from debian import Pooler, pgbouncer, postgresql_15, run_suite

pytestmark = pytest.mark.system


@pytest.fixture
def direct_url() -> Iterator[str]:
    with postgresql_15() as url:
        yield url


@pytest.fixture
def pooler(direct_url: str) -> Iterator[Pooler]:
    with pgbouncer(direct_url) as running:
        yield running


def test_the_pooler_is_in_transaction_mode(pooler: Pooler) -> None:
    with pooler.connect() as one, pooler.connect() as other:
        one.execute("PREPARE kept AS SELECT pg_backend_pid()")
        (before,) = one.execute("EXECUTE kept").fetchone() or ()
        with other.transaction():
            assert other.execute("EXECUTE kept").fetchone() == (before,)
            assert one.execute("SELECT pg_backend_pid()").fetchone() != (before,)
            with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                one.execute("EXECUTE kept")


def test_the_service_works_there(direct_url: str, pooler: Pooler) -> None:
    with pooler.connect() as connection:
        assert connection.info.server_version // 10_000 == 15
    run_suite(pooler.url, admin_url=direct_url)
    through = {name: count for name, count in pooler.transactions().items() if name.startswith("test_")}
    assert through
    # A test may break its only connection off before a transaction has ended.
    assert list(through.values()).count(0) <= 2
