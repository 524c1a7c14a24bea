"""All settings of a run."""

import math
from dataclasses import dataclass, field

from airstreams.config.data import ClipConfig, DataConfig
from airstreams.config.evaluation import EvaluationConfig, EvolutionConfig
from airstreams.config.limits import MOST_PIXELS
from airstreams.config.losses import LossWeights
from airstreams.config.model import ModelConfig
from airstreams.config.streams import ANSWER, BUILT_IN_STREAMS, SUPERVISED, is_custom, own_loss
from airstreams.config.training import TrainingConfig
from airstreams.errors import require
from airstreams.towers import LEAST_FRAMES


@dataclass
class Config:
    """All settings of a run: its clips, data, model, losses, training, evaluation and search.

    A wrong value raises `InputError`, which names the key. `load_config` reads a recipe, and `save_config` writes one.
    """

    seed: int = 0
    """The seed of all random draws: weights, splits, clips, dropout, loss weights."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to below 2^63")
        clip, evaluation = self.clip, self.evaluation
        pixels = evaluation.views * evaluation.crops * clip.frames * clip.size**2
        expected = f"at most {MOST_PIXELS} pixels, counted as views x crops x clip.frames x clip.size x clip.size"
        require(pixels <= MOST_PIXELS, "evaluation.views", f"{pixels} pixels of a video", expected)
        for name in {self.model.backbone_of(stream) for stream in (*self.model.streams, None)}:
            least = LEAST_FRAMES.get(name, 1)
            require(self.clip.frames >= least, "clip.frames", self.clip.frames, f"at least {least} with {name}")
        if len(self.model.streams) > 1 and not self.loss_weights.merged:
            self._check_without_merge()
        known = [*BUILT_IN_STREAMS, *self.model.representations]
        others = ", ".join(name for name in self.training.lr_factors if name not in known)
        require(not others, "training.lr_factors", others, f"some of the streams {', '.join(known)}")
        custom = [*filter(is_custom, BUILT_IN_STREAMS), *self.model.representations]
        unknown = ", ".join(name for name in self.loss_weights.custom if name not in custom)
        require(not unknown, "loss_weights.custom", unknown, f"custom streams' names: {', '.join(custom)}")
        taught = [*SUPERVISED, *self.model.representations]
        unknown = ", ".join(name for name in self.loss_weights.own_losses if name not in taught)
        require(not unknown, "loss_weights.interm", unknown, f"streams that learn from a teacher: {', '.join(taught)}")
        levels = self.model.merge_levels[1:]
        unknown = ", ".join(str(level) for level in self.loss_weights.merged_after if level not in levels)
        others = f"levels of model.merge_levels after the first: {', '.join(map(str, levels)) or 'there are none'}"
        require(not unknown, "loss_weights.merged_after", unknown, others)

    def _check_without_merge(self) -> None:
        """Some head must give the answer, and some head must train each tower."""
        expected = "over 0, because the merged head gives the answer"
        require(self.model.answer == "mean", "loss_weights.merged", self.loss_weights.merged, expected)
        for stream in self.model.streams:
            weight, key = self.loss_weights.of(stream), f"custom.{stream}" if is_custom(stream) else stream
            expected = "over 0, because without the merged head only its own head trains its tower"
            require(weight > 0, f"loss_weights.{key}", weight, expected)

    def active_loss_weights(self) -> dict[str, float]:
        """The weights of the losses of this model, also those that are 0. The action loss of a lone stream has 1."""
        heads = self.model.heads
        weights = {head: 1.0 if len(heads) == 1 else self.loss_weights.of(head) for head in heads}
        return weights | {own_loss(stream): self.loss_weights.of(own_loss(stream)) for stream in self.supervised}

    @property
    def supervised(self) -> list[str]:
        """The streams with a loss on a teacher's targets, also those whose loss has the weight 0."""
        custom = self.model.representations  # which may have the name of a packaged stream
        named = {*self.loss_weights.own_losses, *(stream for stream in SUPERVISED if stream not in custom)}
        return [stream for stream in self.model.streams if stream in named]

    @property
    def taught(self) -> list[str]:
        """The streams that learn from a teacher's targets. Training needs these targets."""
        return [stream for stream in self.supervised if self.loss_weights.of(own_loss(stream)) > 0]

    def lambdas(self) -> list[str]:
        """The names of this model's weights in equation 2."""
        return list(self.active_loss_weights())

    def searched_lambdas(self) -> list[str]:
        """The weights that `airstreams evolve` searches."""
        return [name for name in self.lambdas() if name not in self.evolution.fixed]

    def trained_heads(self) -> list[str]:
        """The heads whose loss has a weight over 0. The others keep their random weights."""
        weights = self.active_loss_weights()
        return [head for head in self.model.heads if weights[head] > 0]

    @property
    def answer_heads(self) -> list[str]:
        """The heads that give the model's answer: that of their mean logits."""
        return self.trained_heads() if self.model.answer == "mean" else self.model.heads[-1:]

    @property
    def answer(self) -> str:
        """The answer's name where scores and metrics are by head: its head's, or `ANSWER` for the mean of several."""
        first, *others = self.answer_heads
        return ANSWER if others else first

    def segmenter_classes(self, of_teacher: int) -> int:
        """The number of the segmenter's classes for a teacher with so many, without `data.compact_classes`."""
        kept = len(self.data.segment_classes)
        return 1 + kept + 1 if kept else of_teacher  # the background, and one class for all others

    @property
    def decoded_side(self) -> int:
        """The shorter side of decoded frames, in px: the smallest at which no crop has to be enlarged.

        Smaller frames keep their size. Converting a 1080p frame to RGB costs more than decoding it.
        """
        return math.ceil(self.clip.size * math.sqrt(self.data.crop_aspect / self.data.crop_scale[0]))

    @property
    def needs_labels(self) -> bool:
        """Whether training needs the targets that `--labels` names."""
        return SUPERVISED[0] in self.taught
