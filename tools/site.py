"""Hooks of the documentation site.

README is its first page, the notebook is one of its pages, the decisions are listed, and links out of docs/ lead to the repository.

The pages are written for reading in a clone, where a link to a folder or a source file leads there. On the site those go to the
repository; a link to nothing stays as it is, and `make docs` fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#:\s]+)((?:#[^)]*)?\))")


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files: Any, config: Any) -> Any:
    """Add README as the home page, and the notebook."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    files.append(File("tutorial.ipynb", str(ROOT / "examples"), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The list of decisions, and links as they have to be on the site."""
    if page.file.src_uri == "decisions/README.md":
        pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
        markdown += "\n" + "".join(f"- [{_title(each)}]({each.name})\n" for each in pages)
    where = "" if page.file.src_uri == "index.md" else posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def rewritten(match: re.Match[str]) -> str:
        before, target, rest = match.groups()
        path = posixpath.normpath(posixpath.join(where, target))  # from the root of the clone
        source = {"README.md": "index.md", "examples/tutorial.ipynb": "tutorial.ipynb"}.get(path)
        source = path.removeprefix("docs/") if source is None and path.startswith("docs/") else source
        if source is not None and files.get_file_from_path(f"{source}/README.md") is not None:
            source = f"{source}/README.md"
        if source is not None and files.get_file_from_path(source) is not None:
            return f"{before}{posixpath.relpath(source, posixpath.dirname(page.file.src_uri) or '.')}{rest}"
        if (ROOT / path).exists():
            return f"{before}{config.repo_url}/blob/main/{path}{rest}"
        return match.group()

    return "".join(
        part if number % 2 else _LINK.sub(rewritten, part)
        for number, part in enumerate(re.split(r"(^```.*?^```$|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL))
    )


def _title(page: Path) -> str:
    return page.read_text().splitlines()[0].lstrip("# ")
