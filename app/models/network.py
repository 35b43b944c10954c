"""The architecture of a bank as transformers knows it: models whose parameters are views of a flat vector."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from app.weights.layout import Layout


class Network:
    """Makes models that own no weights. It can be sent to another process, which makes the module objects anew."""

    def __init__(
        self,
        config: PreTrainedConfig,
        layout: Layout,
        architecture: str,
        ties: Mapping[str, list[str]],
        buffers: Mapping[str, np.ndarray],
    ) -> None:
        """`architecture` is the name of the model's class, `ties` has all names of each parameter. The module objects
        are made when a model is first bound; `buffers` are what all models share."""
        self.config = config
        self.architecture = architecture
        self.ties = ties
        self._layout = layout
        self._buffers = buffers
        self._template: PreTrainedModel | None = None

    @classmethod
    def of(cls, template: PreTrainedModel, layout: Layout) -> Network:
        """Of a model that was loaded, which gives the module objects and the buffers."""
        network = cls(template.config, layout, type(template).__name__, _tied_names(template), {})
        network._template = template
        return network

    @property
    def buffers(self) -> Mapping[str, np.ndarray]:
        if self._template is None:
            return self._buffers
        return {name: buffer.cpu().numpy() for name, buffer in self._template.named_buffers()}

    def bind(self, vector: Tensor) -> PreTrainedModel:
        """A model whose parameters are views of a flat vector (P,): what is written there later, it runs.

        Only the module objects are new; buffers belong to the template.
        """
        template = self.template(vector.device)
        shared = {id(t): t for t in (*template.parameters(), *template.buffers())}
        model: PreTrainedModel = copy.deepcopy(template, shared)
        self._point(model, vector)
        return model

    def release(self, vector: Tensor) -> None:
        """Let go of the weights that the template was loaded with; its parameters become views of this vector (P,)."""
        self._point(self.template(vector.device), vector)

    def _point(self, model: PreTrainedModel, vector: Tensor) -> None:
        for name, view in self._layout.views(vector).items():
            parameter = nn.Parameter(view, requires_grad=False)
            for alias in self.ties[name]:
                owner, _, leaf = alias.rpartition(".")
                setattr(model.get_submodule(owner), leaf, parameter)

    def template(self, device: torch.device) -> PreTrainedModel:
        """The model that all others are made from."""
        if self._template is None:
            with no_init_weights():  # its memory is never touched: the parameters will be views
                model = AutoModelForSequenceClassification.from_config(
                    self.config, trust_remote_code=False, attn_implementation=attention_of(self.config)
                )
            for name, values in self._buffers.items():
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, torch.from_numpy(values).to(device))
            self._template = model.eval()
        return self._template

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        # As arrays: between processes, torch would move each tensor into shared memory.
        state["_buffers"] = self.buffers
        state["_template"] = None
        return state


def attention_of(config: PreTrainedConfig) -> str:
    """The attention to run an architecture with: torch's own where transformers can, else its plain form. It is always
    named, because what a config.json names may be a kernel on the hub."""
    model = cast(type[PreTrainedModel], MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])
    return "sdpa" if model._supports_sdpa else "eager"


def output_layer(model: PreTrainedModel, labels: int) -> str:
    """The name of the layer that gives the logits: the last linear one outside the encoder."""
    encoder = model.base_model_prefix + "."
    names: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == labels and not name.startswith(encoder)
    ]
    return names[-1]


def _tied_names(model: PreTrainedModel) -> dict[str, list[str]]:
    """Each parameter's name with all names under which the same tensor stands in the model."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return names
