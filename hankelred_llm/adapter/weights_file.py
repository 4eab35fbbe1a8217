"""The files of a saved adapter: its configuration, and its weights in safetensors only, never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from peft.utils.other import check_file_exists_on_hf_hub
from safetensors import SafetensorError, safe_open

from hankelred.errors import in_one_line, short_repr

from ..errors import AdapterFileError


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of an adapter_config.json, of any method.

    Raises
    ------
    AdapterFileError
        It cannot be read, or is no dict.
    """
    name = in_one_line(path)
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        reason = in_one_line(str(error) or type(error).__name__, 200)
        raise AdapterFileError(f"{name} cannot be read ({reason}); copy or save the adapter again") from None
    if not isinstance(content, dict):
        raise AdapterFileError(f"{name} is {short_repr(content)}, not a dict; copy or save the adapter again")
    return content


def check_safetensors(source: str, subfolder: str | None, hub: Mapping[str, Any]) -> None:
    """Refuse a folder or repository without a complete safetensors file; peft would fall back on a pickle.

    `hub` may hold the revision, token, cache_dir and local_files_only that it will be loaded with.

    Raises
    ------
    AdapterFileError
        There is no complete safetensors file; nothing is ever unpickled.
    """
    folder = os.path.join(source, subfolder) if subfolder else source
    if not os.path.isdir(folder):
        name = f"{subfolder}/{SAFETENSORS_WEIGHTS_NAME}" if subfolder else SAFETENSORS_WEIGHTS_NAME
        if not _is_on_hub(source, name, hub):
            raise AdapterFileError(
                f"{source} has no {name}, or the hub cannot be reached and it is not in the cache; adapters "
                "are loaded from safetensors files only"
            )
        return
    path = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)
    if not os.path.isfile(path):
        contents = (
            f"only {WEIGHTS_NAME}" if os.path.isfile(os.path.join(folder, WEIGHTS_NAME)) else "no weights"
        )
        raise AdapterFileError(
            f"{folder} has {contents}, and adapters are never unpickled; save again with "
            "safe_serialization=True "
            f"to get {SAFETENSORS_WEIGHTS_NAME}"
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"{path} ({os.path.getsize(path)} bytes) is no complete safetensors file ({error}); copy it again"
        ) from None


def _is_on_hub(source: str, name: str, hub: Mapping[str, Any]) -> bool:
    if not hub.get("local_files_only"):
        exists = check_file_exists_on_hf_hub(
            source, name, **{k: hub[k] for k in ("revision", "token") if hub.get(k)}
        )
        if exists is not None:
            return bool(exists)
    try:  # without a connection the weights in the cache will be loaded
        cached = try_to_load_from_cache(source, name, hub.get("cache_dir"), hub.get("revision"))
    except HFValidationError:
        return True  # neither folder nor repository: loading it raises that error
    return isinstance(cached, str)


def weights_path(source: str, hub: Mapping[str, Any]) -> str:
    """Return the safetensors file of an adapter, fetched where it is on the hub.

    Raises
    ------
    AdapterFileError
        There is no complete one.
    """
    check_safetensors(source, hub.get("subfolder"), hub)
    path = os.path.join(source, hub.get("subfolder") or "", SAFETENSORS_WEIGHTS_NAME)
    return path if os.path.isfile(path) else hf_hub_download(source, SAFETENSORS_WEIGHTS_NAME, **hub)
