"""The model families by name, in the order they are displayed.

Not in contracts: every kernel imports that file, so a new family would recompile all machine code.
"""

from typing import Literal, get_args

Family = Literal["validator", "pattern", "regime", "predictor"]  # a drop-down in the forms of Prefect
FAMILIES: tuple[str, ...] = get_args(Family)
DECISION_FAMILY = "validator"  # its probability decides a trade
ACTING = (DECISION_FAMILY, "regime")  # whose answers change what is decided; the others predict in shadow
