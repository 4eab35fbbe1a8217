"""Names of models: paths that are not there are refused before the hub is asked for them."""

from __future__ import annotations

import os
import re

from hankelred.errors import in_one_line

from ..errors import ExperimentError

#: What the hub accepts as the name of a repository.
_REPOSITORY = re.compile(r"(?:\b[\w\-.]+\b/)?\b[\w\-.]{1,96}\b")
_SECONDS = 10


def refuse_absent_path(*names: str | None) -> None:
    """Raise for the path of a folder that is not there.

    A name is a path where it cannot be that of a repository, or where the folder around it is there.

    Parameters
    ----------
    *names : str or None
        Each a folder, a file, or a name on the hub; None is left out.

    Raises
    ------
    ExperimentError
        One is a path, and nothing is there.
    """
    for name in names:
        if name is None or os.path.lexists(name):
            continue
        parent = os.path.dirname(name)
        if not _REPOSITORY.fullmatch(name) or (parent and os.path.isdir(parent)):
            raise ExperimentError(
                f"there is no folder {in_one_line(name) or repr(name)}; give the folder of a model or an "
                "adapter, or a name on the hub"
            )


def refuse_unreachable(name: str, file: str, revision: str | None) -> None:
    """Raise for a name that is no folder here where the hub cannot be reached.

    transformers would ask again and again for half a minute.

    Parameters
    ----------
    name : str
        A folder, or a name on the hub.
    file : str
        What is read of the repository, which may be in the cache.
    revision : str or None
        Branch, tag or commit.

    Raises
    ------
    ExperimentError
        It is neither here nor in the cache, and the hub did not answer.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if os.path.exists(name) or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=_SECONDS)
    except HfHubHTTPError:
        return  # it answered; what it has not got is reported where it is loaded
    except Exception as error:  # of httpx, httpx2 or requests, by the version of huggingface_hub
        raise ExperimentError(
            f"there is no folder {in_one_line(name)} here, and the hub cannot be asked for a model of this "
            f"name ({in_one_line(' '.join(str(error).split()), 200)}); give the folder of a model or an "
            "adapter"
        ) from None
