"""The report of each task."""

from bigstep.config.evaluate import EvaluateConfig
from bigstep.report.classification_report import ClassificationReport
from bigstep.report.evaluation_report import EvaluationReport
from bigstep.report.multilabel_report import MultiLabelReport
from bigstep.report.regression_report import RegressionReport
from bigstep.tasks.regression import Regression
from bigstep.tasks.targets import MULTILABEL
from bigstep.tasks.task import Task

__all__ = ["report_of"]


def report_of(task: Task, evaluate: EvaluateConfig) -> EvaluationReport:
    """Return the report of a task, with nothing in it yet."""
    if isinstance(task, Regression):
        return RegressionReport(task, evaluate)
    return MultiLabelReport(task, evaluate) if task.name == MULTILABEL else ClassificationReport(task, evaluate)
