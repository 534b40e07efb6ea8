"""PyTorch's contenders: the training loop of published distillation code for CIFAR.

The networks follow distill_jax/models/vision/resnet.py, with the layer names of public code. The
loss is that of Tian et al. 2020 (RepDistiller). Pillow crops and flips the images in worker
processes, and every step reads back its loss and accuracy, as public code does. Written from the
papers and from our own definitions. Needs the extra "bench".
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torchvision.transforms as transforms
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from experiments.throughput.contest import TrainFor
from experiments.throughput.plan import shape_of


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A residual network for CIFAR (He et al. 2016, section 4.2): "resnet20", "resnet8x4", ..."""

    def __init__(self, name: str, num_classes: int = 100):
        super().__init__()
        blocks, widths = shape_of(name)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for number in (1, 2, 3):
            first = Block(widths[number - 1], widths[number], 1 if number == 1 else 2)
            rest = (Block(widths[number], widths[number], 1) for _ in range(blocks - 1))
            setattr(self, f"layer{number}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(widths[3], num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    hard_weight: float,
    soft_weight: float,
) -> Tensor:
    """hard * cross-entropy + soft * T² KL(teacher ‖ student), means over the batch.

    Args:
      student: logits [B, K].
      teacher: logits [B, K].
      labels: int64 [B].
      temperature: T of the soft targets.
      hard_weight: of the cross-entropy.
      soft_weight: of the divergence.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
        reduction="batchmean",
    )
    hard = functional.cross_entropy(student, labels)
    return hard_weight * hard + soft_weight * temperature**2 * divergence


class Pictures(torch.utils.data.Dataset):
    """Pillow images, transformed one by one on access."""

    def __init__(self, path: str, mean: tuple[float, ...], std: tuple[float, ...]):
        """Args: path: an npz file with x_train, uint8 [N, 32, 32, 3], and y_train."""
        with np.load(path) as arrays:
            self.images, self.labels = arrays["x_train"], arrays["y_train"].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Endless(torch.utils.data.Sampler):
    """Endless permutations, so that workers start once; in public code they start every epoch."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a contender computes.

    Attributes:
      compiled: both networks through `torch.compile`.
      channels_last: of images and weights.
      bf16: both networks under autocast to bfloat16.
      bf16_teacher: the teacher alone.
      library: torchdistill's loss and hooks instead of ours.
    """

    compiled: bool = False
    channels_last: bool = False
    bf16: bool = False
    bf16_teacher: bool = False
    library: bool = False


KINDS = {
    "torch_eager": Kind(),
    "torch_channels_last": Kind(channels_last=True),
    "torch_compile": Kind(compiled=True),
    "torch_compile_channels_last": Kind(compiled=True, channels_last=True),
    "torch_bf16_teacher": Kind(channels_last=True, bf16_teacher=True),
    "torch_compile_bf16_teacher": Kind(compiled=True, channels_last=True, bf16_teacher=True),
    "torch_bf16": Kind(compiled=True, channels_last=True, bf16=True),
    "torchdistill": Kind(library=True),
}

# (images, labels) -> (the student's logits, the loss)
Answers = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Trainer:
    """Two networks and an optimizer; a step does what public code does for a batch.

    Args:
      kind: how it computes.
      teacher: the teacher's network.
      student: the student's network.
      config: the flat config of our contenders, with the rates, weights and temperature.
      device: where it computes.
    """

    def __init__(
        self,
        kind: Kind,
        teacher: nn.Module,
        student: nn.Module,
        config: Mapping[str, Any],
        device: torch.device,
    ):
        self.kind, self.device = kind, device
        self.layout = torch.channels_last if kind.channels_last else torch.contiguous_format
        self.student = student.to(device, memory_format=self.layout).train()
        self.teacher = teacher.to(device, memory_format=self.layout).eval()
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=config["optimizer.learning_rate"],
            momentum=config["optimizer.momentum"],
            weight_decay=config["optimizer.weight_decay"],
        )
        self.weights = {
            name: config[f"method.{name}"] for name in ("temperature", "hard_weight", "soft_weight")
        }
        self.run_student, self.run_teacher = self.student, self.teacher
        if kind.compiled:
            mode = "max-autotune" if device.type == "cuda" else "default"
            self.run_student = torch.compile(self.student, mode=mode)
            self.run_teacher = torch.compile(self.teacher, mode=mode)
        self.answers = self._hooked() if kind.library else self._answers

    def _precision(self, bf16: bool) -> contextlib.AbstractContextManager:
        if not bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _answers(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits and the loss."""
        with self._precision(self.kind.bf16):
            logits = self.run_student(images)
        with torch.no_grad(), self._precision(self.kind.bf16 or self.kind.bf16_teacher):
            target = self.run_teacher(images)
        logits = logits.float()
        return logits, kd_loss(logits, target.float(), labels, **self.weights)

    def _hooked(self) -> Answers:
        """The same with torchdistill: hooks read the logits of both networks for its loss."""
        from torchdistill.core.forward_hook import ForwardHookManager
        from torchdistill.losses.mid_level import KDLoss

        hooks = []
        for network in (self.student, self.teacher):
            hooks.append(ForwardHookManager(self.device))
            hooks[-1].add_hook(network, "fc", requires_input=False, requires_output=True)
        loss = KDLoss(
            *("fc", "output", "fc", "output"),
            temperature=self.weights["temperature"],
            alpha=self.weights["hard_weight"],
            beta=self.weights["soft_weight"],
        )

        def answers(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.student(images)
            with torch.no_grad():
                self.teacher(images)
            return logits, loss(*(one.pop_io_dict() for one in hooks), labels)

        return answers

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """One step on a batch of the loader; returns its loss and top-1 accuracy."""
        if self.kind.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        images = images.to(self.device, memory_format=self.layout)
        labels = labels.to(self.device)
        logits, loss = self.answers(images, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
        value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return value, accuracy


def prepare(name: str, task: Mapping[str, Any]) -> tuple[TrainFor, dict[str, Any]]:
    """The training function of a contender, and its description.

    Args:
      name: one of KINDS.
      task: the task of all contenders: "config", flat, of ours; "teacher" and "student", names;
        "data", an npz file; "workers", processes of the loader.
    """
    config = task["config"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(config["seed"])
    trainer = Trainer(KINDS[name], ResNet(task["teacher"]), ResNet(task["student"]), config, device)
    pictures = Pictures(task["data"], config["data.mean"], config["data.std"])
    size = config["training.batch_size"]
    loader = torch.utils.data.DataLoader(
        pictures, size, sampler=Endless(len(pictures)), num_workers=task["workers"]
    )
    batches = iter(loader)

    def train_for(seconds: float) -> int:
        images, deadline = 0, time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            trainer.step(*next(batches))
            images += size
        if device.type == "cuda":
            torch.cuda.synchronize()
        return images

    on_gpu = device.type == "cuda"
    return train_for, {
        "platform": "gpu" if on_gpu else "cpu",
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
    }
