"""The model families by name, in the order they are displayed.

Not in contracts: every kernel imports that file, so a new family would recompile all machine code.
"""

FAMILIES = ("validator", "pattern", "regime", "predictor")
DECISION_FAMILY = "validator"  # its probability decides a trade
