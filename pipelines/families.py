"""The families of models, by name, in the order they are shown.

Not in contracts: every kernel rests on that file, and a new family would have all machine code made anew.
"""

FAMILIES = ("validator", "pattern", "regime", "predictor")
DECISION_FAMILY = "validator"  # its probability decides a trade
