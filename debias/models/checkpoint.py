"""What cannot be scored is refused: by a model's files, by its config, and by what loading found.

`from_pretrained` fills missing tensors with random numbers and ignores those it has no place for. Either makes a model
whose scores look like any other's, so here both are errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from debias.models.identity import check_files
from debias.records import UserError, one_line
from debias.wording import counted

MAPPINGS: dict[str, Any] = {"causal": MODEL_FOR_CAUSAL_LM_MAPPING, "masked": MODEL_FOR_MASKED_LM_MAPPING}

# Architectures that transformers lists as causal, and that no order of words gives one likelihood to.
OTHERWISE = {
    "xlnet": "predicts tokens in shuffled order",
    "prophetnet": "predicts several tokens at once",
    "cpmant": "reads its prompt in both directions",
}
OTHER_TASKS = "Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction|RewardModel"

# Tensors of older versions that no prediction depends on: masks and angles, which are computed, and poolers.
NOT_USED = (
    r"(^|\.)(pooler\.|(attn|attention|self_attention)\.(bias|masked_bias|causal_mask)$|.*inv_freq$|position_ids$)"
)

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_weights(folder: Path) -> None:
    """Raise UserError if a model's folder lacks weights in safetensors format."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter: name its base with model=, and the adapter with adapter.path=")
    check_files(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index} is damaged ({one_line(error)}); get it again") from error
        if missing := sorted(name for name in shards if not (folder / name).is_file()):
            files = counted(len(shards), "file")
            raise UserError(f"{folder} lacks {_and_more(missing)} of its {files} of weights; get it again")
    elif not any(folder.glob("*.safetensors")) and (pickles := sorted(p.name for p in folder.glob("*.bin"))):
        raise UserError(
            f"{folder} has its weights only in {_and_more(pickles)}, a format that can run foreign code when it is "
            "read; convert them to safetensors (transformers: from_pretrained, then save_pretrained)"
        )


def check_architecture(config: PretrainedConfig, path: str) -> None:
    """Raise UserError for a model that is neither a decoder nor an encoder that predicts tokens."""
    kind = config.model_type
    names = [str(name) for name in getattr(config, "architectures", None) or []]
    reason = None
    if getattr(config, "is_encoder_decoder", False):
        reason = f"is an encoder-decoder ({kind}), whose likelihoods depend on a second text"
    elif kind in OTHERWISE:
        reason = f"({kind}) {OTHERWISE[kind]}, so a text has no one likelihood"
    elif other := next((name for name in names if re.search(OTHER_TASKS, name)), None):
        reason = f"({other}) was trained for another task than predicting tokens"
    elif not any(type(config) in mapping for mapping in MAPPINGS.values()):
        reason = f"({kind}) is not among the causal or masked language models of transformers"
    elif any("MaskedLM" in name for name in names) and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        reason = f"({names[0]}) is a masked model that needs code of its own"
    if reason:
        raise UserError(f"model {path!r} {reason}; choose a causal or a masked language model")


def kind_of(config: PretrainedConfig, wanted: str | None, path: str) -> str:
    """`causal` or `masked`: as wanted, else what the architecture is; BERT's family can be either and says which.

    Raises UserError if the architecture is not of the wanted kind.
    """
    possible = [kind for kind, mapping in MAPPINGS.items() if type(config) in mapping]
    if wanted and wanted not in possible:
        raise UserError(f"model.kind={wanted}: {path!r} ({config.model_type}) is {possible[0]} only; remove model.kind")
    if wanted or len(possible) == 1:
        return wanted or possible[0]
    # Names of classes do not tell: `RobertaModel` is both, and `RobertaForCausalLM` hides later tokens only as decoder.
    decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)  # XLM's word for it
    return "causal" if decoder else "masked"


def check_loaded(model: PreTrainedModel, report: Mapping[str, Collection[Any]], path: str) -> None:
    """Raise UserError if a tensor was missing, had another shape, or belongs to a part that the model lacks.

    Args:
        report: what transformers says of the loading (`output_loading_info`).
    """
    name, misfit = type(model).__name__, "its config.json does not belong to these weights"
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model {path!r} lacks {_and_more(missing)} of {name}, which would be random numbers; "
            "choose a checkpoint of the whole model, with its prediction head"
        )
    for tensor, found, wanted in sorted(report["mismatched_keys"]):
        shapes = f"{tuple(found)} in its files and {tuple(wanted)} in {name}"
        raise UserError(f"model {path!r}: the shape of {tensor} is {shapes}; {misfit}")
    if unknown := sorted(key for key in report["unexpected_keys"] if _in_use(key, model)):
        raise UserError(f"model {path!r} holds {_and_more(unknown)}, for which {name} has no place; {misfit}")
    weights = [
        (name, p)
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.element_size() > 1 and p.numel()
    ]
    # Extremes propagate NaN, and show inf, without a copy of the weights; one transfer for all of them.
    extremes = torch.stack([torch.stack(p.detach().aminmax()).float().abs().amax() for _, p in weights]).isfinite()
    if broken := [name for (name, _), finite in zip(weights, extremes.tolist(), strict=True) if not finite]:
        raise UserError(f"model {path!r} holds NaN or inf in {_and_more(broken)}; choose another checkpoint")


def _in_use(key: str, model: PreTrainedModel) -> bool:
    """Whether an unexpected tensor would belong to the model's body, if that had a place for it."""
    body = {model.base_model_prefix, *dict(model.base_model.named_children())}
    if key.partition(".")[0] not in body or re.search(NOT_USED, key):
        return False
    config: Any = model.config.get_text_config()
    layer = re.search(r"(^|\.)layers\.(\d+)\.", key)
    more = getattr(config, "num_nextn_predict_layers", None) or 0  # layers for drafting several tokens at once
    return not (layer and 0 <= int(layer[2]) - config.num_hidden_layers < more)


def check_vocabulary(tokenizer: Tokenizer, model: PreTrainedModel, path: str) -> None:
    """Raise UserError if a text can hold a token that the model has no embedding for."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    # Some multimodal tokenizers have a token for an image, which no text becomes and a text model lacks.
    added = tokenizer.added_tokens_decoder
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.mask_token, tokenizer.cls_token, tokenizer.sep_token}
    beyond = sorted(
        (number, token)
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and (number not in added or not added[number].special or token in used)
    )
    if beyond:
        raise UserError(
            f"model {path!r}: its tokenizer has {len(tokenizer):,} tokens and its embeddings {counted(rows, 'row')} "
            f"({beyond[0][1]!r} is number {beyond[0][0]}); choose a checkpoint whose tokenizer belongs to its weights"
        )


def _and_more(names: Collection[str]) -> str:
    return f"{next(iter(names))}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
