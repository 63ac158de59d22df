"""A folder to run other tools in, and the loops that people write with plain torch and with Lightning."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["Folder", "last", "sha", "until"]

BIN = Path(sys.executable).parent
PLAIN = """
import hashlib, os, sys, time
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
images, labels = (torch.tensor(item) for item in load_digits(return_X_y=True))
images = images.float() / 16
if "NAN" in os.environ:
    images[5, 3] = float("nan")
width = int(os.environ.get("WIDTH", 64))
model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=float(os.environ.get("LR", 1e-3)))
workers = int(os.environ.get("WORKERS", 0))
loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True, num_workers=workers)
first = 0
if os.path.exists("ckpt.pt"):
    state = torch.load("ckpt.pt")
    model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"]); first = state["epoch"] + 1
    print("resumed", flush=True)
for epoch in range(first, int(os.environ.get("EPOCHS", 4))):
    for step, (x, y) in enumerate(loader):
        loss = nn.functional.cross_entropy(model(x), y) / 4
        loss.backward()
        if step % 4 == 3:
            optimizer.step(); optimizer.zero_grad()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "ckpt.pt")
    print("epoch", epoch, loss.item(), flush=True)
bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print("sha", hashlib.sha256(bits).hexdigest(), "nan", any(bool(p.isnan().any()) for p in model.parameters()))
"""
LIGHTNING = """
import hashlib, logging, os, warnings
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning, torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
lightning.seed_everything(0, verbose=False)
images, labels = (torch.tensor(item) for item in load_digits(return_X_y=True))
images = images.float() / 16
if "NAN" in os.environ:
    images[5, 3] = float("nan")
class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
class PrintEpoch(Callback):
    def on_train_epoch_end(self, trainer, module):
        print("epoch", trainer.current_epoch, flush=True)
module = Module()
trainer = lightning.Trainer(
    max_epochs=int(os.environ.get("EPOCHS", 4)), accumulate_grad_batches=4, accelerator="cpu", logger=False,
    enable_progress_bar=False, enable_model_summary=False,
    callbacks=[PrintEpoch(), ModelCheckpoint(dirpath="kept", save_last=True)],
)
last = "kept/last.ckpt" if os.path.exists("kept/last.ckpt") else None
trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True), ckpt_path=last)
bits = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
print("sha", hashlib.sha256(bits).hexdigest(), "nan", any(bool(p.isnan().any()) for p in module.parameters()))
"""


class Folder:
    """A folder to run the other tools in."""

    def __init__(self, root: Path) -> None:
        """Write the loops to the folder."""
        self.root = root
        (root / "plain.py").write_text(PLAIN, encoding="utf-8")
        (root / "lightning_loop.py").write_text(LIGHTNING, encoding="utf-8")

    def run(self, *command: str, timeout: float = 120, **extra: str) -> tuple[int, str]:
        """Run a command; -1 where it took longer."""
        environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", **extra}
        environment["DVC_SITE_CACHE_DIR"] = str(self.root / "site")
        try:
            done = subprocess.run(
                command, cwd=self.root, env=environment, text=True, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return -1, ""
        return done.returncode, done.stdout + done.stderr

    def plain(self, **extra: str) -> tuple[int, str]:
        """Run the plain loop."""
        return self.run(sys.executable, "plain.py", **extra)

    def start(self, name: str = "plain.py", *arguments: str, **extra: str) -> "subprocess.Popen[str]":
        """Start a loop."""
        environment = {**os.environ, **extra}
        command = [sys.executable, name, *arguments]
        return subprocess.Popen(command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE)


def until(process: "subprocess.Popen[str]", start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return


def sha(output: str) -> str:
    return output.partition("sha ")[2][:12]


def last(output: str) -> str:
    return output.strip().splitlines()[-1][:110] if output.strip() else ""
