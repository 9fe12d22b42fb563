"""What cannot be scored is refused with one line before anything else: files, architectures, missing weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
import transformers as hf
from command import Shown
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from debias.models.base import LOADERS, BaseModel
from debias.models.checkpoint import check_architecture, kind_of
from debias.models.embedded import _read_once
from debias.records import UserError
from debias.scoring.layout_trial import choose_layout
from debias.scoring.scorer import Scorer

SIZE: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
LLAMA = hf.LlamaConfig(**SIZE, num_key_value_heads=1)
Tensors = dict[str, torch.Tensor]


def tokenizer(**special: str) -> hf.PreTrainedTokenizerFast:
    """One token for each byte, behind the special ones."""
    names = list(dict.fromkeys(special.values()))
    vocabulary = {token: i for i, token in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bytewise = Tokenizer(models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return hf.PreTrainedTokenizerFast(tokenizer_object=bytewise, **special)


def saved(folder: Path, model: hf.PreTrainedModel, **config: Any) -> Path:
    """A model's folder, whose config may say something else than its weights."""
    model.save_pretrained(folder)
    tokenizer(bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    if config:
        written = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(written))
    return folder


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        BaseModel(str(folder)).load()
    assert "\n" not in str(error.value)
    return str(error.value)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("model", "lacks"),
    [
        (lambda: hf.LlamaModel(LLAMA), "lm_head.weight of LlamaForCausalLM"),
        (lambda: hf.BertModel(hf.BertConfig(**SIZE)), "cls.predictions.bias and 5 more of BertForMaskedLM"),
        (lambda: hf.RobertaModel(hf.RobertaConfig(**SIZE)), "lm_head.bias and 5 more of RobertaForMaskedLM"),
        (lambda: hf.DebertaV2Model(hf.DebertaV2Config(**SIZE)), "cls.predictions.bias and 5 more"),
        (lambda: hf.ElectraForPreTraining(hf.ElectraConfig(**SIZE, embedding_size=16)), "generator_lm_head.bias and"),
    ],
    ids=["Llama", "BERT", "RoBERTa", "DeBERTa", "ELECTRA's discriminator"],
)
def test_a_body_without_its_head_is_refused(model: Callable[[], Any], lacks: str, tmp_path: Path) -> None:
    assert f"lacks {lacks}" in refusal(saved(tmp_path, model()))


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_a_model_for_another_task_is_refused(head: str, tmp_path: Path) -> None:
    """Also one whose output layer is tied to its embeddings, so that no tensor is missing."""
    tied = hf.LlamaConfig(**SIZE, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0)
    model = getattr(hf, f"LlamaFor{head}")(tied)
    assert f"(LlamaFor{head}) was trained for another task" in refusal(saved(tmp_path, model))


@pytest.mark.parametrize(
    ("change", "config", "complaint"),
    [
        (without(UP), {}, f"lacks {UP} of LlamaForCausalLM"),
        (lambda t: {f"module.{k}": v for k, v in t.items()}, {}, "lacks lm_head.weight and 20 more"),
        (lambda t: t, {"num_hidden_layers": 3}, "lacks model.layers.2.input_layernorm.weight and 8 more"),
        (lambda t: t, {"num_hidden_layers": 1}, "holds model.layers.1.input_layernorm.weight and 8 more, for which"),
        (lambda t: t, {"intermediate_size": 32}, "the shape of model.layers.0.mlp.down_proj.weight is (16, 24) in its"),
        (lambda t: t | {UP: t[UP] / 0}, {}, f"holds NaN or inf in {UP}"),
        (lambda t: t | {UP: t[UP].index_fill(0, torch.tensor([3]), float("nan"))}, {}, f"holds NaN or inf in {UP}"),
        (lambda t: t | {k: v[:200] for k, v in t.items() if "embed" in k or "head" in k}, {"vocab_size": 200},
         "its tokenizer has 258 tokens and its embeddings 200 rows"),
    ],
    ids=["one tensor", "renamed", "a layer more", "a layer fewer", "shape", "inf", "NaN", "tokenizer"],
)  # fmt: skip
def test_weights_that_do_not_belong_are_refused(
    change: Callable[[Tensors], Tensors], config: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    folder = changed(saved(tmp_path, hf.LlamaForCausalLM(LLAMA), **config), change)
    assert complaint in refusal(folder)


def test_damaged_weights_are_told_before_a_run_is_looked_up(tmp_path: Path, debias: Callable[..., Shown]) -> None:
    folder = saved(tmp_path / "model", hf.LlamaForCausalLM(LLAMA))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    shown = debias("evaluate", "model=./model")
    assert shown.status == 1
    assert "is a Git LFS pointer" in " ".join(shown.err.split())


def test_a_base_that_predicts_nan_is_not_said_to_have_diverged() -> None:
    """Its weights are finite and its logits are not: nothing was trained here."""
    model = hf.LlamaForCausalLM(LLAMA)
    model.lm_head.weight.data.fill_(3e38)
    with pytest.raises(UserError, match=r"LlamaForCausalLM gives log-probabilities that are NaN or inf; try scoring"):
        choose_layout(model)


def test_an_incomplete_expert_is_refused(tmp_path: Path) -> None:
    config = hf.MixtralConfig(**SIZE, num_key_value_heads=1, num_local_experts=2)
    folder = saved(tmp_path, hf.MixtralForCausalLM(config))
    changed(folder, without("model.layers.0.block_sparse_moe.experts.1.w1.weight"))
    assert "cannot be loaded" in refusal(folder)


@pytest.mark.parametrize(
    "model",
    [
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, num_key_value_heads=1, tie_word_embeddings=True)),
        lambda: hf.LlamaModel(hf.LlamaConfig(**SIZE, num_key_value_heads=1, tie_word_embeddings=True)),
        lambda: hf.BertForPreTraining(hf.BertConfig(**SIZE)),
        lambda: hf.AlbertForPreTraining(hf.AlbertConfig(**SIZE, embedding_size=16)),
    ],
    ids=["tied", "tied, without its name", "BERT with a pooler", "ALBERT with a pooler"],
)
def test_tied_and_unused_tensors_may_be_absent_or_more(model: Callable[[], Any], tmp_path: Path) -> None:
    assert BaseModel(str(saved(tmp_path, model()))).load().model.training is False


