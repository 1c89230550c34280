"""Every command, option and key of roost.toml is in the reference, which names no other key; links lead somewhere."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from roost.sdk import cli, manifest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
TOP = get_command(cli.build()).commands  # type: ignore[attr-defined]
#: Those of a group have the group's name before their own.
COMMANDS = {name: command for name, command in TOP.items() if not hasattr(command, "commands")} | {
    f"{group} {name}": command
    for group, commands in TOP.items()
    for name, command in getattr(commands, "commands", {}).items()
}

#: Groups of commands, and the headings of their sections.
GROUPS = {
    "sandbox": "Sandboxes",
    "triggers": "Triggers",
    "objects": "Objects",
    "keys": "Keys",
    "secrets": "Secrets",
    "labels": "Labels",
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name: str) -> None:
    # The same option may mean another thing in the section of a group.
    page = (REFERENCE / "cli.md").read_text()
    group, _, last = name.rpartition(" ")
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    own = {known: next(one for one in sections if one.startswith(f"## {title}\n")) for known, title in GROUPS.items()}
    text = own[group] if group else "".join(one for one in sections if one not in own.values())
    assert re.search(rf"^\| `roost {name}[` ]", text, re.MULTILINE)
    rows = [row for row in text.splitlines() if row.startswith("| `-")]
    for parameter in COMMANDS[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("-") and option != "--help":
                described = [row.split("|") for row in rows if re.search(rf"`{option}[` ]", row)]
                assert any(last in cells[2].replace(" ", "").split(",") for cells in described), f"{name} {option}"


@pytest.mark.parametrize("table", sorted(manifest.KEYS))
def test_every_key_is_documented_and_no_other(table: str) -> None:
    sections = re.split(r"^## ", (REFERENCE / "roost-toml.md").read_text(), flags=re.MULTILINE)
    heading = table or "Top level"
    section = next(one for one in sections if heading in one.splitlines()[0])
    assert set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)) == set(manifest.KEYS[table])


def test_affinities_are_documented() -> None:
    text = (REFERENCE / "roost-toml.md").read_text()
    assert all(f'`"{name}"`' in text for name in manifest.AFFINITIES)


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*/*.md")]), ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
