"""Stage ``prepare``: the source's images into a store that is read by memory mapping."""

import os
from pathlib import Path

from bigstep.atomic_files import whole_folder
from bigstep.config.data import short_source
from bigstep.console import console, follow
from bigstep.data.manifest import Manifest
from bigstep.data.repeated import count_repeated
from bigstep.data.sources import open_source
from bigstep.data.store import StorePaths
from bigstep.data.store_writer import prepare_store
from bigstep.stages.stage_runner import Stage, run_stage
from bigstep.tasks.targets import CLASSIFICATION, MULTILABEL, REGRESSION

__all__ = ["main", "prepare"]


OUTPUTS = {CLASSIFICATION: "classes", MULTILABEL: "labels", REGRESSION: "targets"}


def main(started: float | None = None) -> int:
    """Run the stage in the current folder; ``started`` as for :func:`run_stage`."""
    return run_stage("prepare", prepare, started)


def prepare(stage: Stage) -> None:
    """Write ``data/prepared``, whole or not at all.

    Raises:
        DataError: the source is not there, or its images break a rule.
    """
    params = stage.params
    hardware = params.hardware
    workers = hardware.num_workers if hardware.num_workers is not None else os.cpu_count() or 1
    source = open_source(params.data, stage.project.resolve(params.data.root), workers)
    with whole_folder(stage.paths.prepared) as folder:
        for _ in follow(prepare_store(source, params.data, folder), "samples", len(source)):
            pass
        manifest = Manifest.read(StorePaths(folder).manifest)
        stage.inputs.check()
    folder = Path(os.path.relpath(stage.paths.prepared, stage.project.root))  # a private copy's is further below
    _report(manifest, count_repeated(StorePaths(stage.paths.prepared).repeated), folder)


def _report(manifest: Manifest, num_repeated: int, folder: Path) -> None:
    counts = ", ".join(f"{count:,} {part}" for part, count in manifest.part_sizes.items())
    outputs = f"{len(manifest.classes)} {OUTPUTS[manifest.task]}"
    samples = "images of" if manifest.is_image else f"samples of {manifest.sample_dtype},"
    shape = " x ".join(map(str, manifest.stored_shape))
    console.print(f"{short_source(manifest.source)}: {counts} {samples} {shape}, {outputs}")
    if manifest.num_refused:
        console.print(
            f"{manifest.num_refused:,} file{'s' * (manifest.num_refused != 1)} skipped, listed in {folder / 'skipped.csv'}:"
        )
        for reason, count in manifest.refused.items():
            console.print(f"  {count:,} {reason}")
    if num_repeated:
        console.print(
            f"WARNING: {num_repeated:,} samples are in more than one of train, validation and test, which makes scores look "
            f"better; they are listed in {folder / 'repeated.csv'}"
        )
    if manifest.num_ignored:
        console.print(f"{manifest.num_ignored:,} files beside the class folders ignored")
