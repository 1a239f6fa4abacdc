"""Look inside any Hugging Face causal language model, intervene on it, and trust what comes out.

```python
import interp_toolkit

model, tokenizer = interp_toolkit.load_model("demo")
activations = interp_toolkit.ActivationCache(model).run("The capital of France is")
activations.residual_stream(layer=6)            # (seq_len, d_model)
activations.attention_pattern(layer=6, head=3)  # (seq_len, seq_len)
```
"""

from typing import TYPE_CHECKING

from interp_toolkit.errors import InterpError, InterpWarning
from interp_toolkit.lazy import exports

if TYPE_CHECKING:
    from interp_toolkit.activations import ActivationCache, Activations, ActivationStore, extract
    from interp_toolkit.circuits import activation_patch, patch_sweep
    from interp_toolkit.model import Edit, From, Layout, Site, Span, editing, load_model, run, verify

__version__ = "0.1.0"

__getattr__ = exports(
    __name__,
    {
        "activations": ["ActivationCache", "ActivationStore", "Activations", "extract"],
        "circuits": ["activation_patch", "patch_sweep"],
        "model": ["Edit", "From", "Layout", "Site", "Span", "editing", "load_model", "run", "verify"],
    },
    [
        "activations",
        "circuits",
        "lenses",
        "model",
        "probes",
        "report",
        "statistics",
        "steering",
        "tasks",
        "visualization",
    ],
)

__all__ = [
    "ActivationCache",
    "ActivationStore",
    "Activations",
    "Edit",
    "From",
    "InterpError",
    "InterpWarning",
    "Layout",
    "Site",
    "Span",
    "__version__",
    "activation_patch",
    "editing",
    "extract",
    "load_model",
    "patch_sweep",
    "run",
    "verify",
]
