"""What rows hold, sealed and opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.model.errors import Unavailable
from roost.store.sealed import ALL, FUNCTION, LETTER, VERSION
from roost.store.sealing import Sealer


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    made = Sealer(tmp_path / "keys.sealing")
    made.open()
    return made


@pytest.mark.parametrize("text", ["", "{}", '{"KEY": "hidden é \\u0000"}', "redis://:hidden@host/0", "x" * 100_000])
def test_a_text_comes_back_and_is_not_seen(sealer: Sealer, text: str) -> None:
    sealed = [VERSION.seal(sealer, text, "a", "f", 1) for _ in range(2)]
    assert all(VERSION.unseal(sealer, one, "a", "f", 1) == text for one in sealed)
    assert sealed[0] != sealed[1]
    assert all("hidden" not in one and one.isascii() for one in sealed)


@pytest.mark.parametrize("text", ["{}", '{"sealed": "sealed:"}', "https://host/sealed:"])
def test_what_a_former_roost_left_in_plain_text_is_read(sealer: Sealer, text: str) -> None:
    assert FUNCTION.unseal(sealer, text, "a", "f") == LETTER.unseal(sealer, text, "e") == text


def test_a_text_opens_in_its_own_place_alone(sealer: Sealer) -> None:
    sealed = FUNCTION.seal(sealer, "{}", "a", "f")
    with pytest.raises(Unavailable, match=r"^Function a/g can't be opened with the key file .*keys\.sealing\.$"):
        FUNCTION.unseal(sealer, sealed, "a", "g")
    with pytest.raises(Unavailable, match="Function a/f, version 1, can't be opened"):
        VERSION.unseal(sealer, sealed, "a", "f", 1)
    with pytest.raises(Unavailable, match="can't be opened"):
        FUNCTION.unseal(sealer, f"{sealed[:-8]}AAAAAAA=", "a", "f")


def test_another_key_does_not_open_it(sealer: Sealer, tmp_path: Path) -> None:
    other = Sealer(tmp_path / "other.sealing")
    other.open()
    with pytest.raises(Unavailable, match=r"Function a/f can't be opened with the key file .*other\.sealing"):
        FUNCTION.unseal(other, FUNCTION.seal(sealer, "{}", "a", "f"), "a", "f")


def test_no_two_columns_are_sealed_for_one_place() -> None:
    rows = [column.row.format(*column.key) for column in ALL]
    assert len(set(rows)) == len(rows)
    assert all(name in row for column, row in zip(ALL, rows, strict=True) for name in column.key)
