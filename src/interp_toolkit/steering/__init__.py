"""Steering: directions that change what a model does, added, taken away, measured."""

from interp_toolkit.steering.contrast import activation_norms, given_vector, probe_vector, steering_vector
from interp_toolkit.steering.findings import Setting, SteeringSweep
from interp_toolkit.steering.first_token import FirstToken, first_token
from interp_toolkit.steering.operations import Gate, Predicting, steering_edits
from interp_toolkit.steering.orthogonal import orthogonalise, orthogonalised
from interp_toolkit.steering.steer import steer
from interp_toolkit.steering.sweep import steering_sweep
from interp_toolkit.steering.trials import Question, Trials, ab_questions
from interp_toolkit.steering.vector import SteeringVector, random_vectors

__all__ = [
    "FirstToken",
    "Gate",
    "Predicting",
    "Question",
    "Setting",
    "SteeringSweep",
    "SteeringVector",
    "Trials",
    "ab_questions",
    "activation_norms",
    "first_token",
    "given_vector",
    "orthogonalise",
    "orthogonalised",
    "probe_vector",
    "random_vectors",
    "steer",
    "steering_edits",
    "steering_sweep",
    "steering_vector",
]
