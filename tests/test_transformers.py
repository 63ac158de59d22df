"""Other people's models: tiny transformers of random weights, in float64; nothing is downloaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigstep import Accumulator, losses
from bigstep.errors import ExactnessError, LossError, RandomnessError
from oracles import full_batch_gradients, keyed_gradients, relative_error

transformers = pytest.importorskip(
    "transformers", reason="the extra `bench` is not installed: `make peers`, or pip install -r requirements-bench.txt"
)

N, LENGTH, VOCABULARY, CLASSES = 8, 7, 31, 4
CUTS = (8, 3, 1)
FLOAT32 = 1e-6  # T5's norms and attention round to float32 in any model; with a loss of known weight it is exact to 1e-15
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER_DECODER = {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@dataclass(frozen=True)
class Row:
    """A model, its inputs and targets, bigstep's loss, and the same loss as a mean over the whole batch."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    targets: Callable[[], Any]
    loss: Any
    mean: Callable[[Any, Any], Tensor]
    tolerance: float = 1e-12


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ids(seed: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (N, length), generator=_generator(seed))


def _mask() -> Tensor:
    """Sequences of 2 to 7 tokens, padded on the right."""
    return (torch.arange(LENGTH) < torch.tensor([7, 3, 2, 5, 7, 2, 6, 4])[:, None]).long()


def _token_labels() -> Tensor:
    return torch.where(_mask().bool(), _ids(), -100)


def _classes() -> Tensor:
    return torch.randint(0, CLASSES, (N,), generator=_generator(3))


def _values(*shape: int) -> Tensor:
    return torch.randn(N, *shape, dtype=torch.float64, generator=_generator(4))


def _text() -> Any:
    return transformers.BatchEncoding({"input_ids": _ids(), "attention_mask": _mask()})


def _text_pair(**first: Tensor) -> dict[str, Tensor]:
    return first | {"decoder_input_ids": _ids(2)}


def _per_sequence(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of each sequence's valid tokens, weighted by their number."""
    each = F.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
    counts = (labels != -100).sum(1)
    return each.sum(1) / counts, counts


def _token_mean(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


def _shifted_mean(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _class_mean(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, labels)


def _model(name: str, config: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, name)(config).double().train()


def _gpt2(dropout: float = 0.1) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    shares = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return _model("GPT2LMHeadModel", transformers.GPT2Config(**sizes, **shares))


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, **SMALL, num_key_value_heads=1, attention_dropout=0.1)
    return _model("LlamaForCausalLM", config)


def _bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=VOCABULARY, **SMALL, max_position_embeddings=16, num_labels=CLASSES)
    return _model("BertForSequenceClassification", config)


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return _model("T5ForConditionalGeneration", config)


def _vit() -> nn.Module:
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=CLASSES, **dropout)
    return _model("ViTForImageClassification", config)


