"""Data, a network and a way to train it, under one name. Tasks know nothing of pruning.

t = task("digits-mlp")
model = t.trained(seed=0)     # from the cache, or trained in seconds
t.accuracy(model)             # on the test split
"""

from pruninglab.naming import lookup
from pruninglab.tasks import data, language, models
from pruninglab.tasks.base import Task
from pruninglab.tasks.language import LanguageTask, from_pretrained
from pruninglab.tasks.meeting import clock, together
from pruninglab.tasks.training import Training, train

TASKS = {
    made.name: made
    for made in (
        Task("digits-mlp", data.digits, lambda: models.mlp(64, 300, 100, 10), Training()),
        Task("digits-cnn", data.digits, lambda: models.cnn(8), Training(steps=400, lr=0.05)),
        Task("digits-resnet", data.digits, lambda: models.ResNet(1, 1, (8, 16, 32)), Training(steps=400)),
        Task("hard-digits-mlp", data.hard_digits, lambda: models.mlp(196, 300, 100, 10), Training(lr=0.05)),
        Task("hard-digits-cnn", data.hard_digits, lambda: models.cnn(14), Training(steps=500, lr=0.05)),
        Task(
            "fashion-mnist-cnn",
            data.fashion_mnist,
            lambda: models.cnn(28, (32, 64, 128)),
            Training(steps=5000, batch=128, lr=0.05, weight_decay=5e-4),
        ),
        Task(
            "cifar10-resnet20",
            data.cifar10,
            lambda: models.ResNet(3, 3, (16, 32, 64)),
            Training(steps=32_000, batch=128, weight_decay=1e-4, augment=True),
        ),
        LanguageTask(
            "tiny-llama",
            language.documentation,
            language.tiny_llama,
            Training(1500, 16, lr=4e-3, momentum=0.9, weight_decay=0.1, optimizer="adamw", warmup=0.05, clip=1.0),
            ready=language.shipped,
        ),
    )
}
BUILT_IN = dict(TASKS)


def find(answer: str | Task) -> Task:
    """The task of this name, or the task itself.

    Raises:
        ValueError: no task has this name. TypeError: it is neither a name nor a task.
    """
    if not isinstance(answer, (str, Task)):
        raise TypeError(f"a task is a name or a Task, not {answer!r}")
    return task(answer) if isinstance(answer, str) else answer


def task(name: str) -> Task:
    """The task of this name; `TASKS` lists them.

    Raises:
        ValueError: there is no such task.
    """
    return lookup("task", name, TASKS)


task.from_pretrained = from_pretrained  # type: ignore[attr-defined]


__all__ = ["TASKS", "LanguageTask", "Task", "Training", "clock", "find", "from_pretrained", "task", "together", "train"]
