"""The card: what it takes over from the original, and what a finished run puts there."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.stages.export.model_card import front_matter


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "---\nlicense: other\nlicense_name: flux-1-dev\ntags: [x]\n---\n# A",
            {"license": "other", "license_name": "flux-1-dev"},
        ),
        ("# no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("---\njust words\n---\n", {}),
        ("", {}),
    ],
)
def test_licence_and_language_are_inherited(text: str, found: dict[str, str], tmp_path: Path) -> None:
    assert front_matter(tmp_path) == {}
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path) == found
