"""What `mlflow models serve` runs: the exported program beside this file, with the names of its outputs.

bigstep copies this file into every model that it logs, reads such a model without running it, and refuses other code.
"""

import json
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

FOLDER = Path(__file__).parent


class NamedAnswers(PythonModel):
    """Answers with a row for each sample and a column for each class, label or number."""

    def load_context(self, context: Any) -> None:  # noqa: ARG002 # of the base class
        """Load the program (data/model.pt2), which checks its inputs itself, and the names of its outputs."""
        self.program = mlflow.pytorch.load_model(str(FOLDER))
        self.names = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))

    def predict(self, model_input: np.ndarray) -> pd.DataFrame:  # type: ignore[override] # MLflow passes it by position
        """Map samples to probabilities or values."""
        with torch.no_grad():
            outputs = self.program(torch.tensor(model_input))
        return pd.DataFrame(outputs.numpy(), columns=self.names)


set_model(NamedAnswers())
