"""Models of several architectures with random weights, small enough that a test takes a moment."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 97
ENDS = [7, 17, 27, 37, 47]  # several, so that samples end at many different lengths
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,  # spread logits: with the default all tokens are about equally probable
    "eos_token_id": ENDS,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval()


def qwen2():
    torch.manual_seed(1)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()


def gemma3():
    """Sliding windows of four tokens in the first layer, which the prompts and answers exceed."""
    torch.manual_seed(2)
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=layers)).eval()


def gemma3_wide():
    """Sliding windows that everything here fits into."""
    torch.manual_seed(2)
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=120, layer_types=layers)).eval()


def qwen3():
    torch.manual_seed(6)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES)).eval()


def mistral():
    torch.manual_seed(7)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)).eval()


def gpt2():
    """Learned absolute positions: a wrong position id under left padding would show at once."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, pad_token_id=0
    )
    config.eos_token_id, config.bos_token_id, config.initializer_range = ENDS, 1, 0.25
    return GPT2LMHeadModel(config).eval()


def mamba():
    """No keys and values: its cache holds states, under another name."""
    torch.manual_seed(4)
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id")}
    return MambaForCausalLM(MambaConfig(**sizes, pad_token_id=0, initializer_range=0.25)).eval()


def lora():
    torch.manual_seed(5)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(qwen2(), config).eval()


class Opaque:
    """A cache that offers the model what it reads, and nothing that would copy or remove rows."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        if name in ("reorder_cache", "batch_select_indices", "batch_repeat_interleave"):
            raise AttributeError(name)
        return getattr(self._inner, name)


class LlamaWithItsOwnCache(LlamaForCausalLM):
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **options
    ):
        inner = past_key_values._inner if past_key_values is not None else None
        output = super().forward(input_ids, attention_mask, position_ids, inner, **options)
        output.past_key_values = Opaque(output.past_key_values)
        return output


def own_cache():
    torch.manual_seed(0)
    return LlamaWithItsOwnCache(LlamaConfig(**SIZES)).eval()


def count_forwards(model):
    """Shapes of `input_ids` of every forward from here on."""
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def teacher_forced(model, prompt, sample, temperature=1.0):
    """Log-probabilities of a sample's tokens, by one forward of the whole."""
    return scored_whole(model, prompt, sample, temperature)[0].numpy()


def scored_whole(model, prompt, sample, temperature=1.0):
    """Log-probabilities and entropies of a sample's tokens, by one forward of the whole."""
    ids = torch.tensor([[*prompt, *sample.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    scores = torch.distributions.Categorical(logits=logits / temperature)
    return scores.log_prob(ids[0, len(prompt) :]), scores.entropy()
