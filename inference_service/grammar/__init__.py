"""Constrained answers: their grammars for llguidance, and the trial of a constraint before the engine gets it."""
