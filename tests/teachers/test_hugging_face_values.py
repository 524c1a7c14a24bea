"""Depth, keypoints and features of transformers, with small random weights saved to a folder."""

import json

import numpy as np
import pytest
import torch

from airstreams.errors import InputError
from airstreams.teachers.teacher import load_teacher

CPU = torch.device("cpu")
FRAMES_THW3 = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8).repeat(14, 1).repeat(14, 2)
"""Two frames of 42x56 px, in blocks of one colour."""
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def saved(tmp_path):
    """Saves a model, and its processor or the JSON of one, to a folder."""

    def save(model, processor=None, name="model"):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 2 / parameter[0].numel() ** 0.5)
        model.save_pretrained(tmp_path / name)
        if isinstance(processor, dict):
            (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(processor))
        elif processor is not None:
            processor.save_pretrained(tmp_path / name)
        return tmp_path / name, model.eval()

    return save


def vit(**values):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**small, **values}


def normalised(frames_THW3):
    """(T, H, W, 3) to a network's input (T, 3, H, W)."""
    return torch.from_numpy(((frames_THW3 / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("depth_type", ["relative", "metric"])
def test_depth_anything_gives_a_map(transformers, saved, depth_type):
    backbone = transformers.Dinov2Config(
        **vit(image_size=56, patch_size=14, out_indices=[1, 2], reshape_hidden_states=False, apply_layernorm=True)
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=depth_type,
    )  # fmt: skip
    processor = transformers.DPTImageProcessorPil(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    )
    folder, model = saved(transformers.DepthAnythingForDepthEstimation(config), processor)
    teacher = load_teacher(f"hf:{folder}", {}, CPU)
    assert teacher.target.kind == "maps"
    assert (teacher.target.names, teacher.target.unit) == {
        "relative": (("inverse depth",), ""), "metric": (("depth",), "m")
    }[depth_type]  # fmt: skip
    with torch.inference_mode():
        expected = model(**processor(list(FRAMES_THW3), return_tensors="pt")).predicted_depth
    np.testing.assert_allclose(teacher(FRAMES_THW3)[:, 0], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def vitpose(transformers, saved):
    backbone = transformers.VitPoseBackboneConfig(**vit(image_size=[64, 48], patch_size=[16, 16], out_indices=[2]))
    names = {0: "Nose", 1: "L_Knee", 2: "R_Knee"}
    config = transformers.VitPoseConfig(backbone_config=backbone, id2label=names, use_simple_decoder=True)
    processor = transformers.VitPoseImageProcessorPil(size={"height": 64, "width": 48})
    return (*saved(transformers.VitPoseForPoseEstimation(config), processor), processor)


def test_vitpose_gives_points(transformers, vitpose):
    folder, model, processor = vitpose
    teacher = load_teacher(f"hf:{folder}", {}, CPU)
    assert (teacher.target.kind, teacher.target.names) == ("points", ("Nose", "L_Knee", "R_Knee"))
    assert teacher.target.pairs == (("L_Knee", "R_Knee"),)
    points_TMP3 = teacher(FRAMES_THW3)
    assert points_TMP3.shape == (2, 1, 3, 3)
    boxes = [[[0.0, 0.0, 56.0, 42.0]]] * 2
    with torch.inference_mode():
        outputs = model(**processor(list(FRAMES_THW3), boxes=boxes, return_tensors="pt"))
    heatmaps = outputs.heatmaps.numpy()
    np.testing.assert_allclose(points_TMP3[:, 0, :, 2], heatmaps.max((2, 3)).clip(0, 1), rtol=1e-4, atol=1e-5)
    # The box of 56x42 px is widened to the network's shape, 3:4, and by a quarter: 70 x 93.3 px around (28, 21).
    rows, columns = np.unravel_index(heatmaps.reshape(2, 3, -1).argmax(-1), heatmaps.shape[2:])
    x = 28 + (columns / (heatmaps.shape[3] - 1) - 0.5) * 70
    y = 21 + (rows / (heatmaps.shape[2] - 1) - 0.5) * 280 / 3
    cell = np.array([70 / (heatmaps.shape[3] - 1) / 56, 280 / 3 / (heatmaps.shape[2] - 1) / 42])
    assert (np.abs(points_TMP3[:, 0, :, :2] - np.stack([x / 56, y / 42], -1)) < 2 * cell).all()


def test_vitpose_takes_people_from_a_detector(transformers, saved, vitpose):
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=64, num_queries=12, decoder_layers=1,
        encoder_layers=1, decoder_ffn_dim=16, encoder_ffn_dim=16, id2label={0: "cat", 1: "person"},
    )  # fmt: skip
    processor = transformers.DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    detector, model = saved(transformers.DetrForObjectDetection(config), processor, "detector")
    with torch.inference_mode():
        outputs = model(**processor(list(FRAMES_THW3), return_tensors="pt"))
    scores = outputs.logits.softmax(-1)[..., :-1]
    is_person = scores.argmax(-1) == 1
    for threshold in (0.0, 0.4, 1.0):
        points_TMP3 = load_teacher(f"hf:{vitpose[0]}+{detector}", {"score_threshold": threshold}, CPU)(FRAMES_THW3)
        assert points_TMP3.shape == (2, 8, 3, 3)
        people = (is_person & (scores.amax(-1) > threshold)).sum(1).clamp(max=8)
        found = (points_TMP3 != 0).any((2, 3)).sum(1)
        np.testing.assert_array_equal(found, people.numpy())


@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_dino_gives_features_on_a_grid(transformers, saved, family):
    values = vit(image_size=42, patch_size=14)
    values |= {"intermediate_size": 64, "num_register_tokens": 3} if family == "DINOv3ViT" else {}
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**values))
    crop = {"height": 42, "width": 42}
    preprocessing = {"image_mean": MEAN.tolist(), "image_std": DEVIATION.tolist(), "crop_size": crop}
    folder, model = saved(model, preprocessing)
    teacher = load_teacher(f"hf:{folder}", {}, CPU)
    assert teacher.target.kind == "grid"
    with torch.inference_mode():
        tokens = model(normalised(FRAMES_THW3)).last_hidden_state
    registers = {"Dinov2": 0, "Dinov2WithRegisters": 4, "DINOv3ViT": 3}[family]
    expected = tokens[:, 1 + registers :].reshape(2, 3, 4, 32).permute(0, 3, 1, 2)
    np.testing.assert_allclose(teacher(FRAMES_THW3), expected.numpy(), rtol=1e-3, atol=1e-4)
    # A larger frame is resized, so the grid stays.
    assert teacher(FRAMES_THW3.repeat(2, 1).repeat(2, 2)).shape == (2, 32, 3, 4)


@pytest.mark.parametrize("family", ["VideoMAE", "VJEPA2"])
def test_video_transformers_give_features_of_a_clip(transformers, saved, family):
    if family == "VideoMAE":
        config = transformers.VideoMAEConfig(**vit(image_size=32, patch_size=16, num_frames=4, intermediate_size=64))
    else:
        config = transformers.VJEPA2Config(
            **vit(crop_size=32, patch_size=16, frames_per_clip=4, mlp_ratio=2.0),
            pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        )  # fmt: skip
    folder, model = saved(getattr(transformers, f"{family}Model")(config))
    teacher = load_teacher(f"hf:{folder}", {}, CPU)
    assert (teacher.target.kind, teacher.target.clip_frames) == ("clip", 4)
    clips = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    inputs = normalised(clips.reshape(8, 32, 32, 3)).reshape(2, 4, 3, 32, 32)
    with torch.inference_mode():
        outputs = model(inputs, skip_predictor=True) if family == "VJEPA2" else model(inputs)
    expected = outputs.last_hidden_state.mean(1).numpy()
    np.testing.assert_allclose(teacher(clips), expected, rtol=1e-3, atol=1e-4)
    # The middle square of a wider frame is seen.
    wide = np.concatenate([np.zeros_like(clips[:, :, :, :16]), clips, np.zeros_like(clips[:, :, :, :16])], axis=3)
    np.testing.assert_allclose(teacher(wide), expected, rtol=1e-3, atol=1e-4)


def test_clip_gives_the_embedding_of_an_image(transformers, saved):
    vision = vit(image_size=32, patch_size=16, intermediate_size=64, projection_dim=8)
    text = vit(intermediate_size=64, vocab_size=9, max_position_embeddings=8, projection_dim=8, eos_token_id=2)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    preprocessing = {"image_mean": MEAN.tolist(), "image_std": DEVIATION.tolist()}
    folder, model = saved(transformers.CLIPModel(config), preprocessing)
    teacher = load_teacher(f"hf:{folder}", {}, CPU)
    assert (teacher.target.kind, teacher.target.clip_frames) == ("clip", 1)
    clips = np.random.default_rng(1).integers(0, 256, (2, 1, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        pooled = model.vision_model(normalised(clips[:, 0])).pooler_output
        expected = model.visual_projection(pooled).numpy()
    np.testing.assert_allclose(teacher(clips), expected, rtol=1e-3, atol=1e-4)


def refusal_of(spec, **options):
    with pytest.raises(InputError) as raised:
        load_teacher(f"hf:{spec}", options, CPU)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_a_model_cannot_do_is_refused(transformers, saved, vitpose):
    config = transformers.BertConfig(**vit(intermediate_size=64, vocab_size=9))
    bert, _ = saved(transformers.BertModel(config), name="bert")
    message = refusal_of(bert)
    assert all(name in message for name in ("BertModel", "DINOv2", "ViTPose", "V-JEPA 2"))
    assert "BertModel" in refusal_of(f"{vitpose[0]}+{bert}")
    assert "--score-threshold" in refusal_of(vitpose[0], score_threshold=0.4)
    dino, _ = saved(transformers.Dinov2Model(transformers.Dinov2Config(**vit(image_size=28))), name="dino")
    assert "--unsure-from" in refusal_of(dino, unsure_from=0.1)
    assert f"+{bert}" in refusal_of(f"{dino}+{bert}")
