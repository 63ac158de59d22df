"""Why a training must stay in one process."""

from bigstep.config.hardware import HardwareConfig
from bigstep.config.model import ModelConfig
from bigstep.config.train import TrainConfig

__all__ = ["reason_for_one_process"]


def reason_for_one_process(model: ModelConfig, train: TrainConfig, hardware: HardwareConfig) -> str | None:
    """Return a line on the first key with which the number of processes would change the result, or None."""
    if model.norm == "batch" and model.batch_norm_statistics == "plain":
        return (
            "model.batch_norm_statistics: expected corrected, recalibrated or frozen with several processes, got plain, with "
            "which each process would keep statistics of its own; write corrected, or hardware.processes 1"
        )
    if not train.keyed_randomness:
        return (
            "train.keyed_randomness: expected true with several processes, which would draw the same numbers for different "
            "samples, got false; write true, or hardware.processes 1"
        )
    if hardware.compile:
        return (
            "hardware.compile: expected false with several processes, which is not tested with compiled code, got true; write "
            "false, or hardware.processes 1"
        )
    return None
