"""mkdocs hook: pages that are made of files outside docs/ (README, CHANGELOG, ...), and openapi.json of the service."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from app.main import create_app
from app.models.bank import BankSpec
from app.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {"SECURITY.md": "security-policy.md", "LICENSE": "LICENSE.txt"}


def as_page(text: str) -> str:
    """The text of a file in the root, its links as they are within docs/."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\(([A-Z]+(?:\.md)?)(?=[)#])", lambda link: f"]({PAGES.get(link[1], link[1])}", text)


def openapi() -> str:
    """The specification of a service with default settings; no model is loaded for it."""
    app = create_app(Settings(), BankSpec.from_options("unused", []), on_failure=lambda error: None)
    return json.dumps(app.openapi(), indent=1)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    contents = {page: as_page((ROOT / name).read_text(encoding="utf-8")) for name, page in PAGES.items()}
    for name, content in {**contents, "openapi.json": openapi()}.items():
        files.append(File.generated(config, name, content=content))
    return files
