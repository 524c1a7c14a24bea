"""The learner: the model on its device, with its optimiser and learning rate schedule."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from airstreams.config import Config, TrainingConfig
from airstreams.data.dataset import StepSampler
from airstreams.distributed import PATIENCE, device_of_process
from airstreams.errors import InputError
from airstreams.machine import Precision, keep_freed_memory
from airstreams.models.airstreams import AIRStreams
from airstreams.representations import Supervised
from airstreams.representations.flow import Flow
from airstreams.training.cuda_graph import CapturedPass, can_be_captured
from airstreams.training.norms import synchronise_norms


@dataclass
class Learner:
    """Everything that changes during training.

    prepared: the model as a step calls it, wrapped for several processes.
    frozen: the modules that stay as they are, batch statistics included.
    captured_pass: replays a step's pass as a CUDA graph; None: the kernels start one by one.
    precision: in which the model runs. Weights, losses, gradients and the optimiser are float32 in both.
    """

    model: AIRStreams
    prepared: nn.Module
    frozen: list[nn.Module]
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    captured_pass: CapturedPass | None
    precision: Precision = "float32"

    def begin_training(self) -> None:
        """Set all parts but the frozen ones to training mode."""
        set_training_mode(self.prepared, self.frozen)

    def state(self) -> dict[str, Any]:
        """The state that resuming needs. It refers to the live tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Set everything to a state. The learning rate is that of this training's schedule at the state's step.

        It differs from the saved one only if the run is lengthened.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        rates = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, (rate, factor) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(self.schedule.last_epoch)


def set_training_mode(model: nn.Module, frozen: Sequence[nn.Module]) -> None:
    """Set a model to training mode, and its frozen parts to evaluation mode."""
    model.train()
    for part in frozen:
        part.eval()


def make_learner(
    model: AIRStreams,
    frozen: list[nn.Module],
    config: Config,
    sampler: StepSampler,
    accelerator: Accelerator,
    taken: Collection[str] = (),
    precision: Precision = "float32",
) -> Learner:
    """Put a model on its device and give it an optimiser and a schedule.

    taken: the names of the weights that `--init` took.
    """
    if config.training.taken_norms == "fixed":
        frozen = [*frozen, *_taken_norms(model, taken)]
    if config.training.lr_taken == 0:
        _freeze_taken(model, taken)
    if config.training.sync_batch_norm and accelerator.num_processes > 1:
        synchronise_norms(model, accelerator.device)
    for tower in (*model.early.values(), *model.late.values()):
        tower.checkpointing = config.training.checkpointing  # type: ignore[assignment]
    model = model.to(accelerator.device)
    optimizer = make_optimizer(model, config.training, taken)
    schedule = make_schedule(optimizer, config.training, sampler.steps)
    captured_pass = CapturedPass(trainable_parameters(model)) if can_be_captured(config, accelerator) else None
    return Learner(model, accelerator.prepare(model), frozen, optimizer, schedule, captured_pass, precision)


def freeze(model: AIRStreams, config: Config) -> list[nn.Module]:
    """Freeze the parts that `training.freeze` names, and those that no loss reaches; returns them.

    The second kind must be frozen too: with several processes, each would wait for ever for gradients that never come.

    InputError: an unknown part, or none left to train.
    """
    parts = model.parts()
    unknown = [name for name in config.training.freeze if name not in parts]
    if unknown:
        raise InputError(f"training.freeze: got {', '.join(unknown)}. Choose from {', '.join(parts)}.")
    frozen = [parts[name] for name in config.training.freeze]
    trained = config.trained_heads()
    frozen += [late for head, late in model.late.items() if head not in trained]
    if not any(head in config.model.merges for head in trained):
        frozen += [tower.adaptors for tower in model.early.values()]  # type: ignore[misc]
    for stream, part in model.representations.items():
        if isinstance(part, Supervised) and part.stop_gradient and stream not in config.taught:
            frozen += part.taught()
        if isinstance(part, Flow) and config.clip.frames == 1:  # a single frame has no flow
            frozen.append(part)
    for part in frozen:
        part.requires_grad_(False)
    if not trainable_parameters(model):
        given = ", ".join(config.training.freeze)
        raise InputError(f"training.freeze: got {given}, which leaves nothing to train. Leave out a part.")
    return frozen


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Choose the device of a training. InputError: this machine lacks the device."""
    device = device_of_process(config.device, "training.device")
    if device.type == "cpu":
        keep_freed_memory()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    # "no": the step itself chooses the precision. Accelerate allows one precision for all trainings of a process.
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[patience])


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_optimizer(model: nn.Module, config: TrainingConfig, taken: Collection[str] = ()) -> torch.optim.Optimizer:
    """AdamW or SGD over the trainable parameters. Only weights of convolutions and linear layers decay.

    The layers whose weights `--init` took have groups of their own if their learning rate differs, and so have streams
    with a factor in `training.lr_factors`. The entry `taken` of a group says which it is.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = [*named.values()]
    groups = _decay_groups(parameters, config)
    tells_taken = bool(taken) and (config.lr_taken is not None or config.hold_epochs > 0)
    if tells_taken or config.lr_factors:
        lr_taken = config.lr if config.lr_taken is None else config.lr_taken
        by_rate: dict[tuple[bool, float], list[nn.Parameter]] = {(False, config.lr): []}
        if tells_taken:
            by_rate[True, lr_taken] = []
        for name, parameter in named.items():
            is_taken = tells_taken and name in taken
            stream = name.split(".")[1]  # early.STREAM.blocks...: see `weights_prefix`
            factor = config.lr_factors.get(stream, 1.0) if is_taken or not tells_taken else 1.0
            by_rate.setdefault((is_taken, factor * (lr_taken if is_taken else config.lr)), []).append(parameter)
        groups = [
            group | {"taken": is_taken, "lr": rate}
            for (is_taken, rate), of_rate in sorted(by_rate.items(), key=lambda item: item[0][0])
            for group in _decay_groups(of_rate, config)
        ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)
    for parameter in parameters:  # if the first step is skipped, the buffer would hold uninitialised memory
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _decay_groups(parameters: Sequence[nn.Parameter], config: TrainingConfig) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},  # norms, biases, the flow's three
    ]


def _freeze_taken(model: AIRStreams, taken: Collection[str]) -> None:
    """Layers with a learning rate of 0 need no gradients. InputError: there are no others."""
    for name, parameter in model.named_parameters():
        if name in taken:
            parameter.requires_grad_(False)
    if not trainable_parameters(model):
        raise InputError("training.lr_taken: 0 leaves nothing to train, since --init took all. Give more than 0.")


def _taken_norms(model: nn.Module, taken: Collection[str]) -> list[nn.Module]:
    """The batch normalisations whose statistics `--init` took."""
    return [module for name, module in model.named_modules() if f"{name}.running_mean" in taken]


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then a cosine that ends at 0. The layers that `--init` took wait for `hold_epochs` before it."""
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

    held = config.hold_epochs * steps_per_epoch

    def factor_of_taken(step: int) -> float:
        return 0.0 if step < held else factor(step)

    return LambdaLR(optimizer, [factor_of_taken if group.get("taken") else factor for group in optimizer.param_groups])
