"""What makes lowbit a package: one version, its public names, its pages, and addresses that agree."""

from __future__ import annotations

import inspect
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lowbit
from tests import public_api

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_public_names_and_signatures_are_those_of_the_snapshot():
    recorded = (ROOT / "tests" / "public_api.txt").read_text().splitlines()
    now = public_api.lines()
    gone, new = sorted(set(recorded) - set(now)), sorted(set(now) - set(recorded))
    assert not gone and not new, (
        f"gone: {gone}; new: {new}. If that is meant: CHANGELOG.md, an alias for what is gone, and "
        "python -m tests.public_api > tests/public_api.txt"
    )


def test_every_public_name_says_what_it_is():
    lacking = []
    for name, value in public_api.names():
        if isinstance(value, type) or inspect.isfunction(value):
            lacking += [] if value.__doc__ else [name]
        if isinstance(value, type):
            bases = [base for base in value.__mro__[1:] if base.__module__.startswith(("lowbit", "torch"))]
            for attribute, member in public_api.public(value):
                function = getattr(member, "__func__", member)
                inherited = any(hasattr(base, attribute) for base in bases)  # `forward`, `execute`: as their base says
                if (isinstance(member, property) or inspect.isfunction(function)) and not function.__doc__:
                    lacking += [] if inherited else [f"{name}.{attribute}"]
    assert lacking == []


def test_documented_arguments_are_all_of_them():
    """Where a public function or class has a section of arguments, it has each of its arguments."""
    lacking = {}
    for name, value in public_api.names():
        if not callable(value) or "Args:\n" not in (value.__doc__ or ""):
            continue
        section = re.split(r"\n(?=\S)", inspect.getdoc(value).partition("Args:\n")[2])[0]
        documented = set(re.findall(r"^    (\w+):", section, flags=re.MULTILINE))
        missing = [each for each in inspect.signature(value).parameters if each not in documented]
        if missing:
            lacking[name] = missing
    assert lacking == {}


def test_every_public_name_is_in_the_reference():
    """Of the package itself; `make docs` fails where a page names what is not there."""
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    assert [name for name in lowbit.__all__ if not re.search(rf"^::: lowbit\.{name}$", pages, re.MULTILINE)] == []


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/lowbit/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", lowbit.__version__)
    assert "\nversion" not in (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] in ("Unreleased", lowbit.__version__) and len(released) >= 2


def test_addresses_agree():
    """The repository's address stands in the project's table, in README's rewritten links, and on the site."""
    home = PROJECT["project"]["urls"]["Repository"]
    substitutions = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]
    assert len(substitutions) == 2 and all(f"({home}/" in each["replacement"] for each in substitutions)
    assert f"repo_url: {home}\n" in (ROOT / "mkdocs.yml").read_text()


@pytest.fixture(scope="module")
def index_page() -> str:
    """README as a package index shows it."""
    text = (ROOT / "README.md").read_text()
    for each in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


def test_no_link_of_the_index_page_is_relative(index_page):
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", index_page) == []
    home = PROJECT["project"]["urls"]["Repository"]
    for path in re.findall(rf"\]\({home}/(?:blob|raw)/main/([^)#]*)[^)]*\)", index_page):
        assert (ROOT / path).exists(), path
    assert all("/raw/" in link for link in re.findall(r"!\[.*?\]\((.*?)\)", index_page))


def test_every_guide_is_in_the_sites_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = [
        page.relative_to(ROOT / "docs")
        for folder in (".", "reference")
        for page in (ROOT / "docs" / folder).glob("*.md")
    ]
    assert [str(page) for page in pages if f" {page}\n" not in navigation] == []


def test_the_core_needs_torch_alone():
    """What `make wheel` runs where nothing else is installed, here with everything else kept from being imported."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        alone = runpy.run_path(str(ROOT / "tools" / "wheel.py"), run_name="tool")["ALONE"]
    finally:
        sys.path.remove(str(ROOT / "tools"))
    extras = PROJECT["project"]["optional-dependencies"]
    absent = {re.split(r"[\[><=]", each)[0] for name in ("train", "export", "allocate") for each in extras[name]}
    hidden = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(absent | {"PIL"}))
    quick = "import lowbit\nassert 'torch._dynamo' not in sys.modules, 'lowbit imports the compiler'\n"
    done = subprocess.run([sys.executable, "-c", hidden + quick + alone], capture_output=True, text=True)
    assert done.returncode == 0 and "with torch alone: (2, 4)" in done.stdout, done.stderr


def test_types_are_published():
    assert (ROOT / "src" / "lowbit" / "py.typed").is_file() and "Typing :: Typed" in PROJECT["project"]["classifiers"]
