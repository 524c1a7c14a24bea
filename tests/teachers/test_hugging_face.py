"""Models and processors of transformers with small random weights, saved to a folder and loaded as teachers."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from airstreams.errors import InputError
from airstreams.teachers.teacher import load_teacher

CPU = torch.device("cpu")
NAMES = {0: "cat", 1: "dog", 2: "person"}
FRAMES_THW3 = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), np.uint8).repeat(16, 1).repeat(16, 2)
"""Two frames of 48x80 px, in blocks of one colour."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves a model and its processor to a folder. The weights are large, so that some scores are high."""

    def save(model, processor, seed=5):
        folder = tmp_path_factory.mktemp("model")
        random = np.random.default_rng(seed)  # torch's generator may change with its version
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim < 2:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                else:
                    weights = random.normal(0, 3 / parameter[0].numel() ** 0.5, parameter.shape)
                    parameter.copy_(torch.from_numpy(weights))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def swin(transformers):
    return transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def mask2former(transformers, saved, swin):
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, num_queries=12, encoder_layers=1,
        encoder_feedforward_dim=16, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, id2label=NAMES,
    )  # fmt: skip
    processor = transformers.Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    return saved(model, processor)


@pytest.fixture(scope="module")
def maskformer(transformers, saved, swin):
    decoder = transformers.DetrConfig(
        d_model=16, num_queries=12, decoder_layers=1, encoder_layers=1, decoder_ffn_dim=16, encoder_ffn_dim=16,
        decoder_attention_heads=2, encoder_attention_heads=2,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=swin, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, id2label=NAMES
    )
    processor = transformers.MaskFormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    model = transformers.MaskFormerForInstanceSegmentation(config)
    return saved(model, processor)


@pytest.fixture(scope="module")
def detr(transformers, saved):
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=64, num_queries=3, decoder_layers=1,
        encoder_layers=1, decoder_ffn_dim=16, encoder_ffn_dim=16, id2label=NAMES,
    )  # fmt: skip
    processor = transformers.DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    model = transformers.DetrForSegmentation(config)
    return saved(model, processor, seed=9)


@pytest.fixture(scope="module")
def eomt(transformers, saved):
    config = transformers.EomtConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16, num_blocks=1,
        num_queries=3, num_upscale_blocks=1, id2label=NAMES,
    )  # fmt: skip
    processor = transformers.EomtImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 64}, do_split_image=False, do_pad=True
    )
    model = transformers.EomtForUniversalSegmentation(config)
    return saved(model, processor)


@pytest.fixture(scope="module")
def segformer_of(transformers, saved):
    def make(names):
        config = transformers.SegformerConfig(
            depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, id2label=names
        )
        processor = transformers.SegformerImageProcessorPil(size={"height": 64, "width": 64})
        model = transformers.SegformerForSemanticSegmentation(config)
        return saved(model, processor)

    return make


