"""Templates for Markdown and HTML pages."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from debias.report.grid import markdown_text
from debias.wording import counted, moment

TEMPLATES = Path(__file__).resolve().parent / "templates"


def dollars(amount: float | None) -> str:
    """An amount of money in words; None means that a price is unknown."""
    if amount is None:
        return "dollars unknown (no price in the config)"
    return f"{amount:.2f} dollars" if amount >= 1 or amount == 0 else f"{amount:.4f} dollars"


def fill(name: str, facts: dict[str, Any]) -> str:
    """Fill a template. HTML templates escape every value, because values come from data."""
    return _environment().get_template(name).render(**facts)


@cache
def _environment() -> jinja2.Environment:
    """The same for all pages, so that a process compiles each template once."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = markdown_text
    environment.filters["dollars"] = dollars
    environment.filters["counted"] = counted
    environment.filters["moment"] = moment
    environment.filters["block"] = lambda text: str(text).replace("```", "'''")  # text inside a fenced block
    return environment
