"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch

import lean_checks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tests run side by side on few cores; more threads than cores would only get in each other's way.
torch.set_num_threads(1)
lean_checks.install()


@pytest.fixture(scope="session")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The demo model and its tokenizer."""
    from interp_toolkit import load_model  # not before the checks are in place

    return load_model("demo")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without run-time checks of annotations, as users have it: for arguments whose type is wrong on purpose."""
    kept = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", kept)
