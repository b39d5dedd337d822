"""Charts that are plotted, but not rendered."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from pipeline.probing.report import charts

UNRENDERED = {
    "svg": b'<svg width="72pt" height="72pt" xmlns="http://www.w3.org/2000/svg">'
    b"<text>not rendered: the test lacks `rendered` or rendered_charts</text></svg>",
    "png": base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    ),
    "pdf": b"%PDF-1.4\n%%EOF\n",
}
"""What stands for each form of a chart."""
_forms_of = charts._forms_of


def unrendered() -> AbstractContextManager[None]:
    """Let charts be plotted for each medium, with all their data, but not rendered to files."""
    return rendered(())


@contextmanager
def rendered(kinds: Collection[str] = UNRENDERED.keys()) -> Iterator[None]:
    """Let charts be rendered to files of some kinds, as users get them."""

    def forms_of(figure, asked):
        wanted = [kind for kind in asked if kind in kinds]
        return {kind: UNRENDERED[kind] for kind in asked} | (
            _forms_of(figure, wanted) if wanted else {}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_forms_of", forms_of)
        yield