def test_computed_masks_of_old_checkpoints_are_accepted(tmp_path: Path) -> None:
    """GPT-J's files hold the causal mask of each layer, and its drafting layers are not part of the model."""
    config = hf.GPTJConfig(vocab_size=260, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    folder = saved(tmp_path, hf.GPTJForCausalLM(config))
    names = ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias")
    BaseModel(str(changed(folder, lambda t: t | {name: torch.ones(1) for name in names}))).load()
    folder = saved(tmp_path / "mtp", hf.LlamaForCausalLM(LLAMA), num_hidden_layers=1, num_nextn_predict_layers=1)
    BaseModel(str(folder)).load()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: f.write_bytes(b""), "is empty"),
        (lambda f: f.write_bytes(f.read_bytes()[:-8]), "is truncated or not in safetensors format"),
        (lambda f: f.write_bytes(b"<html>sign in</html>" * 9), "is truncated or not in safetensors format"),
        (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
        (lambda f: f.rename(f.with_name("pytorch_model.bin")), "only in pytorch_model.bin"),
        (lambda f: f.rename(f.with_name("weights")), "no file named model.safetensors"),
        (lambda f: f.with_name("config.json").write_text('{"model_type": "nope"}'), "model type `nope`"),
        (lambda f: f.with_name("config.json").write_text("[]"), "cannot be loaded"),
        (lambda f: f.with_name("tokenizer.json").write_text('{"a"'), "cannot be loaded"),
        (lambda f: f.with_name("tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer"),
        (lambda f: f.with_name("adapter_config.json").write_text("{}"), "holds an adapter"),
        (lambda f: [f.rename(f.with_name("a.safetensors")), f.with_name("model.safetensors.index.json").write_text(
            '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')], "lacks b.safetensors of its 2 files"),
    ],
    ids=["empty", "cut", "a web page", "LFS", "pickle", "none", "architecture", "config",
         "half a tokenizer", "tokenizer", "adapter", "shard"],
)  # fmt: skip
def test_damaged_files_are_named(damage: Callable[[Path], Any], complaint: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, hf.LlamaForCausalLM(LLAMA))
    damage(folder / "model.safetensors")
    assert complaint in refusal(folder)


