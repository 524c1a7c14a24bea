"""The paper's Figure 3, before and after training: optical flow as the layer began, and as the action losses left it.

    python examples/learned_flow.py runs/mine videos/ flow.png

Takes one test video each of the first classes. Of each it draws the frame with the largest motion before training,
over all views that evaluation scores: in the middle frame little may move. tau, lambda and theta are printed, and the
mean length of the flow over all these views. Everything runs on the CPU.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from airstreams.data.check import BadVideo
from airstreams.data.dataset import VideoViews
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.models import saved as saved_models
from airstreams.models.airstreams import to_unit_range
from airstreams.models.representations import Flow
from airstreams.viewing.figures import RepresentationRow, representations_figure


def main(argv: list[str] | None = None) -> int:
    """Leave the picture and print the table; returns 0, or 2 where the call or its input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that training wrote")
    parser.add_argument("data", metavar="DATA", help="as for `airstreams train`, with test videos")
    parser.add_argument("picture", metavar="PICTURE", type=Path, help="the PNG file to write")
    parser.add_argument("--videos", type=int, default=4, help="of different classes (default: 4)")
    call = parser.parse_args(argv)
    try:
        compare(call.run, call.data, call.picture, call.videos)
    except InputError as error:
        print(f"learned_flow: {error}", file=sys.stderr)
        return 2
    return 0


def compare(run: Path, data: str, picture: Path, count: int) -> None:
    """Draw `count` test videos and print what training changed. InputError: no such run or data, no test videos."""
    saved = saved_models.load(run)
    model = saved.config.model
    if "flow" not in model.streams or model.flow.kind != "tvl1":
        given = f"flow of kind {model.flow.kind}" if "flow" in model.streams else f"streams {', '.join(model.streams)}"
        raise InputError(
            f"{run}: {given}: expected a run with learned flow; train one with --model.streams '[rgb,flow]' "
            "--model.flow.kind tvl1"
        )
    learned = saved.model.representations["flow"]
    begun = Flow(model.flow, stop_gradient=False)
    rows: dict[tuple[str, ...], RepresentationRow] = {}
    lengths = []
    videos = open_source(data, to_learn_from=False).split("test")
    views_of_videos = VideoViews(videos, saved.config)
    for index, video in enumerate(videos):
        if len(rows) == count:
            break
        if video.labels in rows:
            continue
        views = views_of_videos[index]
        if isinstance(views, BadVideo):
            print(f"left out: {video.name}: {views.reason}", file=sys.stderr)
            continue
        clips_B3THW = to_unit_range(views.clips.permute(0, 4, 1, 2, 3))
        with torch.inference_mode():
            before_BTHW2, after_BTHW2 = (flow(clips_B3THW).shown.permute(0, 2, 3, 4, 1) for flow in (begun, learned))
        motion_BT = before_BTHW2.norm(dim=-1).mean(dim=(2, 3))
        view, frame = divmod(int(motion_BT.argmax()), motion_BT.shape[1])
        rows[video.labels] = RepresentationRow(
            title=", ".join(video.labels),
            frame=views.clips[view, frame].numpy(),
            flow_before=before_BTHW2[view, frame].numpy(),
            flow=after_BTHW2[view, frame].numpy(),
        )
        lengths.append([before_BTHW2.norm(dim=-1).mean(), after_BTHW2.norm(dim=-1).mean()])
    representations_figure(picture, list(rows.values()), saved.segment_classes)

    table = Table("", "before training", "after training")
    for name, parameter in (("tau", "tau"), ("lambda", "lambda_"), ("theta", "theta")):
        table.add_row(name, *(f"{getattr(flow.layer, parameter).item():.4f}" for flow in (begun, learned)))
    table.add_row("mean flow, px", *(f"{length:.4f}" for length in torch.tensor(lengths).mean(dim=0)))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
