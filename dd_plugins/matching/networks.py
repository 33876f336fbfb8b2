"""A network on its way through training, with a state that can be stored without pickle."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dd_plugins.api import Network
from dd_plugins.augmentation import CutMix


@dataclass
class TrainedNetwork:
    """A network, its SGD momentum, its updates so far, and a seed of its own for what it is trained on."""

    network: Network
    lr: float
    momentum: float
    weight_decay: float
    seed: int = 0
    updates: int = 0
    optimizer: torch.optim.SGD = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def update(self, batch: CutMix) -> None:
        """One SGD update on a batch."""
        self.network.train()
        sgd_update(self.network, self.optimizer, batch)
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, buffers, momentum, seed and age as tensors."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                state[f"momentum.{name}"] = buffer
        return {**state, "seed": torch.tensor(self.seed), "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` returned."""
        prefix = "network."
        self.network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        for name, parameter in self.network.named_parameters():
            if f"momentum.{name}" in state:
                buffer = state[f"momentum.{name}"].to(parameter.device, copy=True)  # updated in place later
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.seed, self.updates = int(state["seed"]), int(state["updates"])


def sgd_update(network: nn.Module, optimizer: torch.optim.Optimizer, batch: CutMix) -> None:
    """One update on the (mixed) cross entropy of a batch."""
    loss = batch.cross_entropy(network(batch.images))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
