"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch

import interp_toolkit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tests run side by side on few cores; more threads than cores would only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The demo model and its tokenizer."""
    return interp_toolkit.load_model("demo")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without run-time checks of annotations, as users have it: for arguments whose type is wrong on purpose."""
    kept = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", kept)