def outputs_of(transformers, folder, architecture):
    """The processor that `AutoImageProcessor` picks, and the model's outputs for the frames."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    with torch.inference_mode():
        return processor, model(**processor(list(FRAMES_THW3), return_tensors="pt"))


def middle_of(scores):
    """A threshold in the widest gap of the middle half of the scores."""
    scores = np.sort(scores)
    middle = scores[len(scores) // 4 : len(scores) * 3 // 4 + 1]
    at = np.diff(middle).argmax()
    return float(middle[at : at + 2].mean())


@pytest.mark.parametrize(
    ("kind", "architecture", "resolution"),
    [
        ("mask2former", "Mask2FormerForUniversalSegmentation", (384, 384)),
        ("maskformer", "MaskFormerForInstanceSegmentation", None),
    ],
)
def test_overlapping_instances_are_drawn_by_score(transformers, request, kind, architecture, resolution):
    folder = request.getfixturevalue(kind)
    _, outputs = outputs_of(transformers, folder, architecture)
    masks_TQhw = outputs.masks_queries_logits
    if resolution:
        masks_TQhw = F.interpolate(masks_TQhw, resolution, mode="bilinear")
    inside_TQhw = masks_TQhw > 0
    confidence_TQ1 = (masks_TQhw.sigmoid() * inside_TQhw).sum((2, 3))[..., None] / inside_TQhw.sum((2, 3))[..., None]
    probabilities_TQS = outputs.class_queries_logits.softmax(-1)[..., :-1]
    queries, (height, width) = probabilities_TQS.shape[1], masks_TQhw.shape[2:]
    instances = []  # per frame (score, class, query): as many as there are queries, the most probable ones
    for t in range(2):
        likeliest = probabilities_TQS[t].flatten().argsort(descending=True)[:queries]
        scores = (probabilities_TQS[t] * confidence_TQ1[t]).flatten()
        instances.append([(scores[i].item(), i.item() % 3, i.item() // 3) for i in likeliest])
    threshold = middle_of([score for frame in instances for score, _, query in frame if score == score])
    expected = np.zeros(FRAMES_THW3.shape[:3], np.uint8)
    for t, y, x in np.ndindex(expected.shape):
        inside = inside_TQhw[t, :, y * height // 48, x * width // 80].tolist()
        sure = [(score, name) for score, name, query in instances[t] if score >= threshold and inside[query]]
        expected[t, y, x] = 1 + max(sure)[1] if sure else 0
    teacher = load_teacher(f"hf:{folder}", {"score_threshold": threshold}, CPU)
    assert teacher.classes == ("background", "cat", "dog", "person")
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(teacher(FRAMES_THW3), expected)


@pytest.mark.parametrize(
    ("kind", "architecture"), [("detr", "DetrForSegmentation"), ("eomt", "EomtForUniversalSegmentation")]
)
def test_panoptic_segments_are_drawn(transformers, request, kind, architecture):
    folder = request.getfixturevalue(kind)
    processor, outputs = outputs_of(transformers, folder, architecture)
    lower, upper = 0.1, 0.9
    found = processor.post_process_panoptic_segmentation(outputs, threshold=lower, target_sizes=[(48, 80)] * 2)
    expected = np.zeros(FRAMES_THW3.shape[:3], np.uint8)
    for t, panoptic in enumerate(found):
        for segment in panoptic["segments_info"]:
            sure = segment["score"] >= upper
            expected[t][panoptic["segmentation"].numpy() == segment["id"]] = 1 + segment["label_id"] if sure else 255
    labels_THW = load_teacher(f"hf:{folder}", {"score_threshold": upper, "unsure_from": lower}, CPU)(FRAMES_THW3)
    assert {1, 2, 3} & set(np.unique(expected))
    assert 255 in expected
    np.testing.assert_array_equal(labels_THW, expected)


def test_frames_without_detections_are_background(mask2former):
    labels_THW = load_teacher(f"hf:{mask2former}", {"score_threshold": 1.0}, CPU)(FRAMES_THW3)
    np.testing.assert_array_equal(labels_THW, np.zeros(FRAMES_THW3.shape[:3], np.uint8))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ({0: "wall", 1: "sky"}, ("background", "wall", "sky")),
        ({0: "Background", 1: "sky", 2: "cat"}, ("Background", "sky", "cat")),
        ({0: "other", 1: "sky", 2: "cat"}, ("other", "sky", "cat")),
    ],
)
def test_semantic_models_keep_their_background_or_get_one(transformers, segformer_of, names, classes):
    folder = segformer_of(names)
    processor, outputs = outputs_of(transformers, folder, "SegformerForSemanticSegmentation")
    likeliest = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 80)] * 2)
    expected = np.stack([ids.numpy() for ids in likeliest]) + len(classes) - len(names)
    teacher = load_teacher(f"hf:{folder}", {}, CPU)
    assert teacher.classes == classes
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(teacher(FRAMES_THW3), expected)


def test_models_stored_in_half_precision_are_loaded(transformers, segformer_of):
    folder = segformer_of(NAMES)
    before = load_teacher(f"hf:{folder}", {}, CPU)(FRAMES_THW3)
    transformers.SegformerForSemanticSegmentation.from_pretrained(folder).half().save_pretrained(folder)
    after = load_teacher(f"hf:{folder}", {}, CPU)(FRAMES_THW3)
    assert (before == after).mean() > 0.95  # they differ by the rounding of the weights


def test_unsure_pixels_of_a_semantic_model_become_no_label(transformers, segformer_of):
    folder = segformer_of(NAMES)
    _, outputs = outputs_of(transformers, folder, "SegformerForSemanticSegmentation")
    probabilities = F.interpolate(outputs.logits, (48, 80), mode="bilinear").softmax(1).max(1)
    score, likeliest = probabilities.values.numpy(), probabilities.indices.numpy() + 1
    lower, upper = np.quantile(score, [0.3, 0.6]).tolist()
    expected = np.where(score >= upper, likeliest, np.where(score >= lower, 255, 0))
    labels_THW = load_teacher(f"hf:{folder}", {"score_threshold": upper, "unsure_from": lower}, CPU)(FRAMES_THW3)
    np.testing.assert_array_equal(labels_THW, expected)


def test_processors_do_not_crop(transformers, saved):
    config = transformers.MobileViTConfig(
        hidden_sizes=[16] * 3, neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16], num_attention_heads=2, aspp_out_channels=8,
        image_size=64, id2label=NAMES,
    )  # fmt: skip
    processor = transformers.MobileViTImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    )
    assert processor.do_center_crop
    model = transformers.MobileViTForSemanticSegmentation(config)
    folder = saved(model, processor)
    teacher = load_teacher(f"hf:{folder}", {}, CPU)
    bright = np.full((1, 64, 256, 3), 200, np.uint8)
    darkened = bright.copy()
    darkened[:, :, :32] = 0  # outside a crop of the middle 64x64 pixels
    assert (teacher(bright) != teacher(darkened)).any()


def changed(folder, to, **values):
    """A copy of a saved model with other values in its config."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **values}))
    return to


