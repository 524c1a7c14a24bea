"""The names of the packaged streams and of the losses."""

STREAMS = ("rgb", "flow", "semantic")

SUPERVISED = ("semantic", "parts", "depth", "keypoints", "distil")
"""The built-in streams that learn from a teacher. `--labels` and a single number for `loss_weights.interm` are for the
first."""

ANSWER = "answer"
"""The name of the mean of several heads, where scores and metrics are by head."""

NEVER_CUSTOM = (*STREAMS, "rgb2", "rgb3")
BUILT_IN_STREAMS = (*NEVER_CUSTOM, *SUPERVISED[1:])
"""rgb2 and rgb3 see the clip as rgb does, with towers of their own. They show what an ensemble of towers gains. Custom
streams may have the names from parts on, which runs of earlier versions may have."""

INTERM, MERGED_AFTER = "interm", "merged_after_"


def targets_option(stream: str) -> str:
    """What a call adds to give a stream its teacher's targets."""
    return "--labels LABELS" if stream == SUPERVISED[0] else f"--targets {stream}=FOLDER"


def own_loss(stream: str) -> str:
    """The name of the loss of a stream on its teacher's targets: `interm.parts`. Of semantic: `interm`, as in 0.1."""
    return INTERM if stream == SUPERVISED[0] else f"{INTERM}.{stream}"


def stream_of(loss: str) -> str | None:
    """The stream whose loss on its teacher's targets has this name; None: it is a head's action loss."""
    name, _, stream = loss.partition(".")
    return (stream or SUPERVISED[0]) if name == INTERM else None


def is_custom(loss: str) -> bool:
    """Whether a head's action loss is not one of the four of equation 2."""
    return loss not in (*STREAMS, "merged")
