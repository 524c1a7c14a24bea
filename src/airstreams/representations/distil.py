"""The stream distil: RGB whose tower also learns a teacher's features of whole clips (knowledge distillation)."""

from torch import Tensor, nn

from airstreams.data.targets import FeaturesPerClip
from airstreams.representations import Representation, Supervised
from airstreams.representations.losses import cosine_loss


class Distil(Supervised):
    """The clip itself, as for rgb. A linear layer predicts the teacher's features from the tower's pooled features.

    The action losses never reach this layer. The teacher's loss reaches the whole tower.
    """

    channels = 3
    sees_rgb = True
    reads_pooled = True
    target = FeaturesPerClip(64)
    stop_gradient = True

    def forward(self, clip_B3THW: Tensor) -> Representation:
        """From a clip in 0..1 to its `Representation`, without a prediction."""
        return Representation(clip_B3THW, None)

    def read_pooled(self, channels: int) -> None:
        """Make the layer for pooled features of so many channels."""
        self.projection = nn.Linear(channels, self.target.channels)

    def predict(self, pooled_BC: Tensor) -> Tensor:
        """The features (B, 64) that the tower's pooled features predict."""
        predicted_BD: Tensor = self.projection(pooled_BC)
        return predicted_BD

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """1 minus the cosine of predicted and taught features, both (B, 64)."""
        return cosine_loss(prediction, target)
