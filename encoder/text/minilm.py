"""`MiniLMEncoder` runs the forward pass of MiniLM-L6 from its folder in Hugging Face's BERT layout.

Pooling is that of all-MiniLM-L6-v2, a mean over the tokens and then L2 norm. It is written out because importing the
libraries that would do it takes ten seconds and 250 MB in every process that embeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as nn

MAX_TOKENS = 256  # what the model was trained for; the rest of a text is not read
_BATCH = 32  # of similar lengths: larger ones are no faster on a CPU


class MiniLMEncoder:
    """Texts in, unit vectors out; deterministic for a given batch. Raises OSError when a file is missing.

    `folder` holds `config.json`, `tokenizer.json` and `model.safetensors`; torch may use `threads` meanwhile.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1) -> None:
        config = json.loads((folder / "config.json").read_text())
        self._weights = load_file(folder / "model.safetensors", device=device)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._layers, self._heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        self._device = device
        self._threads = threads
        self.dimension = int(config["hidden_size"])

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [n, dimension] in the order of `texts`; batches are made of texts of similar length."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                vectors[rows] = self._embed([ids[row] for row in rows]).cpu().numpy()
        finally:
            torch.set_num_threads(before)
        return vectors

    def _embed(self, ids: list[list[int]]) -> Tensor:
        lengths = torch.tensor([len(row) for row in ids], device=self._device)
        longest = int(lengths.max())
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=self._device)  # [n, L]
        real = torch.arange(longest, device=self._device) < lengths[:, None]  # [n, L]
        states = self._tokens(padded)
        for layer in range(self._layers):
            states = self._layer(f"encoder.layer.{layer}", states, real)
        mean = (states * real[:, :, None]).sum(1) / lengths[:, None]  # [n, d]
        return nn.normalize(mean, dim=1)

    def _tokens(self, ids: Tensor) -> Tensor:
        words = self._weights["embeddings.word_embeddings.weight"][ids]  # [n, L, d]
        positions = self._weights["embeddings.position_embeddings.weight"][: ids.shape[1]]  # [L, d]
        segment = self._weights["embeddings.token_type_embeddings.weight"][0]  # [d]
        return self._norm("embeddings.LayerNorm", words + positions + segment)

    def _layer(self, name: str, states: Tensor, real: Tensor) -> Tensor:
        """One post-norm transformer layer, [n, L, d] to [n, L, d]."""
        batch, length, width = states.shape
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", states)
            .view(batch, length, self._heads, width // self._heads)
            .transpose(1, 2)  # [n, heads, L, d / heads]
            for part in ("query", "key", "value")
        )
        mixed = nn.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        states = self._norm(
            f"{name}.attention.output.LayerNorm", states + self._linear(f"{name}.attention.output.dense", mixed)
        )
        wide = nn.gelu(self._linear(f"{name}.intermediate.dense", states))  # [n, L, 4d]
        return self._norm(f"{name}.output.LayerNorm", states + self._linear(f"{name}.output.dense", wide))

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return nn.linear(states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return nn.layer_norm(states, (self.dimension,), weight, bias, self._epsilon)
