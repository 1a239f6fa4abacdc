"""The errors of this library, one tree.

```
InterpError                       everything raised here on purpose
├── ModelLoadError                a model or tokenizer could not be loaded
├── UnsupportedModelError         not a causal language model this library can look into
├── SiteError                     something is wrong with the name of a site
│   ├── UnknownSiteError          no such site: the nearest names are shown
│   └── UnavailableSiteError      the site has no meaning in this model, or failed its verification
├── PositionError                 a position outside the prompt, or a substring that is not in it
├── EditError                     an edit with a wrong shape, or one that never fired
├── MetricError                   a metric that gives no number
├── RunError                      a run that cannot be done as asked
├── TokenError                    a text that is not the tokens one would expect
│   └── AlignmentError            two prompts that do not line up
├── CircuitError                  a circuit that cannot be found, run or judged as asked
├── ProbeError                    data from which no probe can be trained or judged as asked
├── LensError                     a lens that cannot be trained or read as asked
├── SteeringError                 a direction that cannot be found, or steered along, as asked
├── FileFormatError               a saved file that is not what it says
└── StoreError                    a store that cannot be read or written as asked
    └── CorruptStoreError         a store that is not what was written

InterpWarning                     a result that may not mean what it seems to
```

A message says what was asked, what was found and what would work.
"""

from __future__ import annotations


class InterpError(Exception):
    """Base of every error that this library raises on purpose."""


class ModelLoadError(InterpError, OSError):
    """A model or a tokenizer could not be loaded."""


class UnsupportedModelError(InterpError, TypeError):
    """The object is not a causal language model that this library can look into."""


class SiteError(InterpError, ValueError):
    """Something is wrong with a site."""


class UnknownSiteError(SiteError, KeyError):
    """There is no site of that name; the message shows the nearest ones."""

    def __str__(self) -> str:
        """The message as it is; a KeyError would show it quoted."""
        return str(self.args[0]) if self.args else ""


class UnavailableSiteError(SiteError):
    """The site has no meaning in this model, or failed its verification there."""


class PositionError(InterpError, ValueError):
    """A position that is not in the prompt."""


class EditError(InterpError, ValueError):
    """An edit with a wrong shape or value, or one that never fired."""


class MetricError(InterpError, ValueError):
    """A metric that gives no number."""


class RunError(InterpError, RuntimeError):
    """A run that cannot be done as asked."""


class TokenError(InterpError, ValueError):
    """A text that is not the tokens one would expect."""


class AlignmentError(TokenError):
    """Two prompts whose tokens do not line up."""


class CircuitError(InterpError, ValueError):
    """A circuit that cannot be found, run or judged as asked."""


class ProbeError(InterpError, ValueError):
    """Data from which no probe can be trained or judged as asked."""


class SteeringError(InterpError, ValueError):
    """A direction that cannot be found, or steered along, as asked."""


class LensError(InterpError, ValueError):
    """A lens that cannot be trained or read as asked."""


class FileFormatError(InterpError, ValueError):
    """A file that cannot be read as what it claims to be."""


class StoreError(InterpError, ValueError):
    """An activation store that cannot be read or written as asked."""


class CorruptStoreError(StoreError):
    """A store that is not what was written: damaged, incomplete, or changed by someone else."""


class InterpWarning(UserWarning):
    """A result that may not mean what it seems to mean."""


__all__ = [
    "AlignmentError",
    "CircuitError",
    "CorruptStoreError",
    "EditError",
    "FileFormatError",
    "InterpError",
    "InterpWarning",
    "LensError",
    "MetricError",
    "ModelLoadError",
    "PositionError",
    "ProbeError",
    "RunError",
    "SiteError",
    "SteeringError",
    "StoreError",
    "TokenError",
    "UnavailableSiteError",
    "UnknownSiteError",
    "UnsupportedModelError",
]
