"""The data of the tasks, as whole tensors: a dict *split → (x, y)* with "train", "validation" and "test".

Choose anything (a recipe, a sparsity, a hyper-parameter) on "validation"; "test" is for the number that is reported.
Handwritten digits come with scikit-learn, so no network is needed. Photographs come through torchvision, with one.
"""

import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from pruninglab.files import data_dir

Splits = dict[str, tuple[Tensor, Tensor]]


def digits() -> Splits:
    """1,797 handwritten digits of 8×8 pixels (scikit-learn): 898 / 180 / 719, the same share of each class in each.

    x is (n, 1, 8, 8) float32 with mean 0 and standard deviation 1 over all training pixels; y is (n,) int64.
    """
    from sklearn.model_selection import train_test_split

    x, y = _raw_digits()
    index = torch.arange(len(x)).numpy()
    rest, test = train_test_split(index, test_size=719, random_state=0, stratify=y.numpy())
    train, validation = train_test_split(rest, test_size=180, random_state=0, stratify=y.numpy()[rest])
    return _standardised(
        {"train": (x[train], y[train]), "validation": (x[validation], y[validation])} | {"test": (x[test], y[test])}
    )


def hard_digits() -> Splits:
    """Digits made harder: 14×14, turned, scaled, sheared, shifted and noisy; 3,000 / 500 / 3,000.

    Plain digits tell pruning methods apart only from about 95 % sparsity on, these from about 80 %. Each split is drawn
    from original digits of its own (1,000 / 100 / 697), so no split has seen another's handwriting.
    """
    x, y = _raw_digits()
    generator = torch.Generator().manual_seed(0)
    base = torch.randperm(len(x), generator=generator)
    splits = {}
    for name, part, n in (
        ("train", base[:1000], 3000),
        ("validation", base[1000:1100], 500),
        ("test", base[1100:], 3000),
    ):
        pick = part[torch.randint(len(part), (n,), generator=generator)]
        splits[name] = (_distorted(x[pick], generator), y[pick])
    return _standardised(splits)


def _raw_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(bunch.target)


def _distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarge (n, 1, 8, 8) to 14×14 and apply to each a random affine map and Gaussian noise of 0.15."""
    n = len(images)
    big = F.interpolate(F.pad(images, (1, 1, 1, 1)), size=(14, 14), mode="bicubic", align_corners=False).clamp(0, 1)

    def between(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(n, *shape, generator=generator) - 1) * limit

    angle, scale, shear = between(math.radians(15)), 1 + between(0.1), between(0.1)
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = scale * angle.cos(), shear - scale * angle.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = scale * angle.sin(), scale * angle.cos()
    matrix[:, :, 2] = between(0.1, 2)
    grid = F.affine_grid(matrix, list(big.shape), align_corners=False)
    moved = F.grid_sample(big, grid, align_corners=False)
    return moved + 0.15 * torch.randn(moved.shape, generator=generator)


def _standardised(splits: Splits) -> Splits:
    """Shift and scale all splits by the training pixels' mean and standard deviation."""
    train = splits["train"][0]
    mean, std = train.mean(), train.std()
    return {name: ((x - mean) / std, y) for name, (x, y) in splits.items()}


TOGETHER = "python -m pip install --upgrade --force-reinstall torch torchvision"  # the remedy


def import_torchvision() -> ModuleType:
    """`torchvision`, or a RuntimeError that says why it cannot be imported and how to mend that."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"torchvision cannot be imported ({type(error).__name__}: {error}).\n"
            f"It has to be the build that belongs to the installed torch ({torch.__version__}): a torch from one place "
            'and a torchvision from another give "operator torchvision::nms does not exist". Install both together:\n'
            f"    {TOGETHER}\n"
            "Everything that does not need torchvision goes on working, for example task('digits-cnn')."
        ) from error
    return torchvision


def fashion_mnist() -> Splits:
    """60,000 + 10,000 pictures of clothes, 28×28 (Xiao et al. 2017), 5,000 of the training ones for validation."""
    train, test = _downloaded("FashionMNIST")
    return _standardised(_split_off(train, test, 5000))


def cifar10() -> Splits:
    """50,000 + 10,000 colour photographs, 32×32 (Krizhevsky 2009), 5,000 of the training ones for validation."""
    train, test = _downloaded("CIFAR10")
    return _standardised(_split_off(train, test, 5000))


def _downloaded(name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    torchvision = import_torchvision()
    root = data_dir() / "downloads"
    parts = []
    for train in (True, False):
        try:
            source = getattr(torchvision.datasets, name)(root, train=train, download=True)
        except Exception as error:  # a download can fail in many ways, all with the same answer
            raise RuntimeError(
                f"{name} is not in {root.name!r} and could not be downloaded ({type(error).__name__}: {error}). "
                "It needs a network once; without one use the digits: task('digits-cnn') or task('hard-digits-cnn')."
            ) from error
        pixels = torch.as_tensor(source.data, dtype=torch.float32) / 255
        x = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        parts.append((x, torch.as_tensor(source.targets)))
    return parts[0], parts[1]


def _split_off(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], n: int) -> Splits:
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))
    cut = {"train": order[n:], "validation": order[:n]}
    return {name: (train[0][index], train[1][index]) for name, index in cut.items()} | {"test": test}
