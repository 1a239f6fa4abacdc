"""Probes: what can be read off a model's activations, and how far that can be believed."""

from interp_toolkit.probes.calibration import apply_temperature, calibration_error, fit_temperature, reliability
from interp_toolkit.probes.causal import amnesic, direction_effect
from interp_toolkit.probes.concepts import CONCEPTS, concept
from interp_toolkit.probes.controls import bag_of_words, control_task, online_code_length, permutations
from interp_toolkit.probes.data import ProbeData, read_data
from interp_toolkit.probes.erasure import Eraser, ablation_edit, leace, projection, steering_edit
from interp_toolkit.probes.evaluation import auroc, bootstrap_auroc, bootstrap_groups, paired_difference, recall_at_fpr
from interp_toolkit.probes.findings import ProbeSweep
from interp_toolkit.probes.kinds import KINDS
from interp_toolkit.probes.linear import LinearProbe
from interp_toolkit.probes.nonlinear import AttentionProbe, MaxPoolProbe, MLPProbe
from interp_toolkit.probes.splits import Split, check_leakage, folds, given_split, split_rows
from interp_toolkit.probes.sweep import probe_sweep
from interp_toolkit.probes.transfer import Transfer, transfer_matrix
from interp_toolkit.probes.words import WordAlignment, align, align_words, label_tokens, word_spans

__all__ = [
    "CONCEPTS",
    "KINDS",
    "AttentionProbe",
    "Eraser",
    "LinearProbe",
    "MLPProbe",
    "MaxPoolProbe",
    "ProbeData",
    "ProbeSweep",
    "Split",
    "Transfer",
    "WordAlignment",
    "ablation_edit",
    "align",
    "align_words",
    "amnesic",
    "apply_temperature",
    "auroc",
    "bag_of_words",
    "bootstrap_auroc",
    "bootstrap_groups",
    "calibration_error",
    "check_leakage",
    "concept",
    "control_task",
    "direction_effect",
    "fit_temperature",
    "folds",
    "given_split",
    "label_tokens",
    "leace",
    "online_code_length",
    "paired_difference",
    "permutations",
    "probe_sweep",
    "projection",
    "read_data",
    "recall_at_fpr",
    "reliability",
    "split_rows",
    "steering_edit",
    "transfer_matrix",
    "word_spans",
]
