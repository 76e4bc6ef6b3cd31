"""What is found about a parameter, and how far it can be relied on."""

from dataclasses import dataclass, field

DECLARED, RECOGNISED, ASSUMED = "declared", "recognised", "assumed"
GRADES = (DECLARED, RECOGNISED, ASSUMED)  # best first


@dataclass(frozen=True)
class Finding:
    """A role with its layout, the options in which it differs from the role's own, its grade, and
    the reason in one phrase. `storage`: what another role would have of the layout, too."""

    role: str
    grade: str
    why: str
    layout: list = field(default_factory=list)
    options: dict = field(default_factory=dict)
    storage: list = field(default_factory=list)

    def says_as(self, other: "Finding") -> bool:
        """Whether both make the same of the parameter, for whatever reason."""
        return (self.role, self.layout, self.options) == (other.role, other.layout, other.options)


def assumed(role: str, why: str, layout: list | None = None) -> Finding:
    """Only the type of the layer is known."""
    return Finding(role, ASSUMED, why, layout or [])
