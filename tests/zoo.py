"""Every language model of transformers that can be built small: what the layouts must get right.

`python tests/zoo.py > docs/models.md` writes the table of what each architecture can do.
"""

from __future__ import annotations

import inspect
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

from debias.records import Masked, Span

VOCABULARY = 199
LIMIT = 512  # positions
WINDOW = 24  # of sliding windows and chunks: far shorter than the texts

# Under the names that one family or another gives them; a config takes those that it knows.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "ffn_hidden_size",
            "hidden_dim",
        ),
        48,
    ),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), LIMIT),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window", "window_size"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "state_size": 8,
    "mamba_d_state": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "rotary_dim": 8,
    "is_decoder": True,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    **{name: {"head_dim": None, "num_key_value_heads": 4} for name in ("deepseek_v2", "deepseek_v3", "minicpm3")},
}
# A third that differ in what they make of masks and positions; `make test-slow` tests the others.
FAST = """
    bart bert bloom cohere2 cpmant deepseek_v3 doge electra exaone4 falcon gemma gemma2 gemma3_text glm4 gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_oss gptj lfm2 llama llama4_text mamba ministral mistral mixtral modernbert-decoder
    mpt olmo3 opt phi phi3 qwen2 qwen3 roformer smollm3 starcoder2 xglm
""".split()  # noqa: SIM905
FAST_MASKED = ["albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"]
# A few architectures on which every adapter is tried: plain ones, experts, state spaces, tied and scaled output layers.
FAST_ADAPTERS = """
    apertus deepseek_v3 falcon gemma3_text gpt_oss hy_v4 laguna lfm2 mamba mixtral mpt opt recurrent_gemma
""".split()  # noqa: SIM905
FAST_ADAPTERS_MASKED = ["albert", "deberta-v2", "modernbert", "mpnet"]
# Their recurrences take a minute or more on a CPU without kernels of their own.
LONG = ("bailing_hybrid", "deepseek_v4", "falcon_h1", "inkling2_text", "inkling_text", "nemotron_h", "qwen3_5_moe_text")


def build(name: str, kind: str = "causal") -> Any:
    """A model with random weights, large enough to make errors visible. Raises whatever its architecture raises."""
    config_class = CONFIG_MAPPING[name]
    known = {*inspect.signature(config_class.__init__).parameters, *getattr(config_class, "attribute_map", {})}
    known |= set(getattr(config_class, "__dataclass_fields__", {}))
    asked = {**SMALL, **OWN.get(name, {})}
    if kind == "masked":
        asked["is_decoder"] = False
    config = config_class(**{key: value for key, value in asked.items() if key in known and value is not None})
    model_class = getattr(transformers, {"causal": CAUSAL, "masked": MASKED}[kind][name])
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > 3_000_000:
        raise ValueError(f"{size:,} parameters are too many")
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def buildable(kind: str = "causal") -> list[str]:
    """Names of all architectures that can be built small and score a plain text."""
    found = []
    for name in sorted({"causal": CAUSAL, "masked": MASKED}[kind]):
        if name in LONG:
            continue
        try:
            plain(build(name, kind), spans(kind)[0])
        except Exception as error:  # whatever an architecture raises: it wants more than these few settings
            warnings.warn(f"{name}: {type(error).__name__}: {str(error)[:100]}", stacklevel=2)
            continue
        found.append(name)
    return found


