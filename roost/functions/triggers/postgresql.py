"""The settings of triggers on a table of a PostgreSQL database."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator, model_validator

from roost.functions.triggers.settings import SourceSettings, wrong

Name = Annotated[str, Field(min_length=1, max_length=63)]


class Start(StrEnum):
    """Which of the rows that are there when the trigger is made count."""

    LATEST = "latest"  # none
    EARLIEST = "earliest"  # all


class TableSettings(SourceSettings):
    """`table` may have a schema before a dot. Names are taken as they are in the catalog, upper case and all.

    Without `statusColumn`, rows are told apart by `idColumn` and come in the order of `orderColumn` (the id where it is
    not given): numbers of a sequence, or the time of the insert. With it, rows whose status is `newStatus` are taken in
    that order, and get `takenStatus`.
    """

    URLS: ClassVar[tuple[str, ...]] = ("dsn",)

    dsn: Annotated[str, Field(min_length=1, max_length=2048)]
    table: Annotated[str, Field(min_length=1, max_length=127)]
    id_column: Name
    order_column: Name | None = None
    status_column: Name | None = None
    new_status: Annotated[str, Field(max_length=256)] | None = None
    taken_status: Annotated[str, Field(max_length=256)] = "enqueued"
    channel: Name | None = None
    batch_size: Annotated[int, Field(ge=1, le=1000)] = 1
    start: Annotated[Start, Field(strict=False)] = Start.LATEST
    poll_seconds: Annotated[float, Field(ge=0.1, le=3600, strict=False)] = 5.0

    @field_validator("dsn")
    @classmethod
    def _check_dsn(cls, dsn: str) -> str:
        try:
            parts = urlsplit(dsn)
            _ = parts.port
        except ValueError as error:
            raise wrong(f"it is not a URL: {error}") from error
        if parts.scheme not in {"postgresql", "postgres"}:
            raise wrong("it begins with postgresql://")
        if "password" in parse_qs(parts.query):
            raise wrong("the password belongs before the host, as in postgresql://user:password@host/database")
        return dsn

    @field_validator("table")
    @classmethod
    def _check_table(cls, table: str) -> str:
        if not all(table.split(".")) or table.count(".") > 1:
            raise wrong("it is like orders, or public.orders")
        return table

    @model_validator(mode="after")
    def _check_status(self) -> Self:
        if self.new_status == self.taken_status:
            raise wrong("takenStatus: it is another one than newStatus")
        return self

    @property
    def order(self) -> str:
        return self.order_column or self.id_column
