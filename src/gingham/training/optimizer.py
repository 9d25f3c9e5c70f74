"""The learning rate of each step, and the optimizer of a recipe."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from gingham.errors import ModelError
from gingham.models.backbones import Backbone
from gingham.recipe import Recipe


def lr_at(step: int, steps: int, recipe: Recipe) -> float:
    """Return the learning rate of step number `step`, counted from 0, of `steps`.

    During the first `warmup` share of the steps it rises linearly from a fifth of the recipe's learning rate to that
    rate. After that the schedule "constant" keeps it, and "linear" and "cosine" decrease it towards 0, which they would
    reach at step `steps`.

    >>> lr_at(50, 100, Recipe(schedule="linear", learning_rate=0.1))
    0.05

    Source of "cosine": Loshchilov & Hutter, "SGDR" (arXiv 1608.03983), one cycle without restarts.
    """
    done = step / steps
    if done < recipe.warmup:
        return recipe.learning_rate * (0.2 + 0.8 * done / recipe.warmup)
    left = (1 - done) / (1 - recipe.warmup)
    if recipe.schedule == "linear":
        return recipe.learning_rate * left
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1 - math.cos(math.pi * left))
    return recipe.learning_rate


class Muon(torch.optim.Optimizer):
    """SGD with momentum, by default Nesterov's, whose updates of convolution filters are orthogonalised.

    Parameter groups with `filters` true have weights of two or more dimensions, treated as matrices (out, the rest).
    The update of such a matrix is replaced by the nearest matrix with equal singular values, so that all directions
    learn at the same rate. The matrix itself is scaled to a norm of √out, which replaces weight decay. Everything else
    in a network (biases, scales, the classifier) takes plain SGD steps. Linear layers before the classifier are treated
    as filters.

        optimizer = Muon([{"params": filters, "filters": True}, {"params": others}], lr=0.5, momentum=0.9)

    Sources: Jordan et al., "Muon" (https://kellerjordan.github.io/posts/muon, 2024), and the fixed norm from the same
    author's cifar10-airbench. Here both kinds of parameters share one optimizer and one schedule.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, nesterov: bool = True) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "nesterov": nesterov, "filters": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            # Process whole lists, as torch's own optimizers do: on a GPU, one kernel instead of one per parameter.
            updates = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, parameters, alpha=group["weight_decay"]))
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            if group["nesterov"]:
                updates = list(torch._foreach_add(updates, buffers, alpha=group["momentum"]))
            else:
                updates = buffers
            if group["filters"]:
                updates = _orthogonalized(updates)
                norms = torch._foreach_norm(parameters)
                torch._foreach_clamp_min_(norms, 1e-7)
                torch._foreach_reciprocal_(norms)
                torch._foreach_mul_(norms, [len(parameter) ** 0.5 for parameter in parameters])
                torch._foreach_mul_(parameters, norms)
            torch._foreach_sub_(parameters, torch._foreach_mul(updates, group["lr"]))


def _orthogonalized(updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the updates of filters, orthogonalised as matrices (out, the rest) whose columns are in memory order."""
    moved = [update.movedim(1, -1) for update in updates]
    matrices = orthogonalize_all([update.flatten(1) for update in moved])
    return [matrix.view(update.shape).movedim(-1, 1) for matrix, update in zip(matrices, moved, strict=True)]


def orthogonalize_all(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what `orthogonalize` returns for each matrix, on a GPU with those of the same smaller side in one batch.

    There the launch of a kernel takes longer than the product of two small matrices. Zeros fill the narrower matrices
    of a batch and stay zeros. The products are in bfloat16, as in the original Muon; on CPUs that was not faster.
    """
    if not matrices[0].is_cuda:
        return [orthogonalize(matrix) for matrix in matrices]
    results: list[torch.Tensor] = [torch.empty(0)] * len(matrices)
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.T for matrix in matrices]
    groups: dict[int, list[int]] = {}
    for k, matrix in enumerate(wide):
        groups.setdefault(len(matrix), []).append(k)
    for rows, group in groups.items():
        columns = max(wide[k].shape[1] for k in group)
        batch = torch.zeros(len(group), rows, columns, dtype=torch.bfloat16, device=matrices[0].device)
        for padded, k in zip(batch, group, strict=True):
            padded[:, : wide[k].shape[1]] = wide[k]
        for k, matrix in zip(group, orthogonalize(batch), strict=True):
            result = matrix[:, : wide[k].shape[1]].to(wide[k].dtype)
            results[k] = result if wide[k] is matrices[k] else result.T
    return results


def orthogonalize(matrix: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Return a matrix with the same singular vectors and singular values near 1, by a Newton-Schulz iteration.

    `matrix` is float (rows, columns), or (N, rows, columns) for several at once. After three iterations the larger
    singular values are between about 0.7 and 1.2; those below a hundredth of the largest stay small. More iterations
    took longer and did not improve the accuracy.

    >>> orthogonalize(torch.diag(torch.tensor([3.0, 2.0])), iterations=5).diagonal().min() > 0.6
    tensor(True)

    Source: the quintic coefficients of Jordan et al., "Muon" (https://kellerjordan.github.io/posts/muon, 2024).
    """
    is_wide = matrix.shape[-2] <= matrix.shape[-1]
    wide: torch.Tensor = matrix if is_wide else matrix.mT
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    for _ in range(iterations):
        square = wide @ wide.mT
        square = product(square, square, square, beta=-4.7750, alpha=2.0315)
        wide = product(wide, square, wide, beta=3.4445)
    return wide if is_wide else wide.mT


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the trainable parameters.

    Each parameter group has a `scale`: its learning rate as a multiple of the recipe's.

    Raises
        ModelError: the model has no trainable parameter.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(f"the network {recipe.network} has no trainable parameter; set requires_grad=True for one")
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return _build_adamw(model, recipe)
    if recipe.optimizer == "sgd":
        group = {"params": parameters, "scale": 1.0}
        # In a CUDA graph the learning rate is a tensor, which only the fused kernels accept.
        fused = all(parameter.is_cuda for parameter in parameters)
        return torch.optim.SGD([group], rate, momentum, weight_decay=decay, nesterov=recipe.nesterov, fused=fused)
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]  # biases and scales
    classifier = [weight for weight in weights if weight.ndim == 2][-1:]  # the last matrix of the network
    filters = [weight for weight in weights if not any(weight is matrix for matrix in classifier)]
    groups = [
        {"params": filters, "scale": recipe.filter_lr_scale, "filters": True},
        {"params": classifier, "scale": 1.0, "weight_decay": decay},
        {"params": vectors, "scale": 1.0},  # weight decay gains nothing for them
    ]
    return Muon([group for group in groups if group["params"]], rate, momentum, nesterov=recipe.nesterov)


def _build_adamw(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW; of a pretrained network, earlier layers have lower learning rates (recipe field `early_lr_scale`).

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101); the learning rates by depth
    are those of Howard & Ruder, "ULMFiT" (arXiv 1801.06146).
    """
    depths = model.network.parameter_depths() if isinstance(model.network, Backbone) else {}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        depth = depths.get(name.removeprefix("network."), 1.0)
        if parameter.requires_grad:
            groups.setdefault((recipe.early_lr_scale ** (1 - depth), parameter.ndim > 1), []).append(parameter)
    settings = [
        {"params": parameters, "scale": scale, "weight_decay": recipe.weight_decay * is_matrix}
        for (scale, is_matrix), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, recipe.learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each parameter group's learning rate to `rate` times its `scale`, in place if it is a tensor."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate * group["scale"])
        else:
            group["lr"] = rate * group["scale"]
