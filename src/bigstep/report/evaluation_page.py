"""The page of an evaluation. Names from the data are escaped; no time or path is written."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from bigstep.console import format_score
from bigstep.report.house_style import PageSection, fact_list, fill, section, table, write_html

__all__ = ["MANY_CLASSES", "NO_STORY", "THIS_RUN", "PageStory", "PageTable", "write_page"]

MANY_CLASSES = 100  # with more, the page shows some only
WORST = 50
THIS_RUN = "<!-- of this run and machine -->"  # MLflow's copy of the page has more here


@dataclass(frozen=True)
class PageTable:
    """A row for each class, label or number; of more than :data:`MANY_CLASSES` the page shows the first of ``worst_first``."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    worst_first: Sequence[int]
    """Numbers of rows."""
    worst: str
    """What the first of them are, in words."""


@dataclass(frozen=True)
class PageStory:
    """What a page says beside the scores."""

    verdict: str = ""
    """The result in a sentence."""
    before: tuple[PageSection, ...] = ()
    """Sections before the pictures of the test part, such as curves."""
    after: tuple[PageSection, ...] = ()
    """Sections at the end, such as parameters."""


NO_STORY = PageStory()


def write_page(
    title: str,
    totals: dict[str, float],
    facts: dict[str, object],
    table_of_classes: PageTable,
    pictures: dict[str, str],
    path: Path,
    story: PageStory = NO_STORY,
) -> None:
    """Write one HTML page that needs no other file.

    Args:
        title: of the page.
        totals: scores by name.
        facts: about the model, by name.
        table_of_classes: scores of each class.
        pictures: by their captions; HTML, or the name of a PNG file in the same folder, which is embedded.
        path: of the page.
        story: of the training and its data.
    """
    shown = table_of_classes
    is_cut = len(shown.rows) > MANY_CLASSES
    left_out = f": the {WORST} {shown.worst} of {len(shown.rows):,}, all in classes.csv" if is_cut else ""
    rows = [shown.rows[number] for number in shown.worst_first[:WORST]] if is_cut else shown.rows
    parts = [
        fill('<p class="verdict">{{ text }}</p>', text=story.verdict) if story.verdict else Markup(),
        fact_list({name.replace("_", " "): format_score(value) for name, value in totals.items()}, large=True),
        table((), list(facts.items()), caption="Model", words=True),
        *(section(part) for part in story.before),
        *(section(PageSection(caption, _picture(picture, caption, path.parent))) for caption, picture in pictures.items()),
        section(PageSection(f"By {shown.header[0]}{left_out}", table(shown.header, rows))),
        *(section(part) for part in story.after),
        Markup(THIS_RUN),
    ]
    text = write_html("Report of a run", title, Markup("\n").join(parts))
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _picture(picture: str, caption: str, folder: Path) -> Markup:
    """Return HTML as it is, and a file as a data URI: MLflow's artifact view loads a page without the files beside it."""
    if isinstance(picture, Markup):
        return picture
    data = base64.b64encode((folder / picture).read_bytes()).decode("ascii")
    return Markup('<figure><img src="data:image/png;base64,{}" alt="{}"></figure>').format(data, caption)