@pytest.mark.parametrize(
    ("method", "more", "names"),
    [
        ("gptq", {"bits": 4, "group_size": 128}, "optimum|GPTQ"),
        ("awq", {"bits": 4}, "gptqmodel|AWQ"),
        ("bitsandbytes", {"load_in_4bit": True}, "bitsandbytes"),
        ("compressed-tensors", {"config_groups": {}}, "compressed"),
    ],
)
def test_quantised_checkpoints_name_what_is_missing(
    method: str, more: dict[str, Any], names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages are not there; a file of another layout would be refused by its tensors."""
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    config = {"quantization_config": {"quant_method": method, **more}}
    complaint = refusal(saved(tmp_path, hf.LlamaForCausalLM(LLAMA), **config))
    assert any(name in complaint for name in names.split("|"))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (hf.BartConfig(), "is an encoder-decoder (bart)"),
        (hf.MBartConfig(), "is an encoder-decoder (mbart)"),
        (hf.PegasusConfig(), "is an encoder-decoder (pegasus)"),
        (hf.MarianConfig(), "is an encoder-decoder (marian)"),
        (hf.BlenderbotConfig(), "is an encoder-decoder (blenderbot)"),
        (hf.T5Config(), "is an encoder-decoder (t5)"),
        (hf.XLNetConfig(), "(xlnet) predicts tokens in shuffled order"),
        (hf.ProphetNetConfig(is_encoder_decoder=False), "(prophetnet) predicts several tokens at once"),
        (hf.ViTConfig(), "(vit) is not among the causal or masked language models"),
        (hf.LlamaConfig(architectures=["LlamaForMaskedLM"]), "is a masked model that needs code of its own"),
    ],
)
def test_architectures_without_one_likelihood_are_refused(config: Any, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        check_architecture(config, "x")
    assert complaint in str(error.value)


def test_an_encoder_decoders_decoder_alone_is_causal(tmp_path: Path) -> None:
    decoder = hf.BartForCausalLM(hf.BartConfig(vocab_size=260, d_model=16, decoder_layers=1, decoder_attention_heads=2,
                                               decoder_ffn_dim=16))  # fmt: skip
    assert BaseModel(str(saved(tmp_path, decoder))).load().kind == "causal"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (hf.BertConfig(), "masked"),
        (hf.RobertaConfig(architectures=["RobertaModel"]), "masked"),
        (hf.RobertaConfig(architectures=["RobertaForCausalLM"]), "masked"),
        (hf.RobertaConfig(architectures=["RobertaForCausalLM"], is_decoder=True), "causal"),
        (hf.BertConfig(is_decoder=True), "causal"),
        (hf.XLMConfig(architectures=["XLMWithLMHeadModel"]), "masked"),
        (hf.XLMConfig(architectures=["XLMWithLMHeadModel"], causal=True), "causal"),
        (hf.LlamaConfig(), "causal"),
        (hf.GPT2Config(architectures=["GPT2Model"]), "causal"),
        (hf.DistilBertConfig(), "masked"),
    ],
)
def test_kind_is_what_the_architecture_is(config: Any, kind: str) -> None:
    """A member of BERT's family is causal only as a decoder, whatever its class is called."""
    assert kind_of(config, None, "x") == kind


def test_a_kind_that_the_architecture_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.kind=masked: 'x' \(llama\) is causal only"):
        kind_of(LLAMA, "masked", "x")


def test_a_folder_may_begin_with_a_tilde(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert BaseModel(f"~/{tiny.name}").tokens().kind == "causal"


def test_the_library_that_reads_gguf_files_is_as_it_was_after_it_has_read_one_once() -> None:
    before = gguf.get_tensor_name_map, gguf.GGUFReader
    with _read_once():
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.GGUFReader is not before[1]
    assert (gguf.get_tensor_name_map, gguf.GGUFReader) == before


class Asked(BaseException):
    """Ends a loading where transformers would begin."""


def asked(monkeypatch: pytest.MonkeyPatch, on_gpu: bool, path: Path, **model: Any) -> dict[str, Any]:
    """The options that `from_pretrained` gets, on a machine with four GPUs or none."""
    found: dict[str, Any] = {}

    def from_pretrained(_: Any, **options: Any) -> None:
        found.update(options)
        raise Asked

    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setitem(LOADERS, "causal", SimpleNamespace(from_pretrained=from_pretrained))
    with pytest.raises(Asked):
        BaseModel(str(path), **model).load()
    return found


@pytest.mark.parametrize(
    ("dtype", "on_cpu", "on_gpu"),
    [
        ("auto", torch.float32, torch.bfloat16),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("float32", torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("bits", [None, "4bit", "8bit"])
def test_weights_go_straight_to_the_own_gpu_of_a_process_in_their_dtype(
    bits: str | None, dtype: str, on_cpu: torch.dtype, on_gpu: torch.dtype, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain and quantised ones alike: torchrun's fourth process must not load to the first GPU."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())  # as if bitsandbytes were installed
    if bits and dtype == "float32":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(UserError, match=r"computes in 16 bits; leave out model\.dtype=float32"):
            BaseModel(str(tiny), quantization=bits, dtype=dtype).load()  # type: ignore[arg-type]
        return
    options = asked(monkeypatch, True, tiny, quantization=bits, dtype=dtype)
    assert options["device_map"] == {"": torch.device("cuda", 3)}
    assert options["dtype"] == on_gpu
    assert ("quantization_config" in options) == (bits is not None)
    if bits is None:
        options = asked(monkeypatch, False, tiny, dtype=dtype)
        assert "device_map" not in options
        assert options["dtype"] == on_cpu


@pytest.mark.parametrize(
    ("wanted", "held", "rounded"),
    [
        ("auto", torch.float32, True),
        ("auto", torch.float16, True),
        ("auto", torch.bfloat16, False),
        ("bf16", torch.float32, False),
        ("float32", torch.float32, False),
    ],
)
def test_a_base_whose_weights_were_rounded_unasked_says_so_at_precision_32(
    wanted: Any, held: torch.dtype, rounded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Once for a loaded base, whatever is scored with it; the GPU is a stand-in."""
    folder = saved(tmp_path, hf.LlamaForCausalLM(LLAMA).to(held))
    load = LOADERS["causal"].from_pretrained

    def to_cpu(path: str, **options: Any) -> Any:
        return load(path, **{key: value for key, value in options.items() if key != "device_map"})

    monkeypatch.setitem(LOADERS, "causal", SimpleNamespace(from_pretrained=to_cpu))
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        base = BaseModel(str(folder), dtype=wanted).load()
    assert base.rounded == rounded
    Scorer(base, None, "32")
    Scorer(base, None, "32")
    told = [record.message for record in caplog.records if "model.dtype=float32 keeps them whole" in record.message]
    assert len(told) == rounded