def refusal_of(folder):
    with pytest.raises(InputError) as raised:
        load_teacher(f"hf:{folder}", {}, CPU)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_classifier_is_refused(segformer_of, tmp_path):
    classifier = changed(segformer_of(NAMES), tmp_path / "model", architectures=["SegformerForImageClassification"])
    assert "SegformerForImageClassification" in refusal_of(classifier)


def test_weights_without_the_segmentation_head_are_refused(transformers, segformer_of, tmp_path):
    folder = segformer_of(NAMES)
    shutil.copytree(folder, tmp_path / "model")
    transformers.SegformerModel.from_pretrained(folder).save_pretrained(tmp_path / "model")
    shutil.copy(folder / "config.json", tmp_path / "model")
    assert "decode_head" in refusal_of(tmp_path / "model")


def test_too_many_classes_are_refused(segformer_of):
    folder = segformer_of({i: f"class {i}" for i in range(255)})
    assert "255 classes" in refusal_of(folder)
    most = load_teacher(f"hf:{segformer_of({i: f'class {i}' for i in range(254)})}", {}, CPU)
    assert len(most.classes) == 255


def test_a_model_that_predicts_in_windows_is_refused(eomt, tmp_path):
    shutil.copytree(eomt, tmp_path / "model")
    config = tmp_path / "model" / "preprocessor_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "do_split_image": True}))
    assert "windows" in refusal_of(tmp_path / "model")


def test_a_folder_without_a_model_is_refused(transformers, tmp_path):
    assert f"hf:{tmp_path} " in refusal_of(tmp_path)


def test_a_failed_download_is_refused(transformers, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "hf:nobody/no-such-model " in refusal_of("nobody/no-such-model")


def test_a_missing_transformers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers pillow" in refusal_of("some/model")
