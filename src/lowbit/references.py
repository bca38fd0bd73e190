"""Objects of a user's own code by their name: `package.module:name`, as entry points and servers have them."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from lowbit.errors import LowbitError, did_you_mean

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_reference(text: str) -> bool:
    """Whether a text is of the form `package.module:name`."""
    return _REFERENCE.fullmatch(text) is not None


def imported(reference: str, what: str) -> Any:
    """The object that a reference names, its module imported: an installed one, or one in the working folder.

    Args:
        reference: `package.module:name`.
        what: what it is to be, for messages ("network", "data").

    Raises:
        LowbitError: there is no such module or name in it, or the module can't be imported.
    """
    module, _, names = reference.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:  # `lowbit` as a command does not look there, as `python` does
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise LowbitError(
                f"{what} {reference!r}: there is no module {error.name!r}: it must be installed, or lie in the folder "
                f"where lowbit is started ({folder})"
            ) from error
        raise LowbitError(f"{what} {reference!r}: {module} needs {error.name}, which is not installed") from error
    except LowbitError:
        raise
    except Exception as error:
        raise LowbitError(f"{what} {reference!r}: {module} can't be imported: {_told(error)}") from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise LowbitError(f"{what} {reference!r}: {module} has no {name!r}.{did_you_mean(name, vars(found))}")
        found = getattr(found, name)
    return found


def called(function: Callable[..., Any], reference: str, what: str, **offered: Any) -> Any:
    """What a user's function returns, given those of the `offered` arguments that it takes.

    Raises:
        LowbitError: it raises an error; the message says which, and where.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        parameters = ()
    everything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    taken = {each.name for each in parameters}
    try:
        return function(**{name: value for name, value in offered.items() if everything or name in taken})
    except LowbitError:
        raise
    except Exception as error:
        raise LowbitError(f"{what} {reference!r} fails: {_told(error)}") from error


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes a keyword argument of that name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _told(error: Exception) -> str:
    """An error in one line, with the place it was raised at."""
    lines = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where}"
