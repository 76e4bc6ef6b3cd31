"""Names by which people call the parts of a model. C++ has the one copy: csrc/name_patterns.cpp,
and csrc/conventions.cpp for blocks of linear maps."""

from erlangen import _C

_PATTERNS = _C.name_patterns()

# Tensors that a module holds itself: names of what is "other" in any number of dimensions
VECTORS = _PATTERNS["vectors"]
GAINS = _PATTERNS["gains"]
TABLES_OF_NUMBERS = _PATTERNS["tables_of_numbers"]
# Tables: of positions and learned tokens, of tokens, and of one number for each head
POSITIONS = _PATTERNS["positions"]
TOKEN_TABLES = _PATTERNS["token_tables"]
DISTANCES = _PATTERNS["distances"]
HEADS = _PATTERNS["heads"]
HEADS_BESIDE_TOKENS = _PATTERNS["heads_beside_tokens"]
# Maps between towers, held as a tensor [in, out]; they need a config that states both widths
PROJECTIONS = r"projection_weight$"
# Classes
ROUTER_CLASSES = _PATTERNS["router_classes"]
ATTENTION_CLASSES = _PATTERNS["attention_classes"]
