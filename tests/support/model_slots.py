"""Set up ModelSlots on a home of their own, with two bundles to serve."""

from datetime import UTC, datetime

from serving.inference.generation import write_generation
from serving.inference.model_slots import ModelSlots
from support.serving_fixture import make_bundle

AT = datetime(2024, 1, 1, tzinfo=UTC)


class Place:
    """Hold slots, their folders and the alarms they raised."""

    def __init__(self, home, stand):
        self.serving, self.bundles, self.alarms = home / "serving", home / "bundles", []
        self.slots = ModelSlots(self.serving, self.bundles, lambda *alarm: self.alarms.append(alarm))
        self.first = make_bundle(self.bundles, stand.columns, stand.rows, 0.1)
        self.second = make_bundle(self.bundles, stand.columns, stand.rows, 0.9)

    def serve(self, champion, challenger=None, family="validator"):
        """Write a generation file with these arms and return its number."""
        arms = {"champion": champion, "challenger": challenger}
        return write_generation(self.serving, {family: arms}, {}, AT)

    def champion(self):
        """Return the validator champion's slot."""
        return self.slots.snapshot.slot("validator", "champion")


def spoil_weights(bundle):
    """Change one byte of a bundle's model."""
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes() + b" ")
