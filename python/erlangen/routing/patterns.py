"""Names, as patterns, that count together with shapes: of classes, tensors, tables and heads.

C++ has the one copy, csrc/routing/name_patterns.cpp, beside the conventions about blocks of maps.
"""

from erlangen import _C

_PATTERNS = _C.name_patterns()

ATTENTION_CLASSES = _PATTERNS["attention_classes"]
NORM_CLASSES = _PATTERNS["norm_classes"]
ROUTER_CLASSES = _PATTERNS["router_classes"]
# Tensors that a module holds itself and that are no matrices
VECTORS = _PATTERNS["vectors"]
GAINS = _PATTERNS["gains"]
TABLES_OF_NUMBERS = _PATTERNS["tables_of_numbers"]
# Tables: of positions and other learned tokens, of tokens, of one number for each head
POSITIONS = _PATTERNS["positions"]
TOKEN_TABLES = _PATTERNS["token_tables"]
DISTANCES = _PATTERNS["distances"]
# Heads, and those that are recognised only beside a table that is called one of tokens
HEADS = _PATTERNS["heads"]
HEADS_BESIDE_TOKENS = _PATTERNS["heads_beside_tokens"]
# Maps between towers, held as a tensor [in, out]; a config states both widths, which C++ has not
PROJECTIONS = r"projection_weight$"
