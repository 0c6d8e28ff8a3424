"""How a notebook shows a result that is told in one line."""

import html


def paragraph(result: object) -> str:
    """The `repr` of a result as HTML; a class takes it as its `_repr_html_`."""
    return f"<p>{html.escape(repr(result).removeprefix('<').removesuffix('>'))}</p>"