def _clip() -> nn.Module:
    text = SMALL | {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = SMALL | {"image_size": 8, "patch_size": 4}
    return _model("CLIPModel", transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def _wav2vec2(*, augmented: bool) -> nn.Module:
    config = transformers.Wav2Vec2Config(
        **SMALL,
        conv_dim=(8, 8),
        conv_kernel=(5, 3),
        conv_stride=(3, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        apply_spec_augment=augmented,
        mask_time_prob=0.5,
        mask_time_length=2,
        layerdrop=0.1,
        num_labels=CLASSES,
        classifier_proj_size=8,
    )
    return _model("Wav2Vec2ForSequenceClassification", config)


def _whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        **ENCODER_DECODER,
        num_mel_bins=4,
        max_source_positions=10,
        max_target_positions=16,
        dropout=0.1,
        attention_dropout=0.1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return _model("WhisperForConditionalGeneration", config)


def _bart(layerdrop: float = 0.2) -> nn.Module:
    drops = {"dropout": 0.1, "encoder_layerdrop": layerdrop, "decoder_layerdrop": layerdrop}
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, max_position_embeddings=16, forced_eos_token_id=None, **ENCODER_DECODER, **drops
    )
    return _model("BartForConditionalGeneration", config)


ROWS: dict[str, Row] = {
    "GPT-2": Row(_gpt2, _text, _token_labels, losses.CausalLM(), _shifted_mean),
    "Llama": Row(_llama, _text, _token_labels, losses.CausalLM(), _shifted_mean),
    "BERT": Row(_bert, _text, _classes, losses.CrossEntropy(), _class_mean),
    "T5": Row(_t5, lambda: _text_pair(**_text()), _token_labels, _per_sequence, _token_mean, FLOAT32),
    "ViT": Row(_vit, lambda: {"pixel_values": _values(3, 8, 8)}, _classes, losses.CrossEntropy(), _class_mean),
    "Wav2Vec2 without SpecAugment": Row(
        lambda: _wav2vec2(augmented=False),
        lambda: {"input_values": _values(90)},
        _classes,
        losses.CrossEntropy(),
        _class_mean,
    ),
    "Whisper": Row(_whisper, lambda: _text_pair(input_features=_values(4, 20)), _token_labels, _per_sequence, _token_mean),
    "BART with layerdrop": Row(_bart, lambda: _text_pair(**_text()), _token_labels, _per_sequence, _token_mean),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ROWS)
def test_keyed_gradients_are_those_of_one_pass(name: str, cut: int) -> None:
    row = ROWS[name]
    model, inputs, targets = row.make(), row.inputs(), row.targets()
    assert isinstance(inputs, Mapping)
    expected, value = keyed_gradients(model, 7, 3, row.mean, inputs, targets)
    result = Accumulator(model, row.loss, micro_batch_size=cut, seed=7).backward(inputs, targets, step=3)
    assert relative_error(model, expected) <= row.tolerance
    torch.testing.assert_close(result.loss, value.double(), rtol=row.tolerance, atol=0)


@pytest.mark.parametrize("name", ROWS)
def test_other_steps_draw_other_numbers(name: str) -> None:
    row = ROWS[name]
    model, inputs, targets = row.make(), row.inputs(), row.targets()
    expected, _ = keyed_gradients(model, 7, 4, row.mean, inputs, targets)
    Accumulator(model, row.loss, micro_batch_size=3, seed=7).backward(inputs, targets, step=3)
    assert relative_error(model, expected) > 1e-3


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("make", [_gpt2, _llama], ids=["GPT-2", "Llama"])
def test_causal_lm_is_the_librarys_own_loss(make: Callable[[], nn.Module], cut: int) -> None:
    """Its loss is computed in float32, so the model is in float32 too."""
    model, inputs, labels = make().float().eval(), _text(), _token_labels()
    expected, value = full_batch_gradients(model, lambda outputs, _: outputs.loss, dict(inputs) | {"labels": labels}, None)
    result = Accumulator(model, losses.CausalLM(), micro_batch_size=cut).backward(inputs, labels)
    assert relative_error(model, expected) <= 2e-6
    assert result.weight == float((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(result.loss, value.double(), rtol=1e-6, atol=0)


def test_a_library_that_divides_each_micro_batch_by_its_own_tokens_is_far_off() -> None:
    """What :class:`losses.CausalLM` is for: the labels are ragged enough."""
    model, inputs, labels = _gpt2(0.0), _text(), _token_labels()
    expected, _ = full_batch_gradients(model, _shifted_mean, inputs, labels)
    for part in (slice(0, 4), slice(4, 8)):
        (model(**{key: value[part] for key, value in inputs.items()}, labels=labels[part]).loss / 2).backward()
    assert relative_error(model, expected) > 0.01


def _contrastive(outputs: Any, _: Any) -> Tensor:
    logits = outputs.logits_per_image
    return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("seed", [None, 7])
def test_clips_loss_is_refused_as_it_couples_samples(cut: int, seed: int | None) -> None:
    inputs = {"input_ids": _ids(), "attention_mask": _mask(), "pixel_values": _values(3, 8, 8)}
    with pytest.raises(ExactnessError, match=r"^loss: expected a sum over samples, each treated apart"):
        Accumulator(_clip(), _contrastive, micro_batch_size=cut, seed=seed).backward(inputs, None)


def test_clips_own_loss_is_refused_as_a_mean() -> None:
    inputs = {"input_ids": _ids(), "pixel_values": _values(3, 8, 8)}
    own = Accumulator(_clip(), lambda outputs, _: outputs.loss, micro_batch_size=3)
    with pytest.raises(LossError, match=r"one of its losses per sample, shape \(\d,\)"):
        own.backward(inputs | {"return_loss": True}, None)


@pytest.mark.parametrize("cut", CUTS)
def test_wav2vec2_draws_from_numpy_and_is_refused_with_a_seed(cut: int) -> None:
    accumulator = Accumulator(_wav2vec2(augmented=True), losses.CrossEntropy(), micro_batch_size=cut, seed=7)
    with pytest.raises(RandomnessError, match="expected random numbers from torch, got some from NumPy's random"):
        accumulator.backward({"input_values": _values(90)}, _classes())


def test_layerdrop_is_never_refused() -> None:
    """Which layers are skipped changes from step to step, and with it the number of random calls."""
    model, inputs, labels = _bart(layerdrop=0.3), _text_pair(**_text()), _token_labels()
    accumulator = Accumulator(model, _per_sequence, micro_batch_size=3, seed=7)
    calls = set()
    for step in range(40):
        expected, _ = keyed_gradients(model, 7, step, _token_mean, inputs, labels)
        model.zero_grad()
        accumulator.backward(inputs, labels, step=step)
        assert relative_error(model, expected) <= 1e-12
        calls.add(sum(p.grad is not None for p in model.parameters()))
        model.zero_grad()
    assert len(calls) > 3
