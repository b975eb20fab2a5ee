"""What is asked of a backbone."""

from tlkit.check.backbone.subject import BackboneSubject as SUBJECT  # noqa: N814 - the name every kind has

MODULES = (
    "tlkit.check.offer",
    "tlkit.check.backbone.declared",
    "tlkit.check.backbone.stages",
    "tlkit.check.backbone.state",
    "tlkit.check.backbone.weights",
    "tlkit.check.backbone.running",
    "tlkit.check.backbone.learning",
    "tlkit.check.backbone.graph",
)

__all__ = ["MODULES", "SUBJECT"]
