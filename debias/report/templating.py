"""Templates filled with figures: Markdown and HTML pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).resolve().parent / "templates"


def fill(name: str, facts: dict[str, Any]) -> str:
    """Fill a template; whatever goes into HTML is escaped, for it comes from data."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["block"] = lambda text: str(text).replace("```", "'''")
    return environment.get_template(name).render(**facts)


def _cell(value: Any) -> str:
    """A text that stays inside one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
