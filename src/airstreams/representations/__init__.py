"""Representations: what each stream's tower sees, computed from one RGB clip inside the network (section 3.1).

A representation is a module with an attribute `channels`. Its `forward` turns a clip (B, 3, T, H, W) in 0..1 into a
`Representation`. One that learns from a teacher is a subclass of `Supervised`: it also has a target and a loss of its
own. A custom stream is a class of the user's own, imported by name (docs/new-stream.md).
"""

from typing import NamedTuple

from torch import Tensor, nn

from airstreams.data.targets import TargetKind


class Representation(NamedTuple):
    """What a stream computes from a clip.

    tower_input: the input of the stream's tower, (B, channels, T, H, W).
    prediction: the network's own prediction, which a loss compares with a target and which pictures show. For flow:
        optical flow in px per frame (B, 2, T, H, W), or the difference of frames (B, 1, T, H, W). For semantic:
        segmentation logits on the segmenter's grid (B, S, T, h, w). For rgb: None. For a custom stream: None, or any
        (B, any, T, any, any). A supervised one always has a prediction, of any shape (B, ...). One that reads pooled
        features has it where the stream's own head runs.
    """

    tower_input: Tensor
    prediction: Tensor | None


class Supervised(nn.Module):
    """A representation that learns from a teacher, beside the action losses.

    channels: of the tower's input.
    target: the kind of its targets.
    stop_gradient: keep the action losses from what the teacher trains (Table 2). airstreams sets it by
        `model.stop_gradient`; `for_tower` does it.
    """

    channels: int
    target: TargetKind
    stop_gradient = False
    sees_rgb = False
    """Whether the tower sees RGB in 0..1, the clip itself."""
    reads_pooled = False
    """Whether the prediction is of the pooled features of the stream's own tower, by `predict`. The action loss of the
    stream's head must have a weight then."""

    def read_pooled(self, channels: int) -> None:
        """With `reads_pooled`: make the layers that `predict` needs, for pooled features of so many channels.

        It is called once, when the model is built.
        """

    def predict(self, pooled_BC: Tensor) -> Tensor:
        """With `reads_pooled`: the prediction (B, ...) from the tower's pooled features (B, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no predict(pooled)")

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch against its targets.

        Training divides the sum by the count of the whole step, so the shares of all batches and processes add up to
        the mean.

        Args:
            prediction: the one of `forward`, (B, ...).
            target: what the kind of target made, (B, ...).

        Returns:
            The sum over all places that have a value, and their count, which is that of `target.count`: scalars.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss(prediction, target)")

    def picture(self, values: Tensor) -> Tensor | None:
        """Colours of a clip for pictures, (T, h, w, 3) in 0..1; None: pictures leave the stream out.

        Streams with label maps need none: pictures show the classes of prediction and target.

        values: a prediction of `forward`, or a target that its kind made, without the batch's dimension.
        """
        return None

    def for_tower(self, prediction: Tensor) -> Tensor:
        """The prediction from which `forward` computes the tower's input: without gradient under `stop_gradient`."""
        return prediction.detach() if self.stop_gradient else prediction

    def taught(self) -> list[nn.Module]:
        """The modules that nothing trains under `stop_gradient` if the loss has the weight 0. They are frozen then.

        By default all. Leave out those between `for_tower` and the tower's input.
        """
        return [self]
