"""Settings: what is read, and what a wrong one is told."""

from pathlib import Path
from typing import Any

import pytest

from roost.config import Config, ConfigError, load


def read(tmp_path: Path, toml: str, **overrides: Any) -> Config:
    file = tmp_path / "roost.toml"
    file.write_text(toml)
    return load(file, overrides, environment={"XDG_DATA_HOME": "/share", "OPENAI_MODEL": "m"})


def test_the_command_line_goes_before_the_file_and_the_file_before_the_environment(tmp_path: Path) -> None:
    config = read(tmp_path, 'port = 9000\nstop_grace = 2\nmodel.base_url = "http://m"\n', port=9100)
    assert (config.port, config.stop_grace, config.data_dir) == (9100, 2.0, Path("/share/roost"))
    assert (config.model.base_url, config.model.name) == ("http://m", "m")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('sandbox_taint.mode = "on"', "'sandbox_taint.mode' is one of off, audit, block"),
        (
            'sandbox_public_traffic = true\nsandbox_taint.mode = "block"',
            "can't be block where 'sandbox_public_traffic'",
        ),
        ('sandbox_taint.start = ["secret"]', "'sandbox_taint.start' lists labels: private, untrusted"),
        ("sandbox_taint.trusted = [3]", "'sandbox_taint.trusted' in .* must be a list of strings"),
        ("sandbox_taint.trust = []", "Unknown setting 'sandbox_taint.trust'"),
        ("sandbox_model_calls = -1", "'sandbox_model_calls' is a number from 0"),
        ('port = "x"', "'port' in .*roost.toml must be a whole number, not 'x'"),
        ("port = 1.5", "must be a whole number, not 1.5"),
        ("port = true", "must be a whole number, not True"),
        ('start_timeout = "3"', "must be a number, not '3'"),
        ("stop_grace = true", "must be a number, not True"),
        ("region = 3", "must be a string, not 3"),
        ("data_dir = 3", r"must be a path \(a string\), not 3"),
        ("keys = 3", "must be a table, not 3"),
        ('model = "gpt"', "must be a table, not 'gpt'"),
        ("model.name = 3", "takes the strings base_url, api_key and name"),
        ('keys = { a = "" }', "maps access key IDs to secrets"),
        ("prot = 1", "Unknown setting 'prot' .* known are: account"),
        ("port = 70000", "between 0 and 65535"),
        ("stop_grace = nan", "more than 0 and at most 3600 seconds"),
        ("max_instances = 0", "must be at least 1"),
        ('account = "a b"', "1 to 64 letters"),
        ('host = "0.0.0.0"', "without keys: anyone could run code here"),
        ("port =", "is not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named_in_words(tmp_path: Path, toml: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, toml)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Can't read the configuration file {tmp_path}: Is a directory"):
        load(tmp_path, environment={})


def test_the_database_comes_from_the_environment_the_file_or_the_command_line_and_is_never_shown(
    tmp_path: Path,
) -> None:
    url = "postgresql://roost:secret@db/roost"
    file = tmp_path / "roost.toml"
    file.write_text('database = "postgres://db/file"\n')
    assert load(environment={"ROOST_DATABASE": url}).database == url
    assert load(file, environment={"ROOST_DATABASE": url}).database == "postgres://db/file"
    assert load(file, {"database": url}, environment={}).database == url
    assert "secret" not in repr(load(environment={"ROOST_DATABASE": url}))
    with pytest.raises(ConfigError, match="'database' is a PostgreSQL URL") as caught:
        load(environment={"ROOST_DATABASE": "mysql://roost:secret@db/roost"})
    assert "secret" not in str(caught.value)
