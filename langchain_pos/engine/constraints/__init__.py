"""Grammars compiled for a tokenizer: which tokens may come next.

Three nouns in order, as in xgrammar, which does the work: a `Constraint` is a specification, a
`ConstraintCompiler` makes it ready for one tokenizer, a `ConstraintState` is it for one sequence.
xgrammar is imported only where a grammar is used: the rest of the engine runs without it.
"""

from langchain_pos.engine.constraints.compiler import Constraint, ConstraintCompiler
from langchain_pos.engine.constraints.state import ConstraintState, apply_constraints

__all__ = ["Constraint", "ConstraintCompiler", "ConstraintState", "apply_constraints"]
