"""Contracts that every implementation of a seam keeps: an implementation inherits the lot."""

from pathlib import Path
from typing import Any

from bigstep.tracking.tracker import DatasetRecord, Metric, Tracker


class TrackerContract:
    """What stages rely on, whatever the tracker."""

    def make(self, folder: Path) -> Tracker:
        raise NotImplementedError

    def values(self, tracker: Any) -> dict[str, Any]:
        """Return what the tracker holds, metrics as (key, value, step)."""
        raise NotImplementedError

    def test_what_is_told_is_kept(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        (tmp_path / "note.txt").write_text("x", encoding="utf-8")
        tracker.log_params({"train.learning_rate": 0.001, "data.source": "digits", "x": None})
        tracker.log_metrics([Metric("loss", 1.5, 0, 1000), Metric("loss", 0.5, 1, 2000)])
        tracker.set_tags({"tag": "value"})
        tracker.log_dataset(DatasetRecord("digits", "d" * 64, "digits", "training", {"num_train": 3}))
        tracker.log_file(tmp_path / "note.txt", "notes")
        tracker.log_file(tmp_path / "missing.txt")
        tracker.finish("FINISHED")
        held = self.values(tracker)
        assert held["params"] == {"train.learning_rate": "0.001", "data.source": "digits", "x": "None"}
        assert held["metrics"] == [("loss", 1.5, 0), ("loss", 0.5, 1)]
        assert held["tags"]["tag"] == "value"
        assert held["files"] == ["notes/note.txt"]
        assert held["datasets"] == ["digits"]
        assert held["status"] == "FINISHED"

    def test_values_that_are_not_finite_are_left_out(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        tracker.log_metrics([Metric("loss", value, 0, 1) for value in (float("nan"), float("inf"), -float("inf"), 1.0)])
        held = self.values(tracker)
        assert held["metrics"] == [("loss", 1.0, 0)]

    def test_a_changed_parameter_becomes_a_tag(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        tracker.log_params({"hardware.micro_batch_size": 32})
        tracker.log_params({"hardware.micro_batch_size": 16, "new": 1})
        held = self.values(tracker)
        assert held["params"] == {"hardware.micro_batch_size": "32", "new": "1"}
        assert held["tags"]["resumed.hardware.micro_batch_size"] == "16"

    def test_more_than_a_message_holds_is_kept_whole(self, tmp_path: Path) -> None:
        tracker = self.make(tmp_path)
        tracker.log_metrics([Metric("loss", float(step), step, step) for step in range(2500)])
        tracker.log_params({f"p{number}": number for number in range(250)})
        held = self.values(tracker)
        assert [step for _, _, step in held["metrics"]] == list(range(2500))
        assert len(held["params"]) == 250
