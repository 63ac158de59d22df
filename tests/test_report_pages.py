"""Reports as a person sees them: at a desk, on a telephone, on paper."""

import re
from pathlib import Path

import numpy as np
import pytest

from bigstep.config.evaluate import EvaluateConfig
from bigstep.config.train import TrainConfig
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.planning.slicing_record import SlicingRecord
from bigstep.report.evaluation_page import PageStory
from bigstep.report.evaluation_results import write_predictions, write_results
from bigstep.report.machine_section import machine_section, write_copy
from bigstep.report.reports import report_of
from bigstep.report.run_sections import curve_section, parameter_section
from bigstep.report.slicing_section import slicing_section
from bigstep.tasks.classification import Classification
from browser import Layout, look, measure, print_page

pytestmark = pytest.mark.slow
LONG = "a_name_of_sixty_letters_without_a_place_where_it_may_be_broken"


@pytest.fixture(scope="module")
def page(digits: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's copy of a report with every section, and a class of a long name."""
    folder = tmp_path_factory.mktemp("page")
    names = (*digits.manifest.classes[:9], LONG)
    labels = np.asarray(digits.labels[digits.indices(Split.TEST)])
    shares = np.random.default_rng(0).dirichlet(np.ones(10), len(labels)).astype(np.float32)
    shares[np.arange(len(labels)), labels] += 0.5
    report = report_of(Classification(names), EvaluateConfig())
    write_predictions(folder, digits, [(shares / shares.sum(axis=1, keepdims=True), labels)], report)
    rows = [
        {"epoch": str(n), "train_loss": 1 / n, "val_loss": 2 / n, "val_accuracy": 1 - 1 / n, "learning_rate": 0.1}
        for n in range(1, 9)
    ]
    parameters = parameter_section((TrainConfig(seed=3), EvaluateConfig()))
    story = PageStory("Kept.", (curve_section(rows, 7, "accuracy"),), (parameters,))
    write_results(folder, digits, report, {"architecture": LONG}, story=story)
    record = SlicingRecord(64, 16, "contiguous", 2**25, ((1, 2**20), (64, 2**26), (16, 2**24)), {"contiguous": ((16, 50.0),)})
    steps = [(step, 1.0 + step % 7) for step in range(300)]
    metrics = {"gradient_norm": steps, "noise_scale": steps, "images_per_second": steps, "peak_memory_bytes": steps}
    sections = [slicing_section(record, metrics), machine_section(metrics, {"bigstep.advice": "Advice."}, 64)]
    write_copy(folder / "report.html", sections, folder / "copy.html")
    return folder / "copy.html"


def test_a_report_fits_a_desk_and_a_telephone_and_shows_every_picture(page: Path, tmp_path: Path) -> None:
    for layout in measure(page, tmp_path):
        assert layout == Layout(0, layout.pictures, 0, [])
        assert layout.pictures >= 11, "charts, and mistakes"


def test_what_is_too_wide_or_broken_is_noticed(page: Path, tmp_path: Path) -> None:
    bad = '<p style="width:900px">wide</p><img src="data:image/png;base64,AAAA"></main>'
    (tmp_path / "bad.html").write_text(page.read_text(encoding="utf-8").replace("</main>", bad), encoding="utf-8")
    wide, narrow = measure(tmp_path / "bad.html", tmp_path)
    assert (wide.wider, wide.broken, wide.outside) == (0, 1, [])
    assert narrow.wider > 300
    assert "P wide" in narrow.outside


def test_a_report_has_no_script_and_is_light_or_dark_as_the_reader_likes(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    for dark in (False, True):
        folder = tmp_path / str(dark)
        folder.mkdir()
        look(page.as_uri(), folder / "page.png", None, "800,1200", dark=dark)
    pictures = [(tmp_path / name / "page.png").read_bytes() for name in ("False", "True")]
    assert pictures[0] != pictures[1]


def test_on_paper_a_report_has_a_few_pages_and_what_is_folded_is_there(page: Path, tmp_path: Path) -> None:
    longer = re.sub(r"<details>.*?</details>", lambda part: 12 * part[0], page.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "longer.html").write_text(longer, encoding="utf-8")
    assert 4 <= print_page(page, tmp_path) <= 8
    assert print_page(tmp_path / "longer.html", tmp_path) >= print_page(page, tmp_path) + 3
