"""Mistral as a later transformers might have it: its source with other names, or another way of the cache."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import sys
from pathlib import Path
from types import ModuleType

import torch
from transformers import MistralConfig, PreTrainedModel
from transformers.models.mistral import modeling_mistral

from hankelred_llm.state.decoder_call import cache_argument

#: What the cache is called in the transformers that is installed.
CACHE = cache_argument(modeling_mistral.MistralModel.forward)

_INNER = ("MistralAttention", "MistralDecoderLayer", "MistralModel")
_CALLS = ("self.self_attn", "decoder_layer", "self.model")
_numbers = itertools.count()


class _Renaming(ast.NodeTransformer):
    """Rename an argument of the decoder, its layers and their attention, inside and where they are called."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new, self.inside = old, new, False

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.inside = node.name in _INNER
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self.new if self.inside and node.arg == self.old else node.arg
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.new if self.inside and node.id == self.old else node.id
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.unparse(node.func) in _CALLS:
            for keyword in node.keywords:
                keyword.arg = self.new if keyword.arg == self.old else keyword.arg
        return self.generic_visit(node)


def renamed_source(old: str, new: str) -> str:
    """The source of Mistral with another name for an argument."""
    return ast.unparse(_Renaming(old, new).visit(ast.parse(inspect.getsource(modeling_mistral))))


def boxed_source() -> str:
    """The source of Mistral that hands the cache to its layers inside another object."""
    source = ast.unparse(ast.parse(inspect.getsource(modeling_mistral)))
    head, decoder = source.split("class MistralModel(")
    calls = decoder.split("decoder_layer(")
    assert len(calls) == 2 and f"{CACHE}={CACHE}" in calls[1] and f"{CACHE}.update(" in head
    calls[1] = calls[1].replace(f"{CACHE}={CACHE}", f"{CACHE}=SimpleNamespace(cache={CACHE})", 1)
    head = head.replace(f"{CACHE}.update(", f"{CACHE}.cache.update(")
    head = head.replace(f"if {CACHE} is not None", f"if {CACHE}.cache is not None")
    return f"from types import SimpleNamespace\n{head}class MistralModel({'decoder_layer('.join(calls)}"


def model_of(source: str, folder: Path) -> PreTrainedModel:
    """A tiny model made of such a source."""
    name = f"modeling_variant{next(_numbers)}"
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"transformers.models.mistral.{name}", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # transformers reads the source of classes by it
    spec.loader.exec_module(module)
    config = MistralConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return module.MistralForCausalLM(config).eval()
