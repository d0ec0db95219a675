"""The documents name what is there: links lead somewhere, and nothing a user can meet goes unmentioned."""

import re
from pathlib import Path

import pytest
import typer

from broll import errors
from broll.cli.app import app
from broll.settings import CLIENTS, Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "nano" / "README.md",
        *ROOT.glob("docs/**/*.md"),
    )
    if path.is_file()
)
CLI = (ROOT / "docs" / "cli.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
PLACES = {"models": "`~/.cache/broll/models` on Linux", "data": "`~/.local/share/broll` on Linux"}
CODE = re.compile(r"^```.*?^```|^(?: {4}|\t).*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
COMMANDS = typer.main.get_command(app).commands


def links(text: str) -> list[str]:
    """Targets inside the repository, and anchors."""
    found = LINK.findall(CODE.sub("", text))
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def anchors(text: str) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+\s+(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def family(kind: type[errors.BrollError]) -> set[type[errors.BrollError]]:
    return {kind}.union(*(family(child) for child in kind.__subclasses__()))


def leaves(commands: dict) -> list:
    """Whatever can be run: commands, and those groups that do something by themselves."""
    return [
        leaf
        for c in commands.values()
        for leaf in leaves(getattr(c, "commands", {})) + [c] * (not hasattr(c, "commands") or runs_alone(c))
    ]


def runs_alone(command) -> bool:
    return bool(getattr(command, "invoke_without_command", False))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in links(page.read_text()):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.resolve().is_relative_to(ROOT), f"{target} leaves the repository"
        assert path.exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text()), f"{target} names no heading"


def test_every_error_code_is_documented_with_its_exit_status():
    kinds = {kind for kind in family(errors.BrollError) if kind.__module__.startswith("broll.")}
    assert {"stopped", "out_of_memory"} < {kind.code for kind in kinds}
    for kind in kinds:
        rows = re.findall(rf"^\| *(\d+) *\| *`{kind.code}` *\|", CLI, re.MULTILINE)
        assert rows, f"{kind.code} is not in docs/cli.md"
        if kind.code != "stopped":  # its status depends on the signal
            assert str(kind.exit_status) in rows


def test_every_command_is_documented():
    for name, command in COMMANDS.items():
        children = [f"{name} {child}" for child in getattr(command, "commands", {})]
        for path in children + [name] * (not children or runs_alone(command)):
            assert f"## broll {path}\n" in CLI


def test_every_option_is_documented():
    section = CLI.split("## broll generate\n")[1].split("\n## ")[0]
    given = {option for p in COMMANDS["generate"].params for option in p.opts if option.startswith("-")}
    assert "--like" in given
    assert sorted(given - set(re.findall(r"`(-[-a-z0-9]+)`", section)) - {"-h", "--help"}) == []
    for command in leaves(COMMANDS):
        for option in (option for p in command.params for option in p.opts if option.startswith("--")):
            assert option in CLI, f"{option} of {command.name} is not in docs/cli.md"


def test_no_option_is_documented_that_is_not_there():
    rows = re.findall(r"^\| `(-[^|]+) \|", CLI, re.MULTILINE)
    named = {option for row in rows for option in re.findall(r"(-[-a-z]+)`", row)}
    assert named <= {option for command in leaves(COMMANDS) for p in command.params for option in p.opts}


def default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:  # a folder of the user's
        return PLACES[name]
    if field.default is None or field.default == []:
        return "none"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def test_every_setting_is_documented_with_its_variable_its_default_and_its_meaning():
    prefix = Settings.model_config["env_prefix"]
    rows = re.findall(rf"^\| `\w+` \| `{prefix}\w+` \|.*", SETTINGS, re.MULTILINE)
    assert rows == [
        f"| `{name}` | `{prefix}{name.upper()}` | {default(name)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def test_variables_that_only_the_client_reads_are_documented():
    for name in CLIENTS:
        assert f"`{name}`" in SETTINGS


def test_every_module_of_the_engine_has_a_page_or_is_named_on_one():
    pages = list((ROOT / "docs" / "engine").glob("*.md"))
    text = "\n".join(page.read_text() for page in pages)
    modules = {path.stem for path in (ROOT / "broll" / "engine").glob("*.py")} - {"__init__"}
    assert modules
    unnamed = [m for m in modules if m not in {page.stem for page in pages} and f"{m}.py`" not in text]
    assert sorted(unnamed) == []


def test_every_engine_page_is_about_a_module_and_is_reached_from_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs" / "engine").glob("*.md"):
        assert (ROOT / "broll" / "engine" / f"{page.stem}.py").is_file()
        assert f"(engine/{page.name})" in index


def test_tests_and_files_that_a_page_names_are_there():
    for page in PAGES:
        for name in re.findall(
            r"`((?:tests|broll|training|benchmarks)/[\w/]+\.(?:py|toml))`", page.read_text()
        ):
            assert (ROOT / name).is_file(), f"{page.relative_to(ROOT)} names {name}, which is not there"
