"""A connection to PostgreSQL that does not wait for ever."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from typing_extensions import override

T = TypeVar("T")


class ImpatientConnection(psycopg.Connection[Any]):
    """Gives up a statement that is not answered: the server's own deadlines need a server, and a way to it."""

    answer_seconds = 10.0
    """How long a statement may take that waits for no other writer."""

    @override
    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                raise
            self.close()  # what it would answer next is an answer to this
            raise psycopg.OperationalError(f"no answer within {self.answer_seconds:g} seconds") from error
