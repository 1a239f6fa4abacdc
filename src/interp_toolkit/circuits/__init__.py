"""Causal work: patching, paths, ablation, tracing, and circuits: what carries a behaviour, and how sure that is."""

from interp_toolkit.circuits.ablation import ablate, ablation_sweep, prepare_ablation
from interp_toolkit.circuits.acdc import acdc
from interp_toolkit.circuits.attribution import attribute_edges
from interp_toolkit.circuits.circuit import Circuit, Edge, Role, circuit_of
from interp_toolkit.circuits.curves import FaithfulnessCurve
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.evaluation import CircuitEvaluation
from interp_toolkit.circuits.exact import exact_scores
from interp_toolkit.circuits.faithfulness import evaluate_circuit, faithfulness_curve, rank_quality, stability
from interp_toolkit.circuits.finder import CircuitFinder
from interp_toolkit.circuits.graph import Graph, graph_of, random_edges
from interp_toolkit.circuits.knockout import Ablation
from interp_toolkit.circuits.knockout_nodes import Knockout
from interp_toolkit.circuits.metrics import METRICS, Metric, metric_of
from interp_toolkit.circuits.neuronpedia import to_neuronpedia
from interp_toolkit.circuits.node_attribution import attribute_nodes
from interp_toolkit.circuits.nodes import Node
from interp_toolkit.circuits.pairs import Pair, prepare_pair
from interp_toolkit.circuits.patching import activation_patch, patch_sweep
from interp_toolkit.circuits.paths import path_patch, path_sweep
from interp_toolkit.circuits.pruning import prune_edges
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.results import PatchResult
from interp_toolkit.circuits.roles import RoleTable, head_roles
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.selfrepair import SelfRepair, self_repair
from interp_toolkit.circuits.stability import RankQuality, Stability
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.circuits.sweeps import Agreement, Sweep, prepare_sweep
from interp_toolkit.circuits.tracing import Trace, causal_trace, prepare_trace

__all__ = [
    "METRICS",
    "Ablation",
    "Agreement",
    "Circuit",
    "CircuitEvaluation",
    "CircuitFinder",
    "CircuitRuns",
    "Edge",
    "EdgeScores",
    "Effects",
    "FaithfulnessCurve",
    "Graph",
    "Knockout",
    "Metric",
    "Node",
    "Pair",
    "PatchResult",
    "RankQuality",
    "Reference",
    "Role",
    "RoleTable",
    "SelfRepair",
    "Stability",
    "Sweep",
    "Trace",
    "ablate",
    "ablation_sweep",
    "acdc",
    "activation_patch",
    "attribute_edges",
    "attribute_nodes",
    "causal_trace",
    "circuit_of",
    "evaluate_circuit",
    "exact_scores",
    "faithfulness_curve",
    "graph_of",
    "head_roles",
    "metric_of",
    "patch_sweep",
    "path_patch",
    "path_sweep",
    "prepare_ablation",
    "prepare_pair",
    "prepare_sweep",
    "prepare_trace",
    "prune_edges",
    "random_edges",
    "rank_quality",
    "self_repair",
    "stability",
    "to_neuronpedia",
]
