"""What whole_run.py compares with: a tutorial's script with gradient accumulation made right. Arguments: folder, epochs."""

import os
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, random_split
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

MICRO, STEPS, SIZE = 8, 4, 128


def main(folder: str, epochs: int) -> None:
    """Train, validate after each epoch, and test."""
    torch.manual_seed(0)
    steps = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    data = ImageFolder(folder, transforms.Compose(steps))
    train, validation, test = random_split(data, (0.68, 0.12, 0.2))  # as the pipeline splits
    workers = os.cpu_count() or 1
    batches = DataLoader(train, MICRO, shuffle=True, num_workers=workers, persistent_workers=True)
    model = models.mobilenet_v3_small(num_classes=len(data.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(epochs):
        model.train()
        group: list[tuple[Tensor, Tensor]] = []
        for number, (images, labels) in enumerate(batches, 1):
            group.append((images, labels))
            if len(group) < STEPS and number < len(batches):
                continue
            total = sum(len(targets) for _, targets in group)
            for part, targets in group:
                (F.cross_entropy(model(part), targets, reduction="sum") / total).backward()
            optimizer.step()
            optimizer.zero_grad()
            group.clear()
        print(f"epoch {epoch + 1}: accuracy {accuracy(model, DataLoader(validation, 64, num_workers=workers)):.4f}")
    print(f"test accuracy {accuracy(model, DataLoader(test, 64, num_workers=workers)):.4f}")


def accuracy(model: nn.Module, batches: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """Return the fraction of samples that are classified correctly."""
    model.eval()
    with torch.no_grad():
        found = [model(images).argmax(1) == labels for images, labels in batches]
    return float(torch.cat(found).float().mean())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
