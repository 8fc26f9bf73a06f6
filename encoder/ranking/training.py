"""`fit` trains a small network to put the chosen items of each list first, by the softmax cross-entropy of the list.

Listwise loss in ListNet's top-one form (Cao et al., 2007), AdamW. NDCG@10 on the last fifth of the lists chooses the
number of epochs; then all lists train anew. A run is a function of data and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

HELD_OUT = 0.2  # of the lists, the last in time, choose the number of epochs
FEWEST = 50  # lists to learn from
_K = 10
Floats = NDArray[np.float32]
Layers = list[tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class RankerSettings:
    """How a ranker is trained."""

    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.2
    rate: float = 2e-3
    weight_decay: float = 0.01
    lists: int = 128  # in a batch
    most_epochs: int = 60
    patience: int = 12  # epochs without a better validation; after 4 some seeds ended by chance with the first epoch
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class RankingLists:
    """Lists in the order of time: network inputs [n, I], what each item gained [n] (0: not chosen), items of each."""

    inputs: Floats
    gains: Floats
    sizes: Sequence[int]

    def __len__(self) -> int:
        return len(self.sizes)

    def part(self, start: int, stop: int) -> RankingLists:
        """Some of the lists."""
        ends = self.ends
        rows = slice(int(ends[start]), int(ends[stop]))
        return RankingLists(self.inputs[rows], self.gains[rows], self.sizes[start:stop])

    @property
    def ends(self) -> NDArray[np.int64]:
        """[lists + 1] the row at which each list begins, and the end."""
        return np.concatenate([[0], np.cumsum(np.array(self.sizes, np.int64))])


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """Layers (weights [in, out], bias [out]); epochs, and NDCG@10 of the held-out lists after each of them."""

    layers: Layers
    epochs: int
    validation: list[float]

    @property
    def best(self) -> float:
        """NDCG@10 of the held-out lists with the number of epochs that was chosen."""
        return self.validation[self.epochs - 1]


def fit(
    lists: RankingLists, settings: RankerSettings, progress: Callable[[int, int], None] | None = None
) -> TrainedNetwork:
    """A network for lists, of which every one has a chosen item; `progress` is told of epochs done, of how many.

    Raises:
        ValueError: there are too few lists.
    """
    check_count(len(lists))
    with _threads(settings):
        cut = len(lists) - round(HELD_OUT * len(lists))
        learned, held = lists.part(0, cut), lists.part(cut, len(lists))
        validation: list[float] = []
        for network in _epochs(learned, settings):
            validation.append(ndcg(_scores(network, held.inputs), held))
            if progress is not None:
                progress(len(validation), settings.most_epochs)
            if len(validation) == settings.most_epochs or _stalled(validation, settings.patience):
                break
    epochs = 1 + int(np.argmax(validation))
    return TrainedNetwork(fit_for(lists, settings, epochs), epochs, [round(value, 6) for value in validation])


def fit_for(lists: RankingLists, settings: RankerSettings, epochs: int) -> Layers:
    """The layers after so many epochs, all lists learned."""
    with _threads(settings):
        return _layers(next(islice(_epochs(lists, settings), epochs - 1, None)))


@contextmanager
def _threads(settings: RankerSettings) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_count(lists: int) -> None:
    """Raises ValueError when there are too few lists with a choice to learn from."""
    if lists < FEWEST:
        raise ValueError(f"{lists} lists with a choice are too few to train a ranker on; at least {FEWEST} are needed")


def ndcg(scores: Floats, lists: RankingLists, k: int = _K) -> float:
    """Mean NDCG@k over lists with graded gains; of equal scores, the mean of both orders counts."""
    found = []
    ends = lists.ends
    discounts = 1 / np.log2(np.arange(2, k + 2))
    for start, stop in pairwise(ends):
        gains, own = lists.gains[start:stop], scores[start:stop]
        ideal = float(np.sort(gains)[::-1][:k] @ discounts[: min(k, len(gains))])
        orders = np.argsort(-own, kind="stable"), len(own) - 1 - np.argsort(-own[::-1], kind="stable")
        reached = [float(gains[order][:k] @ discounts[: min(k, len(gains))]) for order in orders]
        found.append(sum(reached) / 2 / ideal)
    return float(np.mean(found))


def _stalled(validation: Sequence[float], patience: int) -> bool:
    return len(validation) - 1 - int(np.argmax(validation)) >= patience


def _epochs(lists: RankingLists, settings: RankerSettings) -> Iterator[nn.Sequential]:
    """The network after each epoch."""
    torch.manual_seed(settings.seed)
    network = _network(lists.inputs.shape[1], settings)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    rng = np.random.default_rng(settings.seed)
    inputs, gains, ends = torch.from_numpy(lists.inputs), torch.from_numpy(lists.gains), lists.ends
    while True:
        network.train()
        order = rng.permutation(len(lists))
        for at in range(0, len(order), settings.lists):
            some = order[at : at + settings.lists]
            rows = torch.from_numpy(np.concatenate([np.arange(ends[n], ends[n + 1]) for n in some]))
            of = torch.from_numpy(np.repeat(np.arange(len(some)), [lists.sizes[n] for n in some]))
            optimizer.zero_grad()
            loss = _loss(network(inputs[rows])[:, 0], gains[rows], of, len(some))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield network


def _network(inputs: int, settings: RankerSettings) -> nn.Sequential:
    parts: list[nn.Module] = []
    sizes = [inputs, *settings.hidden]
    for size, out in pairwise(sizes):
        parts += [nn.Linear(size, out), nn.GELU(approximate="tanh"), nn.Dropout(settings.dropout)]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], 1))


def _loss(scores: Tensor, gains: Tensor, of: Tensor, count: int) -> Tensor:
    """Mean over lists of the cross-entropy between the shares of gains and the softmax of scores."""
    highest = torch.full((count,), -torch.inf).scatter_reduce(0, of, scores.detach(), "amax")
    total = torch.zeros(count).index_add(0, of, torch.exp(scores - highest[of]))
    logs = scores - highest[of] - torch.log(total)[of]
    sums = torch.zeros(count).index_add(0, of, gains)
    return -(gains / sums[of] * logs).sum() / count


@torch.inference_mode()
def _scores(network: nn.Sequential, inputs: Floats) -> Floats:
    network.eval()
    found: Floats = network(torch.from_numpy(inputs))[:, 0].numpy()
    return found


def _layers(network: nn.Sequential) -> Layers:
    linear = [part for part in network if isinstance(part, nn.Linear)]
    return [(part.weight.detach().numpy().T.copy(), part.bias.detach().numpy().copy()) for part in linear]
