"""What a user would otherwise run, for comparison: PIL transforms in a DataLoader, fp32, eager, a test every epoch.

Written for this comparison in the style of the released code and of the field's toolkits: the same networks, data,
optimizer and schedule as the package, without any of its care for speed.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

TRAIN = transforms.Compose(
    [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
)
TEST = transforms.ToTensor()


class Pictures(Dataset):
    """PIL images with their labels, transformed when they are asked for."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform) -> None:
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int):
        return self.transform(self.pictures[index]), self.labels[index]


def loader(images: torch.Tensor, labels: torch.Tensor, transform, workers: int = 0) -> DataLoader:
    """Batches of 64, shuffled for training."""
    return DataLoader(Pictures(images, labels, transform), 64, shuffle=transform is TRAIN, num_workers=workers)


def train(model: nn.Module, batches: DataLoader, epochs: int, tests: Sequence[DataLoader] = ()) -> list[list[float]]:
    """Train in place by SGD as the defenses do; returns the accuracy on every test set after every epoch."""
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    seen = []
    for _ in range(epochs):
        model.train()
        for x, y in batches:
            x, y = x.to(device), y.to(device)
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            loss.item()  # as every such loop does, for its progress line
        seen.append([test(model, batches_of) for batches_of in tests])
    return seen


@torch.no_grad()
def test(model: nn.Module, batches: DataLoader) -> float:
    """The share of images predicted as their label."""
    model.eval()
    device = next(model.parameters()).device
    hits = sum((model(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in batches)
    return hits / len(batches.dataset)