def spans(kind: str = "causal") -> list[Any]:
    """Sixty random spans of 6 to 300 tokens whose prefixes branch early and late."""
    draw = np.random.default_rng(0)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(int(i) for i in draw.integers(3, VOCABULARY, size=size))

    stems = [ids(size) for size in (2, 3, 5, 40, 120)]
    texts = [stems[i % 5] + ids(int(draw.integers(4, (30, 60, 180)[i % 3]))) for i in range(60)]
    if kind == "masked":
        return [Masked(text, (len(text) // 3,), (text[len(text) // 3],)) for text in texts[:20]]
    return [Span(text, 1 + (i % 3 == 0) * (len(text) // 2)) for i, text in enumerate(texts)]


def plain(model: Any, span: Any) -> float:
    """Log-probability by one forward pass of this text alone, in nats."""
    with torch.inference_mode():
        logprob_TV = model(input_ids=torch.tensor([span.ids])).logits[0].float().log_softmax(-1)
    if isinstance(span, Masked):
        return float(sum(logprob_TV[k, token] for k, token in zip(span.at, span.tokens, strict=True)))
    return float(sum(logprob_TV[k - 1, span.ids[k]] for k in range(span.start, len(span.ids))))


def worst(model: Any, layout: Any, budget: int, texts: Sequence[Any], expected: np.ndarray) -> float:
    """Largest difference from the plain scores, in nats per token."""
    from debias.scoring import batched

    found = batched.score(model, texts, layout, budget)
    return float((np.abs(found - expected) / [span.num_tokens for span in texts]).max())


def reason_of(error: Exception) -> str:
    """Why an architecture is refused, without the remedy."""
    text = str(error).partition(";")[0].partition(", so")[0].partition(", whose")[0]
    return text if text.startswith("model ") else text.partition(" (")[0]


def introduction() -> str:
    """The head of docs/models.md."""
    from zoo_adapters import ROWS

    layouts = (
        "Written by `python tests/zoo.py > docs/models.md`: every architecture of transformers "
        f"{transformers.__version__} that can be built with a few thousand parameters. Sixty texts of 6 to 300 tokens "
        f"are scored in the layout that `choose_layout` finds (windows of {WINDOW} tokens), and compared with one "
        "forward pass per text: the largest difference in nats per token. A refused architecture is told in one line "
        f"before anything is scored. Not tried, because they take minutes here: {', '.join(LONG)}."
    )
    adapters = (
        f"Each adapter ({', '.join(ROWS)}) is attached, trained for a step, saved, read back and merged: the loss is "
        "finite, the base stays as it is, and what is read back or merged answers as the trained one does. The others "
        f"are refused in one line. {', '.join(NEVER_MERGED)} have no merged form."
    )
    paragraphs = [textwrap.fill(text, 100, break_on_hyphens=False) for text in (layouts, adapters)]
    header = "| architecture | kind | layout | largest difference | refused adapters | not merged |"
    return "\n\n".join(["# Architectures", *paragraphs, f"{header}\n| --- | --- | --- | --- | --- | --- |"])


def main() -> None:
    """Print docs/models.md."""
    from zoo_adapters import refused

    from debias.models.checkpoint import check_architecture
    from debias.records import UserError
    from debias.scoring.layout_trial import choose_layout

    print(introduction())
    for kind in ("causal", "masked"):
        texts = spans(kind)
        for name in buildable(kind):
            model = build(name, kind)
            try:
                check_architecture(model.config, name)
                layout = choose_layout(model, kind, longest=300)
                expected = np.array([plain(model, span) for span in texts])
                figure = f"{max(worst(model, layout, budget, texts, expected) for budget in (300, 1024)):.0e}"
                cells = [layout.name, figure, *cells_of(refused(name, kind))]
            except UserError as error:
                cells = ["refused", reason_of(error), "", ""]
            print(f"| {' | '.join([name, kind, *cells])} |", flush=True)


NEVER_MERGED = ("bottleneck", "prefix", "prompt")


def cells_of(reasons: dict[str, str]) -> tuple[str, str]:
    """The table's last cells: which adapters are refused, and which of the others cannot be merged."""
    refused = [name for name in reasons if " " not in name]
    unmerged = [name.split()[0] for name in reasons if " " in name and name.split()[0] not in NEVER_MERGED]
    return ", ".join(refused), ", ".join(unmerged)


def documented() -> dict[tuple[str, str], tuple[str, ...]]:
    """Those cells in the committed table, by architecture and kind."""
    table = Path(__file__).resolve().parents[1] / "docs/models.md"
    lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(name, kind): tuple(cells) for name, kind, layout, _, *cells in rows[2:] if layout != "refused"}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    main()
