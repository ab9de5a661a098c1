"""What `make docs` changes on the way from the repository's pages to the site: mkdocs.yml names this file.

README.md becomes the front page. A link to a file that is not a page of the site becomes the file's path.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as the front page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to README.md at the front page, and write other files of the repository as their paths."""
    del config
    folder = posixpath.dirname(page.file.src_uri)

    def changed(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        place = posixpath.normpath(posixpath.join(folder, target))
        if files.get_file_from_path(place):
            return link[0]
        in_repository = posixpath.normpath(posixpath.join("docs", folder, target))
        if page.file.src_uri == "index.md":
            in_repository = target
        if in_repository == "README.md":
            return f"[{text}]({posixpath.relpath('index.md', folder or '.')}{anchor})"
        if (ROOT / in_repository).exists():
            return text if in_repository in text else f"{text} (`{in_repository}`)"
        return link[0]

    return LINK.sub(changed, markdown)
